"""What a prediction run writes: the record that makes it resumable, its tables, and masks in source geometry."""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from medcoss_components.data.readers_source import SourceGrid
from medcoss_components.data.regions import resolve_regions
from medcoss_components.engines.records import changed_settings
from medcoss_components.errors import InputError
from medcoss_components.files import atomic_path, read_json, write_json, write_text
from medcoss_components.inference.discovery import FINISHED

SETTINGS = "inference.json"


class CasesFailedError(InputError):
    """Some cases could not be predicted; the others are written."""


class RunRecord:
    """Finished cases of an output folder, one JSON line each, so that a second run goes on where the first stopped.

    Args:
        folder: of all outputs.
        settings: what decides the outputs, as JSON values.

    Raises:
        InputError: when the folder was begun with other settings; the message lists them.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.rows: dict[str, dict[str, Any]] = {}
        settings = json.loads(json.dumps(settings, default=str))
        if (self.folder / SETTINGS).is_file():
            self._compare(read_json(self.folder / SETTINGS), settings)
            self._read_rows()
        else:
            (self.folder / FINISHED).unlink(missing_ok=True)
            write_json(self.folder / SETTINGS, settings)

    def _compare(self, recorded: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        if changes := changed_settings(recorded, settings):
            raise InputError(
                f"{self.folder / SETTINGS}: this folder was begun with other settings ({'; '.join(changes)}). "
                "Give another output_dir, or the same settings to go on."
            )

    def _read_rows(self) -> None:
        """Take complete lines over and drop one that an interrupted run left unfinished."""
        path = self.folder / FINISHED
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        for line in lines:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                break
            self.rows[row["id"]] = row
        write_text(path, "".join(_line(row) for row in self.rows.values()))

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Record finished cases; they are on disk when this returns."""
        new = {row["id"]: row for row in rows}
        with open(self.folder / FINISHED, "a", encoding="utf-8") as stream:
            stream.writelines(_line(row) for row in new.values())
            stream.flush()
            os.fsync(stream.fileno())
        self.rows.update(new)


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def write_table(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV with the columns of the first one, atomically; without rows remove an earlier file."""
    path = Path(path)
    if not rows:
        path.unlink(missing_ok=True)
        return
    with atomic_path(path) as partial, open(partial, "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@dataclass(frozen=True)
class LabelMap:
    """How regions share one mask file.

    Args:
        values: region -> its value in the file; empty when every region gets a file of its own.
        order: positions of the regions in the order of painting; later ones cover earlier ones.
    """

    values: dict[str, int]
    order: tuple[int, ...]


def label_map(regions: Mapping[str, Any]) -> LabelMap:
    """One file for regions of which any two are nested or have no mask value in common; else a file per region.

    In the one file a region has the lowest of its mask values that no region inside it has. Larger regions (by number
    of mask values) are painted first, regions of equal size in their order: of a voxel that several regions claim, the
    inner or later one is told.

    >>> label_map({"tumour": [2], "liver": [1, 2]})
    LabelMap(values={'tumour': 2, 'liver': 1}, order=(1, 0))
    >>> label_map({"left": [1, 2], "upper": [2, 3]}).values
    {}
    """
    sets = {name: frozenset(values) for name, values in resolve_regions(regions).items()}
    names = list(sets)
    for first in names:
        for second in names[names.index(first) + 1 :]:
            one, other = sets[first], sets[second]
            if one == other or (one & other and not one < other and not other < one):
                return LabelMap({}, tuple(range(len(names))))
    order = sorted(range(len(names)), key=lambda number: -len(sets[names[number]]))
    values = {name: _own_value(name, sets) for name in names}
    return LabelMap(values if all(values.values()) else {}, tuple(order))


def _own_value(name: str, sets: Mapping[str, frozenset[int]]) -> int:
    """The lowest value that belongs to no inner region; 0 where inner regions take all."""
    inner: set[int] = set().union(*(values for values in sets.values() if values < sets[name]))
    return min(sets[name] - inner, default=0)


def paint(masks: np.ndarray, plan: LabelMap) -> np.ndarray:
    """Label map (*S) uint8 of masks (K, *S) bool."""
    values = list(plan.values.values())
    labels: np.ndarray = np.zeros(masks.shape[1:], np.uint8)
    for number in plan.order:
        labels[masks[number]] = values[number]
    return labels


def told_otherwise(masks: np.ndarray, regions: Mapping[str, Any]) -> dict[str, int]:
    """Voxels of each region that a label map tells differently from the region's own mask; no entry where none.

    A voxel has one value there, but a network may find an inner region outside of its outer one, or two disjoint
    regions at one place.

    Args:
        masks: (K, *S) bool.
        regions: K names.
    """
    plan = label_map(regions)
    if not plan.values:
        return {}
    labels, table = paint(masks, plan), resolve_regions(regions)
    members = {name: np.isin(np.arange(256), values) for name, values in table.items()}
    counts = {
        name: int(np.count_nonzero(members[name][labels] != mask)) for name, mask in zip(table, masks, strict=True)
    }
    return {name: count for name, count in counts.items() if count}


def mask_files(masks: np.ndarray, regions: Mapping[str, Any], stem: str) -> Iterable[tuple[str, np.ndarray]]:
    """File stems with the uint8 (*S) array that each holds: one label map, or a mask of 0 and 1 per region."""
    plan = label_map(regions)
    if plan.values:
        yield stem, paint(masks, plan)
        return
    for name, mask in zip(regions, masks, strict=True):
        yield f"{stem}_{safe_name(name)}", mask.astype(np.uint8)


def safe_name(name: str) -> str:
    """A region's name as part of a file name."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or "region"


def write_nifti_mask(path: str | Path, mask: np.ndarray, grid: SourceGrid) -> None:
    """Write a mask with the shape and the affine of its source, compressed; equal input gives equal bytes.

    Args:
        path: ends in ``.nii.gz``.
        mask: (Z, Y, X) uint8 in canonical orientation.
        grid: of the source.
    """
    import nibabel

    image = nibabel.Nifti1Image(grid.from_canonical(mask), grid.affine_ras)
    image.header.set_xyzt_units("mm")
    qform, sform = grid.codes
    if qform or sform:
        image.set_qform(grid.affine_ras if qform else None, qform)
        image.set_sform(grid.affine_ras if sform else None, sform)
    with atomic_path(path) as partial, open(partial, "wb") as stream, _packed(stream) as packed:
        image.to_stream(packed)


def _packed(stream: IO[bytes]) -> gzip.GzipFile:
    return gzip.GzipFile(filename="", mode="wb", fileobj=stream, compresslevel=1, mtime=0)


def write_png_mask(path: str | Path, mask: np.ndarray) -> None:
    """Write a (H, W) uint8 mask as PNG; pixel values are the labels, so most viewers show it nearly black."""
    from PIL import Image

    with atomic_path(path) as partial:
        Image.fromarray(mask).save(partial, format="PNG")
