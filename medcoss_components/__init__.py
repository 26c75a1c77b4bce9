"""Continual multi-modal medical pre-training: the components that the MedCoSS bundles wire together.

Bundle configs name everything as ``medcoss_components.<name>``. Names are looked up on first use, so importing the
package loads neither torch nor any reader.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from medcoss_components._version import __version__

_EXPORTS: dict[str, str] = {
    "classification_dataset": "data.labelled",
    "segmentation_dataset": "data.labelled",
    "PretrainingLoader": "data.sampler",
    "open_store": "data.store",
    "prepare_store": "data.store",
    "TaskTransform": "data.task_inputs",
    "CaseLoader": "data.task_loader",
    "ClassificationLoader": "data.task_loader",
    "SegmentationLoader": "data.task_loader",
    "PretrainingChain": "engines.chain",
    "EmbeddingEvaluator": "engines.embedding",
    "PretextEvaluator": "engines.evaluation",
    "write_evaluation": "engines.evaluation",
    "FineTuner": "engines.finetuning",
    "evaluate_task": "engines.finetuning_run",
    "FineTuning": "engines.finetuning_run",
    "LearningRateSchedule": "engines.handlers",
    "PolynomialDecay": "engines.handlers",
    "finetuning_optimizer": "engines.optimisation",
    "pretraining_optimizer": "engines.optimisation",
    "scaled_learning_rate": "engines.optimisation",
    "Pretrainer": "engines.pretrainer",
    "default_device": "engines.setup",
    "initialised_network": "engines.setup",
    "joint_datasets": "engines.setup",
    "prepared_dataset": "engines.setup",
    "register_modalities": "engines.setup",
    "rehearsal_buffers": "engines.setup",
    "stage_vocabulary": "engines.setup",
    "start_distributed": "engines.setup",
    "stop_distributed": "engines.setup",
    "task_network": "engines.setup",
    "PretrainingStage": "engines.stage",
    "ClassificationEvaluator": "engines.task_evaluators",
    "SegmentationEvaluator": "engines.task_evaluators",
    "classification_loss": "engines.task_losses",
    "segmentation_loss": "engines.task_losses",
    "InferenceCases": "inference.cases",
    "InferenceLoader": "inference.cases",
    "ClassificationPredictor": "inference.classification",
    "SegmentationPredictor": "inference.segmentation",
    "ClassificationModel": "networks.classification",
    "PretrainingModel": "networks.pretraining",
    "SegmentationModel": "networks.segmentation",
    "bundle_root": "zoo.runtime",
    "bundle_weights": "zoo.runtime",
    "start_bundle": "zoo.runtime",
}
"""Exported name -> module that defines it."""

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it exports {', '.join(sorted(_EXPORTS))}")
    value = getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
