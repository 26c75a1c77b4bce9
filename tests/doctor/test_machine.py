import subprocess
import sys
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch

from medcoss_components.doctor import machine
from medcoss_components.doctor.findings import ERROR, OK, WARNING

Usage = namedtuple("Usage", "total used free")


def only(found):
    (finding,) = found
    return finding


class TestProcessor:
    @pytest.mark.parametrize(
        ("flags", "gpu", "status", "text"),
        [
            ({"avx512_bf16", "sse"}, False, OK, "in hardware (avx512_bf16)"),
            (machine.FAST_BF16, False, OK, "through AVX-512"),
            ({"avx2"}, False, WARNING, "slow"),
            ({"avx2"}, True, OK, "slow"),
        ],
    )
    def test_bf16(self, flags, gpu, status, text):
        found = machine._bf16(set(flags), gpu)
        assert found.status == status and text in found.value
        assert ("float32" in found.advice) == (status == WARNING)

    def test_this_one(self):
        found = list(machine.check_processor())
        assert found[0].status == OK and "cores usable" in found[0].value

    def test_flags(self, monkeypatch, tmp_path):
        (tmp_path / "cpuinfo").write_text("processor: 0\nflags\t\t: fpu avx2\n")
        monkeypatch.setattr(machine, "Path", lambda name: tmp_path / "cpuinfo")
        assert machine.cpu_flags() == {"fpu", "avx2"}
        monkeypatch.setattr(machine, "Path", lambda name: tmp_path / "gone")
        assert machine.cpu_flags() == set()


class TestMemory:
    def test_the_smaller_limit_counts(self, monkeypatch, tmp_path):
        limit = tmp_path / "memory.max"
        monkeypatch.setattr(machine, "CGROUP_LIMITS", (str(limit), str(tmp_path / "gone")))
        limit.write_text("4000000000\n")
        assert machine.memory_limit() == 4_000_000_000
        found = only(machine.check_memory())
        assert found.status == WARNING and found.value == "4.0 GB, 8.0 GB are advisable for volumes"
        limit.write_text("max\n")
        assert machine.memory_limit() > 0

    def test_unknown(self, monkeypatch):
        def fail(name):
            raise ValueError

        monkeypatch.setattr(machine.os, "sysconf", fail)
        assert only(machine.check_memory()).value == "not reported by this system"

    def test_enough(self, monkeypatch):
        monkeypatch.setattr(machine, "memory_limit", lambda: 64_000_000_000)
        assert only(machine.check_memory()).value == "64.0 GB"

    @pytest.mark.parametrize(("free", "status"), [(64e6, WARNING), (8e9, OK)])
    def test_shared_memory(self, monkeypatch, free, status):
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: Usage(free, 0, free))
        found = only(machine.check_shared_memory())
        assert found.status == status and ("--shm-size" in found.advice) == (status == WARNING)

    def test_no_shared_memory(self, monkeypatch, tmp_path):
        monkeypatch.setattr(machine, "Path", lambda name: tmp_path / "gone")
        assert only(machine.check_shared_memory()).value == "no /dev/shm on this system"


class TestOpenFiles:
    @pytest.mark.parametrize(
        ("limits", "status", "value", "advice"),
        [
            ((1024, 8192), WARNING, "1024 per process", "ulimit -n 4096 (at most 8192 here)"),
            ((1024, -1), WARNING, "1024 per process", "ulimit -n 4096 before"),
            ((4096, 8192), OK, "4096 per process", ""),
            ((-1, -1), OK, "unlimited per process", ""),
        ],
    )
    def test_limits(self, monkeypatch, limits, status, value, advice):
        resource = pytest.importorskip("resource")
        monkeypatch.setattr(resource, "getrlimit", lambda kind: limits)
        found = only(machine.check_open_files())
        assert (found.status, found.value) == (status, value) and found.advice.startswith(advice)

    def test_none(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "resource", None)
        assert only(machine.check_open_files()).value == "no limit reported by this system"


class TestGpu:
    @pytest.fixture
    def gpus(self, monkeypatch):
        """Pretend GPUs: ``gpus(count, major=9)``."""

        def pretend(count=1, major=9, computes=True, nccl=True):
            found = SimpleNamespace(name="Card", total_memory=80e9, major=major, minor=0)
            monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
            monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
            monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
            monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (70e9, 80e9))
            monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: nccl)
            monkeypatch.setattr(machine, "driver_version", lambda: "570.1")
            monkeypatch.setattr(machine, "_computes", lambda device: computes)
            return list(machine.check_gpu())

        return pretend

    def test_good(self, gpus):
        found = gpus(2)
        assert [entry.status for entry in found] == [OK] * 4
        assert found[1].value == "Card, 80.0 GB, capability 9.0, 70.0 GB free, bf16"
        assert found[3].value == "available"

    def test_old_ones_have_slow_bf16(self, gpus):
        found = gpus(1, major=7)[1]
        assert found.status == WARNING and "--precision fp16" in found.advice

    def test_wrong_results(self, gpus):
        assert gpus(1, computes=False)[1].status == ERROR

    def test_without_nccl(self, gpus):
        assert gpus(1, nccl=False)[-1].status == OK
        assert gpus(2, nccl=False)[-1].status == WARNING

    @pytest.mark.parametrize(
        ("error", "reason"),
        [(RuntimeError("CUDA out of memory"), "out of memory"), (RuntimeError("no kernel image"), "RuntimeError")],
    )
    def test_cannot_compute(self, gpus, monkeypatch, error, reason):
        gpus()

        def fail(device):
            raise error

        monkeypatch.setattr(machine, "_computes", fail)
        found = list(machine.check_gpu())[1]
        assert found.status == ERROR and f"cannot compute ({reason})" in found.value

    def test_products_of_ones(self):
        assert machine._computes(torch.device("cpu"))

    def test_a_wrong_product(self, monkeypatch):
        monkeypatch.setattr(torch, "ones", lambda *size, **options: torch.zeros(*size, **options))
        assert not machine._computes(torch.device("cpu"))

    @pytest.mark.parametrize(
        ("driver", "cuda", "visible", "text"),
        [
            (None, None, None, "none"),
            ("570.1", None, None, "torch is a CPU build"),
            ("470.1", "12.8", None, "torch (CUDA 12.8) cannot use it"),
            ("570.1", "12.8", "", "none"),
        ],
    )
    def test_no_gpu(self, monkeypatch, driver, cuda, visible, text):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(machine, "driver_version", lambda: driver)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        found = only(machine.check_gpu())
        assert found.status == WARNING and text in found.value

    def test_driver(self, monkeypatch):
        monkeypatch.setattr(machine.subprocess, "run", lambda *a, **k: SimpleNamespace(stdout="570.1\n570.1\n"))
        assert machine.driver_version() == "570.1"
        monkeypatch.setattr(machine.subprocess, "run", lambda *a, **k: SimpleNamespace(stdout=""))
        assert machine.driver_version() is None

    @pytest.mark.parametrize("error", [FileNotFoundError(), subprocess.TimeoutExpired("nvidia-smi", 20)])
    def test_no_driver(self, monkeypatch, error):
        def fail(*_, **__):
            raise error

        monkeypatch.setattr(machine.subprocess, "run", fail)
        assert machine.driver_version() is None
