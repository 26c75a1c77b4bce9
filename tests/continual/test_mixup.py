"""Intra-modal mixup against loops and hand-made numbers."""

import pytest
import torch

from medcoss_components.continual.mixup import (
    ImageMixDraw,
    TextMixDraw,
    draw_image_mix,
    draw_partners,
    draw_text_mix,
    mix_images,
    mix_text,
)
from medcoss_components.errors import InputError


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def mix_by_loop(inputs, partners, weights):
    """Oracle: one voxel at a time."""
    mixed = torch.empty_like(inputs)
    flat, flat_mixed = inputs.reshape(len(inputs), -1), mixed.view(len(inputs), -1)
    for sample in range(len(inputs)):
        for place in range(flat.shape[1]):
            own, other = flat[sample, place].item(), flat[partners[sample], place].item()
            flat_mixed[sample, place] = weights[sample].item() * own + (1 - weights[sample].item()) * other
    return mixed


@pytest.mark.parametrize("shape", [(3, 4, 6), (1, 4, 6, 8)])
def test_images_equal_the_loop(shape):
    inputs = torch.randn(5, *shape, generator=seeded())
    partners = draw_partners(5, seeded(1))
    draw = draw_image_mix(5, seeded(2))
    expected = mix_by_loop(inputs, partners, draw.weight)
    torch.testing.assert_close(mix_images(inputs, inputs[partners], draw), expected, rtol=1e-6, atol=1e-6)


def test_images_by_hand():
    inputs = torch.tensor([8.0, 0.0]).reshape(2, 1, 1, 1)
    mixed = mix_images(inputs, inputs.flip(0), ImageMixDraw(weight=torch.tensor([0.25, 0.75])))
    assert mixed.flatten().tolist() == [2.0, 2.0]


def test_images_keep_dtype_and_inputs():
    inputs = torch.ones(2, 1, 2, 3, dtype=torch.bfloat16)
    before = inputs.clone()
    mixed = mix_images(inputs, inputs * 3, ImageMixDraw(weight=torch.tensor([0.0, 0.5])))
    assert mixed.dtype == torch.bfloat16 and torch.equal(inputs, before)
    assert mixed[:, 0, 0, 0].tolist() == [3.0, 2.0]


def test_image_weights_are_per_sample_and_uniform():
    weight = draw_image_mix(4000, seeded()).weight
    assert weight.shape == (4000,) and weight.dtype == torch.float32
    assert weight.min() >= 0 and weight.max() < 1
    assert weight.mean().item() == pytest.approx(0.5, abs=0.02)
    assert weight.var().item() == pytest.approx(1 / 12, abs=0.005)


def test_text_by_hand():
    ids = torch.tensor([[5, 6, 7, 0], [8, 9, 0, 0]])
    real = ids != 0
    draw = TextMixDraw(probability=0.5, mask=torch.tensor([[1, 0, 1, 0], [0, 1, 0, 1]]).bool())
    mixed, mixed_real = mix_text(ids, real, ids.flip(0), real.flip(0), draw)
    assert mixed.tolist() == [[5, 9, 7, 0], [5, 9, 7, 0]]
    assert mixed_real.tolist() == [[True, True, True, False], [True, True, True, False]]


def test_text_equals_the_loop_and_keeps_inputs():
    ids = torch.randint(1, 50, (6, 9), generator=seeded())
    real = (torch.arange(9)[None] < torch.tensor([9, 3, 5, 1, 7, 2])[:, None]).long()
    partners = draw_partners(6, seeded(3))
    draw = draw_text_mix(6, 9, seeded(4))
    before = ids.clone(), real.clone()
    mixed, mixed_real = mix_text(ids, real, ids[partners], real[partners], draw)
    for sample in range(6):
        for token in range(9):
            source = sample if draw.mask[sample, token] else int(partners[sample])
            assert mixed[sample, token] == ids[source, token]
            assert mixed_real[sample, token] == real[source, token]
    assert torch.equal(ids, before[0]) and torch.equal(real, before[1]) and mixed_real.dtype == real.dtype


def test_text_probability_is_one_number_for_the_batch():
    draws = [draw_text_mix(40, 50, seeded(seed)) for seed in range(30)]
    for draw in draws:
        assert draw.mask.float().mean().item() == pytest.approx(draw.probability, abs=0.06)
    assert max(draw.probability for draw in draws) - min(draw.probability for draw in draws) > 0.7


def test_rows_of_images_give_what_the_whole_batch_gives():
    index, draw = torch.tensor([3, 0]), draw_image_mix(4, seeded())
    inputs = torch.arange(4.0 * 7).reshape(4, 7)
    part = draw.rows(index)
    whole, piece = mix_images(inputs, inputs.flip(0), draw), mix_images(inputs[index], inputs.flip(0)[index], part)
    assert len(draw) == 4 and len(part) == 2
    assert torch.equal(whole[index], piece)


def test_rows_of_texts_give_what_the_whole_batch_gives():
    index, draw = torch.tensor([3, 0]), draw_text_mix(4, 7, seeded())
    inputs = torch.arange(4 * 7).reshape(4, 7)
    part = draw.rows(index)
    whole, _ = mix_text(inputs, inputs > 0, inputs.flip(0), inputs.flip(0) > 0, draw)
    piece, _ = mix_text(inputs[index], inputs[index] > 0, inputs.flip(0)[index], inputs.flip(0)[index] > 0, part)
    assert len(draw) == 4 and len(part) == 2 and part.probability == draw.probability
    assert torch.equal(whole[index], piece)


def test_partners_are_a_repeatable_permutation():
    partners = draw_partners(20, seeded(5))
    assert sorted(partners.tolist()) == list(range(20)) and partners.dtype == torch.int64
    assert torch.equal(partners, draw_partners(20, seeded(5)))
    assert not torch.equal(partners, draw_partners(20, seeded(6)))
    assert draw_partners(1, seeded()).tolist() == [0]


def test_wrong_sizes_are_named():
    image, weight = torch.zeros(2, 1, 4, 6), ImageMixDraw(weight=torch.zeros(3))
    with pytest.raises(InputError, match=r"partner_inputs: expected shape \(2, 1, 4, 6\), received \(2, 1, 6, 4\)"):
        mix_images(image, torch.zeros(2, 1, 6, 4), weight)
    with pytest.raises(InputError, match=r"draw.weight: expected shape \(2,\), received \(3,\)"):
        mix_images(image, image, weight)
    ids = torch.zeros(2, 5)
    with pytest.raises(InputError, match=r"draw.mask: expected shape \(2, 5\), received \(2, 4\)"):
        mix_text(ids, ids, ids, ids, TextMixDraw(probability=0.5, mask=torch.zeros(2, 4).bool()))
