"""Joining what was found with labels, boxes or a folder of masks. What was left out before is listed once."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
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
from medcoss_components.data.adapters.own_data import LeftFile, left_item
from medcoss_components.data.box_labels import read_boxes
from medcoss_components.data.boxes import label_problem
from medcoss_components.data.label_table import LabelRow, LabelTable, read_label_table
from medcoss_components.data.masks import names_mask
from medcoss_components.errors import InputError
from medcoss_components.progress import progress

_UIDS = ("series", "study")


def with_labels(
    found: Sequence[Found],
    path: Path,
    *,
    left: Sequence[LeftOut] = (),
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
        left: what was left out before; rows about it are not listed again.
        keep: keep items without a label.
        key_column, label_column, group_column, split_column: see
            :func:`~medcoss_components.data.label_table.read_label_table`.

    Returns:
        labelled items; items without a row or label, and rows that fit no item or several.
    """
    table = read_label_table(
        path, key_column=key_column, label_column=label_column, group_column=group_column, split_column=split_column
    )
    return _with_rows(found, table, path, left=left, keep=keep)


def with_boxes(
    found: Sequence[Found], path: Path, *, left: Sequence[LeftOut] = (), keep: bool = False, **columns: str | None
) -> Findings:
    """Give every picture its boxes, and the patient and split that a table has for it.

    Args:
        found: pictures.
        path: COCO file, folder of Pascal VOC files or table, see
            :func:`~medcoss_components.data.box_labels.read_boxes`.
        left, keep: see :func:`with_labels`; a picture that is listed without a box is labelled, with [].
        columns: of a table.

    Returns:
        labelled pictures; those that are not listed or whose boxes lie outside of them, and what fits no picture.
    """
    kept, more = _with_rows(found, read_boxes(path, **columns), path, left=left, keep=keep)
    inside: list[Found] = []
    for item in kept:
        problem = "" if item.label is None else label_problem(item.label, size=item.size[::-1])
        if problem:
            more.append(left_item(item, problem))
        else:
            inside.append(item)
    return inside, more


def _with_rows(
    found: Sequence[Found], table: LabelTable, path: Path, *, left: Sequence[LeftOut], keep: bool
) -> Findings:
    rows, more = _match(found, table.key, table.rows, path.name, _names_of(left, table.key))
    kept: list[Found] = []
    for index, item in enumerate(found):
        row = rows.get(index)
        if row is not None:
            patient = row.patient or item.patient
            label = None if row.label == "" else row.label
            part = row.body_part or item.body_part
            item = replace(item, label=label, patient=patient, split=row.split, body_part=part)
        if keep or item.label is not None:
            kept.append(item)
        else:
            more.append(left_item(item, "no row in the table" if row is None else "its label is empty"))
    return kept, more


def _names_of(left: Iterable[LeftOut], key: str) -> list[str]:
    """What a table may call the things that were left out."""
    return [
        entry.keys.get(key, "") if isinstance(entry, LeftFile) else entry.where if key == "file" else ""
        for entry in left
    ]


def _match(
    found: Sequence[Found], key: str, rows: Mapping[str, LabelRow], table: str, passed: Sequence[str]
) -> tuple[dict[int, LabelRow], list[LeftOut]]:
    """Row of each item by the item's index, and the rows without an item; ``passed``: names of things left out."""
    levels = _levels([item.keys.get(key, "") for item in found], files=key == "file")
    passed_levels = _levels(passed, files=key == "file")
    several = key in ("study", "patient")
    matched, left = dict[int, LabelRow](), list[LeftOut]()
    for name, row in rows.items():
        wanted = _levels([name], files=key == "file")
        hits = _first_hit(levels, wanted)
        if not hits and not _first_hit(passed_levels, wanted):
            left.append(LeftOut(f"{table} line {row.line}", f"no {key} of this name was found"))
        elif len(hits) > 1 and not several:
            left.append(LeftOut(f"{table} line {row.line}", f"fits {len(hits)} items; give the path from the root"))
        else:
            matched |= dict.fromkeys(hits, row)
    return matched, left


def _first_hit(levels: Sequence[Mapping[str, list[int]]], wanted: Sequence[Mapping[str, list[int]]]) -> list[int]:
    """Indices at the strictest way of naming that has any."""
    for have, want in zip(levels, wanted, strict=False):
        if hits := [index for form in want for index in have.get(form, ())]:
            return hits
    return []


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
    found: Sequence[Found],
    masks: Mapping[str, Path],
    *,
    suffix: str = "",
    keep: bool = False,
    left: Sequence[LeftOut] = (),
) -> Findings:
    """Give every item the mask of its name.

    A mask has the image's relative path below its folder, or its file name alone where that is unique, or the UID of
    the DICOM series or study where that has one item; with ``suffix`` behind it and any suffix of mask files. Masks of
    another size than their image are refused, judged by the headers.

    Args:
        found: what was found.
        masks: of :func:`find_masks`.
        suffix: for messages.
        keep: keep items without a mask.
        left: what was left out before; masks of these images are not listed.

    Returns:
        items with the mask's path as label; items without a mask, masks without an item.
    """
    by_name = _unique((Path(name).name, name) for name in masks)
    kept, more, used = list[Found](), list[LeftOut](), _masks_of(left, masks, by_name)
    pairs = zip(found, _mask_names(found, masks, by_name), strict=True)
    for item, name in progress(pairs, description="look at masks", total=len(found), unit="item"):
        problem = _mask_problem(item, masks[name]) if name else "" if keep else "no mask of its name"
        used.add(name)
        if problem:
            more.append(left_item(item, problem))
        else:
            kept.append(replace(item, label=masks[name] if name else None))
    more += [LeftOut(f"mask {name}{suffix}", "no image of its name") for name in masks if name not in used]
    return kept, more


def _mask_names(found: Sequence[Found], masks: Collection[str], by_name: Mapping[str, str]) -> Iterator[str]:
    """Name of each item's mask, "" where it has none: by path, by file name, by UID."""
    shorts = Counter(Path(item.name).name for item in found)
    uids = Counter(item.keys.get(key, "") for item in found for key in _UIDS)
    for item in found:
        short = Path(item.name).name
        told = [short] if shorts[short] == 1 else []
        told += [uid for key in _UIDS if uids[uid := item.keys.get(key, "")] == 1]
        yield next((name for name in (item.name, *(by_name.get(uid, "") for uid in told)) if name in masks), "")


def _masks_of(left: Iterable[LeftOut], masks: Collection[str], by_name: Mapping[str, str]) -> set[str]:
    """Names of the masks of images that were left out."""
    names = [bare_name(name) for name in _names_of(left, "file")]
    return {name if name in masks else by_name.get(Path(name).name, "") for name in names}


def find_masks(folder: Path, *, suffix: str, dimension: int) -> dict[str, Path]:
    """Mask files below a folder by the name of their image.

    Args:
        folder: of the masks, perhaps also of the images.
        suffix: what their names have behind the image's, such as "_mask".
        dimension: 2 or 3.

    Raises:
        InputError: no such folder, no mask in it, or two masks of one name.
    """
    masks: dict[str, Path] = {}
    for path in walk(folder):
        name = bare_name(path.relative_to(folder).as_posix())
        if not names_mask(path.name, dimension) or not name.endswith(suffix):
            continue
        if other := masks.get(name[: len(name) - len(suffix)]):
            raise InputError(f"masks: {other} and {path} have one name. Keep one of them.")
        masks[name[: len(name) - len(suffix)]] = path.absolute()
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
