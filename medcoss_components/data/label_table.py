"""Tables of labels: a CSV that says which file, series, study or patient has which label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medcoss_components.data.item_table import body_part_name
from medcoss_components.data.readers_common import naming_file, require_file
from medcoss_components.data.readers_text import table_reader
from medcoss_components.errors import InputError

BODY_PART = "body_part"
"""Column of the body part, where a table has it."""
KEYS = ("file", "series", "study", "patient", "id")
"""Columns that may say what a row is about; the first one that the table has does."""
SPLIT_NAMES = {
    **dict.fromkeys(("training", "train"), "training"),
    **dict.fromkeys(("validation", "valid", "val"), "validation"),
    **dict.fromkeys(("testing", "test"), "testing"),
}


@dataclass(frozen=True)
class LabelRow:
    """One row: its line in the file, and what stands in it. Key and patient may identify a person: never show them.

    The label is a text, "" where there is none; in tables of boxes (``box_labels.py``) it is a list.
    """

    line: int
    key: str = field(repr=False)
    label: Any
    patient: str = field(repr=False, default="")
    split: str = ""
    body_part: str = ""


@dataclass(frozen=True)
class LabelTable:
    """Rows by key, and what the key is ("file", "series", "study", "patient" or "id")."""

    key: str
    rows: Mapping[str, LabelRow]


def read_label_table(
    path: str | Path,
    *,
    key_column: str | None = None,
    label_column: str = "label",
    group_column: str | None = None,
    split_column: str | None = None,
) -> LabelTable:
    """Read a CSV (comma or semicolon) or TSV table with a header line, UTF-8. A column ``body_part`` is read as well.

    Args:
        path: the table.
        key_column: column that names files; None: the first of ``file``, ``series``, ``study``, ``patient``, ``id``.
            A column of another name holds files.
        label_column: column of the label.
        group_column: column of the patient; None: ``patient``, where there is one.
        split_column: column that fixes the split (training, validation, testing); None: no such column.

    Raises:
        InputError: missing file or column, a row with two labels for one key, an unknown split. Lines are named, their
            content is not shown.
    """
    path = Path(path)
    columns, lines = table_lines(path)
    key = key_column or next((name for name in KEYS if name in columns), "file")
    group = group_column or ("patient" if "patient" in columns else None)
    require_columns(path, columns, [key, label_column, *filter(None, (group_column, split_column))])
    rows = (_row(path, line, row, (key, label_column, group, split_column)) for line, row in lines)
    return LabelTable(key if key in KEYS else "file", _by_key(path, [row for row in rows if row.key]))


def table_lines(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Columns of a table, and the number and the cells of each line, without blanks around them.

    Raises:
        InputError: a missing or unreadable file.
    """
    path = require_file(path)
    with naming_file(path, show_detail=False):
        reader = table_reader(path)
        lines = [(reader.line_num, row) for row in reader]
    columns = [name.strip() for name in reader.fieldnames or ()]
    return columns, [(number, _cells(row)) for number, row in lines]


def _cells(row: Mapping[str | None, str]) -> dict[str, str]:
    return {(name or "").strip(): (value or "").strip() for name, value in row.items() if isinstance(value, str)}


def require_columns(path: Path, columns: Sequence[str], needed: Sequence[str]) -> None:
    """Raise InputError where a table misses a column."""
    if missing := [name for name in needed if name not in columns]:
        raise InputError(
            f"{path}: no column {', '.join(map(repr, missing))}; found {', '.join(map(repr, columns))}. "
            "Name the columns with --key-column, --label-column, --group-column, --split-column."
        )


def _row(
    path: Path, line: int, values: Mapping[str, str], columns: tuple[str, str, str | None, str | None]
) -> LabelRow:
    key, label, patient, split = (values.get(name, "") if name else "" for name in columns)
    if split and split.lower() not in SPLIT_NAMES:
        raise InputError(f"{path}: line {line}: split must be one of {', '.join(SPLIT_NAMES)}, got {split[:20]!r}.")
    return LabelRow(line, key, label, patient, SPLIT_NAMES.get(split.lower(), ""), body_part_of(path, line, values))


def body_part_of(path: Path, line: int, values: Mapping[str, str]) -> str:
    """Body part that a line tells, "" where it tells none.

    Raises:
        InputError: something else than words; it is not shown.
    """
    text = values.get(BODY_PART, "")
    if text and not body_part_name(text):
        raise InputError(f"{path}: line {line}: {BODY_PART} must be words such as 'left hand'. Correct it.")
    return body_part_name(text)


def _by_key(path: Path, rows: Sequence[LabelRow]) -> dict[str, LabelRow]:
    found: dict[str, LabelRow] = {}
    for row in rows:
        other = found.setdefault(row.key, row)
        if replace(other, line=row.line) != row:
            raise InputError(f"{path}: lines {other.line} and {row.line} say different things about the same key.")
    return found
