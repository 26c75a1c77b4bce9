"""Windows in bounded memory give MONAI's numbers."""

from __future__ import annotations

import pytest
import torch
from monai.inferers import SlidingWindowInferer

from medcoss_components.errors import InputError
from medcoss_components.inference.windows import WindowPlan, predicted_planes

CASES = [((13, 17, 11), (4, 6, 8)), ((17, 11), (6, 6)), ((4, 6, 8), (4, 6, 8)), ((9, 6, 8), (8, 6, 8))]


def stand_in(inputs):
    """Two outputs that depend on the place in the window, so that every wrong weight shows."""
    ramp = torch.linspace(0, 1, inputs.shape[-1]) * torch.linspace(1, 2, inputs.shape[-2])[:, None]
    return torch.stack([inputs.sum(dim=1) * ramp, inputs[:, 0] + ramp], dim=1)


@pytest.mark.parametrize("mode", ["gaussian", "constant"])
@pytest.mark.parametrize(("shape", "roi"), CASES)
def test_equals_monai(shape, roi, mode):
    raw = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    inferer = SlidingWindowInferer(roi_size=roi, sw_batch_size=3, overlap=0.5, mode=mode)
    plan, counted = WindowPlan.of(inferer, len(shape)).covering(shape), []
    planes = list(predicted_planes(raw, stand_in, plan, advance=counted.append))
    starts = [first for first, _ in planes]
    assert starts == [sum(part.shape[1] for _, part in planes[:number]) for number in range(len(planes))]
    torch.testing.assert_close(torch.cat([part for _, part in planes], dim=1), inferer(raw[None], stand_in)[0])
    assert sum(counted) == len(plan.windows(shape)) and max(counted) <= 3


def test_overlap_per_axis_and_whole_axes():
    """Steps int(roi * (1 - overlap)); a window of -1 takes the whole axis."""
    inferer = SlidingWindowInferer(roi_size=(4, -1), overlap=(0.25, 0.0))
    plan = WindowPlan.of(inferer, 2).covering((10, 5))
    assert plan.roi == (4, 5)
    assert [(window[0].start, window[1].start) for window in plan.windows((10, 5))] == [(0, 0), (3, 0), (6, 0)]


def test_one_number_for_all_axes():
    assert WindowPlan.of(SlidingWindowInferer(roi_size=4), 3).roi == (4, 4, 4)


def test_wrong_axes():
    with pytest.raises(InputError, match=r"roi_size \(4, 4\) has 2 axes, the case 3"):
        WindowPlan.of(SlidingWindowInferer(roi_size=(4, 4)), 3)
