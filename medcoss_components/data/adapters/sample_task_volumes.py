"""Sample tasks on one volume: slabs across the body axis, with a class or with the masks of organs or tissues.

One subject cannot be split by patient. Slabs of different splits share no slice; their group is ``<subject>-<split>``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medcoss_components.data.adapters.recipe import Conversion
from medcoss_components.data.adapters.sample_volumes import crop_to_subject
from medcoss_components.data.manifest import SPLITS, Item
from medcoss_components.data.readers import VolumeData, read_volume
from medcoss_components.data.writers import write_nifti


def convert(*, sources: Mapping[str, Path], folder: Path, settings: Mapping[str, Any]) -> Conversion:
    """Write ``volumes/<subject>-<split>-z<first slice>.nii.gz`` (and ``masks/`` of the same names) and list them.

    Args:
        sources: file name -> path.
        folder: receives the files.
        settings: "file" and "subject"; "above" and "margin": planes are cut to the subject as in the sample
            (:func:`.sample_volumes.crop_to_subject`); "blocks": list of {split, slices: [first, end) from the feet}
            with an optional label, and slab and step in slices (:func:`slab_starts`); "masks": list of {file, write,
            and values or above} (:func:`merge_masks`), or none where blocks have labels.
    """
    volume = read_volume(sources[settings["file"]])
    array = np.asarray(volume.array)
    cropped, corner = crop_to_subject(array, above=settings["above"], margin=settings["margin"])
    plane = (slice(None), *(slice(corner[axis], corner[axis] + cropped.shape[axis]) for axis in (1, 2)))
    layers = {"volumes": array[plane]}
    if "masks" in settings:
        layers["masks"] = _read_masks(sources, settings["masks"])[plane]
    for name in layers:
        (folder / name).mkdir()
    items: Conversion = {split: [] for split in SPLITS}
    for block in settings["blocks"]:
        group = f"{settings['subject']}-{block['split']}"
        for first, end in slab_starts(block["slices"], slab=block.get("slab"), step=block.get("step")):
            name = f"{group}-z{first:03d}"
            origin = [index * size for index, size in zip((first, *corner[1:]), volume.spacing, strict=True)]
            paths = _write_slab(
                folder, name, {kind: values[first:end] for kind, values in layers.items()}, origin, volume
            )
            label = paths["masks"].relative_to(folder).as_posix() if "masks" in paths else block["label"]
            items[block["split"]].append(Item(name, image=paths["volumes"], label=label, group=group))
    return items


def _write_slab(
    folder: Path, name: str, layers: Mapping[str, np.ndarray], origin: Sequence[float], volume: VolumeData
) -> dict[str, Path]:
    """Write every layer to ``<layer>/<name>.nii.gz`` on the volume's grid; return the paths."""
    paths = {kind: folder / kind / f"{name}.nii.gz" for kind in layers}
    for kind, values in layers.items():
        write_nifti(paths[kind], values, volume.spacing, origin=origin)
    return paths


def slab_starts(
    slices: Sequence[int], *, slab: int | None = None, step: int | None = None
) -> Iterator[tuple[int, int]]:
    """(first, end) of every slab within [first, end): all of it, or ``slab`` slices every ``step``.

    >>> list(slab_starts([5, 12])), list(slab_starts([5, 12], slab=4, step=2))
    ([(5, 12)], [(5, 9), (7, 11)])
    """
    first, end = slices
    size = end - first if slab is None else slab
    for start in range(first, end - size + 1, size if step is None else step):
        yield start, start + size


def _read_masks(sources: Mapping[str, Path], masks: Sequence[Mapping[str, Any]]) -> np.ndarray:
    return merge_masks([(np.asarray(read_volume(sources[mask["file"]]).array), mask) for mask in masks])


def merge_masks(masks: Sequence[tuple[np.ndarray, Mapping[str, Any]]]) -> np.ndarray:
    """One uint8 mask of several arrays of one shape; where two apply, the later one wins.

    Args:
        masks: array, and {write: value to write, and either values: list of the array's values, or above: number}.

    >>> grey, white = np.array([0, 200, 0]), np.array([0, 3, 180])
    >>> merge_masks([(grey, {"write": 1, "above": 127}), (white, {"write": 2, "values": [180]})]).tolist()
    [0, 1, 2]
    """
    merged = np.zeros(masks[0][0].shape, np.uint8)
    for array, rule in masks:
        merged[array > rule["above"] if "above" in rule else np.isin(array, rule["values"])] = rule["write"]
    return merged
