"""Optimiser, learning-rate schedule and mixed precision (METHOD sections 7 and 8)."""

from __future__ import annotations

import math
import re
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from medcoss_components.errors import InputError

PRECISIONS: dict[str, torch.dtype | None] = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Setting ``precision`` -> dtype of autocast; None: no autocast."""
BLOCK = re.compile(r"(?:(?:backbone\.)?encoder\.blocks|backbone\.layer)\.?(\d+)\.")
"""Names of the parameters of a transformer's block or of a ResNet's layer, with its number."""
EMBEDDINGS = ("text_embedding.", "image_embedding.", "backbone.image_embedding.", "backbone.conv1.", "backbone.bn1.")
"""Beginnings of the names of what stands before the first block."""


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
    """Mixed-precision context for one of :data:`PRECISIONS`.

    Converted weights are not kept until the end of the context: each is used once in a forward pass, and with
    activation checkpointing nothing else would hold them.
    """
    dtype = PRECISIONS[precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype, cache_enabled=False)


def decay_groups(network: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The trainable parameters of a module in two groups: matrices, which decay, and the rest, which does not."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]


def pretraining_optimizer(
    *,
    network: torch.nn.Module,
    learning_rate: float = 3e-4,
    weight_decay: float = 0.05,
    betas: tuple[float, float] = (0.9, 0.95),
) -> torch.optim.AdamW:
    """AdamW with two groups: weight decay for matrices, none for one-dimensional parameters and biases."""
    groups = decay_groups(network, weight_decay)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=tuple(betas), fused=True)


def finetuning_optimizer(
    *,
    network: torch.nn.Module,
    learning_rate: float,
    weight_decay: float = 1e-4,
    layer_decay: float = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
) -> torch.optim.AdamW:
    """AdamW for a task network (METHOD section 8), with a learning rate that may shrink towards the input.

    Of n blocks (k = 0 .. n - 1), block k learns with ``learning_rate * layer_decay ** (n - k)``, the tokenizer with
    ``layer_decay ** (n + 1)``, the head with the whole rate (BEiT, arXiv 2106.08254; MAE, arXiv 2111.06377).
    One-dimensional parameters and biases have no weight decay; frozen parameters are left out. The first group is the
    head's.

    Args:
        network: a model whose encoder's parameters have the names of
            :class:`~medcoss_components.networks.pretraining.PretrainingModel`; all others are the head.
        learning_rate: of the head, before any schedule.
        weight_decay: of weights.
        layer_decay: in (0, 1]; 1 gives all layers the same rate.
        betas: of AdamW.

    Raises:
        InputError: when ``layer_decay`` is out of range or nothing is left to train.
    """
    if not 0 < layer_decay <= 1:
        raise InputError(f"layer_decay must be above 0 and at most 1, received {layer_decay}")
    distances = block_distances(network) if layer_decay < 1 else {}
    groups: dict[tuple[int, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((distances.get(name, 0), parameter.ndim <= 1), []).append(parameter)
    if not groups:
        raise InputError("network: every parameter is frozen, there is nothing to train; set freeze_encoder to false")
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": learning_rate * layer_decay**distance,
                "weight_decay": 0.0 if plain else weight_decay,
            }
            for (distance, plain), parameters in sorted(groups.items(), key=lambda item: item[0])
        ],
        lr=learning_rate,
        betas=(betas[0], betas[1]),
        fused=True,
    )


def block_distances(network: torch.nn.Module) -> dict[str, int]:
    """How many layers each parameter is below the head: head 0, last block 1, first block n, tokenizer n + 1.

    The blocks of a ResNet are its four layers; its first convolution is the tokenizer.
    """
    names = [name for name, _ in network.named_parameters()]
    blocks = {name: int(found[1]) for name in names if (found := BLOCK.match(name))}
    order = sorted(set(blocks.values()))
    count = len(order)
    embeddings = {name: count + 1 for name in names if name.startswith(EMBEDDINGS)}
    below = {name: count - order.index(number) for name, number in blocks.items()}
    return {name: below.get(name, embeddings.get(name, 0)) for name in names}


def polynomial_decay(epoch: int, max_epochs: int, power: float = 0.9) -> float:
    """Factor on the learning rate during epoch ``epoch`` (from 0): (1 - epoch / max_epochs) ** power.

    >>> polynomial_decay(0, 4), round(polynomial_decay(2, 4), 4)
    (1.0, 0.5359)
    """
    return (1 - epoch / max_epochs) ** power


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
