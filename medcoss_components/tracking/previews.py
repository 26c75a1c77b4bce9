"""Pictures of what a stage learned and kept: reconstructions, word predictions, buffer map, contact sheet, loss curves.

Every function writes one PNG file atomically and returns its path; none takes or draws ids. Words appear only
with ``show_text=True`` (public data). Without it a word is a bar of its length, so that a picture still shows what
was hidden and what was guessed right.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike

from medcoss_components.errors import InputError
from medcoss_components.even_spread import evenly_spread
from medcoss_components.tracking.curves import chain_curves, loss_curves
from medcoss_components.tracking.figures import (
    INK,
    SOFT_INK,
    as_array,
    blank_axes,
    displayed,
    grey_window,
    new_figure,
    plane,
    save_figure,
)
from medcoss_components.tracking.maps import buffer_map
from medcoss_components.tracking.text_panels import TextRow, text_panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CARD_WIDTH = 70  # characters of a line on a text card

__all__ = [
    "TextRow",
    "buffer_map",
    "chain_curves",
    "contact_sheet",
    "loss_curves",
    "reconstruction_panel",
    "text_panel",
]


def reconstruction_panel(
    originals: ArrayLike,
    masked: ArrayLike,
    reconstructed: ArrayLike,
    path: str | Path,
    *,
    titles: Sequence[str] = ("Original", "What the model sees", "Reconstruction"),
    window: tuple[float, float] | None = None,
) -> Path:
    """One row a sample: original, visible patches, reconstruction; of volumes the middle slice.

    Args:
        originals: (B, C, H, W) images or (B, 1, Z, H, W) volumes, C 1 or 3, any unit.
        masked: same shape, removed voxels NaN.
        reconstructed: same shape and unit.
        path: PNG file to write.
        titles: column titles.
        window: values shown as black and white; None takes it from each original, for all three columns alike.

    Raises:
        InputError: when the shapes differ or no sample is given.
    """
    arrays = [as_array(values) for values in (originals, masked, reconstructed)]
    shapes = [array.shape for array in arrays]
    if len(set(shapes)) != 1 or shapes[0][0] == 0:
        raise InputError(f"originals, masked and reconstructed must have one shape with B > 0, received {shapes}")
    rows = shapes[0][0]
    figure = new_figure(6.6, 2.2 * rows + 0.3)
    grid: Any = figure.subplots(rows, 3, squeeze=False)
    for index, samples in enumerate(zip(*arrays, strict=True)):
        planes = [plane(sample) for sample in samples]
        limits = window or grey_window(planes[0])
        for axes, image in zip(grid[index], planes, strict=True):
            axes.imshow(displayed(image, limits))
            blank_axes(axes)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=10, color=INK)
    figure.tight_layout(pad=0.4)
    return save_figure(figure, path)


def contact_sheet(
    samples: Any,
    path: str | Path,
    *,
    columns: int | None = None,
    limit: int | None = None,
    total: int | None = None,
    show_text: bool = False,
    window: tuple[float, float] | None = None,
) -> Path:
    """A grid of samples, for example the exemplars of a buffer.

    Args:
        samples: (n, C, H, W) images, (n, 1, Z, H, W) volumes (middle slice shown), a list of such samples, or a list of
            texts.
        path: PNG file to write.
        columns: samples in a row; None takes 8 images or 2 texts.
        limit: how many samples at most, None 40 images or 12 texts; more are thinned evenly over the whole list.
        total: how many samples the sheet stands for, when ``samples`` is a selection already.
        show_text: True prints texts; False draws their words as bars.
        window: values shown as black and white; None takes it from each sample.

    Raises:
        InputError: when no sample is given.
    """
    if len(samples) == 0:
        raise InputError("samples must hold at least one image or text, received none")
    texts = isinstance(samples[0], str)
    limit = limit or (12 if texts else 40)
    kept = evenly_spread(len(samples), limit)
    columns = columns or (2 if texts else 8)
    rows = -(-len(kept) // columns)
    height = rows * (0.72 if texts else 10.0 / columns) + 0.34
    figure = new_figure(10.0, height)
    grid: Any = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(0.005, 0.01, 0.995, 1 - 0.34 / height, wspace=0.02, hspace=0.06 if texts else 0.02)
    for axes in grid.flat:
        blank_axes(axes)
        axes.patch.set_visible(False)
    for axes, index in zip(grid.flat, kept, strict=False):
        sample = samples[int(index)]
        if texts:
            _text_card(axes, sample, show_text)
        else:
            image = plane(sample)
            axes.imshow(displayed(image, window or grey_window(image)))
    total = max(total or 0, len(samples))
    heading = f"{len(kept)} of {total:,} samples" if len(kept) < total else f"all {total:,} samples"
    figure.text(0.005, 1 - 0.17 / height, heading, va="center", fontsize=10, color=INK)
    return save_figure(figure, path)


def _text_card(axes: Axes, text: str, show_text: bool) -> None:
    from matplotlib.patches import Rectangle

    axes.set_xlim(0, CARD_WIDTH + 4)
    axes.set_ylim(4, 0)
    axes.patch.set(visible=True, facecolor="#f5f7fa")
    lines = textwrap.wrap(text, CARD_WIDTH, max_lines=3, placeholder=" …")
    for number, line in enumerate(lines):
        if show_text:
            axes.text(2, number + 1, line, color=INK, fontsize=8.5, family="DejaVu Sans", va="center")
            continue
        column = 2
        for word in line.split():
            axes.add_patch(Rectangle((column, number + 0.8), len(word), 0.4, facecolor=SOFT_INK, alpha=0.35))
            column += len(word) + 1
