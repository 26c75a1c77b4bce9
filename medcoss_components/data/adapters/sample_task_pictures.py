"""Sample tasks on pictures: square crops of marked areas, with a class or with the piece of a mask that belongs to it.

Every picture is divided into areas, and an area belongs to one split: no pixel is in two splits, though all splits show
the same subject. The areas' group is ``<subject>-<split>``. Three ways to label a crop, by what the settings hold:

- "label" of the picture: its class;
- "classes" and the picture's "mask": the class whose mask values fill most of the marked pixels, or none;
- the picture's "mask" alone: a mask file of the crop's size with the values of the source.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medcoss_components.data.adapters.recipe import Conversion
from medcoss_components.data.adapters.sample_volumes import _starts
from medcoss_components.data.adapters.sample_xray import to_sixteen_bits
from medcoss_components.data.manifest import SPLITS, Item
from medcoss_components.data.readers import read_image
from medcoss_components.data.writers import write_picture

Box = tuple[slice, slice]


def convert(*, sources: Mapping[str, Path], folder: Path, settings: Mapping[str, Any]) -> Conversion:
    """Write ``images/<subject>-<split>-s<size>y<row>x<column>.png`` (and ``masks/`` of the same names) and list them.

    Args:
        sources: file name -> path.
        folder: receives the files.
        settings: "pictures": list of {file, subject, areas, and label or mask: {file, array}} with areas a list of
            {split, box: [top, bottom, left, right], optional overlap}; "sizes" of the crops in pixels and their
            "overlap"; optional "classes", see :func:`class_of_mask`.
    """
    items: Conversion = {split: [] for split in SPLITS}
    (folder / "images").mkdir()
    for picture in settings["pictures"]:
        pixels, mask = _read(sources, picture)
        for area in picture["areas"]:
            group = f"{picture['subject']}-{area['split']}"
            overlap = area.get("overlap", settings["overlap"])
            for name, box in square_boxes(area["box"], sizes=settings["sizes"], overlap=overlap):
                label = _label(folder, f"{group}-{name}", None if mask is None else mask[box], picture, settings)
                if label is not None:
                    path = folder / "images" / f"{group}-{name}.png"
                    write_picture(path, np.ascontiguousarray(pixels[box]))
                    items[area["split"]].append(Item(path.stem, image=path, label=label, group=group))
    return items


def _read(sources: Mapping[str, Path], picture: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray | None]:
    """The picture, uint8 colour as it is and grey stretched to uint16, and its mask (H, W) uint8."""
    pixels = np.asarray(read_image(sources[picture["file"]]).array)
    pixels = to_sixteen_bits(pixels) if pixels.ndim == 2 else pixels
    if "mask" not in picture:
        return pixels, None
    with np.load(sources[picture["mask"]["file"]], allow_pickle=False) as arrays:
        return pixels, arrays[picture["mask"]["array"]].astype(np.uint8)


def square_boxes(area: Sequence[int], *, sizes: Sequence[int], overlap: float) -> Iterator[tuple[str, Box]]:
    """Square boxes of every size that fits into [top, bottom, left, right), evenly over it.

    >>> [name for name, _ in square_boxes([10, 20, 0, 6], sizes=[6, 99], overlap=0.5)]
    ['s6y0010x0000', 's6y0012x0000', 's6y0014x0000']
    """
    top, bottom, left, right = area
    for size in sizes:
        if size > min(bottom - top, right - left):
            continue
        step = max(1, round(size * (1 - overlap)))
        for row in (top + start for start in _starts(bottom - top, size, step)):
            for column in (left + start for start in _starts(right - left, size, step)):
                yield f"s{size}y{row:04d}x{column:04d}", (slice(row, row + size), slice(column, column + size))


def _label(
    folder: Path, stem: str, mask: np.ndarray | None, picture: Mapping[str, Any], settings: Mapping[str, Any]
) -> str | None:
    """Class, relative path of a mask file just written, or None for a crop of no class."""
    if mask is None:
        return picture["label"]
    if "classes" in settings:
        return class_of_mask(mask, **settings["classes"])
    path = folder / "masks" / f"{stem}.png"
    path.parent.mkdir(exist_ok=True)
    write_picture(path, np.ascontiguousarray(mask))
    return path.relative_to(folder).as_posix()


def class_of_mask(
    mask: np.ndarray, *, values: Mapping[str, Sequence[int]], least_share: float, least_cover: float
) -> str | None:
    """The class that most of the marked pixels belong to.

    Args:
        mask: (H, W) integers, 0 where nothing is marked.
        values: class -> mask values that count for it.
        least_share: share of the marked pixels that the class must have.
        least_cover: share of all pixels that must be marked.

    >>> mask = np.array([[0, 0, 3, 3], [0, 0, 3, 1]])
    >>> class_of_mask(mask, values={"tumour": [3], "stroma": [1]}, least_share=0.75, least_cover=0.5)
    'tumour'
    >>> class_of_mask(mask, values={"tumour": [3], "stroma": [1]}, least_share=0.8, least_cover=0.5) is None
    True
    """
    marked = np.count_nonzero(mask)
    if marked == 0 or marked < least_cover * mask.size:
        return None
    shares = {name: np.isin(mask, list(wanted)).sum() / marked for name, wanted in values.items()}
    best = max(shares, key=lambda name: shares[name])
    return best if shares[best] >= least_share else None
