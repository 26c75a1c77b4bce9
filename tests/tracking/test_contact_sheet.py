"""Boxes over the pictures of a manifest's contact sheet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from medcoss_components.data.manifest import Item, Manifest
from medcoss_components.data.writers import write_picture
from medcoss_components.tracking import contact_sheet, figures
from medcoss_components.tracking.contact_sheet import load_picture, manifest_sheet
from medcoss_components.tracking.figures import draw_box, new_figure


def films(root, *labels):
    """A manifest of pictures of 700 x 960 pixels, one for each label."""
    items = []
    for number, label in enumerate(labels):
        write_picture(root / f"{number}.png", np.full((700, 960), 40 * number, np.uint8))
        items.append(Item(f"i{number}", root / f"{number}.png", None, label, f"g{number}"))
    texts = {"name": "films", "version": "1", "licence": "none", "source": "a test"}
    return Manifest(modality="xray", root=root, training=items, **texts)


def box(*sides):
    return {"box": list(sides), "category": "mass"}


def test_boxes_are_scaled_to_the_thumbnail(tmp_path):
    manifest = films(tmp_path, [box(30, 60, 90, 120), box(0, 0, 960, 700.5)], [], "normal", None)
    shown, mask, boxes = load_picture(manifest.training[0], manifest)
    assert shown.shape == (234, 320, 1) and mask is None  # every third pixel
    np.testing.assert_allclose(boxes, [[10, 20, 30, 40], [0, 0, 320, 233.5]])
    assert [load_picture(item, manifest)[2].shape for item in manifest.training[1:]] == [(0, 4)] * 3


def test_a_box_covers_the_pixels_that_it_names():
    axes = new_figure(1, 1).subplots()
    axes.imshow(np.zeros((6, 8)))
    draw_box(axes, (2, 1, 5, 3), "red", width=0.9)
    (shape,) = (patch for patch in axes.patches if isinstance(patch, Rectangle))
    assert shape.get_bbox().extents.tolist() == [1.5, 0.5, 4.5, 2.5]
    assert shape.get_linewidth() == 0.9 and not shape.get_fill()
    assert (axes.get_xlim(), axes.get_ylim()) == ((-0.5, 7.5), (5.5, -0.5))


def test_the_sheet_shows_every_box(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "DPI", 40)
    drawn = []
    monkeypatch.setattr(contact_sheet, "draw_box", lambda axes, sides, colour, **_: drawn.append(sides.tolist()))
    manifest = films(tmp_path, [box(30, 60, 90, 120), box(0, 0, 960, 600)], [])
    assert manifest_sheet(manifest, tmp_path / "sheet.png") == []
    assert drawn == [[10, 20, 30, 40], [0, 0, 320, 200]] and Path(tmp_path / "sheet.png").is_file()


@pytest.mark.parametrize("sides", [(5, 5, 2, 9), (1, 2, 3), ("a", 1, 2, 3)])
def test_bad_boxes_are_told_and_the_others_drawn(tmp_path, monkeypatch, sides):
    monkeypatch.setattr(figures, "DPI", 40)
    (problem,) = manifest_sheet(films(tmp_path, [box(*sides)], [box(1, 1, 2, 2)]), tmp_path / "sheet.png")
    assert problem.startswith("item i0: label: box 0 ") and problem.endswith("or leave the item out.")
