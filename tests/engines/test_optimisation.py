"""Learning rate by hand, weight-decay groups, mixed precision."""

from __future__ import annotations

import math

import pytest
import torch

from medcoss_components.engines.optimisation import (
    WarmupCosine,
    autocast,
    check_precision,
    pretraining_optimizer,
    scaled_learning_rate,
)
from medcoss_components.errors import InputError

CPU = torch.device("cpu")


class TestOptimizer:
    def test_published_settings(self, tiny_network):
        optimizer = pretraining_optimizer(network=tiny_network(), learning_rate=3e-4)
        assert isinstance(optimizer, torch.optim.AdamW)
        for group, decay in zip(optimizer.param_groups, (0.05, 0.0), strict=True):
            assert (group["lr"], group["betas"], group["weight_decay"]) == (3e-4, (0.9, 0.95), decay)

    def test_groups_hold_every_parameter_once(self, tiny_network):
        network = tiny_network()
        groups = pretraining_optimizer(network=network).param_groups
        held = [id(parameter) for group in groups for parameter in group["params"]]
        assert sorted(held) == sorted(id(parameter) for parameter in network.parameters())

    def test_one_dimensional_parameters_and_biases_do_not_decay(self, tiny_network):
        network = tiny_network()
        groups = pretraining_optimizer(network=network).param_groups
        decayed, plain = ({id(parameter) for parameter in group["params"]} for group in groups)
        vectors = ("bias", "norm.weight", "scale", "token_type", "temporal", "offset")
        for name, parameter in network.named_parameters():
            expected = plain if name.endswith(vectors) else decayed
            assert id(parameter) in expected, name

    def test_frozen_parameters_are_left_out(self):
        network = torch.nn.Linear(3, 2)
        network.weight.requires_grad_(False)
        decayed, plain = pretraining_optimizer(network=network).param_groups
        assert decayed["params"] == [] and plain["params"] == [network.bias]

    def test_betas_from_a_config_list(self):
        optimizer = pretraining_optimizer(network=torch.nn.Linear(3, 2), weight_decay=0.1, betas=[0.8, 0.9])
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
        assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)

    def test_one_step_by_hand(self):
        """First AdamW step: w * (1 - lr * decay) - lr * sign(g); a bias is not decayed."""
        network = torch.nn.Linear(1, 1)
        with torch.no_grad():
            network.weight.fill_(2.0), network.bias.fill_(2.0)
        optimizer = pretraining_optimizer(network=network, learning_rate=0.1, weight_decay=0.5)
        network(torch.tensor([[3.0]])).sum().backward()
        optimizer.step()
        assert network.weight.item() == pytest.approx(2 * (1 - 0.1 * 0.5) - 0.1, abs=1e-5)
        assert network.bias.item() == pytest.approx(2 - 0.1, abs=1e-5)


@pytest.mark.parametrize(
    ("batch", "steps", "expected"), [(512, 1, 3e-4), (256, 1, 1.5e-4), (256, 2, 3e-4), (32, 1, 1.875e-5)]
)
def test_scaled_learning_rate(batch, steps, expected):
    rate = scaled_learning_rate(base_learning_rate=1.5e-4, global_batch_size=batch, accumulation_steps=steps)
    assert rate == pytest.approx(expected)


class TestWarmupCosine:
    schedule = WarmupCosine(peak=0.3, warmup_iterations=4, total_iterations=12)

    @pytest.mark.parametrize(
        ("iteration", "expected"),
        [
            (0, 0.0),
            (1, 0.075),
            (3, 0.225),
            (4, 0.3),
            (6, 0.15 * (1 + math.sqrt(0.5))),
            (8, 0.15),
            (12, 0.0),
            (13, 0.0),
        ],
    )
    def test_by_hand(self, iteration, expected):
        assert self.schedule(iteration) == pytest.approx(expected, abs=1e-12)

    def test_without_warmup_starts_at_the_peak(self):
        assert WarmupCosine(peak=0.3, warmup_iterations=0, total_iterations=2)(0) == 0.3

    def test_warmup_alone_reaches_the_peak(self):
        assert WarmupCosine(peak=0.3, warmup_iterations=5, total_iterations=5)(5) == 0.3

    def test_warmup_longer_than_the_stage_refused(self):
        with pytest.raises(InputError, match=r"warm-up \(9 iterations\).*stage \(5 iterations\)"):
            WarmupCosine(peak=1.0, warmup_iterations=9, total_iterations=5)


class TestPrecision:
    @pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bf16", torch.bfloat16)])
    def test_autocast(self, precision, dtype):
        with autocast(check_precision(precision, CPU), CPU):
            assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == dtype

    def test_unknown_name_refused(self):
        with pytest.raises(InputError, match="float32, bf16, fp16, received 'half'"):
            check_precision("half", CPU)

    def test_fp16_needs_a_gpu(self):
        with pytest.raises(InputError, match="fp16 needs a GPU, the device is cpu"):
            check_precision("fp16", CPU)
        assert check_precision("fp16", torch.device("cuda")) == "fp16"
