"""What a finished stage leaves for people: numbers and pictures."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from medcoss_components.continual.buffer import read_buffer
from medcoss_components.continual.exemplars import project_2d
from medcoss_components.data.modalities import Modality
from medcoss_components.data.sampler import BatchPlan, BatchReader, SampleSource
from medcoss_components.data.transforms import to_model_input
from medcoss_components.engines.batches import step_batch
from medcoss_components.engines.handlers import memory_metrics
from medcoss_components.engines.optimisation import autocast
from medcoss_components.even_spread import evenly_spread
from medcoss_components.tracking import previews

if TYPE_CHECKING:
    from medcoss_components.engines.stage import PretrainingStage
    from medcoss_components.text.vocabulary import Vocabulary

PANEL_ROWS = 6
SHEET_SAMPLES = 24


def stage_metrics(stage: PretrainingStage) -> dict[str, Any]:
    """The numbers of metrics.json (losses as recorded, seconds, samples per second, bytes)."""
    trainer, values, name = stage.trainer, stage.record.values, stage.dataset.modality.name
    losses = stage.history.losses(name, "pretext")
    seconds = {step: record["seconds"] for step, record in stage.record.steps.items()}
    samples, vocabulary = _samples_seen(trainer), trainer.settings.vocabulary
    return {
        "stage": stage.name,
        "modality": name,
        "strategy": trainer.strategy.name,
        "samples": len(stage.dataset),
        "epochs": trainer.state.max_epochs,
        "iterations": trainer.total_iterations,
        "buffer_size": stage.exemplars,
        "network": asdict(stage.model.sizes),
        "parameters": sum(parameter.numel() for parameter in stage.model.parameters()),
        "device": str(trainer.state.device),
        "precision": trainer.precision,
        "seconds": {"prepare": values["preparation_seconds"], **seconds, "train": values["training_seconds"]},
        "samples_per_second": samples / max(1e-9, values["training_seconds"]),
        "first_loss": losses[0] if losses else None,
        "final_loss": losses[-1] if losses else None,
        "validation_loss": values.get("validation_loss"),
        "rehearsal": _rehearsal_metrics(stage),
        "vocabulary_hash": None if vocabulary is None else vocabulary.hash,
        "peak_memory_bytes": round(memory_metrics(trainer.state.device)["peak_memory_mib"] * 2**20),
    }


def _samples_seen(trainer: Any) -> int:
    plans = trainer.data_loader.sampler.plans(0)
    return trainer.state.max_epochs * sum(len(plan.indices) for plan in plans)


def _rehearsal_metrics(stage: PretrainingStage) -> dict[str, Any]:
    loader = stage.trainer.data_loader
    sizes = Counter({source.modality.name: len(source) for source in loader.sources[loader.current :]})
    metrics = {}
    for modality, kind in sorted({(row[2], row[3]) for row in stage.history.rows if row[2] in sizes}):
        losses = stage.history.losses(modality, kind)
        metrics[modality] = {"kind": kind, "first": losses[0], "final": losses[-1], "buffer_size": sizes[modality]}
    return metrics


def write_previews(stage: PretrainingStage) -> None:
    """Reconstructions, buffer map, exemplars and loss curves as PNG files in ``previews/``."""
    folder = stage.folder / "previews"
    folder.mkdir(exist_ok=True)
    source = stage.evaluator.data_loader.dataset if stage.evaluator is not None else stage.dataset
    PANELS[stage.dataset.modality.pretext](stage, source, folder / "reconstruction.png")
    buffer = read_buffer(stage.folder)
    points = project_2d(np.load(stage.embeddings_path))
    previews.buffer_map(points, np.array(buffer.indices), np.array(buffer.clusters), folder / "buffer_map.png")
    _exemplar_sheet(stage, np.array(buffer.indices), folder / "exemplars.png")
    previews.loss_curves(stage.history.to_json(), folder / "loss.png")


def _preview_batch(stage: PretrainingStage, source: SampleSource, rows: np.ndarray) -> Any:
    settings = stage.trainer.settings
    fixed = replace(settings, augment=False)
    batch = BatchReader([source], current=1, seed=settings.seed)[BatchPlan(0, 0, 0, rows)]
    return step_batch(batch, modality=source.modality, settings=fixed, device=stage.trainer.state.device)


@torch.no_grad()
def _image_panel(stage: PretrainingStage, source: SampleSource, path: Path) -> None:
    batch = _preview_batch(stage, source, evenly_spread(len(source), PANEL_ROWS)).pretext()
    stage.model.eval()
    with autocast(stage.trainer.precision, stage.trainer.state.device):
        masked, rebuilt = stage.model.reconstruction_images(
            source.modality,
            batch.inputs,
            noise=batch.arguments["noise"],
            mask_ratio=batch.arguments["mask_ratio"],
            fill=float("nan"),
        )
    original = batch.inputs.float().cpu().numpy()
    previews.reconstruction_panel(original, masked.cpu().numpy(), rebuilt.float().cpu().numpy(), path)


@torch.no_grad()
def _text_panel(stage: PretrainingStage, source: SampleSource, path: Path) -> None:
    batch = _preview_batch(stage, source, evenly_spread(len(source), PANEL_ROWS)).pretext()
    labels, padding_mask = batch.arguments["labels"], batch.arguments["padding_mask"]
    stage.model.eval()
    with autocast(stage.trainer.precision, stage.trainer.state.device):
        logits = stage.model.predict_tokens(source.modality, batch.inputs, labels != -100, padding_mask=padding_mask)
    vocabulary = stage.vocabulary
    predicted = torch.full_like(labels, -100)
    predicted[labels != -100] = logits[:, : vocabulary.size].argmax(dim=-1)  # the table may have spare rows
    true = torch.where(labels != -100, labels, batch.inputs)
    rows = [_text_row(vocabulary, *row) for row in zip(true, labels, predicted, padding_mask, strict=True)]
    previews.text_panel(rows, path, show_text=stage.show_text)


def _text_row(
    vocabulary: Vocabulary, ids: torch.Tensor, labels: torch.Tensor, predicted: torch.Tensor, padding: torch.Tensor
) -> tuple[list[str], list[bool], list[str]]:
    length = int(padding.sum())
    words = [vocabulary.token(int(number)) for number in ids[:length]]
    chosen = [bool(label != -100) for label in labels[:length]]
    guesses = [vocabulary.token(int(number)) if number != -100 else "" for number in predicted[:length]]
    return words, chosen, guesses


PANELS = {"masked_image": _image_panel, "masked_language": _text_panel}
"""Pretext rule -> how its result is shown."""


def _exemplar_sheet(stage: PretrainingStage, indices: np.ndarray, path: Path) -> None:
    chosen = indices[evenly_spread(len(indices), SHEET_SAMPLES)]
    raw = torch.from_numpy(stage.dataset.gather(chosen))
    samples = SHEETS[stage.dataset.modality.pretext](stage, stage.dataset.modality, raw)
    previews.contact_sheet(samples, path, total=len(indices), show_text=stage.show_text)


def _sheet_images(stage: PretrainingStage, modality: Modality, raw: torch.Tensor) -> np.ndarray:
    return to_model_input(modality, raw).float().numpy()


def _sheet_texts(stage: PretrainingStage, modality: Modality, raw: torch.Tensor) -> list[str]:
    vocabulary = stage.vocabulary
    return [vocabulary.decode(row.tolist()) for row in to_model_input(modality, raw)]


SHEETS = {"masked_image": _sheet_images, "masked_language": _sheet_texts}
