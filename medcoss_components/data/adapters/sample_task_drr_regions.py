"""Sample task: which part of the body a radiograph shows, on crops of DRRs and of two acquired radiographs.

DRRs (digitally reconstructed radiographs, computed from the sample CT, not acquired) have "drr" in file name and id.
Their regions are bands of the CT along the body; a crop is as wide and high in millimetres whatever it shows, so that
its size tells nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medcoss_components.data.adapters import sample_task_pictures
from medcoss_components.data.adapters.recipe import Conversion
from medcoss_components.data.adapters.sample_task_drr import project_together, views_by_split
from medcoss_components.data.adapters.sample_task_pictures import Box, square_boxes
from medcoss_components.data.adapters.sample_xray import remove_table
from medcoss_components.data.drr import attenuation_from_hounsfield, grey_levels, resample_isotropic
from medcoss_components.data.manifest import Item
from medcoss_components.data.readers import read_volume
from medcoss_components.data.writers import write_picture
from medcoss_components.progress import progress

BODY = 0.05
"""Line integral from which on a pixel shows the body."""


def convert(*, sources: Mapping[str, Path], folder: Path, settings: Mapping[str, Any]) -> Conversion:
    """Write ``images/*.png`` and list them with the region as class and body part.

    Args:
        sources: file name -> path.
        folder: receives the files.
        settings: "acquired": as :func:`.sample_task_pictures.convert` takes them, a class for each picture; "drr":
            {file, subject, turns, leans, voxel, sectors, crop, overlap, regions}, see :func:`region_boxes` and
            :func:`.sample_task_drr.views_by_split`; lengths in millimetres.
    """
    items = sample_task_pictures.convert(sources=sources, folder=folder, settings=settings["acquired"])
    for split, item in _drr_items(sources, folder, settings["drr"]):
        items[split].append(item)
    return {split: [replace(item, body_part=item.label) for item in entries] for split, entries in items.items()}


def _drr_items(sources: Mapping[str, Path], folder: Path, settings: Mapping[str, Any]) -> Iterator[tuple[str, Item]]:
    """Crops of every view, with the view's split."""
    views = views_by_split(turns=settings["turns"], leans=settings["leans"], sectors=settings["sectors"])
    projected = project_together(
        [_attenuation(sources, settings)], [view for _, view in views], voxel=settings["voxel"]
    )
    bar = progress(projected, description="sample: DRRs of regions", total=len(views), unit="view")
    for (split, view), (line,) in zip(views, bar, strict=True):
        picture = grey_levels(line)
        for region, name, box in region_boxes(line, settings):
            path = folder / "images" / f"{settings['subject']}-{view.name}-{region}-{name}.png"
            write_picture(path, np.ascontiguousarray(picture[box]))
            yield split, Item(path.stem, image=path, label=region, group=f"{settings['subject']}-drr-{split}")


def _attenuation(sources: Mapping[str, Path], settings: Mapping[str, Any]) -> torch.Tensor:
    """Attenuation in 1/mm of every cube of ``voxel`` mm, without the table."""
    volume = read_volume(sources[settings["file"]])
    attenuation = attenuation_from_hounsfield(remove_table(np.asarray(volume.array)))
    return torch.from_numpy(resample_isotropic(attenuation, volume.spacing, voxel=settings["voxel"]))


def region_boxes(line: np.ndarray, settings: Mapping[str, Any]) -> Iterator[tuple[str, str, Box]]:
    """Square crops of every region, evenly over the columns that show the body there.

    Args:
        line: (rows, columns) line integrals, row 0 is the head.
        settings: "voxel": edge of a pixel; "crop": edge of a crop, in millimetres; "overlap" of neighbours as a share;
            "regions": name -> {band: [first, last] millimetres from the lower edge, optional sides: true for the
            outermost crops alone}.

    Yields:
        region, part of a file name, and the crop's rows and columns.
    """
    voxel, rows = settings["voxel"], len(line)
    side = round(settings["crop"] / voxel)
    for region, rule in settings["regions"].items():
        first, last = rule["band"]
        top, bottom = (min(rows, max(0, rows - round(height / voxel))) for height in (last, first))
        left, right = _columns(line[top:bottom], side)
        boxes = list(square_boxes([top, bottom, left, right], sizes=[side], overlap=settings["overlap"]))
        for name, box in boxes:
            if not rule.get("sides") or box[1] in _outermost(boxes):
                yield region, name, box


def _columns(line: np.ndarray, side: int) -> tuple[int, int]:
    """First and end of the columns that show the body; the whole width where that is too narrow for a crop."""
    shown = np.flatnonzero(line.max(axis=0) > BODY)
    first, end = (int(shown[0]), int(shown[-1]) + 1) if len(shown) else (0, 0)
    return (first, end) if end - first >= side else (0, line.shape[1])


def _outermost(boxes: Sequence[tuple[str, Box]]) -> list[slice]:
    columns = [box[1] for _, box in boxes]
    return [min(columns, key=lambda place: place.start), max(columns, key=lambda place: place.start)]
