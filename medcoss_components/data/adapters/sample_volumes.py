"""Samples of one CT and of one averaged brain MRI: cut into a training part and a validation part, then into windows.

One subject cannot be split by patient. The volume is cut across the body axis into two parts that share no voxel;
their groups are called ``<subject>-part-a`` (training) and ``<subject>-part-b`` (validation). Losses on part b say how
training goes; they say nothing about other patients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medcoss_components.data.adapters.recipe import Conversion
from medcoss_components.data.manifest import Item
from medcoss_components.data.readers import read_volume
from medcoss_components.data.writers import write_nifti

PARTS = {"a": "training", "b": "validation"}


def convert(*, sources: Mapping[str, Path], folder: Path, settings: Mapping[str, Any]) -> Conversion:
    """Write ``volumes/<subject>-part-<a|b>-<window>.nii.gz`` and list them.

    Args:
        sources: file name -> path; ``settings["file"]`` is the one used.
        settings: "subject" name; "above": voxels above this value are the subject; "margin" around it in voxels;
            "cut": first index (from the feet) of part "upper", and "validation_part": "upper" or "lower";
            "window" and "step" in voxels: further square in-plane windows (0: only the whole plane).
    """
    volume = read_volume(sources[settings["file"]])
    array, corner = crop_to_subject(np.asarray(volume.array), above=settings["above"], margin=settings["margin"])
    items: Conversion = {"training": [], "validation": []}
    (folder / "volumes").mkdir()
    for part, start, block in _parts(array, settings["cut"] - corner[0], settings["validation_part"]):
        group = f"{settings['subject']}-part-{part}"
        for name, (row, column), window in in_plane_windows(block, settings["window"], settings["step"]):
            path = folder / "volumes" / f"{group}-{name}.nii.gz"
            first = (corner[0] + start, corner[1] + row, corner[2] + column)
            origin = [index * size for index, size in zip(first, volume.spacing, strict=True)]
            write_nifti(path, window, volume.spacing, origin=origin)
            items[PARTS[part]].append(Item(path.name.removesuffix(".nii.gz"), image=path, group=group))
    return items


def crop_to_subject(array: np.ndarray, *, above: float, margin: int) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Cut (Z, Y, X) to the box of voxels above a value plus a margin; returns it with the index of its first voxel.

    A plane counts where more than 1 % of its voxels are above, so that a table's edge or noise does not.
    """
    inside = array > above
    box = []
    for axis in range(3):
        share = inside.mean(axis=tuple(other for other in range(3) if other != axis))
        index = np.nonzero(share > 0.01)[0]
        box.append(slice(max(0, int(index[0]) - margin), int(index[-1]) + 1 + margin))
    return array[tuple(box)], (box[0].start, box[1].start, box[2].start)


def _parts(array: np.ndarray, cut: int, validation_part: str) -> Iterator[tuple[str, int, np.ndarray]]:
    names = ("a", "b") if validation_part == "upper" else ("b", "a")
    yield names[0], 0, array[:cut]
    yield names[1], cut, array[cut:]


def in_plane_windows(array: np.ndarray, window: int, step: int) -> Iterator[tuple[str, tuple[int, int], np.ndarray]]:
    """The whole plane, then square windows that cover it evenly, at most ``step`` voxels apart.

    >>> [corner for _, corner, _ in in_plane_windows(np.zeros((1, 6, 9)), 6, 2)]
    [(0, 0), (0, 0), (0, 2), (0, 3)]
    """
    yield "whole", (0, 0), array
    if not window:
        return
    for row in _starts(array.shape[1], window, step):
        for column in _starts(array.shape[2], window, step):
            yield f"y{row:03d}x{column:03d}", (row, column), array[:, row : row + window, column : column + window]


def _starts(size: int, window: int, step: int) -> list[int]:
    """Even starts with both borders reached.

    >>> _starts(10, 4, 4), _starts(3, 4, 4)
    ([0, 3, 6], [0])
    """
    room = max(0, size - window)
    count = -(-room // step) + 1
    return [round(index * room / max(1, count - 1)) for index in range(count)]
