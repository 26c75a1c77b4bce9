"""Continual multi-modal medical pre-training: the components that the MedCoSS bundles wire together.

Bundle configs name everything as ``medcoss_components.<name>``. Names are looked up on first use, so importing the
package loads neither torch nor any reader.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from medcoss_components._version import __version__

_EXPORTS: dict[str, str] = {
    "ContrastiveLoader": "data.contrastive_loader",
    "detection_dataset": "data.detection",
    "DetectionTransform": "data.detection_inputs",
    "classification_dataset": "data.labelled",
    "segmentation_dataset": "data.labelled",
    "get_modality": "data.modalities",
    "PretrainingLoader": "data.sampler",
    "open_store": "data.store",
    "prepare_store": "data.store",
    "TaskTransform": "data.task_inputs",
    "CaseLoader": "data.task_loader",
    "ClassificationLoader": "data.task_loader",
    "DetectionLoader": "data.task_loader",
    "SegmentationLoader": "data.task_loader",
    "PairTransform": "data.views",
    "PretrainingChain": "engines.chain",
    "contrastive_optimizer": "engines.contrastive",
    "ContrastiveEvaluator": "engines.contrastive",
    "ContrastiveTrainer": "engines.contrastive",
    "write_contrastive_evaluation": "engines.contrastive",
    "ContrastivePretraining": "engines.contrastive_run",
    "detection_loss": "engines.detection",
    "DetectionEvaluator": "engines.detection",
    "EmbeddingEvaluator": "engines.embedding",
    "PretextEvaluator": "engines.evaluation",
    "write_evaluation": "engines.evaluation",
    "FineTuner": "engines.finetuning",
    "evaluate_task": "engines.finetuning_run",
    "FineTuning": "engines.finetuning_run",
    "LearningRateSchedule": "engines.handlers",
    "PolynomialDecay": "engines.handlers",
    "MultiTaskTrainer": "engines.multitask",
    "MultiTaskEvaluator": "engines.multitask_evaluation",
    "evaluate_tasks": "engines.multitask_run",
    "MultiTaskTraining": "engines.multitask_run",
    "feature_memory": "engines.multitask_setup",
    "multitask_datasets": "engines.multitask_setup",
    "multitask_evaluator": "engines.multitask_setup",
    "multitask_loader": "engines.multitask_setup",
    "multitask_losses": "engines.multitask_setup",
    "multitask_preprocessing": "engines.multitask_setup",
    "network_tasks": "engines.multitask_setup",
    "MusclePretraining": "engines.muscle",
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
    "xray_union": "engines.xray_union",
    "InferenceCases": "inference.cases",
    "InferenceLoader": "inference.cases",
    "ClassificationPredictor": "inference.classification",
    "DetectionPredictor": "inference.detection",
    "SegmentationPredictor": "inference.segmentation",
    "ClassificationModel": "networks.classification",
    "PretrainingModel": "networks.pretraining",
    "SegmentationModel": "networks.segmentation",
    "input_intensity": "networks.xray_backbones",
    "xray_backbone": "networks.xray_backbones",
    "MultiTaskXrayModel": "networks.xray_tasks",
    "XrayClassificationModel": "networks.xray_tasks",
    "XrayDetectionModel": "networks.xray_tasks",
    "XrayEmbeddingModel": "networks.xray_tasks",
    "XraySegmentationModel": "networks.xray_tasks",
    "ContrastiveModel": "pretext.contrastive",
    "PooledFeatures": "pretext.contrastive",
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
