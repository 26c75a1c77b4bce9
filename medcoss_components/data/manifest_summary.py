"""Counting what a manifest lists: items, groups, labels, boxes and body parts per split."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from medcoss_components.data.boxes import is_box_label, label_categories
from medcoss_components.data.manifest import SPLITS, Item, Manifest
from medcoss_components.data.masks import names_mask
from medcoss_components.text_table import text_lines

MASK, NONE, EMPTY, UNKNOWN = "(mask)", "(no label)", "(empty)", "(not recorded)"
_LAST = (MASK, NONE, EMPTY, UNKNOWN)


def label_names(item: Item) -> list[str]:
    """What an item counts for: its class, each class or category of a list once, "(mask)", "(empty)", "(no label)".

    >>> label_names(Item("a", label=["b", "a", "b"])), label_names(Item("a", label=[])), label_names(Item("a"))
    (['a', 'b'], ['(empty)'], ['(no label)'])
    """
    if item.label is None:
        return [NONE]
    if isinstance(item.label, list):
        return (label_categories(item.label) or sorted({str(name) for name in item.label})) or [EMPTY]
    is_mask = names_mask(item.label, 2) or names_mask(item.label, 3)
    return [MASK if is_mask else str(item.label)]


def label_name(item: Item) -> str:
    """The same as one text.

    >>> label_name(Item("a", label="x/a.nii.gz")), label_name(Item("a", label=1)), label_name(Item("a"))
    ('(mask)', '1', '(no label)')
    """
    return ", ".join(label_names(item))


def summary(manifest: Manifest) -> dict[str, Any]:
    """Items and groups of each split, and items and groups of each label in each split, as JSON values.

    Where there are any, also "boxes": category -> split -> number of boxes, and "body_parts": like the labels.
    """
    content = {
        "items": manifest.counts,
        "groups": {split: _groups(manifest.items(split)) for split in SPLITS},
        "labels": _tally(manifest, label_names),
    }
    if boxes := _boxes(manifest):
        content["boxes"] = boxes
    if any(item.body_part for split in SPLITS for item in manifest.items(split)):
        content["body_parts"] = _tally(manifest, lambda item: [item.body_part or UNKNOWN])
    return content


def _tally(manifest: Manifest, names: Callable[[Item], Iterable[str]]) -> dict[str, dict[str, list[int]]]:
    """Name -> split -> [items, groups]."""
    groups: dict[str, dict[str, list[str]]] = defaultdict(lambda: {split: [] for split in SPLITS})
    for split in SPLITS:
        for item in manifest.items(split):
            for name in names(item):
                groups[name][split].append(item.group)
    return {
        name: {split: [len(found), len(set(found))] for split, found in groups[name].items()}
        for name in sorted(groups, key=_label_order)
    }


def _boxes(manifest: Manifest) -> dict[str, dict[str, int]]:
    """Category -> split -> boxes; empty for a manifest without boxes."""
    counts = {
        split: Counter(
            str(entry["category"]) for item in manifest.items(split) if is_box_label(item.label) for entry in item.label
        )
        for split in SPLITS
    }
    names = sorted({name for found in counts.values() for name in found}, key=_label_order)
    return {name: {split: counts[split][name] for split in SPLITS} for name in names}


def _label_order(label: str) -> tuple[bool, int, str]:
    return label in _LAST, int(label) if label.isdigit() else -1, label


def _groups(items: Sequence[Item]) -> int:
    return len({item.group for item in items})


def group_sizes(manifest: Manifest) -> tuple[int, float, int]:
    """Fewest, mean and most items of a group over all splits; zeros for an empty manifest."""
    counts = Counter(item.group for split in SPLITS for item in manifest.items(split)).values()
    return (min(counts), sum(counts) / len(counts), max(counts)) if counts else (0, 0.0, 0)


def describe(manifest: Manifest) -> str:
    """The counts as an aligned table for the terminal: items, and groups in brackets; boxes; body parts."""
    content = summary(manifest)
    rows = [["all", *(_cell(content["items"][split], content["groups"][split]) for split in SPLITS)]]
    rows += [[label, *(_cell(*counts[split]) for split in SPLITS)] for label, counts in content["labels"].items()]
    for name, counts in content.get("boxes", {}).items():
        rows.append([f"boxes of {name}", *(str(counts[split] or "-") for split in SPLITS)])
    for name, counts in content.get("body_parts", {}).items():
        rows.append([f"body part {name}", *(_cell(*counts[split]) for split in SPLITS)])
    least, mean, most = group_sizes(manifest)
    heading = f"{manifest.name} {manifest.version}: {manifest.modality.name}, licence: {manifest.licence}"
    footer = f"items (groups); a group has {least} to {most} items, {mean:.3g} on average"
    return "\n".join([heading, *text_lines([["label", *SPLITS], *rows]), footer])


def _cell(items: int, groups: int) -> str:
    return f"{items} ({groups})" if items else "-"
