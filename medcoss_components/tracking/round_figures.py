"""Pictures of multi-task training: the tasks' scores by round as a heat map, and their losses over the visits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medcoss_components.even_spread import evenly_spread
from medcoss_components.retention.results import as_matrix
from medcoss_components.tracking.cells import draw_cells
from medcoss_components.tracking.curves import smoothed
from medcoss_components.tracking.figures import INK, PALETTE, SOFT_INK, new_figure, save_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CELL_WIDTH, CELL_HEIGHT, LABELS = 0.62, 0.42, 2.2  # inches
WIDEST = 24  # columns with numbers; of more rounds only some are labelled
MEMORIZATION = {"feature": "distance from the cached features", "anchor": "distance from the weights before the visit"}


def rounds_map(rounds: Mapping[str, Any], path: str | Path) -> Path | None:
    """Heat map tasks x rounds of the validation headlines, in percent.

    Args:
        rounds: content of rounds.json.
        path: PNG file to write.

    Returns:
        The path; None without a validated round.
    """
    tasks, rows = list(rounds["tasks"]), rounds["rounds"]
    if not rows:
        return None
    values = as_matrix([[row["headline"][task] for row in rows] for task in tasks])
    columns = min(len(rows), WIDEST)
    figure = new_figure(LABELS + CELL_WIDTH * max(5, columns), 0.95 + CELL_HEIGHT * len(tasks))
    axes = figure.subplots()
    draw_cells(axes, values, numbers=len(rows) <= WIDEST, gap=1.5)
    labels = [f"{task} ({rounds['headlines'][task]})" for task in tasks]
    axes.set_yticks(range(len(tasks)), labels, fontsize=8, color=SOFT_INK)
    shown = evenly_spread(len(rows), columns)
    axes.set_xticks(shown, [str(rows[place]["round"]) for place in shown], fontsize=8, color=SOFT_INK)
    axes.set_xlabel("round", fontsize=9, color=SOFT_INK)
    axes.set_title("Validation after each round, percent", loc="left", fontsize=10, color=INK, fontweight="bold")
    figure.tight_layout()
    return save_figure(figure, path)


def multitask_curves(history: Mapping[str, Any], tasks: Sequence[str], path: str | Path) -> Path:
    """Losses of every task, and the two terms of cross-task memorization, over the iterations.

    A task's losses stand where it had its turn, so that its curve has gaps.

    Args:
        history: content of history.json, whose "modality" is the task.
        tasks: their names, in the order of the colours.
        path: PNG file to write.
    """
    records = [dict(zip(history["columns"], row, strict=True)) for row in history["rows"]]
    kinds = list(dict.fromkeys(record["kind"] for record in records))
    own = [kind for kind in kinds if kind not in MEMORIZATION]
    added = [kind for kind in MEMORIZATION if kind in kinds]
    panels = [("Loss of the task", own)] + [(f"{kind}: {MEMORIZATION[kind]}", [kind]) for kind in added]
    figure = new_figure(10.0, 0.4 + 2.2 * len(panels))
    for axes, (title, chosen) in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels, strict=True):
        style_axes(axes, title, "iteration", "loss")
        for number, task in enumerate(tasks):
            _task_curve(axes, records, task, chosen, PALETTE[number % len(PALETTE)])
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize=8, frameon=False, labelcolor=INK, loc="best")
    figure.tight_layout()
    return save_figure(figure, path)


def _task_curve(axes: Axes, records: Sequence[Mapping[str, Any]], task: str, kinds: Sequence[str], colour: str) -> None:
    """The sum of a task's parts at each recorded iteration, broken where another task had its turn."""
    sums: dict[int, float] = {}
    for record in records:
        if record["modality"] == task and record["kind"] in kinds:
            sums[record["iteration"]] = sums.get(record["iteration"], 0.0) + record["loss"]
    others = np.array(sorted({record["iteration"] for record in records if record["modality"] != task}))
    steps, values = np.array(list(sums), dtype=float), np.array(list(sums.values()))
    turns = np.searchsorted(others, steps)  # equal within a visit
    for number, turn in enumerate(np.unique(turns)):
        own = turns == turn
        line = smoothed(values[own], max(1, int(own.sum()) // 25 | 1))
        label = task if number == 0 else None
        axes.plot(steps[own], line, color=colour, linewidth=1.6, marker="o", markersize=3, label=label)
