"""Choosing exemplars: 30,000 embeddings of 768 numbers, 300 clusters, five of each.

python benchmarks/exemplars.py [--quick] [--record]
"""

from __future__ import annotations

import sys
import time

import numpy as np
from harness import Options, Row, alternate, main
from inputs import embeddings
from straightforward.exemplars import choose

from medcoss_components.continual.exemplars import select_exemplars
from medcoss_components.continual.kmeans import squared_distances

PER_CLUSTER = 5
_INERTIAS: dict[bool, tuple[list[float], list[float]]] = {}
"""Form (quick or not) -> inertias of both sides, of the pairs measured last."""


def inertia(features: np.ndarray, assignment: np.ndarray) -> float:
    """Sum of squared distances of samples to the mean of their cluster."""
    counts = np.bincount(assignment)
    sums = np.zeros((len(counts), features.shape[1]))
    np.add.at(sums, assignment, features)
    centres = (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)
    return float(squared_distances(features, centres[assignment]).sum())


def selection_row(options: Options, *, count: int = 0, width: int = 768) -> Row:
    """Measure one choice; every pair has another seed."""
    count = count or (6_000 if options.quick else 30_000)
    clusters = max(1, count // 100)
    features = embeddings(count, width, np.random.default_rng(0))
    found: tuple[list[float], list[float]] = ([], [])

    def straightforward() -> float:
        started = time.perf_counter()
        _, value = choose(features, clusters, PER_CLUSTER, seed=len(found[0]))
        found[0].append(value)
        return time.perf_counter() - started

    def ours() -> float:
        started = time.perf_counter()
        chosen = select_exemplars(features, count=clusters * PER_CLUSTER, clusters=clusters, seed=len(found[1]))
        seconds = time.perf_counter() - started
        found[1].append(inertia(features, chosen.assignment))
        return seconds

    figures = alternate(straightforward, ours, pairs=options.pairs_of(), warmup=0)
    _INERTIAS[options.quick] = found
    what = f"exemplars of {count:,} x {width}, {clusters} clusters"
    return Row("exemplars", what, "s", *figures, target=20.0, note="made-up embeddings: subjects in 64 directions.")


def inertia_row(options: Options) -> Row:
    """What the speed cost: inertia of our clusters over scikit-learn's, minus 1, for the pairs of ``exemplars``."""
    if options.quick not in _INERTIAS:
        selection_row(options)
    found = _INERTIAS.pop(options.quick)
    return Row(
        "exemplars_inertia", "inertia of these clusters", "units", *map(tuple, found), target=0.005, kind="excess"
    )


ROWS = {"exemplars": selection_row, "exemplars_inertia": inertia_row}

if __name__ == "__main__":
    sys.exit(main(ROWS))
