"""Numbers of a classifier: scikit-learn for the data set, the same formulas over weights for the bootstrap.

A metric that the cases do not define (for example the AUC of a class without cases) is NaN, never 0 or 1.
Means over classes are over the classes that have cases.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medcoss_components.errors import InputError
from medcoss_components.evaluation.calibration import BINS, confidence_bins, reliability

BY_CLASS = ("sensitivity", "specificity", "auc", "f1")
SCORES = ("accuracy", "balanced_accuracy", "auc", "f1", "sensitivity", "specificity", "ece")


def checked_predictions(
    probabilities: ArrayLike, targets: ArrayLike, classes: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Probabilities (N, K) as float64 and targets (N,) as int64.

    Raises:
        InputError: for shapes that do not fit, no case, fewer than two classes, probabilities that are not finite or do
            not add up to 1, and targets outside [0, K).
    """
    values, labels = np.asarray(probabilities, dtype=np.float64), np.asarray(targets)
    if len(classes) < 2 or len(set(classes)) != len(classes):
        raise InputError(f"classes must be two or more different names, received {list(classes)}.")
    if labels.ndim != 1 or len(labels) == 0 or values.shape != (len(labels), len(classes)):
        raise InputError(
            f"probabilities must be (N, {len(classes)}) and targets (N,) with N > 0, "
            f"received {values.shape} and {labels.shape}."
        )
    bad = ~(np.isfinite(values).all(axis=1) & (np.abs(values.sum(axis=1) - 1) < 1e-3))
    if bad.any():
        raise InputError(
            f"probabilities of {bad.sum()} of {len(bad)} cases are not finite or do not add up to 1, "
            f"the first is {values[bad][0].tolist()}. Apply softmax to finite logits."
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= len(classes):
        raise InputError(
            f"targets must be integers in [0, {len(classes)}), received {labels.dtype} with values from "
            f"{labels.min()} to {labels.max()}."
        )
    return values, labels.astype(np.int64)


def classification_metrics(probabilities: ArrayLike, targets: ArrayLike, classes: Sequence[str]) -> dict[str, float]:
    """Metrics of predictions on N cases; the predicted class is the most probable one, the first of equals.

    Args:
        probabilities: (N, K), rows sum to 1.
        targets: (N,) class indices in [0, K).
        classes: K names.

    Returns:
        ``accuracy``; ``balanced_accuracy`` (mean sensitivity); ``auc`` (two classes: of the second; more: mean of one
        class against the rest); ``f1`` (mean over classes); ``sensitivity`` and ``specificity`` (two classes: of the
        second; more: mean over classes); ``ece`` (expected calibration error, 15 bins, Guo et al. 2017); and
        ``sensitivity/<class>``, ``specificity/<class>``, ``auc/<class>``, ``f1/<class>``, each class against the rest.
        All in [0, 1]; NaN where the cases do not define the metric. Means leave out classes without cases.

    Raises:
        InputError: see :func:`checked_predictions`.
    """
    from sklearn.metrics import accuracy_score

    values, labels = checked_predictions(probabilities, targets, classes)
    by_class = [_one_class(values, labels, index) for index in range(len(classes))]
    present = [entry for index, entry in enumerate(by_class) if (labels == index).any()]
    mean = {name: float(_nan_mean(np.array([entry[name] for entry in present]))) for name in BY_CLASS}
    shown = by_class[1] if len(classes) == 2 else mean
    return {
        "accuracy": float(accuracy_score(labels, values.argmax(axis=1))),
        "balanced_accuracy": mean["sensitivity"],
        "auc": shown["auc"],
        "f1": mean["f1"],
        "sensitivity": shown["sensitivity"],
        "specificity": shown["specificity"],
        "ece": reliability(values, labels).error,
        **{f"{name}/{classes[index]}": entry[name] for name in BY_CLASS for index, entry in enumerate(by_class)},
    }


def _one_class(probabilities: NDArray[np.float64], targets: NDArray[np.int64], index: int) -> dict[str, float]:
    """Metrics of one class against the rest."""
    from sklearn.metrics import f1_score, recall_score, roc_auc_score

    truth, predicted = targets == index, probabilities.argmax(axis=1) == index
    both = truth.any() and not truth.all()
    return {
        "sensitivity": float(recall_score(truth, predicted)) if truth.any() else np.nan,
        "specificity": float(recall_score(~truth, ~predicted)) if not truth.all() else np.nan,
        "auc": float(roc_auc_score(truth, probabilities[:, index])) if both else np.nan,
        "f1": float(f1_score(truth, predicted)) if truth.any() or predicted.any() else np.nan,
    }


def _nan_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the last axis without NaN; NaN where nothing is left."""
    known = np.isfinite(values)
    return _ratio(np.where(known, values, 0).sum(axis=-1), known.sum(axis=-1))


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """part / whole, NaN where whole is 0."""
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=np.asarray(whole) > 0)


class WeightedClassification:
    """The metrics of :func:`classification_metrics` for many weightings of the same cases at once.

    Calling it with weights (r, N), how often each case counts, gives each metric as (r,). Weights of 1 give
    the numbers of :func:`classification_metrics`.
    """

    def __init__(self, probabilities: ArrayLike, targets: ArrayLike, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self.probabilities, self.targets = checked_predictions(probabilities, targets, classes)
        self.predicted = self.probabilities.argmax(axis=1)
        count = len(self.classes)
        self.confusion_columns = np.eye(count * count)[self.targets * count + self.predicted]
        self.gap_columns = self._gaps()

    def _gaps(self) -> NDArray[np.float64]:
        """(N, bins): correct minus confidence of each case, in the column of its bin."""
        confidence = self.probabilities.max(axis=1)
        gaps = np.zeros((len(confidence), BINS))
        gaps[np.arange(len(confidence)), confidence_bins(confidence)] = (self.predicted == self.targets) - confidence
        return gaps

    def __call__(self, weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        count = len(self.classes)
        confusion = (weights @ self.confusion_columns).reshape(-1, count, count)
        total = weights.sum(axis=1)
        by_class = self._by_class(confusion, weights)
        present = confusion.sum(axis=2) > 0
        mean = {name: _nan_mean(np.where(present, by_class[name], np.nan)) for name in BY_CLASS}
        shown = {name: by_class[name][:, 1] for name in BY_CLASS} if count == 2 else mean
        return {
            "accuracy": _ratio(np.trace(confusion, axis1=1, axis2=2), total),
            "balanced_accuracy": mean["sensitivity"],
            "auc": shown["auc"],
            "f1": mean["f1"],
            "sensitivity": shown["sensitivity"],
            "specificity": shown["specificity"],
            "ece": _ratio(np.abs(weights @ self.gap_columns).sum(axis=1), total),
            **{f"{key}/{name}": by_class[key][:, i] for key in BY_CLASS for i, name in enumerate(self.classes)},
        }

    def _by_class(self, confusion: NDArray[np.float64], weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Each metric of one class against the rest as (r, K), from confusion (r, K targets, K predictions)."""
        hits = np.diagonal(confusion, axis1=1, axis2=2)
        targets, predicted = confusion.sum(axis=2), confusion.sum(axis=1)
        others = confusion.sum(axis=(1, 2))[:, None] - targets
        return {
            "sensitivity": _ratio(hits, targets),
            "specificity": _ratio(others - (predicted - hits), others),
            "auc": np.stack([self._auc(weights, index) for index in range(len(self.classes))], axis=1),
            "f1": _ratio(2 * hits, targets + predicted),
        }

    def _auc(self, weights: NDArray[np.float64], index: int) -> NDArray[np.float64]:
        """Weighted share of (positive, negative) pairs in the right order, ties count half."""
        scores = self.probabilities[:, index]
        order = np.argsort(scores, kind="stable")
        starts = np.flatnonzero(np.diff(scores[order], prepend=-1.0))
        ordered, truth = weights[:, order], self.targets[order] == index
        positive = np.add.reduceat(ordered * truth, starts, axis=1)
        negative = np.add.reduceat(ordered * ~truth, starts, axis=1)
        pairs = (positive * (negative.cumsum(axis=1) - 0.5 * negative)).sum(axis=1)
        return _ratio(pairs, positive.sum(axis=1) * negative.sum(axis=1))
