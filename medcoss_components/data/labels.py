"""Labels of a classification task: from what a manifest says to class numbers, and splits that respect groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from medcoss_components.errors import InputError
from medcoss_components.randomness import numpy_generator_for

_SHOWN = 5


def resolve_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """Names of the classes in the order of the network's outputs.

    Raises:
        InputError: fewer than two names, or one twice.
    """
    if isinstance(classes, str) or not isinstance(classes, Sequence):
        raise InputError(f"classes: must be a list of names in the order of the outputs, got {classes!r}.")
    names = tuple(str(name) for name in classes)
    if len(names) < 2 or len(set(names)) < len(names):
        raise InputError(f"classes: at least two different names are needed, got {list(names)}.")
    return names


def class_targets(labels: Sequence[Any], *, classes: Sequence[str], ids: Sequence[str]) -> np.ndarray:
    """Class number of each label.

    Args:
        labels: name of a class, or its number from 0 (integers, also written as 2.0, false or true), of each item.
        classes: names in order.
        ids: manifest ids of the items, for messages.

    Returns:
        (N,) int64 in 0 .. len(classes) - 1.

    Raises:
        InputError: labels that name no class; they are listed with counts and first items, beside the known classes.
    """
    names = resolve_classes(classes)
    lookup = {name: number for number, name in enumerate(names)}
    numbers = [_class_number(label, lookup) for label in labels]
    unknown = [place for place, number in enumerate(numbers) if number is None]
    if unknown:
        raise _unknown_labels(labels, unknown, names=names, ids=ids)
    return np.array(numbers, dtype=np.int64).reshape(-1)


def _class_number(label: Any, lookup: dict[str, int]) -> int | None:
    if isinstance(label, str):
        return lookup.get(label)
    number = float(label) if isinstance(label, int | float | np.integer | np.floating | np.bool_) else -1.0
    return int(number) if number.is_integer() and 0 <= number < len(lookup) else None


def _unknown_labels(
    labels: Sequence[Any], unknown: list[int], *, names: tuple[str, ...], ids: Sequence[str]
) -> InputError:
    counts = Counter("no label" if labels[place] is None else repr(labels[place])[:40] for place in unknown)
    listed = ", ".join(f"{label} ({count} items)" for label, count in counts.most_common(_SHOWN))
    more = f" and {len(counts) - _SHOWN} more" if len(counts) > _SHOWN else ""
    first = ", ".join(str(ids[place]) for place in unknown[:_SHOWN])
    return InputError(
        f"labels: {len(unknown)} of {len(labels)} items name no class: {listed}{more}; first items: {first}. Known "
        f"classes: {', '.join(names)}, or numbers 0 to {len(names) - 1}. Correct the labels, or give the right classes."
    )


def require_every_class(targets: np.ndarray, *, classes: Sequence[str], where: str) -> None:
    """Raise InputError, naming the class, when a class has no item.

    Args:
        targets: (N,) int64 class numbers.
        classes: names in order.
        where: what the items are, for the message.
    """
    counts = np.bincount(np.asarray(targets, dtype=np.int64), minlength=len(classes))
    missing = [name for name, count in zip(classes, counts, strict=True) if count == 0]
    if missing:
        found = ", ".join(f"{name}: {count}" for name, count in zip(classes, counts.tolist(), strict=True))
        raise InputError(
            f"{where}: no item of class {', '.join(missing)} ({found}). Add items, raise label_ratio, change the seed, "
            "or leave the class out of classes."
        )


def validation_groups(
    groups: Sequence[str], targets: Sequence[int] | np.ndarray | None = None, *, share: float, seed: int
) -> frozenset[str]:
    """Choose groups (patients) whose items together are about ``share`` of every class.

    Groups are tried in an order shuffled with ``seed``; one is taken when the classes' counts come closer to the wanted
    ones by it (squared distance, each class relative to its size). Where every group is one item, every class gets
    its share rounded. The result does not depend on the order of the items. (scikit-learn's StratifiedGroupKFold has
    whole folds only and refuses classes with fewer groups than folds.)

    Args:
        groups: group of each of N items.
        targets: (N,) class number of each item; None: all of one kind.
        share: wanted share, above 0 and below 1.
        seed: of the shuffling.

    Returns:
        at least one group, and never all.

    Raises:
        InputError: a share out of range, or fewer than two groups.
    """
    if not 0 < share < 1:
        raise InputError(f"validation_share={share}: must be above 0 and below 1.")
    names, members = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    if len(names) < 2:
        raise InputError(
            f"validation_share={share}: the training split has {len(names)} group; at least 2 are needed to put one "
            "aside. Give the manifest a validation split, or set validation_share to 0."
        )
    kinds = np.zeros(len(members), np.int64) if targets is None else np.asarray(targets, dtype=np.int64)
    counts = np.zeros((len(names), int(kinds.max()) + 1))
    np.add.at(counts, (members, kinds), 1)
    chosen = _choose(counts, share, numpy_generator_for(seed, "validation groups").permutation(len(names)))
    return frozenset(str(names[number]) for number in chosen)


def _choose(counts: np.ndarray, share: float, order: np.ndarray) -> list[int]:
    """Rows of ``counts`` (groups, classes), taken in ``order`` while they lower the distance to the wanted counts."""
    total = np.maximum(counts.sum(axis=0), 1)
    excess = -share * counts.sum(axis=0)
    chosen: list[int] = []
    for number in order.tolist():
        row = counts[number]
        if (row * (row + 2 * excess) / total).sum() < 0:
            excess = excess + row
            chosen.append(number)
    if not chosen:
        chosen = [min(order.tolist(), key=lambda number: counts[number].sum())]
    return chosen if len(chosen) < len(counts) else chosen[:-1]


def first_share(rows: Sequence[int] | np.ndarray, ratio: float, seed: int) -> np.ndarray:
    """The first part of the list shuffled with ``seed`` (METHOD.md section 8), in the list's own order.

    A smaller ratio gives a part of what a larger one gives.

    Args:
        rows: (N,) integers.
        ratio: above 0, at most 1.

    Returns:
        (max(1, round(ratio * N)),) int64.

    Raises:
        InputError: a ratio out of range.
    """
    if not 0 < ratio <= 1:
        raise InputError(f"label_ratio={ratio}: must be above 0 and at most 1.")
    rows = np.asarray(rows, dtype=np.int64).reshape(-1)
    order = numpy_generator_for(seed, "label ratio").permutation(len(rows))
    return rows[np.sort(order[: max(1, round(ratio * len(rows)))])]
