"""Intensity rules: from the values of a file to stored ones (METHOD.md section 7).

A rule sees the whole item first, then parts of it: ``before`` prepares source pixels for resampling, ``store`` makes
stored values of resampled ones and centres them in the wanted height and width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from medcoss_components.errors import InputError

if TYPE_CHECKING:
    from medcoss_components.data.modalities import Modality

HU_RANGE = (-1024.0, 1024.0)


class _UnitRange:
    """Robust window of the whole item (or the range of its integer type) to 0..255."""

    fill = 0

    def __init__(self, array: np.ndarray, modality: Modality, settings: Mapping[str, Any]) -> None:
        self.low, self.high = _window(array, settings["percentiles"])

    def before(self, part: np.ndarray) -> np.ndarray:
        part = np.clip(part.astype(np.float32), self.low, self.high)
        return (part - np.float32(self.low)) * np.float32(255 / (self.high - self.low))

    def store(self, fitted: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
        return _pad_to(np.clip(np.rint(fitted), 0, 255).astype(np.uint8), size, self.fill)

    def lowest(self, stored: np.ndarray) -> float:
        return self.fill


class _Hounsfield:
    """Hounsfield units clipped to [-1024, 1024]."""

    fill = int(HU_RANGE[0])

    def __init__(self, array: np.ndarray, modality: Modality, settings: Mapping[str, Any]) -> None:
        pass

    def before(self, part: np.ndarray) -> np.ndarray:
        return np.clip(part.astype(np.float32), *HU_RANGE)

    def store(self, fitted: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
        return _pad_to(np.rint(fitted).astype(np.int16), size, self.fill)

    def lowest(self, stored: np.ndarray) -> float:
        return self.fill


class _ZScore:
    """Each sample clipped to its percentiles, then mean 0 and variance 1; padding gets the sample's lowest value."""

    def __init__(self, array: np.ndarray, modality: Modality, settings: Mapping[str, Any]) -> None:
        self.percentiles = settings["percentiles"]

    def before(self, part: np.ndarray) -> np.ndarray:
        return part.astype(np.float32)

    def store(self, fitted: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
        if self.percentiles is not None:
            fitted = np.clip(fitted, *np.percentile(fitted, self.percentiles))
        centred = fitted - fitted.mean(dtype=np.float64)
        deviation = float(np.sqrt(np.mean(centred**2)))
        scaled = (centred / deviation if deviation > 0 else centred * 0).astype(np.float16)
        return _pad_to(scaled, size, scaled.min())

    def lowest(self, stored: np.ndarray) -> float:
        return float(stored.min())


INTENSITIES: dict[str, Any] = {"unit_range": _UnitRange, "hounsfield": _Hounsfield, "zscore": _ZScore}
"""Intensity rule -> class with ``before`` (on source pixels), ``store`` (on resampled ones) and ``lowest`` (what fills
up a stored sample)."""


def _window(array: np.ndarray, percentiles: list[float] | None) -> tuple[float, float]:
    """(low, high) that become 0 and 255."""
    if percentiles is None and array.dtype in (np.uint8, np.uint16, np.bool_):
        return 0.0, float(1 if array.dtype == np.bool_ else np.iinfo(array.dtype).max)
    low, high = np.percentile(array, percentiles or [0, 100])
    if not low < high:
        low, high = array.min(), array.max()
    if not low < high:
        raise InputError(f"the image is constant, every value is {float(low):g}")
    return float(low), float(high)


def _pad_to(array: np.ndarray, size: tuple[int, ...], value: Any) -> np.ndarray:
    """Centre the last two axes in ``size``, filled with ``value``."""
    missing = [target - length for target, length in zip(size, array.shape[-2:], strict=True)]
    if not any(missing):
        return array
    widths = [(0, 0)] * (array.ndim - 2) + [(total // 2, total - total // 2) for total in missing]
    return np.pad(array, widths, constant_values=value)
