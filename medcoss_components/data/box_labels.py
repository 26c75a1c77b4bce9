"""Boxes that one's own pictures come with: a COCO file, a folder of Pascal VOC files, or a table.

Whatever their form, they become ``[left, top, right, bottom]`` in pixels from the upper left corner of the picture,
right and bottom exclusive (``boxes.py``). What each form counts in stands in :data:`UNITS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medcoss_components.data.adapters.findings import bare_name, walk
from medcoss_components.data.label_table import (
    KEYS,
    SPLIT_NAMES,
    LabelRow,
    LabelTable,
    body_part_of,
    require_columns,
    table_lines,
)
from medcoss_components.data.readers_common import naming_file
from medcoss_components.errors import InputError
from medcoss_components.files import read_json

CORNERS = ("left", "top", "right", "bottom")
EXTENTS = ("x", "y", "width", "height")
UNITS = {
    "COCO": "bbox is x, y, width, height in pixels, the upper left corner of the picture is 0, 0",
    "Pascal VOC": "the first pixel is 1, xmax and ymax belong to the box",
    "table": "pixels, the upper left corner of the picture is 0, 0; right and bottom do not belong to the box",
}
"""Form -> what its numbers count."""


def box_form(path: Path) -> str:
    """Form of the boxes at ``path``, a key of :data:`UNITS`; "" where it is a table of other labels."""
    if path.is_dir():
        return "Pascal VOC"
    if path.suffix.lower() == ".json":
        return "COCO"
    columns, _ = table_lines(path)
    return "table" if _sides(columns) else ""


def _sides(columns: Sequence[str]) -> tuple[str, ...]:
    return next((sides for sides in (CORNERS, EXTENTS) if set(sides) <= set(columns)), ())


def read_boxes(path: Path, **columns: str | None) -> LabelTable:
    """Boxes by picture; a picture that is listed without any has the label [].

    Args:
        path: COCO file (``.json``), folder of Pascal VOC files (named like the pictures), or a table with the columns
            file, left, top, right, bottom (or x, y, width, height) and category, one row for each box; cells left empty
            say that nothing is there.
        columns: of a table: key_column, label_column (of the category), group_column, split_column, see
            :func:`~medcoss_components.data.label_table.read_label_table`.

    Raises:
        InputError: a missing or broken file, boxes that are no four numbers in order, or shares instead of pixels.
            Lines are named, their texts are not shown.
    """
    readers: dict[str, Callable[[], LabelTable]] = {
        "COCO": lambda: _read_coco(path),
        "Pascal VOC": lambda: _read_voc(path),
        "table": lambda: _read_table(path, **columns),
    }
    table = readers[box_form(path)]()
    boxes = [entry["box"] for row in table.rows.values() for entry in row.label]
    if boxes and max(max(box) for box in boxes) <= 1:
        raise InputError(f"{path}: all boxes end at 1 or before: they look like shares of the picture. Give pixels.")
    return table


def _box(where: str, sides: Sequence[Any], category: Any) -> dict[str, Any]:
    """An entry of a label; whole numbers stay whole."""
    try:
        numbers = [float(side) for side in sides]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise InputError(f"{where}: a box needs four finite numbers. Correct or remove it.")
    left, top, right, bottom = numbers
    if not (left < right and top < bottom):
        raise InputError(
            f"{where}: left must be below right and top below bottom, got {numbers}. Correct or remove it."
        )
    if not (name := str(category or "").strip()):
        raise InputError(f"{where}: the box has no category. Give one.")
    return {"box": [int(side) if side.is_integer() else side for side in numbers], "category": name}


def _read_coco(path: Path) -> LabelTable:
    with naming_file(path, show_detail=False):
        content = read_json(path)
        known = isinstance(content, dict) and {"images", "annotations", "categories"} <= set(content)
        if not known:
            raise InputError(f"{path}: no COCO file of boxes; it needs images, annotations and categories.")
        categories = {entry["id"]: entry["name"] for entry in content["categories"]}
        names = {entry["id"]: str(entry["file_name"]) for entry in content["images"]}
        labels: dict[Any, list[dict[str, Any]]] = {identifier: [] for identifier in names}
        for number, entry in enumerate(content["annotations"]):
            where = f"{path}: annotation {number}"
            if entry["image_id"] not in labels:
                raise InputError(f"{where}: its image_id stands in no image. Correct the file.")
            left, top, width, height = entry["bbox"]
            box = _box(where, (left, top, left + width, top + height), categories.get(entry["category_id"]))
            labels[entry["image_id"]].append(box)
    rows = {names[key]: LabelRow(place, names[key], label) for place, (key, label) in enumerate(labels.items())}
    if len(rows) < len(names):
        raise InputError(f"{path}: {len(names) - len(rows)} file names stand more than once. Name each image once.")
    return LabelTable("file", rows)


def _read_voc(folder: Path) -> LabelTable:
    rows = {}
    for number, path in enumerate(path for path in walk(folder) if path.suffix.lower() == ".xml"):
        name = bare_name(path.relative_to(folder).as_posix().removesuffix(path.suffix))
        rows[name] = LabelRow(number, name, list(_voc_boxes(path)))
    if not rows:
        raise InputError(f"labels: {folder} holds no .xml file. Give the folder of the Pascal VOC files, or a file.")
    return LabelTable("file", rows)


def _voc_boxes(path: Path) -> Iterator[dict[str, Any]]:
    from xml.etree.ElementTree import parse

    with naming_file(path, show_detail=False):
        root = parse(path).getroot()
        if root.tag != "annotation":
            raise InputError(f"{path}: no Pascal VOC file, its first element is no annotation. Take it away.")
        for number, entry in enumerate(root.findall("object")):
            sides = [entry.findtext(f"bndbox/{name}") for name in ("xmin", "ymin", "xmax", "ymax")]
            box = _box(f"{path}: object {number}", sides, entry.findtext("name"))
            left, top, right, bottom = box["box"]
            yield box | {"box": [left - 1, top - 1, right, bottom]}


def _read_table(
    path: Path,
    *,
    key_column: str | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
    split_column: str | None = None,
) -> LabelTable:
    columns, lines = table_lines(path)
    key = key_column or next((name for name in KEYS if name in columns), "file")
    category = label_column if label_column in columns else "category"
    group = group_column or ("patient" if "patient" in columns else None)
    require_columns(path, columns, [key, str(category), *filter(None, (group_column, split_column))])
    rows: dict[str, LabelRow] = {}
    for line, row in lines:
        if not row.get(key):
            continue
        split = row.get(split_column or "", "").lower()
        if split and split not in SPLIT_NAMES:
            raise InputError(f"{path}: line {line}: split must be one of {', '.join(SPLIT_NAMES)}, got {split[:20]!r}.")
        label = _table_boxes(f"{path}: line {line}", row, _sides(columns), str(category))
        new = LabelRow(
            line, row[key], label, row.get(group or "", ""), SPLIT_NAMES.get(split, ""), body_part_of(path, line, row)
        )
        rows[new.key] = _joined(path, rows[new.key], new) if new.key in rows else new
    return LabelTable(key if key in KEYS else "file", rows)


def _table_boxes(where: str, row: Mapping[str, str], sides: Sequence[str], category: str) -> list[dict[str, Any]]:
    cells = [row[name] for name in sides]
    if not any(cells):
        return []
    if tuple(sides) == EXTENTS:
        try:
            left, top, width, height = map(float, cells)
        except ValueError:
            raise InputError(f"{where}: a box needs four finite numbers. Correct or remove it.") from None
        return [_box(where, (left, top, left + width, top + height), row[category])]
    return [_box(where, cells, row[category])]


def _joined(path: Path, one: LabelRow, other: LabelRow) -> LabelRow:
    if replace(one, line=0, label=[]) != replace(other, line=0, label=[]):
        raise InputError(f"{path}: lines {one.line} and {other.line} say different things about the same key.")
    return replace(one, label=[*one.label, *other.label])
