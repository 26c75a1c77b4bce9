"""MIMIC-CXR-JPG: 377,110 radiographs, listed by the data set's own tables. No image is opened.

The metadata table says view and size of each image, the split table its split, and the checksums that come with the
download say which files are equal. The folders are listed once, by threads, so that missing and stray files show.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medcoss_components.data.adapters.beside import is_beside, odd_files
from medcoss_components.data.adapters.findings import DatasetSource, Findings, Found, LeftOut, bare_name, is_hidden
from medcoss_components.data.adapters.mimic_cxr_studies import SPLITS, table_rows
from medcoss_components.data.readers_common import naming_file
from medcoss_components.errors import InputError
from medcoss_components.progress import progress

FILES = "files"
METADATA, SPLIT = "mimic-cxr-2.0.0-metadata.csv", "mimic-cxr-2.0.0-split.csv"
CHECKSUMS = "SHA256SUMS.txt"
THREADS = 16
"""Folders that are listed at a time: listing waits for the disk or the network, not for the processor."""
LISTED = 1000
"""Missing files that are named one by one; of more only the number is told."""
_SUFFIX = ".jpg"
_BESIDE = re.compile(r"mimic-cxr-2\..*\.csv(\.gz)?|IMAGE_FILENAMES|RECORDS|SHA256SUMS\.txt")


def find(source: DatasetSource) -> Findings:
    """Images of the metadata table whose file is there and whose view is wanted.

    Raises:
        InputError: another layout, a table that misses a column, or an unknown view or split.
    """
    root = _locate(source)
    rows = _rows(_table(root, METADATA), _splits(_table(root, SPLIT)))
    wanted, left = _by_view(rows, source.settings.get("views"))
    files = _list_files(root / FILES)
    checksums = _checksums(root)
    found, missing = list[Found](), list[str]()
    for row in progress(wanted, description="match images", unit="image"):
        size = files.pop(row.place, None)
        if size is None:
            missing.append(row.place)
        elif size == 0:
            left.append(LeftOut(f"{FILES}/{row.place}", "the file is empty, or a link that leads nowhere"))
        else:
            found.append(_found(row, root, checksums.get(f"{FILES}/{row.place}", "")))
    left += _missing(missing)
    known = {row.place for row in rows}
    left += [LeftOut(f"{FILES}/{place}", "no row in the metadata") for place in files if place not in known]
    return found, left + _others(root, source)


def _locate(source: DatasetSource) -> Path:
    """The data set's folder; its tables may be packed or not."""
    try:
        return source.locate(FILES, f"{METADATA}.gz")
    except InputError:
        try:
            return source.locate(FILES, METADATA)
        except InputError:
            pass
        raise


def _table(root: Path, name: str) -> Path:
    path = next((root / file for file in (f"{name}.gz", name) if (root / file).is_file()), None)
    if path is None:
        raise InputError(f"{root}: holds no {name}.gz, which says the split of each image. Download it, too.")
    return path


@dataclass(frozen=True)
class _Row:
    """An image of the metadata: its file below ``files``, patient, view, pixels (width, height) and split."""

    place: str = field(repr=False)
    patient: str = field(repr=False)
    view: str
    size: tuple[int, ...]
    split: str


def _rows(path: Path, splits: Mapping[str, str]) -> list[_Row]:
    rows = dict[str, _Row]()
    columns = ("dicom_id", "subject_id", "study_id", "ViewPosition", "Rows", "Columns")
    for number, (dicom, subject, study, view, height, width) in _cells(path, columns, "read metadata"):
        if not (dicom and subject.isdigit() and study.isdigit()):
            raise InputError(f"{path}: row {number} names no image, subject and study. Restore the table.")
        place = f"p{subject[:2]}/p{subject}/s{study}/{dicom}{_SUFFIX}"
        size = (int(width), int(height)) if width.isdigit() and height.isdigit() else ()
        if dicom in rows:
            raise InputError(f"{path}: row {number} names an image that an earlier row names, too. Restore the table.")
        rows[dicom] = _Row(place, subject, view or "none", size, splits.get(dicom, ""))
    return list(rows.values())


def _splits(path: Path) -> dict[str, str]:
    splits = dict[str, str]()
    for number, (dicom, split) in _cells(path, ("dicom_id", "split"), "read splits"):
        if split not in SPLITS:
            raise InputError(f"{path}: row {number}: split must be one of {', '.join(SPLITS)}. Restore the table.")
        splits[dicom] = SPLITS[split]
    return splits


def _cells(path: Path, columns: Sequence[str], description: str) -> Iterator[tuple[int, list[str]]]:
    """Number and some cells of every row."""
    for number, row in progress(table_rows(path, columns), description=description, unit="row"):
        yield number, [(row[name] or "").strip() for name in columns]


def _by_view(rows: Sequence[_Row], views: Any) -> tuple[list[_Row], list[LeftOut]]:
    """Rows of the wanted views; of the others, how many there are of each view."""
    if views is None:
        return list(rows), []
    known = Counter(row.view for row in rows)
    chosen = [views] if isinstance(views, str) else list(views) if isinstance(views, Collection) else []
    if not chosen or (unknown := set(chosen) - set(known)):
        raise InputError(
            f"settings: views must be null or list some of {', '.join(sorted(known))}, got {views!r}"
            f"{f' with {len(unknown)} that no image has' if chosen else ''}."
        )
    left = [
        LeftOut(f"view {view}", f"{known[view]} images, as views is set to {', '.join(chosen)}")
        for view in sorted(set(known) - set(chosen))
    ]
    return [row for row in rows if row.view in chosen], left


def _list_files(folder: Path) -> dict[str, int]:
    """Files below a folder, listed by threads: path from there -> bytes. Hidden and well-known files, such as the index
    pages of a mirror, do not count."""
    images = dict[str, int]()
    top = [(entry.path, entry.name) for entry in _entries(str(folder)) if entry.is_dir()]
    patients = [(entry, name) for path, name in top for entry in _entries(path)]
    jobs = [(entry.path, f"{name}/{entry.name}") for entry, name in patients if entry.is_dir()]
    stray = [(f"{name}/{entry.name}", _bytes(entry)) for entry, name in patients if not entry.is_dir()]
    stray += [(entry.name, _bytes(entry)) for entry in _entries(str(folder)) if not entry.is_dir()]
    with ThreadPoolExecutor(THREADS) as pool:
        results = pool.map(lambda job: list(_tree(*job)), jobs)
        for files in progress(results, description="list folders", total=len(jobs), unit="patient"):
            images.update(files)
    return images | dict(stray)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not is_hidden(entry.name) and not is_beside(Path(entry.name))]


def _tree(folder: str, place: str) -> Iterator[tuple[str, int]]:
    for entry in _entries(folder):
        if entry.is_dir():
            yield from _tree(entry.path, f"{place}/{entry.name}")
        else:
            yield f"{place}/{entry.name}", _bytes(entry)


def _bytes(entry: os.DirEntry[str]) -> int:
    """Size of a file; 0 for a link that leads nowhere."""
    try:
        return entry.stat().st_size
    except OSError:
        return 0


def _checksums(root: Path) -> dict[str, str]:
    """SHA-256 of the images as the download lists them: path -> digest; empty without that list."""
    path = root / CHECKSUMS
    if not path.is_file():
        return {}
    with naming_file(path, show_detail=False), open(path, encoding="utf-8") as stream:
        pairs = (line.split(maxsplit=1) for line in stream if line.rstrip().endswith(_SUFFIX))
        return {place.strip(): digest for digest, place in pairs}


def _found(row: _Row, root: Path, content: str) -> Found:
    path = root / FILES / row.place
    return Found(
        name=bare_name(f"{FILES}/{row.place}"),
        path=path,
        patient=row.patient,
        split=row.split,
        size=row.size,
        files=(path,),
        content=content,
    )


def _others(root: Path, source: DatasetSource) -> list[LeftOut]:
    """What else lies in the data set's folder."""
    entries = [path for path in root.iterdir() if not is_hidden(path.name) and path.name != FILES]
    made = {source.files_dir.absolute()}
    odd = [path for path in entries if not _BESIDE.fullmatch(path.name) and path.absolute() not in made]
    return odd_files((path for path in odd if not source.is_output(path)), root, "not part of what is read")


def _missing(places: Sequence[str]) -> list[LeftOut]:
    """Rows without file: one by one, or their number where much is missing, as after a download in part."""
    if len(places) <= LISTED:
        return [LeftOut(f"{FILES}/{place}", "a row of the metadata without file") for place in places]
    count = Counter(place.split("/")[0] for place in places)
    return [LeftOut(f"{FILES}/{top}", f"{count[top]} rows of the metadata without file") for top in sorted(count)]
