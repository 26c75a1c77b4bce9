"""Sample task: the lungs in DRRs (digitally reconstructed radiographs, computed from the sample CT, not acquired).

The lungs of the CT's automatic masks are projected by the same rays as the CT; a pixel belongs to the lungs where its
ray runs through them for more than ``least_path`` millimetres. That counts lung behind the heart and below the dome of
the diaphragm, which a reader of a radiograph would not outline.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medcoss_components.data.adapters.recipe import Conversion
from medcoss_components.data.adapters.sample_xray import remove_table
from medcoss_components.data.drr import (
    SOURCE_DISTANCE,
    View,
    _lean,
    _project_leant,
    _square,
    attenuation_from_hounsfield,
    grey_levels,
    resample_isotropic,
    view_grid,
)
from medcoss_components.data.manifest import SPLITS, Item
from medcoss_components.data.readers import read_volume
from medcoss_components.data.writers import write_picture
from medcoss_components.progress import progress


def convert(*, sources: Mapping[str, Path], folder: Path, settings: Mapping[str, Any]) -> Conversion:
    """Write ``images/<subject>-<view>.png`` with ``masks/`` of the same names (1 = lungs) and list them.

    Args:
        sources: file name -> path.
        folder: receives the files.
        settings: "file", "subject", "turns", "leans", "voxel" as for the X-ray sample's DRRs; "mask": {file, values,
            least_path}; "sectors": split -> [first, last] degrees, see :func:`split_of_turn`.
    """
    solids, rule = _solids(sources, settings), settings["mask"]
    items: Conversion = {split: [] for split in SPLITS}
    for name in ("images", "masks"):
        (folder / name).mkdir()
    views = views_by_split(turns=settings["turns"], leans=settings["leans"], sectors=settings["sectors"])
    projected = project_together(solids, [view for _, view in views], voxel=settings["voxel"])
    bar = progress(projected, description="sample: DRRs with lungs", total=len(views), unit="view")
    for (split, view), (line, path) in zip(views, bar, strict=True):
        name = f"{settings['subject']}-{view.name}"
        image = folder / "images" / f"{name}.png"
        write_picture(image, grey_levels(line))
        write_picture(folder / "masks" / f"{name}.png", (path > rule["least_path"]).astype(np.uint8))
        group = f"{settings['subject']}-drr-{split}"
        items[split].append(Item(name, image=image, label=f"masks/{name}.png", group=group))
    return items


def _solids(sources: Mapping[str, Path], settings: Mapping[str, Any]) -> list[torch.Tensor]:
    """Attenuation in 1/mm and share of lung of every cube of ``voxel`` mm."""
    volume, rule = read_volume(sources[settings["file"]]), settings["mask"]
    lungs = np.isin(np.asarray(read_volume(sources[rule["file"]]).array), rule["values"])
    attenuation = attenuation_from_hounsfield(remove_table(np.asarray(volume.array)))
    solids = (resample_isotropic(solid, volume.spacing, voxel=settings["voxel"]) for solid in (attenuation, lungs))
    return [torch.from_numpy(solid) for solid in solids]


def views_by_split(
    *, turns: int, leans: Sequence[float], sectors: Mapping[str, Sequence[Any]]
) -> list[tuple[str, View]]:
    """The views of :func:`.drr.view_grid` that lie in a sector, with its split.

    Args:
        turns, leans: of the grid.
        sectors: split -> [first, last] degrees, or a list of such pairs.

    >>> pairs = views_by_split(turns=4, leans=[0], sectors={"training": [[-1, 1], [60, 100]]})
    >>> [(split, view.turn) for split, view in pairs]
    [('training', 0.0), ('training', 90.0), ('training', 180.0), ('training', 270.0)]
    """
    pairs = [(split, given if isinstance(given[0], Sequence) else [given]) for split, given in sectors.items()]
    single = [(split, sector) for split, sectors_of in pairs for sector in sectors_of]
    found = []
    for view in view_grid(turns=turns, leans=leans):
        split = next((split for split, sector in single if split_of_turn(view.turn, {split: sector})), None)
        if split is not None:
            found.append((split, view))
    return found


def project_together(
    solids: Sequence[torch.Tensor], views: Iterable[View], *, voxel: float
) -> Iterator[tuple[np.ndarray, ...]]:
    """Line integrals of several volumes by the same rays, without cutting air; equal leans in a row share work.

    Args:
        solids: (Z, Y, X) each, float32, on cubes of ``voxel`` mm; +z head, +y back, +x left.
        views: directions.
        voxel: edge of a cube and of a pixel in mm.

    Yields:
        per view one float32 (Z, max(Y, X)) for every volume, as :func:`.drr.project` gives it.
    """
    lean, leant = None, list(solids)
    for view in views:
        if view.lean != lean:
            lean, leant = view.lean, [_square(_lean(solid, view.lean)) for solid in solids]
        yield tuple(_project_filled(solid, view.turn, voxel).numpy() for solid in leant)


def _project_filled(leant: torch.Tensor, turn: float, voxel: float) -> torch.Tensor:
    """As :func:`.drr._project_leant`, without work on empty slices: an organ fills few of them."""
    filled = torch.nonzero(leant.flatten(1).any(dim=1)).flatten().tolist()
    depth, _, width = leant.shape
    line = leant.new_zeros(depth, width)
    if filled:
        first, end = filled[0], filled[-1] + 1
        line[depth - end : depth - first] = _project_leant(leant[first:end], turn, voxel, SOURCE_DISTANCE)
    return line


def split_of_turn(turn: float, sectors: Mapping[str, Sequence[float]]) -> str | None:
    """The split whose sector holds a turn, or None between sectors.

    A view and the one from the opposite side are nearly mirror images, so that 180 degrees are a full circle.

    >>> sectors = {"testing": [-10, 10], "training": [40, 140]}
    >>> [split_of_turn(turn, sectors) for turn in (0, 175, 190, 20, 260)]
    ['testing', 'testing', 'testing', None, 'training']
    """
    return next((split for split, (first, last) in sectors.items() if (turn - first) % 180 <= last - first), None)
