"""Copies to a GPU start from page-locked memory, copies that stay on the host do not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

from medcoss_components.data.prefetch import read_ahead
from medcoss_components.data.transfer import pin_for, pinned, pinning_start, to_device


class TestPinning:
    def test_tensors_alone(self, monkeypatch):
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 1)
        batch = pinned({"raw": torch.zeros(2), "ids": ["a"], "own": 3})
        assert batch["raw"].tolist() == [1, 1] and (batch["ids"], batch["own"]) == (["a"], 3)

    def test_threads_take_the_gpu_of_the_caller(self, monkeypatch):
        calls = []
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(("device", device)))
        monkeypatch.setattr(torch, "set_num_threads", lambda count: calls.append(("threads", count)))
        start = pinning_start()
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)  # a new thread's
        assert list(read_ahead(abs, range(3), threads=1, start=start)) == [0, 1, 2]
        assert calls == [("device", 3), ("threads", 1)]

    @pytest.mark.parametrize("device", ["cpu", "cuda"])
    def test_loader_pins_for_a_gpu_alone(self, device):
        loader = SimpleNamespace(pin_memory=device == "cpu")
        pin_for(loader, torch.device(device))
        assert loader.pin_memory == (device == "cuda")

    def test_loaders_of_others_stay_as_they_are(self):
        plain, without = DataLoader([1, 2]), [1, 2]
        pin_for(plain, torch.device("cuda")), pin_for(without, torch.device("cuda"))
        assert plain.pin_memory is False


class TestToDevice:
    @pytest.fixture
    def calls(self, monkeypatch):
        calls = []
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: calls.append("pinned") or tensor)
        monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device, **options: calls.append((device.type, options)))
        return calls

    def test_from_the_host_to_a_gpu(self, calls):
        to_device(torch.zeros(2), "cuda")
        assert calls == ["pinned", ("cuda", {"non_blocking": True})]

    def test_pinned_once(self, calls, monkeypatch):
        monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor: True)
        to_device(torch.zeros(2), torch.device("cuda"))
        assert calls == [("cuda", {"non_blocking": True})]

    def test_what_is_no_longer_on_the_host(self, calls):
        to_device(torch.zeros(2, device="meta"), torch.device("cuda"))
        assert calls == [("cuda", {"non_blocking": True})]

    def test_on_the_host_nothing_is_copied(self):
        tensor = torch.zeros(2)
        assert to_device(tensor, "cpu") is tensor
