"""CaSSLe: one forward pass gives the pretext loss and the prediction of the previous encoder's features."""

from __future__ import annotations

import pytest
import torch

from medcoss_components.continual.strategies import get_strategy
from medcoss_components.continual.strategies.cassle import CaSSLe, PredictingNetwork, Predictor


@pytest.fixture
def started(tiny_network, tmp_path):
    """``started(network)``: the strategy after ``start`` and the module that a step calls."""

    def build(network):
        strategy = get_strategy("cassle")
        strategy.start(network, init_weights=tmp_path, seed=0)
        return strategy, strategy.whole_network(network)

    return build


MODALITIES = ["report", "xray", "ct"]


@pytest.mark.parametrize("modality", MODALITIES)
def test_loss_by_its_parts(modality, tiny_network, prepared, started):
    """The pretext loss of the network alone, and the features of a separate pass, predicted, against the teacher's."""
    network, batch = tiny_network().eval(), prepared(modality)
    strategy, whole = started(network)
    with torch.no_grad():
        network.encoder.blocks[1].attention.qkv.weight += 0.1  # the student has learned since
    term = strategy.current_loss(whole, batch)
    given = batch.pretext()
    total, count = network(given.inputs, reduction="sum", **given.arguments)
    assert torch.equal(term.total, total) and term.count == count and term.kind == "pretext"

    arguments = {name: value for name, value in given.arguments.items() if name not in ("task", "labels")}
    ours = strategy.companion(network.features(arguments["modality"], given.inputs, **_without(arguments, "modality")))
    theirs = strategy.teacher.features(arguments["modality"], given.inputs, **_without(arguments, "modality"))
    (previous,) = term.added
    squares, number = 0.0, 0
    padding = arguments.get("padding_mask", torch.ones(ours.shape[:2]))
    for row, token in padding.nonzero().tolist():
        squares += (ours[row, token] - theirs[row, token]).square().mean().item()
        number += 1
    assert (previous.kind, previous.count) == ("distillation", number)
    assert previous.total.item() == pytest.approx(squares, rel=1e-4)


def _without(arguments, name):
    return {key: value for key, value in arguments.items() if key != name}


def test_gradient_reaches_network_and_predictor_not_the_teacher(tiny_network, prepared, started):
    network = tiny_network()
    strategy, whole = started(network)
    strategy.current_loss(whole, prepared("xray")).added[0].total.backward()
    assert all(parameter.grad is not None for parameter in strategy.companion.parameters())
    assert network.encoder.blocks[0].attention.qkv.weight.grad.abs().sum() > 0
    assert network.decoder.mask_token.grad is None
    assert all(parameter.grad is None for parameter in strategy.teacher.parameters())


def test_predictor_learns_to_predict(tiny_network, prepared, started):
    strategy, whole = started(tiny_network())
    optimizer = torch.optim.Adam(strategy.companion.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        (previous,) = strategy.current_loss(whole, prepared("ct")).added
        (previous.total / previous.count).backward()
        optimizer.step()
        losses.append((previous.total / previous.count).item())
    assert losses[-1] < 0.5 * losses[0]


def test_teacher_sees_the_masked_input_in_eval_mode(tiny_network, prepared, started):
    """The teacher draws no branches: with a predictor of nothing, its own features are all that is left."""
    network = tiny_network(stochastic_depth=0.5).train()
    strategy, whole = started(network)
    last = strategy.companion.layers[-1]
    torch.nn.init.zeros_(last.weight)
    batch = prepared("xray")
    given = batch.pretext()
    (previous,) = strategy.current_loss(whole, batch).added
    noise = {"noise": given.arguments["noise"], "mask_ratio": 0.75}
    target = network.eval().features("xray", given.inputs, **noise)
    assert previous.total.item() == pytest.approx(target.square().mean(dim=-1).sum().item(), rel=1e-5)


def test_from_scratch_there_is_nothing_to_predict(tiny_network, prepared):
    network, strategy = tiny_network(), CaSSLe()
    strategy.start(network)
    assert strategy.companion is None and strategy.whole_network(network) is network
    assert strategy.current_loss(network, prepared("ct")).added == ()


def test_predictor_starts_from_the_seed(tiny_network, tmp_path):
    states = []
    for seed in (0, 0, 1):
        torch.rand(3)  # the global generator plays no part
        strategy = CaSSLe()
        strategy.start(tiny_network(), init_weights=tmp_path, seed=seed)
        states.append(strategy.companion.layers[0].weight)
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_shapes_and_names(tiny_network):
    predictor = Predictor(24, 96)
    assert predictor(torch.zeros(2, 5, 24)).shape == (2, 5, 24)
    whole = PredictingNetwork(tiny_network(), predictor)
    assert {name.split(".")[0] for name in whole.state_dict()} == {"model", "predictor"}


def test_reading_stops_when_the_pass_fails(tiny_network, prepared, started):
    network = tiny_network()
    _, whole = started(network)
    with pytest.raises(TypeError):
        whole(torch.zeros(1, 3, 8, 18), reduction="sum", modality="xray", task="pretext", unknown=1)
    assert not network.encoder._forward_hooks
