"""Momentum contrast: numbers by hand, what moves and what does not."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from medcoss_components.data.modalities import get_modality
from medcoss_components.data.transforms import to_model_input
from medcoss_components.errors import InputError
from medcoss_components.networks.xray_backbones import xray_backbone
from medcoss_components.pretext.contrastive import (
    ContrastiveModel,
    MomentumContrast,
    PooledFeatures,
    feature_spread,
)


class Channels(nn.Module):
    """A backbone that gives the mean of each channel times a weight."""

    width, modality = 3, get_modality("xray", input_shape=(3, 4, 5))

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, images):
        return SimpleNamespace(pooled=images.mean(dim=(2, 3)) * self.scale)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return ContrastiveModel(backbone=Channels(), dimension=2)


@pytest.fixture
def resnet():
    torch.manual_seed(0)
    return ContrastiveModel(backbone=xray_backbone("resnet_demo", input_shape=(3, 32, 40), planes=(4, 4, 8, 8)))


def contrast(network, queue=None, **options):
    made = MomentumContrast(network, **({"queue_size": 3} | options))
    if queue is not None:
        made.queue.copy_(torch.tensor(queue))
    return made


class TestModel:
    def test_projects_on_the_unit_sphere(self, network):
        found = network(torch.rand(4, 3, 4, 5))
        assert found.shape == (4, 2) and found.dtype == torch.float32
        torch.testing.assert_close(found.norm(dim=1), torch.ones(4))

    @pytest.mark.parametrize(("mlp", "names"), [(True, {"head.0", "head.2"}), (False, {"head.0"})])
    def test_head_has_one_or_two_layers(self, mlp, names):
        state = ContrastiveModel(backbone=Channels(), dimension=5, mlp=mlp).state_dict()
        assert {name.rsplit(".", 1)[0] for name in state if name.startswith("head")} == names
        assert "backbone.scale" in state and state[f"{max(names)}.weight"].shape == (5, 3)

    def test_dimension_is_checked(self):
        with pytest.raises(InputError, match="dimension must be at least 1, received 0"):
            ContrastiveModel(backbone=Channels(), dimension=0)

    def test_groups_are_normalised_on_their_own(self, resnet):
        """Two groups give what two batches give; one group does not."""
        images = torch.rand(6, 3, 32, 40)
        with torch.no_grad():
            apart = torch.cat([resnet(images[:3]), resnet(images[3:])])
            torch.testing.assert_close(resnet(images, groups=2), apart)
            assert not torch.allclose(resnet(images), apart, atol=1e-3)

    def test_groups_do_not_matter_in_evaluation_or_without_batch_norm(self, resnet, network):
        images = torch.rand(6, 3, 32, 40)
        assert torch.equal(resnet.eval()(images, groups=3), resnet(images))
        calls = []
        network.backbone.register_forward_hook(lambda *_: calls.append(1))
        network.train()(images, groups=3)
        assert len(calls) == 1


class TestLoss:
    def test_two_samples_by_hand(self, network):
        """Queue (1, 0), (0, 1), (-1, 0), T = 1. Query (1, 0) with key (1, 0): similarities 1 | 1, 0, -1. Query (0, 1)
        with key (0.6, 0.8): 0.8 | 0, 1, 0."""
        made = contrast(network, [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], temperature=1.0)
        queries, keys = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.6, 0.8]])
        term, hits = made.terms(queries, keys)
        e = math.e
        first = math.log(e + e + 1 + 1 / e) - 1
        second = math.log(e**0.8 + 1 + e + 1) - 0.8
        assert float(term.total) == pytest.approx(first + second, rel=1e-6)
        assert term.kind == "contrastive" and float(term.count) == float(hits.count) == 2
        assert hits.kind == "accuracy" and float(hits.total) == 0  # the first ties, the second loses

    def test_temperature_divides(self, network):
        made = contrast(network, [[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]], temperature=0.5)
        logits = made.logits(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]]))
        assert logits.tolist() == [[2.0, 0.0, 0.0, 0.0]]
        term, hits = made.terms(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]]))
        assert float(term.total) == pytest.approx(math.log(math.e**2 + 3) - 2) and float(hits.total) == 1

    def test_no_gradient_into_keys_and_queue(self, network):
        made = contrast(network)
        images = torch.rand(4, 3, 4, 5)
        keys = made.keys(images)
        term, hits = made.terms(network(images), keys)
        term.total.backward()
        assert not keys.requires_grad and not made.queue.requires_grad and not hits.total.requires_grad
        assert all(parameter.grad is None and not parameter.requires_grad for parameter in made.key.parameters())
        assert all(parameter.grad is not None for parameter in network.parameters())


class TestKeys:
    def test_key_network_begins_as_a_copy(self, network):
        made, images = contrast(network), torch.rand(4, 3, 4, 5)
        assert torch.equal(made.keys(images), network(images))
        assert all(parameter.requires_grad for parameter in network.parameters())

    def test_moves_by_its_share_of_the_difference(self, network):
        """Key 1, query 3, m = 0.75: 1 + 0.25 * 2."""
        made = contrast(network, momentum=0.75)
        with torch.no_grad():
            network.backbone.scale.fill_(3.0)
        made.update(network)
        assert made.key.backbone.scale.tolist() == [1.5] * 3 and network.backbone.scale.tolist() == [3.0] * 3

    def test_batch_statistics_are_the_keys_own(self, resnet):
        made, images = contrast(resnet), torch.rand(4, 3, 32, 40)
        made.eval()
        running = {name: value.clone() for name, value in resnet.named_buffers()}
        found = made.keys(images)
        assert made.key.training
        with torch.no_grad():
            torch.testing.assert_close(found, resnet.train()(images))
        made.update(resnet)
        assert any(not torch.equal(value, running[name]) for name, value in made.key.named_buffers())


class TestQueue:
    def rows(self, *numbers):
        return torch.tensor([[float(number), 0.0] for number in numbers])

    def test_begins_with_random_directions_of_a_generator(self, network):
        first, again, other = (
            contrast(network, queue_size=50, generator=torch.Generator().manual_seed(seed)).queue for seed in (1, 1, 2)
        )
        torch.testing.assert_close(first.norm(dim=1), torch.ones(50))
        assert torch.equal(first, again) and not torch.equal(first, other)

    def test_the_oldest_goes_first(self, network):
        made = contrast(network, queue_size=5)
        made.enqueue(self.rows(1, 2, 3))
        made.enqueue(self.rows(4, 5, 6))
        assert made.queue[:, 0].tolist() == [6, 2, 3, 4, 5] and int(made.pointer) == 1

    def test_batch_as_large_as_the_queue(self, network):
        made = contrast(network, queue_size=3)
        made.enqueue(self.rows(1))
        made.enqueue(self.rows(2, 3, 4))
        assert made.queue[:, 0].tolist() == [4, 2, 3] and int(made.pointer) == 1

    def test_of_a_larger_batch_the_last_stay(self, network):
        made = contrast(network, queue_size=3)
        made.enqueue(self.rows(1, 2, 3, 4, 5, 6, 7))
        assert made.queue[:, 0].tolist() == [7, 5, 6] and int(made.pointer) == 1
        made.enqueue(self.rows(8))
        assert made.queue[:, 0].tolist() == [7, 8, 6]

    def test_state_travels(self, network):
        made, other = contrast(network), contrast(network, generator=torch.Generator().manual_seed(9))
        made.enqueue(self.rows(1))
        other.load_state_dict(made.state_dict())
        assert torch.equal(other.queue, made.queue) and int(other.pointer) == 1
        assert {"queue", "pointer", "key.backbone.scale"} <= made.state_dict().keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queue_size": 0}, "queue_size must be at least 1 key, received 0"),
        ({"momentum": 1.5}, r"momentum must be in \[0, 1\], received 1.5"),
        ({"temperature": 0.0}, "temperature must be above 0, received 0.0"),
    ],
)
def test_settings_are_checked(options, message, network):
    with pytest.raises(InputError, match=message):
        contrast(network, **options)


class TestSpread:
    def test_all_alike_is_collapse(self):
        assert float(feature_spread(torch.ones(5, 4) * 3)) == pytest.approx(0, abs=1e-6)

    def test_all_axes_both_ways_is_even(self):
        """Each dimension has mean 0 and variance 1 / D."""
        assert float(feature_spread(torch.cat([torch.eye(3), -torch.eye(3)]) * 7)) == pytest.approx(1)

    def test_length_does_not_count(self):
        vectors = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(feature_spread(vectors), feature_spread(vectors * torch.rand(20, 1)))


class TestPooledFeatures:
    raw = torch.randint(0, 256, (2, 1, 4, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)

    def embed(self, network, intensity=None):
        images = to_model_input(Channels.modality, self.raw)
        return PooledFeatures(network, intensity).embedding(None, images)

    def test_reads_images_as_they_were_trained(self, network):
        """The mean of each channel: in [0, 1], standardised, or of an affine map of stored values."""
        mean = self.raw.float().mean(dim=(1, 2, 3))[:, None].repeat(1, 3)
        torch.testing.assert_close(self.embed(network), mean / 255)
        standardised = self.embed(network, {"standardise": "image"})
        torch.testing.assert_close(standardised, torch.zeros(2, 3), atol=1e-5, rtol=0)
        torch.testing.assert_close(self.embed(network, {"subtract": 10.0, "divide": 2.0}), (mean - 10) / 2)
        assert PooledFeatures(network).sizes.width == 3

    def test_other_intensity_refused(self, network):
        with pytest.raises(InputError, match="intensity: 'gamma' is no key"):
            PooledFeatures(network, {"gamma": 2})
