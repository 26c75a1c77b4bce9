"""Keeping less for the backward pass, and computing it again there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _GeluLinear(torch.autograd.Function):
    """linear(gelu(x)), keeping x alone: the activation, as large as x, is computed again."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        return F.linear(F.gelu(hidden), weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        hidden, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        rows = gradient.flatten(0, -2)
        wanted = ctx.needs_input_grad
        of_hidden = torch.ops.aten.gelu_backward(gradient @ weight, hidden) if wanted[0] else None
        of_weight = rows.t() @ F.gelu(hidden).flatten(0, -2) if wanted[1] else None
        return of_hidden, of_weight, rows.sum(dim=0) if wanted[2] else None


def is_traced() -> bool:
    """Whether the network is being written down for other inputs than these: nothing may depend on values then."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


def gelu_linear(hidden: Tensor, layer: nn.Linear) -> Tensor:
    """``layer(gelu(hidden))``, exact GELU; in training it keeps half of what the two would keep.

    Args:
        hidden: (..., C).
        layer: C -> D.

    Returns:
        (..., D), in the dtype of ``layer(hidden)``.
    """
    if not torch.is_grad_enabled() or is_traced():
        return layer(F.gelu(hidden))
    device = hidden.device.type
    if not torch.is_autocast_enabled(device):
        return _GeluLinear.apply(hidden, layer.weight, layer.bias)
    dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        return _GeluLinear.apply(hidden.to(dtype), layer.weight.to(dtype), layer.bias.to(dtype))


def checkpoint_blocks(network: nn.Module, wanted: bool) -> None:
    """Say whether the transformer blocks of a network keep only what enters them (activation checkpointing, T. Chen et
    al., arXiv 1604.06174): far less memory, about a third more time, the same results."""
    for module in network.modules():
        if hasattr(module, "checkpoint_blocks"):
            module.checkpoint_blocks = wanted


def run_block(block: Callable[..., Tensor], *arguments: Any, checkpointed: bool) -> Tensor:
    """``block(*arguments)``; where wanted and where gradients are, it is run again in the backward pass."""
    if not (checkpointed and torch.is_grad_enabled()):
        return block(*arguments)
    from torch.utils.checkpoint import checkpoint

    return checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False)
