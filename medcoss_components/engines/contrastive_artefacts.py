"""What a finished contrastive run leaves for people: numbers and pictures."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from medcoss_components.continual.exemplars import project_2d
from medcoss_components.data.sampler import BatchPlan, BatchReader
from medcoss_components.engines.artefacts import PANEL_ROWS
from medcoss_components.engines.handlers import memory_metrics
from medcoss_components.even_spread import evenly_spread
from medcoss_components.tracking.contrastive_figures import contrastive_curves, embedding_map, view_pairs

if TYPE_CHECKING:
    from medcoss_components.engines.contrastive_run import ContrastivePretraining


def run_metrics(run: ContrastivePretraining) -> dict[str, Any]:
    """The numbers of metrics.json (losses and shares as recorded, seconds, bytes)."""
    trainer, values, dataset = run.trainer, run.record.values, run.dataset
    recorded = {kind: run.history.losses(dataset.modality.name, kind) for kind in ("contrastive", "accuracy")}
    losses, accuracies = recorded["contrastive"], recorded["accuracy"]
    samples = trainer.state.max_epochs * len(dataset)
    return {
        "name": run.name,
        "task": "contrastive",
        "modality": dataset.modality.name,
        "input_shape": list(trainer.preprocessing.modality.input_shape),
        "samples": len(dataset),
        "datasets": getattr(dataset, "counts", {}),
        "body_parts": dict(sorted(Counter(part for part in _body_parts(dataset) if part is not None).items())),
        "epochs": trainer.state.max_epochs,
        "iterations": trainer.total_iterations,
        "batch_size": trainer.data_loader.batch_size,
        "queue_size": len(trainer.contrast.queue),
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "network": asdict(run.model.backbone.sizes),
        "backbone_parameters": sum(parameter.numel() for parameter in run.model.backbone.parameters()),
        "device": str(trainer.state.device),
        "precision": trainer.precision,
        "seconds": {
            "prepare": values["preparation_seconds"],
            **{step: record["seconds"] for step, record in run.record.steps.items()},
            "train": values["training_seconds"],
        },
        "samples_per_second": samples / max(1e-9, values["training_seconds"]),
        "first_loss": losses[0] if losses else None,
        "final_loss": losses[-1] if losses else None,
        "final_accuracy": accuracies[-1] if accuracies else None,
        "feature_spread": values["feature_spread"],
        "validation": values["validation"],
        "init": getattr(run.model, "load_report", None),
        "peak_memory_bytes": round(memory_metrics(trainer.state.device)["peak_memory_mib"] * 2**20),
    }


def _body_parts(dataset: Any) -> list[str | None]:
    known = getattr(dataset, "body_parts", None)
    return [None] * len(dataset) if known is None else known


def _dataset_names(dataset: Any) -> list[str]:
    """Name of the data set of each sample."""
    if not hasattr(dataset, "dataset_names"):
        return [dataset.modality.name] * len(dataset)
    return [dataset.dataset_names[number] for number in dataset.datasets]


def write_previews(run: ContrastivePretraining) -> None:
    """Curves, view pairs and maps of the embeddings as PNG files in ``previews/``."""
    folder = run.folder / "previews"
    folder.mkdir(exist_ok=True)
    contrastive_curves(run.history.to_json(), folder / "curves.png")
    view_pairs(*_pairs(run), folder / "views.png")
    rows, points = run.embedded_rows, project_2d(np.load(run.embeddings_path))
    names, parts = _dataset_names(run.dataset), _body_parts(run.dataset)
    embedding_map(points, [names[row] for row in rows], folder / "datasets.png", title="Embeddings by data set")
    if any(part is not None for part in parts):
        embedding_map(points, [parts[row] for row in rows], folder / "body_parts.png", title="Embeddings by body part")


def _pairs(run: ContrastivePretraining) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, query views and key views (B, C, H, W) of samples spread over the data; those of the first epoch's first
    batch, row by row, had they stood in it."""
    preprocessing, device = run.trainer.preprocessing, run.trainer.state.device
    rows = evenly_spread(len(run.dataset), PANEL_ROWS)
    batch = BatchReader([run.dataset], current=1, seed=preprocessing.seed)[BatchPlan(0, 0, 0, rows)]
    return preprocessing.plain(batch["raw"], device), *preprocessing.pair(batch, device)
