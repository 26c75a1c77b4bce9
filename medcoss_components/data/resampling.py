"""Bringing a plane to the model's height and width with its proportions kept."""

from __future__ import annotations

import numpy as np

DEPTH_PIXELS = 16384  # resampled along the first axis at once


def fitted_size(
    shape: tuple[int, int], *, size: tuple[int, ...], spacing: tuple[float, float] | None, fit: str
) -> tuple[int, int]:
    """Pixels that a plane is resized to before it is cropped or padded to ``size``.

    Args:
        shape: rows and columns of the plane.
        size: (h, w) of the model's input.
        spacing: (row, column) of a pixel in mm, None for square pixels; only their ratio counts.
        fit: ``crop`` covers ``size``, ``pad`` stays within it, ``stretch`` is ``size``.

    >>> fitted_size((100, 200), size=(50, 50), spacing=None, fit="crop")
    (50, 100)
    >>> fitted_size((100, 200), size=(50, 50), spacing=None, fit="pad")
    (25, 50)
    """
    if fit == "stretch":
        return int(size[0]), int(size[1])
    extents = [length * step for length, step in zip(shape, spacing or (1.0, 1.0), strict=True)]
    scales = [target / extent for target, extent in zip(size, extents, strict=True)]
    choose = max if fit == "crop" else min
    rows, columns = (
        choose(target, max(1, round(extent * choose(scales)))) for target, extent in zip(size, extents, strict=True)
    )
    return rows, columns


def fit_plane(stack: np.ndarray, *, size: tuple[int, ...], spacing: tuple[float, float] | None, fit: str) -> np.ndarray:
    """Resize the planes of a stack and cut what is over ``size``; what is missing is left for the caller to pad.

    Bilinear with antialiasing: growing is plain bilinear, shrinking averages over the area of the new pixel.

    Args:
        stack: (N, rows, columns) float32.
        size, spacing, fit: see :func:`fitted_size`.

    Returns:
        (N, h', w') float32 with h' <= h and w' <= w.
    """
    rows, columns = fitted_size((stack.shape[1], stack.shape[2]), size=size, spacing=spacing, fit=fit)
    if (rows, columns) != stack.shape[1:]:
        stack = _resize(stack, rows, columns)
    top, left = max(0, rows - size[0]) // 2, max(0, columns - size[1]) // 2
    return stack[:, top : top + size[0], left : left + size[1]]


def fit_depth(stack: np.ndarray, depth: int) -> np.ndarray:
    """Resample the first axis of a stack to ``depth``, linearly with antialiasing, a few rows at a time.

    Args:
        stack: (N, rows, columns) float32.

    Returns:
        (depth, rows, columns) float32.
    """
    count, rows, columns = stack.shape
    if count == depth:
        return stack
    output: np.ndarray = np.empty((depth, rows, columns), np.float32)
    step = max(1, DEPTH_PIXELS // columns)
    for first in range(0, rows, step):
        block = stack[:, first : first + step]
        resized = _resize(block.reshape(1, count, -1), depth, block.shape[1] * columns)
        output[:, first : first + step] = resized.reshape(depth, block.shape[1], columns)
    return output


def _resize(stack: np.ndarray, rows: int, columns: int) -> np.ndarray:
    import torch
    from torch.nn import functional

    if 1 in (stack.shape[2], columns) and 1 not in (stack.shape[1], rows):  # torch 2.13: zeros for a single column
        return _resize(stack.transpose(0, 2, 1), columns, rows).transpose(0, 2, 1)
    planes = torch.from_numpy(np.ascontiguousarray(stack))[:, None]
    resized = functional.interpolate(planes, (rows, columns), mode="bilinear", antialias=True, align_corners=False)
    return resized[:, 0].numpy()


def tile_starts(length: int, tile: int, stride: int) -> list[int]:
    """Starts of tiles along one axis, every ``stride``; the rest is split evenly between both ends.

    >>> tile_starts(100, 30, 20)
    [5, 25, 45, 65]
    """
    spare = length - tile
    return list(range((spare % stride) // 2, spare + 1, stride))
