"""Numbers of a run as a model card shows them: tables for people, results for Hugging Face."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

METRIC = "validation_pretext_loss"
PRETRAINING_LINES = {
    "modality": "modality",
    "samples": "training samples",
    "epochs": "epochs",
    "iterations": "iterations",
    "parameters": "parameters",
    "precision": "precision",
    "first_loss": "pretext loss on training batches, first",
    "final_loss": "pretext loss on training batches, last",
    "validation_loss": "pretext loss on the validation split",
}
"""Key of metrics.json -> its line in the card; other keys stay out (they name folders and machines)."""
TASK_LINES = {
    "task": "task",
    "modality": "modality",
    "samples": "training samples",
    "validation_samples": "validation samples",
    "testing_samples": "testing samples",
    "epochs": "epochs",
    "best_epoch": "epoch of these weights",
    "selection": "chosen by",
    "iterations": "iterations",
    "parameters": "parameters",
    "trainable_parameters": "trainable parameters",
    "precision": "precision",
    "first_loss": "training loss, first",
    "final_loss": "training loss, last",
}
BACKBONE_LINES = {
    "task": "training",
    "modality": "modality",
    "samples": "training images",
    "epochs": "epochs",
    "rounds": "rounds",
    "kept_round": "round of these weights",
    "iterations": "iterations",
    "backbone_parameters": "parameters of the backbone",
    "precision": "precision",
    "first_loss": "training loss, first",
    "final_loss": "training loss, last",
    "feature_spread": "spread of the features (0: all alike, 1: even)",
}
"""The same for trainings of which the backbone is published; lines that a training does not have are left out."""
SPLITS = ("testing", "validation")
HUB_METRICS = {"accuracy": "accuracy", "auc": "roc_auc", "f1": "f1", "dice": "dice", "hd95": "hd95"}
"""Metrics of the whole split that Hugging Face lists -> its names."""


def pretraining_table(metrics: Mapping[str, Any]) -> str:
    """Markdown table of a stage's numbers."""
    lines = [*_lines(metrics, PRETRAINING_LINES)]
    for modality, entry in (metrics.get("rehearsal") or {}).items():
        lines.append(f"| {entry['kind']} loss on the buffer of {modality}, last | {entry['final']:.4f} |")
    return "\n".join(["| | |", "|---|---|", *lines])


def backbone_tables(metrics: Mapping[str, Any]) -> str:
    """Markdown: what was trained, then the metrics of each task that took part."""
    known = {key: label for key, label in BACKBONE_LINES.items() if metrics.get(key) is not None}
    parts = ["\n".join(["| | |", "|---|---|", *_lines(metrics, known)])]
    for name, task in (metrics.get("tasks") or {}).items():
        for split in SPLITS:
            if numbers := task.get(split):
                head = f"Task {name} ({task['kind']}), {split} split, {task[f'{split}_samples']} samples:\n\n"
                intervals = (task.get("intervals") or {}).get(split) or {}
                parts.append(head + _metric_table(numbers, intervals))
    return "\n\n".join(parts)


def task_tables(metrics: Mapping[str, Any]) -> str:
    """Markdown: what was trained, then the metrics of each evaluated split with their intervals."""
    parts = ["\n".join(["| | |", "|---|---|", *_lines(metrics, TASK_LINES)])]
    for split in SPLITS:
        if numbers := metrics.get(split):
            intervals = (metrics.get("intervals") or {}).get(split) or {}
            head = f"{split.capitalize()} split, {metrics.get(f'{split}_samples', '?')} samples:\n\n"
            parts.append(head + _metric_table(numbers, intervals))
    return "\n\n".join(parts if len(parts) > 1 else [*parts, "Not evaluated: the data had no labelled split for it."])


def _lines(metrics: Mapping[str, Any], labels: Mapping[str, str]) -> Iterator[str]:
    for key, label in labels.items():
        yield f"| {label} | {_shown(metrics.get(key))} |"


def _shown(value: Any) -> str:
    if value is None:
        return "not measured"
    if isinstance(value, float):
        return f"{value:.4f}" if math.isfinite(value) else "undefined"
    return str(value)


def _metric_table(numbers: Mapping[str, Any], intervals: Mapping[str, Any]) -> str:
    rows = ["| metric | value | 95 % interval |", "|---|---|---|"]
    for name, value in numbers.items():
        ends = " to ".join(_shown(end) for end in intervals.get(name) or () if end is not None)
        rows.append(f"| {name} | {'undefined' if value is None else _shown(value)} | {ends} |")
    return "\n".join(rows)


def hub_results(name: str, task: str, task_name: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Front-matter entries ``metrics`` and ``model-index``; empty when nothing was measured."""
    described = {"type": task, "name": task_name}
    results = [
        {"task": described, "dataset": {"type": "other", "name": f"{split} split of the publisher's data"}, **numbers}
        for split, numbers in _split_results(metrics)
    ]
    if not results:
        return {}
    names = dict.fromkeys(entry["type"] for result in results for entry in result["metrics"])
    return {"metrics": list(names), "model-index": [{"name": name, "results": results}]}


def _split_results(metrics: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    if (loss := metrics.get("validation_loss")) is not None:
        label = PRETRAINING_LINES["validation_loss"]
        yield "validation", {"metrics": [{"type": METRIC, "value": loss, "name": label}]}
    for split in SPLITS:
        found = {key: value for key, value in (metrics.get(split) or {}).items() if key in HUB_METRICS}
        entries = [
            {"type": HUB_METRICS[key], "value": value, "name": f"{key} on the {split} split"}
            for key, value in found.items()
            if isinstance(value, int | float) and math.isfinite(value)
        ]
        if entries:
            yield split, {"metrics": entries}
