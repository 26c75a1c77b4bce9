"""Turning one item of a manifest into stored samples: settings, geometry and intensity.

Geometry goes by the modality's dimension and intensity by its rule name, so a new modality needs no code here. All
functions are pure; the store (``store.py``) decides which items go where and in which process.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from medcoss_components.data.intensity import INTENSITIES
from medcoss_components.data.resampling import fit_depth, fit_plane, tile_starts
from medcoss_components.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from medcoss_components.data.manifest import Item
    from medcoss_components.data.modalities import Modality
    from medcoss_components.text.vocabulary import Vocabulary

FITS = ("crop", "pad", "stretch")
DEPTHS = ("slabs", "whole")
ORIENTATIONS: dict[str, tuple[int, int, int]] = {"axial": (0, 1, 2), "coronal": (1, 0, 2), "sagittal": (2, 0, 1)}
"""Orientation -> which of (z, y, x) become (slice, row, column). Coronal and sagittal rows run from head to feet."""
CASE_ONLY = {1: (), 2: ("spacing", "size"), 3: ("spacing",)}
"""Dimension -> settings that only cases with masks know (``cases.py``). A manifest that serves both may carry them."""
MINIMUM_SLICES = 2  # of a volume that is resampled as a whole
CHUNK = 32  # slices held as float32 at once


def default_preparation(modality: Modality) -> dict[str, Any]:
    """Settings for a modality before a manifest or an argument changes them (METHOD.md section 7).

    Text: ``max_length`` ids per text, the special ones included. 2D and 3D: ``fit`` says how a plane gets the model's
    H x W with its proportions kept: ``crop`` (cover, cut what is over) or ``pad`` (all visible, fill with the lowest
    value), or changed: ``stretch``; ``percentiles`` [low, high] that intensities are clipped to, null for none. 2D:
    ``tile`` [h, w] cuts tiles with ``stride`` [h, w] (null: no overlap) instead of taking the whole image. 3D:
    sub-volumes of Z consecutive slices begin every ``slices_stride`` slices within the ``middle`` share of the volume,
    along each of ``orientations``; or, with ``depth`` "whole" instead of "slabs", the slices of the ``middle`` share
    (then 1 unless said) are resampled to Z, which gives one sample per orientation.
    """
    if modality.dimension == 1:
        return {"max_length": modality.stored_shape[0]}
    if modality.dimension == 2:
        grey = modality.stored_channels == 1
        return {"fit": "crop", "tile": None, "stride": None, "percentiles": [0.5, 99.5] if grey else None}
    depth = modality.stored_shape[1]
    blocks = {"depth": "slabs", "slices_stride": depth, "middle": 1.0, "orientations": ["axial"], "fit": "pad"}
    by_rule: dict[str, dict[str, Any]] = {
        "hounsfield": {"percentiles": None},
        "zscore": {"percentiles": [0.2, 99.8], "slices_stride": max(1, depth // 2), "middle": 0.8},
        "unit_range": {"percentiles": [0.5, 99.5]},
    }
    return blocks | by_rule[modality.intensity]


def resolve_preparation(modality: Modality, *layers: Mapping[str, Any] | None) -> dict[str, Any]:
    """Complete and check settings; later layers win over earlier ones and over the modality's defaults.

    Args:
        modality: its entry.
        layers: the manifest's settings first, where :data:`CASE_ONLY` names are passed over; then the caller's.

    Returns:
        settings by name. ``depth`` stands there only as "whole": "slabs" is what stores were made with before the
        setting existed, and their keys stay valid.

    Raises:
        InputError: for a name that the modality does not know or a value out of range; the message names both.
    """
    layers = tuple(sample_settings(modality, layer) if place == 0 else layer for place, layer in enumerate(layers))
    settings = merge_settings(default_preparation(modality), modality, *layers)
    check_settings(settings, modality, _CHECKS)
    if settings.get("depth") == "slabs":
        del settings["depth"]
    elif "depth" in settings and not any("middle" in (layer or {}) for layer in layers):
        settings["middle"] = 1.0
    return settings


def sample_settings(modality: Modality, stored: Mapping[str, Any] | None) -> dict[str, Any]:
    """A manifest's preparation settings, less those that only cases with masks know (spacing, size)."""
    return {name: value for name, value in (stored or {}).items() if name not in CASE_ONLY[modality.dimension]}


def classification_layer(
    modality: Modality, stored: Mapping[str, Any], given: Mapping[str, Any] | None
) -> Mapping[str, Any] | None:
    """The caller's settings for classification: volumes are taken whole unless somebody says how to cut them.

    Args:
        modality: its entry.
        stored: the manifest's settings.
        given: the caller's, which win.
    """
    if modality.dimension != 3 or {"depth", "slices_stride"} & {*stored, *(given or {})}:
        return given
    return {"depth": "whole", **(given or {})}


def merge_settings(
    defaults: Mapping[str, Any], modality: Modality, *layers: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The defaults with every layer's values over them.

    Raises:
        InputError: for a name that the defaults do not have; the known ones are listed.
    """
    settings = dict(defaults)
    for layer in layers:
        unknown = sorted(set(layer or {}) - set(settings))
        if unknown:
            raise InputError(
                f"preparation: {unknown[0]!r} is no setting of modality {modality.name}; known: {', '.join(settings)}."
            )
        settings.update({name: _plain(value) for name, value in (layer or {}).items()})
    return settings


def check_settings(settings: Mapping[str, Any], modality: Modality, checks: Mapping[str, tuple[Any, str]]) -> None:
    """Raise InputError for the first value that breaks its rule.

    Args:
        checks: name -> (test of (value, modality), the rule in words).
    """
    for name, value in settings.items():
        if not checks[name][0](value, modality):
            raise InputError(f"preparation: {name}={value!r} of modality {modality.name}: must be {checks[name][1]}.")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(v, int) and v > 0 for v in value)


def _is_percentiles(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(v, (int, float)) for v in value):
        return False
    return 0 <= value[0] < value[1] <= 100


def _is_orientations(value: Any) -> bool:
    if not isinstance(value, list) or not value:
        return False
    return all(v in ORIENTATIONS for v in value) and len(set(value)) == len(value)


_CHECKS: dict[str, tuple[Any, str]] = {
    "max_length": (
        lambda value, modality: isinstance(value, int) and 3 <= value <= modality.stored_shape[0],
        "an integer from 3 to the modality's length",
    ),
    "fit": (lambda value, _: value in FITS, f"one of {', '.join(FITS)}"),
    "tile": (lambda value, _: value is None or _is_size(value), "null or [height, width] in pixels"),
    "stride": (lambda value, _: value is None or _is_size(value), "null or [rows, columns] in pixels"),
    "percentiles": (lambda value, _: value is None or _is_percentiles(value), "null or [low, high] within 0 to 100"),
    "depth": (lambda value, _: value in DEPTHS, f"one of {', '.join(DEPTHS)}"),
    "slices_stride": (lambda value, _: isinstance(value, int) and value > 0, "a positive integer"),
    "middle": (lambda value, _: isinstance(value, (int, float)) and 0 < value <= 1, "above 0 and at most 1"),
    "orientations": (lambda value, _: _is_orientations(value), f"a list out of {', '.join(ORIENTATIONS)}, each once"),
}


def gives_several(modality: Modality, settings: Mapping[str, Any]) -> bool:
    """Whether an item may become several samples, so that sample ids are ``<item id>#0``, ``#1``, ..."""
    if modality.dimension == 3:
        return settings.get("depth") != "whole" or len(settings["orientations"]) > 1
    return settings.get("tile") is not None


def encode_texts(
    items: list[Item] | tuple[Item, ...], *, modality: Modality, settings: Mapping[str, Any], vocabulary: Vocabulary
) -> tuple[np.ndarray, dict[int, str]]:
    """Tokenise many items at once.

    Returns:
        ids (n, L) of the good items in their order, and reasons by position of the bad ones. No text is quoted.
    """
    texts = [item.text or "" for item in items]
    encoded = vocabulary.encode_batch(texts, settings["max_length"])
    pieces = ((encoded != vocabulary.pad_id).sum(axis=1) - 2).tolist()  # without [CLS] and [SEP]
    bad = {}
    for position, (text, count) in enumerate(zip(texts, pieces, strict=True)):
        if not text.strip():
            bad[position] = "the text is empty"
        elif count < 1:
            bad[position] = "the text holds no character that the vocabulary can read"
    good = [position for position in range(len(items)) if position not in bad]
    ids = np.full((len(good), modality.stored_shape[0]), vocabulary.pad_id, dtype=encoded.dtype)
    ids[:, : encoded.shape[1]] = encoded[good]
    return ids, bad


def prepare_item(item: Item, *, modality: Modality, settings: Mapping[str, Any]) -> Iterator[np.ndarray]:
    """Read one image or volume and yield its samples in a fixed order, each (*stored_shape) in the stored dtype.

    Raises:
        InputError: when the file is missing or unreadable, is of another modality, holds NaN or infinite values, is
            constant, or is too small.
    """
    path = _existing_path(item)
    if modality.dimension == 2:
        from medcoss_components.data.readers import read_image

        image = read_image(path, expected_modality=modality.dicom_modalities or None)
        return image_samples(image.array, image.spacing, modality=modality, settings=settings)
    from medcoss_components.data.readers import read_volume

    volume = read_volume(path, expected_modality=modality.dicom_modalities or None)
    return volume_samples(volume.array, volume.spacing, modality=modality, settings=settings)


def _existing_path(item: Item) -> Path:
    if item.image is None:
        raise InputError("the item names no image")
    if not item.image.exists():
        raise InputError(f"{item.image}: no such file")
    return item.image


def image_samples(
    array: np.ndarray, spacing: tuple[float, float] | None, *, modality: Modality, settings: Mapping[str, Any]
) -> Iterator[np.ndarray]:
    """Samples of one image: the whole, or its tiles in raster order.

    Args:
        array: (H, W) or (H, W, 3), any number type.
        spacing: (row, column) in mm; None: square pixels.

    Yields:
        (C, h, w) in the stored dtype.
    """
    check_finite(array)
    channels = to_channels(array, modality.stored_channels)
    rule = INTENSITIES[modality.intensity](array, modality, settings)
    size = modality.stored_shape[1:]
    for tile in _tiles(channels, settings):
        yield rule.store(fit_plane(rule.before(tile), size=size, spacing=spacing, fit=settings["fit"]), size)


def volume_samples(
    array: np.ndarray, spacing: tuple[float, float, float], *, modality: Modality, settings: Mapping[str, Any]
) -> Iterator[np.ndarray]:
    """Sub-volumes of one volume, orientation by orientation, from the first slice to the last; or the whole volume.

    Args:
        array: (Z, Y, X), z up, y to the back, x to the left.
        spacing: (z, y, x) in mm.

    Yields:
        (1, depth, h, w) in the stored dtype.
    """
    if array.ndim != 3:
        raise InputError(f"a volume has 3 axes, this one has the shape {array.shape}")
    check_finite(array)
    rule = INTENSITIES[modality.intensity](array, modality, settings)
    depth, size = modality.stored_shape[1], modality.stored_shape[2:]
    for orientation in settings["orientations"]:
        slices, plane_spacing = orient(array, spacing, orientation)
        if settings.get("depth") == "whole":
            yield _whole(slices, plane_spacing, rule=rule, modality=modality, settings=settings)
            continue
        for start in slab_starts(len(slices), depth=depth, stride=settings["slices_stride"], middle=settings["middle"]):
            slab = _fill_depth(rule.before(slices[start : start + depth]), depth)
            fitted = fit_plane(slab, size=size, spacing=plane_spacing, fit=settings["fit"])
            yield rule.store(fitted, size)[None]


def _whole(
    slices: np.ndarray, spacing: tuple[float, float], *, rule: Any, modality: Modality, settings: Mapping[str, Any]
) -> np.ndarray:
    """One sample (1, depth, h, w) of all slices of the ``middle`` share, a few at a time to save memory."""
    used = max(MINIMUM_SLICES, round(len(slices) * settings["middle"]))
    if len(slices) < used:
        raise InputError(f"the volume has {len(slices)} slices in this direction, at least {used} are needed")
    first, size = (len(slices) - used) // 2, modality.stored_shape[2:]
    chunks = [slices[start : min(start + CHUNK, first + used)] for start in range(first, first + used, CHUNK)]
    fitted = [fit_plane(rule.before(chunk), size=size, spacing=spacing, fit=settings["fit"]) for chunk in chunks]
    return rule.store(fit_depth(np.concatenate(fitted), modality.stored_shape[1]), size)[None]


def orient(
    array: np.ndarray, spacing: tuple[float, float, float], orientation: str
) -> tuple[np.ndarray, tuple[float, float]]:
    """View a (Z, Y, X) volume as (slice, row, column) with the in-plane spacing (row, column) in mm."""
    order = ORIENTATIONS[orientation]
    view = np.transpose(array, order)
    if orientation != "axial":
        view = view[:, ::-1]
    return view, (spacing[order[1]], spacing[order[2]])


def slab_starts(slices: int, *, depth: int, stride: int, middle: float) -> list[int]:
    """First slices of the sub-volumes: every ``stride`` within the central ``middle`` share, the rest split evenly.

    >>> slab_starts(133, depth=16, stride=16, middle=1.0)
    [2, 18, 34, 50, 66, 82, 98, 114]

    Raises:
        InputError: for fewer than half of ``depth`` slices; from there on edge slices are repeated.
    """
    if 2 * slices < depth:
        raise InputError(f"the volume has {slices} slices in this direction, at least {-(-depth // 2)} are needed")
    used = min(slices, max(depth, round(slices * middle)))
    spare = max(0, used - depth)
    first = (slices - used) // 2 + (spare % stride) // 2
    return [first + stride * step for step in range(spare // stride + 1)]


def _fill_depth(slab: np.ndarray, depth: int) -> np.ndarray:
    missing = depth - len(slab)
    return np.pad(slab, ((missing // 2, missing - missing // 2), (0, 0), (0, 0)), mode="edge") if missing > 0 else slab


def _tiles(channels: np.ndarray, settings: Mapping[str, Any]) -> Iterator[np.ndarray]:
    if settings["tile"] is None:
        yield channels
        return
    height, width = settings["tile"]
    rows, columns = settings["stride"] or settings["tile"]
    if channels.shape[1] < height or channels.shape[2] < width:
        raise InputError(f"the image of {channels.shape[1:]} pixels is smaller than the tile {(height, width)}")
    for top in tile_starts(channels.shape[1], height, rows):
        for left in tile_starts(channels.shape[2], width, columns):
            yield channels[:, top : top + height, left : left + width]


def to_channels(array: np.ndarray, channels: int) -> np.ndarray:
    """(H, W) or (H, W, 3) to (channels, H, W): colour to grey by luminance, grey to colour by repetition."""
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise InputError(f"an image is (H, W) or (H, W, 3), this one has the shape {array.shape}")
    if array.ndim == 2:
        return np.broadcast_to(array, (channels, *array.shape))
    if channels == 3:
        return np.moveaxis(array, 2, 0)
    return (array.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32))[None]


def check_finite(array: np.ndarray) -> None:
    """Raise InputError for an empty array, NaN or infinite values."""
    if array.size == 0:
        raise InputError(f"the array is empty, shape {array.shape}")
    if np.issubdtype(array.dtype, np.floating):
        bad = sum(int(np.count_nonzero(~np.isfinite(plane))) for plane in array)
        if bad:
            raise InputError(f"{bad} of {array.size} values are NaN or infinite")
