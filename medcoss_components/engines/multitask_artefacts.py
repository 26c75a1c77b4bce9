"""What a multi-task run leaves for people: scores by round, numbers, pictures."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medcoss_components.engines.handlers import memory_metrics
from medcoss_components.engines.multitask_evaluation import MEAN
from medcoss_components.engines.task_losses import task_of

if TYPE_CHECKING:
    from medcoss_components.engines.multitask_run import MultiTaskTraining


def rounds_content(run: MultiTaskTraining) -> dict[str, Any]:
    """Content of rounds.json: a row for every validated round; null for what is undefined.

    ``retention`` has average accuracy, backward transfer and forgetting of the matrix of headlines (rows: validated
    rounds), see :mod:`~medcoss_components.retention.measures`.
    """
    names = {} if run.evaluator is None else run.evaluator.names
    rows = [_row(run, row, list(names)) for row in run.selector.rows]
    return {
        "tasks": list(names),
        "headlines": names,
        "keep": run.selector.keep,
        "rounds": rows,
        "retention": _retention(run, rows),
    }


def _row(run: MultiTaskTraining, row: dict[str, Any], tasks: list[str]) -> dict[str, Any]:
    from medcoss_components.evaluation.results import json_numbers

    found = json_numbers(row["metrics"])
    metrics: dict[str, dict[str, float | None]] = {task: {} for task in tasks}
    for name, value in found.items():
        task, _, metric = name.partition("/")
        if metric:
            metrics[task][metric] = value
    return {
        "round": row["epoch"],
        "iteration": row["iteration"],
        "order": list(run.trainer.data_loader.order(row["epoch"] - 1)),
        "headline": {task: found[task] for task in tasks},
        MEAN: found[MEAN],
        "metrics": metrics,
    }


def _retention(run: MultiTaskTraining, rows: list[dict[str, Any]]) -> dict[str, float | None] | None:
    """Of the tasks that a validated round has seen to the end of their first visit."""
    from medcoss_components.retention.measures import measures
    from medcoss_components.retention.results import as_matrix

    if not rows:
        return None
    ends = {task: run.trainer.data_loader.first_visit_ends(task) + 1 for task in rows[0]["headline"]}
    learned = {
        task: next((place for place, row in enumerate(rows) if row["round"] >= end), None) for task, end in ends.items()
    }
    matrix = as_matrix([[row["headline"][task] for task in learned] for row in rows])
    return measures(matrix, list(learned.values()))


def run_metrics(run: MultiTaskTraining) -> dict[str, Any]:
    """The numbers of metrics.json."""
    trainer, values, loader = run.trainer, run.record.values, run.trainer.data_loader
    parameters = list(run.model.parameters())
    return {
        "name": run.name,
        "task": trainer.kind,
        "modality": next(iter(loader.modalities)),
        "tasks": {task: _task_metrics(run, task) for task in loader.tasks},
        "rounds": trainer.state.max_epochs,
        "kept_round": values["kept_round"],
        "keep": run.selector.keep,
        "mean_headline": values["best_score"],
        "iterations": trainer.total_iterations,
        "feature_weight": trainer.feature_weight,
        "anchor_weight": trainer.anchor_weight,
        "freeze_batch_norm": trainer.freeze_batch_norm,
        "cyclic": loader.cyclic,
        "reshuffled": loader.reshuffled,
        "retention": rounds_content(run)["retention"],
        "network": asdict(run.model.sizes),
        "parameters": sum(parameter.numel() for parameter in parameters),
        "trainable_parameters": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        "device": str(trainer.state.device),
        "precision": trainer.precision,
        "training_seconds": values["training_seconds"],
        "peak_memory_bytes": round(memory_metrics(trainer.state.device)["peak_memory_mib"] * 2**20),
        "init": getattr(run.model, "load_report", None),
    }


def _task_metrics(run: MultiTaskTraining, task: str) -> dict[str, Any]:
    dataset, values = run.datasets[task], run.record.values
    own = {row[3] for row in run.history.rows if row[2] == task}
    losses = {kind: run.history.losses(task, kind) for kind in sorted(own)}
    found = {split: values.get(split, {}).get(task) for split in ("validation", "testing")}
    return {
        "kind": task_of(dataset),
        "samples": len(set(dataset.cases)),
        "preparation": dataset.store.index["preparation"],
        "first_losses": {kind: entries[0] for kind, entries in losses.items()},
        "final_losses": {kind: entries[-1] for kind, entries in losses.items()},
        **{f"{split}_samples": entry["cases"] if entry else 0 for split, entry in found.items()},
        **{split: entry and entry["metrics"] for split, entry in found.items()},
        "intervals": {split: entry["intervals"] for split, entry in found.items() if entry},
    }


def write_pictures(run: MultiTaskTraining) -> Path:
    """previews/rounds.png (where rounds were validated) and previews/losses.png; returns the folder."""
    from medcoss_components.tracking.round_figures import multitask_curves, rounds_map

    folder = run.folder / "previews"
    folder.mkdir(exist_ok=True)
    rounds_map(rounds_content(run), folder / "rounds.png")
    multitask_curves(run.history.to_json(), run.trainer.data_loader.tasks, folder / "losses.png")
    return folder
