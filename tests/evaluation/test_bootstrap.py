"""Resampling of whole groups and percentile intervals."""

from __future__ import annotations

import numpy as np
import pytest

from medcoss_components.errors import InputError
from medcoss_components.evaluation import bootstrap
from medcoss_components.evaluation.bootstrap import bootstrap_intervals, resampled_weights

GROUPS = ["p", "q", "p", "r", "q", "p"]


def mean_of(values):
    values = np.asarray(values, dtype=float)
    return lambda weights: {"mean": weights @ values / weights.sum(axis=1)}


class TestWeights:
    def test_whole_groups(self):
        weights = np.concatenate(list(resampled_weights(GROUPS, repeats=50, seed=0)))
        assert weights.shape == (50, 6)
        assert (weights[:, 0] == weights[:, 2]).all() and (weights[:, 0] == weights[:, 5]).all()
        assert (weights[:, 1] == weights[:, 4]).all()
        assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()

    def test_blocks_do_not_change_the_draw(self, monkeypatch):
        whole = np.concatenate(list(resampled_weights(GROUPS, repeats=9, seed=3)))
        monkeypatch.setattr(bootstrap, "CHUNK", 4 * len(GROUPS))
        blocks = list(resampled_weights(GROUPS, repeats=9, seed=3))
        assert [len(block) for block in blocks] == [4, 4, 1]
        assert (np.concatenate(blocks) == whole).all()

    def test_seed(self):
        first, again, other = (next(resampled_weights(GROUPS, repeats=9, seed=seed)) for seed in (1, 1, 2))
        assert (first == again).all() and (first != other).any()

    def test_rejected(self):
        with pytest.raises(InputError, match="repeats.*received 0"):
            next(resampled_weights(GROUPS, repeats=0, seed=0))


class TestIntervals:
    def test_close_to_the_normal_interval_of_a_mean(self):
        values = np.random.default_rng(0).normal(size=400)
        low, high = bootstrap_intervals(mean_of(values), [str(i) for i in range(400)])["mean"]
        half = 1.96 * values.std() / 20
        assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)

    def test_against_a_loop(self):
        values = np.arange(6.0)
        weights = next(resampled_weights(GROUPS, repeats=40, seed=5))
        means = [np.repeat(values, row.astype(int)).mean() for row in weights]
        found = bootstrap_intervals(mean_of(values), GROUPS, repeats=40, seed=5, level=0.8)
        assert found["mean"] == pytest.approx((np.quantile(means, 0.1), np.quantile(means, 0.9)))

    def test_grouped_cases_give_wider_intervals(self):
        values = np.repeat([0.0, 1.0] * 5, 10)
        single = bootstrap_intervals(mean_of(values), [str(i) for i in range(100)])["mean"]
        grouped = bootstrap_intervals(mean_of(values), [str(i // 10) for i in range(100)])["mean"]
        assert grouped[1] - grouped[0] > 2 * (single[1] - single[0])

    def test_one_group_has_no_interval(self):
        assert bootstrap_intervals(mean_of([1, 2]), ["p", "p"]) == {}

    def test_mostly_undefined_is_left_out(self):
        def statistic(weights):
            share = np.arange(len(weights)) / len(weights)
            return {"rare": np.where(share < 0.4, share, np.nan), "usual": np.where(share < 0.6, 1.0, np.nan)}

        assert bootstrap_intervals(statistic, GROUPS, repeats=100) == {"usual": (1.0, 1.0)}

    def test_rejected(self):
        with pytest.raises(InputError, match="level.*received 95"):
            bootstrap_intervals(mean_of([1, 2]), ["p", "q"], level=95)
