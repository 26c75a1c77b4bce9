"""Two initialisations compared on the same cases: paired bootstrap of whole patients, trained networks held fixed."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medcoss_components.errors import InputError
from medcoss_components.evaluation.bootstrap import Statistic, bootstrap_intervals
from medcoss_components.evaluation.classification import WeightedClassification
from medcoss_components.evaluation.segmentation import score_columns, weighted_means

REPEATS = 1000
_PROBABILITY, _DICE = "prob_", "dice/"


@dataclass(frozen=True)
class CaseTable:
    """An evaluation's cases.csv: its columns, and its rows by case."""

    columns: tuple[str, ...]
    rows: Mapping[str, Mapping[str, str]] = field(repr=False)

    def group(self, case: str) -> str:
        """Group (patient) of a case."""
        return self.rows[case]["group"]

    def named(self, prefix: str) -> tuple[str, ...]:
        """What stands behind ``prefix`` in the names of the columns."""
        return tuple(name[len(prefix) :] for name in self.columns if name.startswith(prefix))


def read_cases(path: Path) -> CaseTable:
    """Read the table that :func:`~medcoss_components.tracking.task_report.write_cases` writes.

    Raises:
        InputError: a table of another kind.
    """
    with open(path, encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        rows = {row.get("case", ""): row for row in reader}
    table = CaseTable(tuple(reader.fieldnames or ()), rows)
    known = table.named(_PROBABILITY) or table.named(_DICE)
    if not known or not {"case", "group"} <= set(table.columns):
        raise InputError(f"{path}: no table of an evaluation, its columns are {', '.join(table.columns) or 'none'}.")
    return table


def compare_cases(
    pairs: Sequence[tuple[CaseTable, CaseTable]], *, repeats: int = REPEATS, seed: int = 0
) -> list[dict[str, Any]]:
    """Difference of every metric, second minus first, averaged over the seeds, with its 95 % interval.

    Only cases that both tables of a pair have count. Where the validation split changes with the seed, each seed has
    cases of its own; a patient that is drawn counts in every one.

    Args:
        pairs: for each seed the tables of both initialisations.
        repeats: bootstrap resamples, of whole groups.
        seed: of the resampling.

    Returns:
        one entry a metric: metric, cases, groups, seeds, difference, interval (None with one group). Metrics that the
        cases leave undefined are not in it.
    """
    shared = [sorted(first.rows.keys() & second.rows.keys()) for first, second in pairs]
    cases = sorted({case for names in shared for case in names})
    if not cases or not all(shared):
        return []
    place = {case: index for index, case in enumerate(cases)}
    parts = [
        (_paired(first, second, names), [place[case] for case in names])
        for (first, second), names in zip(pairs, shared, strict=True)
    ]
    groups = [_group(case, pairs) for case in cases]

    def difference(weights: np.ndarray) -> dict[str, np.ndarray]:
        found = [statistic(weights[:, indices]) for statistic, indices in parts]
        metrics = [metric for metric in found[0] if all(metric in values for values in found)]
        return {metric: np.mean([values[metric] for values in found], axis=0) for metric in metrics}

    observed = difference(np.ones((1, len(cases))))
    intervals = bootstrap_intervals(difference, groups, repeats=repeats, seed=seed)
    counts = {"cases": len(cases), "groups": len(set(groups)), "seeds": len(pairs)}
    return [
        {"metric": metric, **counts, "difference": float(values[0]), "interval": _listed(intervals.get(metric))}
        for metric, values in observed.items()
        if math.isfinite(values[0])
    ]


def _group(case: str, pairs: Sequence[tuple[CaseTable, CaseTable]]) -> str:
    return next(first.group(case) for first, _ in pairs if case in first.rows)


def _listed(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else [float(edge) for edge in interval]


def _paired(first: CaseTable, second: CaseTable, cases: Sequence[str]) -> Statistic:
    """Weights (r, N) of ``cases`` -> difference of each metric (r,)."""
    if first.named(_PROBABILITY):
        one, other = _classification(first, cases), _classification(second, cases)
        return lambda weights: _minus(other(weights), one(weights))
    columns = _minus(_columns(second, cases), _columns(first, cases))  # NaN where either has no distance
    return lambda weights: weighted_means(columns, weights)


def _minus(second: Mapping[str, np.ndarray], first: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: second[name] - first[name] for name in first if name in second}


def _classification(table: CaseTable, cases: Sequence[str]) -> WeightedClassification:
    classes, rows = table.named(_PROBABILITY), [table.rows[case] for case in cases]
    probabilities = np.array([[float(row[f"{_PROBABILITY}{name}"]) for name in classes] for row in rows])
    return WeightedClassification(probabilities, np.array([classes.index(row["target"]) for row in rows]), classes)


def _columns(table: CaseTable, cases: Sequence[str]) -> dict[str, np.ndarray]:
    rows = [{name: float(value or "nan") for name, value in table.rows[case].items() if "/" in name} for case in cases]
    return score_columns(rows, table.named(_DICE))
