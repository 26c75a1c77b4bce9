from itertools import product
from math import prod

import pytest
import torch

from medcoss_components.errors import InputError
from medcoss_components.pretext.losses import (
    denormalise_patches,
    grid_of,
    masked_patch_loss,
    masked_token_loss,
    normalise_patches,
    patch_statistics,
    patchify,
    unpatchify,
)

LAYOUTS = [((4, 6), (2, 3), 3), ((6, 4), (1, 5), 1), ((4, 6, 8), (2, 1, 3), 1), ((4, 6, 8), (1, 2, 2), 2)]


def patches_by_loops(images, patch):
    """Number by number: cells in raster order; inside a cell the spatial axes in raster order, then the channel."""
    grid = [size // side for size, side in zip(images.shape[2:], patch, strict=True)]
    result = torch.zeros(images.shape[0], prod(grid), prod(patch) * images.shape[1])
    for sample in range(images.shape[0]):
        for n, cell in enumerate(product(*map(range, grid))):
            values = []
            for inside in product(*map(range, patch)):
                voxel = tuple(c * side + i for c, side, i in zip(cell, patch, inside, strict=True))
                values += [images[(sample, channel, *voxel)] for channel in range(images.shape[1])]
            result[sample, n] = torch.stack(values)
    return result


@pytest.mark.parametrize(("patch", "grid", "channels"), LAYOUTS)
def test_patchify_equals_loops(patch, grid, channels):
    images = torch.randn(2, channels, *(side * count for side, count in zip(patch, grid, strict=True)))
    assert torch.equal(patchify(images, patch), patches_by_loops(images, patch))


@pytest.mark.parametrize(("patch", "grid", "channels"), LAYOUTS)
def test_unpatchify_undoes_patchify(patch, grid, channels):
    images = torch.randn(2, channels, *(side * count for side, count in zip(patch, grid, strict=True)))
    assert torch.equal(unpatchify(patchify(images, patch), patch, grid), images)


def test_patches_of_a_counted_image():
    image = torch.arange(8.0).reshape(1, 1, 2, 4)  # 0 1 2 3 / 4 5 6 7
    assert patchify(image, (2, 2)).tolist() == [[[0, 1, 4, 5], [2, 3, 6, 7]]]


@pytest.mark.parametrize("size", [(8, 20), (2, 6), (8,), (8, 12, 8)])
def test_sizes_that_are_no_multiple_are_refused(size):
    with pytest.raises(InputError, match=rf"\({size[0]}.*multiple of the patch \(4, 6\)"):
        grid_of(size, (4, 6))


def test_unpatchify_refuses_another_number_of_patches():
    with pytest.raises(InputError, match=r"5 patches do not fill the grid \(2, 3\)"):
        unpatchify(torch.zeros(1, 5, 24), (4, 6), (2, 3))


def test_normalised_patch_by_hand():
    patches = torch.tensor([[[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]])  # mean 2 and 5, unbiased variance 1 and 0
    expected = torch.tensor([[[-1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]])
    torch.testing.assert_close(normalise_patches(patches), expected, atol=1e-6, rtol=0)
    mean, deviation = patch_statistics(patches)
    torch.testing.assert_close(mean.flatten(), torch.tensor([2.0, 5.0]))
    torch.testing.assert_close(deviation.flatten(), torch.tensor([1.0, 1e-3]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
def test_normalised_patches_equal_their_formula(scale):
    patches = torch.rand(2, 5, 48) * scale - 1.0  # around CT's air; the floor divides nearly flat patches by 1e-3
    exact = patches.double()
    expected = (exact - exact.mean(-1, keepdim=True)) / (exact.var(-1, keepdim=True, unbiased=True) + 1e-6).sqrt()
    torch.testing.assert_close(normalise_patches(patches).double(), expected, atol=2e-4, rtol=1e-5)


def test_denormalise_undoes_normalise():
    patches = torch.rand(2, 5, 12)
    torch.testing.assert_close(denormalise_patches(normalise_patches(patches), patches), patches)


def test_patch_loss_by_hand():
    target = torch.tensor([[[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]])  # normalised: -1 0 1 and 1 0 -1
    predicted = torch.zeros(1, 2, 3)
    predicted[0, 1] = torch.tensor([1.0, 3.0, -1.0])
    torch.testing.assert_close(masked_patch_loss(predicted, target), torch.tensor((2 / 3 + 3) / 2))
    total, count = masked_patch_loss(predicted, target, "sum")
    torch.testing.assert_close(total, torch.tensor(2 / 3 + 3))
    assert count == 2 and count.dtype == torch.float32


def test_patch_loss_of_no_patches_is_zero():
    assert masked_patch_loss(torch.zeros(2, 0, 3), torch.zeros(2, 0, 3)) == 0.0


def test_half_precision_predictions_give_a_float32_loss():
    loss = masked_patch_loss(torch.zeros(1, 2, 3, dtype=torch.bfloat16), torch.randn(1, 2, 3))
    assert loss.dtype == torch.float32
    assert masked_token_loss(torch.zeros(2, 4, dtype=torch.bfloat16), torch.tensor([1, 2])).dtype == torch.float32


def test_token_loss_of_equal_logits_is_the_logarithm_of_the_vocabulary():
    logits, labels = torch.zeros(3, 8), torch.tensor([0, 5, 7])
    torch.testing.assert_close(masked_token_loss(logits, labels), torch.log(torch.tensor(8.0)))
    total, count = masked_token_loss(logits, labels, "sum")
    torch.testing.assert_close(total, 3 * torch.log(torch.tensor(8.0)))
    assert count == 3


def test_another_reduction_is_refused():
    with pytest.raises(InputError, match="reduction='max' must be 'mean' or 'sum'"):
        masked_token_loss(torch.zeros(1, 4), torch.tensor([1]), "max")
