"""k-means whose result does not depend on the number of threads.

scikit-learn's own Lloyd step adds the sums of its threads in the order in which they finish, so with three or more
threads the last bits of the centres differ from run to run, and a resumed chain could choose other exemplars. Here the
rows are cut into fixed blocks, each block is worked on by one thread, and the blocks are added up in their order.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from medcoss_components.progress import progress

BLOCK_ROWS = 4096
SEEDING_ROWS_PER_CLUSTER = 10
SEEDING_ROWS_MINIMUM = 2000
MAXIMUM_ROUNDS = 300
TOLERANCE = 1e-4


def count_distinct_rows(points: np.ndarray, limit: int) -> int:
    """How many different rows ``points`` (N, D) has, counted up to ``limit``."""
    seen: set[bytes] = set()
    for row in points:
        seen.add((row + 0.0).tobytes())  # + 0.0 makes -0.0 equal to 0.0
        if len(seen) >= limit:
            break
    return len(seen)


def squared_distances(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Row-wise squared Euclidean distances (N,), float64, of ``points`` (N, D) to ``centres`` (N, D).

    Computed as differences, not by the expanded square, so equal rows get equal numbers and ties are true ties.
    """
    result: np.ndarray = np.empty(len(points), dtype=np.float64)
    for start in range(0, len(points), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        result[rows] = np.square(points[rows].astype(np.float64) - centres[rows]).sum(axis=1)
    return result


def _initial_centres(points: np.ndarray, clusters: int, generator: np.random.Generator) -> np.ndarray:
    """k-means++ centres (C, D), drawn on a random subsample of at most max(10*C, 2000) rows."""
    from sklearn.cluster import kmeans_plusplus

    rows = min(len(points), max(SEEDING_ROWS_PER_CLUSTER * clusters, SEEDING_ROWS_MINIMUM))
    subsample = points[np.sort(generator.choice(len(points), size=rows, replace=False))]
    centres, _ = kmeans_plusplus(subsample, clusters, random_state=int(generator.integers(2**31)))
    return centres


def _nearest(centres: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Index (N,) of the nearest centre of each row; the lowest index wins a tie. ||x||^2 is left out: same for all."""
    scores = points @ (-2.0 * centres.T)
    scores += np.square(centres).sum(axis=1)
    return scores.argmin(axis=1)


def _assign_and_sum(centres: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nearest centres (n,) of one block, and per cluster the sum (C, D) and number (C,) of the block's rows."""
    from scipy.sparse import csr_array

    nearest, clusters = _nearest(centres, points), len(centres)
    ones = np.ones(len(points), dtype=points.dtype)
    members = csr_array((ones, (nearest, np.arange(len(points)))), shape=(clusters, len(points)))
    return nearest, members @ points, np.bincount(nearest, minlength=clusters)


def _updated_centres(
    centres: np.ndarray, blocks: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """Add up the blocks in order; give the assignment (N,) and the new centres (C, D). An empty cluster stays put."""
    sums: np.ndarray = np.zeros(centres.shape, dtype=np.float64)
    counts: np.ndarray = np.zeros(len(centres), dtype=np.int64)
    assignment = []
    for nearest, block_sum, block_count in blocks:
        assignment.append(nearest)
        sums += block_sum
        counts += block_count
    means = sums / np.maximum(counts, 1)[:, None]
    return np.concatenate(assignment), np.where(counts[:, None] > 0, means, centres).astype(centres.dtype)


def cluster(points: np.ndarray, *, clusters: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Lloyd's k-means from one k-means++ start on a subsample.

    Stops when no row changes its cluster or when the centres move by less than 1e-4 of the mean variance
    (scikit-learn's rule), at the latest after 300 rounds.

    Args:
        points: (N, D) float32, finite.
        clusters: C, 1 <= C <= number of distinct rows.
        generator: source of the subsample and of the start.

    Returns:
        assignment (N,) int64 in 0..C-1 and centres (C, D) float32, each row being assigned to its nearest centre.
    """
    import torch
    from threadpoolctl import threadpool_limits

    offset = points.mean(axis=0, dtype=np.float64).astype(points.dtype)
    points = points - offset
    blocks = [points[start : start + BLOCK_ROWS] for start in range(0, len(points), BLOCK_ROWS)]
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(torch.get_num_threads()) as pool:
        centres = _initial_centres(points, clusters, generator)
        tolerance = TOLERANCE * float(points.var(axis=0, dtype=np.float64).mean())
        former = np.full(len(points), -1)
        for _ in progress(range(MAXIMUM_ROUNDS), description="k-means", unit="round", leave=False):
            assignment, moved = _updated_centres(centres, pool.map(partial(_assign_and_sum, centres), blocks))
            shift = float(np.square(moved - centres, dtype=np.float64).sum())
            unchanged, former, centres = np.array_equal(assignment, former), assignment, moved
            if unchanged or shift <= tolerance:
                break
        assignment = np.concatenate(list(pool.map(partial(_nearest, centres), blocks)))
    return assignment.astype(np.int64), centres + offset
