"""Pictures of an evaluation: ROC curves, confusion matrix, calibration, scores of the cases, worst cases.

Every function writes one PNG file atomically and returns its path. Ids appear in none, and never in a file name.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medcoss_components.evaluation.calibration import BINS, reliability
from medcoss_components.evaluation.results import CasePicture, ClassificationResult, SegmentationResult
from medcoss_components.even_spread import evenly_spread
from medcoss_components.tracking.figures import (
    INK,
    PALETTE,
    RIGHT,
    SOFT_INK,
    WRONG,
    blank_axes,
    new_figure,
    save_figure,
    style_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINES = ("-", "--", ":", "-.")
NAME_WIDTH = 18  # characters of a line of a class name
MAX_DOTS = 400  # cases drawn as dots in one column; more would be a smear
FEW = 10  # cases of a calibration bin below which its bar is pale
MAX_COUNTS = 12  # classes up to which cells of the confusion matrix hold their numbers


def class_style(index: int) -> dict[str, Any]:
    """Colour and, beyond eight classes, another line style."""
    return {"color": PALETTE[index % len(PALETTE)], "linestyle": LINES[index // len(PALETTE) % len(LINES)]}


def wrapped(name: str, lines: int = 3) -> str:
    """A class name on a few short lines; underscores become spaces."""
    kept = textwrap.wrap(name.replace("_", " "), NAME_WIDTH, max_lines=lines, placeholder=" …")
    return "\n".join(kept) or name


def roc_curves(result: ClassificationResult, path: str | Path) -> Path:
    """ROC curve of the second of two classes, or of each class against the rest."""
    figure = new_figure(7.4, 4.6)
    axes = figure.subplots()
    style_axes(axes, "ROC curves", "share of the other cases called so (1 − specificity)", "share found (sensitivity)")
    axes.plot([0, 1], [0, 1], color=SOFT_INK, linewidth=1, linestyle=(0, (2, 3)), label="guessing: 0.50")
    metrics = result.metrics()
    for index in [1] if len(result.classes) == 2 else range(len(result.classes)):
        _roc_curve(axes, result, index, metrics[f"auc/{result.classes[index]}"])
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.legend(
        fontsize=8,
        frameon=False,
        labelcolor=INK,
        loc="center left",
        bbox_to_anchor=(1.02, 0.5),
        title="area under the curve",
        title_fontsize=8,
        alignment="left",
    )
    figure.tight_layout()
    return save_figure(figure, path)


def _roc_curve(axes: Axes, result: ClassificationResult, index: int, area: float) -> None:
    from sklearn.metrics import roc_curve

    name = wrapped(result.classes[index], 2)
    if np.isnan(area):
        axes.plot([], [], **class_style(index), label=f"{name}: not defined")
        return
    false, true, _ = roc_curve(result.targets == index, result.probabilities[:, index])
    axes.plot(false, true, linewidth=1.8, **class_style(index), label=f"{name}: {area:.3f}")


def confusion_counts(result: ClassificationResult) -> NDArray[np.int64]:
    """(K, K) cases of the true class (row) that were called the class of the column."""
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(result.targets, result.predicted, labels=range(len(result.classes)))


def confusion_picture(result: ClassificationResult, path: str | Path) -> Path:
    """Confusion matrix: colour and per cent within the true class, below it the number of cases."""
    counts = confusion_counts(result)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = len(counts)
    side = float(np.clip(0.85 * size + 2.2, 4.0, 12.0))
    figure = new_figure(side + 1.4, side)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    style_axes(axes, "Confusion matrix", "predicted class", "true class")
    axes.grid(False)
    names = [wrapped(name) for name in result.classes]
    axes.set_xticks(range(size), names, rotation=35 if size > 3 else 0, ha="right" if size > 3 else "center")
    axes.set_yticks(range(size), [f"{name}\n({row.sum():,})" for name, row in zip(names, counts, strict=True)])
    for row, column in np.ndindex(size, size) if size <= MAX_COUNTS else ():
        _cell(axes, row, column, shares[row, column], counts)
    figure.tight_layout()
    return save_figure(figure, path)


def _cell(axes: Axes, row: int, column: int, share: float, counts: NDArray[np.int64]) -> None:
    colour = "white" if share > 0.5 else INK
    text = f"{100 * share:.0f} %" if counts[row].sum() else "–"
    weight = "bold" if row == column else "normal"
    axes.text(column, row - 0.1, text, ha="center", va="center", fontsize=10, color=colour, fontweight=weight)
    axes.text(column, row + 0.22, f"{counts[row, column]:,}", ha="center", va="center", fontsize=7.5, color=colour)


def calibration_picture(result: ClassificationResult, path: str | Path) -> Path:
    """Reliability diagram above, how many cases each confidence has below."""
    bins = reliability(result.probabilities, result.targets)
    figure = new_figure(5.6, 5.4)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    style_axes(upper, f"Calibration: expected error {bins.error:.3f}", ylabel="share that is right")
    style_axes(lower, "", "probability of the predicted class", "cases")
    middles, width = (np.arange(BINS) + 0.5) / BINS, 0.92 / BINS
    upper.plot([0, 1], [0, 1], color=SOFT_INK, linewidth=1, linestyle=(0, (2, 3)), label="perfectly calibrated")
    few = bins.counts < FEW
    upper.bar(middles[~few], bins.accuracy[~few], width=width, color=RIGHT, alpha=0.85, label="share that is right")
    if bins.counts[few].any():
        label = f"the same, fewer than {FEW} cases"
        upper.bar(middles[few], bins.accuracy[few], width=width, color=RIGHT, alpha=0.3, label=label)
    style = {"marker": "_", "markersize": 11, "markeredgewidth": 2.2, "linestyle": "none"}
    upper.plot(bins.confidence, bins.confidence, color=WRONG, label="what was promised", **style)
    lower.bar(middles, bins.counts, width=width, color=SOFT_INK, alpha=0.6)
    lower.yaxis.get_major_locator().set_params(integer=True, nbins=3)
    upper.set(xlim=(0, 1), ylim=(0, 1.02))
    upper.legend(fontsize=8, frameon=True, framealpha=0.85, edgecolor="none", labelcolor=INK, loc="upper left")
    figure.tight_layout()
    return save_figure(figure, path)


def score_distribution(result: SegmentationResult, path: str | Path) -> Path:
    """Dice, and where measured Hausdorff distance, of every case, one column a region."""
    columns = result.columns()
    scores = [name for name in ("dice", "hd95") if name in columns]
    figure = new_figure(float(np.clip(2.2 + 2.4 * len(result.regions) * len(scores), 5.0, 12.0)), 3.9)
    grid: Any = figure.subplots(1, len(scores), squeeze=False)
    titles = {"dice": ("Dice", ""), "hd95": ("HD95", result.spacing_unit)}
    for axes, score in zip(grid[0], scores, strict=True):
        style_axes(axes, f"{titles[score][0]} of each case", ylabel=titles[score][1])
        for place, region in enumerate(result.regions):
            _column(axes, place, columns[f"{score}/{region}"], place)
        axes.grid(False, axis="x")
        axes.set_xticks(range(len(result.regions)), _column_names(result, columns, score))
        axes.set_xlim(-0.6, len(result.regions) - 0.4)
        axes.set_ylim(*((-0.02, 1.02) if score == "dice" else (min(0.0, axes.get_ylim()[0]), None)))
    figure.tight_layout()
    return save_figure(figure, path)


def _column_names(result: SegmentationResult, columns: dict[str, NDArray[np.float64]], score: str) -> list[str]:
    missing = {region: int(np.isnan(columns[f"{score}/{region}"]).sum()) for region in result.regions}
    return [wrapped(name) + (f"\n({count} undefined)" if count else "") for name, count in missing.items()]


def _column(axes: Axes, place: int, values: NDArray[np.float64], colour: int) -> None:
    """Dots spread sideways by rank, a box from quartile to quartile, a bar at the median."""
    values = np.sort(values[np.isfinite(values)])
    if len(values) == 0:
        return
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    shown = values[evenly_spread(len(values), MAX_DOTS)]
    spread = ((np.arange(len(shown)) * 0.618034) % 1 - 0.5) * (0.5 if len(shown) > 3 else 0.12)
    tint = PALETTE[colour % len(PALETTE)]
    if len(values) > 4:
        axes.fill_between((place - 0.33, place + 0.33), low, high, color=tint, alpha=0.14, linewidth=0)
    axes.plot((place - 0.33, place + 0.33), (middle, middle), color=INK, linewidth=1.6)
    axes.plot(place + spread, shown, "o", color=tint, markersize=4.5, alpha=0.7, markeredgewidth=0)


def case_picture(picture: CasePicture, regions: Sequence[str], path: str | Path) -> Path:
    """A slice alone, then once for every region with the outlines of reference and prediction and the errors tinted."""
    panels = 1 + len(regions)
    height, width = picture.image.shape[:2]
    columns = min(panels, 3)
    rows = -(-panels // columns)
    panel = 3.4
    figure = new_figure(columns * panel, rows * (panel * float(np.clip(height / width, 0.4, 1.6)) + 0.3) + 0.4)
    grid: Any = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        blank_axes(axes)
        axes.patch.set_visible(False)
    for axes in grid.flat[:panels]:
        axes.imshow(picture.image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    grid.flat[0].set_title(picture.note or "image", fontsize=9, color=INK)
    for index, (axes, region) in enumerate(zip(grid.flat[1:], regions, strict=False)):
        _outlines(axes, picture.target[index], picture.prediction[index])
        axes.set_title(wrapped(region, 1), fontsize=9, color=INK)
    _outline_legend(figure)
    figure.tight_layout(pad=0.6, rect=(0, 0.28 / figure.get_figheight(), 1, 1))
    return save_figure(figure, path)


def _outlines(axes: Axes, target: NDArray[np.bool_], prediction: NDArray[np.bool_]) -> None:
    """Reference and prediction as lines with a white rim, legible on grey and on stained images."""
    from matplotlib.colors import to_rgba
    from matplotlib.patheffects import AbstractPathEffect, withStroke

    tint = np.zeros((*target.shape, 4))
    tint[target & ~prediction] = to_rgba(RIGHT, 0.35)
    tint[prediction & ~target] = to_rgba(WRONG, 0.35)
    axes.imshow(tint, interpolation="nearest")
    rim: list[AbstractPathEffect] = [withStroke(linewidth=2.6, foreground="white", alpha=0.75)]
    for mask, colour in ((target, RIGHT), (prediction, WRONG)):
        if mask.any():
            rows, columns = (np.arange(-1, side + 1) for side in mask.shape)
            padded = np.pad(mask.astype(np.float32), 1)
            lines = axes.contour(columns, rows, padded, levels=[0.5], colors=[colour], linewidths=1.3)
            lines.set_path_effects(rim)
    axes.set(xlim=(-0.5, target.shape[1] - 0.5), ylim=(target.shape[0] - 0.5, -0.5))


def _outline_legend(figure: Any) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [
        Line2D([], [], color=RIGHT, linewidth=2, label="reference"),
        Line2D([], [], color=WRONG, linewidth=2, label="prediction"),
        Patch(facecolor=RIGHT, alpha=0.35, label="missed"),
        Patch(facecolor=WRONG, alpha=0.35, label="wrongly added"),
    ]
    figure.legend(handles=handles, loc="lower center", ncols=4, fontsize=8, frameon=False, labelcolor=INK)
