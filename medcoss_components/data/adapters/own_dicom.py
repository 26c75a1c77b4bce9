"""A tree of DICOM files, indexed by headers alone: one item per image (2D) or per series (3D).

Patient identifiers are kept in memory until they are hashed; nothing that is printed or written shows them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

from medcoss_components.data.adapters.dicom_headers import (
    MINIMUM_SLICES,
    Group,
    Header,
    geometry_problem,
    place,
    read_header,
    slices_of,
)
from medcoss_components.data.adapters.findings import Findings, Found, LeftOut, bare_name, reason, walk
from medcoss_components.data.adapters.own_data import LeftFile
from medcoss_components.data.identifiers import hash_identifier, identifier_salt
from medcoss_components.data.linking import link_series
from medcoss_components.data.modalities import Modality
from medcoss_components.data.readers_common import naming_file
from medcoss_components.data.readers_dicom import is_dicom
from medcoss_components.data.workers import available_cores, run_jobs
from medcoss_components.errors import InputError
from medcoss_components.files import sha256_json
from medcoss_components.progress import progress

__all__ = [
    "MINIMUM_SLICES",
    "RULES",
    "DicomIndex",
    "Study",
    "find_dicom",
    "geometry_problem",
    "index_dicom",
    "read_header",
    "series_note",
]

RULES = ("largest", "all")
"""Which series of a study are taken: the axial one with most slices (any, where none is axial), or every one."""

PARALLEL_ABOVE = 20_000
"""Number of files above which starting processes pays: one reads about 1,000 headers a second."""
_PORTION = 64
_NO_DICOM = "no DICOM file"


@dataclass(frozen=True)
class Study:
    """Which series of a study were taken.

    Args:
        patient, study: identifiers as the source has them, not hashed.
        series: number of series of the wanted modality, without localizers.
        chosen: number of slices and orientation of each series that was taken.
        rule: why these.
    """

    patient: str = field(repr=False)
    study: str = field(repr=False)
    series: int
    chosen: tuple[tuple[int, str], ...]
    rule: str

    def record(self) -> dict[str, Any]:
        """JSON values; identifiers are hashed with the site's salt."""
        salt = identifier_salt()
        chosen = [{"slices": slices, "orientation": orientation} for slices, orientation in self.chosen]
        hashes = {"study": hash_identifier(self.study, salt), "group": hash_identifier(self.patient, salt)}
        return {**hashes, "series": self.series, "chosen": chosen, "rule": self.rule}


@dataclass(frozen=True)
class DicomIndex:
    """What a tree holds.

    Args:
        found: items.
        left: what was left out.
        studies: which series were taken, in the order of patients and studies; empty for images.
        identifiers: patient -> what else points at them in the headers, of all files.
        sorted_out: number of series that were linked into a folder of their own.
    """

    found: list[Found]
    left: list[LeftOut]
    studies: tuple[Study, ...] = ()
    identifiers: Mapping[str, frozenset[str]] = field(default_factory=dict, repr=False)
    sorted_out: int = 0


def find_dicom(
    root: Path,
    *,
    modality: Modality,
    series: str = RULES[0],
    minimum_slices: int = MINIMUM_SLICES,
    sort_into: Path | None = None,
    exclude: Collection[Path] = (),
) -> Findings:
    """Items of a DICOM tree and what was left out, see :func:`index_dicom`."""
    given = {"series": series, "minimum_slices": minimum_slices, "sort_into": sort_into, "exclude": exclude}
    index = index_dicom(root, modality=modality, **given)  # type: ignore[arg-type]
    return index.found, index.left


def index_dicom(
    root: Path,
    *,
    modality: Modality,
    series: str = RULES[0],
    minimum_slices: int = MINIMUM_SLICES,
    sort_into: Path | None = None,
    exclude: Collection[Path] = (),
) -> DicomIndex:
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
    identifiers = tree.identifiers()
    tree.sift(tree.unfit)
    if modality.dimension == 2:
        return DicomIndex([tree.image(group[0]) for group in tree.groups], tree.left, (), identifiers)
    tree.gather_series()
    every = _by_study(tree.groups)
    tree.sift(partial(geometry_problem, minimum=minimum_slices))
    usable = _by_study(tree.groups)
    if series == "largest":
        tree.sift(_outranked(usable))
    tree.sift(tree.mixed_folder)
    chosen = _by_study(tree.groups)
    studies = [_study(key, every[key], usable[key], chosen[key], series) for key in sorted(every)]
    found = [tree.series(group) for group in tree.groups]
    return DicomIndex(found, tree.left, tuple(studies), identifiers, tree.sorted_out)


def _read_headers(paths: Sequence[Path]) -> list[Header | str]:
    """Header of every file, or why it has none; many files are read by all cores."""
    portions = [paths[start : start + _PORTION] for start in range(0, len(paths), _PORTION)]
    workers = available_cores() if len(paths) > PARALLEL_ABOVE else 1
    results = run_jobs(_read_portion, list(enumerate(portions)), workers=workers)
    read: dict[int, list[Header | str]] = {}
    with closing(results), progress(description="read headers", total=len(paths), unit="file") as bar:
        for (number, portion), headers in results:
            read[number] = headers
            bar.update(len(portion))
    return [header for number in sorted(read) for header in read[number]]


def _read_portion(job: tuple[int, Sequence[Path]]) -> list[Header | str]:
    return [_header_or_reason(path) for path in job[1]]


def _header_or_reason(path: Path) -> Header | str:
    try:
        with naming_file(path, show_detail=False):
            return read_header(path) if is_dicom(path) else _NO_DICOM
    except InputError as error:
        return reason(error, path)


class _Tree:
    """What is left of a DICOM tree while it is sorted out: groups of files, and what was left out so far."""

    def __init__(self, root: Path, modality: Modality, sort_into: Path | None) -> None:
        self.root, self.modality, self.sort_into = root, modality, sort_into
        self.groups: list[Group] = []
        self.left: list[LeftOut] = []
        self.in_folder = Counter[Path]()
        self.sorted_out = 0

    def read(self, exclude: Collection[Path]) -> None:
        """Read the header of every file; each one is a group of its own first."""
        paths = [path for path in walk(self.root, exclude) if path.name.upper() != "DICOMDIR"]
        for path, header in zip(paths, _read_headers(paths), strict=True):
            self.in_folder[path.parent] += header != _NO_DICOM
            if isinstance(header, Header):
                self.groups.append((header,))
            else:
                self._leave(path, header)

    def identifiers(self) -> dict[str, frozenset[str]]:
        """What points at each patient."""
        known: dict[str, set[str]] = defaultdict(set)
        for (header,) in self.groups:
            known[header.patient or header.study] |= {*header.identifiers, header.study}
        return {patient: frozenset(filter(None, values)) for patient, values in known.items() if patient}

    def sift(self, problem: Callable[[Group], str]) -> None:
        """Leave out the groups that have a problem."""
        kept = []
        for group in self.groups:
            if why := problem(group):
                several = len(group) > 1
                path = group[0].path.parent if several else group[0].path
                self._leave(path, why, len(group) if several else 0, self._keys(group[0], path))
            else:
                kept.append(group)
        self.groups = kept

    def _leave(self, path: Path, why: str, files: int = 0, keys: Mapping[str, str] | None = None) -> None:
        where = path.relative_to(self.root).as_posix()
        self.left.append(
            LeftFile(f"{where} (series of {files} files)" if files else where, why, keys or {"file": where})
        )

    def _keys(self, header: Header, path: Path) -> dict[str, str]:
        relative = path.relative_to(self.root).as_posix()
        return {"file": relative, "series": header.series, "study": header.study, "patient": header.patient}

    def unfit(self, group: Group) -> str:
        """Why a single file is nothing for the modality, or ""."""
        header, codes = group[0], self.modality.dicom_modalities
        if codes and header.modality not in codes:
            return f"the DICOM modality is {header.modality or 'not given'!r}, expected {' or '.join(codes)}"
        if header.localizer:
            return "a localizer"
        if self.modality.dimension == 2:
            return f"{header.frames} frames, an image has one" if header.frames > 1 else ""
        if header.secondary and not header.position:
            return "a secondary capture without a place, such as a report or a screen"
        return ""

    def gather_series(self) -> None:
        """Put single-frame files of one series together; a multi-frame file stays alone."""
        by_series: dict[tuple[str, ...], list[Header]] = defaultdict(list)
        for (header,) in self.groups:
            alone = str(header.path) if header.frames > 1 else ""
            by_series[header.study, header.series, alone].append(header)
        self.groups = [tuple(sorted(files, key=place)) for files in by_series.values()]

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
        sort_into = cast(Path, self.sort_into)  # without it, mixed_folder() has left the series out
        folder = sort_into / hash_identifier(group[0].series, identifier_salt())
        link_series([header.path for header in group], folder)
        self.sorted_out += 1
        return self._found(group, folder.name, folder)

    def _found(self, group: Group, relative: str, path: Path) -> Found:
        first = group[0]
        size = (first.size[1], first.size[0], slices_of(group))
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


StudyKey = tuple[str, str]


def _by_study(groups: Iterable[Group]) -> defaultdict[StudyKey, list[Group]]:
    """Series by patient and study; one without a study is a study of its own."""
    studies: defaultdict[StudyKey, list[Group]] = defaultdict(list)
    for group in groups:
        first = group[0]
        studies[first.patient or first.study, first.study or first.series].append(group)
    return studies


def _rank(group: Group) -> tuple[Any, ...]:
    """Axial before others, then most slices, then the smallest UID."""
    first = group[0]
    return not first.axial, -slices_of(group), first.series, str(first.path)


def _outranked(studies: Mapping[StudyKey, Sequence[Group]]) -> Callable[[Group], str]:
    """A rule that leaves one series of each study."""
    kept = {id(min(groups, key=_rank)) for groups in studies.values()}
    why = "another series of the study is axial with more slices, or comes first (--series all takes every one)"
    return lambda group: "" if id(group) in kept else why


def _study(
    key: StudyKey, every: Sequence[Group], usable: Sequence[Group], chosen: Sequence[Group], series: str
) -> Study:
    described = tuple((slices_of(group), group[0].orientation) for group in chosen)
    return Study(*key, len(every), described, _why(usable, chosen, series))


def _why(usable: Sequence[Group], chosen: Sequence[Group], series: str) -> str:
    """In words, why these series of a study were taken."""
    if not chosen:
        return "none is usable"
    if series == "all" or len(usable) == 1:
        return "every usable series" if series == "all" else "the only usable series"
    axial = [group for group in usable if group[0].axial]
    if not axial:
        return "most slices, none is axial"
    return "the only axial series" if len(axial) == 1 else "the axial series with most slices"


def series_note(index: DicomIndex) -> str:
    """One line on the series that were taken: how many of how many, their orientations, fewest and most slices."""
    chosen = [entry for study in index.studies for entry in study.chosen]
    total = sum(study.series for study in index.studies)
    head = f"{len(index.studies)} studies with {total} series: {len(chosen)} taken"
    if not chosen:
        return f"{head}."
    ways = Counter(orientation for _, orientation in chosen).most_common()
    slices = sorted({slices for slices, _ in chosen})
    extent = f"{slices[0]} to {slices[-1]}" if len(slices) > 1 else f"{slices[0]}"
    return f"{head} ({', '.join(f'{count} {way}' for way, count in ways)}; {extent} slices)."
