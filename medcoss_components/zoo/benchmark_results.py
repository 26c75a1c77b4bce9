"""The numbers of a benchmark: mean and deviation over seeds, paired comparisons over seeds and over cases.

Two questions are kept apart. Over seeds: would training again give the same order? (paired t-test, one difference per
seed, seeds are few). Over cases: would other patients give the same order for the networks that were trained? (paired
bootstrap of whole patients, the difference averaged over the seeds: ``benchmark_cases.py``.)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medcoss_components.errors import InputError
from medcoss_components.files import read_json, write_json, write_text
from medcoss_components.zoo.benchmark_cases import compare_cases, read_cases
from medcoss_components.zoo.benchmark_table import table

SPLITS = ("testing", "validation")
"""Where scores are taken from: the first that every finished run has."""
RECORD, RESULTS, TABLE = "benchmark.json", "results.json", "table.md"
LEVEL = 0.95

Scores = dict[str, float]


def scores(metrics: Mapping[str, Any], split: str | None = None) -> Scores:
    """Scores of a run's metrics.json; values that are undefined there (null, NaN) are left out.

    Args:
        metrics: content of the file.
        split: "testing" or "validation"; None: the first of both that is there.

    Raises:
        InputError: no scores of the split.
    """
    for name in (split,) if split else SPLITS:
        found = metrics.get(name)
        if isinstance(found, Mapping) and found:
            return {key: float(value) for key, value in found.items() if _defined(value)}
    raise InputError(f"metrics.json has no scores of {split or ' or '.join(SPLITS)}. Give the task such a split.")


def _defined(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation (n - 1; None for one value) and count.

    >>> spread([1.0, 2.0, 3.0])
    {'mean': 2.0, 'sd': 1.0, 'n': 3}
    """
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "sd": deviation, "n": len(values)}


def seed_comparison(first: Mapping[int, float], second: Mapping[int, float]) -> dict[str, Any] | None:
    """Paired comparison over the seeds that both have: second minus first.

    Args:
        first, second: seed -> score.

    Returns:
        seeds, differences, mean, sd, n, t, p (two-sided paired t-test) and the 95 % interval of the mean; t, p and
        interval are None for fewer than two seeds or equal differences. None without a common seed.
    """
    seeds = sorted(set(first) & set(second))
    if not seeds:
        return None
    differences = [second[seed] - first[seed] for seed in seeds]
    result = {"seeds": seeds, "differences": differences, **spread(differences), "t": None, "p": None, "interval": None}
    if len(seeds) > 1 and float(np.ptp(differences)) > 1e-12:
        from scipy.stats import ttest_rel

        test = ttest_rel([second[seed] for seed in seeds], [first[seed] for seed in seeds])
        interval = test.confidence_interval(LEVEL)
        result |= {"t": float(test.statistic), "p": float(test.pvalue), "interval": [*map(float, interval)]}
    return result


def write_results(folder: str | Path) -> dict[str, Any]:
    """Gather the finished runs of a benchmark and write ``results.json`` and ``table.md``.

    Args:
        folder: of the benchmark.

    Returns:
        Content of ``results.json``.

    Raises:
        InputError: no benchmark there, or a finished run whose metrics.json is gone.
    """
    folder = Path(folder)
    results = gather(folder)
    write_json(folder / RESULTS, results)
    write_text(folder / TABLE, table(results))
    return results


def gather(folder: Path) -> dict[str, Any]:
    """The numbers of a benchmark as JSON values; see :func:`write_results`."""
    record = read_json(folder / RECORD)
    done = {key: entry for key, entry in record["runs"].items() if entry["status"] == "finished"}
    metrics = {key: read_json(folder / key / "metrics.json") for key in done}
    split = _common_split(list(metrics.values()))
    runs = [
        {"initialisation": entry["initialisation"], "seed": entry["seed"], "scores": scores(metrics[key], split)}
        | {"best_epoch": metrics[key].get("best_epoch"), "samples": metrics[key].get("samples")}
        | {"init": metrics[key].get("init"), "folder": key}
        for key, entry in done.items()
    ]
    names = [name for name in record["initialisations"] if any(run["initialisation"] == name for run in runs)]
    by_name = {name: _by_metric([run for run in runs if run["initialisation"] == name]) for name in names}
    pairs = list(itertools.combinations(names, 2))
    return {
        "task": record["task"],
        "split": split,
        "seeds": sorted({run["seed"] for run in runs}),
        "initialisations": names,
        "runs": runs,
        "summary": {
            name: {metric: spread(list(values.values())) for metric, values in by_name[name].items()} for name in names
        },
        "over_seeds": [row for pair in pairs for row in _over_seeds(pair, by_name)],
        "over_cases": [row for pair in pairs for row in _over_cases(pair, folder, runs, split)],
        "failed": [{"run": key, **entry} for key, entry in record["runs"].items() if entry["status"] == "failed"],
    }


def _common_split(metrics: Sequence[Mapping[str, Any]]) -> str:
    return next((split for split in SPLITS if metrics and all(entry.get(split) for entry in metrics)), SPLITS[-1])


def _by_metric(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    """metric -> seed -> value, metrics in the order of the files."""
    values: dict[str, dict[int, float]] = {}
    for run in runs:
        for metric, value in run["scores"].items():
            values.setdefault(metric, {})[run["seed"]] = value
    return values


def _over_seeds(pair: tuple[str, str], by_name: Mapping[str, Mapping[str, Mapping[int, float]]]) -> list[dict]:
    first, second = (by_name[name] for name in pair)
    rows = [(metric, seed_comparison(first[metric], second[metric])) for metric in first if metric in second]
    return [{"first": pair[0], "second": pair[1], "metric": metric, **row} for metric, row in rows if row is not None]


def _over_cases(
    pair: tuple[str, str], folder: Path, runs: Sequence[Mapping[str, Any]], split: str
) -> list[dict[str, Any]]:
    """Comparison on the cases, over the seeds whose cases.csv both have."""
    paths = {
        (run["initialisation"], run["seed"]): folder / run["folder"] / "evaluation" / split / "cases.csv"
        for run in runs
    }
    both = [[paths.get((name, seed)) for name in pair] for seed in sorted({seed for _, seed in paths})]
    read = [[read_cases(path) for path in two if path is not None and path.is_file()] for two in both]
    rows = compare_cases([(two[0], two[1]) for two in read if len(two) == 2])
    return [{"first": pair[0], "second": pair[1], **row} for row in rows]
