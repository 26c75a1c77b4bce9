"""Choice of the samples that enter the rehearsal buffer (METHOD.md section 6).

Features and a seed in, indices out; storage is in :mod:`medcoss_components.continual.buffer`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from medcoss_components.continual.kmeans import cluster, count_distinct_rows, squared_distances
from medcoss_components.errors import InputError
from medcoss_components.randomness import numpy_generator_for

ExemplarRule = Literal["kmeans", "random"]


@dataclass(frozen=True, kw_only=True)
class Exemplars:
    """The chosen samples, in ascending order of index.

    Attributes:
        indices: (K,) int64 rows of the features, ascending, none twice.
        clusters: (K,) int64 cluster of each chosen sample.
        distances: (K,) float32 Euclidean distance of each chosen sample to its cluster's centre.
        assignment: (N,) int64 cluster of every sample, for the map of the buffer.
    """

    indices: np.ndarray
    clusters: np.ndarray
    distances: np.ndarray
    assignment: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)


def _share(name: str, total: int, ratio: float) -> int:
    if total < 1:
        raise InputError(f"total: there must be at least 1 sample, received {total}.")
    if not 0.0 < ratio <= 1.0:
        raise InputError(f"{name}: must be above 0 and at most 1, received {ratio}.")
    return max(1, round(ratio * total))


def exemplar_count(total: int, ratio: float) -> int:
    """Size of the buffer: max(1, round(ratio * N)); halves go to the even number as Python's ``round`` does.

    Raises:
        InputError: when ``total`` is below 1 or ``ratio`` outside (0, 1].

    >>> exemplar_count(1000, 0.05)
    50
    """
    return _share("ratio", total, ratio)


def cluster_count(total: int, cluster_ratio: float) -> int:
    """Number of clusters: C = max(1, round(cluster_ratio * N)), 1 % of N in the paper.

    Raises:
        InputError: when ``total`` is below 1 or ``cluster_ratio`` outside (0, 1].
    """
    return _share("cluster_ratio", total, cluster_ratio)


def _checked_features(features: np.ndarray) -> np.ndarray:
    if features.ndim != 2 or features.shape[0] < 1 or features.shape[1] < 1:
        raise InputError(f"features: expected shape (N, D) with N and D at least 1, received {features.shape}.")
    features = np.ascontiguousarray(features, dtype=np.float32)
    broken = int((~np.isfinite(features).all(axis=1)).sum())
    if broken:
        raise InputError(
            f"features: must be finite, received NaN or infinity in {broken} of {len(features)} rows. "
            "Check the encoder's weights and the samples it embedded."
        )
    return features


def _ranks(assignment: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """Place (N,) of each sample in its own cluster, 0 = nearest to the centre; ties go by index."""
    order = np.lexsort((np.arange(len(assignment)), distances, assignment))
    _, starts, sizes = np.unique(assignment[order], return_index=True, return_counts=True)
    ranks: np.ndarray = np.empty(len(assignment), dtype=np.int64)
    ranks[order] = np.arange(len(assignment)) - np.repeat(starts, sizes)
    return ranks


def fill_quota(assignment: np.ndarray, distances: np.ndarray, count: int) -> np.ndarray:
    """Choose exactly ``count`` samples, as equally over the clusters as their sizes allow.

    Goes round the clusters: every cluster gives its nearest sample, then every cluster its second nearest, and so on. A
    cluster that has run out is left out of later rounds; the last round, where not every cluster can give, goes by
    distance, then by index. With C clusters of at least count/C samples this is the K = count/C nearest of each.

    Args:
        assignment: (N,) cluster of each sample.
        distances: (N,) distance of each sample to its centre.
        count: how many to choose, at most N.

    Returns:
        (count,) int64 indices, ascending.

    >>> fill_quota(np.array([0, 0, 0, 1]), np.array([3.0, 1.0, 2.0, 9.0]), 3)
    array([1, 2, 3])
    """
    order = np.lexsort((np.arange(len(assignment)), distances, _ranks(assignment, distances)))
    return np.sort(order[:count])


def select_exemplars(
    features: np.ndarray, *, count: int, clusters: int, seed: int, rule: ExemplarRule = "kmeans"
) -> Exemplars:
    """Choose the samples nearest to the centres of a k-means clustering, METHOD.md section 6; or any, for comparison.

    The same features and seed give the same choice, whatever the number of threads. ``clusters`` is an upper limit:
    no more are made than there are exemplars to choose or distinct features, so constant features make one cluster.

    Args:
        features: (N, D) floating point, one embedding a sample; worked on in float32.
        count: K, how many to choose, 1 <= K <= N; see :func:`exemplar_count`.
        clusters: C, at least 1; see :func:`cluster_count`.
        seed: the run's seed.
        rule: "kmeans", or "random" for a uniform draw without replacement; all features are one cluster then.

    Returns:
        Exactly ``count`` exemplars.

    Raises:
        InputError: when features are not a finite (N, D) array, ``count`` is not in 1..N, ``clusters`` is below 1 or
            there is no such rule.
    """
    if rule not in get_args(ExemplarRule):
        raise InputError(f"rule: must be one of {', '.join(get_args(ExemplarRule))}, received {rule!r}.")
    features = _checked_features(features)
    if not 1 <= count <= len(features):
        raise InputError(f"count: must lie between 1 and the {len(features)} samples, received {count}.")
    if clusters < 1:
        raise InputError(f"clusters: must be at least 1, received {clusters}.")
    if rule == "random":
        return _random_exemplars(features, count, seed)
    clusters = count_distinct_rows(features, limit=min(clusters, count))
    assignment, centres = cluster(features, clusters=clusters, generator=numpy_generator_for(seed, "exemplars"))
    distances = np.sqrt(squared_distances(features, centres[assignment])).astype(np.float32)
    indices = fill_quota(assignment, distances, count)
    return Exemplars(indices=indices, clusters=assignment[indices], distances=distances[indices], assignment=assignment)


def _random_exemplars(features: np.ndarray, count: int, seed: int) -> Exemplars:
    """``count`` of N samples, each set of them as likely as any other; distances are to the mean of all features."""
    generator = numpy_generator_for(seed, "random exemplars")
    indices = np.sort(generator.choice(len(features), count, replace=False)).astype(np.int64)
    centre = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    distances = np.sqrt(squared_distances(features[indices], np.tile(centre, (count, 1)))).astype(np.float32)
    alone: np.ndarray = np.zeros(len(features), dtype=np.int64)
    return Exemplars(indices=indices, clusters=alone[indices], distances=distances, assignment=alone)


def project_2d(features: np.ndarray) -> np.ndarray:
    """Project features on their two main directions (principal components) for a map.

    Directions of no variance give zeros. The sign is fixed: the largest entry of each direction is positive.

    Args:
        features: (N, D) floating point, finite.

    Returns:
        (N, 2) float32.

    Raises:
        InputError: when features are not a finite (N, D) array.
    """
    features = _checked_features(features)
    centred = features - features.mean(axis=0, dtype=np.float64)
    _, directions = np.linalg.eigh(centred.T @ centred)
    directions = directions[:, ::-1][:, :2]
    largest = np.abs(directions).argmax(axis=0)
    directions = directions * np.where(directions[largest, np.arange(directions.shape[1])] < 0, -1.0, 1.0)
    points: np.ndarray = np.zeros((len(features), 2), dtype=np.float32)
    points[:, : directions.shape[1]] = centred @ directions
    return points
