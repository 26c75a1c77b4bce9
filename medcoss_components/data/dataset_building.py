"""A manifest of a published data set as its publisher ships it; what the data set is stands in its recipe.

files --(adapter)--> findings --> copies, patients that stand in several splits --> manifest.json, manifest.build.json
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medcoss_components.data.adapters.dataset_recipe import ALL, SPLIT_BY, DatasetRecipe, dataset_recipe
from medcoss_components.data.adapters.findings import DatasetSource, Findings, Found, LeftOut
from medcoss_components.data.boxes import label_categories
from medcoss_components.data.copies import STAYING, without_copies
from medcoss_components.data.linking import files_folder
from medcoss_components.data.manifest_assembly import (
    Built,
    groups_in_several,
    hashed_groups,
    require_items,
    splits_by_shares,
    write_built,
)
from medcoss_components.data.modalities import get_modality
from medcoss_components.errors import InputError

_LABELLED = ("classification", "detection")
"""Tasks in which equal contents with different labels contradict each other, and labels are spread over splits."""


def build_dataset_manifest(
    dataset: str | DatasetRecipe,
    root: str | Path,
    path: str | Path,
    *,
    split_by: str | None = None,
    shares: Sequence[float] | None = None,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    workers: int | None = None,
) -> Built:
    """Write the manifest of a data set, and ``<name>.build.json`` beside it: counts and what was left out.

    No patient stands in two splits. Files that have to be made (masks out of contours, tiles out of slides) go to
    ``<name>.files/`` beside the manifest; an interrupted call goes on there.

    Args:
        dataset: name of a shipped recipe, or a recipe.
        root: folder of the data set.
        path: the JSON file; paths in it count from its folder.
        split_by: "published": the publisher's lists, less the training and validation items of patients who also stand
            in a later split; "patients": all items anew, by patient; "as_published": the lists as they are, which is
            said in a note. None: the recipe's.
        shares: of training, validation and testing, for "patients"; None: the recipe's.
        seed: of that split.
        settings: over those of the recipe.
        workers: processes for files that have to be made; None: one per core.

    Raises:
        InputError: unknown data set or setting, another layout than the publisher's, or nothing left.
    """
    recipe = dataset_recipe(dataset) if isinstance(dataset, str) else dataset
    path, root, split_by = Path(path), Path(root), split_by or recipe.split_by
    if split_by not in SPLIT_BY:
        raise InputError(f"split_by: must be one of {', '.join(SPLIT_BY)}, got {split_by!r}.")
    chosen = _settings(recipe, settings or {})
    source = _source(recipe, root, path, chosen, workers)
    found, left = recipe.load_adapter()(source)
    found, copies, notes = without_copies(found, rule=recipe.duplicates, by_label=recipe.task in _LABELLED)
    found, more = _placed(found, split_by)
    left = [*left, *copies, *more]
    require_items(found, left, root)
    shares = tuple(shares or recipe.shares)
    groups, splits, cut = _split(recipe, found, split_by=split_by, shares=shares, seed=seed)
    record: dict[str, Any] = {"dataset": recipe.name, "recipe_hash": recipe.hash, "settings": chosen}
    record |= {"split_by": split_by, "split": list(shares), "seed": seed}
    expected = _expected(recipe, split_by) if chosen == recipe.settings else {}
    return write_built(
        path,
        header=_header(recipe),
        found=found,
        groups=groups,
        splits=splits,
        left_out=left,
        notes=[*source.notes, *notes, *cut, *_count_notes(expected, found, splits)],
        record=record,
    )


def _source(
    recipe: DatasetRecipe, root: Path, path: Path, settings: Mapping[str, Any], workers: int | None
) -> DatasetSource:
    """What the adapter is given."""
    return DatasetSource(
        root=root,
        modality=get_modality(recipe.modality),
        settings=settings,
        files_dir=files_folder(path.absolute()),
        workers=workers,
    )


def _split(
    recipe: DatasetRecipe, found: Sequence[Found], *, split_by: str, shares: Sequence[float], seed: int
) -> tuple[list[str], list[str], list[str]]:
    """Group and split of every item, and notes."""
    groups = hashed_groups(found)
    if split_by == "patients":
        counted = [replace(item, label=label_categories(item.label)) for item in found] if recipe.categories else found
        return groups, splits_by_shares(counted, groups, shares, seed=seed, by_label=recipe.task in _LABELLED), []
    splits = [item.split for item in found]
    if split_by == "published":
        return groups, splits, []
    named, notes = _cut_groups(groups, splits)
    return named, splits, notes


def _settings(recipe: DatasetRecipe, given: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's settings with the given ones over them."""
    if unknown := sorted(set(given) - set(recipe.settings)):
        known = ", ".join(recipe.settings) or "none"
        raise InputError(f"settings: data set {recipe.name} has no {unknown[0]!r}; known: {known}.")
    for name, value in given.items():
        if not is_like(value, recipe.settings[name]):
            default = recipe.settings[name]
            raise InputError(f"settings: {name} must be of the kind of its default {default!r}, got {value!r}.")
    return {**recipe.settings, **given}


def is_like(value: Any, default: Any) -> bool:
    """Whether a value is of the default's kind; ranges are the adapter's business.

    >>> is_like("a", ["b"]), is_like(None, 0.5), is_like("no", True), is_like(1, 0.5), is_like(True, 1)
    (True, True, False, True, False)
    """
    if default is None:
        return True
    if isinstance(value, bool) or isinstance(default, bool):
        return type(value) is type(default)
    kinds: tuple[tuple[type, tuple[type, ...]], ...] = (
        (int, (int,)),
        (float, (int, float, type(None))),
        (str, (str, type(None))),
        (list, (list, tuple, str)),
    )
    return next((isinstance(value, allowed) for kind, allowed in kinds if isinstance(default, kind)), True)


def _header(recipe: DatasetRecipe) -> dict[str, Any]:
    """What the manifest says of the data set."""
    keys = ("name", "version", "licence", "source", "attribution", "intensity_unit", "description", "preparation")
    texts = {key: getattr(recipe, key) for key in keys}
    return {**texts, "modality": get_modality(recipe.modality)}


def _placed(found: Sequence[Found], split_by: str) -> Findings:
    """Items of the publisher's splits, without those of patients who stand in a later one."""
    if split_by == "patients":
        return list(found), []
    left = [LeftOut(item.name, "the publisher puts it into no split") for item in found if not item.split]
    placed = [item for item in found if item.split]
    if split_by == "as_published":
        return placed, left
    home = {item.patient: split for split in reversed(STAYING) for item in placed if item.split == split}
    apart = [item for item in placed if not item.patient or home[item.patient] == item.split]
    why = "its patient also stands in the {} split of the publisher"
    left += [
        LeftOut(item.name, why.format(home[item.patient]))
        for item in placed
        if item.patient and home[item.patient] != item.split
    ]
    return apart, left


def _cut_groups(groups: Sequence[str], splits: Sequence[str]) -> tuple[list[str], list[str]]:
    """Groups that stand in one split each, and a note on how many of them were one patient's."""
    cut = set(groups_in_several(groups, splits))
    named = [f"{group}-{split}" if group in cut else group for group, split in zip(groups, splits, strict=True)]
    note = (
        f"{len(cut)} patients stand in several of the publisher's splits and count once in each: scores on these "
        "splits are too good. Use them only to compare with published numbers."
    )
    return named, [note] if cut else []


def _expected(recipe: DatasetRecipe, split_by: str) -> Mapping[str, Mapping[str, Any]]:
    """The published counts, which hold for the recipe's settings; of a new split by patients their sums."""
    counts = recipe.expected
    if split_by != "patients" or not counts or ALL in counts:
        return counts
    labels = Counter[str]()
    for published in counts.values():
        labels.update(published.get("labels", {}))
    return {ALL: {"items": sum(published["items"] for published in counts.values()), "labels": labels}}


def _count_notes(expected: Mapping[str, Mapping[str, Any]], found: Sequence[Found], splits: Sequence[str]) -> list[str]:
    """Where the counts differ from the published ones."""
    notes = []
    for split, published in expected.items():
        items = [item for item, place in zip(found, splits, strict=True) if split in (place, ALL)]
        labels = Counter(item.label for item in items if isinstance(item.label, str))
        counts = [("items", len(items), published["items"])]
        counts += [
            (f"items of {label}", labels[label], wanted) for label, wanted in published.get("labels", {}).items()
        ]
        notes += [
            f"{split} has {count} {what}, published are {wanted} ({count - wanted:+d})."
            for what, count, wanted in counts
            if count != wanted
        ]
    return notes
