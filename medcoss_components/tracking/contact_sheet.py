"""A picture of what a manifest lists, to look at before training on it: images, labels, outlines of masks and boxes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medcoss_components.data.boxes import is_box_label, label_problem
from medcoss_components.data.manifest import SPLITS, Item, Manifest
from medcoss_components.data.manifest_summary import MASK, NONE, label_name
from medcoss_components.data.masks import read_labelled
from medcoss_components.data.readers import read_image, read_volume
from medcoss_components.errors import InputError
from medcoss_components.progress import progress
from medcoss_components.randomness import numpy_generator_for
from medcoss_components.tracking.figures import (
    INK,
    PALETTE,
    SOFT_INK,
    blank_axes,
    displayed,
    draw_box,
    grey_window,
    new_figure,
    save_figure,
)

COLUMNS = 6
LIMIT = 24
_SIDE = 320
"""Longest side of a drawn picture; larger ones are thinned."""
_LINE = 26
_OUTLINE = 0.9


def manifest_sheet(manifest: Manifest, path: str | Path, *, limit: int = LIMIT, seed: int = 0) -> list[str]:
    """Draw some items of every split and label, with their labels and ids.

    Of a volume the middle slice is shown, with a mask the slice that has most of it. Masks and boxes are drawn as
    outlines. File names are not drawn; the pictures are patients' data all the same.

    Args:
        manifest: of images or volumes.
        path: PNG file to write.
        limit: how many items at most.
        seed: of the choice.

    Returns:
        one line for each drawn item that could not be read.

    Raises:
        InputError: a manifest of texts, or without items.
    """
    if manifest.modality.dimension == 1:
        raise InputError(f"manifest {manifest.name}: texts have no contact sheet.")
    chosen = choose_items(manifest, limit=limit, seed=seed)
    if not chosen:
        raise InputError(f"manifest {manifest.name}: has no items to draw.")
    columns = min(COLUMNS, max(3, len(chosen)))
    rows = -(-len(chosen) // columns)
    figure = new_figure(columns * 1.9, rows * 2.25 + 0.4)
    grid: Any = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        blank_axes(axes)
    problems = []
    for axes, (split, item) in zip(grid.flat, progress(chosen, description="contact sheet", unit="item"), strict=False):
        problems += _draw(axes, split, item, manifest)
    total = sum(manifest.counts.values())
    heading = f"{manifest.name} ({manifest.modality.name}): {len(chosen)} of {total:,} items"
    figure.suptitle(heading, fontsize=10, color=INK, x=0.01, ha="left")
    figure.tight_layout(pad=0.5)
    save_figure(figure, path)
    return problems


def choose_items(manifest: Manifest, *, limit: int, seed: int) -> list[tuple[str, Item]]:
    """Up to ``limit`` items with their split, in turn from every split and label, each drawn from the seed."""
    strata: dict[tuple[str, str], list[Item]] = defaultdict(list)
    for split in SPLITS:
        for item in manifest.items(split):
            strata[split, label_name(item)].append(item)
    queues = []
    for (split, label), items in strata.items():
        order = numpy_generator_for(seed, "contact sheet", split, label).permutation(len(items))
        queues.append([(split, items[index]) for index in order])
    longest = max(map(len, queues), default=0)
    taken = [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)][:limit]
    return sorted(taken, key=lambda entry: (SPLITS.index(entry[0]), label_name(entry[1])))


def _draw(axes: Any, split: str, item: Item, manifest: Manifest) -> list[str]:
    label = label_name(item)
    title = split if label in (MASK, NONE) else f"{split}: {label}"
    axes.set_title(title if len(title) <= _LINE else f"{title[: _LINE - 1]}…", fontsize=7.5, color=INK)
    axes.set_xlabel(item.id[-_LINE:], fontsize=6.5, color=SOFT_INK, labelpad=2)
    try:
        picture, mask, boxes = load_picture(item, manifest)
    except InputError as error:
        axes.text(0.5, 0.5, "cannot be read", ha="center", va="center", fontsize=8, transform=axes.transAxes)
        return [f"item {item.id}: {error}"]
    axes.imshow(displayed(picture, grey_window(picture)))
    values = [] if mask is None else [value for value in np.unique(mask) if value != 0]
    for number, value in enumerate(values[: len(PALETTE) - 1]):
        axes.contour(mask == value, levels=[0.5], colors=[PALETTE[(number + 1) % len(PALETTE)]], linewidths=_OUTLINE)
    for box in boxes:
        draw_box(axes, box, PALETTE[1], width=_OUTLINE)
    return []


def load_picture(item: Item, manifest: Manifest) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """What is drawn of an item, thinned where it is larger than a thumbnail.

    Args:
        item: of the manifest.
        manifest: of images or volumes.

    Returns:
        picture (H, W, 1|3) float32; mask (H, W) of integers or None; boxes (N, 4) float64 of left, top, right, bottom
        in pixels of the picture, right and bottom exclusive, N 0 where the label is no list of boxes.

    Raises:
        InputError: an image or mask that cannot be read, or of different sizes; boxes that are no four numbers.
    """
    modality, image = manifest.modality, Path(str(item.image))
    mask = None
    if label_name(item) == MASK:
        array, _, mask = read_labelled(image, manifest.root / item.label, modality=modality)
    else:
        read = read_image if modality.dimension == 2 else read_volume
        array = read(image, expected_modality=modality.dicom_modalities).array
    picture, mask = _plane(array, mask, modality.dimension)
    step = max(1, -(-max(picture.shape[:2]) // _SIDE))
    thinned = None if mask is None else mask[::step, ::step]
    return _unit(picture[::step, ::step]), thinned, _boxes(item.label) / step


def _plane(image: np.ndarray, mask: np.ndarray | None, dimension: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Picture (H, W, 1|3) and mask (H, W) or None; of a volume one slice."""
    if dimension == 3:
        index = image.shape[0] // 2 if mask is None else int(np.argmax((mask != 0).sum(axis=(1, 2))))
        image, mask = image[index], None if mask is None else mask[index]
    return image[..., None] if image.ndim == 2 else image, mask


def _boxes(label: Any) -> np.ndarray:
    """(N, 4) float64 in pixels of the source picture; none of other labels."""
    if not is_box_label(label) or not label:
        return np.empty((0, 4))
    if problem := label_problem(label):
        raise InputError(f"label: {problem}. Correct the boxes or leave the item out.")
    return np.array([entry["box"] for entry in label], np.float64)


def _unit(image: np.ndarray) -> np.ndarray:
    """float32; integers of colour pictures become shares of their type's range."""
    if image.dtype == np.uint8:
        return image.astype(np.float32) / 255
    return image.astype(np.float32)


def sheet_lines(problems: Sequence[str], limit: int = 5) -> list[str]:
    """The first problems, and how many more there are."""
    rest = len(problems) - limit
    return [*problems[:limit], *([f"and {rest} more"] if rest > 0 else [])]
