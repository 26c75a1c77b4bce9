"""Layers that compute again in the backward pass, against the plain ones."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from medcoss_components.networks.lean import checkpoint_blocks, gelu_linear
from medcoss_components.networks.pretraining import PretrainingModel


def outcome(function, hidden, layer):
    """Output and gradients of a sum of squares."""
    hidden = hidden.clone().requires_grad_()
    layer.zero_grad()
    output = function(hidden, layer)
    output.float().square().sum().backward()
    return [output.detach(), hidden.grad, layer.weight.grad.clone(), layer.bias.grad.clone()]


@pytest.mark.parametrize("shape", [(5, 6), (2, 3, 6), (0, 6)])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_same_output_and_gradients(shape, precision):
    torch.manual_seed(0)
    layer, hidden = nn.Linear(6, 4), torch.randn(shape)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        expected = outcome(lambda inputs, linear: linear(F.gelu(inputs)), hidden, layer)
        received = outcome(gelu_linear, hidden, layer)
    tolerance = 1e-5 if precision == "float32" else 0.05
    for one, other in zip(received, expected, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_gradients_against_finite_differences():
    layer = nn.Linear(3, 2).double()
    inputs = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda hidden: gelu_linear(hidden, layer), (inputs,))


def test_less_is_kept():
    layer, hidden = nn.Linear(64, 8), torch.randn(10, 64, requires_grad=True)

    def kept(function):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: sizes.append(tensor.numel()) or tensor, lambda t: t
        ):
            function(hidden, layer)
        return sum(sizes)

    assert kept(lambda inputs, linear: linear(F.gelu(inputs))) - kept(gelu_linear) == hidden.numel()


def test_frozen_layers_and_no_gradients():
    layer, hidden = nn.Linear(6, 4).requires_grad_(False), torch.randn(5, 6, requires_grad=True)
    gelu_linear(hidden, layer).sum().backward()
    assert hidden.grad is not None and layer.weight.grad is None
    with torch.no_grad():
        torch.testing.assert_close(gelu_linear(hidden, layer), layer(F.gelu(hidden)))


@pytest.mark.parametrize("modality", ["xray", "report"])
def test_checkpointed_blocks_change_nothing_but_memory(modality):
    def gradients(wanted):
        torch.manual_seed(0)
        network = PretrainingModel(preset="demo", vocabulary_size=50, depth=2, decoder_depth=2).train()
        checkpoint_blocks(network, wanted)
        generator = torch.Generator().manual_seed(1)
        depth_noise = torch.rand(2, 4, generator=generator)
        if modality == "report":
            ids = torch.randint(5, 50, (2, 6), generator=generator)
            padding = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
            arguments = {"labels": ids, "padding_mask": padding}
        else:
            ids = torch.rand(2, 3, 32, 32, generator=generator)
            arguments = {"noise": torch.rand(2, 4, generator=generator)}
        loss = network.pretext_loss(modality, ids, depth_noise=depth_noise, **arguments)
        loss.backward()
        return loss.detach(), {name: p.grad for name, p in network.named_parameters() if p.grad is not None}

    loss, expected = gradients(False)
    same, received = gradients(True)
    assert torch.equal(loss, same) and expected.keys() == received.keys()
    for name, value in expected.items():
        torch.testing.assert_close(received[name], value, msg=name)
