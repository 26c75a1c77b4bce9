"""Drawing basics of the pictures: figures without pyplot's global state, colours, grey windows, atomic PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medcoss_components.errors import InputError
from medcoss_components.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe and Ito's colours, told apart with every common colour vision deficiency; the order is the order of use.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5C00", "#000000")
INK = "#1f2933"
SOFT_INK = "#616e7c"
GRID = "#e4e7eb"
RIGHT = "#0072B2"
WRONG = "#D55E00"
REMOVED = (0.83, 0.87, 0.92)  # removed patches: a pale blue that no grey or stained image contains
DPI = 110


def new_figure(width: float, height: float) -> Figure:
    """A figure of ``width`` x ``height`` inches with an Agg canvas of its own."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a PNG atomically, without the writing program's name, so that equal pictures are equal files."""
    path = Path(path)
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", metadata={"Software": None})
    return path


def style_axes(axes: Axes, title: str, xlabel: str = "", ylabel: str = "") -> None:
    """Light grid, no box, small legible type."""
    axes.set_title(title, loc="left", fontsize=10, color=INK, fontweight="bold")
    axes.set_xlabel(xlabel, fontsize=9, color=SOFT_INK)
    axes.set_ylabel(ylabel, fontsize=9, color=SOFT_INK)
    axes.tick_params(which="both", labelsize=8, colors=SOFT_INK, length=0)
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)


def blank_axes(axes: Axes) -> None:
    """Axes that hold a picture alone."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def draw_box(axes: Axes, box: ArrayLike, colour: str, *, dashed: bool = False, width: float = 1.5) -> None:
    """Draw the outline of a box over a picture, with a white rim that keeps it legible on grey.

    Args:
        axes: that show the picture, a pixel's middle at its whole number.
        box: (4,) left, top, right, bottom in pixels of the picture, right and bottom exclusive.
        colour: of the line.
        dashed: True breaks the line.
        width: of the line in points; the rim is 0.65 points at either side.
    """
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    left, top, right, bottom = np.asarray(box, dtype=np.float64) - 0.5
    shape = Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=width)
    shape.set_linestyle("--" if dashed else "-")
    shape.set_path_effects([withStroke(linewidth=width + 1.3, foreground="white", alpha=0.75)])
    axes.add_patch(shape)


def as_array(values: Any) -> NDArray[np.float32]:
    """float32 NumPy array of a NumPy array or of a torch tensor on any device."""
    if hasattr(values, "detach"):
        values = values.detach().float().cpu().numpy()
    return np.asarray(values, dtype=np.float32)


def plane(image: ArrayLike) -> NDArray[np.float32]:
    """The picture that stands for a sample.

    Args:
        image: (C, H, W) image or (1, Z, H, W) volume, C 1 or 3.

    Returns:
        (H, W, C) image; of a volume the middle slice Z // 2.

    Raises:
        InputError: for another number of axes or channels.
    """
    array = as_array(image)
    if array.ndim == 4:
        array = array[:, array.shape[1] // 2]
    if array.ndim != 3 or array.shape[0] not in (1, 3):
        raise InputError(f"image must be (1|3, H, W) or (1, Z, H, W), received shape {array.shape}")
    return np.moveaxis(array, 0, -1)


def grey_window(image: NDArray[np.float32]) -> tuple[float, float]:
    """Values shown as black and white: 0 and 1 when all lie there, else the 0.5 and 99.5 percentiles (without NaN)."""
    values = image[np.isfinite(image)]
    if values.size == 0:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        low, high = (float(value) for value in np.percentile(values, (0.5, 99.5)))
    else:
        low, high = 0.0, 1.0
    return low, max(high, low + 1e-6)


def displayed(image: NDArray[np.float32], window: tuple[float, float]) -> NDArray[np.float32]:
    """Map (H, W, 1|3) values to (H, W, 3) colours in [0, 1]; a pixel that is NaN gets the colour ``REMOVED``."""
    low, high = window
    colours = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image.copy()
    gone = np.isnan(colours).any(axis=2)
    colours = np.clip((colours - low) / (high - low), 0, 1)
    colours[gone] = REMOVED
    return colours
