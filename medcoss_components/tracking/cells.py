"""Cells of a heat map: shares of one, as colours and, where there is room, as percent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medcoss_components.tracking.figures import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = "Blues"  # lightness falls evenly, so it reads in grey print
DARK = 0.55  # cells above it get white numbers


def draw_cells(axes: Axes, values: NDArray[np.float64], *, numbers: bool = True, gap: float = 2.0) -> None:
    """Draw a matrix; grey cells have no number.

    Args:
        axes: receives it; labels of rows and columns are the caller's.
        values: (rows, columns) in [0, 1], or NaN.
        numbers: whether percent stand in the cells.
        gap: points between cells.
    """
    axes.set_facecolor("#e4e7eb")
    axes.imshow(np.ma.masked_invalid(values), cmap=COLOURS, vmin=0, vmax=1, aspect="auto")
    for (line, place), value in np.ndenumerate(values) if numbers else ():
        text = f"{100 * value:.0f}" if np.isfinite(value) else "–"
        colour = "white" if np.isfinite(value) and value > DARK else INK
        axes.text(place, line, text, ha="center", va="center", fontsize=9, color=colour)
    rows, columns = values.shape
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=gap)
    axes.tick_params(which="minor", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
