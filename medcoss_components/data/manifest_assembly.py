"""From findings to a written manifest: ids, groups and splits, what was left out, and notes for people.

Both ways to a manifest end here: one's own files (``manifest_building.py``) and published data sets
(``dataset_building.py``). Identifiers of patients are hashed with the site's salt; ids of items are hashes of their
places. Texts of text items stand in the manifest as they are, and so do paths: one's own files come with hashed names
where a path tells who the patient is, those of published data sets are the publisher's pseudonyms.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medcoss_components.data.adapters.findings import Found, LeftOut
from medcoss_components.data.boxes import label_categories
from medcoss_components.data.group_split import split_groups
from medcoss_components.data.identifiers import hash_identifier, identifier_salt
from medcoss_components.data.linking import item_id
from medcoss_components.data.manifest import SPLITS, Item, Manifest, write_manifest
from medcoss_components.data.manifest_summary import EMPTY, MASK, NONE, label_names, summary
from medcoss_components.errors import InputError
from medcoss_components.files import write_json


@dataclass(frozen=True)
class Built:
    """A written manifest, what was left out of it, and what to know about it."""

    path: Path
    manifest: Manifest
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = field(default=())


def record_path(path: Path) -> Path:
    """Where it stands how a manifest was made: ``<name>.build.json`` beside it."""
    return path.with_name(f"{path.stem}.build.json")


def require_items(found: Sequence[Found], left: Sequence[LeftOut], root: Path) -> None:
    """Raise InputError when nothing is left for a manifest; the most frequent reasons are told."""
    if not found:
        ranking = Counter(entry.reason for entry in left).most_common(5)
        reasons = "; ".join(f"{count} x {reason}" for reason, count in ranking) or "nothing was there"
        raise InputError(f"{root}: nothing for a manifest is left. Left out: {reasons}.")


def hashed_groups(found: Sequence[Found]) -> list[str]:
    """Group of every item: the salted hash of its patient, or of its own name where no patient is known."""
    salt = identifier_salt()
    return [hash_identifier(item.patient or f"own {item.name}", salt) for item in found]


def groups_in_several(groups: Sequence[str], splits: Sequence[str]) -> list[str]:
    """Groups that stand in more than one split, in the order of the items."""
    seen: dict[str, set[str]] = defaultdict(set)
    for group, split in zip(groups, splits, strict=True):
        seen[group].add(split)
    return [group for group, names in seen.items() if len(names) > 1]


def splits_by_shares(
    found: Sequence[Found], groups: Sequence[str], shares: Sequence[float], *, seed: int, by_label: bool
) -> list[str]:
    """Split of every item so that no group is cut; equal labels are spread alike where ``by_label``."""
    labels = [_stratum(item.label) if by_label else None for item in found]
    return [SPLITS[index] for index in split_groups(groups, labels, shares, seed=seed)]


def _stratum(label: Any) -> str:
    """What items are spread alike by: the class, or the different classes or categories of a list."""
    if isinstance(label, list):
        return str(label_categories(label) or sorted({str(name) for name in label}))
    return str(label)


def write_built(
    path: Path,
    *,
    header: Mapping[str, Any],
    found: Sequence[Found],
    groups: Sequence[str],
    splits: Sequence[str],
    left_out: Sequence[LeftOut],
    notes: Sequence[str],
    record: Mapping[str, Any],
) -> Built:
    """Write the manifest, and ``<name>.build.json`` beside it.

    Args:
        path: the manifest; paths in it count from its folder.
        header: fields of :class:`~medcoss_components.data.manifest.Manifest` but root and splits.
        found: N items.
        groups: (N) hashed groups.
        splits: (N) names of splits.
        left_out, notes: for the record.
        record: how it was made, as JSON values.
    """
    items = _items(found, groups, path.parent)
    lists: dict[str, Any] = {
        name: tuple(item for item, split in zip(items, splits, strict=True) if split == name) for name in SPLITS
    }
    manifest = Manifest(root=path.parent, **header, **lists)
    write_manifest(manifest, path)
    built = Built(path, manifest, tuple(left_out), (*notes, *_label_notes(manifest)))
    write_json(record_path(path), _record(built, record))
    return built


def _items(found: Sequence[Found], groups: Sequence[str], base: Path) -> list[Item]:
    salt, labels = identifier_salt(), _class_numbers([_label(item.label, base) for item in found])
    return [
        Item(
            id=item_id(item, salt),
            image=None if item.path is None else Path(os.path.abspath(item.path)),
            text=item.text,
            label=label,
            group=group,
            body_part=item.body_part or None,
        )
        for item, group, label in zip(found, groups, labels, strict=True)
    ]


def _label(label: Any, base: Path) -> Any:
    """A mask's path relative to the manifest's folder; other labels as they are."""
    return Path(os.path.relpath(label, base)).as_posix() if isinstance(label, Path) else label


def _class_numbers(labels: list[Any]) -> list[Any]:
    """Labels as numbers where they are all the digits of 0, 1, ..., K - 1; else as they are.

    >>> _class_numbers(["1", "0", None]), _class_numbers(["1", "2"])
    ([1, 0, None], ['1', '2'])
    """
    if any(isinstance(label, list) for label in labels):
        return labels
    names = {label for label in labels if label is not None}
    if names and names == {str(number) for number in range(len(names))}:
        return [None if label is None else int(label) for label in labels]
    return labels


def _label_notes(manifest: Manifest) -> list[str]:
    """Splits that miss a class which another one has."""
    uncounted = {MASK, NONE, EMPTY}
    known = {
        split: {name for item in manifest.items(split) for name in label_names(item)} - uncounted for split in SPLITS
    }
    every = {label for labels in known.values() for label in labels}
    notes = []
    for split in SPLITS:
        missing = sorted(every - known[split])
        if manifest.items(split) and missing:
            notes.append(f"{split} has no item of {', '.join(missing)}.")
    return notes


def _record(built: Built, record: Mapping[str, Any]) -> dict[str, Any]:
    """Content of ``<name>.build.json``."""
    return {
        "format": 1,
        **record,
        "manifest_hash": built.manifest.hash,
        **summary(built.manifest),
        "notes": list(built.notes),
        "left_out": [{"where": entry.where, "reason": entry.reason} for entry in built.left_out],
    }
