"""Digitally reconstructed radiographs: attenuation, geometry by hand and by loops, body mask."""

import numpy as np
import pytest
import torch

from medcoss_components.data import drr
from medcoss_components.data.drr import View, project
from medcoss_components.data.synthetic import ellipse_mask
from medcoss_components.errors import InputError

FAR = 1e7  # millimetres: rays are parallel


def bead(shape, index):
    volume = torch.zeros(shape)
    volume[index] = 1.0
    return volume


def test_attenuation_of_air_water_and_bone():
    values = drr.attenuation_from_hounsfield(np.array([-2048, -1000, 0, 1000], np.int16), mu_water=0.02)
    np.testing.assert_allclose(values, [0, 0, 0.02, 0.04], rtol=1e-6)


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_parallel_projection_equals_loops(turn):
    volume = torch.from_numpy(np.random.default_rng(0).random((4, 6, 8)).astype(np.float32))
    square = np.zeros((4, 8, 8), np.float32)
    square[:, 1:7, :] = volume
    expected = np.zeros((4, 8))
    for z in range(4):
        for column in range(8):
            for depth in range(8):
                places = {0: (depth, column), 90: (column, depth), 180: (depth, 7 - column), 270: (7 - column, depth)}
                expected[3 - z, column] += 1.4 * square[(z, *places[turn])]
    found = project(volume, View(turn=turn), voxel=1.4, source_distance=FAR).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_water_block_has_the_length_of_its_ray():
    volume = torch.full((3, 50, 50), 0.02)
    line = project(volume, View(turn=0), voxel=2.0, source_distance=FAR)
    np.testing.assert_allclose(line[1, 10:40].numpy(), 0.02 * 100, rtol=1e-4)


def test_postero_anterior_view_shows_head_up_and_left_at_the_right():
    head_left = bead((8, 9, 9), (7, 4, 8))
    row, column = np.unravel_index(
        int(project(head_left, View(turn=0), voxel=1.0, source_distance=FAR).argmax()), (8, 9)
    )
    assert (row, column) == (0, 8)


def test_parts_near_the_source_look_larger():
    """PA: the source is behind the back. A bead 20 from the axis is drawn at 20 * D / (D - 30) or 20 * D / (D + 30)."""
    columns = {}
    for name, y in (("back", 80), ("front", 20)):
        line = project(bead((1, 101, 101), (0, y, 70)), View(turn=0), voxel=1.0, source_distance=150.0)[0].numpy()
        columns[name] = (line * np.arange(101)).sum() / line.sum() - 50
    assert columns["back"] == pytest.approx(20 * 150 / 120, abs=0.5)
    assert columns["front"] == pytest.approx(20 * 150 / 180, abs=0.5)


def test_oblique_rays_are_longer():
    _, step = drr.fan_beam_grid(size=3, turn=0.0, source_distance=1.0)
    np.testing.assert_allclose(step.numpy(), [np.sqrt(2), 1, np.sqrt(2)], rtol=1e-6)


def test_lean_moves_the_head_to_the_front():
    leant = drr._lean(bead((41, 41, 3), (40, 20, 1)), 90.0)
    z, y, x = np.unravel_index(int(leant.argmax()), leant.shape)
    assert (z, y, x) == (20, 0, 1)
    assert drr._lean(leant, 0.0) is leant


def test_isotropic_resampling_keeps_extent_and_mean():
    volume = np.random.default_rng(1).random((4, 6, 8)).astype(np.float32)
    resampled = drr.resample_isotropic(volume, (3.0, 1.0, 1.0), voxel=1.0)
    assert resampled.shape == (12, 6, 8)
    assert resampled.mean() == pytest.approx(volume.mean(), rel=0.02)


def test_body_mask_fills_lungs_and_drops_table_and_air():
    shape = (5, 60, 60)
    volume = np.full(shape, -1000, np.int16)
    body = ellipse_mask(shape, (2, 26, 30), (1e6, 18, 24))
    lung = ellipse_mask(shape, (2, 26, 30), (1e6, 6, 8))
    volume[body] = 40
    volume[lung] = -850
    volume[:, 50:52, 5:55] = 200
    mask = drr.body_mask(volume)
    assert mask[lung].all()
    assert not mask[:, 48:].any()
    assert (mask == body).mean() > 0.98


def test_body_mask_without_tissue_is_an_error():
    with pytest.raises(InputError, match="maximum -900"):
        drr.body_mask(np.full((2, 8, 8), -900, np.int16))


def test_crop_air_leaves_a_margin():
    line = np.zeros((20, 30), np.float32)
    line[8:10, 12:20] = 1.0
    assert drr.crop_air(line, margin=2).shape == (6, 12)
    assert drr.crop_air(np.zeros((4, 5), np.float32)).shape == (4, 5)


def test_views_have_different_names_and_turns():
    views = drr.view_grid(turns=50, leans=(0, -6, 6))
    assert len({view.name for view in views}) == 150
    assert len({view.turn for view in views}) == 150
    assert View(turn=-90, lean=6).name == "drr-turn270-lean+06"


def test_project_views_equals_single_projections():
    volume = np.full((6, 10, 12), -1000, np.int16)
    volume[1:5, 2:8, 3:9] = 0
    views = [View(turn=30, lean=5.0), View(turn=30), View(turn=200, lean=5.0)]
    found = list(drr.project_views(volume, (2.0, 1.0, 1.0), views, voxel=1.0))
    attenuation = torch.from_numpy(
        drr.resample_isotropic(drr.attenuation_from_hounsfield(volume), (2.0, 1.0, 1.0), voxel=1.0)
    )
    assert [view for view, _ in found] == views
    for view, line in found:
        np.testing.assert_allclose(line, drr.crop_air(project(attenuation, view, voxel=1.0).numpy()), atol=1e-6)


def test_grey_levels_rise_with_attenuation():
    grey = drr.grey_levels(np.linspace(0, 8, 50))
    assert grey.dtype == np.uint16
    assert grey[0] == 0
    assert (np.diff(grey.astype(int)) > 0).all()
