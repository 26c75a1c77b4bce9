"""Regions of a segmentation task: names with the mask values that belong to each. Regions may overlap."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch

from medcoss_components.errors import InputError

ANY = "any"
MASK_VALUES = 256  # masks are stored as uint8

Mask = TypeVar("Mask", np.ndarray, torch.Tensor)


def resolve_regions(regions: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Regions with their mask values written out.

    >>> resolve_regions({"liver": [1, 2], "tumour": 2})
    {'liver': (1, 2), 'tumour': (2,)}

    Args:
        regions: name -> value, list of values in 1 .. 255, or "any" for every value but 0.

    Returns:
        name -> values, ascending.

    Raises:
        InputError: no region, an empty one, or a value out of range.
    """
    if not isinstance(regions, Mapping) or not regions:
        raise InputError(f"regions: must be a mapping of names to mask values with at least one name, got {regions!r}.")
    return {str(name): _values(str(name), given) for name, given in regions.items()}


def _values(name: str, given: Any) -> tuple[int, ...]:
    if given == ANY:
        return tuple(range(1, MASK_VALUES))
    listed = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]
    whole = all(isinstance(value, int) and 0 < value < MASK_VALUES for value in listed)
    if not listed or not whole:
        raise InputError(
            f"regions: {name} must list mask values from 1 to {MASK_VALUES - 1}, or be any; got {given!r}."
        )
    return tuple(sorted(set(listed)))


def region_masks(mask: Mask, regions: Mapping[str, Any], *, dimension: int) -> Mask:
    """One boolean mask per region.

    Args:
        mask: (..., *S) integers, NumPy or torch; S has ``dimension`` axes.
        regions: see :func:`resolve_regions`; K names.

    Returns:
        (..., K, *S) bool, of the same kind and device.
    """
    table: np.ndarray = np.zeros((len(regions), MASK_VALUES), bool)
    for number, values in enumerate(resolve_regions(regions).values()):
        table[number, list(values)] = True
    if isinstance(mask, torch.Tensor):
        lookup, index = torch.from_numpy(table).to(mask.device), mask.long()
        return torch.stack([row[index] for row in lookup], dim=mask.ndim - dimension)
    return np.stack([row[mask] for row in table], axis=mask.ndim - dimension)
