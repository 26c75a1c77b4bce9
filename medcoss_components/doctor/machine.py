"""Processor, memory, GPU and limits of the operating system."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from medcoss_components.data.store_sizes import size_text
from medcoss_components.data.workers import available_cores
from medcoss_components.doctor.findings import ERROR, OK, WARNING, Finding

if TYPE_CHECKING:
    import torch

MEMORY_NEEDED = 8e9  # bytes; a CT of 1,000 slices is 1 GB as float32, and each worker holds a few copies of one
SHARED_NEEDED = 1e9  # bytes of /dev/shm for batches of volumes on their way from the worker processes of fine-tuning
FILES_NEEDED = 4096
NATIVE_BF16 = {"avx512_bf16", "amx_bf16"}
FAST_BF16 = {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def check_processor() -> Iterator[Finding]:
    """Cores, threads of torch, and how fast bf16 is without a GPU."""
    import torch

    cores, threads = available_cores(), torch.get_num_threads()
    usable = (
        f"{cores} of {os.cpu_count()} cores usable, torch takes {threads} {'thread' if threads == 1 else 'threads'}"
    )
    yield Finding(OK, "processor", f"{platform.system()} {platform.machine()}, {usable}")
    yield _bf16(cpu_flags(), torch.cuda.is_available())


def cpu_flags() -> set[str]:
    """Instruction sets that Linux reports; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    line = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return set(line.partition(":")[2].split())


def _bf16(flags: set[str], gpu: bool) -> Finding:
    if flags & NATIVE_BF16:
        return Finding(OK, "bf16 on the CPU", f"in hardware ({', '.join(sorted(flags & NATIVE_BF16))})")
    if flags >= FAST_BF16:
        return Finding(OK, "bf16 on the CPU", "through AVX-512, about as fast as float32")
    status = OK if gpu else WARNING
    advice = "" if gpu else "train and predict on this CPU with --precision float32"
    return Finding(status, "bf16 on the CPU", "slow: the processor has no AVX-512, or none is reported", advice)


def check_memory() -> Iterator[Finding]:
    """Main memory that this process may use."""
    total = memory_limit()
    if total is None:
        yield Finding(OK, "memory", "not reported by this system")
        return
    enough = total >= MEMORY_NEEDED
    advice = "" if enough else "prepare with --set preparation_workers=1, and fine-tune with --num_workers 0"
    value = size_text(total) if enough else f"{size_text(total)}, {size_text(MEMORY_NEEDED)} are advisable for volumes"
    yield Finding(OK if enough else WARNING, "memory", value, advice)


def memory_limit() -> int | None:
    """Bytes of memory, or of the limit of this container where that is less; None when unknown."""
    sizes = []
    try:
        sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        return None
    for name in CGROUP_LIMITS:
        try:
            sizes.append(int(Path(name).read_text(encoding="utf-8")))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return min(sizes)


def check_shared_memory() -> Iterator[Finding]:
    """Room for batches between processes: /dev/shm, which containers make 64 MB small."""
    if not Path("/dev/shm").is_dir():
        yield Finding(OK, "shared memory", "no /dev/shm on this system")
        return
    free = shutil.disk_usage("/dev/shm").free
    enough = free >= SHARED_NEEDED
    advice = "" if enough else "start the container with --shm-size=8g (--ipc=host), or fine-tune with --num_workers 0"
    yield Finding(OK if enough else WARNING, "shared memory", f"{size_text(free)} free in /dev/shm", advice)


def check_open_files() -> Iterator[Finding]:
    """The limit of open files: data loader workers of fine-tuning hold several for each batch."""
    try:
        import resource
    except ImportError:
        yield Finding(OK, "open files", "no limit reported by this system")
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = soft == resource.RLIM_INFINITY or soft >= FILES_NEEDED
    shown = "unlimited" if soft == resource.RLIM_INFINITY else str(soft)
    most = "" if hard == resource.RLIM_INFINITY else f" (at most {hard} here)"
    advice = "" if enough else f"ulimit -n {FILES_NEEDED}{most} before a training with many workers"
    yield Finding(OK if enough else WARNING, "open files", f"{shown} per process", advice)


def check_gpu() -> Iterator[Finding]:
    """GPUs that torch can use: name, memory, bf16, driver; and whether each really computes."""
    import torch

    driver = driver_version()
    if not torch.cuda.is_available():
        yield _no_gpu(driver, torch.version.cuda)
        return
    yield Finding(OK, "driver", f"{driver or 'not reported'}, torch is built for CUDA {torch.version.cuda}")
    for number in range(torch.cuda.device_count()):
        yield _gpu(number)
    yield from _nccl(torch.cuda.device_count())


def _nccl(gpus: int) -> Iterator[Finding]:
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_nccl_available():
        yield Finding(OK, "nccl", "available")
    else:
        advice = "install a torch build with nccl to train on several GPUs" if gpus > 1 else ""
        yield Finding(WARNING if gpus > 1 else OK, "nccl", "not in this torch build", advice)


def _no_gpu(driver: str | None, cuda: str | None) -> Finding:
    if driver and cuda is None:
        value, advice = f"driver {driver} is there, but torch is a CPU build", "install a torch build for CUDA"
        return Finding(WARNING, "GPU", value, advice)
    if driver and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1"):
        value = f"driver {driver} is there, but torch (CUDA {cuda}) cannot use it"
        return Finding(WARNING, "GPU", value, "update the driver, or install a torch build for an older CUDA")
    return Finding(WARNING, "GPU", "none", "samples and demos run on the CPU; a full training needs a GPU")


def _gpu(number: int) -> Finding:
    import torch

    device = torch.device("cuda", number)
    found = torch.cuda.get_device_properties(device)
    capability = f"{found.major}.{found.minor}"
    value = f"{found.name}, {size_text(found.total_memory)}, capability {capability}"
    try:
        computes = _computes(device)
        free = size_text(torch.cuda.mem_get_info(device)[0])
    except RuntimeError as error:
        reason = "out of memory" if "memory" in str(error).lower() else type(error).__name__
        advice = "another program may hold it (nvidia-smi), or this torch build lacks its architecture"
        return Finding(ERROR, f"GPU {number}", f"{value}, cannot compute ({reason})", advice)
    if not computes:
        return Finding(ERROR, f"GPU {number}", f"{value}, a product of two matrices is wrong", "have the card checked")
    if found.major < 8:
        return Finding(WARNING, f"GPU {number}", f"{value}, bf16 is slow", "train with --precision fp16")
    return Finding(OK, f"GPU {number}", f"{value}, {free} free, bf16")


def _computes(device: torch.device) -> bool:
    """Whether a product of two small matrices of ones is right in float32 and bf16."""
    import torch

    for dtype in (torch.float32, torch.bfloat16):
        ones = torch.ones(64, 64, device=device, dtype=dtype)
        if not bool(((ones @ ones) == 64).all()):
            return False
    return True


def driver_version() -> str | None:
    """Version of the NVIDIA driver; None without one."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = done.stdout.split()
    return lines[0] if lines else None
