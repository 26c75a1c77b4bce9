"""Batches of several tasks in turn: which task comes when, and its own loader's batches (METHOD section 9).

MUSCLE (W. Liao et al., MICCAI 2022) visits the tasks cyclically and reshuffled: every round visits each task once, in
an order drawn anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

from medcoss_components.data.modalities import Modality
from medcoss_components.errors import InputError
from medcoss_components.randomness import numpy_generator_for


class Place(NamedTuple):
    """Where one batch stands.

    ``visit``: running number of the visit; ``epoch`` and ``step``: of the task's own loader; ``place`` of ``length``:
    the batch's number in the visit, and the batches of the visit.
    """

    task: str
    visit: int
    epoch: int
    step: int
    place: int
    length: int


class MultiTaskLoader:
    """The loaders of several tasks as one, which a trainer reads like any other.

    An epoch is a round, as long as ``epochs_per_visit`` epochs of every loader together. A batch is that of the task's
    own loader with ``task`` (its name) and ``visit`` (running number) added. What is drawn follows from the seed and
    the position alone, so a run resumes inside a visit and all ranks agree.

    ``cyclic=False`` is the schedule of muscle--: one visit to each task, as long as all its visits of ``rounds``
    rounds together. Continual learning without a schedule is to learn one task after the other; each task has as many
    steps on the same batches as with the cycle, so that a comparison shows the schedule and nothing else. (To draw
    another task at every step would be a finer cycle, not its absence.) A round is then a stretch of equal length,
    after which one may look at the tasks.

    Args:
        loaders: task -> its loader, with ``__len__`` and ``set_position(epoch, step)``.
        seed: of the orders.
        cyclic: whether tasks take turns in every round.
        reshuffled: whether the order is drawn, for every round anew; False: the given order.
        epochs_per_visit: epochs of a task's loader before the next task has its turn.
        rounds: of the whole run; needed unless ``cyclic``.

    Attributes:
        epoch, step: where the next iteration starts.

    Raises:
        InputError: no loader, no epoch, or no number of rounds where it is needed.
    """

    def __init__(
        self,
        loaders: Mapping[str, Any],
        *,
        seed: int = 0,
        cyclic: bool = True,
        reshuffled: bool = True,
        epochs_per_visit: int = 1,
        rounds: int | None = None,
    ) -> None:
        if not loaders:
            raise InputError("tasks: at least one is needed, received none")
        if epochs_per_visit < 1:
            raise InputError(f"epochs_per_visit must be at least 1, received {epochs_per_visit}")
        if not cyclic and (rounds is None or rounds < 1):
            raise InputError(f"rounds: a schedule that is not cyclic needs how many there are, received {rounds}")
        self.loaders = dict(loaders)
        self.seed, self.cyclic, self.reshuffled = seed, cyclic, reshuffled
        self._rounds = 1 if cyclic else int(rounds or 1)  # rounds that one visit to each task takes
        self._epochs = epochs_per_visit * self._rounds
        self.epoch, self.step = 0, 0

    @property
    def pin_memory(self) -> bool:
        """Whether batches come in page-locked memory."""
        return all(loader.pin_memory for loader in self.loaders.values())

    @pin_memory.setter
    def pin_memory(self, pin: bool) -> None:
        for loader in self.loaders.values():
            loader.pin_memory = pin

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names in the given order."""
        return tuple(self.loaders)

    @property
    def datasets(self) -> dict[str, Any]:
        """Task -> its data."""
        return {task: loader.dataset for task, loader in self.loaders.items()}

    @property
    def modalities(self) -> dict[str, Modality]:
        """Modalities of all tasks, by name."""
        return {name: entry for loader in self.loaders.values() for name, entry in loader.modalities.items()}

    def order(self, round_number: int) -> tuple[str, ...]:
        """Tasks in the order of their visits in a round (from 0); not cyclic: in the order of the whole run."""
        return self._order(round_number // self._rounds)

    def place(self, position: int) -> Place:
        """Where batch ``position`` (from 0, counted over all rounds) stands."""
        cycle, left = divmod(position, len(self) * self._rounds)
        tasks, number = self._order(cycle), 0
        while left >= self._visit_length(tasks[number]):
            left -= self._visit_length(tasks[number])
            number += 1
        task, visit = tasks[number], cycle * len(tasks) + number
        epoch, step = divmod(left, len(self.loaders[task]))
        return Place(task, visit, cycle * self._epochs + epoch, step, left, self._visit_length(task))

    def first_visit_ends(self, task: str) -> int:
        """The round (from 0) by whose end a task has been visited for the first time, to the end of that visit."""
        if self.cyclic:
            return 0
        names = self._order(0)
        before = sum(self._visit_length(name) for name in names[: names.index(task) + 1])
        return -(-before // len(self)) - 1

    def set_position(self, epoch: int, step: int) -> None:
        """Start the next iteration at batch ``step`` (from 0) of round ``epoch`` (from 0)."""
        self.epoch, self.step = epoch, step

    def __len__(self) -> int:
        return sum(map(len, self.loaders.values())) * self._epochs // self._rounds

    def __iter__(self) -> Iterator[dict[str, Any]]:
        position, end = self.epoch * len(self) + self.step, (self.epoch + 1) * len(self)
        while position < end:
            here = self.place(position)
            loader = self.loaders[here.task]
            count = min(len(loader) - here.step, end - position)
            loader.set_position(here.epoch, here.step)
            for batch in islice(loader, count):
                yield {**batch, "task": here.task, "visit": here.visit}
            position += count
        self.epoch, self.step = self.epoch + 1, 0

    def _visit_length(self, task: str) -> int:
        return len(self.loaders[task]) * self._epochs

    def _order(self, cycle: int) -> tuple[str, ...]:
        names = self.tasks
        if not self.reshuffled:
            return names
        drawn = numpy_generator_for(self.seed, "round", cycle).permutation(len(names))
        return tuple(names[number] for number in drawn)
