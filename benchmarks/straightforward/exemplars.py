"""Choosing exemplars with scikit-learn (METHOD.md section 6)."""

from __future__ import annotations

import numpy as np
from sklearn.cluster import KMeans


def choose(features: np.ndarray, clusters: int, per_cluster: int, seed: int = 0) -> tuple[np.ndarray, float]:
    """The samples nearest to each centre.

    Args:
        features: (N, D).
        clusters: C.
        per_cluster: K.

    Returns:
        Row numbers, ascending, and the inertia: the sum of squared distances to the nearest centre.
    """
    kmeans = KMeans(n_clusters=clusters, random_state=seed).fit(features)
    distances = np.linalg.norm(features - kmeans.cluster_centers_[kmeans.labels_], axis=1)
    chosen = []
    for cluster in range(clusters):
        members = np.flatnonzero(kmeans.labels_ == cluster)
        chosen.append(members[np.argsort(distances[members])[:per_cluster]])
    return np.sort(np.concatenate(chosen)), float(kmeans.inertia_)
