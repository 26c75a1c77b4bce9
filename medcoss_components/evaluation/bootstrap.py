"""Confidence intervals by resampling whole groups (patients), because cases of one patient are alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from medcoss_components.errors import InputError
from medcoss_components.randomness import numpy_generator_for

LEVEL = 0.95
REPEATS = 1000
CHUNK = 4_000_000  # weights held at once: 32 MB
Statistic = Callable[[NDArray[np.float64]], Mapping[str, NDArray[np.float64]]]


def group_indices(groups: Sequence[str]) -> tuple[NDArray[np.int64], int]:
    """(N,) number of each case's group, and how many groups there are."""
    names, inverse = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    return inverse.reshape(-1), len(names)


def resampled_weights(groups: Sequence[str], *, repeats: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """How often each case is drawn when as many groups as there are get drawn with replacement.

    Args:
        groups: group (patient) of each of N cases.
        repeats: how many resamples.
        seed: of the draw; the same seed and groups give the same resamples.

    Yields:
        (r, N) blocks whose r add up to ``repeats``; entries are whole numbers >= 0.
    """
    if repeats < 1:
        raise InputError(f"repeats must be at least 1, received {repeats}.")
    inverse, count = group_indices(groups)
    generator = numpy_generator_for(seed, "bootstrap")
    block = max(1, CHUNK // max(len(inverse), 1))
    for start in range(0, repeats, block):
        rows = min(block, repeats - start)
        drawn = generator.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        drawn_counts = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        yield drawn_counts[:, inverse].astype(np.float64)


def bootstrap_intervals(
    statistic: Statistic,
    groups: Sequence[str],
    *,
    repeats: int = REPEATS,
    seed: int = 0,
    level: float = LEVEL,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of metrics (B. Efron, R. Tibshirani, An introduction to the bootstrap, 1993, chapter 13).

    Args:
        statistic: maps case weights (r, N) to metrics, each (r,), NaN where a resample does not define the metric.
        groups: group (patient) of each of N cases; whole groups are drawn.
        repeats: how many resamples.
        seed: of the draw.
        level: share of the resamples inside the interval, in (0, 1).

    Returns:
        metric -> (low, high). Empty with fewer than two groups, because one patient says nothing about others. A metric
        that is undefined in more than half of the resamples is left out.
    """
    if not 0 < level < 1:
        raise InputError(f"level must lie between 0 and 1, received {level}.")
    if group_indices(groups)[1] < 2:
        return {}
    blocks = [statistic(weights) for weights in resampled_weights(groups, repeats=repeats, seed=seed)]
    values = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    return {name: _interval(drawn, level) for name, drawn in values.items() if 2 * np.isfinite(drawn).sum() >= repeats}


def _interval(values: NDArray[np.float64], level: float) -> tuple[float, float]:
    low, high = np.quantile(values[np.isfinite(values)], [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
