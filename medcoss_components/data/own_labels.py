"""Joining what was found with a table of labels or with a folder of masks."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from medcoss_components.data.adapters.findings import (
    Findings,
    Found,
    LeftOut,
    bare_name,
    header_size,
    reason,
    walk,
)
from medcoss_components.data.label_table import LabelRow, read_label_table
from medcoss_components.data.masks import names_mask
from medcoss_components.errors import InputError


def with_labels(
    found: Sequence[Found],
    path: Path,
    *,
    keep: bool = False,
    key_column: str | None = None,
    label_column: str = "label",
    group_column: str | None = None,
    split_column: str | None = None,
) -> Findings:
    """Give every item the label, patient and split that a table has for it.

    Files are matched by their relative path, by that without suffix, by their name, or by their name without suffix,
    whichever first gives one answer. The table's patient replaces one from a header.

    Args:
        found: what was found.
        path: the table.
        keep: keep items without a label.
        key_column, label_column, group_column, split_column: see
            :func:`~medcoss_components.data.label_table.read_label_table`.

    Returns:
        labelled items; items without a row or label, and rows that fit no item or several.
    """
    table = read_label_table(
        path, key_column=key_column, label_column=label_column, group_column=group_column, split_column=split_column
    )
    rows, left = _match(found, table.key, table.rows, path.name)
    kept: list[Found] = []
    for index, item in enumerate(found):
        row = rows.get(index)
        if row is not None:
            patient = row.patient or item.patient
            item = replace(item, label=row.label or None, patient=patient, split=row.split)
        if keep or item.label is not None:
            kept.append(item)
        else:
            left.append(LeftOut(item.name, "no row in the table" if row is None else "its label is empty"))
    return kept, left


def _match(
    found: Sequence[Found], key: str, rows: Mapping[str, LabelRow], table: str
) -> tuple[dict[int, LabelRow], list[LeftOut]]:
    """Row of each item by the item's index, and the rows without an item."""
    levels = _levels([item.keys.get(key, "") for item in found], files=key == "file")
    several = key in ("study", "patient")
    matched, left = dict[int, LabelRow](), list[LeftOut]()
    for name, row in rows.items():
        wanted = _levels([name], files=key == "file")
        hits: list[int] = next((have[next(iter(want))] for have, want in zip(levels, wanted, strict=True)
                     if have.get(next(iter(want)))), [])  # fmt: skip
        if not hits:
            left.append(LeftOut(f"{table} line {row.line}", f"no {key} of this name was found"))
        elif len(hits) > 1 and not several:
            left.append(LeftOut(f"{table} line {row.line}", f"fits {len(hits)} items; give the path from the root"))
        else:
            matched |= dict.fromkeys(hits, row)
    return matched, left


def _levels(names: Sequence[str], *, files: bool) -> list[dict[str, list[int]]]:
    """Indices by name, for each way of naming from the strictest to the loosest."""
    forms = [[_tidy(name)] for name in names]
    if files:
        forms = [[full, bare_name(full), Path(full).name, bare_name(Path(full).name)] for (full,) in forms]
    levels: list[dict[str, list[int]]] = [defaultdict(list) for _ in (forms[0] if forms else [""])]
    for index, ways in enumerate(forms):
        for level, form in zip(levels, ways, strict=True):
            if form:
                level[form].append(index)
    return levels


def _tidy(name: str) -> str:
    return name.replace("\\", "/").removeprefix("./").rstrip("/")


def with_masks(
    found: Sequence[Found], folder: Path, *, dimension: int, base: Path, suffix: str = "", keep: bool = False
) -> Findings:
    """Give every item the mask of its name.

    A mask has the image's relative path below ``folder``, or its file name alone where that is unique, with ``suffix``
    behind it and any suffix of mask files. Masks of another size than their image are refused, judged by the headers.

    Args:
        found: what was found; masks among it (images in the same folder) are taken out.
        folder: of the masks.
        dimension: 2 or 3.
        base: folder that the labels' paths count from.
        suffix: for example "_mask".
        keep: keep items without a mask.

    Returns:
        items with the mask's path, relative to ``base``, as label; items without a mask, masks without an item.

    Raises:
        InputError: no such folder, or no mask in it.
    """
    masks = _masks(folder, suffix, dimension)
    own = {os.path.abspath(path) for path in masks.values()}
    items = [item for item in found if os.path.abspath(str(item.path)) not in own]
    by_name = _unique((Path(name).name, name) for name in masks)
    image_names = _unique((Path(item.name).name, item.name) for item in items)
    kept, left, used = list[Found](), list[LeftOut](), set[str]()
    for item in items:
        short = Path(item.name).name
        name = item.name if item.name in masks else by_name.get(short, "") if short in image_names else ""
        problem = _mask_problem(item, masks[name]) if name else "" if keep else "no mask of its name"
        used.add(name)
        if problem:
            left.append(LeftOut(item.name, problem))
        else:
            label = Path(os.path.relpath(masks[name], base)).as_posix() if name else None
            kept.append(replace(item, label=label))
    left += [LeftOut(f"mask {name}{suffix}", "no image of its name") for name in masks if name not in used]
    return kept, left


def _masks(folder: Path, suffix: str, dimension: int) -> dict[str, Path]:
    """Mask files by the name of their image."""
    masks: dict[str, Path] = {}
    for path in walk(folder):
        name = bare_name(path.relative_to(folder).as_posix())
        if not names_mask(path.name, dimension) or not name.endswith(suffix):
            continue
        if other := masks.get(name[: len(name) - len(suffix)]):
            raise InputError(f"masks: {other} and {path} have one name. Keep one of them.")
        masks[name[: len(name) - len(suffix)]] = path
    if not masks:
        raise InputError(
            f"masks: {folder} holds no {dimension}D mask with a name on {suffix!r}. Give --mask-suffix, or the folder."
        )
    return masks


def _unique(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Short name -> name, where a short name stands once."""
    names: dict[str, list[str]] = defaultdict(list)
    for short, name in pairs:
        names[short].append(name)
    return {short: found[0] for short, found in names.items() if len(found) == 1}


def _mask_problem(item: Found, mask: Path) -> str:
    """Why a mask does not fit its image, or ""; the axes of a DICOM series may lie otherwise than those of a file."""
    try:
        size = header_size(mask)
    except InputError as error:
        return f"its mask: {reason(error, mask)}"
    fits = sorted(size) == sorted(item.size) if item.content else size == item.size
    return "" if fits else f"its mask has the size {size}, the image {item.size}"
