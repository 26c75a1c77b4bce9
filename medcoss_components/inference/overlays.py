"""Pictures of predicted masks: one plane of the case with the outline of every region."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medcoss_components.tracking.figures import (
    INK,
    PALETTE,
    blank_axes,
    displayed,
    grey_window,
    new_figure,
    save_figure,
)

COLOURS = PALETTE[1:7]
WIDTH = 6.0  # inches


def fullest_plane(masks: NDArray[np.bool_]) -> int:
    """The plane that most of the regions' voxels lie in; the middle one where there are none.

    Args:
        masks: (K, Z, Y, X) bool.
    """
    counts = np.count_nonzero(masks, axis=(0, 2, 3))
    return int(counts.argmax()) if counts.any() else masks.shape[1] // 2


def write_overlay(
    path: str | Path,
    *,
    picture: NDArray,
    masks: NDArray[np.bool_],
    names: list[str],
    spacing: tuple[float, float] = (1.0, 1.0),
    caption: str = "",
) -> Path:
    """Draw a plane in grey (or its colours) with outlines, a legend and a line that says what it is.

    Args:
        path: PNG file to write.
        picture: (C, H, W) values, C 1 or 3.
        masks: (K, H, W) bool.
        names: of the K regions.
        spacing: (row, column) of a pixel; only their ratio counts.
        caption: below the picture.
    """
    from matplotlib.lines import Line2D

    rows, columns = masks.shape[1] * spacing[0], masks.shape[2] * spacing[1]
    image = np.moveaxis(picture.astype(np.float32), 0, -1)
    figure = new_figure(WIDTH, float(np.clip(WIDTH * rows / columns, 1.5, 12)) + 0.7)
    axes = figure.subplots()
    axes.imshow(displayed(image, grey_window(image)), aspect=spacing[0] / spacing[1], interpolation="nearest")
    handles = []
    for number, (name, mask) in enumerate(zip(names, masks, strict=True)):
        colour = COLOURS[number % len(COLOURS)]
        if mask.any():
            axes.contour(
                _closed(mask), levels=[0.5], colors=[colour], linewidths=1.2, origin=None, extent=_extent(mask)
            )
        handles.append(Line2D([], [], color=colour, label=name if mask.any() else f"{name} (none here)"))
    blank_axes(axes)
    axes.set_xlim(-0.5, masks.shape[2] - 0.5)
    axes.set_ylim(masks.shape[1] - 0.5, -0.5)
    axes.set_title(caption, loc="left", fontsize=8, color=INK)
    figure.legend(handles=handles, loc="lower center", ncols=min(4, len(handles)), fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    return save_figure(figure, path)


def _closed(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """With a rim of zeros, so that outlines close at the picture's edge too."""
    return np.pad(mask.astype(np.float32), 1)


def _extent(mask: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    return -1.0, float(mask.shape[1]), -1.0, float(mask.shape[0])
