"""Vestibular-Schwannoma-SEG: the DICOM tree of The Cancer Imaging Archive, or its conversion to NIfTI.

DICOM: image series and structure sets are paired by the series that the structure set refers to, whatever the folders
are called. The tumor's contours become a mask on the grid of that series.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medcoss_components.data.adapters.beside import odd_files
from medcoss_components.data.adapters.checked_settings import text_list, whole_number
from medcoss_components.data.adapters.converting import FileJob, made_name, make_files
from medcoss_components.data.adapters.dicom_headers import Header, read_header
from medcoss_components.data.adapters.findings import (
    DatasetSource,
    Findings,
    Found,
    LeftOut,
    bare_name,
    header_size,
    reason,
)
from medcoss_components.data.adapters.made_volumes import make_series_folder, save_nifti
from medcoss_components.data.readers_common import naming_file
from medcoss_components.data.readers_dicom import is_dicom
from medcoss_components.data.readers_series import dicom_stack
from medcoss_components.data.readers_volume import NIFTI_SUFFIXES
from medcoss_components.data.rtstruct import Structure, StructureSet, fill_contours, read_structure_set
from medcoss_components.errors import InputError
from medcoss_components.files import sha256_json
from medcoss_components.progress import progress

SEQUENCES = ("t1", "t2")
CONTOURS = "contours.json"
MASK_VERSION = 1
"""Raise it when the masks that :func:`make_mask` makes change."""
_NUMBER = re.compile(r"VS-SEG-0*(\d+)|vs_gk_(\d+)", re.IGNORECASE)
_WELL_KNOWN_MODALITIES = ("RTPLAN", "RTDOSE")


def find(source: DatasetSource) -> Findings:
    """Volumes of one sequence with the mask of the tumor.

    Settings: ``sequence`` "t1" (contrast-enhanced) or "t2"; ``structures``: names of the tumor; ``other_structures``:
    names that are never the tumor; ``first_validation`` and ``first_testing``: numbers of patients at which the
    publisher's splits begin.
    """
    sequence = source.settings["sequence"]
    if sequence not in SEQUENCES:
        raise InputError(f"sequence: must be one of {', '.join(SEQUENCES)}, got {sequence!r}.")
    for name in ("structures", "other_structures"):
        text_list(source.settings, name)
    files = source.files()
    converted = [file for file in files if file.name == f"vs_gk_{sequence}_ref{sequence.upper()}.nii.gz"]
    return _find_nifti(source, files, converted) if converted else _find_dicom(source, files)


def split_of(text: str, settings: Mapping[str, Any]) -> str:
    """The publisher's split, from the patient's number in a path or identifier; "" where there is no number.

    >>> numbers = {"first_validation": 182, "first_testing": 202}
    >>> [split_of(text, numbers) for text in ("VS-SEG-005/a", "vs_gk_182_t1", "VS-SEG-250", "case")]
    ['training', 'validation', 'testing', '']
    """
    match = _NUMBER.search(text)
    if match is None:
        return ""
    number = int(match.group(1) or match.group(2))
    if number < whole_number(settings, "first_validation"):
        return "training"
    return "validation" if number < whole_number(settings, "first_testing") else "testing"


def _find_nifti(source: DatasetSource, files: Sequence[Path], images: Sequence[Path]) -> Findings:
    found, left, used = list[Found](), list[LeftOut](), set[Path](images)
    sequence = source.settings["sequence"]
    for image in progress(images, description="look at volumes", unit="file"):
        relative = image.relative_to(source.root).as_posix()
        mask = image.with_name(f"vs_gk_seg_ref{sequence.upper()}.nii.gz")
        if not mask.is_file():
            left.append(LeftOut(relative, "no mask beside it"))
            continue
        used.add(mask)
        try:
            size, mask_size = header_size(image), header_size(mask)
        except InputError as error:
            left.append(LeftOut(relative, reason(error, image)))
            continue
        if size != mask_size:
            left.append(LeftOut(relative, f"its mask has {mask_size} voxels, the image {size}"))
            continue
        found.append(
            Found(
                name=relative.removesuffix(".nii.gz"),
                path=image,
                patient=_patient_of(relative, str(Path(relative).parent)),
                label=mask.absolute(),
                split=split_of(relative, source.settings),
                size=size,
                files=(image,),
            )
        )
    others = [file for file in files if file not in used]
    volumes = [file for file in others if file.name.lower().endswith(NIFTI_SUFFIXES)]
    why = "no image or mask of the sequence that is set"
    left += [LeftOut(file.relative_to(source.root).as_posix(), why) for file in volumes]
    return found, [*left, *odd_files(set(others) - set(volumes), source.root, "no NIfTI file")]


def _patient_of(text: str, otherwise: str) -> str:
    """The patient's number in a path or identifier, else the other text.

    >>> _patient_of("vs_gk_7_t1/a.nii.gz", ""), _patient_of("VS-SEG-007/b/c.dcm", ""), _patient_of("a/d.nii.gz", "a")
    ('7', '7', 'a')
    """
    match = _NUMBER.search(text)
    return (match.group(1) or match.group(2)) if match else otherwise


class _Tree:
    """A DICOM tree while it is sorted out: series of images, structure sets, and what was left out so far."""

    def __init__(self, source: DatasetSource, files: Sequence[Path]) -> None:
        self.source = source
        self.left: list[LeftOut] = []
        self.series: dict[tuple[str, str], dict[str, Header]] = defaultdict(dict)
        self.sets: dict[str, dict[str, tuple[Path, StructureSet]]] = defaultdict(dict)
        self.in_folder: dict[Path, int] = defaultdict(int)
        self.contours: dict[str, list[Path]] = defaultdict(list)
        self.others: list[Path] = []
        for path in progress(files, description="read headers", unit="file"):
            self._read(path)

    def leave(self, path: Path, why: str) -> None:
        self.left.append(LeftOut(path.relative_to(self.source.root).as_posix(), why))

    def _read(self, path: Path) -> None:
        if path.name == CONTOURS:
            self.contours[path.parent.name.lower()].append(path)
            return
        try:
            with naming_file(path, show_detail=False):
                if not is_dicom(path):
                    self.others.append(path)
                    return
            self.in_folder[path.parent] += 1
            header = read_header(path, needs_image=False)
            if header.modality == "RTSTRUCT":
                self._add_set(path)
            elif header.modality == "MR":
                self._add_image(header)
            elif header.modality not in _WELL_KNOWN_MODALITIES:
                self.leave(path, "DICOM of another kind than MR and RTSTRUCT")
        except InputError as error:
            self.leave(path, reason(error, path))

    def _add_set(self, path: Path) -> None:
        structures = read_structure_set(path)
        for series in set(structures.series) or {""}:
            if self.sets[series].setdefault(structures.instance, (path, structures))[0] != path:
                self.leave(path, "a copy of another structure set")

    def _add_image(self, header: Header) -> None:
        members = self.series[header.patient, header.series]
        if header.instance in members:
            self.leave(header.path, "a copy of another file of its series")
        else:
            members[header.instance] = header

    def _read_contours(self, header: Header) -> list[tuple[Path, StructureSet]]:
        """The separately published contours of a series' patient and sequence, where there is no structure set."""
        number = _patient_of(f"{header.path.parent.relative_to(self.source.root)} {header.patient}", "")
        paths = self.contours.get(f"vs_gk_{number}_{self.source.settings['sequence']}", [])
        return [(path, read_contours(path)) for path in paths]

    def case(self, key: tuple[str, str]) -> _Case | str:
        """A series with its structure, or why it has none."""
        headers = list(self.series[key].values())
        first = headers[0]
        if not is_sequence(first.description.lower(), self.source.settings["sequence"]):
            return "a series of another sequence than the one that is set"
        sets = list(self.sets.get(first.series, {}).values()) or self._read_contours(first)
        if len(sets) != 1:
            return f"{len(sets) or 'no'} structure sets refer to the series"
        path, structures = sets[0]
        chosen = choose_structure(structures.structures, self.source.settings)
        if isinstance(chosen, str):
            return chosen
        folders = {header.path.parent for header in headers}
        own = len(folders) == 1 and self.in_folder[first.path.parent] == len(headers)
        return _Case(headers=tuple(headers), structures=path, name=chosen.name, has_folder=own)


@dataclass(frozen=True, kw_only=True)
class _Case:
    """A series and the structure to make a mask of; ``has_folder``: no other DICOM file lies in its folder."""

    headers: tuple[Header, ...]
    structures: Path
    name: str = field(repr=False)
    has_folder: bool

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(header.path for header in self.headers)


def is_sequence(description: str, sequence: str) -> bool:
    """Whether a series' description, in lower case, names the sequence.

    >>> is_sequence("t1_mpr_tra_gk_v4", "t1"), is_sequence("t2_ci3d_tra", "t1"), is_sequence("ax t1 gd", "t1")
    (True, False, True)
    """
    return re.search(rf"(?<![a-z0-9]){sequence}(?![0-9])", description) is not None


def choose_structure(structures: Sequence[Structure], settings: Mapping[str, Any]) -> Structure | str:
    """The tumor: the only structure with one of its names, else the only one that is none of the others; or why not.

    Case, and all but letters and digits, do not count in names.
    """
    drawn = [structure for structure in structures if structure.contours]
    tumor, others = (set(map(_plain, text_list(settings, key))) for key in ("structures", "other_structures"))
    named = [structure for structure in drawn if _plain(structure.name) in tumor]
    candidates = named or [structure for structure in drawn if _plain(structure.name) not in others]
    if len(candidates) == 1:
        return candidates[0]
    if named:
        return f"{len(named)} of its structures have a name of the tumor, one is expected"
    return f"none of its {len(drawn)} drawn structures is the tumor, or {len(candidates)} may be (setting: structures)"


def _plain(name: Any) -> str:
    return re.sub(r"[^a-z0-9]", "", str(name).lower())


def read_contours(path: Path) -> StructureSet:
    """Read the contours that the publisher offers as JSON: [{structure_name, LPS_contour_points: [[[x, y, z], ...]]}].

    Raises:
        InputError: another content.
    """
    with naming_file(path, show_detail=False):
        structures = [
            Structure(
                str(entry["structure_name"]), tuple(np.array(line, float) for line in entry["LPS_contour_points"])
            )
            for entry in json.loads(path.read_text(encoding="utf-8"))
        ]
    if any(line.ndim != 2 or line.shape[1] != 3 for structure in structures for line in structure.contours):
        raise InputError(f"{path}: contours must be lists of points x, y, z. Restore the file.")
    return StructureSet((), tuple(structures))


def make_mask(partial: Path, *, files: Sequence[Path], structures: Path, name: str) -> None:
    """Write the mask of a structure on the grid of a series.

    Raises:
        InputError: files that are no volume (a missing slice, for example), or contours that do not fit them.
    """
    stack = dicom_stack(files, path=files[0].parent)
    read = read_contours if structures.name == CONTOURS else read_structure_set
    contours = read(structures).structure(name).contours
    save_nifti(partial, fill_contours(contours, affine=stack.affine, shape=stack.shape), stack.affine)


def _find_dicom(source: DatasetSource, files: Sequence[Path]) -> Findings:
    tree = _Tree(source, files)
    cases = list[_Case]()
    for key in tree.series:
        try:
            case = tree.case(key)
        except InputError as error:  # contours that cannot be read
            case = str(error).removeprefix(f"{source.root}/")
        if isinstance(case, str):
            _leave_series(tree, list(tree.series[key].values()), case)
        else:
            cases.append(case)
    if not tree.series:
        raise InputError(
            f"{source.root}: holds neither MR series in DICOM nor vs_gk_<sequence>_ref<SEQUENCE>.nii.gz of the set "
            "sequence. The layout that is expected stands on the data set's page in docs/data."
        )
    _leave_sets(tree)
    jobs = [_jobs(source, case) for case in cases]
    failed = make_files([job for pair in jobs for job in pair if job], workers=source.workers, description="make masks")
    found = []
    for case, (mask, folder) in zip(cases, jobs, strict=True):
        why = failed.get(mask.target) or (failed.get(folder.target) if folder else None)
        if why:
            _leave_series(tree, case.headers, why.removeprefix(f"{case.files[0].parent}: "))
        else:
            found.append(_found(source, case, mask.target, folder.target if folder else case.files[0].parent))
    return found, [*tree.left, *odd_files(tree.others, source.root, "no DICOM file")]


def _leave_sets(tree: _Tree) -> None:
    """List the structure sets of series that are not there, as after a download in part."""
    for name in sorted(set(tree.sets) - {series for _, series in tree.series}):
        for path, _ in tree.sets[name].values():
            tree.leave(path, "a structure set of a series that is not there")


def _leave_series(tree: _Tree, headers: Sequence[Header], why: str) -> None:
    where = headers[0].path.parent.relative_to(tree.source.root).as_posix()
    tree.left.append(LeftOut(f"{where} (series of {len(headers)} files)", why))


def _jobs(source: DatasetSource, case: _Case) -> tuple[FileJob, FileJob | None]:
    """What to make for a case: the mask, and a folder of links where the series has none for itself."""
    files, name = sorted(case.files), case.headers[0].series
    settings = [MASK_VERSION, case.name]
    target = made_name(f"mask {name}", [*files, case.structures], settings=settings, suffix=".nii.gz")
    arguments = {"files": files, "structures": case.structures, "name": case.name}
    mask = FileJob(target=source.files_dir / "masks" / target, function=make_mask, arguments=arguments)
    if case.has_folder:
        return mask, None
    links = source.files_dir / "series" / made_name(f"series {name}", files)
    return mask, FileJob(target=links, function=make_series_folder, arguments={"files": files}, folder=True)


def _found(source: DatasetSource, case: _Case, mask: Path, folder: Path) -> Found:
    first = case.headers[0]
    parent = first.path.parent.relative_to(source.root).as_posix()
    relative = parent if case.has_folder else bare_name(min(case.files).relative_to(source.root).as_posix())
    place = f"{relative} {first.patient}"
    return Found(
        name=relative,
        path=folder,
        patient=_patient_of(place, first.patient or parent),
        label=mask.absolute(),
        split=split_of(place, source.settings),
        size=(*reversed(first.size), len(case.headers)),
        files=case.files,
        content=sha256_json(sorted(header.instance for header in case.headers)),
    )
