"""DICOM volumes: a folder with one series, or a multi-frame file. Slices are placed by their header, never by name."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medcoss_components.data.readers_common import ARBITRARY, VolumeData, naming_file, rescale, to_canonical
from medcoss_components.data.readers_dicom import (
    UNITS,
    check_modality,
    darken_padding,
    decode,
    is_colour,
    is_dicom,
    read_dataset,
)
from medcoss_components.errors import InputError

SPACING_TOLERANCE = 0.05
"""Slices may lie off their place by this share of the spacing."""


@dataclass(frozen=True)
class _Slice:
    """Where one frame lies: file, frame number, position (3,) in mm, row and column directions (2, 3), spacing (2,)."""

    path: Path
    frame: int
    position: np.ndarray
    directions: np.ndarray
    spacing: tuple[float, float]
    slope: float
    intercept: float


def read_dicom_volume(path: Path, expected_modality: str | Collection[str] | None = None) -> VolumeData:
    """Read a series folder or a multi-frame file; see :func:`medcoss_components.data.readers.read_volume`."""
    with naming_file(path, show_detail=False):
        return _read_volume(series_files(path), path, expected_modality)


def read_dicom_files(
    files: Sequence[Path], *, path: Path, expected_modality: str | Collection[str] | None = None
) -> VolumeData:
    """Read the volume that some files of a folder make; ``path`` is what errors name, for example that folder."""
    with naming_file(path, show_detail=False):
        return _read_volume(list(files), path, expected_modality)


@dataclass(frozen=True)
class DicomStack:
    """The frames of one series by place, from headers alone.

    Args:
        frames: (file, frame number from 0) of every slice, in the order of the places.
        shape: (columns, rows, slices).
        affine: (4, 4) float64, index (column, row, slice, 1) -> LPS position in mm.
    """

    frames: tuple[tuple[Path, int], ...]
    shape: tuple[int, int, int]
    affine: np.ndarray


def dicom_stack(files: Sequence[Path], *, path: Path) -> DicomStack:
    """Where the frames of a series lie, in the order that the volume readers stack them.

    Raises:
        InputError: as the volume readers; ``path`` is named.
    """
    with naming_file(path, show_detail=False):
        headers = _headers(list(files), path)
        ordered, step = _placed(headers, path)
    first = headers[ordered[0].path]
    return DicomStack(
        frames=tuple((piece.path, piece.frame) for piece in ordered),
        shape=(int(first.Columns), int(first.Rows), len(ordered)),
        affine=_affine(ordered, step),
    )


def _read_volume(files: list[Path], path: Path, expected_modality: str | Collection[str] | None) -> VolumeData:
    headers = _headers(files, path, expected_modality)
    ordered, step = _placed(headers, path)
    volume = _stack(ordered)
    affine = _affine(ordered, step)
    codes = {str(header.get("Modality") or "") for header in headers.values()}
    unit = UNITS.get(codes.pop(), ARBITRARY) if len(codes) == 1 else ARBITRARY
    return to_canonical(volume.transpose(2, 1, 0), affine, unit, path, (*ordered[0].spacing[::-1], step))


def _headers(files: list[Path], path: Path, expected_modality: str | Collection[str] | None = None) -> dict[Path, Any]:
    headers = {file: read_dataset(file, stop_before_pixels=True) for file in files}
    for file, header in headers.items():
        check_modality(header, expected_modality, file)
    _check_one_series(headers, path)
    return headers


def _placed(headers: dict[Path, Any], path: Path) -> tuple[list[_Slice], float]:
    """Slices by place and their distance in mm."""
    slices = [piece for file, header in headers.items() for piece in _slices(file, header)]
    ordered = _sort_slices(slices, path)
    return ordered, _slice_step(ordered, headers[ordered[0].path])


def series_files(path: Path) -> list[Path]:
    """The DICOM files of a folder, or a file by itself.

    Raises:
        InputError: a folder without DICOM file.
    """
    if path.is_file():
        return [path]
    shown = (entry for entry in path.iterdir() if entry.name[0] != "." and entry.name.upper() != "DICOMDIR")
    files = sorted(filter(is_dicom, shown))
    if not files:
        raise InputError(f"{path}: the folder holds no DICOM file. Give the folder of one series.")
    return files


def _check_one_series(headers: dict[Path, Any], path: Path) -> None:
    series = {str(header.get("SeriesInstanceUID") or "") for header in headers.values()}
    if len(series) > 1:
        raise InputError(
            f"{path}: the folder holds {len(series)} DICOM series, a volume is one. Put each into a folder."
        )
    first = next(iter(headers))
    for file, header in headers.items():
        mine, its = (headers[first].Rows, headers[first].Columns), (header.Rows, header.Columns)
        if mine != its:
            raise InputError(
                f"{path}: slice sizes differ: {first.name} has {mine}, {file.name} has {its} (rows, columns)."
            )


def _slices(path: Path, header: Any) -> list[_Slice]:
    """Geometry of every frame of a file, from the file itself or from its functional groups."""
    if is_colour(header):
        raise InputError(f"{path}: colour pixels; a volume has one value per voxel.")
    shared = header.get("SharedFunctionalGroupsSequence") or [None]
    groups = header.get("PerFrameFunctionalGroupsSequence") or [None] * int(header.get("NumberOfFrames") or 1)
    with naming_file(path, show_detail=False):
        return [_slice(path, frame, (group, shared[0], header)) for frame, group in enumerate(groups)]


def _slice(path: Path, frame: int, sources: Sequence[Any]) -> _Slice:
    position = _attribute(sources, "PlanePositionSequence", "ImagePositionPatient")
    orientation = _attribute(sources, "PlaneOrientationSequence", "ImageOrientationPatient")
    spacing = _attribute(sources, "PixelMeasuresSequence", "PixelSpacing")
    for name, value, count in (
        ("ImagePositionPatient", position, 3),
        ("ImageOrientationPatient", orientation, 6),
        ("PixelSpacing", spacing, 2),
    ):
        if value is None or len(value) != count:
            raise InputError(f"{path}: {name} is missing or incomplete; a volume needs it on every slice.")
    slope = _attribute(sources, "PixelValueTransformationSequence", "RescaleSlope")
    intercept = _attribute(sources, "PixelValueTransformationSequence", "RescaleIntercept")
    return _Slice(
        path=path,
        frame=frame,
        position=np.array(position, dtype=np.float64),
        directions=np.array(orientation, dtype=np.float64).reshape(2, 3),
        spacing=(float(spacing[0]), float(spacing[1])),
        slope=float(1 if slope is None else slope),
        intercept=float(0 if intercept is None else intercept),
    )


def _attribute(sources: Sequence[Any], sequence: str, name: str) -> Any:
    """An attribute of a frame: from its group, the shared group or the file, whichever has it first."""
    for source in sources:
        if source is None:
            continue
        nested = source.get(sequence)
        value = nested[0].get(name) if nested else source.get(name)
        if value is not None:
            return value
    return None


def _sort_slices(slices: list[_Slice], path: Path) -> list[_Slice]:
    """Slices along the normal of the slice plane; all must share orientation and spacing."""
    first = slices[0]
    for piece in slices[1:]:
        if not np.allclose(piece.directions, first.directions, atol=1e-3):
            raise InputError(
                f"{path}: {_label(piece)} is oriented differently from {_label(first)}. Leave localizers out."
            )
        if not np.allclose(piece.spacing, first.spacing, rtol=1e-3):
            raise InputError(
                f"{path}: pixel spacing differs: {_label(first)} has {first.spacing}, "
                f"{_label(piece)} has {piece.spacing} mm."
            )
    normal = np.cross(*first.directions)
    ordered = sorted(slices, key=lambda piece: float(normal @ piece.position))
    _check_steps(ordered, np.array([normal @ piece.position for piece in ordered]), path)
    return ordered


def _check_steps(ordered: list[_Slice], places: np.ndarray, path: Path) -> None:
    """Raise on doubled, missing or unevenly spaced slices.

    Args:
        ordered: slices by place.
        places: (n,) position along the normal in mm, ascending.
    """
    steps = np.diff(places)
    for index in np.flatnonzero(steps < 1e-3):
        raise InputError(
            f"{path}: {_label(ordered[index])} and {_label(ordered[index + 1])} lie at the same place "
            f"({places[index]:.3f} mm): a copy, or several volumes in one series. Keep one slice per place."
        )
    usual = float(np.median(steps)) if len(steps) else 0.0
    for index in np.flatnonzero(np.abs(steps - usual) > SPACING_TOLERANCE * usual):
        ratio = steps[index] / usual
        whole = round(ratio) > 1 and abs(ratio - round(ratio)) < SPACING_TOLERANCE * round(ratio)
        finding = f"{round(ratio) - 1} missing slice(s)" if whole else "inconsistent spacing"
        raise InputError(
            f"{path}: {finding} between {_label(ordered[index])} and {_label(ordered[index + 1])}: "
            f"{steps[index]:.3f} mm apart at {places[index]:.3f} mm, the usual distance is {usual:.3f} mm."
        )


def _label(piece: _Slice) -> str:
    return f"{piece.path.name} frame {piece.frame + 1}" if piece.frame else piece.path.name


def _slice_step(ordered: list[_Slice], header: Any) -> float:
    """Distance of neighbouring slices in mm; of a single slice what its header says, else 1."""
    normal = np.cross(*ordered[0].directions)
    if len(ordered) > 1:
        return float(normal @ (ordered[-1].position - ordered[0].position)) / (len(ordered) - 1)
    return float(header.get("SpacingBetweenSlices") or header.get("SliceThickness") or 1.0)


def _affine(ordered: list[_Slice], step: float) -> np.ndarray:
    """(4, 4), index (column, row, slice) -> LPS position in mm (DICOM PS3.3 C.7.6.2.1.1). A tilted gantry is kept."""
    first, last = ordered[0], ordered[-1]
    along = (last.position - first.position) / (len(ordered) - 1) if len(ordered) > 1 else None
    affine = np.eye(4)
    affine[:3, 0] = first.directions[0] * first.spacing[1]
    affine[:3, 1] = first.directions[1] * first.spacing[0]
    affine[:3, 2] = np.cross(*first.directions) * step if along is None else along
    affine[:3, 3] = first.position
    return affine


def _stack(ordered: list[_Slice]) -> np.ndarray:
    """(slice, row, column) int16 or float32 after each slice's own slope and intercept."""
    frames: list[np.ndarray | None] = [None] * len(ordered)
    by_path: dict[Path, list[int]] = {}
    for place, piece in enumerate(ordered):
        by_path.setdefault(piece.path, []).append(place)
    for path, places in by_path.items():
        dataset = read_dataset(path)
        with naming_file(path):
            stored = decode(dataset)
            stored = stored if stored.ndim == 3 else stored[None]
            for place in places:
                piece = ordered[place]
                frame = stored[piece.frame]
                frames[place] = darken_padding(dataset, frame, rescale(frame, piece.slope, piece.intercept))
    return np.stack([frame for frame in frames if frame is not None])
