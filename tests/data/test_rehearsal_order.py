"""Rehearsal with a fixed share of the batches: how many, of which buffer, and which samples."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from medcoss_components.data import rehearsal_order
from medcoss_components.data.rehearsal_order import RehearsalOrder, check_share, endless_order, rehearsal_batches
from medcoss_components.errors import InputError


def order(sizes=None, batch_size=4, per_epoch=3, seed=0, **options):
    return RehearsalOrder(
        sizes=sizes or {1: 6, 2: 10}, batch_size=batch_size, per_epoch=per_epoch, seed=seed, **options
    )


def content(batches):
    return [(source, indices.tolist()) for source, indices in batches]


def stream(plan, source, epochs):
    """A buffer's samples in the order in which its batches are numbered."""
    batches = [indices for epoch in epochs for other, indices in plan.batches(epoch) if other == source]
    return np.concatenate(batches)


class TestShare:
    @pytest.mark.parametrize("share", [None, 0.01, 0.5, 0.99])
    def test_allowed(self, share):
        check_share(share)

    @pytest.mark.parametrize("share", [0, 1, -0.5, 1.5, float("nan")])
    def test_refused(self, share):
        with pytest.raises(InputError, match=f"rehearsal_share must be above 0 and below 1, received {share}"):
            check_share(share)

    @pytest.mark.parametrize(
        ("current", "share", "batches"), [(6, 0.5, 6), (6, 0.25, 2), (30, 0.1, 3), (3, 0.01, 1), (1, 0.75, 3)]
    )
    def test_batches_beside_the_others(self, current, share, batches):
        assert rehearsal_batches(current, share) == batches


class TestEndlessOrder:
    @staticmethod
    def tens(number):
        return 10 * number + np.arange(3)

    def test_by_hand(self):
        assert endless_order(3, 2, 7, self.tens).tolist() == [2, 10, 11, 12, 20]

    def test_any_cut_is_a_piece_of_the_whole(self):
        whole = endless_order(3, 0, 12, self.tens)
        for start in range(12):
            for stop in range(start + 1, 13):
                assert endless_order(3, start, stop, self.tens).tolist() == whole[start:stop].tolist()


class TestRehearsalOrder:
    def test_by_hand_without_shuffling(self):
        """Batches 0, 1, 2 | 3, 4, 5 go to the buffers 1, 2, 1 | 2, 1, 2; each goes through its samples in circles."""
        plan = order(shuffle=False)
        assert content(plan.batches(0)) == [(1, [0, 1, 2, 3]), (1, [4, 5, 0, 1]), (2, [0, 1, 2, 3])]
        assert content(plan.batches(1)) == [(1, [2, 3, 4, 5]), (2, [4, 5, 6, 7]), (2, [8, 9, 0, 1])]

    @pytest.mark.parametrize("per_epoch", [1, 2, 3, 7])
    def test_buffers_take_turns(self, per_epoch):
        plan = order({1: 6, 2: 10, 3: 2}, per_epoch=per_epoch)
        used = Counter()
        for epoch in range(9):
            epoch_used = Counter(source for source, _ in plan.batches(epoch))
            assert sum(epoch_used.values()) == per_epoch
            assert all(abs(epoch_used[source] - per_epoch / 3) < 1 for source in (1, 2, 3))
            used += epoch_used
        assert max(used.values()) - min(used.values()) <= 1

    @pytest.mark.parametrize(("source", "size"), [(1, 6), (2, 10), (3, 3)])
    def test_every_sample_before_any_again(self, source, size):
        plan = order({1: 6, 2: 10, 3: 3})
        samples = stream(plan, source, range(20))
        passes = [samples[start : start + size].tolist() for start in range(0, len(samples) - size + 1, size)]
        assert len(passes) > 5
        assert all(sorted(samples) == list(range(size)) for samples in passes)
        assert passes[0] != passes[1]

    def test_batches_are_full(self):
        assert {len(indices) for epoch in range(5) for _, indices in order({1: 3, 2: 10}).batches(epoch)} == {4}

    def test_follows_from_seed_and_epoch(self):
        assert content(order().batches(5)) == content(order().batches(5)) != content(order(seed=1).batches(5))

    def test_buffers_have_orders_of_their_own(self):
        plan = order({1: 8, 2: 8}, per_epoch=4)
        assert stream(plan, 1, [0]).tolist() != stream(plan, 2, [0]).tolist()

    def test_a_late_epoch_costs_no_more(self, monkeypatch):
        drawn = []
        real = rehearsal_order.numpy_generator_for
        monkeypatch.setattr(rehearsal_order, "numpy_generator_for", lambda *keys: drawn.append(keys) or real(*keys))
        order({1: 100, 2: 100}, per_epoch=4).batches(10**9)
        assert len(drawn) <= 4  # a buffer's 8 samples touch at most two passes
