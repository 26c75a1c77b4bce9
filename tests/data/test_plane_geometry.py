"""Boxes go where the picture goes: against painted rectangles that are prepared like any picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medcoss_components.data.modalities import get_modality
from medcoss_components.data.plane_geometry import PlaneGeometry, plane_geometry
from medcoss_components.data.preparation import image_samples, resolve_preparation
from medcoss_components.data.synthetic_detection import tight_box
from medcoss_components.errors import InputError

XRAY = get_modality("xray", input_shape=(3, 48, 64))


def settings(fit):
    return resolve_preparation(XRAY, {}, {"fit": fit, "percentiles": [0, 100]})


def painted(shape, box):
    left, top, right, bottom = box
    picture = np.zeros(shape, np.uint8)
    picture[top:bottom, left:right] = 200
    return picture


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("spacing", [None, (0.5, 1.0), (2.0, 1.0)])
@pytest.mark.parametrize("shape", [(96, 128), (192, 100), (31, 97), (48, 64)])
def test_a_painted_rectangle_is_found_in_the_prepared_picture(fit, spacing, shape):
    height, width = shape
    box = [round(width * 0.4), round(height * 0.45), round(width * 0.6), round(height * 0.65)]
    (sample,) = image_samples(painted(shape, box), spacing, modality=XRAY, settings=settings(fit))
    geometry = plane_geometry(shape, spacing, size=(48, 64), settings=settings(fit))
    moved = geometry.forward(np.array([box], float))
    found = tight_box(sample[0] > 100)
    np.testing.assert_allclose(moved[0], found, atol=1.01)  # half a value at the edge may fall to either side
    area = np.prod(moved[0, 2:] - moved[0, :2])
    assert sample[0].sum() / 255 == pytest.approx(area, rel=0.02)  # pixels at the edges count by their share


def test_by_hand():
    """100 x 200 halves to 25 x 50 in 50 x 50 with 12 rows above; covered, it is 50 x 100 with 25 columns cut."""
    pad = plane_geometry((100, 200), None, size=(50, 50), settings={"fit": "pad"})
    assert pad.fitted_size == (25, 50) and pad.scale == (0.25, 0.25) and pad.offset == (12, 0)
    assert pad.forward(np.array([[40.0, 20.0, 80.0, 60.0]])).tolist() == [[10.0, 17.0, 20.0, 27.0]]
    crop = plane_geometry((100, 200), None, size=(50, 50), settings={"fit": "crop"})
    assert crop.fitted_size == (50, 100) and crop.offset == (0, -25)
    boxes = np.array([[40.0, 20.0, 80.0, 60.0], [0.0, 0.0, 20.0, 10.0]])
    assert crop.forward(boxes).tolist() == [[0.0, 10.0, 15.0, 30.0], [0.0, 0.0, 0.0, 5.0]]
    assert crop.forward(boxes, clip=False).tolist() == [[-5.0, 10.0, 15.0, 30.0], [-25.0, 0.0, -15.0, 5.0]]


def test_odd_numbers_are_cut_and_filled_as_the_picture_is():
    geometry = PlaneGeometry(source_size=(9, 4), fitted_size=(9, 4), size=(4, 9))
    assert geometry.offset == (-2, 2)  # 5 rows too many: 2 are cut above; 5 columns missing: 2 come before


@pytest.mark.parametrize("fit", ["pad", "stretch", "crop"])
def test_there_and_back(fit):
    geometry = plane_geometry((120, 90), (0.7, 1.1), size=(48, 64), settings={"fit": fit})
    boxes = torch.tensor([[30.0, 50.0, 60.0, 70.0], [40.0, 55.0, 41.0, 56.0]])
    back = geometry.restore(geometry.forward(boxes))
    torch.testing.assert_close(back, boxes)
    assert isinstance(geometry.restore(boxes.double().numpy()), np.ndarray)


def test_found_boxes_end_at_the_edges_of_the_source():
    geometry = PlaneGeometry(source_size=(10, 20), fitted_size=(10, 20), size=(30, 40))
    whole = torch.tensor([[0.0, 0.0, 40.0, 30.0]])
    assert geometry.restore(whole).tolist() == [[0.0, 0.0, 20.0, 10.0]] and whole[0, 2] == 40
    assert geometry.restore(torch.empty(0, 4)).shape == (0, 4)


def test_errors():
    with pytest.raises(InputError, match=r"must be \(n, 4\) .*shape \(2, 3\)"):
        PlaneGeometry(source_size=(9, 9), fitted_size=(9, 9), size=(9, 9)).forward(np.zeros((2, 3)))
