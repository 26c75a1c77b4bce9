"""Map of a modality's embeddings with the exemplars that were kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medcoss_components.errors import InputError
from medcoss_components.tracking.figures import WRONG, as_array, new_figure, save_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_MAP_POINTS = 20_000  # background points drawn


def buffer_map(points2d: ArrayLike, chosen: ArrayLike, clusters: ArrayLike | None, path: str | Path) -> Path:
    """Map of a modality's embeddings with the chosen exemplars, joined to the middle of their cluster.

    Args:
        points2d: (N, 2) projection of the embeddings of all samples.
        chosen: (M,) indices of the exemplars, or (N,) bool.
        clusters: cluster numbers, (M,) of the exemplars or (N,) of all samples; None draws no lines.
        path: PNG file to write.

    Raises:
        InputError: when shapes or indices do not fit.
    """
    points = as_array(points2d)
    if points.ndim != 2 or points.shape[1] != 2:
        raise InputError(f"points2d must be (N, 2), received shape {points.shape}")
    indices = _chosen_indices(np.asarray(chosen), len(points))
    groups = _chosen_clusters(clusters, indices, len(points))
    background = points[:: max(1, -(-len(points) // MAX_MAP_POINTS))]
    figure = new_figure(7.2, 5.2)
    axes = figure.subplots()
    style_axes(axes, "Embeddings and exemplars", "first principal component", "second principal component")
    size = float(np.clip(12000 / max(len(points), 1), 3, 18))
    axes.scatter(
        background[:, 0], background[:, 1], s=size, color="#9fb0c3", linewidths=0, label=f"all {len(points):,} samples"
    )
    _spokes(axes, points[indices], groups)
    label = f"{len(indices):,} exemplars" + ("" if groups is None else f" of {len(np.unique(groups)):,} clusters")
    kept = points[indices]
    axes.scatter(kept[:, 0], kept[:, 1], s=26, color=WRONG, edgecolors="white", linewidths=0.6, label=label, zorder=3)
    legend = axes.legend(fontsize=9, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
    for handle in legend.legend_handles:
        handle.set_sizes([30])  # type: ignore[union-attr]
    figure.tight_layout()
    return save_figure(figure, path)


def _chosen_indices(chosen: NDArray, count: int) -> NDArray[np.int64]:
    if chosen.dtype == bool and chosen.shape == (count,):
        return np.flatnonzero(chosen)
    if chosen.ndim != 1 or (chosen.size and not 0 <= chosen.min() <= chosen.max() < count):
        raise InputError(f"chosen must be indices in [0, {count}) or {count} bool, received shape {chosen.shape}")
    return chosen.astype(np.int64)


def _chosen_clusters(clusters: ArrayLike | None, indices: NDArray[np.int64], count: int) -> NDArray | None:
    if clusters is None:
        return None
    groups = np.asarray(clusters)
    if groups.shape == (len(indices),):
        return groups
    if groups.shape == (count,):
        return groups[indices]
    raise InputError(f"clusters must have {len(indices)} or {count} entries, received shape {groups.shape}")


def _spokes(axes: Axes, points: NDArray[np.float32], groups: NDArray | None) -> None:
    from matplotlib.collections import LineCollection

    if groups is None or len(points) == 0:
        return
    lines = []
    for group in np.unique(groups):
        members = points[groups == group]
        centre = members.mean(axis=0)
        lines += [np.stack([centre, member]) for member in members]
    axes.add_collection(LineCollection(lines, colors=WRONG, linewidths=0.7, alpha=0.45, zorder=2))
