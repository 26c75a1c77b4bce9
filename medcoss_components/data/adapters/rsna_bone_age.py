"""RSNA bone age: radiographs of children's left hands, ``<number>.png``, and tables of bone age in months and sex.

The publisher's download and the well-known mirror differ in folders and tables; both are read. The sex in the tables
is never kept.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medcoss_components.data.adapters.beside import odd_files
from medcoss_components.data.adapters.findings import DatasetSource, Findings, Found, LeftOut, bare_name
from medcoss_components.data.adapters.picture_headers import with_sizes
from medcoss_components.data.adapters.picture_lists import by_key, missing_files
from medcoss_components.data.readers_common import naming_file
from medcoss_components.data.readers_text import table_reader
from medcoss_components.errors import InputError

SPLITS = {"train": "training", "valid": "validation", "test": "testing"}
"""What the name of a folder or a table contains -> split."""
NUMBERS = ("id", "Image ID", "Case ID")
AGES = ("boneage", "Bone Age (months)", "Ground truth bone age (months)")
"""Columns of the number and of the age, as the tables of the three splits call them."""
LABELS = ("months", None)
LARGEST = 300
"""Months; bone ages end below 20 years."""
BODY_PART = "hand"
ODD = "neither a radiograph <number>.png of a split nor its table; a spreadsheet is read when it is saved as CSV"
Case = tuple[str, int]
"""Split and number of an image."""


@dataclass(frozen=True)
class _Row:
    """A row of a table: where it stands, the image, and its bone age in months, None where it is not told."""

    where: str
    case: Case = field(repr=False)
    months: float | None = field(repr=False)


def find(source: DatasetSource) -> Findings:
    """Images of the three splits, with the bone age in months as a number where ``label`` asks for it.

    Raises:
        InputError: no image where one is expected, a table that cannot be read or contradicts itself, or another label.
    """
    label = source.settings.get("label")
    if label not in LABELS:
        raise InputError(f"settings: label must be months or null, got {label!r}.")
    if not source.root.is_dir():
        raise InputError(f"{source.root}: no such folder. Give the folder of the data set.")
    files = source.files()
    rows, tables, left = _read_tables((path for path in files if path.suffix.lower() == ".csv"), source.root)
    images, same, others = by_key(files, source.root, lambda path: _case(path, source.root))
    if not images:
        raise InputError(
            f"{source.root}: holds no radiographs <number>.png in folders whose names say training, validation or test."
        )
    left += same + odd_files((path for path in others if path not in tables), source.root, ODD)
    left += missing_files(
        [row.where for case, row in rows.items() if case not in images], "tables", "its image is not there"
    )
    ages = {case: row.months for case, row in rows.items()} if label else {}
    found, broken = with_sizes([_found(path, source.root, case[0], ages.get(case)) for case, path in images.items()])
    if label and (unknown := sum(item.label is None for item in found)):
        source.notes.append(f"Of {unknown} of {len(found)} images no bone age is known; they have no label.")
    return found, left + broken


def _split(path: Path, root: Path) -> str:
    """Split that the innermost telling name of a path below the root says, or ""."""
    for part in reversed(path.relative_to(root).parts):
        told = {split for word, split in SPLITS.items() if word in part.lower()}
        if len(told) == 1:
            return told.pop()
    return ""


def _case(path: Path, root: Path) -> Case | None:
    split = _split(path.parent, root)
    known = split and path.suffix.lower() == ".png" and path.stem.isascii() and path.stem.isdigit()
    return (split, int(path.stem)) if known else None


def _read_tables(files: Iterable[Path], root: Path) -> tuple[dict[Case, _Row], set[Path], list[LeftOut]]:
    """Rows by image, the files that they stand in, and rows that cannot be used.

    Raises:
        InputError: a table that cannot be read, or two ages of one image.
    """
    rows, tables, left = dict[Case, _Row](), set[Path](), list[LeftOut]()
    for path in files:
        read = _read_table(path, root)
        if read is None:
            continue
        tables.add(path)
        left += [entry for entry in read if isinstance(entry, LeftOut)]
        for row in (entry for entry in read if isinstance(entry, _Row)):
            earlier = rows.get(row.case)
            if earlier is None or earlier.months is None:
                rows[row.case] = row
            elif row.months not in (None, earlier.months):
                raise InputError(
                    f"{path}: {row.where} gives an image another bone age than {earlier.where}. Restore the tables."
                )
    return rows, tables, left


def _read_table(path: Path, root: Path) -> list[_Row | LeftOut] | None:
    """Rows of a table; None where it has no column of numbers or belongs to no split."""
    split, place = _split(path, root), path.relative_to(root).as_posix()
    with naming_file(path, show_detail=False):
        reader: csv.DictReader = table_reader(path)
        number, age = _column(reader, NUMBERS), _column(reader, AGES)
        if not split or number is None:
            return None
        return [
            _row(f"{place} row {count}", split, cells[number], cells[age] if age else "")
            for count, cells in enumerate(reader, start=1)
        ]


def _row(where: str, split: str, number: str | None, age: str | None) -> _Row | LeftOut:
    number, months = (number or "").strip(), _months((age or "").strip())
    if not (number.isascii() and number.isdigit()) or (months is not None and not 0 < months <= LARGEST):
        return LeftOut(where, "its number or its bone age in months is unusable")
    return _Row(where, (split, int(number)), months)


def _column(reader: csv.DictReader, names: Sequence[str]) -> str | None:
    return next((name for name in reader.fieldnames or () if name.strip() in names), None)


def _months(text: str) -> float | None:
    """Bone age, None of an empty cell; what is no number becomes 0, which no age is."""
    try:
        return float(text) if text else None
    except ValueError:
        return 0.0


def _found(path: Path, root: Path, split: str, months: float | None) -> Found:
    relative = path.relative_to(root).as_posix()
    return Found(
        name=bare_name(relative),
        keys={"file": relative},
        path=path,
        label=months,
        split=split,
        files=(path,),
        body_part=BODY_PART,
    )
