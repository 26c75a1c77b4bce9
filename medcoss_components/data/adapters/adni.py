"""ADNI volumes as its archive ships them as NIfTI: one of each subject and visit, chosen by description."""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medcoss_components.data.adapters.beside import odd_files
from medcoss_components.data.adapters.checked_settings import text_list
from medcoss_components.data.adapters.findings import (
    DatasetSource,
    Findings,
    Found,
    LeftOut,
    header_size,
    reason,
)
from medcoss_components.data.readers_common import naming_file, require_file
from medcoss_components.data.readers_dicom import DICOM_SUFFIXES
from medcoss_components.data.readers_volume import NIFTI_SUFFIXES
from medcoss_components.errors import InputError
from medcoss_components.progress import progress

COLUMNS = ("Image Data ID", "Subject", "Visit")
KEEP = ("visit", "subject", "image")
"""Of what one volume is kept."""
_SUBJECT = re.compile(r"\d{3}_S_\d{4,5}")
_IMAGE_ID = re.compile(r"_I(\d+)\.nii(\.gz)?$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Image:
    """What path and table say of one volume.

    Args:
        path, relative: the file.
        subject: such as ``002_S_0295``.
        description: lower case, letters and digits alone.
        visit: of the table, else the day of the folder.
        number: of the image in the archive; 0 when unknown.
        size: voxels (x, y, z).
    """

    path: Path
    relative: str
    subject: str
    description: str
    visit: str = field(repr=False)
    number: int
    size: tuple[int, ...] = ()


def find(source: DatasetSource) -> Findings:
    """One volume per subject and visit.

    Settings: ``keep`` one volume of each "visit" or "subject", or every "image"; ``descriptions``: regular expressions
    in order of preference, searched in the description without anything but letters and digits, in lower case;
    ``without``: those of descriptions that are never taken; ``table``: search table of the archive below the root
    (null: found by its columns).

    Raises:
        InputError: no volume below a subject's folder, or settings out of range.
    """
    settings = source.settings
    if settings["keep"] not in KEEP:
        raise InputError(f"keep: must be one of {', '.join(KEEP)}, got {settings['keep']!r}.")
    files = source.files()
    volumes = [file for file in files if file.name.lower().endswith(NIFTI_SUFFIXES)]
    if not any(_subject_place(file.relative_to(source.root)) is not None for file in volumes):
        raise InputError(
            f"{source.root}: holds no NIfTI file below a subject's folder (ADNI/<3 digits>_S_<4 digits>/<description>/"
            "<date>/<image>/). Ask the archive for NIfTI, and give the folder that ADNI lies in."
        )
    table = _table(source, files)
    rows, left = read_search_table(table, source.root) if table else ({}, [])
    images, more = _images(source, volumes, rows)
    chosen, repeats = choose(images, settings)
    found = [
        Found(
            name=_bare(image.relative),
            keys={"file": image.relative},
            path=image.path,
            patient=image.subject,
            size=image.size,
            files=(image.path,),
        )
        for image in chosen
    ]
    others = _others(files, set(volumes) | {table} if table else set(volumes), source.root)
    return found, [*left, *more, *repeats, *others]


def _bare(relative: str) -> str:
    return re.sub(r"\.nii(\.gz)?$", "", relative, flags=re.IGNORECASE)


def _subject_place(relative: Path) -> int | None:
    """Index of the subject's folder in a path that is long enough for description, date and image below it."""
    parts = relative.parts
    return next((place for place in range(len(parts) - 3) if _SUBJECT.fullmatch(parts[place])), None)


def _others(files: Sequence[Path], used: set[Path], root: Path) -> list[LeftOut]:
    """Entries for what is no volume; the XML descriptions that come with each image are well known."""
    rest = [file for file in files if file not in used and file.suffix.lower() != ".xml"]
    dicom = [file for file in rest if file.name.lower().endswith(DICOM_SUFFIXES)]
    return [
        *odd_files(dicom, root, "DICOM is not read here; ask the archive for NIfTI"),
        *odd_files(set(rest) - set(dicom), root, "no NIfTI file"),
    ]


def _table(source: DatasetSource, files: Sequence[Path]) -> Path | None:
    """The search table: the one that is set, else the only one with its columns."""
    if source.settings["table"] is not None:
        return require_file(source.root / str(source.settings["table"]))
    tables = [file for file in files if file.suffix.lower() == ".csv" and set(COLUMNS) <= set(_header(file))]
    if len(tables) > 1:
        raise InputError(f"{source.root}: {len(tables)} search tables lie in it. Say which one with --set table=PATH.")
    return tables[0] if tables else None


def _header(path: Path) -> list[str]:
    with naming_file(path, show_detail=False), open(path, newline="", encoding="utf-8-sig") as stream:
        return [name.strip() for name in next(csv.reader(stream), [])]


def read_search_table(path: Path, root: Path) -> tuple[dict[int, dict[str, str]], list[LeftOut]]:
    """Number of the image -> row, with the row's number as "row"; and what is left out.

    Raises:
        InputError: a column is missing, or the file is no CSV.
    """
    missing = [name for name in COLUMNS if name not in _header(path)]
    if missing:
        raise InputError(
            f"{path}: the table has no column {' and no '.join(missing)}. Take the archive's search table."
        )
    rows, left = dict[int, dict[str, str]](), list[LeftOut]()
    with naming_file(path, show_detail=False), open(path, newline="", encoding="utf-8-sig") as stream:
        for count, row in enumerate(csv.DictReader(stream, skipinitialspace=True), start=1):
            values = {str(name).strip(): str(value or "").strip() for name, value in row.items() if name}
            number = values["Image Data ID"].upper().removeprefix("I")
            where = f"{path.relative_to(root).as_posix()} row {count}"
            if not number.isdigit():
                left.append(LeftOut(where, "no number of an image"))
            elif int(number) in rows:
                left.append(LeftOut(where, "the image stands in an earlier row too"))
            else:
                rows[int(number)] = values | {"where": where}
    return rows, left


def _images(
    source: DatasetSource, volumes: Sequence[Path], rows: Mapping[int, Mapping[str, str]]
) -> tuple[list[Image], list[LeftOut]]:
    """Volumes that can be taken, and the files and rows that cannot."""
    images, left, seen = list[Image](), list[LeftOut](), set[int]()
    for path in progress(volumes, description="look at volumes", unit="file"):
        relative = path.relative_to(source.root)
        place = _subject_place(relative)
        if place is None:
            left.append(LeftOut(relative.as_posix(), "not in the folder of a subject"))
            continue
        image = _image(path, relative, place)
        row = rows.get(image.number, {})
        seen.add(image.number)
        if why := _unfit(image, row, source.settings):
            left.append(LeftOut(image.relative, why))
            continue
        try:
            images.append(replace(image, visit=row.get("Visit") or image.visit, size=complete_size(path)))
        except InputError as error:
            left.append(LeftOut(image.relative, reason(error, path)))
    unmet = [row for number, row in rows.items() if number not in seen]
    return images, [*left, *(LeftOut(row["where"], "no file of this image") for row in unmet)]


def _image(path: Path, relative: Path, place: int) -> Image:
    """What a path says: <subject>/<description>/<date>/<image>/<file>."""
    subject, description, date = relative.parts[place : place + 3]
    match = _IMAGE_ID.search(path.name)
    folder = path.parent.name.upper()
    number = match.group(1) if match else folder[1:] if re.fullmatch(r"I\d+", folder) else "0"
    return Image(
        path=path,
        relative=relative.as_posix(),
        subject=subject,
        description=plain(description),
        visit=f"day {date[:10]}",
        number=int(number),
    )


def plain(text: str) -> str:
    """Lower case, letters and digits alone.

    >>> plain("MPR__GradWarp__B1_Correction__N3__Scaled"), plain("MPR; GradWarp; B1 Correction; N3; Scaled")
    ('mprgradwarpb1correctionn3scaled', 'mprgradwarpb1correctionn3scaled')
    """
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _unfit(image: Image, row: Mapping[str, str], settings: Mapping[str, Any]) -> str:
    """Why a volume is not taken, or ""."""
    if row and row["Subject"] != image.subject:
        return "the search table has another subject for this image"
    if row and row.get("Modality", "MRI").upper() not in ("MRI", "MR"):
        return "the search table says that it is no MRI"
    if any(_search(pattern, image, "without") for pattern in text_list(settings, "without")):
        return "its description is one of those that are never taken (setting: without)"
    if _preference(image, settings) == len(text_list(settings, "descriptions")):
        return "its description is none of those that are taken (setting: descriptions)"
    return ""


def _preference(image: Image, settings: Mapping[str, Any]) -> int:
    """Place of the first expression that fits the description."""
    patterns = text_list(settings, "descriptions")
    fitting = (place for place, pattern in enumerate(patterns) if _search(pattern, image, "descriptions"))
    return next(fitting, len(patterns))


def _search(pattern: str, image: Image, setting: str) -> bool:
    try:
        return re.search(pattern, image.description) is not None
    except re.error as error:
        raise InputError(f"{setting}: {pattern!r} is no regular expression ({error}).") from error


def complete_size(path: Path) -> tuple[int, ...]:
    """Voxels (x, y, z) of a NIfTI file from its header; of an uncompressed one the length of the file is compared too.

    Raises:
        InputError: a header that cannot be read, several time points, or a file that is too short.
    """
    import nibabel

    size = header_size(path)
    if path.suffix.lower() == ".nii":
        with naming_file(path, show_detail=False):
            proxy = nibabel.load(path).dataobj
            needed = proxy.offset + math.prod(proxy.shape) * proxy.dtype.itemsize
        if path.stat().st_size < needed:
            raise InputError(f"{path}: truncated, it has {path.stat().st_size} of {needed} bytes")
    return size


def choose(images: Sequence[Image], settings: Mapping[str, Any]) -> tuple[list[Image], list[LeftOut]]:
    """The preferred volume of each visit, subject or image: by description, then the earliest image; and the others."""
    if settings["keep"] == "image":
        return list(images), []
    ranked = sorted(images, key=lambda image: (_preference(image, settings), image.number, image.relative))
    taken = Counter[tuple[str, ...]]()
    chosen, repeats = list[Image](), list[LeftOut]()
    for image in ranked:
        key = (image.subject,) if settings["keep"] == "subject" else (image.subject, image.visit)
        taken[key] += 1
        if taken[key] == 1:
            chosen.append(image)
        else:
            repeats.append(LeftOut(image.relative, f"another volume of the {settings['keep']} is preferred"))
    return sorted(chosen, key=lambda image: image.relative), sorted(repeats, key=lambda entry: entry.where)
