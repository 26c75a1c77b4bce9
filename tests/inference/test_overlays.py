"""Pictures show the plane, the outlines and the names."""

from __future__ import annotations

import numpy as np
from PIL import Image

from medcoss_components.inference.overlays import COLOURS, fullest_plane, write_overlay


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def near(picture, colour):
    """Pixels within 40 of a colour in every channel."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return np.abs(picture - wanted).max(axis=2) < 40


def test_fullest_plane():
    masks = np.zeros((2, 5, 4, 6), bool)
    assert fullest_plane(masks) == 2
    masks[0, 1, :2], masks[1, 4] = True, True
    assert fullest_plane(masks) == 4


def test_outline_encloses_the_mask(tmp_path):
    mask = np.zeros((1, 40, 60), bool)
    mask[0, 10:30, 15:45] = True
    write_overlay(tmp_path / "a.png", picture=np.zeros((1, 40, 60)), masks=mask, names=["organ"])
    picture = pixels(tmp_path / "a.png")
    legend = int(picture.shape[0] * 0.9)
    rows, columns = np.nonzero(near(picture, COLOURS[0])[:legend])
    # the drawing is black, what is around it white
    inside = np.nonzero((picture.sum(axis=2) < 60)[:legend])
    height, width = (np.ptp(axis) + 1 for axis in inside)
    assert abs(np.ptp(rows) / height - 20 / 40) < 0.03 and abs(np.ptp(columns) / width - 30 / 60) < 0.03


def test_spacing_stretches_and_colour_stays(tmp_path):
    colour = np.stack([np.full((20, 20), value, np.uint8) for value in (0, 255, 0)])
    empty = np.zeros((1, 20, 20), bool)
    write_overlay(tmp_path / "a.png", picture=colour, masks=empty, names=["organ"], spacing=(2.0, 1.0), caption="plane")
    green = np.nonzero(near(pixels(tmp_path / "a.png"), "#00ff00"))
    assert abs((np.ptp(green[0]) + 1) / (np.ptp(green[1]) + 1) - 2) < 0.05


def test_region_at_the_edge_and_equal_files(tmp_path):
    full = np.ones((2, 6, 9), bool)
    for name in ("a", "b"):
        write_overlay(tmp_path / f"{name}.png", picture=np.zeros((1, 6, 9)), masks=full, names=["one", "two"])
    assert near(pixels(tmp_path / "a.png"), COLOURS[1]).any()
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
