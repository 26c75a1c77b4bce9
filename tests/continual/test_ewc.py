"""Elastic weight consolidation: importance and penalty by hand, and what is held."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medcoss_components.continual.strategies import get_strategy
from medcoss_components.continual.strategies.ewc import (
    EWC,
    IMPORTANCE_NAME,
    USED_BY_DIMENSION,
    Held,
    consolidation,
    normalised,
    squared_gradients,
)
from medcoss_components.engines.batches import ModelInputs
from medcoss_components.errors import InputError
from medcoss_components.networks.pretraining import ENCODER_PREFIXES
from medcoss_components.weights import save_weights


class Line(nn.Module):
    """Loss (w . x - y)^2 of one sample, and a head that is not carried."""

    def __init__(self, weights):
        super().__init__()
        self.encoder = nn.Linear(len(weights), 1, bias=False)
        self.text_embedding = nn.Linear(1, 1)
        self.text_head = nn.Linear(1, 1)
        self.encoder.weight = nn.Parameter(torch.tensor([weights]))

    def forward(self, inputs, *, target):
        return (self.encoder(inputs) - target).square().mean() + 0 * self.text_head.bias.sum()


SAMPLES = [
    ModelInputs(torch.tensor([[1.0, 2.0]]), {"target": 0.0}),
    ModelInputs(torch.tensor([[3.0, 0.0]]), {"target": 1.0}),
]


class TestImportance:
    def test_by_hand(self):
        """w = (1, 0): residuals 1 and 2, gradients 2 * 1 * (1, 2) = (2, 4) and 2 * 2 * (3, 0) = (12, 0)."""
        sums = squared_gradients(Line([1.0, 0.0]), SAMPLES)
        assert sums["encoder.weight"].tolist() == [[4 + 144, 16]]

    def test_only_what_is_carried_and_zero_where_nothing_is_read(self):
        sums = squared_gradients(Line([1.0, 0.0]), SAMPLES)
        assert set(sums) == {"encoder.weight", "text_embedding.weight", "text_embedding.bias"}
        assert sums["text_embedding.weight"].item() == 0

    def test_leaves_no_gradient_behind(self):
        model = Line([1.0, 0.0])
        squared_gradients(model, SAMPLES)
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_scaled_so_that_the_blocks_sum_to_one(self):
        scaled = normalised(
            {"encoder.a": torch.tensor([1.0, 2.0]), "encoder.b": torch.tensor(1.0), "text": torch.ones(2)}
        )
        assert scaled["encoder.a"].tolist() == [0.25, 0.5] and scaled["encoder.b"] == 0.25
        assert scaled["text"].tolist() == [0.25, 0.25]

    def test_all_zeros_stay_zeros(self):
        assert normalised({"encoder.a": torch.zeros(2)})["encoder.a"].tolist() == [0, 0]


def held(value, anchor, importance, name="encoder.a"):
    return Held(name, nn.Parameter(value), anchor, importance)


class TestPenalty:
    def test_by_hand(self):
        """2 * (3 - 1)^2 + 0 * (5 - 0)^2 + 1 * (1 - 2)^2 = 9."""
        entries = [
            held(torch.tensor([3.0, 5.0]), torch.tensor([1.0, 0.0]), torch.tensor([2.0, 0.0])),
            held(torch.tensor(1.0), torch.tensor(2.0), torch.tensor(1.0)),
        ]
        assert consolidation(entries).item() == 9

    def test_gradient_against_finite_differences(self):
        generator = torch.Generator().manual_seed(0)
        value, anchor, importance = (torch.rand(3, 2, dtype=torch.float64, generator=generator) for _ in range(3))

        def penalty(moved):
            return consolidation([Held("encoder.a", moved, anchor, importance)])

        assert torch.autograd.gradcheck(penalty, (value.requires_grad_(),))
        (gradient,) = torch.autograd.grad(penalty(value), value)
        step = torch.zeros_like(value)
        step[1, 1] = 1e-6
        difference = (penalty(value + step) - penalty(value - step)) / 2e-6
        assert gradient[1, 1].item() == pytest.approx(difference.item(), rel=1e-6)


@pytest.fixture
def start_folder(tmp_path, tiny_network):
    """A folder with an importance of 1 everywhere."""
    carried = {name: value for name, value in tiny_network().named_parameters() if name.startswith(ENCODER_PREFIXES)}
    save_weights(tmp_path / IMPORTANCE_NAME, {name: torch.ones_like(value) for name, value in carried.items()})
    return tmp_path


class TestStrategy:
    @pytest.mark.parametrize("modality", ["report", "xray", "ct"])
    def test_holds_exactly_what_a_batch_trains(self, modality, tiny_network, prepared):
        """Another parameter would get a gradient of 0 in place of none, and weight decay would move it."""
        network, batch = tiny_network(), prepared(modality)
        term = get_strategy("ewc").current_loss(network, batch)
        term.total.backward()
        trained = {name for name, value in network.named_parameters() if value.grad is not None}
        carried = {name for name in trained if name.startswith(ENCODER_PREFIXES)}
        names = {name for name, _ in network.named_parameters() if name.startswith(ENCODER_PREFIXES)}
        used = USED_BY_DIMENSION[batch.modality.dimension]
        assert carried == {name for name in names if name.startswith(used)}

    def test_penalty_is_half_the_weighted_squares(self, start_folder, tiny_network, prepared):
        network, strategy = tiny_network(), get_strategy("ewc", {"ewc_weight": 3.0})
        strategy.start(network, init_weights=start_folder)
        with torch.no_grad():
            network.encoder.blocks[0].attention.qkv.bias += 0.5
            network.text_embedding.norm.bias += 0.5  # not read by an X-ray
        count = network.encoder.blocks[0].attention.qkv.bias.numel()
        (penalty,) = strategy.current_loss(network, prepared("xray")).added
        assert (penalty.kind, penalty.count.item()) == ("penalty", 1)
        assert penalty.total.item() == pytest.approx(3 / 2 * count * 0.25, rel=1e-5)

    def test_pretext_is_that_of_sequential(self, start_folder, tiny_network, prepared):
        network, strategy = tiny_network(), get_strategy("ewc")
        strategy.start(network, init_weights=start_folder / "model.pt")
        term = strategy.current_loss(network, prepared("ct"))
        assert torch.equal(term.total, get_strategy("sequential").current_loss(network, prepared("ct")).total)
        assert term.added[0].total == 0  # nothing has moved yet

    def test_without_importance_it_says_so_and_holds_nothing(self, tmp_path, tiny_network, prepared, caplog):
        network, strategy = tiny_network(), get_strategy("ewc")
        strategy.start(network, init_weights=tmp_path)
        assert "no importance.safetensors stands beside these weights" in caplog.text
        assert strategy.current_loss(network, prepared("xray")).added == () and strategy.identity() == {}

    def test_from_scratch_nothing_is_said(self, tiny_network, caplog):
        get_strategy("ewc").start(tiny_network())
        assert caplog.text == ""

    def test_what_never_mattered_is_not_held(self, tmp_path, tiny_network):
        network = tiny_network()
        zeros = {"encoder.blocks.0.attention.qkv.bias": torch.zeros(72), "text_embedding.norm.bias": torch.ones(24)}
        save_weights(tmp_path / IMPORTANCE_NAME, zeros)
        strategy = EWC()
        strategy.start(network, init_weights=tmp_path)
        assert [entry.name for entry in strategy.held] == ["text_embedding.norm.bias"]
        assert len(strategy.identity()["importance"]) == 64

    @pytest.mark.parametrize("state", [{"encoder.gone": torch.ones(1)}, {"text_embedding.norm.bias": torch.ones(3)}])
    def test_importance_of_another_network_refused(self, state, tmp_path, tiny_network):
        save_weights(tmp_path / IMPORTANCE_NAME, state)
        with pytest.raises(InputError, match=f"{IMPORTANCE_NAME}: {next(iter(state))} is no parameter of this network"):
            EWC().start(tiny_network(), init_weights=tmp_path)

    @pytest.mark.parametrize("options", [{"ewc_weight": -1.0}, {"ewc_weight": float("inf")}, {"samples": 0}])
    def test_settings_outside_their_range_refused(self, options):
        name, value = next(iter(options.items()))
        with pytest.raises(InputError, match=f"{name} must be .*, received {value}"):
            EWC(**options)
