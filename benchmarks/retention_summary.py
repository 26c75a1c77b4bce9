"""Numbers of the retention experiment from its runs: per strategy and seed, with intervals and paired differences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from retention_plan import FIRST, RESULT, STRATEGIES, Scale, Unit

from medcoss_components.files import read_json

CONFIDENCE = 0.95
PAIRS = (
    ("sequential", "medcoss"),
    ("sequential", "experience_replay"),
    ("experience_replay", "medcoss"),
    ("ewc", "medcoss"),
    ("cassle", "medcoss"),
    ("medcoss_without_mixup", "medcoss"),
    ("medcoss_random_exemplars", "medcoss"),
    ("medcoss_buffer_1", "medcoss"),
    ("medcoss_buffer_10", "medcoss"),
    ("medcoss_teacher_train", "medcoss"),
)
"""Strategies whose forgetting is subtracted: positive where the first one forgets more."""
PLAIN = "sequential"
"""The strategy that keeps nothing: what the others learn of a new modality is compared with it."""
Rows = list[dict[str, Any]]


def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> dict[str, float | int | None]:
    """Mean and Student's t interval over seeds; without bounds for fewer than two values.

    >>> interval([0.25, 0.5, 0.75])["mean"]
    0.5
    """
    if not values:
        return {"mean": None, "low": None, "high": None, "count": 0}
    mean = statistics.fmean(values)
    if len(values) < 2:
        return {"mean": mean, "low": None, "high": None, "count": 1}
    from scipy.stats import t

    half = float(t.ppf((1 + confidence) / 2, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": mean, "low": mean - half, "high": mean + half, "count": len(values)}


def finished_results(root: Path) -> dict[tuple[int, str], dict[str, Any]]:
    """(seed, name) -> result of every finished run."""
    found = [read_json(path) for path in sorted(root.glob(f"seed*/*/{RESULT}"))]
    return {(result["seed"], result["name"]): result for result in found}


class Summary:
    """The results of all finished runs, put together.

    Args:
        scale: the experiment.
        root: folder of all runs.
    """

    def __init__(self, scale: Scale, root: Path) -> None:
        self.scale, self.results = scale, finished_results(root)
        self.text, self.probe = scale.stages[0]["modality"], scale.probes[0]["name"]

    @property
    def strategies(self) -> list[str]:
        """Strategies with at least one finished run, in the order of the experiment."""
        return [name for name in STRATEGIES if self.seeds(name)]

    def seeds(self, strategy: str) -> list[int]:
        """Seeds whose run, and the stage 1 that it needs, are finished."""
        return sorted(
            seed
            for seed, name in self.results
            if name == strategy and (not Unit(seed, name).branches or (seed, FIRST) in self.results)
        )

    def rows(self, seed: int, strategy: str) -> Rows:
        """Stages of a run in order, stage 1 of the seed first where the run branches from it."""
        own = self.results[seed, strategy]["stages"]
        first = self.results[seed, FIRST]["stages"][1:] if Unit(seed, strategy).branches else []
        return [*first, *own]

    def curve(self, seed: int, strategy: str, modality: str, read: Any) -> list[float]:
        """Values of a measure from the modality's own stage to the last one."""
        rows = self.rows(seed, strategy)
        own = next((number for number, row in enumerate(rows) if row["modality"] == modality), len(rows) - 1)
        return [value for row in rows[own:] if (value := read(row)) is not None]

    def kept(self, modality: str, read: Any) -> dict[str, dict[str, list[float]]]:
        """Per strategy: a measure after the modality's own stage, at the end, and what was lost since the own stage
        (backward transfer with its sign turned) and since the best of all stages before the last."""
        table = {}
        for strategy in self.strategies:
            curves = [self.curve(seed, strategy, modality, read) for seed in self.seeds(strategy)]
            curves = [curve for curve in curves if curve]
            if curves:
                own, final = [curve[0] for curve in curves], [curve[-1] for curve in curves]
                lost = [before - after for before, after in zip(own, final, strict=True)]
                best = [max(curve[:-1], default=curve[-1]) - curve[-1] for curve in curves]
                table[strategy] = {
                    "after_own_stage": own,
                    "final": final,
                    "forgetting": lost,
                    "forgetting_from_best": best,
                }
        return table

    def alike(self, measure: str, modality: str) -> dict[str, list[float]]:
        """Per strategy: likeness of the last features to those at the end of the modality's own stage; 1 where that is
        the last stage."""
        table: dict[str, list[float]] = {}
        for strategy in self.strategies:
            last = [self.rows(seed, strategy)[-1] for seed in self.seeds(strategy)]
            values = [row[measure].get(modality, 1.0 if row["modality"] == modality else None) for row in last]
            if known := [value for value in values if value is not None]:
                table[strategy] = known
        return table

    def curves(self) -> dict[str, list[list[float]]]:
        """Per strategy that branches from stage 1: text k-NN after each stage, one list a seed."""
        return {
            strategy: [
                self.curve(seed, strategy, self.text, _probe(self.probe, "k_nn")) for seed in self.seeds(strategy)
            ]
            for strategy in self.strategies
            if Unit(0, strategy).branches
        }

    def plasticity(self) -> dict[str, dict[str, list[float]]]:
        """Per strategy and modality: pretext loss on validation data at the end of the modality's own stage."""
        table: dict[str, dict[str, list[float]]] = {}
        for strategy in self.strategies:
            for seed in self.seeds(strategy):
                for row in self.rows(seed, strategy):
                    if row["validation_loss"] is not None and row["modality"]:
                        table.setdefault(strategy, {}).setdefault(row["modality"], []).append(row["validation_loss"])
        return table

    def paired_plasticity(self) -> dict[str, dict[str, list[float]]]:
        """Per strategy and modality: loss minus that of :data:`PLAIN` with the same seed; above 0 is learned worse."""
        losses = self.plasticity()
        plain = {name: values for name, values in losses.get(PLAIN, {}).items() if name != self.text}
        others = [name for name in losses if name != PLAIN and plain and Unit(0, name).branches]
        return {
            strategy: {
                name: self._differences(strategy, values, PLAIN, plain[name])
                for name, values in losses[strategy].items()
                if name in plain
            }
            for strategy in others
        }

    def _differences(self, first: str, ones: Sequence[float], second: str, others: Sequence[float]) -> list[float]:
        """A measure of one strategy minus that of another, for every seed that both have."""
        other = dict(zip(self.seeds(second), others, strict=True))
        return [one - other[seed] for seed, one in zip(self.seeds(first), ones, strict=True) if seed in other]

    def untrained(self) -> dict[str, Any]:
        """Scores of the encoder before any training, and what stage 1 adds."""
        firsts = [result["stages"] for (_, name), result in sorted(self.results.items()) if name == FIRST]
        measures = {
            name: _probe(self.probe, name) for name in ("k_nn", "k_nn_validation", "logistic")
        } | self._few_labels()
        return {
            name: {
                "untrained": [read(stages[0]) for stages in firsts],
                "after_stage_1": [read(stages[1]) for stages in firsts],
                "gain": interval([read(stages[1]) - read(stages[0]) for stages in firsts]),
            }
            for name, read in measures.items()
        }

    def _few_labels(self) -> dict[str, Any]:
        return {f"fine_tuning_{labels}": _few(labels) for labels in self.scale.few_labels}

    def paired(self, table: Mapping[str, Mapping[str, Sequence[float]]], column: str = "forgetting") -> Rows:
        """Differences of a column between strategies, seed by seed, and their interval."""
        rows = []
        for first, second in PAIRS:
            if first not in table or second not in table:
                continue
            values = self._differences(first, table[first][column], second, table[second][column])
            if values:
                rows.append({"first": first, "second": second, "differences": values, **interval(values)})
        return rows

    def seconds(self) -> dict[str, list[float]]:
        """Per run name: seconds of its runs."""
        names = dict.fromkeys(name for _, name in self.results)
        return {
            name: [result["seconds"]["total"] for (_, other), result in self.results.items() if other == name]
            for name in names
        }

    def content(self, machine: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
        """What is written to ``retention.json``."""
        tables = {"text_probe": self.kept(self.text, _probe(self.probe, "k_nn"))}
        tables["text_probe_validation"] = self.kept(self.text, _probe(self.probe, "k_nn_validation"))
        tables["text_logistic"] = self.kept(self.text, _probe(self.probe, "logistic"))
        tables |= {f"text_{name}": self.kept(self.text, read) for name, read in self._few_labels().items()}
        others = self.scale.probes[1:]
        return {
            "format": 1,
            **tables,
            "text_cka": self.alike("cka", self.text),
            "text_overlap": self.alike("overlap", self.text),
            "cka": {stage["modality"]: self.alike("cka", stage["modality"]) for stage in self.scale.stages[1:]},
            "other_probes": {
                probe["name"]: self.kept(probe["modality"], _probe(probe["name"], "k_nn")) for probe in others
            },
            "untrained": self.untrained(),
            "plasticity": self.plasticity(),
            "paired_plasticity": self.paired_plasticity(),
            "curves": self.curves(),
            "intervals": {name: _intervals(table) for name, table in tables.items()},
            "paired_forgetting": {name: self.paired(table) for name, table in tables.items()},
            "paired_forgetting_from_best": {
                name: self.paired(table, "forgetting_from_best") for name, table in tables.items()
            },
            "seeds": {strategy: self.seeds(strategy) for strategy in self.strategies},
            "updates": {name: self._updates(name) for name in self.strategies},
            "seconds": self.seconds(),
            "settings": dict(settings),
            "machine": dict(machine),
        }

    def _updates(self, strategy: str) -> list[int]:
        """Updates of each stage, of the first seed."""
        return [row["updates"] for row in self.rows(self.seeds(strategy)[0], strategy)]


def _intervals(table: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, Any]:
    return {name: {key: interval(values) for key, values in columns.items()} for name, columns in table.items()}


def _probe(name: str, measure: str) -> Any:
    return lambda row: row["probes"].get(name, {}).get(measure)


def _few(labels: str) -> Any:
    return lambda row: row["few_labels"].get(labels)


def without_folders(entries: Iterable[Mapping[str, Any]]) -> Rows:
    """Entries of a scale whose manifests are named without the folder of one machine."""
    return [
        {**entry, "manifest": "/".join(Path(entry["manifest"]).parts[-3:-1])} if "manifest" in entry else dict(entry)
        for entry in entries
    ]
