"""Sample of radiographs: crops of two acquired ones, and DRRs (digitally reconstructed radiographs) of the sample CT.

Acquired radiographs are cut into a training part and a validation part that share no pixel, then into square crops of
several sizes, as PNG of 16 bits with bone bright. DRRs are for training only and have "drr" in file name and id.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medcoss_components.data.adapters.recipe import Conversion
from medcoss_components.data.adapters.sample_volumes import PARTS, _starts
from medcoss_components.data.drr import AIR, body_mask, grey_levels, project_views, view_grid
from medcoss_components.data.manifest import Item
from medcoss_components.data.readers import read_image, read_volume
from medcoss_components.data.writers import write_picture
from medcoss_components.progress import progress


def convert(*, sources: Mapping[str, Path], folder: Path, settings: Mapping[str, Any]) -> Conversion:
    """Write ``images/*.png`` and list them.

    Args:
        settings: "radiographs": list of {file, subject, box, cut_axis, cut, validation_part}; "sizes" and "overlap" of
            crops; "drr": {file, subject, turns, leans, voxel}.
    """
    items: Conversion = {"training": [], "validation": []}
    (folder / "images").mkdir()
    for radiograph in settings["radiographs"]:
        for split, item in _radiograph_items(sources, folder, radiograph, settings):
            items[split].append(item)
    items["training"] += _drr_items(sources[settings["drr"]["file"]], folder, settings["drr"])
    return items


def _radiograph_items(
    sources: Mapping[str, Path], folder: Path, radiograph: Mapping[str, Any], settings: Mapping[str, Any]
) -> Iterator[tuple[str, Item]]:
    picture = to_sixteen_bits(np.asarray(read_image(sources[radiograph["file"]]).array))
    top, bottom, left, right = radiograph["box"]
    picture = picture[top:bottom, left:right]
    for part, block in split_picture(picture, radiograph["cut_axis"], radiograph["cut"], radiograph["validation_part"]):
        group = f"{radiograph['subject']}-part-{part}"
        for name, crop in square_crops(block, sizes=settings["sizes"], overlap=settings["overlap"]):
            path = folder / "images" / f"{group}-{name}.png"
            write_picture(path, crop)
            yield PARTS[part], Item(path.stem, image=path, group=group)


def to_sixteen_bits(picture: np.ndarray) -> np.ndarray:
    """Stretch an acquired picture between its 0.5 and 99.5 percentiles to uint16, once for all of its crops."""
    low, high = np.percentile(picture, (0.5, 99.5))
    scaled = (picture.astype(np.float32) - low) / max(float(high - low), 1e-6)
    return (np.clip(scaled, 0, 1) * 65535).astype(np.uint16)


def split_picture(
    picture: np.ndarray, axis: int, cut: int, validation_part: str
) -> tuple[tuple[str, np.ndarray], tuple[str, np.ndarray]]:
    """Cut (H, W) at index ``cut`` of ``axis``; "first" or "second" becomes part b."""
    first, second = np.split(picture, [cut], axis=axis)
    return (("a", first), ("b", second)) if validation_part == "second" else (("b", first), ("a", second))


def square_crops(picture: np.ndarray, *, sizes: Sequence[int], overlap: float) -> Iterator[tuple[str, np.ndarray]]:
    """Square crops of every size that fits, evenly over the picture, neighbours sharing about ``overlap`` of a side."""
    for size in sizes:
        if size > min(picture.shape):
            continue
        step = max(1, round(size * (1 - overlap)))
        for row in _starts(picture.shape[0], size, step):
            for column in _starts(picture.shape[1], size, step):
                yield f"s{size}y{row:04d}x{column:04d}", picture[row : row + size, column : column + size]


def _drr_items(path: Path, folder: Path, settings: Mapping[str, Any]) -> list[Item]:
    volume = read_volume(path)
    array = remove_table(np.asarray(volume.array))
    views = view_grid(turns=settings["turns"], leans=settings["leans"])
    projected = project_views(array, volume.spacing, views, voxel=settings["voxel"])
    items = []
    for view, line in progress(projected, description="sample: DRRs", total=len(views), unit="view"):
        target = folder / "images" / f"{settings['subject']}-{view.name}.png"
        write_picture(target, grey_levels(line))
        items.append(Item(target.stem, image=target, group=f"{settings['subject']}-drr"))
    return items


def remove_table(array: np.ndarray) -> np.ndarray:
    """Set all outside the body to air; the body is found on every second row and column."""
    mask = body_mask(array[:, ::2, ::2]).repeat(2, axis=1).repeat(2, axis=2)
    return np.where(mask[:, : array.shape[1], : array.shape[2]], array, AIR)
