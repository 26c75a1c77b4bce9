"""Masks out of the contours of DICOM structure sets (RTSTRUCT), on the grid of the images that they were drawn on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medcoss_components.data.readers_common import naming_file, require_file
from medcoss_components.data.readers_dicom import quieten
from medcoss_components.errors import InputError

CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
"""Geometric types that enclose an area; points and open lines do not."""
_TAGS = (
    "SOPInstanceUID",
    "Modality",
    "ReferencedFrameOfReferenceSequence",
    "StructureSetROISequence",
    "ROIContourSequence",
)
_TILT = 0.5
"""Largest distance of a contour's points along the slice axis, in slices."""
_DIGITS = 4
"""Decimals of pixels that count: rounding of millimetres does not move points off pixel centres."""


@dataclass(frozen=True)
class Structure:
    """A structure: its name, and closed contours of (points, 3) LPS positions in mm."""

    name: str
    contours: tuple[np.ndarray, ...] = field(repr=False)


@dataclass(frozen=True)
class StructureSet:
    """What an RTSTRUCT file holds.

    Args:
        series: SeriesInstanceUID of the images that it refers to; usually one.
        structures: in the order of the file; those without a closed contour have none.
        instance: SOPInstanceUID of the file.
    """

    series: tuple[str, ...] = field(repr=False)
    structures: tuple[Structure, ...]
    instance: str = field(default="", repr=False)

    def structure(self, name: str) -> Structure:
        """The drawn structure of that name.

        Raises:
            InputError: none or several have it.
        """
        found = [structure for structure in self.structures if structure.name == name and structure.contours]
        if len(found) != 1:
            raise InputError(f"structure: {len(found)} structures of the set have the name asked for, expected 1.")
        return found[0]


def read_structure_set(path: str | Path) -> StructureSet:
    """Read an RTSTRUCT file.

    Raises:
        InputError: missing, damaged or other file; header values are not quoted.
    """
    import pydicom

    quieten()
    path = require_file(path)
    with naming_file(path, show_detail=False):
        dataset = pydicom.dcmread(path, force=True, specific_tags=list(_TAGS), stop_before_pixels=True)
        if dataset.get("Modality") != "RTSTRUCT":
            raise InputError(f"{path}: no RTSTRUCT file. Give a DICOM structure set.")
        contours = {int(roi.ReferencedROINumber): roi for roi in dataset.get("ROIContourSequence") or ()}
        structures = [
            Structure(str(roi.get("ROIName") or ""), tuple(_closed(contours.get(int(roi.ROINumber)))))
            for roi in dataset.get("StructureSetROISequence") or ()
        ]
        return StructureSet(tuple(_series(dataset)), tuple(structures), str(dataset.get("SOPInstanceUID") or ""))


def _closed(roi: Any) -> Iterator[np.ndarray]:
    for contour in (roi.get("ContourSequence") if roi is not None else None) or ():
        points = np.array(contour.ContourData or (), dtype=np.float64).reshape(-1, 3)
        if contour.get("ContourGeometricType") in CLOSED and len(points) >= 3:
            yield points


def _series(dataset: Any) -> list[str]:
    """SeriesInstanceUID of every series that a structure set refers to."""
    frames = dataset.get("ReferencedFrameOfReferenceSequence") or ()
    studies = [study for frame in frames for study in frame.get("RTReferencedStudySequence") or ()]
    series = [entry for study in studies for entry in study.get("RTReferencedSeriesSequence") or ()]
    return [str(entry.get("SeriesInstanceUID") or "") for entry in series]


def fill_contours(contours: Sequence[np.ndarray], *, affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Mask of the area inside closed contours, slice by slice; nothing is filled between slices.

    Contours of one slice count together by the even-odd rule: one inside another cuts a hole.

    Args:
        contours: (points, 3) LPS positions in mm, each in one slice.
        affine: (4, 4), index (column, row, slice, 1) -> LPS position in mm.
        shape: (columns, rows, slices).

    Returns:
        (columns, rows, slices) uint8, 1 where the centre of a voxel lies inside.

    Raises:
        InputError: a contour that crosses slices, or lies outside the slices; or no voxel lies inside.
    """
    to_index = np.linalg.inv(affine)
    by_slice: dict[int, list[np.ndarray]] = {}
    for points in contours:
        index = np.round(points @ to_index[:3, :3].T + to_index[:3, 3], _DIGITS)
        by_slice.setdefault(_slice_of(index[:, 2], shape[2]), []).append(index[:, :2])
    mask: np.ndarray = np.zeros(shape, np.uint8)
    for place, polygons in by_slice.items():
        mask[:, :, place] = fill_polygons(polygons, (shape[1], shape[0])).T
    if not mask.any():
        raise InputError(f"contours: no voxel centre lies inside the {len(contours)} contours.")
    return mask


def _slice_of(places: np.ndarray, count: int) -> int:
    """Index of the slice that a contour lies in, from its points' indices along the slice axis."""
    if float(np.ptp(places)) > _TILT:
        raise InputError(f"contours: a contour spans {float(np.ptp(places)):.2f} slices, it must lie in one.")
    place = round(float(places.mean()))
    if not 0 <= place < count:
        raise InputError(f"contours: a contour lies at slice {place}, outside of the {count} slices of the series.")
    return place


def fill_polygons(polygons: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Pixels whose centre lies inside polygons, by the even-odd rule over all of them.

    A centre on an edge at the left or the top of the area is inside, one at the right or the bottom is not, so that
    neighbouring areas never share a pixel.

    Args:
        polygons: (points, 2) of (x, y) in pixels, pixel centres at whole numbers; closed by themselves.
        shape: (height, width).

    Returns:
        (height, width) bool.

    >>> fill_polygons([np.array([[1, 0], [3, 0], [3, 2], [1, 2]])], (3, 4)).astype(int).tolist()
    [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    """
    height, width = shape
    ends: np.ndarray = np.zeros((height, width + 1), np.int64)
    for polygon in polygons:
        rows, places = _crossings(np.asarray(polygon, dtype=np.float64), height)
        np.add.at(ends, (rows, np.clip(np.ceil(places), 0, width).astype(np.int64)), 1)
    to_the_right = ends[:, ::-1].cumsum(axis=1)[:, ::-1]
    return to_the_right[:, 1:] % 2 == 1


def _crossings(polygon: np.ndarray, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the edges cross the lines through the pixel centres of each row: rows and x of all crossings."""
    start, end = polygon, np.roll(polygon, -1, axis=0)
    low, high = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
    lines = np.arange(max(0, int(np.ceil(low.min()))), min(height, int(np.ceil(high.max()))))
    edges, found = np.nonzero((low[:, None] <= lines) & (lines < high[:, None]))
    rows = lines[found]
    first, last = start[edges], end[edges]
    along = (rows - first[:, 1]) / (last[:, 1] - first[:, 1])
    return rows, first[:, 0] + along * (last[:, 0] - first[:, 0])
