"""Tables of MIMIC-CXR that say which patient a study is of, and which split it belongs to."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medcoss_components.data.readers_common import naming_file, require_file
from medcoss_components.data.readers_text import table_reader
from medcoss_components.errors import InputError

STUDY_LIST = "cxr-study-list.csv"
SPLIT_LIST = "mimic-cxr-2.?.?-split.csv"
SPLITS = {"train": "training", "validate": "validation", "test": "testing"}
_NUMBER = re.compile(r"[sp]?(\d{8})")


@dataclass(frozen=True)
class Studies:
    """What the tables say.

    Args:
        patients: study -> patient, published pseudonyms of eight digits.
        splits: study -> "training", "validation" or "testing".
        patient_splits: patient -> the same.
    """

    patients: Mapping[str, str] = field(default_factory=dict, repr=False)
    splits: Mapping[str, str] = field(default_factory=dict, repr=False)
    patient_splits: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, folders: Iterable[Path], *, split_file: str | Path | None = None) -> Studies:
        """Read what lies in the first of the folders that has it; nothing where none does.

        Raises:
            InputError: a table that is damaged or lacks a column, or no such ``split_file``.
        """
        folders = list(folders)
        patients, splits, patient_splits = dict[str, str](), dict[str, str](), dict[str, str]()
        if listed := find_table(folders, STUDY_LIST):
            for number, row in table_rows(listed, ("subject_id", "study_id")):
                study, patient = _numbers(row, listed, number)
                patients[study] = patient
        split_path = _chosen(split_file, folders) if split_file else find_table(folders, SPLIT_LIST)
        if split_path:
            for number, row in table_rows(split_path, ("subject_id", "study_id", "split")):
                study, patient = _numbers(row, split_path, number)
                if row["split"] not in SPLITS:
                    raise InputError(f"{split_path}: row {number}: split must be one of {', '.join(SPLITS)}.")
                patients.setdefault(study, patient)
                splits[study] = patient_splits[patient] = SPLITS[row["split"]]
        return cls(patients, splits, patient_splits)

    def split(self, study: str, patient: str) -> str:
        """Split of a study; of one that is not listed, of its patient; "" when neither is."""
        return self.splits.get(study) or self.patient_splits.get(patient, "")


def _chosen(split_file: str | Path, folders: list[Path]) -> Path:
    path = next((folder / split_file for folder in folders if (folder / split_file).is_file()), Path(split_file))
    if not path.is_file():
        raise InputError(f"split_file: {split_file}: no such file.")
    return path


def find_table(folders: Iterable[Path], pattern: str) -> Path | None:
    """The first table of that name, plain or ``.gz``, in the folders."""
    for folder in folders:
        for name in (pattern, f"{pattern}.gz"):
            if hit := next(iter(sorted(folder.glob(name))), None):
                return hit
    return None


def table_rows(path: Path, columns: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number, from 1, and content of each row of a table.

    Raises:
        InputError: a damaged table, or one that lacks a column.
    """
    with naming_file(require_file(path), show_detail=False):
        reader: csv.DictReader = table_reader(path)
        if missing := [name for name in columns if name not in (reader.fieldnames or ())]:
            raise InputError(f"{path}: no column {', '.join(missing)}. Restore the file.")
        yield from enumerate(reader, start=1)


def study_number(text: str | None) -> str | None:
    """The eight digits of a study or patient, with or without a letter before; None for anything else.

    >>> study_number("s50414267"), study_number("50414267"), study_number("all")
    ('50414267', '50414267', None)
    """
    match = _NUMBER.fullmatch((text or "").strip())
    return match.group(1) if match else None


def _numbers(row: Mapping[str, Any], path: Path, number: int) -> tuple[str, str]:
    study, patient = study_number(row["study_id"]), study_number(row["subject_id"])
    if study is None or patient is None:
        raise InputError(f"{path}: row {number}: study_id and subject_id must have eight digits.")
    return study, patient
