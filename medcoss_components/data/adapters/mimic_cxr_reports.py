"""MIMIC-CXR radiology reports: one text per study, of its findings and impression.

Read from the publisher's text files (``files/p10/p10000032/s50414267.txt``), from ``mimic-cxr-reports.zip`` as it is,
or from ``mimic_cxr_sectioned.csv``, which the publisher's scripts make of them. The patient is the folder's number; for
the table it comes from ``cxr-study-list.csv`` or the split list of MIMIC-CXR-JPG.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

from medcoss_components.data.adapters.findings import DatasetSource, Findings, Found, LeftOut
from medcoss_components.data.adapters.mimic_cxr_studies import Studies, study_number, table_rows
from medcoss_components.data.adapters.report_sections import SectionRule, split_report
from medcoss_components.data.readers_common import naming_file
from medcoss_components.data.workers import available_cores
from medcoss_components.errors import InputError
from medcoss_components.progress import progress

SOURCES = {"sections": "mimic_cxr_sectioned.csv", "files": "files", "zip": "mimic-cxr-reports.zip"}
"""What the setting ``reports`` can name, in the order in which "auto" looks for them."""
PUBLISHED = 227_835
"""Number of reports of the whole data set."""
_PATIENT, _REPORT = re.compile(r"p(\d{8})"), re.compile(r"s(\d{8})\.txt")
_STUDY_FOLDER, _FIRST_FOLDER = re.compile(r"s\d{8}"), re.compile(r"p\d\d")
_REPORT_NAME = re.compile(r"files/p\d\d/p\d{8}/s(\d{8})")
_MEMBER = re.compile(r"(?:.*/)?files/p\d\d/p(\d{8})/s(\d{8})\.txt")
_PUBLISHED = (
    *("LICENSE*", "README*", "SHA256SUMS*", "RECORDS*", "index.html*", "robots.txt", "files"),
    *("cxr-*.csv*", "mimic-cxr-*.csv*", "mimic-cxr-reports", "mimic-cxr-reports.zip", "mimic_cxr_*.csv*"),
)
_UNKNOWN = "not part of the published layout"
_THREADS_PER_CORE, _MOST_THREADS = 4, 16
_FOLDERS_PER_JOB, _JOBS_AT_ONCE = 16, 64
Entry = Found | LeftOut


def find(source: DatasetSource) -> Findings:
    """Reports that have the wanted sections; the others, and what else lies there, are left out with a reason.

    Settings: ``reports`` ("auto" or one of :data:`SOURCES`), ``sections``, ``last_paragraph`` and ``minimum_words``
    (see :class:`~medcoss_components.data.adapters.report_sections.SectionRule`), ``split_file`` (path of
    ``mimic-cxr-2.0.0-split.csv.gz`` where it does not lie in the root or beside the reports).

    Raises:
        InputError: another layout, or a damaged table.
    """
    settings = dict(source.settings)
    kind = settings.pop("reports", "auto")
    split_file = settings.pop("split_file", None)
    rule = SectionRule(**settings)
    kind, place = _located(source, kind)
    studies = Studies.read((place.parent, source.root), split_file=split_file)
    reader = {"sections": _table_entries, "files": _file_entries, "zip": _archive_entries}[kind]
    found, left = list[Found](), list[LeftOut]()
    for entry in reader(place, rule, studies):
        if isinstance(entry, Found):
            found.append(entry)
        else:
            left.append(entry)
    here = {_study_of(name) for name in (*(item.name for item in found), *(entry.where for entry in left))} - {""}
    if len(here) != PUBLISHED:
        source.notes.append(f"{len(here)} reports were read, published are {PUBLISHED} ({len(here) - PUBLISHED:+d}).")
    return found, [*left, *_absent(studies, here), *_others(place.parent)]


def _located(source: DatasetSource, kind: str) -> tuple[str, Path]:
    """Which of the :data:`SOURCES` is there, and where."""
    if kind not in ("auto", *SOURCES):
        raise InputError(f"reports: must be one of auto, {', '.join(SOURCES)}, got {kind!r}.")
    if not source.root.is_dir():
        raise InputError(f"{source.root}: no such folder. Give the folder of the data set.")
    for name in SOURCES if kind == "auto" else (kind,):
        for file in (SOURCES[name], f"{SOURCES[name]}.gz"):
            if any(next(source.root.glob(f"{level}{file}"), None) for level in ("", "*/", "*/*/")):
                return name, source.locate(file) / file
    wanted = SOURCES.values() if kind == "auto" else (SOURCES[kind],)
    raise InputError(
        f"{source.root}: holds no {', '.join(wanted)}, nor does a folder in it. The layout that is expected stands on "
        "the data set's page in docs/data."
    )


@dataclass(frozen=True)
class _Report:
    """Where a report belongs: published pseudonyms of patient and study."""

    patient: str
    study: str

    @property
    def name(self) -> str:
        """The same for all sources, so that a report keeps its id."""
        return f"files/p{self.patient[:2]}/p{self.patient}/s{self.study}"

    def entry(self, parts: dict[str, str], rule: SectionRule, studies: Studies) -> Entry:
        """The report as an item, or why not."""
        text, why = rule.choose(parts)
        if why:
            return LeftOut(self.name, why)
        return Found(name=self.name, text=text, patient=self.patient, split=studies.split(self.study, self.patient))

    def of_file(self, raw: bytes, rule: SectionRule, studies: Studies) -> Entry:
        """The report whose file has these bytes, as an item, or why not."""
        try:
            report = raw.decode("utf-8-sig")
        except UnicodeDecodeError:
            return LeftOut(self.name, "not UTF-8")
        if not report.strip():
            return LeftOut(self.name, "the report is empty")
        if "\0" in report:
            return LeftOut(self.name, "no text")
        return self.entry(split_report(report), rule, studies)


def _file_entries(folder: Path, rule: SectionRule, studies: Studies) -> Iterator[Entry]:
    """Reports of the tree below ``files``, read by threads: most of the time goes into waiting for the disk."""
    patients, left = list[Path](), list[LeftOut]()
    for first in _listed(folder):
        for patient in _listed(first) if _FIRST_FOLDER.fullmatch(first.name) and first.is_dir() else [first]:
            if _PATIENT.fullmatch(patient.name) and patient.parent != folder:
                patients.append(patient)
            elif not patient.name.startswith("index.html"):
                left.append(LeftOut(patient.relative_to(folder.parent).as_posix(), _UNKNOWN))
    if not patients:
        raise InputError(
            f"{folder}: holds no folders such as p10/p10000032. Unpack mimic-cxr-reports.zip, or give the folder above "
            "files/p10 as root."
        )
    yield from left
    read = partial(_some_entries, base=folder.parent, rule=rule, studies=studies)
    with progress(total=len(patients), description="read reports", unit="patient") as bar:
        for some, entries in _in_threads(read, patients):
            yield from entries
            bar.update(len(some))


def _listed(folder: Path) -> list[Path]:
    with naming_file(folder, show_detail=False):
        return sorted(folder.iterdir())


def _in_threads(
    read: Callable[[Sequence[Path]], list[Entry]], folders: Sequence[Path]
) -> Iterator[tuple[Sequence[Path], list[Entry]]]:
    """Some folders and what was read of them, in order; only a few such jobs are under way at any time."""
    threads = min(_MOST_THREADS, _THREADS_PER_CORE * available_cores())
    jobs = [folders[start : start + _FOLDERS_PER_JOB] for start in range(0, len(folders), _FOLDERS_PER_JOB)]
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(jobs), _JOBS_AT_ONCE):
            some = jobs[start : start + _JOBS_AT_ONCE]
            yield from zip(some, pool.map(read, some), strict=True)


def _some_entries(folders: Sequence[Path], *, base: Path, rule: SectionRule, studies: Studies) -> list[Entry]:
    return [entry for folder in folders for entry in _patient_entries(folder, base, rule, studies)]


def _patient_entries(folder: Path, base: Path, rule: SectionRule, studies: Studies) -> list[Entry]:
    """Reports of one patient; folders of a study hold its images, which are another data set."""
    found: list[Entry] = []
    with naming_file(folder, show_detail=False), os.scandir(folder) as listing:
        entries = sorted((entry.name, entry.is_dir()) for entry in listing)
    for name, is_folder in entries:
        match = None if is_folder else _REPORT.fullmatch(name)
        if match:
            report = _Report(folder.name[1:], match.group(1))
            try:
                raw = (folder / name).read_bytes()
            except OSError:
                found.append(LeftOut(report.name, "cannot be read"))
            else:
                found.append(report.of_file(raw, rule, studies))
        elif not (is_folder and _STUDY_FOLDER.fullmatch(name)) and not name.startswith("index.html"):
            found.append(LeftOut((folder / name).relative_to(base).as_posix(), _UNKNOWN))
    return found


def _archive_entries(path: Path, rule: SectionRule, studies: Studies) -> Iterator[Entry]:
    """Reports of the publisher's archive, which need not be unpacked."""
    with naming_file(path, show_detail=False):
        archive = zipfile.ZipFile(path)
    with archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        if not any(_MEMBER.fullmatch(member.filename) for member in members):
            raise InputError(f"{path}: holds no files/p10/p10000032/s50414267.txt or the like. Download it again.")
        for member in progress(members, description="read reports", unit="report"):
            if not (match := _MEMBER.fullmatch(member.filename)):
                yield LeftOut(f"{path.name}: {member.filename}", _UNKNOWN)
                continue
            report = _Report(match.group(1), match.group(2))
            try:
                with naming_file(path, show_detail=False):
                    raw = archive.read(member)
            except InputError:
                yield LeftOut(report.name, "damaged in the archive")
            else:
                yield report.of_file(raw, rule, studies)


def _table_entries(path: Path, rule: SectionRule, studies: Studies) -> Iterator[Entry]:
    """Reports of the sectioned table; the patient of each comes from another table."""
    if not studies.patients:
        raise InputError(
            f"{path}: does not say which patient a study is of. Put cxr-study-list.csv.gz (or the split list of "
            "MIMIC-CXR-JPG) beside it."
        )
    seen: set[str] = set()
    rows = table_rows(path, ("study", *rule.sections))
    for number, row in progress(rows, description="read reports", unit="report"):
        where = f"{path.name} row {number}"
        study = study_number(row["study"])
        if study is None or study not in studies.patients:
            yield LeftOut(where, "no number of a study" if study is None else "no table says which patient it is of")
            continue
        report = _Report(studies.patients[study], study)
        if study in seen:
            yield LeftOut(where, f"a second row of {report.name}")
            continue
        seen.add(study)
        yield report.entry({name: " ".join((value or "").split()) for name, value in row.items()}, rule, studies)


def _study_of(name: str) -> str:
    """Number of the study that an item or an entry is about, or ""."""
    match = _REPORT_NAME.fullmatch(name)
    return match.group(1) if match else ""


def _absent(studies: Studies, here: Collection[str]) -> list[LeftOut]:
    """One line for the studies of the tables that have no report here: of a part of the data set that are many."""
    missing = sorted(studies.patients.keys() - here)
    if not missing:
        return []
    return [LeftOut(f"{len(missing)} studies of the tables, such as s{missing[0]}", "their report is not there")]


def _others(folder: Path) -> list[LeftOut]:
    """Entries of the data set's folder that are not of the publisher."""
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    return [LeftOut(name, _UNKNOWN) for name in names if not any(fnmatch(name, known) for known in _PUBLISHED)]
