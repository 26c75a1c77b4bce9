import pytest
import torch

from medcoss_components.errors import InputError
from medcoss_components.networks.decoder import ImageDecoder, LearnedPositions, SincosPositions, TextHead
from medcoss_components.networks.initialisation import initialise
from medcoss_components.pretext.masking import order_patches


def decoder(positions="learned"):
    part = ImageDecoder(
        encoder_width=10,
        width=12,
        depth=2,
        heads=3,
        mlp_ratio=2,
        positions=positions,
        grids={2: (2, 3), 3: (2, 1, 3)},
        outputs={2: 7, 3: 5},
    )
    initialise(part, torch.Generator().manual_seed(0))
    for parameter in part.positions.parameters():
        torch.nn.init.normal_(parameter)
    return part


def decode_in_raster_order(part, dimension, encoded, order, grid):
    """As MAE describes it, sample by sample: tokens back to their places, add positions, run, drop the class token."""
    class_slot, table = part.positions[f"{dimension}d"](grid, encoded.device)
    predictions = []
    for sample in range(encoded.shape[0]):
        tokens = part.embed(encoded[sample])
        places = [part.mask_token[0, 0]] * order.index.shape[1]
        for rank, place in enumerate(order.visible[sample].tolist()):
            places[place] = tokens[1 + rank]
        full = torch.stack([tokens[0] + class_slot, *(token + table[i] for i, token in enumerate(places))])[None]
        for block in part.blocks:
            full = block(full)
        predictions.append(part.heads[f"{dimension}d"](part.norm(full))[0, 1:])
    return torch.stack(predictions)


@pytest.mark.parametrize("positions", ["learned", "sincos"])
@pytest.mark.parametrize(("dimension", "grid"), [(2, (2, 3)), (3, (2, 1, 3)), (2, (3, 4)), (3, (3, 2, 2))])
def test_decoder_equals_decoding_in_raster_order(positions, dimension, grid):
    part = decoder(positions)
    patches = torch.Size(grid).numel()
    order = order_patches(torch.rand(2, patches), 0.5)
    encoded = torch.randn(2, 1 + order.kept, 10)
    expected = decode_in_raster_order(part, dimension, encoded, order, grid)
    full = part(dimension, encoded, order, grid, removed_only=False)
    torch.testing.assert_close(order.to_raster(full), expected, atol=1e-5, rtol=1e-5)
    removed = part(dimension, encoded, order, grid, removed_only=True)
    torch.testing.assert_close(removed, full[:, order.kept :], atol=1e-6, rtol=1e-5)


def test_a_block_of_the_last_tokens_equals_the_whole_one():
    torch.manual_seed(0)
    block = decoder().blocks[0]
    tokens = torch.randn(2, 7, 12, requires_grad=True)
    upstream = torch.randn(2, 4, 12)
    whole = torch.autograd.grad((block(tokens)[:, 3:] * upstream).sum(), [tokens, *block.parameters()])
    part = torch.autograd.grad((block.of_last(tokens, 3) * upstream).sum(), [tokens, *block.parameters()])
    torch.testing.assert_close(block.of_last(tokens, 3), block(tokens)[:, 3:])
    torch.testing.assert_close(part, whole)


def test_sincos_tables_made_in_inference_mode_serve_training():
    part = decoder("sincos")
    order, encoded = order_patches(torch.rand(2, 6), 0.5), torch.randn(2, 4, 10)
    with torch.inference_mode():
        part(2, encoded, order, (2, 3), removed_only=True)
    part(2, encoded, order, (2, 3), removed_only=True).sum().backward()
    assert part.embed.weight.grad is not None


def test_sincos_positions_have_no_parameters_and_a_zero_class_slot():
    part = SincosPositions(width=12)
    class_slot, table = part((2, 3), torch.device("cpu"))
    assert not list(part.parameters()) and not part.state_dict()
    assert class_slot.eq(0).all() and table.shape == (6, 12)


def test_learned_positions_start_at_zero():
    part = LearnedPositions(width=12, grid=(2, 3))
    initialise(part)
    assert all(parameter.eq(0).all() for parameter in part.parameters())


def test_unknown_positions_are_refused():
    with pytest.raises(InputError, match="decoder_positions='rotary' must be one of sincos, learned"):
        decoder("rotary")


def test_text_head_equals_its_equation():
    torch.manual_seed(0)
    part = TextHead(width=6, vocabulary_size=11)
    torch.nn.init.normal_(part.offset)
    hidden = torch.randn(4, 6)
    x = part.dense(hidden + part.offset)
    x = x * 0.5 * (1 + torch.erf(x / 2**0.5))
    x = (x - x.mean(-1, keepdim=True)) / x.var(-1, unbiased=False, keepdim=True).sqrt()
    torch.testing.assert_close(part(hidden), x @ part.output.weight.T + part.output.bias, atol=1e-5, rtol=1e-5)
