"""A tree of DICOM files, indexed by headers alone: one item per image (2D) or per series (3D).

Patient identifiers are kept in memory until they are hashed; nothing that is printed or written shows them.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from medcoss_components.data.adapters.findings import Findings, Found, LeftOut, bare_name, reason, walk
from medcoss_components.data.identifiers import hash_identifier, identifier_salt
from medcoss_components.data.modalities import Modality
from medcoss_components.data.readers_common import naming_file
from medcoss_components.data.readers_dicom import is_dicom
from medcoss_components.data.readers_series import SPACING_TOLERANCE
from medcoss_components.errors import InputError
from medcoss_components.files import sha256_json
from medcoss_components.progress import progress

RULES = ("largest", "all")
"""Which series of a study are taken: the axial one with most slices (any, where none is axial), or every one."""
MINIMUM_SLICES = 8
_TAGS = (
    "ImageType",
    "SOPInstanceUID",
    "Modality",
    "PatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "ImagePositionPatient",
    "ImageOrientationPatient",
)
_LOCALIZERS = {"LOCALIZER", "SCOUT", "TOPOGRAM"}
_AXIAL = 0.8
"""Smallest share of the body's long axis in a slice's normal that counts as axial."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What one file says of itself. ``position``: (3,) mm and ``directions``: (6,), or empty."""

    path: Path
    modality: str
    patient: str = field(repr=False)
    study: str = field(repr=False)
    series: str = field(repr=False)
    instance: str = field(repr=False)
    size: tuple[int, int]
    frames: int
    localizer: bool
    position: tuple[float, ...] = ()
    directions: tuple[float, ...] = ()

    @property
    def axial(self) -> bool:
        """Whether the slices lie across the body."""
        return bool(self.directions) and abs(_normal(self.directions)[2]) >= _AXIAL


def read_header(path: Path) -> Header:
    """Read what an index needs; pixels are not touched.

    Raises:
        InputError: a damaged file, or one without an image.
    """
    import pydicom

    with naming_file(path, show_detail=False):
        dataset = pydicom.dcmread(path, force=True, specific_tags=list(_TAGS), stop_before_pixels=True)
        if "Rows" not in dataset or "Columns" not in dataset:
            raise InputError(f"{path}: DICOM without an image")
        image_type = {str(value).upper() for value in dataset.get("ImageType") or ()}
        return Header(
            path=path,
            modality=_text(dataset, "Modality"),
            patient=_text(dataset, "PatientID"),
            study=_text(dataset, "StudyInstanceUID"),
            series=_text(dataset, "SeriesInstanceUID") or f"folder {path.parent}",
            instance=_text(dataset, "SOPInstanceUID") or str(path),
            size=(int(dataset.Rows), int(dataset.Columns)),
            frames=int(dataset.get("NumberOfFrames") or 1),
            localizer=bool(image_type & _LOCALIZERS),
            position=_numbers(dataset, "ImagePositionPatient", 3),
            directions=_numbers(dataset, "ImageOrientationPatient", 6),
        )


def _text(dataset: Any, name: str) -> str:
    return str(dataset.get(name) or "").strip()


def _numbers(dataset: Any, name: str, count: int) -> tuple[float, ...]:
    values = dataset.get(name)
    return tuple(map(float, values)) if values is not None and len(values) == count else ()


def _normal(directions: Sequence[float]) -> np.ndarray:
    return np.cross(directions[:3], directions[3:])


def find_dicom(
    root: Path,
    *,
    modality: Modality,
    series: str = RULES[0],
    minimum_slices: int = MINIMUM_SLICES,
    sort_into: Path | None = None,
    exclude: Collection[Path] = (),
) -> Findings:
    """Images (2D modality) or series (3D modality) of a DICOM tree. Without a PatientID the study is the patient.

    Args:
        root: the tree.
        modality: decides between images and series, and which DICOM modality codes are admitted.
        series: rule, one of :data:`RULES`.
        minimum_slices: a series with fewer is left out.
        sort_into: folder that receives one folder of links per series whose own folder holds other DICOM files too;
            None: such series are left out.
        exclude: folders that are none of it.

    Raises:
        InputError: no such folder, or an unknown rule.
    """
    if series not in RULES:
        raise InputError(f"series: must be one of {', '.join(RULES)}, got {series!r}.")
    tree = _Tree(root, modality, sort_into)
    tree.read((*exclude, *filter(None, (sort_into,))))
    tree.sift(tree.unfit)
    if modality.dimension == 2:
        return [tree.image(group[0]) for group in tree.groups], tree.left
    tree.gather_series()
    tree.sift(partial(geometry_problem, minimum=minimum_slices))
    if series == "largest":
        tree.sift(_outranked(tree.groups))
    tree.sift(tree.mixed_folder)
    return [tree.series(group) for group in tree.groups], tree.left


Group = tuple[Header, ...]
"""One file, or the files of a series in the order of their place."""


class _Tree:
    """What is left of a DICOM tree while it is sorted out: groups of files, and what was left out so far."""

    def __init__(self, root: Path, modality: Modality, sort_into: Path | None) -> None:
        self.root, self.modality, self.sort_into = root, modality, sort_into
        self.groups: list[Group] = []
        self.left: list[LeftOut] = []
        self.in_folder = Counter[Path]()

    def read(self, exclude: Collection[Path]) -> None:
        """Read the header of every file; each one is a group of its own first."""
        _quieten()
        for path in progress(walk(self.root, exclude), description="read headers", unit="file"):
            if path.name.upper() == "DICOMDIR":
                continue
            if not is_dicom(path):
                self._leave(path, "no DICOM file")
                continue
            self.in_folder[path.parent] += 1
            try:
                self.groups.append((read_header(path),))
            except InputError as error:
                self._leave(path, reason(error, path))

    def sift(self, problem: Callable[[Group], str]) -> None:
        """Leave out the groups that have a problem."""
        kept = []
        for group in self.groups:
            if why := problem(group):
                several = len(group) > 1
                self._leave(group[0].path.parent if several else group[0].path, why, len(group) if several else 0)
            else:
                kept.append(group)
        self.groups = kept

    def _leave(self, path: Path, why: str, files: int = 0) -> None:
        where = path.relative_to(self.root).as_posix()
        self.left.append(LeftOut(f"{where} (series of {files} files)" if files else where, why))

    def unfit(self, group: Group) -> str:
        """Why a single file is nothing for the modality, or ""."""
        header, codes = group[0], self.modality.dicom_modalities
        if codes and header.modality not in codes:
            return f"the DICOM modality is {header.modality or 'not given'!r}, expected {' or '.join(codes)}"
        if header.localizer:
            return "a localizer"
        if self.modality.dimension == 2 and header.frames > 1:
            return f"{header.frames} frames, an image has one"
        return ""

    def gather_series(self) -> None:
        """Put single-frame files of one series together; a multi-frame file stays alone."""
        by_series: dict[tuple[str, ...], list[Header]] = defaultdict(list)
        for (header,) in self.groups:
            alone = str(header.path) if header.frames > 1 else ""
            by_series[header.study, header.series, alone].append(header)
        self.groups = [tuple(sorted(files, key=_place)) for files in by_series.values()]

    def mixed_folder(self, group: Group) -> str:
        """Why a series cannot be named by its folder, or ""."""
        if len(group) == 1 or self.sort_into is not None or self._has_folder(group):
            return ""
        return "its folder holds other DICOM files too, or it lies in several; give --sort-into FOLDER"

    def _has_folder(self, group: Group) -> bool:
        folders = {header.path.parent for header in group}
        return len(folders) == 1 and self.in_folder[folders.pop()] == len(group)

    def image(self, header: Header) -> Found:
        """A single file as an item."""
        relative = header.path.relative_to(self.root).as_posix()
        return self._found((header,), relative, header.path)

    def series(self, group: Group) -> Found:
        """A series as an item: its file, its folder, or a folder of links."""
        if len(group) == 1:
            return self.image(group[0])
        if self._has_folder(group):
            folder = group[0].path.parent
            return self._found(group, folder.relative_to(self.root).as_posix(), folder)
        folder = _link(group, cast(Path, self.sort_into))  # without it, mixed_folder() has left the series out
        return self._found(group, folder.name, folder)

    def _found(self, group: Group, relative: str, path: Path) -> Found:
        first = group[0]
        depth = first.frames if len(group) == 1 else len(group)
        size = (first.size[1], first.size[0], depth)
        keys = {"file": relative, "series": first.series, "study": first.study, "patient": first.patient}
        return Found(
            name=bare_name(relative),
            keys=keys,
            path=path,
            patient=first.patient or first.study,
            size=size[: self.modality.dimension],
            files=tuple(header.path for header in group),
            content=sha256_json(sorted(header.instance for header in group)),
        )


def _place(header: Header) -> tuple[float, str]:
    along = float(_normal(header.directions) @ header.position) if header.position and header.directions else 0.0
    return along, header.path.name


def geometry_problem(group: Group, *, minimum: int = MINIMUM_SLICES) -> str:
    """Why the files of a series are no volume, judged by their headers, or ""."""
    first = group[0]
    slices = first.frames if len(group) == 1 else len(group)
    if slices < minimum:
        return f"{slices} slices, the minimum is {minimum}"
    if len(group) == 1:
        return ""
    if len({header.instance for header in group}) < len(group):
        return "some of its files stand there twice"
    if len({header.size for header in group}) > 1:
        return "its slices differ in size"
    if not all(header.position and header.directions for header in group):
        return "slices without position or orientation"
    if not np.allclose([header.directions for header in group], first.directions, atol=1e-3):
        return "its slices differ in orientation"
    return _spacing_problem(np.diff([_place(header)[0] for header in group]))


def _spacing_problem(steps: np.ndarray) -> str:
    usual = float(np.median(steps))
    if steps.min() < 1e-3:
        return f"{int((steps < 1e-3).sum())} slices lie at the place of another one"
    uneven = int((np.abs(steps - usual) > SPACING_TOLERANCE * usual).sum())
    return f"{uneven} gaps between slices differ from the usual {usual:.3g} mm; slices are missing" if uneven else ""


def _outranked(groups: Iterable[Group]) -> Callable[[Group], str]:
    """A rule that leaves one series of each study: axial before others, then most slices, then the smallest UID."""
    best: dict[tuple[str, str], tuple[tuple[Any, ...], Group]] = {}
    for group in groups:
        first = group[0]
        slices = first.frames if len(group) == 1 else len(group)
        rank = (not first.axial, -slices, first.series, str(first.path))
        key = (first.patient, first.study or first.series)
        best[key] = min(best.get(key, (rank, group)), (rank, group), key=lambda entry: entry[0])
    kept = {id(group) for _, group in best.values()}
    why = "another series of the study is axial with more slices, or comes first (--series all takes every one)"
    return lambda group: "" if id(group) in kept else why


def _link(group: Group, folder: Path) -> Path:
    """Hard links, else symbolic ones, to the files of a series in ``folder``/<hash of the series>."""
    target = folder / hash_identifier(group[0].series, identifier_salt())
    target.mkdir(parents=True, exist_ok=True)
    for old in target.glob("*.dcm"):
        old.unlink()
    for number, header in enumerate(group):
        link = target / f"{number:05d}.dcm"
        try:
            os.link(header.path, link)
        except OSError:
            link.symlink_to(header.path.absolute())
    return target


@cache
def _quieten() -> None:
    """No warnings that quote header values."""
    from pydicom import config

    config.settings.reading_validation_mode = config.IGNORE
