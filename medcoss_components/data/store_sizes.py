"""How many bytes a store will take, from a few of its items; and sizes as text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medcoss_components.data.manifest import Item, Manifest
from medcoss_components.data.modalities import Modality
from medcoss_components.errors import InputError
from medcoss_components.even_spread import evenly_spread

TRIED = 3  # items of a split that are prepared for the estimate
HEADER = 128  # bytes of an .npy file before its values


@dataclass(frozen=True)
class StoreEstimate:
    """What a store will take.

    Args:
        bytes: of samples or cases; the lists beside them are small.
        items: of the split.
        tried: items that were prepared for this; 0 for texts, whose size follows from their number.
        bad: of those, items that could not be prepared.
        reason: why the first of them could not.
        values: in the masks that were tried, without 0.
    """

    bytes: int
    items: int
    tried: int = 0
    bad: int = 0
    reason: str = ""
    values: tuple[int, ...] = ()


def estimate_samples(
    manifest: Manifest, split: str, *, modality: Modality, settings: Mapping[str, Any], tried: int = TRIED
) -> StoreEstimate:
    """Bytes of a store of samples (:func:`~medcoss_components.data.store.prepare_store`).

    Args:
        manifest: the data set.
        split: of it.
        modality: entry with the input shape.
        settings: complete, see :func:`~medcoss_components.data.preparation.resolve_preparation`.
        tried: items to prepare, spread evenly over the split.
    """
    from medcoss_components.data.preparation import gives_several, prepare_item

    items = manifest.items(split)
    each = math.prod(modality.stored_shape) * np.dtype(modality.stored_dtype).itemsize
    if modality.dimension == 1 or not gives_several(modality, settings):
        return StoreEstimate(len(items) * each, len(items))

    def size(item: Item) -> int:
        return each * sum(1 for _ in prepare_item(item, modality=modality, settings=settings))

    return _from_a_few(items, size, tried)


def estimate_cases(
    manifest: Manifest, split: str, *, modality: Modality, settings: Mapping[str, Any], tried: int = TRIED
) -> StoreEstimate:
    """Bytes of a store of cases (:func:`~medcoss_components.data.case_store.prepare_cases`); arguments as above."""
    from medcoss_components.data.case_building import foreground_positions
    from medcoss_components.data.cases import prepare_case
    from medcoss_components.data.masks import names_mask, read_labelled

    values: set[int] = set()

    def size(item: Item) -> int:
        if item.image is None or not names_mask(item.label, modality.dimension):
            raise InputError("the item's label is no path of a mask file")
        array, spacing, mask = read_labelled(item.image, manifest.root / item.label, modality=modality)
        values.update(np.unique(mask).tolist())
        case = prepare_case(array, spacing, mask=mask, modality=modality, settings=settings)
        arrays = [case.image] if case.mask is None else [case.image, case.mask, foreground_positions(case.mask, seed=0)]
        return sum(array.nbytes + HEADER for array in arrays)

    estimate = _from_a_few(manifest.items(split), size, tried)
    return replace(estimate, values=tuple(sorted(values - {0})))


def _from_a_few(items: Sequence[Item], size: Any, tried: int) -> StoreEstimate:
    """The mean size of a few items, spread evenly, times their number; unreadable items count as others."""
    places = evenly_spread(len(items), tried)
    sizes, reasons = [], []
    for place in places:
        try:
            sizes.append(size(items[place]))
        except Exception as error:  # any reader can fail on a damaged file; the preparation will list it
            if isinstance(error, MemoryError):
                raise
            reasons.append(str(error).rstrip(".") if isinstance(error, InputError) else type(error).__name__)
    mean = sum(sizes) / len(sizes) if sizes else 0.0
    return StoreEstimate(round(mean * len(items)), len(items), len(places), len(reasons), reasons[0] if reasons else "")


def folder_bytes(folder: Path) -> int:
    """Bytes of the files in a folder, not below it."""
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())


def size_text(count: float) -> str:
    """Bytes as text, in powers of 1000 as disks are sold.

    >>> size_text(999), size_text(1536), size_text(2.5e12)
    ('999 B', '1.5 kB', '2.5 TB')
    """
    units = ["B", "kB", "MB", "GB", "TB"]
    while count >= 1000 and len(units) > 1:
        count /= 1000
        units.pop(0)
    return f"{count:.0f} {units[0]}" if units[0] == "B" or count >= 100 else f"{count:.1f} {units[0]}"
