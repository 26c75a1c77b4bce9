"""Positions that are spread evenly over a list, so that a few entries stand for all."""

from __future__ import annotations

import numpy as np

from medcoss_components.errors import InputError


def evenly_spread(count: int, wanted: int) -> np.ndarray:
    """Positions in a list, the first and the last included where two or more are wanted.

    Args:
        count: entries of the list.
        wanted: how many positions; all where there are no more entries, the first alone for 1.

    Returns:
        (min(count, wanted),) int64, rising, each once.

    Raises:
        InputError: a negative number.

    >>> evenly_spread(100, 4).tolist(), evenly_spread(3, 9).tolist(), evenly_spread(7, 1).tolist()
    ([0, 33, 66, 99], [0, 1, 2], [0])
    """
    for name, number in (("count", count), ("wanted", wanted)):
        if number < 0:
            raise InputError(f"{name}: must be 0 or more, got {number}.")
    return np.linspace(0, count - 1, min(count, wanted)).round().astype(np.int64)
