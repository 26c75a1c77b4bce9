"""Splits that cut no group and spread labels."""

from __future__ import annotations

import numpy as np
import pytest

from medcoss_components.data.group_split import split_groups
from medcoss_components.errors import InputError


def test_groups_stay_whole_and_shares_are_met():
    groups = [f"g{number // 4}" for number in range(400)]
    labels = [(number // 4) % 5 == 0 for number in range(400)]
    found = split_groups(groups, labels, (70, 10, 20), seed=3)
    assert np.bincount(found).tolist() == [280, 40, 80]
    assert np.bincount(found[np.array(labels)]).tolist() == [56, 8, 16]
    assert len(set(zip(groups, found.tolist(), strict=True))) == 100


def test_every_split_gets_a_group():
    found = split_groups(["a"] * 90 + ["b"] * 9 + ["c"], [None] * 100, (90, 5, 5))
    assert len(set(found.tolist())) == 3 and found[0] == 0
    for shares in ((98, 1, 1), (1, 1, 98), (1, 98, 1)):
        assert set(split_groups(list("abc"), [None] * 3, shares).tolist()) == {0, 1, 2}


def test_seed_decides_and_order_of_items_does_not():
    groups = [f"g{number}" for number in range(30)]
    one, other = (split_groups(groups, [0] * 30, (50, 0, 50), seed=seed) for seed in (0, 1))
    assert (one != other).any() and 1 not in one
    assert (split_groups(groups[::-1], [0] * 30, (50, 0, 50))[::-1] == one).all()


def test_too_few_groups():
    with pytest.raises(InputError, match="3 splits need at least 3 groups .* the items have 2"):
        split_groups(["a", "b"], [0, 0], (70, 10, 20))
