"""What a CPU leaves out changes no result: against the plain blocks, in the same order."""

from __future__ import annotations

import pytest
import torch

from medcoss_components.networks.blocks import attention_mask, branch_weights
from medcoss_components.networks.encoder import Encoder
from medcoss_components.networks.packing import Packing

PADDING = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    network = Encoder(width=8, depth=3, heads=2, mlp_width=12, layer_scale=0.5, stochastic_depth=0.4)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network.train()


def plainly(network, tokens, padding, causal, noise):
    """Every block on every token of every sample."""
    mask, weights = attention_mask(padding, causal), branch_weights(noise, network.stochastic_depth)
    for number, block in enumerate(network.blocks):
        tokens = block(tokens, mask, causal, weights[:, 2 * number : 2 * number + 2])
    return tokens


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padding", [PADDING, None])
@pytest.mark.parametrize("seed", range(4))
def test_features_and_gradients(encoder, padding, causal, seed):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(4, 5, 8, generator=generator)
    noise = torch.rand(4, 6, generator=generator)
    real = torch.ones(4, 5, 1) if padding is None else padding.unsqueeze(-1).float()
    expected = plainly(encoder, tokens, padding, causal, noise) * real
    expected.square().sum().backward()
    gradients = [parameter.grad.clone() for parameter in encoder.parameters()]
    encoder.zero_grad()
    packed = encoder(tokens, padding_mask=padding, causal=causal, depth_noise=noise, padding_features=False)
    (packed * real).square().sum().backward()
    torch.testing.assert_close(packed * real, expected)
    for parameter, gradient in zip(encoder.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5)
    assert padding is None or (packed[~padding] == 0).all()


@pytest.mark.parametrize("noise", [torch.zeros(4, 6), torch.ones(4, 6)])
def test_all_or_no_branch_dropped(encoder, noise):
    tokens = torch.randn(4, 5, 8)
    packed = encoder(tokens, padding_mask=PADDING, depth_noise=noise, padding_features=False)
    expected = plainly(encoder, tokens, PADDING, False, noise) * PADDING.unsqueeze(-1)
    torch.testing.assert_close(packed, expected)


def test_padding_is_kept_where_somebody_reads_it(encoder):
    tokens = torch.randn(4, 5, 8)
    encoder.eval()
    kept = encoder(tokens, padding_mask=PADDING)
    left_out = encoder(tokens, padding_mask=PADDING, padding_features=False)
    torch.testing.assert_close(kept[PADDING], left_out[PADDING])
    assert (kept[~PADDING] != 0).any() and (left_out[~PADDING] == 0).all()


def test_rows_and_back():
    tokens = torch.arange(20.0).view(4, 5, 1) + 1
    packing = Packing(4, 5, None, False, PADDING)
    rows = packing.pack(tokens)
    assert rows.flatten().tolist() == [1, 2, 3, 6, 11, 12, 13, 14, 15, 16, 17]
    torch.testing.assert_close(packing.unpack(rows), tokens * PADDING.unsqueeze(-1))
    part, places = packing.part(torch.tensor([0, 3]))
    assert rows[places].flatten().tolist() == [1, 2, 3, 16, 17] and part.batch == 2
    torch.testing.assert_close(part.pack(tokens[[0, 3]]), rows[places])


@pytest.mark.parametrize("padding", [PADDING, None])
def test_attention_in_bfloat16_is_near_float32(encoder, padding):
    tokens = torch.randn(4, 5, 8)
    encoder.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rounded = encoder(tokens, padding_mask=padding)
    with torch.no_grad():
        exact = encoder(tokens, padding_mask=padding)
    scale = exact.abs().max()
    assert (rounded.float() - exact).abs().max() < 0.03 * scale


def test_a_branch_that_all_samples_drop_has_gradients_of_zero(encoder):
    packed = encoder(torch.randn(4, 5, 8), depth_noise=torch.zeros(4, 6))
    packed.sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in encoder.parameters())
