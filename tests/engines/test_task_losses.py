"""Losses of the tasks, against numbers derived by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from medcoss_components.engines.task_losses import (
    ClassificationLoss,
    SegmentationLoss,
    balanced_weights,
    classification_loss,
    segmentation_loss,
)
from medcoss_components.errors import InputError


def mean(term):
    return float(term.total / term.count)


def logits_of(probabilities):
    """(B, K) probabilities as logits."""
    return torch.tensor(probabilities).log()


class TestClassification:
    LOGITS = [[0.5, 0.5], [0.25, 0.75], [0.25, 0.75]]
    TARGETS = torch.tensor([0, 1, 0])  # losses log 2, log 4/3, log 4

    def test_mean_of_the_samples(self):
        term = ClassificationLoss()(logits_of(self.LOGITS), self.TARGETS)
        assert term.kind == "classification" and term.count == 3
        assert mean(term) == pytest.approx((math.log(2) + math.log(4 / 3) + math.log(4)) / 3, rel=1e-6)

    def test_weighted_mean_by_hand(self):
        """Weights 3, 1: (3 log 2 + log 4/3 + 3 log 4) / 7, as torch does it."""
        logits = logits_of(self.LOGITS)
        term = classification_loss(class_weights=[3, 1])(logits, self.TARGETS)
        by_hand = (3 * math.log(2) + math.log(4 / 3) + 3 * math.log(4)) / 7
        assert mean(term) == pytest.approx(by_hand, rel=1e-6)
        reference = torch.nn.CrossEntropyLoss(weight=torch.tensor([3.0, 1.0]))(logits, self.TARGETS)
        assert mean(term) == pytest.approx(float(reference), rel=1e-6)

    def test_scale_of_the_weights_does_not_matter(self):
        """The sum of weights of a batch never falls below 1, where the mean over ranks is cut."""
        logits = logits_of(self.LOGITS)
        small, large = (classification_loss(class_weights=weights) for weights in ([0.003, 0.001], [3, 1]))
        assert mean(small(logits, self.TARGETS)) == pytest.approx(mean(large(logits, self.TARGETS)), rel=1e-6)
        assert small(logits[1:2], self.TARGETS[1:2]).count == 1

    def test_class_of_weight_zero_is_left_out(self):
        term = classification_loss(class_weights=[0, 2])(logits_of(self.LOGITS), self.TARGETS)
        assert term.count == 1 and mean(term) == pytest.approx(math.log(4 / 3), rel=1e-6)

    def test_balanced_from_the_data_set(self):
        """Four samples, three of class 0: weights 4 / (2 * 3) and 4 / (2 * 1), that is 1 : 3."""
        dataset = SimpleNamespace(targets=torch.tensor([0, 0, 1, 0]).numpy(), classes=("a", "b"))
        assert balanced_weights(dataset.targets, 2) == [2 / 3, 2.0]
        loss = classification_loss(class_weights="balanced", dataset=dataset)
        assert loss.weights.tolist() == [1.0, 3.0]

    def test_balanced_needs_every_class(self):
        with pytest.raises(InputError, match="class number 1 has no training sample"):
            balanced_weights([0, 2], 3)

    @pytest.mark.parametrize(("given", "dataset"), [("even", True), ("balanced", None)])
    def test_unknown_word_refused(self, given, dataset):
        with pytest.raises(InputError, match=f"received '{given}'"):
            classification_loss(class_weights=given, dataset=dataset)

    def test_number_of_weights_is_compared_before_training(self):
        dataset = SimpleNamespace(targets=[0, 1], classes=("a", "b", "c"))
        assert classification_loss(class_weights=[1, 2, 3], dataset=dataset).weights is not None
        with pytest.raises(InputError, match="each of the 3 classes, received 2"):
            classification_loss(class_weights=[1, 2], dataset=dataset)

    @pytest.mark.parametrize("weights", [[1, -2], [0, 0], [1, float("nan")]])
    def test_bad_weights_refused(self, weights):
        with pytest.raises(InputError, match="class_weights: needs numbers of at least 0"):
            ClassificationLoss(weights)

    def test_number_of_weights_must_fit(self):
        with pytest.raises(InputError, match="each of the 2 classes, received 3"):
            ClassificationLoss([1, 1, 1])(torch.zeros(1, 2), torch.tensor([0]))

    def test_half_precision_logits_give_float32(self):
        term = ClassificationLoss()(torch.zeros(1, 2, dtype=torch.bfloat16), torch.tensor([0]))
        assert term.total.dtype is torch.float32


class TestSegmentation:
    def loop(self, logits, targets, weights):
        """Dice and binary cross entropy by explicit loops over samples, regions and voxels."""
        losses = []
        for sample, masks in zip(logits.tolist(), targets.tolist(), strict=True):
            total = 0.0
            for channel, mask, weight in zip(sample, masks, weights, strict=True):
                pairs = [(1 / (1 + math.exp(-z)), t) for z, t in zip(channel, mask, strict=True)]
                overlap = sum(p * t for p, t in pairs)
                dice = 1 - (2 * overlap + 1e-5) / (sum(p for p, _ in pairs) + sum(t for _, t in pairs) + 1e-5)
                entropy = -sum(math.log(p) if t else math.log(1 - p) for p, t in pairs) / len(pairs)
                total += weight * (dice + entropy)
            losses.append(total / sum(weights))
        return sum(losses) / len(losses)

    @pytest.mark.parametrize("shape", [(4, 6), (2, 3, 4)])
    @pytest.mark.parametrize("weights", [None, [1.0, 3.0]])
    def test_equals_loops(self, shape, weights):
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(3, 2, *shape, generator=generator)
        targets = (torch.rand(3, 2, *shape, generator=generator) < 0.3).float()
        targets[1, 0] = 0  # a region without a voxel
        term = segmentation_loss(region_weights=weights)(logits, targets)
        expected = self.loop(logits.flatten(2), targets.flatten(2), weights or [1.0, 1.0])
        assert term.kind == "segmentation" and term.count == 3
        assert mean(term) == pytest.approx(expected, rel=1e-5)

    def test_perfect_masks_cost_nothing(self):
        targets = torch.tensor([[[[1.0, 0.0, 1.0]], [[0.0, 1.0, 1.0]]]])
        assert mean(SegmentationLoss()(targets * 80 - 40, targets)) == pytest.approx(0.0, abs=1e-5)

    def test_regions_do_not_compete(self):
        """The loss of a region does not depend on the logits of another, as a softmax would make it."""
        targets = torch.ones(1, 2, 3, 4)
        logits = torch.zeros(1, 2, 3, 4, requires_grad=True)
        loss = SegmentationLoss([1, 0])(logits, targets)
        loss.total.backward()
        assert logits.grad[0, 0].abs().min() > 0 and logits.grad[0, 1].abs().max() == 0

    def test_weights_by_name(self):
        loss = segmentation_loss(region_weights={"tumour": 4, "liver": 2}, regions={"liver": [1, 2], "tumour": 2})
        assert loss.weights.tolist() == [1.0, 2.0]

    def test_other_names_refused(self):
        with pytest.raises(InputError, match=r"\['liver'\], received \['lung'\]"):
            segmentation_loss(region_weights={"lung": 1}, regions=["liver"])

    def test_number_of_weights_must_fit(self):
        with pytest.raises(InputError, match="each of the 1 regions, received 2"):
            SegmentationLoss([1, 2])(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))
