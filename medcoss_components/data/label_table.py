"""Tables of labels: a CSV that says which file, series, study or patient has which label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medcoss_components.data.readers_common import naming_file, require_file
from medcoss_components.data.readers_text import table_reader
from medcoss_components.errors import InputError

KEYS = ("file", "series", "study", "patient", "id")
"""Columns that may say what a row is about; the first one that the table has does."""
SPLIT_NAMES = {
    **dict.fromkeys(("training", "train"), "training"),
    **dict.fromkeys(("validation", "valid", "val"), "validation"),
    **dict.fromkeys(("testing", "test"), "testing"),
}


@dataclass(frozen=True)
class LabelRow:
    """One row: its line in the file, and what stands in it. Key and patient may identify a person: never show them."""

    line: int
    key: str = field(repr=False)
    label: str
    patient: str = field(repr=False, default="")
    split: str = ""


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
    """Read a CSV (comma or semicolon) or TSV table with a header line, UTF-8.

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
    path = require_file(path)
    with naming_file(path, show_detail=False):
        reader = table_reader(path)
        lines = [(reader.line_num, row) for row in reader]
    columns = [name.strip() for name in reader.fieldnames or ()]
    key = key_column or next((name for name in KEYS if name in columns), "file")
    group = group_column or ("patient" if "patient" in columns else None)
    _require_columns(path, columns, [key, label_column, *filter(None, (group_column, split_column))])
    rows = (_row(path, line, row, (key, label_column, group, split_column)) for line, row in lines)
    return LabelTable(key if key in KEYS else "file", _by_key(path, [row for row in rows if row.key]))


def _require_columns(path: Path, columns: Sequence[str], needed: Sequence[str]) -> None:
    if missing := [name for name in needed if name not in columns]:
        raise InputError(
            f"{path}: no column {', '.join(map(repr, missing))}; found {', '.join(map(repr, columns))}. "
            "Name the columns with --key-column, --label-column, --group-column, --split-column."
        )


def _row(
    path: Path, line: int, row: Mapping[str | None, str], columns: tuple[str, str, str | None, str | None]
) -> LabelRow:
    values = {(name or "").strip(): (value or "").strip() for name, value in row.items() if isinstance(value, str)}
    key, label, patient, split = (values.get(name, "") if name else "" for name in columns)
    if split and split.lower() not in SPLIT_NAMES:
        raise InputError(f"{path}: line {line}: split must be one of {', '.join(SPLIT_NAMES)}, got {split[:20]!r}.")
    return LabelRow(line, key, label, patient, SPLIT_NAMES.get(split.lower(), ""))


def _by_key(path: Path, rows: Sequence[LabelRow]) -> dict[str, LabelRow]:
    found: dict[str, LabelRow] = {}
    for row in rows:
        other = found.setdefault(row.key, row)
        if (other.label, other.split, other.patient) != (row.label, row.split, row.patient):
            raise InputError(f"{path}: lines {other.line} and {row.line} say different things about the same key.")
    return found
