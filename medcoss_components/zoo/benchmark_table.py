"""The results of a benchmark as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def table(results: Mapping[str, Any]) -> str:
    """The results as Markdown. Values per class or region (names with "/") stand in results.json alone."""
    parts = [_heading(results), _means(results), _seeds_table(results), _cases_table(results), _failures(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _heading(results: Mapping[str, Any]) -> str:
    seeds = ", ".join(map(str, results["seeds"]))
    if not results["runs"]:
        return f"# {results['task']}: no run finished"
    lines = [f"# {results['task']}: {len(results['initialisations'])} initialisations, seeds {seeds}", ""]
    lines.append(f"Scores on the {results['split']} split: mean ± standard deviation over the seeds.")
    if results["split"] == "validation":
        lines.append("The same split chose the best epoch, so the scores are too good; their differences less so.")
    return "\n".join(lines)


def _headline(names: Sequence[str]) -> list[str]:
    return [name for name in dict.fromkeys(names) if "/" not in name and not name.endswith("_undefined")]


def _means(results: Mapping[str, Any]) -> str:
    summary = results["summary"]
    metrics = _headline([metric for values in summary.values() for metric in values])
    rows = []
    for name, values in summary.items():
        runs = sum(run["initialisation"] == name for run in results["runs"])
        rows.append([name, str(runs), *(_plus_minus(values.get(metric), runs) for metric in metrics)])
    return _markdown(["initialisation", "runs", *metrics], rows) if rows else ""


def _plus_minus(value: Mapping[str, Any] | None, runs: int) -> str:
    if value is None:
        return "undefined"
    text = f"{value['mean']:.4g}" + (f" ± {value['sd']:.2g}" if value["sd"] is not None else "")
    return text + (f" (n = {value['n']})" if value["n"] < runs else "")


def _seeds_table(results: Mapping[str, Any]) -> str:
    shown = _headline([row["metric"] for row in results["over_seeds"]])
    rows = [
        [_pair(row), row["metric"], str(row["n"]), _signed(row["mean"]), _plain(row["sd"]), _interval(row["interval"])]
        + [_plain(row["t"], ".2f"), _plain(row["p"], ".3f")]
        for row in results["over_seeds"]
        if row["metric"] in shown
    ]
    if not rows:
        return ""
    intro = (
        "## Differences over seeds\n\nPaired t-test, n = number of seeds; with so few it says little, and p is not "
        "corrected for the number of lines.\n\n"
    )
    heads = ["difference", "metric", "n", "mean", "sd", "95 % interval", "t", "p"]
    return intro + _markdown(heads, rows)


def _cases_table(results: Mapping[str, Any]) -> str:
    shown = _headline([row["metric"] for row in results["over_cases"]])
    rows = [
        [_pair(row), row["metric"], str(row["cases"]), str(row["groups"]), str(row["seeds"])]
        + [_signed(row["difference"]), _interval(row["interval"])]
        for row in results["over_cases"]
        if row["metric"] in shown
    ]
    if not rows:
        return ""
    intro = (
        "## Differences over cases\n\nPaired bootstrap of whole groups (patients), the trained networks held fixed; "
        "the difference is averaged over the seeds.\n\n"
    )
    return intro + _markdown(["difference", "metric", "cases", "groups", "seeds", "mean", "95 % interval"], rows)


def _failures(results: Mapping[str, Any]) -> str:
    lines = [f"- {entry['run']}: {entry['reason']}" for entry in results["failed"]]
    return "\n".join(["## Failed runs", "", *lines]) if lines else ""


def _pair(row: Mapping[str, Any]) -> str:
    return f"{row['second']} - {row['first']}"


def _signed(value: float) -> str:
    return f"{value:+.4g}"


def _plain(value: float | None, form: str = ".2g") -> str:
    return "-" if value is None else f"{value:{form}}"


def _interval(interval: Sequence[float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:+.3g} to {interval[1]:+.3g}"


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
