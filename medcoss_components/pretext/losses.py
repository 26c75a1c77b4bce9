"""Patches as vectors, and the losses of masked image and masked language modelling.

Axes: B samples, C channels, N patches in raster order, P = product(patch) * C numbers of one patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from medcoss_components.errors import InputError

Reduction = Literal["mean", "sum"]
VARIANCE_FLOOR = 1e-6


def grid_of(spatial: Sequence[int], patch: Sequence[int]) -> tuple[int, ...]:
    """Patches along each axis.

    >>> grid_of((8, 12, 8), (4, 6, 8))
    (2, 2, 1)

    Raises:
        InputError: when the axes differ in number or a size is not a multiple of its patch.
    """
    sizes, patches = tuple(spatial), tuple(patch)
    if len(sizes) != len(patches) or any(size % side or size < side for size, side in zip(sizes, patches, strict=True)):
        raise InputError(f"input size {sizes} must be a multiple of the patch {patches} on every axis.")
    return tuple(size // side for size, side in zip(sizes, patches, strict=True))


def patchify(images: Tensor, patch: Sequence[int]) -> Tensor:
    """Cut images into patches, channel last.

    Args:
        images: (B, C, H, W) or (B, C, Z, H, W).
        patch: sides along the spatial axes.

    Returns:
        (B, N, P); inside a patch 2D is laid out (row, column, channel), 3D (z, y, x, channel).
    """
    grid = grid_of(images.shape[2:], patch)
    axes = len(grid)
    split = [size for pair in zip(grid, patch, strict=True) for size in pair]
    cells = images.reshape(images.shape[0], images.shape[1], *split)
    order = [0, *range(2, 2 + 2 * axes, 2), *range(3, 3 + 2 * axes, 2), 1]
    return cells.permute(order).reshape(images.shape[0], prod(grid), -1)


def unpatchify(patches: Tensor, patch: Sequence[int], grid: Sequence[int]) -> Tensor:
    """Undo :func:`patchify`: (B, N, P) -> (B, C, ...).

    Raises:
        InputError: when N is not the number of cells of ``grid``.
    """
    axes = len(grid)
    if patches.shape[1] != prod(grid):
        raise InputError(f"{patches.shape[1]} patches do not fill the grid {tuple(grid)}.")
    cells = patches.reshape(patches.shape[0], *grid, *patch, -1)
    pairs = [axis for i in range(axes) for axis in (1 + i, 1 + axes + i)]
    sizes = [cells_on_axis * side for cells_on_axis, side in zip(grid, patch, strict=True)]
    return cells.permute(0, 1 + 2 * axes, *pairs).reshape(patches.shape[0], cells.shape[-1], *sizes)


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (unbiased, variance + 1e-6) of each patch: two (B, N, 1) float32 tensors."""
    patches = patches.float()
    return patches.mean(dim=-1, keepdim=True), (patches.var(dim=-1, keepdim=True) + VARIANCE_FLOOR).sqrt()


def normalise_patches(patches: Tensor) -> Tensor:
    """Targets of masked image modelling: every patch minus its mean, over its deviation. (B, N, P) float32.

    One LayerNorm does it: its biased variance is (P - 1) / P times the unbiased one, so with the floor scaled alike its
    result times sqrt((P - 1) / P) is the wanted one. Nearly flat patches come out within about 1e-4 of exact.
    """
    numbers = patches.shape[-1]
    shrink = (numbers - 1) / numbers
    scale = torch.full((numbers,), shrink**0.5, device=patches.device)
    return F.layer_norm(patches.float(), (numbers,), weight=scale, eps=VARIANCE_FLOOR * shrink)


def denormalise_patches(normalised: Tensor, patches: Tensor) -> Tensor:
    """Give predictions the mean and deviation of the true ``patches``: for pictures, the model never sees them."""
    mean, deviation = patch_statistics(patches)
    return normalised.float() * deviation + mean


def _reduce(total: Tensor, count: Tensor, reduction: Reduction) -> Tensor | tuple[Tensor, Tensor]:
    if reduction == "sum":
        return total, count
    if reduction == "mean":
        return total / count.clamp(min=1.0)
    raise InputError(f"reduction={reduction!r} must be 'mean' or 'sum'.")


def masked_patch_loss(
    predicted: Tensor, target: Tensor, reduction: Reduction = "mean"
) -> Tensor | tuple[Tensor, Tensor]:
    """Mean squared error per removed patch, averaged over removed patches. METHOD.md section 4.

    Args:
        predicted: (B, R, P) predictions at the removed patches, any floating type.
        target: (B, R, P) pixels there, not yet normalised.
        reduction: "mean" -> scalar; "sum" -> (sum over patches, number of patches).

    Returns:
        float32 scalars; nothing is copied to the host.
    """
    squares = F.mse_loss(predicted.float(), normalise_patches(target), reduction="sum")
    count = squares.new_full((), float(target.shape[0] * target.shape[1]))
    return _reduce(squares / target.shape[-1], count, reduction)


def masked_token_loss(logits: Tensor, labels: Tensor, reduction: Reduction = "mean") -> Tensor | tuple[Tensor, Tensor]:
    """Cross entropy over the chosen tokens, in float32.

    Args:
        logits: (M, V) at the chosen tokens.
        labels: (M,) true ids.
        reduction: "mean" -> scalar (0 without tokens); "sum" -> (sum, number of tokens).
    """
    total = F.cross_entropy(logits.float(), labels, reduction="sum")
    return _reduce(total, total.new_full((), float(labels.numel())), reduction)
