"""Tiling of whole slides: which tiles are tissue, which are drawn, what they show, and what is refused."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from medcoss_components.data import slides
from medcoss_components.data.slides import Tiling, draw, is_tissue, require_openslide, write_tiles
from medcoss_components.errors import InputError

from .adapters.miniatures_pathology import RED, VIOLET, WHITE, cut_short, disc, extent, write_slide

TILING = Tiling(size=64, microns_per_pixel=0.5, picture="png")
"""On a slide of 0.25 um per pixel a tile covers 128 x 128 pixels."""


def quarters():
    """(512, 640, 3): stained in the upper left and, violet, in the lower right corner; glass elsewhere."""
    picture = np.full((512, 640, 3), WHITE, np.uint8)
    picture[:256, :256] = RED
    picture[256:, 384:] = VIOLET
    return picture


@pytest.fixture
def cut(tmp_path):
    """``cut(slide, tiling) -> {file name: pixels}``."""

    def run(slide, tiling=TILING):
        folder = tmp_path / "tiles"
        for old in folder.glob("*"):
            old.unlink()
        folder.mkdir(exist_ok=True)
        write_tiles(folder, slide=slide, tiling=tiling)
        return {path.name: np.asarray(Image.open(path)) for path in sorted(folder.iterdir())}

    return run


@pytest.mark.parametrize("levels", [1, 3])
def test_tiles_lie_where_tissue_is(tmp_path, cut, levels):
    tiles = cut(write_slide(tmp_path / "a.svs", quarters(), levels=levels))
    red, violet = ["r0000c0000", "r0000c0001", "r0001c0000", "r0001c0001"], ["r0002c0003", "r0002c0004"]
    assert sorted(tiles) == [f"{name}.png" for name in [*red, *violet, "r0003c0003", "r0003c0004"]]
    assert all(tile.shape == (64, 64, 3) for tile in tiles.values())
    assert (tiles["r0000c0001.png"] == RED).all() and (tiles["r0003c0003.png"] == VIOLET).all()


def test_a_tile_is_the_mean_of_the_pixels_that_it_covers(tmp_path, cut):
    """A ramp along x at twice the resolution of the tiles; the wider kernel of the resampling keeps a ramp as it is."""
    picture = np.empty((128, 256, 3), np.uint8)
    picture[...] = np.arange(256, dtype=np.uint8)[None, :, None]
    picture[..., 1] = 0
    tiles = cut(write_slide(tmp_path / "a.svs", picture, levels=1), replace(TILING, least_tissue=0))
    expected = 2 * np.arange(128) + 0.5
    inner = slice(4, -4)
    shown = np.concatenate([tiles["r0000c0000.png"], tiles["r0000c0001.png"]], axis=1)
    assert np.abs(shown[30, :64, 0][inner] - expected[:64][inner]).max() <= 1
    assert np.abs(shown[30, 64:, 0][inner] - expected[64:][inner]).max() <= 1


def test_a_disc_stays_round_and_keeps_its_size(tmp_path, cut):
    """Radius 40 pixels of 0.25 um; tiles of 0.4 um show it with radius 25."""
    picture, _ = disc((256, 256), radius=40, centre=(102, 102))
    slide = write_slide(tmp_path / "a.svs", picture, levels=1)
    tiles = cut(slide, replace(TILING, size=128, microns_per_pixel=0.4, least_tissue=0.05))
    height, width = extent(tiles["r0000c0000.png"][..., 2] < 150)
    assert abs(height - 51) <= 1 and abs(width - 51) <= 1


def test_at_most_so_many_tiles_drawn_by_the_seed(tmp_path, cut):
    slide = write_slide(tmp_path / "a.svs", quarters())
    few = replace(TILING, at_most=3)
    drawn = {seed: sorted(cut(slide, replace(few, seed=seed))) for seed in range(4)}
    assert all(len(names) == 3 for names in drawn.values()) and len({*map(tuple, drawn.values())}) > 1
    assert sorted(cut(slide, replace(few, seed=2))) == drawn[2]


def test_draw_takes_each_name_about_as_often_as_another():
    counts = np.zeros(10)
    for seed in range(2000):
        counts[[int(name) for name in draw(map(str, range(10)), 3, seed=seed)]] += 1
    assert abs(counts - 600).max() < 100 and draw(["b", "a"], 5) == ["a", "b"]


def test_jpeg_keeps_colours(tmp_path, cut):
    tiles = cut(write_slide(tmp_path / "a.svs", quarters()), replace(TILING, picture="jpeg"))
    assert len(tiles) == 8 and np.abs(tiles["r0000c0000.jpg"].astype(int) - RED).max() <= 3


def test_resolution_from_the_header_or_from_the_setting(tmp_path, cut):
    without = write_slide(tmp_path / "a.svs", quarters(), spacing=None)
    odd = write_slide(tmp_path / "b.svs", quarters(), spacing=25.0)
    for slide in (without, odd):
        with pytest.raises(InputError, match=r"\.svs: its header does not say how large a pixel is"):
            cut(slide)
        assert len(cut(slide, replace(TILING, slide_microns_per_pixel=0.25))) == 8
    coarse = write_slide(tmp_path / "c.svs", quarters(), spacing=0.6)
    with pytest.raises(InputError, match=r"scanned at 0\.6 um per pixel, coarser than the 0\.5 um"):
        cut(coarse)


def test_slides_without_tissue_and_smaller_than_a_tile(tmp_path, cut):
    blank = write_slide(tmp_path / "a.svs", np.full((256, 256, 3), WHITE, np.uint8))
    with pytest.raises(InputError, match=r"none of its 4 tiles is tissue to 50% \(least_tissue\)"):
        cut(blank)
    small = write_slide(tmp_path / "b.svs", np.full((100, 100, 3), RED, np.uint8), levels=1)
    with pytest.raises(InputError, match="none of its 0 tiles"):
        cut(small)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_broken_slide_is_named_and_not_quoted(tmp_path, cut, share):
    slide = write_slide(tmp_path / "a.svs", quarters())
    cut_short(slide, int(slide.stat().st_size * share))
    with pytest.raises(InputError, match=r"a\.svs: (the file is empty|cannot be read, it is truncated)"):
        cut(slide)
    with pytest.raises(InputError, match="no such file"):
        cut(tmp_path / "b.svs")


def test_what_was_not_scanned_is_white(tmp_path, cut, monkeypatch):
    """Slides of some makers have transparent regions; they come as black of no opacity."""
    from monai.data.wsi_reader import OpenSlideWSIReader

    def half_empty(self, wsi, location, size, level, dtype, mode):
        values = np.zeros((*size, 4), np.uint8)
        values[:, : size[1] // 2] = (*RED, 255)
        return values

    slide = write_slide(tmp_path / "a.svs", np.full((128, 128, 3), WHITE, np.uint8), levels=1)
    monkeypatch.setattr(OpenSlideWSIReader, "_get_patch", half_empty)
    tile = cut(slide, replace(TILING, least_tissue=0.4))["r0000c0000.png"]
    assert tile[5, 5].tolist() == list(RED) and tile[5, -5].tolist() == [255, 255, 255]


def test_tissue_is_neither_glass_nor_pen_nor_black():
    colours = {WHITE: False, RED: True, VIOLET: True, (30, 20, 10): False, (40, 160, 60): False, (40, 60, 200): False}
    assert is_tissue(np.array([*colours], np.uint8)).tolist() == [*colours.values()]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 4}, "size: must be a whole number from 8, got 4"),
        ({"at_most": 0}, "at_most: must be a whole number from 1, got 0"),
        ({"microns_per_pixel": 40}, "microns_per_pixel: must be from 0.05 to 4.0, got 40"),
        ({"least_tissue": 1.5}, "least_tissue: must be from 0 to 1, got 1.5"),
        ({"slide_microns_per_pixel": 0}, "slide_microns_per_pixel: must be null, or from 0.05 to 4.0, got 0"),
        ({"picture": "gif"}, "picture: must be one of jpeg, png, got 'gif'"),
        ({"at_most": True}, "at_most: must be a whole number from 1, got True"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(InputError, match=message):
        Tiling(**settings)


def test_without_openslide_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "openslide", None)
    with pytest.raises(InputError, match=r"pip install 'medcoss-components\[datasets\]'"):
        require_openslide()


def test_large_slides_are_read_in_parts(tmp_path, cut, monkeypatch):
    """No region that is read at once has more pixels than the blocks of the coarse view."""
    from monai.data.wsi_reader import OpenSlideWSIReader

    sizes, read = [], OpenSlideWSIReader._get_patch

    def watch(self, wsi, location, size, level, dtype, mode):
        sizes.append(size)
        return read(self, wsi, location=location, size=size, level=level, dtype=dtype, mode=mode)

    monkeypatch.setattr(OpenSlideWSIReader, "_get_patch", watch)
    slide = write_slide(tmp_path / "a.svs", np.full((1536, 1280, 3), RED, np.uint8), levels=5)
    assert len(cut(slide, replace(TILING, size=16))) == 100
    assert max(max(size) for size in sizes) <= slides.BLOCK * 32 and len(sizes) == 100 + 6 * 5
