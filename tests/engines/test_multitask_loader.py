"""Tasks in turn: every round visits each once, orders are drawn anew, and any position is found again."""

from __future__ import annotations

from collections import Counter

import pytest

from medcoss_components.engines.multitask_loader import MultiTaskLoader, Place
from medcoss_components.errors import InputError


class Numbers:
    """A loader whose batch says its own epoch and step."""

    def __init__(self, name, length):
        self.name, self.length = name, length
        self.dataset, self.modalities = f"data of {name}", {"xray": name}
        self.epoch = self.step = 0

    def set_position(self, epoch, step):
        self.epoch, self.step = epoch, step

    def __len__(self):
        return self.length

    def __iter__(self):
        for step in range(self.step, self.length):
            yield {"own": (self.name, self.epoch, step), "step": step}


LENGTHS = {"a": 2, "b": 3, "c": 1}


def make(**options):
    return MultiTaskLoader({name: Numbers(name, length) for name, length in LENGTHS.items()}, **options)


def read(loader, rounds, position=(0, 0)):
    """(task, visit, own epoch, own step) of all batches of some rounds."""
    loader.set_position(*position)
    found = []
    for _ in range(rounds):
        found += [(batch["task"], batch["visit"], *batch["own"][1:]) for batch in loader]
    return found


class TestCycle:
    def test_every_round_visits_each_task_once_and_whole(self):
        loader = make(seed=3)
        assert len(loader) == 6
        for number in range(5):
            batches = read(loader, 1, (number, 0))
            visits = dict.fromkeys((task, visit) for task, visit, *_ in batches)
            assert sorted(task for task, _ in visits) == ["a", "b", "c"]
            assert [visit for _, visit in visits] == [3 * number, 3 * number + 1, 3 * number + 2]
            assert tuple(task for task, _ in visits) == loader.order(number)
            assert Counter(task for task, *_ in batches) == LENGTHS
            assert all(epoch == number for _, _, epoch, _ in batches)

    def test_orders_are_drawn_anew_and_follow_from_the_seed(self):
        orders = [make(seed=3).order(number) for number in range(12)]
        assert len(set(orders)) > 3
        assert orders == [make(seed=3).order(number) for number in range(12)]
        assert orders != [make(seed=4).order(number) for number in range(12)]

    def test_given_order_without_reshuffling(self):
        assert {make(reshuffled=False).order(number) for number in range(5)} == {("a", "b", "c")}

    def test_several_epochs_a_visit(self):
        found = read(make(reshuffled=False, epochs_per_visit=2), 2)
        assert found[:4] == [("a", 0, 0, 0), ("a", 0, 0, 1), ("a", 0, 1, 0), ("a", 0, 1, 1)]
        assert found[12:14] == [("a", 3, 2, 0), ("a", 3, 2, 1)]
        assert len(found) == 24 and found[-2:] == [("c", 5, 2, 0), ("c", 5, 3, 0)]


class TestSequence:
    """muscle--: one long visit to each task."""

    def test_one_task_after_the_other(self):
        loader = make(cyclic=False, reshuffled=False, rounds=2)
        found = read(loader, 2)
        assert [task for task, *_ in found] == ["a"] * 4 + ["b"] * 6 + ["c"] * 2
        assert [visit for _, visit, *_ in found] == [0] * 4 + [1] * 6 + [2] * 2
        assert found[4:10] == [("b", 1, epoch, step) for epoch in range(2) for step in range(3)]

    def test_same_batches_as_the_cycle(self):
        def without_visit(found):
            return sorted((task, epoch, step) for task, _, epoch, step in found)

        cycle, sequence = read(make(), 3), read(make(cyclic=False, rounds=3), 3)
        assert without_visit(cycle) == without_visit(sequence) and cycle != sequence

    def test_order_may_be_drawn(self):
        orders = {make(cyclic=False, rounds=2, seed=seed).order(1) for seed in range(8)}
        assert len(orders) > 2

    def test_when_a_task_is_learned(self):
        loader = make(cyclic=False, reshuffled=False, rounds=2)  # visits end at 4, 10 and 12 of 6 a round
        assert [loader.first_visit_ends(task) for task in "abc"] == [0, 1, 1]
        assert [make().first_visit_ends(task) for task in "abc"] == [0, 0, 0]


@pytest.mark.parametrize(
    "options", [{}, {"epochs_per_visit": 2}, {"cyclic": False, "rounds": 3}, {"reshuffled": False}]
)
def test_any_position_is_found_again(options):
    loader = make(**options)
    whole = read(loader, 3)
    for position in range(len(whole)):
        here = divmod(position, len(loader))
        assert read(make(**options), 3 - here[0], here) == whole[position:]
        place = loader.place(position)
        assert (place.task, place.visit, place.epoch, place.step) == whole[position]
        visit = [entry for entry in whole if entry[1] == place.visit]
        assert (place.length, visit[place.place]) == (len(visit), whole[position])


def test_place_by_hand():
    assert make(reshuffled=False).place(8) == Place(task="b", visit=4, epoch=1, step=0, place=0, length=3)


def test_what_it_says_about_itself():
    loader = make()
    assert loader.tasks == ("a", "b", "c") and loader.datasets["b"] == "data of b"
    assert loader.modalities == {"xray": "c"}
    batch = next(iter(loader))
    assert set(batch) == {"own", "step", "task", "visit"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs_per_visit": 0}, "epochs_per_visit must be at least 1, received 0"),
        ({"cyclic": False}, "rounds: .* needs how many there are, received None"),
        ({"cyclic": False, "rounds": 0}, "received 0"),
    ],
)
def test_refused(options, message):
    with pytest.raises(InputError, match=message):
        make(**options)


def test_no_task_refused():
    with pytest.raises(InputError, match="tasks: at least one is needed"):
        MultiTaskLoader({})
