"""Sample task: boxes around organs in DRRs (digitally reconstructed radiographs, computed from the sample CT).

The organs of the CT's automatic masks are projected by the same rays as the CT. A box is the smallest upright rectangle
around the pixels whose ray runs through the organ for more than ``least_path`` millimetres; in the picture itself an
organ may hardly be seen, as the kidneys. Parts of a view that show no organ come with an empty list of boxes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medcoss_components.data.adapters.recipe import Conversion
from medcoss_components.data.adapters.sample_task_drr import project_together, views_by_split
from medcoss_components.data.adapters.sample_xray import remove_table
from medcoss_components.data.drr import attenuation_from_hounsfield, grey_levels, resample_isotropic
from medcoss_components.data.manifest import SPLITS, Item
from medcoss_components.data.readers import read_volume
from medcoss_components.data.writers import write_picture
from medcoss_components.progress import progress


def convert(*, sources: Mapping[str, Path], folder: Path, settings: Mapping[str, Any]) -> Conversion:
    """Write ``images/<subject>-<view>-<part>.png`` and list them with the boxes of the organs.

    Args:
        sources: file name -> path.
        folder: receives the files.
        settings: "file", "subject", "turns", "leans", "voxel" as for the X-ray sample's DRRs; "sectors", see
            :func:`.sample_task_drr.views_by_split`; "organs": {file, values: category -> mask values, least_path,
            least_side}; "parts": name -> {rows: [first, last] as shares of the picture from the head, every: take this
            part of every n-th view, body_part}.
    """
    items: Conversion = {split: [] for split in SPLITS}
    (folder / "images").mkdir()
    views = views_by_split(turns=settings["turns"], leans=settings["leans"], sectors=settings["sectors"])
    projected = project_together(_solids(sources, settings), [view for _, view in views], voxel=settings["voxel"])
    bar = progress(projected, description="sample: DRRs with organs", total=len(views), unit="view")
    counts = dict.fromkeys(SPLITS, 0)
    for (split, view), (line, *paths) in zip(views, bar, strict=True):
        for part, rows in _parts(settings["parts"], counts[split], len(line)):
            image = folder / "images" / f"{settings['subject']}-{view.name}-{part}.png"
            write_picture(image, grey_levels(line[rows]))
            label = organ_boxes([path[rows] for path in paths], settings["organs"])
            group, shown = f"{settings['subject']}-drr-{split}", settings["parts"][part]["body_part"]
            items[split].append(Item(image.stem, image=image, label=label, group=group, body_part=shown))
        counts[split] += 1
    return items


def _parts(parts: Mapping[str, Mapping[str, Any]], view: int, height: int) -> Iterator[tuple[str, slice]]:
    """Name and rows of every part that is taken of a split's ``view``-th view."""
    for name, rule in parts.items():
        if view % rule["every"] == 0:
            first, last = (round(share * height) for share in rule["rows"])
            yield name, slice(first, last)


def _solids(sources: Mapping[str, Path], settings: Mapping[str, Any]) -> list[torch.Tensor]:
    """Attenuation in 1/mm, then 1 within each organ and 0 elsewhere, of every cube of ``voxel`` mm."""
    volume, rule = read_volume(sources[settings["file"]]), settings["organs"]
    attenuation = attenuation_from_hounsfield(remove_table(np.asarray(volume.array)))
    solid = torch.from_numpy(resample_isotropic(attenuation, volume.spacing, voxel=settings["voxel"]))
    mask = nearest(np.asarray(read_volume(sources[rule["file"]]).array), solid.shape)
    return [solid, *(torch.from_numpy(np.isin(mask, values).astype(np.float32)) for values in rule["values"].values())]


def nearest(mask: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """A mask on the grid of ``shape`` over the same space, each cube with the value at its centre.

    >>> nearest(np.array([[[0, 1, 2, 3]]]), (1, 1, 2)), nearest(np.array([[[5, 6]]]), (1, 1, 4))
    (array([[[1, 3]]]), array([[[5, 5, 6, 6]]]))
    """
    places = [((np.arange(new) + 0.5) * old / new).astype(int) for old, new in zip(mask.shape, shape, strict=True)]
    return mask[np.ix_(*places)]


def organ_boxes(paths: Sequence[np.ndarray], rule: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A box around every organ that is to be seen.

    Args:
        paths: of every organ (rows, columns) millimetres that each ray runs through it.
        rule: "values": category -> anything, in the order of ``paths``; "least_path" in millimetres; "least_side" of a
            box in pixels: narrower ones, such as the rim of an organ at the edge of a part, are left out.

    >>> rule = {"values": {"heart": [51]}, "least_path": 5.0, "least_side": 2}
    >>> organ_boxes([np.array([[0, 0, 0], [0, 9, 9], [0, 6, 9], [0, 0, 4]])], rule)
    [{'box': [1, 1, 3, 3], 'category': 'heart'}]
    """
    boxes = []
    for category, path in zip(rule["values"], paths, strict=True):
        rows, columns = np.nonzero(path > rule["least_path"])
        if not len(rows):
            continue
        top, bottom, left, right = (int(n) for n in (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1))
        if min(bottom - top, right - left) >= rule["least_side"]:
            boxes.append({"box": [left, top, right, bottom], "category": category})
    return boxes
