"""NIH ChestX-ray14: 112,120 frontal chest radiographs, ``<patient>_<number>.png``, and one table about them.

Findings were mined from reports by the publisher. The lists of the publisher's split lie beside the table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from medcoss_components.data.adapters.beside import odd_files
from medcoss_components.data.adapters.findings import DatasetSource, Findings, Found, LeftOut, bare_name
from medcoss_components.data.adapters.mimic_cxr_studies import table_rows
from medcoss_components.data.adapters.picture_headers import with_sizes
from medcoss_components.data.adapters.picture_lists import by_key, chosen, missing_files, only_chosen
from medcoss_components.data.readers_common import naming_file
from medcoss_components.errors import InputError
from medcoss_components.progress import progress

TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
"""The table's names; the later edition counts where both are there."""
LISTS = {"train_val_list.txt": "training", "test_list.txt": "testing"}
NO_FINDING = "No Finding"
FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia",
    "Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax",
)  # fmt: skip
VIEWS = ("AP", "PA")
BODY_PART = "chest"
_COLUMNS = ("Image Index", "Finding Labels", "Patient ID", "View Position")
_NAME = re.compile(r"(\d{8})_\d{3}\.png")
_BESIDE = re.compile(r"(data_entry|bbox_list)_2017.*\.csv|.*chestxray.*\.pdf", re.IGNORECASE)


@dataclass(frozen=True)
class _Row:
    """An image of the table: file name, number of the patient, findings, view."""

    name: str = field(repr=False)
    patient: str = field(repr=False)
    findings: tuple[str, ...]
    view: str


def find(source: DatasetSource) -> Findings:
    """Images of the table with their list of findings; ``["No Finding"]`` where there is none.

    Raises:
        InputError: another layout, a table without a column that is needed or with contradicting rows, an image in
            both lists of the split, or views that there are not.
    """
    views = chosen(source.settings, "views", VIEWS)
    root = _locate(source)
    table = next(root / name for name in TABLES if (root / name).is_file())
    rows, left = _read_table(table)
    splits = _splits(root)
    if not splits:
        source.notes.append(f"{' and '.join(LISTS)} are not there; --split-by published needs them.")
    images, same, others = by_key(
        source.files(root), root, lambda path: path.name if _NAME.fullmatch(path.name) else None
    )
    left += same + odd_files((path for path in others if not _is_known(path)), root, "not part of what is read")
    wanted, other_views = only_chosen(list(rows.values()), lambda row: row.view, views, setting="views")
    left += [LeftOut(name, "no row in the table") for name in images if name not in rows] + other_views
    left += missing_files(
        [row.name for row in wanted if row.name not in images], table.name, "a row of the table without file"
    )
    found, broken = with_sizes(
        [_found(row, images[row.name], root, splits.get(row.name, "")) for row in wanted if row.name in images]
    )
    return found, left + broken


def _locate(source: DatasetSource) -> Path:
    """The folder of the table."""
    try:
        return source.locate(TABLES[0])
    except InputError:
        try:
            return source.locate(TABLES[1])
        except InputError:
            pass
        raise


def _is_known(path: Path) -> bool:
    return path.name in LISTS or _BESIDE.fullmatch(path.name) is not None


def _read_table(path: Path) -> tuple[dict[str, _Row], list[LeftOut]]:
    """Rows by name of the image, and those that cannot be used."""
    rows, left = dict[str, _Row](), list[LeftOut]()
    for number, cells in progress(table_rows(path, _COLUMNS), description="read table", unit="row"):
        row = _row({name: (cells[name] or "").strip() for name in _COLUMNS})
        if isinstance(row, str):
            left.append(LeftOut(f"{path.name} row {number}", row))
        elif (first := rows.setdefault(row.name, row)) is not row:
            if first != row:
                raise InputError(
                    f"{path}: row {number} says something else about an image than an earlier row. Restore the table."
                )
            left.append(LeftOut(f"{path.name} row {number}", "an earlier row says the same"))
    return rows, left


def _row(cells: Mapping[str, str]) -> _Row | str:
    """A row, or why it cannot be used; names begin with the patient's number, which must be that of the table."""
    name, labels, patient, view = (cells[column] for column in _COLUMNS)
    match = _NAME.fullmatch(name)
    if match is None:
        return "it names no image such as 00000001_000.png"
    if not patient.isascii() or not patient.isdigit() or int(patient) != int(match.group(1)):
        return "its patient is not the one in the image's name"
    findings = tuple(sorted(label.strip() for label in labels.split("|")))
    if findings != (NO_FINDING,) and (not set(findings) <= set(FINDINGS) or len(set(findings)) < len(findings)):
        return "its findings are not some of the 14 known ones, each once"
    return _Row(name, match.group(1), findings, view or "none")


def _splits(root: Path) -> dict[str, str]:
    """Split of each image by the publisher's lists; empty without them."""
    splits = dict[str, str]()
    for name, split in LISTS.items():
        path = root / name
        if not path.is_file():
            continue
        with naming_file(path, show_detail=False):
            lines = path.read_text(encoding="utf-8-sig").split()
        for number, line in enumerate(lines, start=1):
            if splits.setdefault(line, split) != split:
                raise InputError(f"{path}: line {number} names an image of another list, too. Restore both lists.")
    return splits


def _found(row: _Row, path: Path, root: Path, split: str) -> Found:
    return Found(
        name=bare_name(path.relative_to(root)),
        keys={"file": row.name},
        path=path,
        patient=row.patient,
        label=list(row.findings),
        split=split,
        files=(path,),
        body_part=BODY_PART,
    )
