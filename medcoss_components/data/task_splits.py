"""Which items of a manifest belong to a split of a task.

``training`` is the manifest's training split, less the groups that are put aside when the manifest has no validation
split, of it the first ``label_ratio`` of the shuffled list. ``validation`` is the manifest's own split, or the groups
put aside. ``testing`` is the manifest's. All follow from the manifest and ``seed`` alone; bad files do not move others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from medcoss_components.data.labels import first_share, validation_groups
from medcoss_components.data.manifest import Manifest


def source_split(manifest: Manifest, split: str) -> str:
    """The split of the manifest that the items of a task's split come from."""
    return "training" if split == "validation" and not manifest.validation else split


@dataclass(frozen=True)
class SplitChoice:
    """Items of a split: ``ids`` out of the manifest's split ``source``."""

    source: str
    ids: frozenset[str]


def choose_items(
    manifest: Manifest,
    split: str,
    *,
    targets: Mapping[str, int] | None = None,
    validation_share: float,
    label_ratio: float,
    seed: int,
) -> SplitChoice:
    """Which items of a manifest a split of a task holds; see the head of this module.

    Args:
        manifest: the data set.
        split: training, validation or testing.
        targets: item id -> class number of the items of :func:`source_split`, for a stratified choice; None: not.
        validation_share: share of the training items that is put aside where the manifest has no validation split.
        label_ratio: share of the training list that is used.
        seed: of both choices.

    Raises:
        InputError: a share out of range, or too few groups.
    """
    source = source_split(manifest, split)
    items = manifest.items(source)  # refuses an unknown split
    if source != "training":
        return SplitChoice(source, frozenset(item.id for item in items))
    aside = _groups_aside(manifest, targets, validation_share, seed)
    if split == "validation":
        return SplitChoice("training", frozenset(item.id for item in items if item.group in aside))
    kept = [item.id for item in items if item.group not in aside]
    rows = first_share(np.arange(len(kept)), label_ratio, seed)
    return SplitChoice("training", frozenset(kept[row] for row in rows if kept))


def _groups_aside(manifest: Manifest, targets: Mapping[str, int] | None, share: float, seed: int) -> frozenset[str]:
    """Groups of the training split that serve as validation."""
    if manifest.validation or share == 0 or not manifest.training:
        return frozenset()
    kinds = None if targets is None else [targets[item.id] for item in manifest.training]
    return validation_groups([item.group for item in manifest.training], kinds, share=share, seed=seed)
