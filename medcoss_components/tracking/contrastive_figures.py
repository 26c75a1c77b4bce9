"""Pictures of contrastive pre-training: curves, view pairs, and a map of the embeddings by data set or body part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medcoss_components.errors import InputError
from medcoss_components.tracking.curves import smoothed
from medcoss_components.tracking.figures import (
    INK,
    PALETTE,
    SOFT_INK,
    as_array,
    new_figure,
    save_figure,
    style_axes,
)
from medcoss_components.tracking.previews import reconstruction_panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = ("o", "^", "s", "D")
"""Shape of points of the first eight categories, of the next eight, and so on."""
MAX_CATEGORIES = len(PALETTE) * len(MARKERS)
UNKNOWN = "not recorded"
PANELS = {
    "contrastive": ("Contrastive loss", "loss"),
    "accuracy": ("Key beats the queue", "share of samples"),
    "spread": ("Spread of the keys", "0: collapse, 1: even"),
}
"""Kind of a history's rows -> title and axis of its panel."""


def contrastive_curves(history: Mapping[str, Any], path: str | Path) -> Path:
    """Loss, accuracy, spread and learning rate of a run, side by side.

    Args:
        history: content of ``history.json``.
        path: PNG file to write.

    Raises:
        InputError: when a column is missing.
    """
    columns = list(history.get("columns", []))
    missing = [name for name in ("iteration", "kind", "loss", "learning_rate") if name not in columns]
    if missing:
        raise InputError(f"history: columns {', '.join(missing)} missing, received {columns}")
    records = [dict(zip(columns, row, strict=True)) for row in history.get("rows", [])]
    figure = new_figure(12.0, 2.9)
    axes: Any = figure.subplots(1, len(PANELS) + 1)
    for number, (kind, (title, unit)) in enumerate(PANELS.items()):
        style_axes(axes[number], title, "iteration", unit)
        _line(axes[number], [record for record in records if record["kind"] == kind], "loss", PALETTE[number])
    style_axes(axes[-1], "Learning rate", "iteration")
    _line(axes[-1], records, "learning_rate", SOFT_INK, smooth=False)
    axes[-1].set_ylim(0)  # a rate that stays is a line, not a magnified rounding
    axes[-1].yaxis.set_major_formatter(lambda value, _: f"{value:.1e}".replace("e-0", "e-") if value else "0")
    figure.tight_layout()
    return save_figure(figure, path)


def _line(axes: Axes, records: Sequence[Mapping[str, Any]], column: str, colour: str, *, smooth: bool = True) -> None:
    """One value per iteration; long and noisy lines faint with their running mean."""
    values = {record["iteration"]: record[column] for record in records if record[column] is not None}
    steps = sorted(values)
    line = np.array([values[step] for step in steps], dtype=float)
    if not smooth or len(steps) < 20:
        axes.plot(steps, line, color=colour, linewidth=1.8)
        return
    axes.plot(steps, line, color=colour, linewidth=0.7, alpha=0.3)
    axes.plot(steps, smoothed(line, max(5, len(line) // 25 | 1)), color=colour, linewidth=1.8)


def view_pairs(images: ArrayLike, queries: ArrayLike, keys: ArrayLike, path: str | Path) -> Path:
    """One row a sample: the image as the network reads it, its query view and its key view.

    Args:
        images, queries, keys: (B, C, H, W), C 1 or 3, any unit.
        path: PNG file to write.

    Raises:
        InputError: when the shapes differ or no sample is given.
    """
    return reconstruction_panel(images, queries, keys, path, titles=("Image", "View of the query", "View of the key"))


def embedding_map(
    points2d: ArrayLike, categories: Sequence[str | None], path: str | Path, *, title: str = "Embeddings"
) -> Path:
    """Map of embeddings with a colour for each data set, body part or other category.

    Args:
        points2d: (N, 2) projection.
        categories: (N,) name of each point's category; None: not recorded. Beyond 32 names the rarest are drawn as one.
        path: PNG file to write.
        title: heading.

    Raises:
        InputError: when shapes do not fit or no point is given.
    """
    points = as_array(points2d)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) != len(categories) or len(points) == 0:
        raise InputError(f"points2d must be (N, 2) with N = {len(categories)} > 0, received shape {points.shape}")
    names = _shown_names(categories)
    counts = Counter(names)
    figure = new_figure(8.6, 5.2)
    axes = figure.subplots()
    style_axes(axes, title, "first principal component", "second principal component")
    size = float(np.clip(12000 / len(points), 3, 18))
    for number, (name, count) in enumerate(sorted(counts.items(), key=lambda item: (-item[1], item[0]))):
        chosen: NDArray[np.bool_] = np.array([other == name for other in names])
        axes.scatter(
            points[chosen, 0],
            points[chosen, 1],
            s=size,
            color="#9fb0c3" if name == UNKNOWN else PALETTE[number % len(PALETTE)],
            marker=MARKERS[number // len(PALETTE)],
            linewidths=0,
            alpha=0.75,
            label=f"{name} ({count:,})",
        )
    legend = axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5), labelcolor=INK)
    for handle in legend.legend_handles:
        handle.set_sizes([30])  # type: ignore[union-attr]
    figure.tight_layout()
    return save_figure(figure, path)


def _shown_names(categories: Sequence[str | None]) -> list[str]:
    names = [UNKNOWN if name is None else str(name) for name in categories]
    common = [name for name, _ in Counter(names).most_common()]
    if len(common) <= MAX_CATEGORIES:
        return names
    shown = set(common[: MAX_CATEGORIES - 1])
    return [name if name in shown else "others" for name in names]
