"""What a fine-tuning run leaves for people: numbers, the report, one printed line."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ignite.distributed as idist

from medcoss_components.engines.handlers import memory_metrics
from medcoss_components.files import atomic_path
from medcoss_components.tracking.runs import TrackedRun

if TYPE_CHECKING:
    from medcoss_components.engines.finetuning_run import FineTuning
    from medcoss_components.evaluation.results import ClassificationResult
    from medcoss_components.text.vocabulary import Vocabulary

SHOWN = ("accuracy", "auc", "f1", "dice", "hd95", "map", "map50")
MISTAKES = 50


def log_defined(run: TrackedRun, prefix: str, metrics: Mapping[str, float | None], *, step: int) -> None:
    """Send the metrics that are defined to the tracker as ``<prefix>/<name>``."""
    known = {name: value for name, value in metrics.items() if value is not None and math.isfinite(value)}
    run.log_metrics({f"{prefix}/{name}": value for name, value in known.items()}, step=step)


def report_result(
    result: Any, folder: Path, *, title: str, split: str, settings: Mapping[str, Any] | None = None, seed: int = 0
) -> dict[str, Any]:
    """Write the report folder (rank 0).

    Returns:
        ``{"metrics", "intervals", "cases"}``, with None for what is undefined.
    """
    from medcoss_components.evaluation.results import json_numbers
    from medcoss_components.tracking.task_report import write_task_report

    if idist.get_rank() == 0:
        write_task_report(result, folder, title=title, split=split, settings=settings, seed=seed)
    return {
        "metrics": json_numbers(result.metrics()),
        "intervals": {
            name: [None if math.isnan(edge) else float(edge) for edge in edges]
            for name, edges in result.intervals(seed=seed).items()
        },
        "cases": len(result.cases),
    }


def run_metrics(run: FineTuning) -> dict[str, Any]:
    """The numbers of metrics.json."""
    trainer, values, modality = run.trainer, run.record.values, run.dataset.modality.name
    losses = run.history.losses(modality, trainer.kind)
    parameters = list(run.model.parameters())
    found = {split: values.get(split) for split in ("validation", "testing")}
    return {
        "name": run.name,
        "task": trainer.kind,
        "modality": modality,
        "samples": len(set(run.dataset.cases)),
        "validation_samples": found["validation"]["cases"] if found["validation"] else 0,
        "testing_samples": found["testing"]["cases"] if found["testing"] else 0,
        "epochs": trainer.state.max_epochs,
        "best_epoch": values["best_epoch"],
        "selection": run.selector.selection if run.evaluator is not None else "last epoch",
        "best_score": values["best_score"],
        "iterations": trainer.total_iterations,
        "network": asdict(run.model.sizes),
        "parameters": sum(parameter.numel() for parameter in parameters),
        "trainable_parameters": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        "device": str(trainer.state.device),
        "precision": trainer.precision,
        "preparation": run.dataset.store.index["preparation"],
        "training_seconds": values["training_seconds"],
        "peak_memory_bytes": round(memory_metrics(trainer.state.device)["peak_memory_mib"] * 2**20),
        "first_loss": losses[0] if losses else None,
        "final_loss": losses[-1] if losses else None,
        "init": getattr(run.model, "load_report", None),
        "vocabulary_hash": None if run.vocabulary is None else run.vocabulary.hash,
        **{split: entry and entry["metrics"] for split, entry in found.items()},
        "intervals": {split: entry["intervals"] for split, entry in found.items() if entry},
    }


def write_mistakes(result: ClassificationResult, dataset: Any, vocabulary: Vocabulary, path: Path) -> None:
    """The surest mistakes with their texts as CSV: case, target, predicted, confidence, text."""
    wrong = sorted((row for row in result.table() if not row["correct"]), key=lambda row: -row["confidence"])
    position = {case: row for row, case in reversed(list(enumerate(dataset.cases)))}
    with atomic_path(path) as partial, open(partial, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["case", "target", "predicted", "confidence", "text"])
        for row in wrong[:MISTAKES]:
            text = vocabulary.decode(dataset.gather([position[row["case"]]])[0].tolist())
            writer.writerow([row["case"], row["target"], row["predicted"], f"{row['confidence']:.4f}", text])


def summary_line(found: Mapping[str, Any], split: str, folder: Path) -> str:
    """The line that :func:`evaluate_task` prints.

    >>> found = {"metrics": {"dice": 0.5}, "intervals": {"dice": [0.4, 0.61]}, "cases": 7}
    >>> summary_line(found, "testing", Path("out"))
    'testing, 7 cases: dice 0.500 [0.400, 0.610] -> out'
    """
    parts = []
    for name in SHOWN:
        if (value := found["metrics"].get(name)) is not None:
            edges = found["intervals"].get(name, [None, None])
            interval = "" if None in edges else f" [{edges[0]:.3f}, {edges[1]:.3f}]"
            parts.append(f"{name} {value:.3f}{interval}")
    return f"{split}, {found['cases']} cases: {', '.join(parts)} -> {folder}"
