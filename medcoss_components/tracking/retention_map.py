"""Heat map of a retention matrix: rows probes or modalities, columns encoders, numbers in the cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medcoss_components.retention.results import as_matrix
from medcoss_components.tracking.cells import draw_cells
from medcoss_components.tracking.figures import INK, SOFT_INK, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE_NAME = "retention.png"
CELL_WIDTH, CELL_HEIGHT, LABELS = 1.15, 0.36, 2.2  # inches
PANELS = (
    ("k_nn", "probes", "k-NN accuracy, percent"),
    ("logistic", "probes", "Logistic regression accuracy, percent"),
    ("cka", "reference", "Linear CKA with the end of the own stage, percent"),
    ("overlap", "reference", "Nearest neighbours kept since the own stage, percent"),
)


def retention_map(result: Mapping[str, Any], path: str | Path) -> Path | None:
    """Draw the matrix of retention.json as a PNG.

    A frame marks the encoder that has just learned the row's modality; grey cells with a dash have no number.

    Args:
        result: content of retention.json.
        path: PNG file to write.

    Returns:
        The path; None when there is no row.
    """
    panels = [(key, result[part], title) for key, part, title in PANELS if result[part]]
    if not panels:
        return None
    columns = [stage["name"] for stage in result["stages"]]
    heights = [len(rows) * CELL_HEIGHT + 0.75 for _, rows, _ in panels]
    figure = new_figure(LABELS + CELL_WIDTH * max(3, len(columns)), sum(heights) + 0.35)
    grid = figure.subplots(len(panels), 1, gridspec_kw={"height_ratios": heights}, squeeze=False)[:, 0]
    for axes, (key, rows, title) in zip(grid, panels, strict=True):
        _panel(axes, rows, key, columns)
        axes.set_title(title, loc="left", fontsize=10, color=INK, fontweight="bold")
    figure.tight_layout()
    return save_figure(figure, path)


def _panel(axes: Axes, rows: Mapping[str, Any], key: str, columns: Sequence[str]) -> None:
    values = as_matrix([row[key] for row in rows.values()])
    draw_cells(axes, values)
    for line, row in enumerate(rows.values()):
        if row["own"] is not None:
            _frame(axes, row["own"], line)
    axes.set_xticks(range(len(columns)), columns, fontsize=8, color=SOFT_INK)
    axes.set_yticks(range(len(rows)), list(rows), fontsize=8, color=SOFT_INK)


def _frame(axes: Axes, column: int, line: int) -> None:
    from matplotlib.patches import Rectangle

    place = (column - 0.46, line - 0.42)
    for colour, width in (("white", 4.0), (INK, 1.6)):  # dark on light, so that it shows in every cell
        axes.add_patch(Rectangle(place, 0.92, 0.84, fill=False, edgecolor=colour, linewidth=width, zorder=3))
