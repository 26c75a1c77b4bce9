"""Whether the probabilities of a classifier mean what they say."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

BINS = 15  # as in Guo et al. 2017


class Reliability(NamedTuple):
    """Cases sorted by the confidence of their prediction into bins of equal width.

    ``counts`` (bins,) cases in each bin; ``confidence`` and ``accuracy`` (bins,) means over the bin's cases, in [0, 1],
    NaN where the bin is empty; ``error`` the expected calibration error in [0, 1].
    """

    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    error: float


def confidence_bins(confidence: NDArray[np.float64], bins: int = BINS) -> NDArray[np.int64]:
    """Bin of each confidence: bin b of B holds the values in (b / B, (b + 1) / B], bin 0 also the value 0.

    >>> confidence_bins(np.array([0.0, 0.2, 0.21, 1.0]), bins=5).tolist()
    [0, 0, 1, 4]
    """
    edges = np.arange(1, bins) / bins
    return np.searchsorted(edges, confidence, side="left")


def reliability(probabilities: ArrayLike, targets: ArrayLike, *, bins: int = BINS) -> Reliability:
    """Reliability diagram and expected calibration error of the predicted (most probable) class.

    ECE = sum over bins of (cases in the bin / all cases) * |accuracy - mean confidence|
    (C. Guo et al., On calibration of modern neural networks, ICML 2017, equation 3).

    Args:
        probabilities: (N, K), rows sum to 1.
        targets: (N,) class indices in [0, K).
        bins: how many bins of equal width over [0, 1].
    """
    probabilities, targets = np.asarray(probabilities, dtype=np.float64), np.asarray(targets)
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == targets
    place = confidence_bins(confidence, bins)
    counts = np.bincount(place, minlength=bins)
    sums = np.bincount(place, weights=confidence, minlength=bins)
    hits = np.bincount(place, weights=correct, minlength=bins)
    filled = np.where(counts > 0, counts, np.nan)
    error = float(np.abs(hits - sums).sum() / len(targets))
    return Reliability(counts, sums / filled, hits / filled, error)
