"""GlaS (Warwick-QU): pictures of colorectal sections with a mask of the glands each, and a table of patients."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from medcoss_components.data.adapters.beside import is_beside
from medcoss_components.data.adapters.findings import DatasetSource, Findings, Found, LeftOut, is_hidden, reason
from medcoss_components.data.masks import read_mask_of
from medcoss_components.data.readers import read_image
from medcoss_components.data.readers_common import naming_file, require_file
from medcoss_components.errors import InputError
from medcoss_components.progress import progress

TABLE = "Grade.csv"
NAME, PATIENT = "name", "patient ID"
MASK_ENDING = "_anno"
SUFFIX = ".bmp"
PARTS = {"train": "training", "testA": "testing", "testB": "testing"}
"""First part of a picture's name -> split of the publisher."""


def find(source: DatasetSource) -> Findings:
    """Pictures with mask and patient, of the parts that the settings name. All are read: there are 165.

    Raises:
        InputError: another layout, a table without the columns or with two patients for a picture, an unknown part.
    """
    given = source.settings["parts"]
    parts = [given] if isinstance(given, str) else given
    if not parts or not set(parts) <= set(PARTS):
        raise InputError(f"parts: must be some of {', '.join(PARTS)}, got {parts!r}.")
    base = source.locate(TABLE)
    patients = _patients(base / TABLE)
    names = {path.name: path for path in sorted(base.iterdir()) if _counts(path, source)}
    problems = {name: _problem(path, names, parts) for name, path in names.items()}
    left = [LeftOut(name, problem) for name, problem in problems.items() if problem]
    left += [
        LeftOut(f"{TABLE}, line {line}", "no such picture")
        for name, (_, line) in patients.items()
        if f"{name}{SUFFIX}" not in names
    ]
    pictures = [path for name, path in names.items() if not problems[name] and not path.stem.endswith(MASK_ENDING)]
    unknown = [path for path in pictures if path.stem not in patients]
    left += [LeftOut(path.name, f"{TABLE} does not name its patient") for path in unknown]
    found, more = _read([_found(path, patients[path.stem][0]) for path in pictures if path not in unknown])
    return found, left + more


def _counts(path: Path, source: DatasetSource) -> bool:
    """Whether an entry of the folder is neither hidden, well known, nor made by a build."""
    made = path.absolute() == source.files_dir.absolute() or source.is_output(path)
    return not (made or is_hidden(path.name) or path.name == TABLE or is_beside(path))


def _found(path: Path, patient: str) -> Found:
    mask = path.with_name(f"{path.stem}{MASK_ENDING}{SUFFIX}")
    split = PARTS[_part(path.stem)]
    return Found(name=path.stem, path=path, label=mask, patient=patient, split=split, files=(path,))


def _part(stem: str) -> str:
    """The part of the data set that a name belongs to.

    >>> _part("testA_12"), _part("testA_12_anno")
    ('testA', 'testA')
    """
    return stem.partition("_")[0]


def _problem(path: Path, names: Mapping[str, Path], parts: list[str]) -> str:
    """Why an entry of the folder is not used, or ""."""
    if path.suffix.lower() != SUFFIX:
        return f"pictures and masks of this data set end in {SUFFIX}"
    if _part(path.stem) not in PARTS:
        return f"its name begins with none of {', '.join(PARTS)}"
    if _part(path.stem) not in parts:
        return "its part is not among the parts that were asked for"
    if path.stem.endswith(MASK_ENDING):
        picture = f"{path.stem.removesuffix(MASK_ENDING)}{SUFFIX}"
        return "" if picture in names else "a mask without picture"
    return "" if f"{path.stem}{MASK_ENDING}{SUFFIX}" in names else "a picture without mask"


def _patients(path: Path) -> dict[str, tuple[str, int]]:
    """Picture -> patient and line of the table.

    Raises:
        InputError: no such column, or a picture with two patients; lines are named.
    """
    patients = dict[str, tuple[str, int]]()
    for line, row in _rows(path):
        name, patient = row[NAME], row[PATIENT]
        if not name or not patient:
            continue
        known, first = patients.setdefault(name, (patient, line))
        if known != patient:
            raise InputError(f"{path}: lines {first} and {line} name two patients for one picture. Correct the table.")
    return patients


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and values by column.

    The publisher's file has a space behind its commas, and carriage returns alone between its lines.
    """
    with naming_file(require_file(path), show_detail=False):
        reader = csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines())
        columns = {name.strip() for name in reader.fieldnames or ()}
        if not {NAME, PATIENT} <= columns:
            found = ", ".join(sorted(columns))
            raise InputError(f"{path}: must have the columns {NAME!r} and {PATIENT!r}, found {found}.")
        for row in reader:
            yield reader.line_num, {key.strip(): (value or "").strip() for key, value in row.items() if key}


def _read(found: list[Found]) -> Findings:
    """Items whose picture and mask can be read and have one grid."""
    kept, left = list[Found](), list[LeftOut]()
    with ThreadPoolExecutor() as pool:
        read = progress(pool.map(_checked, found), description="read pictures", total=len(found), unit="file")
        for item, result in zip(found, read, strict=True):
            if isinstance(result, str):
                left.append(LeftOut(item.name, result))
            else:
                kept.append(replace(item, size=result))
    return kept, left


def _checked(item: Found) -> tuple[int, ...] | str:
    """(width, height), or why the item cannot be used."""
    path, mask = Path(str(item.path)), Path(item.label)
    try:
        picture = read_image(path)
        read_mask_of(picture, mask)
    except InputError as error:
        return reason(error, path).removeprefix(f"{mask}: ")
    return picture.array.shape[1], picture.array.shape[0]
