"""Counting what a manifest lists: items, groups and labels per split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from medcoss_components.data.manifest import SPLITS, Item, Manifest
from medcoss_components.data.masks import names_mask

MASK, NONE = "(mask)", "(no label)"


def label_name(item: Item) -> str:
    """How an item's label is counted: the class, "(mask)" for a mask file, "(no label)".

    >>> label_name(Item("a", label="x/a.nii.gz")), label_name(Item("a", label=1)), label_name(Item("a"))
    ('(mask)', '1', '(no label)')
    """
    if item.label is None:
        return NONE
    is_mask = names_mask(item.label, 2) or names_mask(item.label, 3)
    return MASK if is_mask else str(item.label)


def summary(manifest: Manifest) -> dict[str, Any]:
    """Items and groups of each split, and items and groups of each label in each split, as JSON values."""
    labels = sorted({label_name(item) for split in SPLITS for item in manifest.items(split)}, key=_label_order)
    return {
        "items": manifest.counts,
        "groups": {split: _groups(manifest.items(split)) for split in SPLITS},
        "labels": {
            label: {
                split: [len(found), _groups(found)]
                for split in SPLITS
                for found in [[item for item in manifest.items(split) if label_name(item) == label]]
            }
            for label in labels
        },
    }


def _label_order(label: str) -> tuple[bool, int, str]:
    return label in (MASK, NONE), int(label) if label.isdigit() else -1, label


def _groups(items: Sequence[Item]) -> int:
    return len({item.group for item in items})


def group_sizes(manifest: Manifest) -> tuple[int, float, int]:
    """Fewest, mean and most items of a group over all splits; zeros for an empty manifest."""
    counts = Counter(item.group for split in SPLITS for item in manifest.items(split)).values()
    return (min(counts), sum(counts) / len(counts), max(counts)) if counts else (0, 0.0, 0)


def describe(manifest: Manifest) -> str:
    """The counts as an aligned table for the terminal: items, and groups in brackets."""
    content = summary(manifest)
    rows = [["all", *(_cell(content["items"][split], content["groups"][split]) for split in SPLITS)]]
    rows += [[label, *(_cell(*counts[split]) for split in SPLITS)] for label, counts in content["labels"].items()]
    least, mean, most = group_sizes(manifest)
    heading = f"{manifest.name} {manifest.version}: {manifest.modality.name}, licence: {manifest.licence}"
    footer = f"items (groups); a group has {least} to {most} items, {mean:.3g} on average"
    return "\n".join([heading, *aligned([["label", *SPLITS], *rows]), footer])


def _cell(items: int, groups: int) -> str:
    return f"{items} ({groups})" if items else "-"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table for the terminal: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.rjust(width) if place else cell.ljust(width)
                  for place, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]  # fmt: skip
