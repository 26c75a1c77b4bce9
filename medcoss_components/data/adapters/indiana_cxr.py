"""Indiana University chest radiographs (Open-i): frontal and lateral images of about 3,900 reports.

Two ways in which they are shared: images ``<report>_IM-....dcm.png`` with the table ``indiana_projections.csv``, which
says report and view, and images ``CXR<report>_....png`` with the reports as XML files, which name their images. Text of
reports is never read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medcoss_components.data.adapters.beside import odd_files
from medcoss_components.data.adapters.findings import DatasetSource, Findings, Found, LeftOut, bare_name, reason
from medcoss_components.data.adapters.mimic_cxr_studies import table_rows
from medcoss_components.data.adapters.picture_headers import with_sizes
from medcoss_components.data.adapters.picture_lists import by_key, chosen, missing_files, only_chosen
from medcoss_components.data.readers_common import naming_file
from medcoss_components.errors import InputError
from medcoss_components.progress import progress

TABLE, TEXTS = "indiana_projections.csv", "indiana_reports.csv"
VIEWS = ("Frontal", "Lateral")
BODY_PART = "chest"
_COLUMNS = ("uid", "filename", "projection")
_NAMES = {True: re.compile(r"(\d+)_IM-.+\.png"), False: re.compile(r"CXR(\d+)_.+\.png")}
"""Names of the images, with and without the table; they begin with the number of the report."""
_REPORT = re.compile(r"\d+\.xml")


@dataclass(frozen=True)
class _Row:
    """An image that the table or a report names: file, number of the report, view ("" where not told), place."""

    name: str = field(repr=False)
    report: str = field(repr=False)
    view: str
    where: str


def find(source: DatasetSource) -> Findings:
    """Images that a table or a report names; those of a report are taken for one patient's.

    Raises:
        InputError: neither layout, a damaged table, or views that are not told.
    """
    views = chosen(source.settings, "views", VIEWS)
    root, with_table = _locate(source)
    files = source.files(root)
    pattern = _NAMES[with_table]
    images, left, others = by_key(files, root, lambda path: path.name if pattern.fullmatch(path.name) else None)
    if not images:
        raise InputError(
            f"{root}: holds no radiograph. Unpack the images beside the {'table' if with_table else 'reports'}."
        )
    reports = [path for path in others if not with_table and _REPORT.fullmatch(path.name)]
    known = {*reports, root / TABLE, root / TEXTS}
    left += odd_files((path for path in others if path not in known), root, "not part of what is read")
    named, broken = (list(_table(root / TABLE)), []) if with_table else _named_by(reports, root)
    rows, unusable = _usable(named, pattern)
    left += broken + unusable
    if not with_table:
        rows = _without_reports(source, rows, images, views, bool(reports))
    wanted, other_views = only_chosen(list(rows.values()), lambda row: row.view, views, setting="views")
    left += other_views
    left += [LeftOut(name, "named by no report") for name in images if name not in rows]
    missing = [f"{row.where}: {row.name}" for row in wanted if row.name not in images]
    left += missing_files(missing, "reports", "its image is not there")
    found, broken = with_sizes([_found(row, images[row.name], root) for row in wanted if row.name in images])
    return found, left + broken


def _locate(source: DatasetSource) -> tuple[Path, bool]:
    """The folder that holds the data set, and whether it has the table."""
    try:
        return source.locate(TABLE), True
    except InputError:
        if not source.root.is_dir() or any(source.root.glob(f"**/{TABLE}")):
            raise
    return source.root, False


def _table(path: Path) -> Iterator[_Row]:
    for number, cells in table_rows(path, _COLUMNS):
        report, name, view = ((cells[column] or "").strip() for column in _COLUMNS)
        if view not in VIEWS:
            raise InputError(f"{path}: row {number}: projection must be one of {', '.join(VIEWS)}. Restore the table.")
        yield _Row(name, report, view, f"{path.name} row {number}")


def _named_by(reports: Sequence[Path], root: Path) -> tuple[list[_Row], list[LeftOut]]:
    """Images that reports name, and reports that cannot be read; a report's number is its file's."""
    rows, left = list[_Row](), list[LeftOut]()
    for path in progress(reports, description="read reports", unit="report"):
        place = path.relative_to(root).as_posix()
        try:
            rows += [_Row(f"{name}.png", path.stem, "", place) for name in _images_of(path)]
        except InputError as error:
            left.append(LeftOut(place, reason(error, path)))
    return rows, left


def _images_of(path: Path) -> list[str]:
    """Names of the images of a report, without suffix.

    Raises:
        InputError: a file that cannot be read; nothing of its text is shown.
    """
    from xml.etree.ElementTree import iterparse

    with naming_file(path, show_detail=False), open(path, "rb") as stream:
        elements = [element for _, element in iterparse(stream) if element.tag == "parentImage"]
        return [element.get("id", "").strip() for element in elements]


def _usable(rows: Sequence[_Row], pattern: re.Pattern[str]) -> tuple[dict[str, _Row], list[LeftOut]]:
    """Rows by their image, and those whose image's name is not of their report."""
    found, left = dict[str, _Row](), list[LeftOut]()
    for row in rows:
        match = pattern.fullmatch(row.name)
        if match is None or match.group(1) != row.report:
            left.append(LeftOut(row.where, "it names no image that is called by the number of its report"))
        elif (first := found.setdefault(row.name, row)) != row:
            left.append(LeftOut(row.where, f"{first.where} names this image, too"))
    return found, left


def _without_reports(
    source: DatasetSource,
    rows: Mapping[str, _Row],
    images: Mapping[str, Path],
    views: Sequence[str] | None,
    has_reports: bool,
) -> dict[str, _Row]:
    """Rows of the layout without table: without reports the images' names have to tell."""
    if views is not None:
        raise InputError(f"settings: views are told by {TABLE} only, which is not there. Leave views at null.")
    if has_reports:
        return dict(rows)
    source.notes.append("Neither a table nor reports are there; the names of the images say the report of each.")
    pattern = _NAMES[False]
    return {
        name: _Row(name, match.group(1), "", name) for name in images if (match := pattern.fullmatch(name)) is not None
    }


def _found(row: _Row, path: Path, root: Path) -> Found:
    relative = path.relative_to(root).as_posix()
    return Found(
        name=bare_name(relative),
        keys={"file": relative, "study": row.report},
        path=path,
        patient=row.report,
        files=(path,),
        body_part=BODY_PART,
    )
