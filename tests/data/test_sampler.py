"""Which samples make up which batch, and how ranks and threads share the reading."""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np
import pytest
import torch

from medcoss_components.continual.mixup import draw_partners
from medcoss_components.data.sampler import BatchPlan, BatchReader, BatchSampler, PretrainingLoader, rank_rows
from medcoss_components.errors import InputError
from medcoss_components.randomness import generator_for

SIZES = (21, 6, 3)


def sampler(sizes=SIZES, batch_size=4, seed=0, full_batches=frozenset({1, 2}), **options):
    return BatchSampler(sizes=sizes, batch_size=batch_size, seed=seed, full_batches=full_batches, **options)


def content(plans):
    return [(plan.source, plan.epoch, plan.step, plan.indices.tolist()) for plan in plans]


def used(plans, source):
    return Counter(int(index) for plan in plans if plan.source == source for index in plan.indices)


class TestBatchSampler:
    @pytest.mark.parametrize("epoch", [0, 1, 7])
    def test_every_current_sample_once_an_epoch(self, epoch):
        assert used(sampler().plans(epoch), 0) == dict.fromkeys(range(21), 1)

    def test_buffers_in_proportion(self):
        plans = sampler().plans(0)
        assert Counter(plan.source for plan in plans) == {0: 6, 1: 2, 2: 1}  # ceil(n / 4)
        assert len(plans) == len(sampler()) == 9
        assert used(plans, 1) == dict.fromkeys(range(6), 1)

    def test_batches_of_one_source_each_in_global_size(self):
        sizes = sorted(len(plan.indices) for plan in sampler().plans(0) if plan.source == 0)
        assert sizes == [1, 4, 4, 4, 4, 4]

    def test_steps_count_up(self):
        assert [plan.step for plan in sampler().plans(3)] == list(range(9))
        assert {plan.epoch for plan in sampler().plans(3)} == {3}

    def test_same_seed_and_epoch_same_plans(self):
        assert content(sampler().plans(2)) == content(sampler().plans(2))

    @pytest.mark.parametrize("other", [{"seed": 1}, {"epoch": 1}])
    def test_another_seed_or_epoch_another_order(self, other):
        epoch = other.pop("epoch", 0)
        first, second = sampler().plans(0), sampler(**other).plans(epoch)
        assert [plan.source for plan in first] != [plan.source for plan in second]
        assert [list(plan.indices) for plan in first] != [list(plan.indices) for plan in second]

    def test_samples_are_shuffled_not_only_batches(self):
        indices = next(plan.indices for plan in sampler().plans(0) if plan.source == 0 and len(plan.indices) == 4)
        assert np.diff(indices).tolist() != [1, 1, 1]

    def test_order_does_not_depend_on_ranks(self):
        sizes = (20, 6, 3)  # last batches hold at least 2 samples
        assert content(sampler(sizes).plans(1)) == content(sampler(sizes, ranks=2).plans(1))

    def test_short_buffer_is_repeated_up_to_a_batch(self):
        plans = [plan for plan in sampler((21, 3), batch_size=8, full_batches=frozenset({1})).plans(0) if plan.source]
        assert [len(plan.indices) for plan in plans] == [8]
        assert sorted(used(plans, 1).values()) == [2, 3, 3]

    def test_short_current_source_is_not_repeated(self):
        assert [len(plan.indices) for plan in sampler((3,), batch_size=8).plans(0)] == [3]

    def test_no_batch_is_smaller_than_the_number_of_ranks(self):
        plans = sampler((9, 1), batch_size=4, full_batches=frozenset(), ranks=3).plans(0)
        assert sorted(len(plan.indices) for plan in plans) == [3, 3, 4, 4]
        assert set(used(plans, 0)) == set(range(9)) and sum(used(plans, 0).values()) == 11

    def test_unshuffled_is_store_order_source_by_source(self):
        plans = sampler((5, 2), batch_size=3, full_batches=frozenset(), shuffle=False).plans(4)
        assert content(plans) == [(0, 4, 0, [0, 1, 2]), (0, 4, 1, [3, 4]), (1, 4, 2, [0, 1])]

    def test_empty_source_refused(self):
        with pytest.raises(InputError, match="source 1 holds 0 samples"):
            sampler((4, 0))

    def test_batch_below_ranks_refused(self):
        with pytest.raises(InputError, match=r"number of processes \(4\), received 3"):
            sampler(batch_size=3, ranks=4)


class TestRehearsalShare:
    def shared(self, share=0.5, sizes=SIZES, full_batches=frozenset({1, 2}), **options):
        return sampler(sizes, full_batches=full_batches, rehearsal_share=share, **options)

    @pytest.mark.parametrize(("share", "batches"), [(0.5, 6), (0.25, 2), (0.001, 1), (0.8, 24)])
    def test_share_of_an_epoch(self, share, batches):
        """21 samples in batches of 4 are 6 batches."""
        for epoch in range(4):
            used_sources = Counter(plan.source > 0 for plan in self.shared(share).plans(epoch))
            assert used_sources == {False: 6, True: batches}
        assert len(self.shared(share)) == 6 + batches

    def test_current_samples_once_an_epoch(self):
        for epoch in range(3):
            assert used(self.shared().plans(epoch), 0) == dict.fromkeys(range(21), 1)

    def test_current_samples_come_as_without_a_share(self):
        batches = [
            sorted(plan.indices.tolist() for plan in plans.plans(2) if plan.source == 0)
            for plans in (sampler(), self.shared())
        ]
        assert batches[0] == batches[1]

    def test_joint_sources_are_current(self):
        plans = self.shared(sizes=(8, 12, 6), full_batches=frozenset({2})).plans(0)
        assert Counter(plan.source for plan in plans) == {0: 2, 1: 3, 2: 5}

    def test_spread_evenly_in_full_batches(self):
        plans = self.shared().plans(0)
        assert Counter(plan.source for plan in plans) == {0: 6, 1: 3, 2: 3}
        assert {len(plan.indices) for plan in plans if plan.source} == {4}

    def test_buffer_goes_on_through_epochs(self):
        """An epoch uses 12 of 24 samples."""
        plans = self.shared(sizes=(12, 24), full_batches=frozenset({1}))
        first, second = (used(plans.plans(epoch), 1) for epoch in (0, 1))
        assert first + second == dict.fromkeys(range(24), 1)

    def test_rehearsal_is_mixed_among_the_others(self):
        sources = [plan.source for plan in self.shared().plans(0)]
        assert sources != sorted(sources)

    def test_unshuffled_buffers_come_last(self):
        plans = self.shared(0.25, shuffle=False).plans(0)
        assert content(plans)[-2:] == [(1, 0, 6, [0, 1, 2, 3]), (2, 0, 7, [0, 1, 2, 0])]

    @pytest.mark.parametrize("share", [0.1, 0.5])
    def test_without_buffers_nothing_changes(self, share):
        plain, shared = (sampler((21, 6), full_batches=frozenset(), rehearsal_share=s) for s in (None, share))
        assert content(plain.plans(3)) == content(shared.plans(3)) and len(plain) == len(shared)

    def test_order_does_not_depend_on_ranks(self):
        sizes = (20, 6, 3)
        assert content(self.shared(sizes=sizes).plans(1)) == content(self.shared(sizes=sizes, ranks=2).plans(1))

    @pytest.mark.parametrize("share", [0.0, 1.0, -1, 2])
    def test_outside_refused_even_without_buffers(self, share):
        with pytest.raises(InputError, match=f"rehearsal_share must be above 0 and below 1, received {share}"):
            sampler((21,), full_batches=frozenset(), rehearsal_share=share)


class TestRankRows:
    @pytest.mark.parametrize("ranks", [1, 2, 3, 5])
    @pytest.mark.parametrize("count", [5, 6, 13])
    def test_rows_partition_the_batch_evenly(self, count, ranks):
        rows = [rank_rows(count, rank, ranks) for rank in range(ranks)]
        assert np.concatenate(rows).tolist() == list(range(count))
        assert max(map(len, rows)) - min(map(len, rows)) <= 1

    def test_by_hand(self):
        assert [rank_rows(5, rank, 2).tolist() for rank in range(2)] == [[0, 1, 2], [3, 4]]


class TestBatchReader:
    plan = BatchPlan(source=1, epoch=2, step=3, indices=np.array([4, 0, 2, 5, 1, 3, 3]))

    def read(self, fake_source, rank=0, ranks=1, plan=None):
        sources = [fake_source("xray", 9), fake_source("ct", 6)]
        return BatchReader(sources, current=1, seed=5, rank=rank, ranks=ranks)[plan or self.plan]

    def test_current_batch(self, fake_source):
        plan = BatchPlan(source=0, epoch=0, step=0, indices=np.array([8, 2, 5]))
        batch = self.read(fake_source, plan=plan)
        assert (batch["modality"], batch["rehearsal"], batch["count"], batch["own"]) == ("xray", False, 3, 3)
        assert batch["ids"] == ["xray-008", "xray-002", "xray-005"]
        assert np.array_equal(batch["raw"].numpy(), fake_source("xray", 9).samples[[8, 2, 5]])
        assert batch["raw"].dtype == torch.uint8
        assert batch["partners"].tolist() == batch["rows"].tolist() == [0, 1, 2]

    def test_rehearsal_batch_names_itself(self, fake_source):
        batch = self.read(fake_source)
        assert batch["rehearsal"] and batch["modality"] == "ct"
        assert (batch["source"], batch["epoch"], batch["step"]) == (1, 2, 3)

    @pytest.mark.parametrize("ranks", [1, 2, 3, 7])
    def test_partners_are_one_permutation_whatever_the_ranks(self, fake_source, ranks):
        expected = draw_partners(7, generator_for(5, "partners", 1, 2, 3))
        parts = [self.read(fake_source, rank, ranks) for rank in range(ranks)]
        partners = [int(part["rows"][place]) for part in parts for place in part["partners"]]
        assert partners == expected.tolist()
        assert sorted(partners) == list(range(7))

    @pytest.mark.parametrize("ranks", [2, 3])
    def test_ranks_read_their_rows_and_foreign_partners_once(self, fake_source, ranks):
        samples = fake_source("ct", 6).samples
        for rank in range(ranks):
            batch = self.read(fake_source, rank, ranks)
            rows = batch["rows"].tolist()
            assert rows[: batch["own"]] == rank_rows(7, rank, ranks).tolist()
            assert len(set(rows)) == len(rows)
            assert np.array_equal(batch["raw"].numpy(), samples[self.plan.indices[rows]])
            assert batch["ids"] == [f"ct-{index:03d}" for index in self.plan.indices[rows[: batch["own"]]]]


class TestPretrainingLoader:
    def loader(self, fake_source, **options):
        options = {"buffers": [fake_source("ct", 6), fake_source("report", 2)], "batch_size": 4} | options
        return PretrainingLoader(fake_source("xray", 9), **options)

    @staticmethod
    def summary(batches):
        return [
            (
                batch["source"],
                batch["epoch"],
                batch["step"],
                batch["ids"],
                batch["partners"].tolist(),
                batch["raw"].float().sum().item(),
            )
            for batch in batches
        ]

    def test_describes_itself(self, fake_source):
        loader = self.loader(fake_source, joint=[fake_source("mri", 3)])
        assert list(loader.modalities) == ["xray", "mri", "ct", "report"]
        assert (loader.current, loader.batch_size, len(loader)) == (2, 4, 3 + 1 + 2 + 1)
        assert loader.dataset is loader.sources[0]
        assert loader.sampler.full_batches == {2, 3}

    def test_joint_sources_are_not_rehearsal(self, fake_source):
        loader = self.loader(fake_source, joint=[fake_source("mri", 3)])
        kinds = {batch["modality"]: batch["rehearsal"] for batch in loader}
        assert kinds == {"xray": False, "mri": False, "ct": True, "report": True}

    def test_buffer_below_a_batch_rehearses_in_full_batches(self, fake_source):
        counts = [batch["count"] for batch in self.loader(fake_source) if batch["modality"] == "report"]
        assert counts == [4]

    def test_goes_on_epoch_by_epoch(self, fake_source):
        loader = self.loader(fake_source)
        first, second = self.summary(loader), self.summary(loader)
        assert {row[1] for row in first} == {0} and {row[1] for row in second} == {1}
        assert first != [(row[0], 0, *row[2:]) for row in second]

    @pytest.mark.parametrize("options", [{}, {"rehearsal_share": 0.5, "num_workers": 2}])
    def test_resumes_at_any_position(self, fake_source, options):
        loader = self.loader(fake_source, **options)
        whole = self.summary(loader) + self.summary(loader)
        length = len(loader)
        assert len(whole) == 2 * length
        for position in range(2 * length):
            resumed = self.loader(fake_source, **options)
            resumed.set_position(*divmod(position, length))
            rest = self.summary(resumed) + (self.summary(resumed) if position < length else [])
            assert rest == whole[position:], position

    @pytest.mark.parametrize("share", [None, 0.5])
    def test_threads_give_the_same_batches(self, fake_source, share):
        loaders = [self.loader(fake_source, num_workers=count, rehearsal_share=share) for count in (0, 1, 3)]
        for _ in range(2):  # epochs
            expected, *others = ([*loader] for loader in loaders)
            for batches in others:
                assert [batch["ids"] for batch in batches] == [batch["ids"] for batch in expected]
                assert all(
                    torch.equal(batch[key], want[key])
                    for batch, want in zip(batches, expected, strict=True)
                    for key in ("raw", "rows", "partners")
                )

    def test_reads_in_threads_that_end_with_the_iteration(self, fake_source):
        names = set()
        loader = self.loader(fake_source, num_workers=2)
        real = loader.dataset.gather
        loader.dataset.gather = lambda rows: names.add(threading.current_thread().name) or real(rows)
        for batch in loader:
            if batch["source"] == 0:
                break
        assert names and all(name.startswith("reader") for name in names)
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("reader")]
        assert (loader.epoch, loader.step) == (0, 0)  # an epoch that was left is begun anew

    @pytest.mark.parametrize("workers", [0, 2])
    def test_errors_of_a_source_arrive_as_they_are(self, fake_source, workers):
        def broken(rows):
            raise InputError("shard-0000.npy: cannot be read")

        loader = self.loader(fake_source, num_workers=workers)
        loader.sources[1].gather = broken
        with pytest.raises(InputError, match=r"^shard-0000\.npy: cannot be read$"):
            list(loader)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_random_numbers_of_the_process_are_left_alone(self, fake_source, workers):
        before = torch.get_rng_state()
        list(self.loader(fake_source, num_workers=workers))
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_pins_where_it_reads(self, fake_source, workers, monkeypatch):
        names, devices = set(), []
        pin = lambda tensor: names.add(threading.current_thread().name) or tensor  # noqa: E731
        monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
        monkeypatch.setattr(torch.cuda, "set_device", devices.append)
        loader = self.loader(fake_source, num_workers=workers)
        loader.pin_memory = True
        assert len(list(loader)) == len(loader)
        assert names and all(name.startswith("reader") == (workers > 0) for name in names)
        assert set(devices) == ({1} if workers else set())

    def test_negative_workers_refused(self, fake_source):
        with pytest.raises(InputError, match="num_workers must be 0 or more threads, received -1"):
            self.loader(fake_source, num_workers=-1)

    def test_rehearsal_share_reaches_the_plans(self, fake_source):
        loader = self.loader(fake_source, rehearsal_share=0.25)  # 3 batches of 9 current samples and 1 more
        assert len(loader) == 4 and [batch["rehearsal"] for batch in loader].count(True) == 1

    def test_unshuffled_reads_in_store_order(self, fake_source):
        loader = self.loader(fake_source, buffers=[], shuffle=False)
        assert [name for batch in loader for name in batch["ids"]] == loader.dataset.ids
