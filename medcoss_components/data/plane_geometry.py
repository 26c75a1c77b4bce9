"""How a prepared picture of fixed size lies on its source, for boxes: there and back.

A picture is resized (pixels are areas: the edges of source and result fall together) and then cut or filled up to the
input's size, see ``resampling.py``. Coordinates go the same way, without rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from medcoss_components.data.resampling import fitted_size
from medcoss_components.errors import InputError

Boxes = TypeVar("Boxes", np.ndarray, torch.Tensor)


@dataclass(frozen=True, kw_only=True)
class PlaneGeometry:
    """The way from a source picture to its prepared form.

    Args:
        source_size: (H, W) of the source in pixels.
        fitted_size: (H, W) after resizing.
        size: (H, W) of the prepared picture.

    >>> geometry = PlaneGeometry(source_size=(100, 200), fitted_size=(25, 50), size=(50, 50))
    >>> geometry.forward(np.array([[0.0, 0.0, 200.0, 100.0]])).tolist()
    [[0.0, 12.0, 50.0, 37.0]]
    """

    source_size: tuple[int, int]
    fitted_size: tuple[int, int]
    size: tuple[int, int]

    @property
    def scale(self) -> tuple[float, float]:
        """Prepared pixels per source pixel, along y and x."""
        (rows, columns), (height, width) = self.fitted_size, self.source_size
        return rows / height, columns / width

    @property
    def offset(self) -> tuple[int, int]:
        """(top, left): prepared pixels before the picture; negative where it was cut."""
        before = [
            missing // 2 if missing > 0 else -(-missing // 2)
            for missing in (target - length for target, length in zip(self.size, self.fitted_size, strict=True))
        ]
        return before[0], before[1]

    def forward(self, boxes: Boxes, *, clip: bool = True) -> Boxes:
        """Boxes of the source in pixels of the prepared picture.

        Args:
            boxes: (n, 4) floats left, top, right, bottom, NumPy or torch.
            clip: cut them at the edges of the prepared picture; one that was cut away has no area then.
        """
        factors, shifts = self._steps(boxes)
        moved = boxes * factors + shifts
        return _clipped(moved, self.size) if clip else moved

    def restore(self, boxes: Boxes) -> Boxes:
        """Boxes (n, 4) of the prepared picture in pixels of the source, cut at its edges; undoes :meth:`forward`."""
        factors, shifts = self._steps(boxes)
        return _clipped((boxes - shifts) / factors, self.source_size)

    def _steps(self, boxes: Boxes) -> tuple[Boxes, Boxes]:
        """Factor and shift of each of the four numbers of a box."""
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise InputError(f"boxes: must be (n, 4) left, top, right, bottom, got the shape {tuple(boxes.shape)}.")
        (down, across), (top, left) = self.scale, self.offset
        values = [across, down, across, down], [left, top, left, top]
        if isinstance(boxes, torch.Tensor):
            factors, shifts = (torch.tensor(entry, dtype=boxes.dtype, device=boxes.device) for entry in values)
            return factors, shifts
        return np.asarray(values[0], boxes.dtype), np.asarray(values[1], boxes.dtype)


def has_area(boxes: Boxes) -> Any:
    """(n,) bool: which boxes (n, 4) are wider and higher than 0."""
    return (boxes[:, 2:] > boxes[:, :2]).all(1)


def _clipped(boxes: Boxes, size: Sequence[int]) -> Boxes:
    height, width = size
    output = boxes.clone() if isinstance(boxes, torch.Tensor) else boxes.copy()
    output[:, 0::2] = output[:, 0::2].clip(0, width)
    output[:, 1::2] = output[:, 1::2].clip(0, height)
    return output


def plane_geometry(
    source_size: Sequence[int], spacing: Sequence[float] | None, *, size: Sequence[int], settings: Mapping[str, Any]
) -> PlaneGeometry:
    """Geometry of a picture that :func:`~medcoss_components.data.preparation.image_samples` takes whole.

    Args:
        source_size: (H, W) in pixels.
        spacing: (row, column) in mm; None: square pixels.
        size: (H, W) of the input.
        settings: the complete preparation, of which ``fit`` counts; tiles are none of its business.
    """
    source, target = (int(source_size[0]), int(source_size[1])), (int(size[0]), int(size[1]))
    steps = None if spacing is None else (float(spacing[0]), float(spacing[1]))
    fitted = fitted_size(source, size=target, spacing=steps, fit=settings["fit"])
    return PlaneGeometry(source_size=source, fitted_size=fitted, size=target)
