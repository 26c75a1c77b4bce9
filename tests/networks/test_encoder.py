import pytest
import torch
import torch.nn.functional as F

from medcoss_components.errors import InputError
from medcoss_components.networks.blocks import Attention, Block, attention_mask, branch_weights
from medcoss_components.networks.encoder import Encoder
from medcoss_components.networks.initialisation import initialise


def encoder(**arguments):
    sizes = {"width": 12, "depth": 3, "heads": 3, "mlp_width": 20, "layer_scale": 0.5}
    part = Encoder(**(sizes | arguments))
    initialise(part, torch.Generator().manual_seed(0))
    return part


def attention_by_loops(part, tokens, readable):
    """Explicit softmax over the keys that ``readable(query, key)`` admits, head by head, for one sample (N, D)."""
    length, width = tokens.shape
    size = width // part.heads
    query, key, value = part.qkv(tokens).split(width, dim=1)
    mixed = torch.zeros_like(tokens)
    for head in range(part.heads):
        part_of = slice(head * size, (head + 1) * size)
        for i in range(length):
            keys = [j for j in range(length) if readable(i, j)]
            scores = torch.stack([query[i, part_of] @ key[j, part_of] for j in keys]) / size**0.5
            mixed[i, part_of] = sum(w * value[j, part_of] for w, j in zip(scores.softmax(0), keys, strict=True))
    return part.output(mixed)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_equals_loops_with_padding_and_causality(causal):
    torch.manual_seed(0)
    part = Attention(width=12, heads=3)
    tokens = torch.randn(2, 5, 12)
    padding = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 1, 0]])
    result = part(tokens, attention_mask(padding, causal), causal)
    for sample in range(2):
        expected = attention_by_loops(
            part, tokens[sample], lambda i, j, s=sample: bool(padding[s, j]) and (j <= i or not causal)
        )
        torch.testing.assert_close(result[sample], expected, atol=1e-6, rtol=1e-5)


def test_causal_without_padding_equals_causal_with_a_full_mask():
    part = encoder().eval()
    tokens = torch.randn(2, 5, 12)
    full = part(tokens, causal=True, padding_mask=torch.ones(2, 5))
    torch.testing.assert_close(part(tokens, causal=True), full, atol=1e-6, rtol=1e-5)


def test_padding_tokens_do_not_reach_real_tokens():
    part = encoder().eval()
    tokens, padding = torch.randn(1, 6, 12), torch.tensor([[1, 1, 1, 1, 0, 0]])
    changed = tokens.clone()
    changed[0, 4:] = 100.0
    first, second = part(tokens, padding_mask=padding), part(changed, padding_mask=padding)
    torch.testing.assert_close(first[0, :4], second[0, :4])
    torch.testing.assert_close(first[0, :4], part(tokens[:, :4])[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_a_sample_of_padding_alone_stays_finite(causal):
    part = encoder()
    tokens = torch.randn(2, 4, 12, requires_grad=True)
    padding = torch.tensor([[0, 0, 0, 0], [0, 1, 1, 0]])
    result = part(tokens, padding_mask=padding, causal=causal)
    result.sum().backward()
    assert result.isfinite().all()
    assert tokens.grad.isfinite().all()


def test_block_equals_its_equation():
    torch.manual_seed(0)
    part = Block(width=12, heads=3, mlp_width=20, eps=1e-3, layer_scale=0.3)
    initialise(part)
    tokens, weights = torch.randn(2, 4, 12), torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    result = part(tokens, weights=weights)
    for sample in range(2):
        x = tokens[sample : sample + 1]
        x = x + 0.3 * weights[sample, 0] * part.attention(F.layer_norm(x, (12,), eps=1e-3))
        hidden = part.mlp_in(F.layer_norm(x, (12,), eps=1e-3))
        exact_gelu = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        x = x + 0.3 * weights[sample, 1] * part.mlp_out(exact_gelu)
        torch.testing.assert_close(result[sample : sample + 1], x)


def test_block_without_scale_has_no_scale_parameters():
    part = Block(width=12, heads=3, mlp_width=20)
    assert not [name for name, _ in part.named_parameters() if "scale" in name]
    torch.testing.assert_close(part(torch.ones(1, 2, 12), weights=torch.zeros(1, 2)), torch.ones(1, 2, 12))


def test_branch_weights_are_zero_or_the_inverse_of_keeping():
    noise = torch.tensor([[0.0, 0.19, 0.2, 0.99]])
    torch.testing.assert_close(branch_weights(noise, 0.2), torch.tensor([[0.0, 0.0, 1.25, 1.25]]))


def test_stochastic_depth_of_a_row_depends_on_its_own_noise_alone():
    part = encoder(stochastic_depth=0.5).train()
    tokens, noise = torch.randn(4, 5, 12), torch.rand(4, 6)
    together = part(tokens, depth_noise=noise)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(part(tokens[order], depth_noise=noise[order]), together[order])
    for row in range(4):
        alone = part(tokens[row : row + 1], depth_noise=noise[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], atol=1e-6, rtol=1e-5)


def test_noise_above_the_rate_only_rescales_and_below_it_skips():
    part = encoder(stochastic_depth=0.5).train()
    tokens = torch.randn(2, 5, 12)
    torch.testing.assert_close(part(tokens, depth_noise=torch.zeros(2, 6)), tokens)
    half = encoder(stochastic_depth=0.5, layer_scale=0.25).train()
    expected = encoder(layer_scale=0.5).eval()(tokens)
    torch.testing.assert_close(half(tokens, depth_noise=torch.full((2, 6), 0.9)), expected)


def test_evaluation_mode_ignores_depth_noise():
    part = encoder(stochastic_depth=0.5).eval()
    tokens = torch.randn(2, 5, 12)
    assert torch.equal(part(tokens, depth_noise=torch.zeros(2, 6)), part(tokens))


def test_depth_noise_is_drawn_when_absent():
    part = encoder(stochastic_depth=0.5).train()
    tokens = torch.randn(2, 5, 12)
    torch.manual_seed(1)
    noise = torch.rand(2, 6)
    torch.manual_seed(1)
    assert torch.equal(part(tokens), part(tokens, depth_noise=noise))


def test_depth_noise_of_another_shape_is_refused():
    with pytest.raises(InputError, match=r"\(2, 5\) must be \(2, 6\)"):
        encoder().train()(torch.randn(2, 5, 12), depth_noise=torch.rand(2, 5))
