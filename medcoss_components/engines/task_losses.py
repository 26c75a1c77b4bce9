"""Losses of the downstream tasks, as a sum and what it is a sum of, so that ranks are averaged exactly.

METHOD section 8: cross entropy for classification, Dice + binary cross entropy for segmentation. The loss of detection
is the network's own, see ``detection.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from medcoss_components.continual.strategies import LossTerm
from medcoss_components.errors import InputError

CLASSIFICATION = "classification"
SEGMENTATION = "segmentation"
DETECTION = "detection"


def task_of(dataset: Any) -> str:
    """Kind of the task that labelled data are for, as their attributes tell."""
    if hasattr(dataset, "regions"):
        return SEGMENTATION
    return DETECTION if hasattr(dataset, "categories") else CLASSIFICATION


def as_float32(outputs: Any) -> Any:
    """What a network gives, a tensor or lists of tensors by name, in float32: losses and scores need it."""
    if isinstance(outputs, Mapping):
        return {name: [level.float() for level in levels] for name, levels in outputs.items()}
    return outputs.float()


class ClassificationLoss:
    """Cross entropy; with class weights w the mean of w[target] * loss, divided by the sum of w[target].

    Args:
        weights: (K,) numbers, at least one above 0; None: all equal.

    >>> loss = ClassificationLoss()
    >>> term = loss(torch.zeros(3, 2), torch.tensor([0, 1, 1]))
    >>> round(float(term.total / term.count), 4)  # log 2
    0.6931
    """

    def __init__(self, weights: Sequence[float] | None = None) -> None:
        self.weights = None if weights is None else _relative(weights, "class_weights")

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor) -> LossTerm:
        """Loss of (B, K) logits against (B,) int64 targets."""
        losses = F.cross_entropy(logits.float(), targets, reduction="none")
        weights = self._of(targets, logits.shape[1])
        return LossTerm(CLASSIFICATION, (weights * losses).sum(), weights.sum())

    def _of(self, targets: torch.Tensor, classes: int) -> torch.Tensor:
        if self.weights is None:
            return torch.ones(len(targets), device=targets.device)
        self.check(classes)
        return self.weights.to(targets.device)[targets]

    def check(self, classes: int) -> None:
        """Raise InputError unless there are as many weights as classes, or none."""
        if self.weights is not None and len(self.weights) != classes:
            raise InputError(
                f"class_weights: needs one number for each of the {classes} classes, received {len(self.weights)}"
            )


class SegmentationLoss:
    """Dice loss + binary cross entropy, each region on its own (sigmoid), averaged over regions and samples.

    MONAI's ``DiceCELoss`` takes a softmax cross entropy over the channels when there are several; regions overlap, so
    the binary cross entropy is per channel here. Dice is MONAI's, per sample and region.

    Args:
        weights: (K,) numbers, one for each region, at least one above 0; None: all equal.
    """

    def __init__(self, weights: Sequence[float] | None = None) -> None:
        from monai.losses import DiceLoss

        self.dice = DiceLoss(sigmoid=True, reduction="none")
        self.weights = None if weights is None else _relative(weights, "region_weights")

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor) -> LossTerm:
        """Loss of (B, K, *spatial) logits against targets of the same shape, 0 or 1."""
        logits, targets = logits.float(), targets.float()
        dice = self.dice(logits, targets).flatten(1)
        cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").flatten(2).mean(dim=2)
        losses = self._mean_over_regions(dice + cross_entropy)
        return LossTerm(SEGMENTATION, losses.sum(), torch.tensor(float(len(losses)), device=losses.device))

    def _mean_over_regions(self, losses: torch.Tensor) -> torch.Tensor:
        """(B, K) -> (B,)."""
        if self.weights is None:
            return losses.mean(dim=1)
        if len(self.weights) != losses.shape[1]:
            raise InputError(
                f"region_weights: needs one number for each of the {losses.shape[1]} regions, "
                f"received {len(self.weights)}"
            )
        weights = self.weights.to(losses.device)
        return (losses * weights).sum(dim=1) / weights.sum()


def _relative(weights: Sequence[float], name: str) -> torch.Tensor:
    """Weights divided by the smallest one above 0: a weighted mean does not change, and no sum of them is below 1."""
    values = torch.tensor([float(weight) for weight in weights], dtype=torch.float32)
    if not bool(torch.isfinite(values).all()) or bool((values < 0).any()) or not bool((values > 0).any()):
        raise InputError(f"{name}: needs numbers of at least 0, one of them above 0, received {list(weights)}")
    return values / values[values > 0].min()


def balanced_weights(targets: Any, classes: int) -> list[float]:
    """Weight of each class: samples / (classes * samples of the class), as scikit-learn's "balanced".

    Args:
        targets: (N,) class numbers.
        classes: K.

    Raises:
        InputError: when a class has no sample.

    >>> balanced_weights([0, 0, 0, 1], 2)
    [0.6666666666666666, 2.0]
    """
    counts = torch.bincount(torch.as_tensor(targets).long(), minlength=classes)
    empty = (counts == 0).nonzero().flatten().tolist()
    if empty:
        raise InputError(f"class_weights 'balanced': class number {empty[0]} has no training sample; give numbers")
    return [len(targets) / (classes * int(count)) for count in counts]


def classification_loss(
    *, class_weights: Sequence[float] | str | None = None, dataset: Any = None
) -> ClassificationLoss:
    """The loss of a classification task.

    Args:
        class_weights: one number for each class, "balanced" (from ``dataset``'s targets), or None.
        dataset: training data with ``targets`` (N,) and ``classes``; needed for "balanced".

    Raises:
        InputError: for another word, when "balanced" has no data set, or for another number of weights than classes.
    """
    if not isinstance(class_weights, str):
        loss = ClassificationLoss(class_weights)
        if dataset is not None:
            loss.check(len(dataset.classes))
        return loss
    if class_weights != "balanced" or dataset is None:
        raise InputError(
            f"class_weights must be a list of numbers, 'balanced' (with dataset) or null, received {class_weights!r}"
        )
    return ClassificationLoss(balanced_weights(dataset.targets, len(dataset.classes)))


def segmentation_loss(
    *, region_weights: Sequence[float] | Mapping[str, float] | None = None, regions: Sequence[str] | None = None
) -> SegmentationLoss:
    """The loss of a segmentation task.

    Args:
        region_weights: one number for each region in order, or by name when ``regions`` are given; None: all equal.
        regions: names of the regions in order (a mapping of regions will do).

    Raises:
        InputError: when the names differ.
    """
    if not isinstance(region_weights, Mapping):
        return SegmentationLoss(region_weights)
    names = list(regions or ())
    if set(region_weights) != set(names):
        raise InputError(f"region_weights: names must be those of the regions {names}, received {list(region_weights)}")
    return SegmentationLoss([region_weights[name] for name in names])
