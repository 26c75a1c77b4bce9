"""Boxes as labels of a detection task: their one way of being written, and the checks of it.

The label of an item is a list of ``{"box": [left, top, right, bottom], "category": "tuberculosis"}`` in pixels of the
source picture: x to the right and y downwards from its upper left corner, right and bottom exclusive, so that a
box over one pixel is ``[x, y, x + 1, y + 1]``. ``[]`` says that nothing is there, None that nobody looked. How boxes
move with a picture that is prepared: ``plane_geometry.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from medcoss_components.errors import InputError

TOLERANCE = 0.01
"""A side may lie so far outside the picture, as a share of its width or height, or one pixel: rounding when it was
drawn. It is then moved to the edge."""
_KEYS = {"box", "category"}
_SHOWN = 3


def is_box_label(label: Any) -> bool:
    """Whether a label is a list of boxes; ``[]`` is one, a list of class names is none.

    >>> is_box_label([{"box": [0, 0, 1, 1], "category": "a"}]), is_box_label([]), is_box_label(["a"]), is_box_label(1)
    (True, True, False, False)
    """
    return isinstance(label, list) and all(isinstance(entry, Mapping) and set(entry) == _KEYS for entry in label)


def canonical_label(label: Any) -> Any:
    """A label as it is written and hashed: numbers of boxes as floats and their keys in one order; others as they are.

    JSON tells 10 from 10.0 and a Parquet column does not, so that a hash needs one of them.

    >>> canonical_label([{"category": "a", "box": [0, 1, 2, 3]}]), canonical_label("a")
    ([{'box': [0.0, 1.0, 2.0, 3.0], 'category': 'a'}], 'a')
    """
    if not label or not is_box_label(label):
        return label
    return [{"box": [_float(side) for side in entry["box"]], "category": entry["category"]} for entry in label]


def _float(side: Any) -> Any:
    return float(side) if _is_number(side) else side


def _is_number(side: Any) -> bool:
    return isinstance(side, int | float) and not isinstance(side, bool)


def label_categories(label: Any) -> list[str]:
    """Different categories of a label's boxes in alphabetical order; empty for other labels.

    >>> label_categories([{"box": [0, 0, 1, 1], "category": name} for name in "bab"]), label_categories("a")
    (['a', 'b'], [])
    """
    return sorted({str(entry["category"]) for entry in label}) if is_box_label(label) else []


def resolve_categories(categories: Sequence[str]) -> tuple[str, ...]:
    """Names of the categories in the order of the network's outputs; label number 0 is the first.

    Raises:
        InputError: no name, or one twice.
    """
    if isinstance(categories, str) or not isinstance(categories, Sequence):
        raise InputError(f"categories: must be a list of names in the order of the outputs, got {categories!r}.")
    names = tuple(str(name) for name in categories)
    if not names or len(set(names)) < len(names):
        raise InputError(f"categories: one or more different names are needed, got {list(names)}.")
    return names


def label_problem(label: Any, *, size: Sequence[int] | None = None, categories: Sequence[str] | None = None) -> str:
    """What is wrong with a label of boxes, or "".

    Args:
        label: of an item.
        size: (H, W) of the picture in pixels; None passes over whether boxes lie in it.
        categories: known names; None: any.

    >>> label_problem([{"box": [4, 0, 2, 3], "category": "a"}])
    'box 0 [4, 0, 2, 3]: left must be below right and top below bottom'
    >>> label_problem([{"box": [0, 0, 9, 3], "category": "a"}], size=(8, 8))
    ''
    """
    if label is None:
        return "it has no label; write [] where nothing is there"
    if not is_box_label(label):
        return "its label is no list of {box, category}"
    for number, entry in enumerate(label):
        if problem := _box_problem(entry, size, categories):
            return f"box {number} {problem}"
    return ""


def _box_problem(entry: Mapping[str, Any], size: Sequence[int] | None, categories: Sequence[str] | None) -> str:
    box, category = entry["box"], entry["category"]
    numbers = isinstance(box, Sequence) and len(box) == 4 and all(_is_number(side) for side in box)
    if not numbers or not all(math.isfinite(side) for side in box):
        return "must be four finite numbers: left, top, right, bottom"
    shown = f"{[int(side) if side == int(side) else side for side in box]}"
    left, top, right, bottom = box
    if not (left < right and top < bottom):
        return f"{shown}: left must be below right and top below bottom"
    if size is not None and (problem := _place_problem(box, size)):
        return f"{shown}: {problem}"
    if not isinstance(category, str) or (categories is not None and category not in categories):
        known = ", ".join(categories or ("texts",))
        return f"{shown}: its category is {str(category)[:40]!r}, known: {known}"
    return ""


def _place_problem(box: Sequence[float], size: Sequence[int]) -> str:
    left, top, right, bottom = box
    height, width = size
    across, down = max(1.0, TOLERANCE * width), max(1.0, TOLERANCE * height)
    inside = left >= -across and top >= -down and right <= width + across and bottom <= height + down
    touches = left < width and top < height and right > 0 and bottom > 0
    return "" if inside and touches else f"outside the picture of {width} x {height} pixels"


def check_labels(
    labels: Sequence[Any],
    *,
    ids: Sequence[str],
    where: str,
    sizes: Sequence[Sequence[int]] | None = None,
    categories: Sequence[str] | None = None,
) -> None:
    """Raise InputError, naming the first items, where labels are no proper boxes.

    Args:
        labels: of N items.
        ids: (N) of the manifest.
        where: the manifest and split, for the message.
        sizes: (N) of (H, W) in pixels; None passes over whether boxes lie in their pictures.
        categories: known names; None: any.
    """
    found = []
    for number, (label, identifier) in enumerate(zip(labels, ids, strict=True)):
        size = None if sizes is None else sizes[number]
        if problem := label_problem(label, size=size, categories=categories):
            found.append(f"item {identifier}: {problem}")
    if found:
        more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise InputError(
            f"{where}: {len(found)} of {len(labels)} items have bad boxes: {'; '.join(found[:_SHOWN])}{more}. Boxes "
            "are [left, top, right, bottom] in pixels of the picture. Correct or leave out these items, or "
            "give the right categories."
        )
