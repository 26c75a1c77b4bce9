import pytest
import torch
import torch.nn.functional as F

from medcoss_components.errors import InputError
from medcoss_components.networks.embeddings import (
    ImageEmbedding,
    PatchEmbedding,
    TextEmbedding,
    interpolate_grid,
    sincos_table,
)
from medcoss_components.networks.initialisation import initialise
from medcoss_components.pretext.losses import patchify


def made(module):
    initialise(module, torch.Generator().manual_seed(0))
    return module


@pytest.mark.parametrize(("patch", "grid", "channels"), [((4, 6), (2, 3), 3), ((4, 6, 8), (2, 3, 1), 1)])
def test_patch_embedding_equals_convolution(patch, grid, channels):
    part = made(PatchEmbedding(width=10, channels=channels, patch=patch, grid=grid))
    torch.nn.init.normal_(part.bias)
    torch.nn.init.normal_(part.temporal)
    inputs = torch.randn(2, channels, *(side * count for side, count in zip(patch, grid, strict=True)))
    convolution = F.conv2d if len(patch) == 2 else F.conv3d
    expected = convolution(inputs, part.weight, part.bias, stride=patch).flatten(2).transpose(1, 2)
    expected = expected + part.position.reshape(-1, 10) + part.temporal
    torch.testing.assert_close(part(patchify(inputs, patch), grid), expected, atol=1e-5, rtol=0)


def test_patch_embedding_of_some_patches_equals_those_rows_of_all():
    part = made(PatchEmbedding(width=10, channels=3, patch=(4, 6), grid=(2, 3)))
    patches = patchify(torch.randn(2, 3, 8, 18), (4, 6))
    index = torch.tensor([[5, 0], [2, 3]])
    everything = part(patches, (2, 3))
    some = part(torch.stack([patches[0, [5, 0]], patches[1, [2, 3]]]), (2, 3), index)
    torch.testing.assert_close(some, torch.stack([everything[0, [5, 0]], everything[1, [2, 3]]]))


def test_image_embedding_shares_its_norm_and_puts_the_class_token_first():
    tokenizers = {
        2: PatchEmbedding(width=6, channels=3, patch=(2, 2), grid=(1, 1)),
        3: PatchEmbedding(width=6, channels=1, patch=(1, 2, 2), grid=(1, 1, 1)),
    }
    part = made(ImageEmbedding(width=6, tokenizers=tokenizers))
    torch.nn.init.constant_(part.norm.bias, 4.0)  # a normalised token of 6 numbers then has mean 4
    planar = part(2, torch.randn(2, 1, 12), (1, 1))
    volume = part(3, torch.randn(2, 1, 4), (1, 1, 1))
    for tokens in (planar, volume):
        assert tokens.shape == (2, 2, 6)
        torch.testing.assert_close(tokens[:, :1], part.class_token.expand(2, 1, 6))
        torch.testing.assert_close(tokens[:, 1].mean(dim=-1), torch.full((2,), 4.0))


@pytest.mark.parametrize("shape", [(2, 1, 8, 18), (2, 3, 8), (2, 3, 8, 18, 2)])
def test_patch_embedding_names_a_wrong_shape(shape):
    part = PatchEmbedding(width=6, channels=3, patch=(4, 6), grid=(2, 3))
    with pytest.raises(InputError, match=r"shape \(2, .*3, 2 spatial"):
        part.check(torch.zeros(shape))


def test_text_embedding_adds_word_position_and_type():
    part = made(TextEmbedding(width=4, vocabulary_size=9, positions=5))
    ids = torch.tensor([[3, 8, 3]])
    rows = [part.word.weight[word] + part.position[place] + part.token_type for place, word in enumerate((3, 8, 3))]
    expected = F.layer_norm(torch.stack(rows), (4,), eps=1e-5)
    torch.testing.assert_close(part(ids)[0], expected)


def test_text_longer_than_the_table_is_refused():
    part = TextEmbedding(width=4, vocabulary_size=9, positions=5)
    with pytest.raises(InputError, match=r"\(1, 6\).*at most 5"):
        part(torch.zeros(1, 6, dtype=torch.long))


def test_interpolation_keeps_a_grid_of_the_same_size():
    table = torch.randn(2, 3, 4)
    assert interpolate_grid(table, (2, 3)) is table


@pytest.mark.parametrize(("grid", "wanted"), [((14, 14), (7, 10)), ((1, 4, 6), (4, 8, 3))])
def test_interpolation_of_a_constant_table_is_constant(grid, wanted):
    table = torch.arange(5.0).expand(*grid, 5)
    resized = interpolate_grid(table, wanted)
    torch.testing.assert_close(resized, torch.arange(5.0).expand(*wanted, 5), atol=1e-5, rtol=0)


def test_interpolation_reads_the_middle_between_two_cells():
    table = torch.tensor([0.0, 4.0]).reshape(2, 1, 1, 1)
    resized = interpolate_grid(table, (4, 1, 1)).flatten()
    torch.testing.assert_close(resized, torch.tensor([0.0, 1.0, 3.0, 4.0]))  # cell centres at 1/4 and 3/4


def test_interpolation_keeps_axes_apart():
    rows = torch.arange(4.0).reshape(4, 1, 1).expand(4, 6, 1)
    resized = interpolate_grid(rows, (8, 3)).squeeze(-1)
    assert (resized.diff(dim=1).abs() < 1e-5).all()
    assert (resized.diff(dim=0) > 0).all()


def test_interpolation_carries_a_gradient():
    table = torch.randn(2, 3, 4, requires_grad=True)
    interpolate_grid(table, (4, 6)).sum().backward()
    assert table.grad.abs().sum() > 0


@pytest.mark.parametrize(("grid", "width"), [((2, 3), 8), ((2, 1, 3), 14)])
def test_sincos_table_equals_its_formula(grid, width):
    table = sincos_table(grid, width)
    half = width // (2 * len(grid))
    for raster, cell in enumerate(torch.cartesian_prod(*(torch.arange(size) for size in grid)).tolist()):
        expected = [0.0] * width
        for axis, place in enumerate(cell):
            for k in range(half):
                angle = torch.tensor(place * 10_000.0 ** (-k / half))
                expected[2 * half * axis + k] = float(angle.sin())
                expected[2 * half * axis + half + k] = float(angle.cos())
        torch.testing.assert_close(table[raster], torch.tensor(expected), atol=1e-6, rtol=0)


def test_sincos_rows_differ():
    table = sincos_table((4, 6, 8), 128)
    assert torch.cdist(table, table).fill_diagonal_(1.0).min() > 0.1
