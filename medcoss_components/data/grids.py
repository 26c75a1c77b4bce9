"""Resampling whole images, volumes and masks to another number of samples over the same extent."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from medcoss_components.data.resampling import fit_depth, fit_plane

PLANES = 32  # held as float32 at once


def resample(
    array: np.ndarray,
    shape: tuple[int, ...],
    *,
    convert: Callable[[np.ndarray], np.ndarray] | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Resample linearly; where an axis shrinks, over the extent of the new samples (antialiasing).

    Ends of both grids coincide (``align_corners=False``). Work is done some planes at a time, so that beside source and
    result little memory is used.

    Args:
        array: (H, W) or (Z, Y, X) numbers.
        shape: samples of the result, as many axes.
        convert: applied to each block of planes (n, Y, X) before; default: to float32.
        out: array of ``shape`` and any floating dtype that takes the result.

    Returns:
        ``out``, or a new float32 array.
    """
    stack = array[None] if array.ndim == 2 else array
    target = (1, *shape) if array.ndim == 2 else shape
    planes: np.ndarray = np.empty((len(stack), *target[1:]), np.float32)
    for first in range(0, len(stack), PLANES):
        block = stack[first : first + PLANES]
        block = block.astype(np.float32) if convert is None else convert(block)
        planes[first : first + PLANES] = fit_plane(block, size=target[1:], spacing=None, fit="stretch")
    result = fit_depth(planes, target[0]).reshape(shape)
    if out is None:
        return result
    out[...] = result
    return out


def largest_value_grid(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Resample a mask: every value's area is resampled linearly, and the value with the largest share wins.

    Ties go to the smaller value. Smoother than taking the nearest value, and no value is made up.

    Args:
        mask: (H, W) or (Z, Y, X) integers in 0 .. 255.
        shape: samples of the result, as many axes.

    Returns:
        uint8 of ``shape``.
    """
    mask = mask.astype(np.uint8, copy=False)
    if tuple(mask.shape) == tuple(shape):
        return mask
    best: np.ndarray = np.full(shape, -1.0, np.float32)
    output: np.ndarray = np.zeros(shape, np.uint8)
    for value in value_counts(mask):
        share = resample(mask, shape, convert=partial(_indicator, value=value))
        larger = share > best
        output[larger] = value
        best[larger] = share[larger]
    return output


def value_counts(mask: np.ndarray) -> dict[int, int]:
    """How often each value occurs in a (*S) uint8 mask, values ascending; plane by plane to save memory."""
    counts: np.ndarray = np.zeros(256, np.int64)
    for plane in mask:
        counts += np.bincount(plane.reshape(-1), minlength=256)
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}


def _indicator(block: np.ndarray, *, value: int) -> np.ndarray:
    return (block == value).astype(np.float32)
