"""Optimiser, learning-rate schedule and mixed precision (METHOD section 7)."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from medcoss_components.errors import InputError

PRECISIONS: dict[str, torch.dtype | None] = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Setting ``precision`` -> dtype of autocast; None: no autocast."""


def check_precision(precision: str, device: torch.device) -> str:
    """Return ``precision`` if the device can train with it.

    Raises:
        InputError: unknown name, or fp16 without a GPU (gradient scaling needs one; bf16 does not).
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, received {precision!r}")
    if precision == "fp16" and device.type != "cuda":
        raise InputError(f"precision fp16 needs a GPU, the device is {device}; use bf16 or float32")
    return precision


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """Mixed-precision context for one of :data:`PRECISIONS`."""
    dtype = PRECISIONS[precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def pretraining_optimizer(
    *,
    network: torch.nn.Module,
    learning_rate: float = 3e-4,
    weight_decay: float = 0.05,
    betas: tuple[float, float] = (0.9, 0.95),
) -> torch.optim.AdamW:
    """AdamW with two groups: weight decay for matrices, none for one-dimensional parameters and biases."""
    decayed: list[torch.nn.Parameter] = []
    plain: list[torch.nn.Parameter] = []
    for parameter in network.parameters():
        if parameter.requires_grad:
            (plain if parameter.ndim <= 1 else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=tuple(betas), fused=True)


def scaled_learning_rate(*, base_learning_rate: float, global_batch_size: int, accumulation_steps: int = 1) -> float:
    """Learning rate of a batch size: base * samples per optimiser step / 256 (MAE, arXiv 2111.06377).

    >>> round(scaled_learning_rate(base_learning_rate=1.5e-4, global_batch_size=512), 6)
    0.0003
    """
    return base_learning_rate * global_batch_size * accumulation_steps / 256


@dataclass(frozen=True, kw_only=True)
class WarmupCosine:
    """Linear warm-up from 0, then half a cosine down to 0, by iteration.

    Args:
        peak: learning rate at the end of the warm-up.
        warmup_iterations: iterations of the warm-up.
        total_iterations: iterations of the whole stage.

    >>> schedule = WarmupCosine(peak=1.0, warmup_iterations=10, total_iterations=30)
    >>> schedule(5), schedule(10), round(schedule(20), 6), schedule(30)
    (0.5, 1.0, 0.5, 0.0)
    """

    peak: float
    warmup_iterations: int
    total_iterations: int

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_iterations <= self.total_iterations:
            raise InputError(
                f"the warm-up ({self.warmup_iterations} iterations) must not be longer than the stage "
                f"({self.total_iterations} iterations); lower warmup_epochs or raise max_epochs"
            )

    def __call__(self, iteration: int) -> float:
        if iteration < self.warmup_iterations:
            return self.peak * iteration / self.warmup_iterations
        done = (iteration - self.warmup_iterations) / max(1, self.total_iterations - self.warmup_iterations)
        return self.peak * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
