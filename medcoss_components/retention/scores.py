"""Scores of frozen features: with labels (nearest neighbours, logistic regression) and without (CKA, neighbours kept).

All functions are pure: NumPy arrays in, numbers out. Features are (N, D), one row a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medcoss_components.errors import InputError

NEIGHBOURS = 20
OVERLAP_NEIGHBOURS = 10
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
ITERATIONS = 300  # of the solver; standardised features converge well before
CELLS = 8_000_000  # similarities held at once: 32 MB

Labelled = tuple[ArrayLike, ArrayLike]
"""Features (N, D) and labels (N,)."""


class LogisticScore(NamedTuple):
    """Accuracy on the test samples, and the inverse regularisation strength C that validation chose."""

    accuracy: float
    chosen_c: float


def knn_accuracy(
    features: ArrayLike,
    labels: ArrayLike,
    test_features: ArrayLike,
    test_labels: ArrayLike,
    *,
    k: int = NEIGHBOURS,
) -> float:
    """Accuracy of a vote of the ``k`` nearest samples by cosine similarity.

    The majority decides; among equally many votes the larger sum of similarities, then the class that sorts first.
    This is the k-NN test of frozen features of Z. Wu et al., Unsupervised feature learning via non-parametric instance
    discrimination, CVPR 2018, without its weights.

    Args:
        features: (N, D) float, the samples that vote.
        labels: (N,) their classes, integers or names.
        test_features: (M, D) float.
        test_labels: (M,) classes.
        k: votes, 1 .. N.

    Returns:
        share of the M samples whose class is found, in [0, 1].

    Raises:
        InputError: shapes that do not fit, values that are not finite, one class only, or fewer than ``k`` samples.

    >>> knn_accuracy([[1, 0], [2, 0], [0, 1]], ["a", "a", "b"], [[3, 1], [1, 3]], ["a", "b"], k=1)
    1.0
    """
    known, known_labels = _labelled("features", features, labels)
    tested, test_names = _labelled("test_features", test_features, test_labels)
    _check_width(known, tested, ("features", "test_features"))
    classes, targets = _classes(known_labels, "labels")
    if not 1 <= k <= len(known):
        raise InputError(f"k={k}: the number of neighbours must lie in 1 .. {len(known)}, the samples that vote.")
    known, tested = _unit(known), _unit(tested)
    predicted: NDArray[np.int64] = np.empty(len(tested), np.int64)
    for rows in _blocks(len(tested), len(known)):
        similar = tested[rows] @ known.T
        predicted[rows] = _vote(similar, targets, k=k, classes=len(classes))
    return float(np.mean(classes[predicted] == test_names))


def _vote(similar: NDArray[np.float32], targets: NDArray[np.int64], *, k: int, classes: int) -> NDArray[np.int64]:
    """(m, N) similarities to (m,) class numbers."""
    nearest = _nearest(similar, k)
    rows = np.arange(len(similar))[:, None]
    votes, sums = np.zeros((len(similar), classes)), np.zeros((len(similar), classes))
    np.add.at(votes, (rows, targets[nearest]), 1)
    np.add.at(sums, (rows, targets[nearest]), similar[rows, nearest])
    tied = votes == votes.max(axis=1, keepdims=True)
    return np.where(tied, sums, -np.inf).argmax(axis=1)


def _nearest(similar: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """(m, k) columns of the ``k`` largest entries of each row, in no order."""
    if k == similar.shape[1]:
        return np.broadcast_to(np.arange(k), similar.shape)
    return np.argpartition(similar, similar.shape[1] - k, axis=1)[:, -k:]


def logistic_accuracy(
    training: Labelled, validation: Labelled, testing: Labelled, *, strengths: Sequence[float] = STRENGTHS
) -> LogisticScore:
    """Accuracy of multinomial logistic regression on frozen features (linear probe).

    Features are standardised with mean and deviation of the training samples. The model is fitted on the training
    samples alone with each strength; the one with the best validation accuracy is tested, the smaller of equally good
    ones.

    Args:
        training, validation, testing: features (N, D) and labels (N,) each.
        strengths: inverse regularisation strengths C to choose from, above 0.

    Raises:
        InputError: shapes that do not fit, values that are not finite, one class only in training, no or a wrong
            strength.
    """
    splits = {
        name: _labelled(name, *content)
        for name, content in (("training", training), ("validation", validation), ("testing", testing))
    }
    known, labels = splits["training"]
    _classes(labels, "training labels")
    for name in ("validation", "testing"):
        _check_width(known, splits[name][0], ("training", name))
    if not len(strengths) or min(strengths) <= 0:
        raise InputError(f"strengths={list(strengths)}: give at least one number, all above 0.")
    mean, deviation = known.mean(axis=0), known.std(axis=0)
    deviation = np.where(deviation > 0, deviation, 1)  # a constant column says nothing and stays 0
    scaled = {name: ((features - mean) / deviation, names) for name, (features, names) in splits.items()}
    return _best_of(scaled, sorted(set(map(float, strengths))))


def _best_of(splits: dict[str, tuple[NDArray, NDArray]], strengths: Sequence[float]) -> LogisticScore:
    """Fit with every strength, each starting from the solution of the one before, and test the best."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=ITERATIONS, warm_start=True)
    best, chosen = -1.0, LogisticScore(0.0, strengths[0])
    for strength in strengths:
        model.set_params(C=strength)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(*splits["training"])
        validated = float(model.score(*splits["validation"]))
        if validated > best:
            best, chosen = validated, LogisticScore(float(model.score(*splits["testing"])), strength)
    return chosen


def linear_cka(a: ArrayLike, b: ArrayLike) -> float:
    """Linear centred kernel alignment: how alike two sets of features of the same samples are.

    ||B'A||_F^2 / (||A'A||_F ||B'B||_F) with centred columns (S. Kornblith et al., Similarity of neural network
    representations revisited, ICML 2019). Rotations and one common scale do not change it. D x D matrices are built
    where there are more samples than features, else N x N.

    Args:
        a: (N, D) features.
        b: (N, E) features of the same samples in the same order.

    Returns:
        1 for the same features up to rotation and scale. Unrelated ones give about D / (D + N), where D counts the
        directions that the features really use, so take many more samples than directions. 0 where all samples have
        one and the same feature vector, since nothing can be read from it.

    Raises:
        InputError: different numbers of rows, fewer than 2, or values that are not finite.
    """
    first, second = _paired(a, b, rows=2)
    first, second = first - first.mean(axis=0), second - second.mean(axis=0)
    if len(first) > max(first.shape[1], second.shape[1]):
        shared = np.square(second.T @ first).sum()
        own = [np.sqrt(np.square(part.T @ part).sum()) for part in (first, second)]
    else:
        grams = [part @ part.T for part in (first, second)]
        shared = np.vdot(*grams)
        own = [np.sqrt(np.square(gram).sum()) for gram in grams]
    product = float(own[0] * own[1])
    return min(1.0, float(shared) / product) if product > 0 else 0.0


def neighbour_overlap(a: ArrayLike, b: ArrayLike, k: int = OVERLAP_NEIGHBOURS) -> float:
    """Share of the ``k`` nearest other samples (cosine) that two sets of features have in common, mean of all samples.

    Unrelated features share k / (N - 1) of them by chance.

    Args:
        a: (N, D) features.
        b: (N, E) features of the same samples in the same order.
        k: neighbours, 1 .. N - 1.

    Returns:
        in [0, 1].

    Raises:
        InputError: different numbers of rows, too few of them, or values that are not finite.
    """
    if k < 1:
        raise InputError(f"k={k}: the number of neighbours must be at least 1.")
    first, second = (_unit(part.astype(np.float32)) for part in _paired(a, b, rows=k + 1))
    common = 0
    for rows in _blocks(len(first), len(first)):
        own = [_own_neighbours(part, rows, k) for part in (first, second)]
        common += int((own[0] & own[1]).sum())
    return common / (k * len(first))


def _own_neighbours(features: NDArray[np.float32], rows: slice, k: int) -> NDArray[np.bool_]:
    """(m, N) whether each sample is among the ``k`` nearest of a row; a row is no neighbour of itself."""
    similar = features[rows] @ features.T
    places = np.arange(rows.start, rows.start + len(similar))
    similar[np.arange(len(similar)), places] = -np.inf
    marks: NDArray[np.bool_] = np.zeros(similar.shape, bool)
    np.put_along_axis(marks, _nearest(similar, k), True, axis=1)
    return marks


def _blocks(rows: int, columns: int) -> list[slice]:
    """Slices of rows so that rows x columns numbers stay within :data:`CELLS`."""
    step = max(1, CELLS // max(1, columns))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def _unit(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length 1; a row of zeros stays one, which is equally near to all."""
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(length > 0, length, 1)


def _checked(name: str, features: ArrayLike, dtype: type = np.float32) -> NDArray:
    array = np.asarray(features, dtype=dtype)
    if array.ndim != 2 or array.size == 0:
        raise InputError(f"{name}: features must be (N, D) with at least one row, received shape {array.shape}.")
    if not np.isfinite(array).all():
        raise InputError(f"{name}: {int((~np.isfinite(array)).sum())} values are NaN or infinite.")
    return array


def _labelled(name: str, features: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float32], NDArray]:
    array, names = _checked(name, features), np.asarray(labels)
    if names.shape != (len(array),):
        raise InputError(f"{name}: {len(array)} rows need labels of shape ({len(array)},), received {names.shape}.")
    return array, names


def _classes(labels: NDArray, name: str) -> tuple[NDArray, NDArray[np.int64]]:
    """Sorted classes and each label's number."""
    classes, numbers = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise InputError(f"{name}: at least two classes are needed, all {len(labels)} samples have the same one.")
    return classes, numbers.reshape(-1)


def _check_width(a: NDArray, b: NDArray, names: tuple[str, str]) -> None:
    if a.shape[1] != b.shape[1]:
        raise InputError(
            f"{names[0]} and {names[1]}: must have the same number of features, received {a.shape[1]} and {b.shape[1]}."
        )


def _paired(a: ArrayLike, b: ArrayLike, *, rows: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first, second = _checked("a", a, np.float64), _checked("b", b, np.float64)
    if len(first) != len(second):
        raise InputError(f"a and b: must be features of the same samples, received {len(first)} and {len(second)}.")
    if len(first) < rows:
        raise InputError(f"a and b: at least {rows} samples are needed, received {len(first)}.")
    return first, second
