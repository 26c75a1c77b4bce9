"""What an index of DICOM files reads of each: a few elements of the header, no pixels, and what they say of a series.

Identifiers of patients are kept in memory until they are hashed; nothing that is printed or written shows them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medcoss_components.data.readers_common import naming_file
from medcoss_components.data.readers_dicom import LOCALIZERS, SECONDARY_CAPTURE, quieten
from medcoss_components.data.readers_series import SPACING_TOLERANCE
from medcoss_components.errors import InputError

MINIMUM_SLICES = 8
_IDENTIFYING = ("PatientName", "OtherPatientIDs", "AccessionNumber", "PatientBirthDate", "StudyDate", "SeriesDate")
_TAGS = (
    *_IDENTIFYING,
    "ImageType",
    "SOPClassUID",
    "SOPInstanceUID",
    "Modality",
    "PatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SeriesDescription",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)
_AXIAL = 0.8
"""Smallest share of the body's long axis in a slice's normal that counts as axial; likewise for the others."""
_PLANES = ("sagittal", "coronal", "axial")
_NO_NAMES = {
    "patient",
    "anonymous",
    "anonymized",
    "anonymised",
    "anon",
    "unknown",
    "phantom",
    "test",
    "case",
    "subject",
}
_DATE = re.compile(r"(\d{4})(\d{2})(\d{2})")


@dataclass(frozen=True, kw_only=True)
class Header:
    """What one file says of itself.

    Args:
        path: of the file.
        modality: DICOM code.
        patient, study, series, instance: identifiers.
        description: of the series, free text.
        size: rows, columns; 0, 0 of a file without an image.
        frames: number of frames.
        localizer: a scout image.
        secondary: a secondary capture, such as a screen.
        position: (3,) mm of the first pixel, or empty; of several frames the first one's.
        directions: (6,) of row and column, or empty.
        places: (frames,) mm along the slices' normal, ascending, of a file with several frames; empty where unknown.
        turned: several frames of which some lie in another direction.
        identifiers: what else points at the patient: parts of the name, number of the examination, dates.
    """

    path: Path
    modality: str
    patient: str = field(repr=False)
    study: str = field(repr=False)
    series: str = field(repr=False)
    instance: str = field(repr=False)
    description: str = field(default="", repr=False)
    size: tuple[int, int]
    frames: int
    localizer: bool
    secondary: bool = False
    position: tuple[float, ...] = ()
    directions: tuple[float, ...] = ()
    places: tuple[float, ...] = ()
    turned: bool = False
    identifiers: frozenset[str] = field(default=frozenset(), repr=False)

    @property
    def orientation(self) -> str:
        """How the slices lie: axial, coronal, sagittal, oblique, or unknown."""
        if not self.directions:
            return "unknown"
        along = np.abs(normal(self.directions))
        return _PLANES[int(along.argmax())] if along.max() >= _AXIAL else "oblique"

    @property
    def axial(self) -> bool:
        """Whether the slices lie across the body."""
        return self.orientation == "axial"


Group = tuple[Header, ...]
"""One file, or the files of a series in the order of their place."""


def slices_of(group: Group) -> int:
    """Number of slices of a series, or of frames of a single file."""
    return group[0].frames if len(group) == 1 else len(group)


def read_header(path: Path, *, needs_image: bool = True) -> Header:
    """Read what an index needs; pixels are not touched.

    Args:
        path: of the file.
        needs_image: False reads files without an image too, such as structure sets.

    Raises:
        InputError: a damaged file, or one without an image where it needs one.
    """
    import pydicom

    quieten()
    with naming_file(path, show_detail=False):
        dataset = pydicom.dcmread(path, force=True, specific_tags=list(_TAGS), stop_before_pixels=True)
        if needs_image and ("Rows" not in dataset or "Columns" not in dataset):
            raise InputError(f"{path}: DICOM without an image")
        image_type = {str(value).upper() for value in dataset.get("ImageType") or ()}
        return Header(
            path=path,
            modality=_text(dataset, "Modality"),
            patient=_text(dataset, "PatientID"),
            study=_text(dataset, "StudyInstanceUID"),
            series=_text(dataset, "SeriesInstanceUID") or f"folder {path.parent}",
            instance=_text(dataset, "SOPInstanceUID") or str(path),
            description=_text(dataset, "SeriesDescription"),
            size=(int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)),
            frames=int(dataset.get("NumberOfFrames") or 1),
            localizer=bool(image_type & LOCALIZERS),
            secondary=_text(dataset, "SOPClassUID").startswith(SECONDARY_CAPTURE),
            identifiers=_identifiers(dataset),
            **_geometry(dataset),
        )


def _text(dataset: Any, name: str) -> str:
    return str(dataset.get(name) or "").strip()


def _numbers(dataset: Any, name: str, count: int) -> tuple[float, ...]:
    values = dataset.get(name) if dataset is not None else None
    return tuple(map(float, values)) if values is not None and len(values) == count else ()


def normal(directions: Sequence[float]) -> np.ndarray:
    """(3,) normal of the plane that row and column directions (6,) span."""
    return np.cross(directions[:3], directions[3:])


def _geometry(dataset: Any) -> dict[str, Any]:
    """Place and direction: from the file, or from the groups of its frames (enhanced CT and MR)."""
    position = _numbers(dataset, "ImagePositionPatient", 3)
    directions = _numbers(dataset, "ImageOrientationPatient", 6)
    groups = dataset.get("PerFrameFunctionalGroupsSequence")
    if not groups:
        return {"position": position, "directions": directions}
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [None])[0]
    positions = [_of_frame((group, shared), "PlanePositionSequence", "ImagePositionPatient", 3) for group in groups]
    every = [_of_frame((group, shared), "PlaneOrientationSequence", "ImageOrientationPatient", 6) for group in groups]
    directions = every[0] or directions
    known = bool(directions) and all(positions) and all(every)
    along = normal(directions) if directions else np.zeros(3)
    return {
        "position": positions[0],
        "directions": directions,
        "places": tuple(sorted(float(along @ place) for place in positions)) if known else (),
        "turned": known and not np.allclose(every, directions, atol=1e-3),
    }


def _of_frame(sources: Sequence[Any], sequence: str, name: str, count: int) -> tuple[float, ...]:
    """Numbers of a frame, from its own group or from the one that all frames share."""
    nested = (source.get(sequence) for source in sources if source is not None)
    return next((values for items in nested if items and (values := _numbers(items[0], name, count))), ())


def _identifiers(dataset: Any) -> frozenset[str]:
    """What points at the patient beside the number: name as a whole and in parts, examination, dates in two forms."""
    values = [_text(dataset, name) for name in _IDENTIFYING]
    values += re.split(r"[\^=\s,]+", values[0])
    values += ["-".join(match.groups()) for value in values[3:6] if (match := _DATE.fullmatch(value))]
    values = [value.strip("^= ") for value in values]
    return frozenset(value for value in values if len(value) > 1 and value.lower() not in _NO_NAMES)


def place(header: Header) -> tuple[float, str]:
    """Where a file lies along its normal in mm, and its name for those without a place."""
    along = float(normal(header.directions) @ header.position) if header.position and header.directions else 0.0
    return along, header.path.name


def geometry_problem(group: Group, *, minimum: int = MINIMUM_SLICES) -> str:
    """Why the files of a series, or the frames of a file, are no volume, judged by their headers, or ""."""
    slices = slices_of(group)
    if slices < minimum:
        return f"{slices} slices, the minimum is {minimum}"
    if len(group) == 1:
        return _frames_problem(group[0]) if slices > 1 else ""
    first = group[0]
    if len({header.instance for header in group}) < len(group):
        return "some of its files stand there twice"
    if len({header.size for header in group}) > 1:
        return "its slices differ in size"
    if not all(header.position and header.directions for header in group):
        return "slices without position or orientation"
    if not np.allclose([header.directions for header in group], first.directions, atol=1e-3):
        return "its slices differ in orientation"
    return _spacing_problem(np.diff([place(header)[0] for header in group]))


def _frames_problem(header: Header) -> str:
    if header.turned:
        return "its frames differ in orientation"
    if len(header.places) != header.frames:
        return "frames without position or orientation"
    return _spacing_problem(np.diff(header.places))


def _spacing_problem(steps: np.ndarray) -> str:
    usual = float(np.median(steps))
    if steps.min() < 1e-3:
        return f"{int((steps < 1e-3).sum())} slices lie at the place of another one"
    uneven = int((np.abs(steps - usual) > SPACING_TOLERANCE * usual).sum())
    return f"{uneven} gaps between slices differ from the usual {usual:.3g} mm; slices are missing" if uneven else ""
