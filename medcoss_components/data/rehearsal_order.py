"""Which samples of the rehearsal buffers an epoch uses when rehearsal has a fixed share of the batches.

Batches of the buffers are numbered through all epochs, 0, 1, 2, ...; the buffers take turns. A buffer's samples come in
an endless order: all of them shuffled, then all of them shuffled anew, and so on. Every number thus names its samples,
and an epoch is planned without looking at the epochs before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from medcoss_components.errors import InputError
from medcoss_components.randomness import numpy_generator_for


def check_share(share: float | None) -> None:
    """Refuse a share of rehearsal that leaves out the buffers or the current modality.

    Raises:
        InputError: when it is not between 0 and 1.
    """
    if share is not None and not 0 < share < 1:
        raise InputError(
            f"rehearsal_share must be above 0 and below 1, received {share}; "
            "null rehearses each buffer in proportion to its size, without buffers nothing is rehearsed"
        )


def rehearsal_batches(current: int, share: float) -> int:
    """Rehearsal batches R beside ``current`` others, so that R / (current + R) is the share: rounded, at least 1.

    >>> rehearsal_batches(30, 0.25)
    10
    """
    return max(1, round(current * share / (1 - share)))


def endless_order(size: int, start: int, stop: int, permutation: Callable[[int], np.ndarray]) -> np.ndarray:
    """Places ``start`` to ``stop`` of the order that strings permutation after permutation together.

    Args:
        size: samples.
        start, stop: places, 0 <= start < stop.
        permutation: number of the pass over all samples -> (size,) their order in it.

    Returns:
        (stop - start,) int64.
    """
    first, last = start // size, (stop - 1) // size
    order = np.concatenate([permutation(number) for number in range(first, last + 1)])
    return order[start - first * size : stop - first * size]


@dataclass(frozen=True, kw_only=True)
class RehearsalOrder:
    """Batches of the buffers, epoch by epoch.

    Args:
        sizes: source number of each buffer -> its samples.
        batch_size: global batch size; every batch of a buffer has it.
        per_epoch: batches an epoch, all buffers together.
        seed: seed of the run.
        shuffle: False keeps each buffer's own order.
    """

    sizes: dict[int, int]
    batch_size: int
    per_epoch: int
    seed: int
    shuffle: bool = True

    def batches(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        """(source number, (B,) int64 samples) of each batch of an epoch, buffer by buffer."""
        return [
            (source, indices)
            for turn, source in enumerate(self.sizes)
            for indices in self._batches_of(source, *self._numbers(turn, epoch))
        ]

    def _numbers(self, turn: int, epoch: int) -> tuple[int, int]:
        """Which of its own batches the buffer whose turn is ``turn`` gives to an epoch: first, and one after the last.

        Of the batches numbered through it has those that leave the remainder ``turn`` when divided by the number of
        buffers.
        """
        buffers = len(self.sizes)
        before, after = (-(-(number * self.per_epoch - turn) // buffers) for number in (epoch, epoch + 1))
        return before, after

    def _batches_of(self, source: int, first: int, stop: int) -> list[np.ndarray]:
        if first == stop:
            return []
        size, batch = self.sizes[source], self.batch_size

        def permutation(number: int) -> np.ndarray:
            if not self.shuffle:
                return np.arange(size)
            return numpy_generator_for(self.seed, "rehearsal order", source, number).permutation(size)

        return np.split(endless_order(size, first * batch, stop * batch, permutation), stop - first)
