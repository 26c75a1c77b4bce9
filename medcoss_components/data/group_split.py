"""Splitting items in three so that no group (patient) is cut, and labels are spread as far as groups allow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence

import numpy as np

from medcoss_components.data.labels import validation_groups
from medcoss_components.errors import InputError


def split_groups(
    groups: Sequence[str], labels: Sequence[Hashable], shares: Sequence[float], *, seed: int = 0
) -> np.ndarray:
    """Give every item a split; items of one group get the same.

    Groups are put aside for the last split, then for the one before it, each time by
    :func:`~medcoss_components.data.labels.validation_groups`; the first split keeps the rest.

    Args:
        groups: group of each of N items.
        labels: label of each; equal ones are spread alike.
        shares: wanted share of each split; the first is above 0. A split with a share above 0 gets at least one group.
        seed: of the choice.

    Returns:
        (N,) int64, index of the split. It does not depend on the order of the items.

    Raises:
        InputError: fewer groups than splits.

    >>> split_groups(["a", "a", "b"], ["x", "y", "x"], [0.6, 0.4]).tolist()
    [0, 0, 1]
    """
    used = [index for index, share in enumerate(shares) if share > 0]
    count = len(set(groups))
    if count < len(used):
        raise InputError(
            f"split: {len(used)} splits need at least {len(used)} groups (patients), the items have {count}. "
            "Give fewer splits (a share of 0) or more patients."
        )
    kinds = {label: number for number, label in enumerate(sorted(set(labels), key=str))}
    splits: np.ndarray = np.zeros(len(groups), dtype=np.int64)
    for place, index in reversed(list(enumerate(used))[1:]):
        rows = np.flatnonzero(splits == 0).tolist()
        left = [groups[row] for row in rows]
        share = shares[index] / sum(shares[: index + 1])
        aside = validation_groups(left, [kinds[labels[row]] for row in rows], share=share, seed=seed)
        aside = _leaving(aside, Counter(left), place)
        splits[[row for row in rows if groups[row] in aside]] = index
    return splits


def _leaving(aside: Collection[str], sizes: Mapping[str, int], count: int) -> frozenset[str]:
    """The groups put aside, less the smallest ones where otherwise fewer than ``count`` groups would be left."""
    surplus = max(0, count - (len(sizes) - len(aside)))
    return frozenset(sorted(aside, key=lambda group: (sizes[group], group))[surplus:])
