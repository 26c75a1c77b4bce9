"""One labelled case for segmentation: image and mask on one grid, and the way back to the source's grid.

A case is resampled once as a whole (linearly with antialiasing; masks by the most likely value), its intensities are
stored by the modality's rule, and it is padded where it is smaller than the network's window. Windows are cut later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from medcoss_components.data.grids import largest_value_grid, resample
from medcoss_components.data.intensity import INTENSITIES
from medcoss_components.data.modalities import Modality
from medcoss_components.data.preparation import (
    check_finite,
    check_settings,
    default_preparation,
    merge_settings,
    to_channels,
)
from medcoss_components.data.resampling import fitted_size
from medcoss_components.errors import InputError

Values = TypeVar("Values", np.ndarray, torch.Tensor)


def default_case_preparation(modality: Modality) -> dict[str, Any]:
    """Settings of a case before a manifest or an argument changes them.

    ``spacing``: millimetres per axis, [z, y, x] or [row, column], that cases are resampled to; null: as they are.
    ``size`` (2D): [H, W] that an image is fitted into, proportions kept, the rest filled; null: as it is.
    ``percentiles``: [low, high] that intensities are clipped to, null for none.
    """
    if modality.dimension == 1:
        raise InputError(f"modality {modality.name}: text has no segmentation; give a 2D or 3D modality.")
    if modality.dimension == 2:
        grey = modality.stored_channels == 1
        return {"spacing": None, "size": None, "percentiles": [0.5, 99.5] if grey else None}
    percentiles = {"hounsfield": None, "zscore": [0.2, 99.8], "unit_range": [0.5, 99.5]}
    return {"spacing": None, "percentiles": percentiles[modality.intensity]}


def resolve_case_preparation(modality: Modality, *layers: Mapping[str, Any] | None) -> dict[str, Any]:
    """Complete and check settings; later layers win over earlier ones and over :func:`default_case_preparation`.

    Raises:
        InputError: for an unknown name, a value out of range, or both spacing and size.
    """
    settings = merge_settings(default_case_preparation(modality), modality, *layers)
    check_settings(settings, modality, _CHECKS)
    if settings["spacing"] is not None and settings.get("size") is not None:
        raise InputError(f"preparation: give spacing={settings['spacing']} or size={settings['size']}, not both.")
    return settings


def case_settings(modality: Modality, stored: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest's preparation settings, less those that only the cutting of samples knows (tiles, slabs)."""
    only_samples = set(default_preparation(modality)) - set(default_case_preparation(modality))
    return {name: value for name, value in stored.items() if name not in only_samples}


def _numbers(value: Any, count: int, *kinds: type) -> bool:
    listed = isinstance(value, list) and len(value) == count
    return listed and all(type(entry) in kinds and entry > 0 for entry in value)


def _is_percentiles(value: Any) -> bool:
    numbers = isinstance(value, list) and len(value) == 2 and all(isinstance(entry, int | float) for entry in value)
    return numbers and 0 <= value[0] < value[1] <= 100


_CHECKS: dict[str, tuple[Any, str]] = {
    "spacing": (
        lambda value, modality: value is None or _numbers(value, modality.dimension, int, float),
        "null or one positive number of millimetres per axis",
    ),
    "size": (lambda value, _: value is None or _numbers(value, 2, int), "null or [height, width] in pixels"),
    "percentiles": (lambda value, _: value is None or _is_percentiles(value), "null or [low, high] within 0 to 100"),
}


@dataclass(frozen=True, kw_only=True)
class CaseGeometry:
    """How a prepared grid lies on the grid of the source, D axes each.

    Args:
        source_shape: voxels (pixels) of the source.
        source_spacing: of the source in mm, None where the file has none.
        resampled_shape: voxels after resampling over the same extent.
        padding: (before, after) of each axis, added after resampling.
    """

    source_shape: tuple[int, ...]
    source_spacing: tuple[float, ...] | None
    resampled_shape: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the prepared grid."""
        return tuple(size + sum(pad) for size, pad in zip(self.resampled_shape, self.padding, strict=True))

    @property
    def unit(self) -> str:
        """Unit of :attr:`spacing`: "mm", or "pixel" where the source has no spacing."""
        return "pixel" if self.source_spacing is None else "mm"

    @property
    def spacing(self) -> tuple[float, ...]:
        """Of the prepared grid in mm; 1 per axis where the source has none."""
        if self.source_spacing is None:
            return (1.0,) * len(self.source_shape)
        axes = zip(self.source_spacing, self.source_shape, self.resampled_shape, strict=True)
        return tuple(step * before / after for step, before, after in axes)

    def crop(self, values: Values) -> Values:
        """Take the padding away from (..., *shape); a view."""
        return values[self._inside()]

    def _inside(self) -> Any:
        """Index that leaves the padding out."""
        pairs = zip(self.padding, self.resampled_shape, strict=True)
        return (..., *[slice(before, before + size) for (before, _), size in pairs])

    def restore(self, values: Values) -> Values:
        """Bring values of the prepared grid to the source's grid, linearly, one region after the other.

        Args:
            values: (K, *shape) floating numbers, NumPy or torch (on the CPU).

        Returns:
            (K, *source_shape) of the same kind and dtype.

        Raises:
            InputError: for another shape.
        """
        if tuple(values.shape[1:]) != self.shape:
            raise InputError(f"values: must be (K, {self.shape}), got {tuple(values.shape)}.")
        cropped = self.crop(values)
        if self.resampled_shape == self.source_shape:
            return cropped
        array = cropped.numpy() if isinstance(cropped, torch.Tensor) else cropped
        output: np.ndarray = np.empty((len(array), *self.source_shape), array.dtype)
        for number, region in enumerate(array):
            resample(region, self.source_shape, out=output[number])
        return torch.from_numpy(output) if isinstance(values, torch.Tensor) else output

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; :meth:`from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CaseGeometry:
        spacing = values["source_spacing"]
        return cls(
            source_shape=tuple(values["source_shape"]),
            source_spacing=None if spacing is None else tuple(spacing),
            resampled_shape=tuple(values["resampled_shape"]),
            padding=tuple((int(before), int(after)) for before, after in values["padding"]),
        )


@dataclass(frozen=True, kw_only=True)
class PreparedCase:
    """A case as it is stored.

    Args:
        image: (C, *S) in the modality's stored dtype.
        mask: (*S) uint8, None where there is none.
        geometry: the way back to the source.
        fill: stored value of padding.
    """

    image: np.ndarray
    mask: np.ndarray | None
    geometry: CaseGeometry
    fill: float


def prepare_case(
    array: np.ndarray,
    spacing: Sequence[float] | None,
    *,
    mask: np.ndarray | None = None,
    modality: Modality,
    settings: Mapping[str, Any],
    minimum: Sequence[int] | None = None,
) -> PreparedCase:
    """Resample a case, store its intensities and pad it.

    Args:
        array: (H, W), (H, W, 3) or (Z, Y, X), as the readers give it.
        spacing: per axis in mm; None where a picture has none (its pixels count as square).
        mask: (H, W) or (Z, Y, X) integers in 0 .. 255 on the same grid, or None.
        modality: its entry.
        settings: of :func:`resolve_case_preparation`.
        minimum: spatial size that a case has at least; default: the modality's input.

    Raises:
        InputError: wrong axes, NaN or infinite values, a constant image, a mask of another shape, or spacing asked for
            where the file has none.
    """
    check_finite(array)
    channels = to_channels(array, modality.stored_channels) if modality.dimension == 2 else _volume(array)
    source = tuple(channels.shape[1:])
    _check_mask(mask, source)
    shape = _target_shape(source, spacing, settings)
    rule = INTENSITIES[modality.intensity](array, modality, settings)
    image = _stored(channels, shape, rule)
    fill = rule.lowest(image)
    padding = _padding(shape, settings.get("size"), minimum or modality.stored_shape[1:])
    geometry = CaseGeometry(
        source_shape=source,
        source_spacing=None if spacing is None else tuple(float(step) for step in spacing),
        resampled_shape=shape,
        padding=padding,
    )
    image = _padded(image, ((0, 0), *padding), fill)
    labels = None if mask is None else _padded(largest_value_grid(mask, shape), padding, 0)
    return PreparedCase(image=image, mask=labels, geometry=geometry, fill=fill)


def _padded(array: np.ndarray, padding: tuple[tuple[int, int], ...], fill: float) -> np.ndarray:
    return np.pad(array, padding, constant_values=fill) if np.any(padding) else array


def _volume(array: np.ndarray) -> np.ndarray:
    if array.ndim != 3:
        raise InputError(f"a volume has 3 axes, this one has the shape {array.shape}")
    return array[None]


def _check_mask(mask: np.ndarray | None, source: tuple[int, ...]) -> None:
    if mask is not None and tuple(mask.shape) != source:
        raise InputError(f"the mask has the shape {tuple(mask.shape)}, the image {source}; both need the same grid")


def _target_shape(
    source: tuple[int, ...], spacing: Sequence[float] | None, settings: Mapping[str, Any]
) -> tuple[int, ...]:
    """Voxels after resampling."""
    if (size := settings.get("size")) is not None:
        plane = None if spacing is None else (float(spacing[0]), float(spacing[1]))
        return fitted_size((source[0], source[1]), size=tuple(size), spacing=plane, fit="pad")
    if (wanted := settings["spacing"]) is None:
        return source
    if spacing is None:
        raise InputError(f"preparation asks for a spacing of {wanted} mm, but the file carries no spacing")
    axes = zip(source, spacing, wanted, strict=True)
    return tuple(max(1, round(length * step / target)) for length, step, target in axes)


def _stored(channels: np.ndarray, shape: tuple[int, ...], rule: Any) -> np.ndarray:
    """(C, *shape) in stored values."""
    parts = [resample(channel, shape, convert=rule.before) for channel in channels]
    stored = rule.store(parts[0][None] if len(parts) == 1 else np.stack(parts), shape[-2:])
    if stored.min() == stored.max():
        raise InputError(f"the image is constant, every stored value is {float(stored.flat[0]):g}")
    return stored


def _padding(shape: tuple[int, ...], size: Sequence[int] | None, minimum: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """(before, after) of each axis, so that it reaches ``size`` and ``minimum``."""
    wanted = [max(sizes) for sizes in zip(shape, size or shape, minimum, strict=True)]
    missing = [target - length for target, length in zip(wanted, shape, strict=True)]
    return tuple((total // 2, total - total // 2) for total in missing)
