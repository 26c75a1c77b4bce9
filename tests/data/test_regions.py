import numpy as np
import pytest
import torch

from medcoss_components.data.regions import region_masks, resolve_regions
from medcoss_components.errors import InputError

REGIONS = {"liver": [1, 2], "tumour": 2}


def test_values_are_written_out():
    assert resolve_regions({"all": "any", **REGIONS, "both": (2, 1, 2)}) == {
        "all": tuple(range(1, 256)),
        "liver": (1, 2),
        "tumour": (2,),
        "both": (1, 2),
    }
    assert resolve_regions(resolve_regions(REGIONS)) == resolve_regions(REGIONS)


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ({}, "at least one name, got {}"),
        (["liver"], r"got \['liver'\]"),
        ({"a": []}, r"a must list mask values from 1 to 255, or be any; got \[\]"),
        ({"a": [0]}, r"got \[0\]"),
        ({"a": [256]}, r"got \[256\]"),
        ({"a": "every"}, "got 'every'"),
        ({"a": 1.5}, "got 1.5"),
    ],
)
def test_wrong_regions(regions, message):
    with pytest.raises(InputError, match=message):
        resolve_regions(regions)


def test_masks_against_a_loop_for_both_kinds():
    mask = np.random.default_rng(0).integers(0, 4, (2, 3, 4, 5)).astype(np.uint8)
    found = region_masks(mask, REGIONS, dimension=3)
    assert found.shape == (2, 2, 3, 4, 5)
    assert found.dtype == bool
    for index in np.ndindex(*mask.shape):
        expected = [mask[index] in (1, 2), mask[index] == 2]
        assert found[(index[0], slice(None), *index[1:])].tolist() == expected
    torch_found = region_masks(torch.from_numpy(mask), REGIONS, dimension=3)
    assert torch_found.dtype == torch.bool
    assert np.array_equal(torch_found.numpy(), found)


def test_without_batch_axis():
    mask = np.array([[0, 7], [2, 0]], np.uint8)
    assert region_masks(mask, {"any": "any"}, dimension=2).tolist() == [[[False, True], [True, False]]]
