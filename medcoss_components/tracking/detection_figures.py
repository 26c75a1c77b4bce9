"""Pictures of a detector: precision and recall, false boxes against sensitivity, cases with their boxes.

Every function writes one PNG file atomically and returns its path. Ids appear in none, and never in a file name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medcoss_components.evaluation.detection import BoxPicture, DetectionResult
from medcoss_components.evaluation.detection_metrics import (
    AT_HALF,
    FALSE_RATES,
    Boxes,
    OperatingPoints,
    match_boxes,
    operating_points,
)
from medcoss_components.tracking.figures import (
    INK,
    PALETTE,
    RIGHT,
    SOFT_INK,
    WRONG,
    blank_axes,
    displayed,
    draw_box,
    grey_window,
    new_figure,
    save_figure,
    style_axes,
)
from medcoss_components.tracking.task_figures import class_style, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEWEST_FALSE = 0.05  # false boxes for each case at which the logarithmic axis begins
COLOURS = PALETTE[1:7]
WIDTH = 6.0  # inches of an overlay
MOST_LABELS = 40  # boxes of a picture that have their score written beside them


def precision_recall(result: DetectionResult, path: str | Path) -> Path:
    """Precision against recall of each category at overlap 0.5; the mark is the score threshold."""
    figure = new_figure(7.4, 4.6)
    axes = figure.subplots()
    style_axes(axes, "Precision and recall", "share of the true boxes found (recall)", "share of the found boxes right")
    metrics = result.metrics()
    for number, points in _curves(axes, result, "map50"):
        label = _label(result, number, metrics, "map50")
        axes.plot(points.recall, points.precision, linewidth=1.8, **class_style(number), label=label)
        _mark(axes, points, points.recall, points.precision, result.threshold, number)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    _legend(axes, "AP50")
    figure.tight_layout()
    return save_figure(figure, path)


def froc_curves(result: DetectionResult, path: str | Path) -> Path:
    """Sensitivity against false boxes for each case at overlap 0.5; the mark is the score threshold."""
    figure = new_figure(7.4, 4.6)
    axes = figure.subplots()
    style_axes(axes, "False boxes against sensitivity", "false boxes for each case", "share of the true boxes found")
    axes.set_xscale("log")
    metrics, most = result.metrics(), max(FALSE_RATES)
    for rate in FALSE_RATES:
        axes.axvline(rate, color=SOFT_INK, linewidth=0.8, linestyle=(0, (2, 3)))
    for number, points in _curves(axes, result, "froc"):
        across = np.maximum(points.false_boxes, FEWEST_FALSE)
        most = max(most, float(across[-1])) if len(across) else most
        label = _label(result, number, metrics, "froc")
        axes.step(across, points.recall, where="post", linewidth=1.8, **class_style(number), label=label)
        _mark(axes, points, across, points.recall, result.threshold, number)
    axes.set(xlim=(FEWEST_FALSE, 1.2 * most), ylim=(-0.01, 1.01))
    axes.set_xticks(FALSE_RATES, ["1/8", "1/4", "1/2", "1", "2", "4", "8"])
    axes.minorticks_off()
    _legend(axes, "FROC")
    figure.tight_layout()
    return save_figure(figure, path)


def _curves(axes: Axes, result: DetectionResult, metric: str) -> list[tuple[int, OperatingPoints]]:
    """Category number and curve of those that have one; the others are told in the legend."""
    found = []
    for number, name in enumerate(result.categories):
        points = operating_points(result.matches, number)
        if points is None:
            axes.plot([], [], **class_style(number), label=f"{wrapped(name, 2)}: not defined")
        else:
            found.append((number, points))
    return found


def _label(result: DetectionResult, number: int, metrics: dict[str, float], metric: str) -> str:
    name = result.categories[number]
    return f"{wrapped(name, 2)}: {metrics[f'{metric}/{name}']:.3f}"


def _mark(
    axes: Axes, points: OperatingPoints, across: NDArray[Any], up: NDArray[Any], threshold: float, number: int
) -> None:
    """A dot where the score threshold lies, if any box reaches it."""
    reached = int((points.scores >= threshold).sum())
    if reached:
        colour = class_style(number)["color"]
        axes.plot(across[reached - 1], up[reached - 1], "o", color=colour, markersize=6, markeredgecolor="white")


def _legend(axes: Axes, title: str) -> None:
    axes.legend(
        fontsize=8,
        frameon=False,
        labelcolor=INK,
        loc="center left",
        bbox_to_anchor=(1.02, 0.5),
        title=title,
        title_fontsize=8,
        alignment="left",
    )


def box_picture(picture: BoxPicture, categories: Sequence[str], path: str | Path) -> Path:
    """A case alone, and once more with its true boxes (dashed where missed) and the found ones with their scores."""
    height, width = picture.image.shape[:2]
    panel = 3.6
    figure = new_figure(2 * panel, panel * float(np.clip(height / width, 0.4, 1.6)) + 0.7)
    grid: Any = figure.subplots(1, 2)
    for axes in grid:
        blank_axes(axes)
        axes.patch.set_visible(False)
        axes.imshow(picture.image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    grid[0].set_title(picture.note or "image", fontsize=9, color=INK)
    grid[1].set_title("boxes", fontsize=9, color=INK)
    _draw_true(grid[1], picture, categories)
    _draw_found(grid[1], picture.prediction, categories, [WRONG])
    for axes in grid:
        axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    _box_legend(figure)
    figure.tight_layout(pad=0.6, rect=(0, 0.28 / figure.get_figheight(), 1, 1))
    return save_figure(figure, path)


def missed_boxes(target: Boxes, prediction: Boxes) -> NDArray[np.bool_]:
    """(n,) whether each true box was found by none, overlap 0.5."""
    missed: NDArray[np.bool_] = np.ones(len(target), dtype=bool)
    for number, entry in match_boxes([target], [prediction])[0].items():
        rows = target.labels == number
        if rows.any():
            missed[rows] = entry["gtMatches"][AT_HALF] == 0
    return missed


def _draw_true(axes: Axes, picture: BoxPicture, categories: Sequence[str]) -> None:
    """True boxes, with their category below each where there are several."""
    target, missed = picture.target, missed_boxes(picture.target, picture.prediction)
    for place, (box, label) in enumerate(zip(target.boxes, target.labels, strict=True)):
        draw_box(axes, box, RIGHT, dashed=bool(missed[place]))
        if len(categories) > 1 and place < MOST_LABELS:
            _write(axes, box[0], box[3], wrapped(categories[int(label)], 1), RIGHT, "top")


def _draw_found(axes: Axes, found: Boxes, categories: Sequence[str], colours: Sequence[str]) -> None:
    """Found boxes with category and score above each, in the colour of the category."""
    for place, (box, label, score) in enumerate(zip(found.boxes, found.labels, found.scores, strict=True)):
        colour = colours[int(label) % len(colours)]
        draw_box(axes, box, colour)
        if place < MOST_LABELS:
            _write(axes, box[0], box[1], f"{wrapped(categories[int(label)], 1)} {score:.2f}", colour, "bottom")


def _write(axes: Axes, across: float, down: float, text: str, colour: str, side: str) -> None:
    style: dict[str, Any] = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6}
    axes.text(across - 0.5, down - 0.5, text, fontsize=6.5, color=colour, va=side, bbox=style, clip_on=True)


def _box_legend(figure: Any) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=RIGHT, linewidth=2, label="reference"),
        Line2D([], [], color=RIGHT, linewidth=2, linestyle="--", label="reference, missed"),
        Line2D([], [], color=WRONG, linewidth=2, label="found"),
    ]
    figure.legend(handles=handles, loc="lower center", ncols=3, fontsize=8, frameon=False, labelcolor=INK)


def write_box_overlay(
    path: str | Path, *, picture: NDArray[Any], found: Boxes, categories: Sequence[str], caption: str = ""
) -> Path:
    """Draw an image in grey (or its colours) with found boxes, a legend of the categories and a line below.

    Args:
        path: PNG file to write.
        picture: (C, H, W) values, C 1 or 3.
        found: boxes in its pixels.
        categories: K names.
        caption: above the picture.
    """
    from matplotlib.lines import Line2D

    image = np.moveaxis(picture.astype(np.float32), 0, -1)
    height, width = image.shape[:2]
    figure = new_figure(WIDTH, float(np.clip(WIDTH * height / width, 1.5, 12)) + 0.7)
    axes = figure.subplots()
    axes.imshow(displayed(image, grey_window(image)), interpolation="nearest")
    _draw_found(axes, found, categories, COLOURS)
    blank_axes(axes)
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    axes.set_title(caption, loc="left", fontsize=8, color=INK)
    handles = [
        Line2D([], [], color=COLOURS[number % len(COLOURS)], label=_counted(name, int((found.labels == number).sum())))
        for number, name in enumerate(categories)
    ]
    figure.legend(handles=handles, loc="lower center", ncols=min(4, len(handles)), fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    return save_figure(figure, path)


def _counted(name: str, count: int) -> str:
    return f"{wrapped(name, 1)} ({count or 'none'})"
