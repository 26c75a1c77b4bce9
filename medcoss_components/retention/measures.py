"""One number for a matrix of scores: average accuracy, backward transfer, forgetting.

The matrix R is (S, P): R[s, p] is the accuracy on probe p after stage s, as a fraction. ``own[p]`` is the row after
the stage that learned the probe's modality (several probes may share one), None for a probe whose modality is not
learned. Cells before a probe's own row may be NaN (not yet to be scored) and have no influence; so has row 0 when it
is an encoder before any stage and no probe's own. T is the last row; the means run over the probes that are learned
and have a score in both rows that they compare.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medcoss_components.errors import InputError

Own = Sequence[int | None] | None


def average_accuracy(scores: ArrayLike, own: Own = None) -> float | None:
    """Mean of R[T, p] over the learned probes (D. Lopez-Paz, M. Ranzato, Gradient episodic memory for continual
    learning, NeurIPS 2017, ACC).

    Args:
        scores: (S, P) matrix R.
        own: row of each probe's own stage; None: R is square and probe p belongs to row p.

    Returns:
        in [0, 1]; None without a learned probe.

    Raises:
        InputError: shapes or rows that do not fit.

    >>> average_accuracy([[0.9, 0.4], [0.7, 0.8]])
    0.75
    """
    matrix, rows = _checked(scores, own)
    return _mean([matrix[-1, probe] for probe, row in enumerate(rows) if row is not None])


def backward_transfer(scores: ArrayLike, own: Own = None) -> float | None:
    """Mean of R[T, p] - R[own[p], p] over the probes with a later stage (Lopez-Paz and Ranzato 2017, BWT).

    Negative: later stages have made earlier modalities worse; positive: better.

    Arguments and errors as :func:`average_accuracy`; None where no learned probe has a later stage.

    >>> round(backward_transfer([[0.9, 0.4], [0.7, 0.8]]), 3)
    -0.2
    """
    matrix, rows = _checked(scores, own)
    return _mean([matrix[-1, probe] - matrix[row, probe] for probe, row in _earlier(rows, len(matrix))])


def forgetting(scores: ArrayLike, own: Own = None) -> float | None:
    """Mean of max over own[p] <= s < T of R[s, p], minus R[T, p], over the probes with a later stage (A. Chaudhry et
    al., Riemannian walk for incremental learning: understanding forgetting and intransigence, ECCV 2018).

    The paper's maximum begins at the first stage. Here it begins at the probe's own: what was there before is not this
    stage's learning, and a text probe cannot be scored before there is a vocabulary. 0 is best; it is negative when a
    probe ends better than it ever was.

    Arguments and errors as :func:`average_accuracy`; None where no learned probe has a later stage.

    >>> round(forgetting([[0.5, 0.1, 0.1], [0.8, 0.9, 0.1], [0.6, 0.8, 0.7]]), 3)
    0.15
    """
    matrix, rows = _checked(scores, own)
    return _mean([_best(matrix[row:-1, probe]) - matrix[-1, probe] for probe, row in _earlier(rows, len(matrix))])


def measures(scores: ArrayLike, own: Own = None) -> dict[str, float | None]:
    """All three by name: ``average_accuracy``, ``backward_transfer``, ``forgetting``."""
    return {function.__name__: function(scores, own) for function in (average_accuracy, backward_transfer, forgetting)}


def _earlier(rows: Sequence[int | None], stages: int) -> list[tuple[int, int]]:
    """(probe, own row) of the probes that were learned before the last row."""
    return [(probe, row) for probe, row in enumerate(rows) if row is not None and row < stages - 1]


def _best(values: NDArray[np.float64]) -> float:
    """Maximum without NaN; NaN when there is nothing else."""
    finite = values[np.isfinite(values)]
    return float(finite.max()) if len(finite) else float("nan")


def _mean(values: Sequence[float]) -> float | None:
    finite = [float(value) for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else None


def _checked(scores: ArrayLike, own: Own) -> tuple[NDArray[np.float64], list[int | None]]:
    matrix = np.asarray(scores, dtype=np.float64)
    if matrix.ndim != 2 or matrix.size == 0:
        raise InputError(f"scores: must be a matrix (stages, probes), received shape {matrix.shape}.")
    if own is None and matrix.shape[0] != matrix.shape[1]:
        raise InputError(f"own: is needed where the matrix is not square, received shape {matrix.shape} and None.")
    rows: list[int | None] = list(range(len(matrix))) if own is None else list(own)
    if len(rows) != matrix.shape[1]:
        raise InputError(f"own: {matrix.shape[1]} probes need as many rows, received {len(rows)}.")
    outside = [row for row in rows if row is not None and not 0 <= row < len(matrix)]
    if outside:
        raise InputError(f"own: rows must lie in 0 .. {len(matrix) - 1} or be None, received {outside[0]}.")
    return matrix, rows
