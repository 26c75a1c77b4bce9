"""Sliding windows over a stored case in bounded memory.

MONAI's sliding window holds the whole case as float32 inputs, outputs and weights. Here windows are cut from the stored
values (int16, float16 or uint8), turned into inputs one batch at a time, and sums are kept only for the planes that
windows still reach: what is finished is handed on. Numbers equal MONAI's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import SlidingWindowInferer

from medcoss_components.errors import InputError

Predict = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class WindowPlan:
    """How windows cover a case.

    Args:
        roi: spatial size of a window, D axes.
        batch: windows predicted at once.
        overlap: share of a window that the next one covers again, per axis.
        mode: weights of a window's voxels: "constant" or "gaussian".
        sigma_scale: of the Gaussian, in window sizes per axis.
    """

    roi: tuple[int, ...]
    batch: int = 1
    overlap: tuple[float, ...] | float = 0.5
    mode: str = "gaussian"
    sigma_scale: Sequence[float] | float = 0.125

    @classmethod
    def of(cls, inferer: SlidingWindowInferer, axes: int) -> WindowPlan:
        """The plan of a MONAI inferer for a case of so many axes.

        Raises:
            InputError: a window of another number of axes.
        """
        size = inferer.roi_size
        roi = tuple(int(length) for length in (size if isinstance(size, Sequence) else [size] * axes))
        if len(roi) != axes:
            raise InputError(f"inferer: roi_size {roi} has {len(roi)} axes, the case {axes}.")
        overlap = inferer.overlap if isinstance(inferer.overlap, float | int) else tuple(inferer.overlap)
        return cls(
            roi=roi, batch=inferer.sw_batch_size, overlap=overlap, mode=inferer.mode, sigma_scale=inferer.sigma_scale
        )

    def covering(self, shape: Sequence[int]) -> WindowPlan:
        """The plan with windows no larger than the case (and at least 1)."""
        roi = tuple(min(side, length) if side > 0 else length for side, length in zip(self.roi, shape, strict=True))
        return WindowPlan(roi=roi, batch=self.batch, overlap=self.overlap, mode=self.mode, sigma_scale=self.sigma_scale)

    def windows(self, shape: Sequence[int]) -> list[tuple[slice, ...]]:
        """Places of all windows, the first axis slowest. The step is int(roi * (1 - overlap)), as MONAI's."""
        overlaps = [self.overlap] * len(shape) if isinstance(self.overlap, float | int) else self.overlap
        steps = [
            side if side == length else max(1, int(side * (1 - share)))
            for side, length, share in zip(self.roi, shape, overlaps, strict=True)
        ]
        return list(dense_patch_slices(tuple(shape), self.roi, steps, return_slice=True))


def predicted_planes(
    raw: torch.Tensor, predict: Predict, plan: WindowPlan, *, advance: Callable[[int], object] = lambda _: None
) -> Iterator[tuple[int, torch.Tensor]]:
    """Predict a case window by window and give its planes as soon as no window reaches them any more.

    Args:
        raw: (C, *S) stored values, every side at least the window's.
        predict: stored windows (n, C, *roi) -> outputs (n, K, *roi).
        plan: see :meth:`WindowPlan.covering`.
        advance: told the number of windows after each batch.

    Yields:
        first index along the first axis, and the weighted mean of the outputs there, (K, planes, *S[1:]) float32.
    """
    shape = tuple(raw.shape[1:])
    weights: torch.Tensor | None = None
    sums: torch.Tensor | None = None  # (K + 1, roi[0], *S[1:]); the last channel sums the weights
    begin = 0
    for start, group in groupby(plan.windows(shape), key=lambda window: window[0].start):
        if sums is not None and start > begin:
            yield begin, _finished(sums, start - begin)
            sums, begin = _moved(sums, start - begin), start
        for outputs, places in _batches(raw, predict, plan.batch, list(group)):
            if sums is None or weights is None:
                weights = _importance(plan, outputs.device)
                sums = torch.zeros(outputs.shape[1] + 1, plan.roi[0], *shape[1:], device=outputs.device)
            for output, place in zip(outputs, places, strict=True):
                inside: tuple[slice, ...] = (slice(None), slice(None), *place[1:])
                sums[:-1][inside] += output.float() * weights
                sums[-1:][inside] += weights
            advance(len(places))
    if sums is not None:
        yield begin, _finished(sums, shape[0] - begin)


def _batches(
    raw: torch.Tensor, predict: Predict, size: int, windows: list[tuple[slice, ...]]
) -> Iterator[tuple[torch.Tensor, list[tuple[slice, ...]]]]:
    for first in range(0, len(windows), size):
        places = windows[first : first + size]
        cuts: list[tuple[slice, ...]] = [(slice(None), *place) for place in places]
        yield predict(torch.stack([raw[cut] for cut in cuts])), places


def _importance(plan: WindowPlan, device: torch.device) -> torch.Tensor:
    """(*roi) float32 weights of a window's voxels."""
    return compute_importance_map(
        plan.roi, mode=plan.mode, sigma_scale=plan.sigma_scale, device=device, dtype=torch.float32
    )


def _finished(sums: torch.Tensor, planes: int) -> torch.Tensor:
    return sums[:-1, :planes] / sums[-1:, :planes]


def _moved(sums: torch.Tensor, planes: int) -> torch.Tensor:
    """Drop the first planes and append empty ones."""
    return torch.cat([sums[:, planes:], torch.zeros_like(sums[:, :planes])], dim=1)
