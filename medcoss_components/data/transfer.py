"""Copies from the host to a GPU that nobody waits for: they start from page-locked memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader


def pinned(batch: Any) -> Any:
    """A tensor, or a dict with its tensors, in page-locked memory: copies to a GPU need not be waited for."""
    if isinstance(batch, dict):
        return {key: pinned(value) for key, value in batch.items()}
    return batch.pin_memory() if isinstance(batch, torch.Tensor) else batch


def to_device(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """The tensor on a device; from the host to a GPU over page-locked memory, so that the host goes on meanwhile."""
    device = torch.device(device)
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def pin_for(loader: Any, device: torch.device) -> None:
    """Let a loader of this package hand out page-locked batches where they go to a GPU, and only there: pinning makes a
    context on the GPU, which a run on the CPU should leave alone. One of torch's own keeps what it was told."""
    if hasattr(loader, "pin_memory") and not isinstance(loader, DataLoader):
        loader.pin_memory = device.type == "cuda"


def pinning_start() -> Callable[[], None]:
    """What a thread that pins does first: take the caller's GPU, not the first one, and copy with this thread alone."""
    device = torch.cuda.current_device()

    def start() -> None:
        torch.cuda.set_device(device)
        torch.set_num_threads(1)  # holds for this thread; the network's threads stay as they are

    return start
