"""k-means whose result does not depend on the number of threads.

scikit-learn's own Lloyd step adds the sums of its threads in the order in which they finish, so with three or more
threads the last bits of the centres differ from run to run, and a resumed chain could choose other exemplars. Here the
rows are cut into fixed blocks, each block is worked on by one thread, and the blocks are added up in their order.

The start is k-means|| (B. Bahmani et al., Scalable k-means++, VLDB 2012): a few rounds over all rows draw many
candidates at once, and greedy k-means++ chooses the centres among these. k-means++ over all rows, one centre after the
other, would take nearly all of the time.

Embeddings vary in far fewer directions than they have numbers. Start and most rounds therefore look at the coordinates
in the main directions alone, where these hold nearly all of the variance; the last rounds look at everything.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from medcoss_components.progress import progress

BLOCK_ROWS = 4096
CACHED_NUMBERS = 1 << 18
SEEDING_ROUNDS = 5
OVERSAMPLING = 2
"""Candidates drawn per round, in units of the number of clusters."""
FEW_ROWS = 2000
"""Up to so many rows all of them are candidates."""
MAXIMUM_ROUNDS = 300
TOLERANCE = 1e-4
LEAST_GAIN = 1e-4
"""Rounds end when one lowers the inertia by less than this share."""
LAST_GAIN = 1e-3
"""The same for rounds that look at everything after others have looked at the main directions."""
DIRECTIONS = 64
"""Main directions that the first rounds look at."""
ENOUGH_VARIANCE = 0.9
"""Share of the variance that the main directions must hold, else all rounds look at everything."""
SAMPLED_ROWS = 4096
"""Rows that the main directions are computed from."""
ROUNDING = 1e-6
"""Of a squared distance in float32, relative to the squared lengths; smaller ones count as 0."""


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
    step = max(1, CACHED_NUMBERS // points.shape[1])
    for start in range(0, len(points), step):
        rows = slice(start, start + step)
        result[rows] = np.square(points[rows] - centres[rows]).sum(axis=1, dtype=np.float64)
    return result


def _blocks(points: np.ndarray) -> list[slice]:
    """The rows that one thread works on at a time; they do not depend on the number of threads."""
    return [slice(start, start + BLOCK_ROWS) for start in range(0, len(points), BLOCK_ROWS)]


def initial_centres(
    points: np.ndarray, *, clusters: int, generator: np.random.Generator, pool: ThreadPoolExecutor
) -> np.ndarray:
    """Centres (C, D) to start from: k-means|| candidates of (N, D) points, reduced by weighted greedy k-means++."""
    candidates, weights = points, np.ones(len(points))
    if len(points) > max(FEW_ROWS, OVERSAMPLING * SEEDING_ROUNDS * clusters):
        rows, weights = _candidates(points, clusters, generator, pool)
        candidates = points[rows]
    return candidates[plus_plus(candidates, weights, clusters=clusters, generator=generator)]


def _candidates(
    points: np.ndarray, clusters: int, generator: np.random.Generator, pool: ThreadPoolExecutor
) -> tuple[np.ndarray, np.ndarray]:
    """Rows (M,) drawn in rounds, each with a probability that grows with its squared distance, and how many points
    (M,) are nearest to each; all rows, where fewer than ``clusters`` were drawn."""
    rows, lengths = np.array([generator.integers(len(points))]), _squared_lengths(points)
    nearest: np.ndarray = np.full(len(points), np.inf, points.dtype)
    owner: np.ndarray = np.zeros(len(points), np.int64)
    new, known = rows, 0
    for _ in range(SEEDING_ROUNDS + 1):
        if len(new):
            look = partial(_come_nearer, points, lengths, points[new], (nearest, owner), known)
            list(pool.map(look, _blocks(points)))
        known, draws = len(rows), generator.random(len(points))
        total = nearest.sum(dtype=np.float64)
        new = np.flatnonzero(draws * total < OVERSAMPLING * clusters * nearest.astype(np.float64))
        rows = np.concatenate([rows, new])
    rows = rows[:known]
    if known < clusters:
        return np.arange(len(points)), np.ones(len(points))
    return rows, np.bincount(owner, minlength=known).astype(np.float64)


def _come_nearer(
    points: np.ndarray,
    lengths: np.ndarray,
    new: np.ndarray,
    state: tuple[np.ndarray, np.ndarray],
    known: int,
    block: slice,
) -> None:
    """Take ``new`` candidates (M, D), numbered from ``known``, into account for the points of a block: ``state`` holds
    the squared distance (N,) to the nearest candidate and its number (N,), and is changed in place."""
    nearest, owner = state
    best, least = _nearest(new, points[block])
    least += lengths[block]
    least[least <= ROUNDING * (lengths[block] + _squared_lengths(new)[best])] = 0.0
    closer = least < nearest[block]
    nearest[block] = np.where(closer, least, nearest[block])
    owner[block] = np.where(closer, best + known, owner[block])


def plus_plus(points: np.ndarray, weights: np.ndarray, *, clusters: int, generator: np.random.Generator) -> np.ndarray:
    """Greedy k-means++: of a few candidates, drawn by weighted squared distance, the one that helps most.

    The same rule as scikit-learn's, which computes every distance in float64 and takes twenty times as long.

    Args:
        points: (N, D) float32.
        weights: (N,) of the points, above or equal to 0.
        clusters: C, at most N.
        generator: source of the draws.

    Returns:
        (C,) rows; none twice.
    """
    trials, lengths, factors = 2 + int(np.log(clusters)), _squared_lengths(points), weights.astype(points.dtype)
    chosen = [int(_drawn(weights, generator, 1)[0])]
    nearest = _distances(points[chosen], points, lengths[chosen], lengths)[0]
    while len(chosen) < clusters:
        mass = nearest * weights
        if not mass.any():  # every point equals a centre: points that are left, in any order
            chosen.append(int(generator.choice(np.setdiff1d(np.arange(len(points)), chosen))))
            continue
        drawn = _drawn(mass, generator, trials)
        distances = np.minimum(_distances(points[drawn], points, lengths[drawn], lengths), nearest)
        best = (distances @ factors).argmin()
        chosen.append(int(drawn[best]))
        nearest = distances[best]
    return np.array(chosen)


def _drawn(mass: np.ndarray, generator: np.random.Generator, count: int) -> np.ndarray:
    """Rows (count,) drawn with probabilities in proportion to ``mass`` (N,)."""
    steps = np.cumsum(mass, dtype=np.float64)
    return np.searchsorted(steps, generator.random(count) * steps[-1], side="right").clip(max=len(mass) - 1)


def _squared_lengths(points: np.ndarray) -> np.ndarray:
    return np.square(points).sum(axis=1)


def _distances(points: np.ndarray, others: np.ndarray, lengths: np.ndarray, other_lengths: np.ndarray) -> np.ndarray:
    """Squared distances (N, M) of ``points`` (N, D) and ``others`` (M, D); what is only rounding is 0.

    ``lengths`` (N,) and ``other_lengths`` (M,) are squared; a loop over centres computes them once.
    """
    scale = lengths[:, None] + other_lengths
    distances = points @ others.T
    distances *= -2.0
    distances += scale
    distances[distances <= ROUNDING * scale] = 0.0
    return distances


def _nearest(centres: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number (n,) of the nearest of C centres, the lowest where several are, and the squared distance (n,) to it less
    the point's squared length. Looks at so few points at a time that their distances stay in the cache."""
    weights, lengths = -2.0 * centres.T, _squared_lengths(centres)
    nearest: np.ndarray = np.empty(len(points), np.int64)
    least: np.ndarray = np.empty(len(points), points.dtype)
    step = max(1, CACHED_NUMBERS // len(centres))
    for start in range(0, len(points), step):
        rows = slice(start, start + step)
        scores = points[rows] @ weights
        scores += lengths
        nearest[rows] = scores.argmin(axis=1)
        least[rows] = scores[np.arange(len(scores)), nearest[rows]]
    return nearest, least


def _sums(nearest: np.ndarray, points: np.ndarray, clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """Per cluster the sum (C, D) and the number (C,) of the points (n, D) that are assigned (n,) to it."""
    from scipy.sparse import csr_array

    ones = np.ones(len(points), dtype=points.dtype)
    members = csr_array((ones, (nearest, np.arange(len(points)))), shape=(clusters, len(points)))
    return members @ points, np.bincount(nearest, minlength=clusters)


Block = tuple[np.ndarray, np.ndarray, np.ndarray, float]
"""Of n rows: nearest centres (n,), sums (C, D), numbers (C,), sum of the squared distances less the squared lengths."""


def _assign_and_sum(centres: np.ndarray, points: np.ndarray) -> Block:
    nearest, least = _nearest(centres, points)
    return nearest, *_sums(nearest, points, len(centres)), float(least.sum(dtype=np.float64))


def _updated_centres(centres: np.ndarray, blocks: Iterable[Block]) -> tuple[np.ndarray, np.ndarray, float]:
    """Add up the blocks in order: assignment (N,), new centres (C, D), sum of scores. An empty cluster stays put."""
    sums: np.ndarray = np.zeros(centres.shape, dtype=np.float64)
    counts: np.ndarray = np.zeros(len(centres), dtype=np.int64)
    assignment, total = [], 0.0
    for nearest, block_sum, block_count, least in blocks:
        assignment.append(nearest)
        sums += block_sum
        counts += block_count
        total += least
    means = sums / np.maximum(counts, 1)[:, None]
    moved = np.where(counts[:, None] > 0, means, centres).astype(centres.dtype)
    return np.concatenate(assignment), moved, total


def _lloyd(
    points: np.ndarray,
    centres: np.ndarray,
    pool: ThreadPoolExecutor,
    *,
    inertia: float = np.inf,
    least_gain: float = LEAST_GAIN,
) -> tuple[np.ndarray, np.ndarray]:
    """Lloyd's rounds from given centres, until they gain little against the ``inertia`` so far: centres (C, D), and the
    nearest of each point (N,)."""
    blocks = [points[block] for block in _blocks(points)]
    spread = float(np.square(points).sum(dtype=np.float64))
    tolerance = TOLERANCE * spread / points.size
    former, moved = np.full(len(points), -1), centres
    for _ in progress(range(MAXIMUM_ROUNDS), description="k-means", unit="round", leave=False):
        centres = moved
        assigned = pool.map(partial(_assign_and_sum, centres), blocks)
        assignment, moved, total = _updated_centres(centres, assigned)
        shift = float(np.square(moved - centres, dtype=np.float64).sum())
        unchanged, gain = np.array_equal(assignment, former), inertia - (spread + total)
        former, inertia = assignment, spread + total
        if unchanged or shift <= tolerance or gain < least_gain * inertia:
            break
    return centres, assignment


def main_directions(points: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, float]:
    """Directions (D, 64) of most variance of centred points (N, D), orthonormal, and the share of the variance that
    they hold.

    By subspace iteration on some of the rows (N. Halko et al., Finding structure with randomness, SIAM Review 2011).
    """
    rows = np.sort(generator.choice(len(points), size=min(SAMPLED_ROWS, len(points)), replace=False))
    sample = points[rows]
    directions = generator.standard_normal((points.shape[1], DIRECTIONS), dtype=points.dtype)
    for _ in range(3):
        directions = np.linalg.qr(sample.T @ (sample @ directions))[0]
    held = np.square(sample @ directions).sum(dtype=np.float64) / np.square(sample).sum(dtype=np.float64)
    return directions, float(held)


def _main_coordinates(
    points: np.ndarray, generator: np.random.Generator, pool: ThreadPoolExecutor
) -> tuple[np.ndarray, np.ndarray] | None:
    """Coordinates (N, 64) in the main directions (D, 64), where these are much fewer and say nearly all; else None."""
    if points.shape[1] < 2 * DIRECTIONS or len(points) <= FEW_ROWS:
        return None
    directions, held = main_directions(points, generator)
    if held < ENOUGH_VARIANCE:
        return None
    return np.concatenate(list(pool.map(lambda block: points[block] @ directions, _blocks(points)))), directions


def _seen_in_main_directions(
    points: np.ndarray,
    coordinates: np.ndarray,
    directions: np.ndarray,
    *,
    clusters: int,
    generator: np.random.Generator,
    pool: ThreadPoolExecutor,
) -> tuple[np.ndarray, float]:
    """Centres (C, D) of the clusters that k-means finds in the coordinates, and their inertia among all numbers."""
    start = initial_centres(coordinates, clusters=clusters, generator=generator, pool=pool)
    centres, assignment = _lloyd(coordinates, start, pool)
    sums, counts = _sums(assignment, points, clusters)
    means = sums / np.maximum(counts, 1)[:, None].astype(points.dtype)
    inertia = np.square(points).sum(dtype=np.float64) - (counts * np.square(means).sum(axis=1, dtype=np.float64)).sum()
    return np.where(counts[:, None] > 0, means, centres @ directions.T), float(inertia)


def cluster(points: np.ndarray, *, clusters: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Lloyd's k-means from one k-means|| start.

    Rounds end when no row changes its cluster, when the centres move by less than 1e-4 of the mean variance
    (scikit-learn's rule), or when a round lowers the inertia by less than 1e-4 of it (1e-3 where other rounds have
    looked at the main directions before); at the latest after 300.

    Args:
        points: (N, D) float32, finite.
        clusters: C, 1 <= C <= number of distinct rows.
        generator: source of the start.

    Returns:
        assignment (N,) int64 in 0..C-1 and centres (C, D) float32, each row being assigned to its nearest centre.
    """
    import torch
    from threadpoolctl import threadpool_limits

    offset = points.mean(axis=0, dtype=np.float64).astype(points.dtype)
    points = points - offset
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(torch.get_num_threads()) as pool:
        options: dict[str, Any] = {"clusters": clusters, "generator": generator, "pool": pool}
        seen = _main_coordinates(points, generator, pool)
        if seen is None:
            centres, assignment = _lloyd(points, initial_centres(points, **options), pool)
        else:
            centres, inertia = _seen_in_main_directions(points, *seen, **options)
            centres, assignment = _lloyd(points, centres, pool, inertia=inertia, least_gain=LAST_GAIN)
    return assignment.astype(np.int64), centres + offset
