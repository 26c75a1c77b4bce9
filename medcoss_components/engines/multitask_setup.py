"""The parts of multi-task training that a config describes task by task.

tasks:
  pneumonia: {kind: classification, data_manifest: ..., classes: [normal, pneumonia]}
  lungs: {kind: segmentation, data_manifest: ..., regions: {lungs: [1, 2]}}
  tuberculosis: {kind: detection, data_manifest: ..., categories: [tuberculosis]}
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from medcoss_components.continual.memorization import FeatureMemory
from medcoss_components.data.cases import case_settings
from medcoss_components.data.detection import detection_dataset
from medcoss_components.data.detection_inputs import DetectionTransform
from medcoss_components.data.labelled import classification_dataset, segmentation_dataset
from medcoss_components.data.modalities import get_modality
from medcoss_components.data.task_inputs import TaskTransform
from medcoss_components.data.task_loader import CaseLoader, ClassificationLoader, DetectionLoader, SegmentationLoader
from medcoss_components.engines.detection import DetectionEvaluator, detection_loss
from medcoss_components.engines.multitask import TaskView
from medcoss_components.engines.multitask_evaluation import HEADLINES, MEAN, MultiTaskEvaluator
from medcoss_components.engines.multitask_loader import MultiTaskLoader
from medcoss_components.engines.task_evaluators import ClassificationEvaluator, SegmentationEvaluator
from medcoss_components.engines.task_losses import (
    CLASSIFICATION,
    DETECTION,
    SEGMENTATION,
    classification_loss,
    segmentation_loss,
)
from medcoss_components.errors import InputError
from medcoss_components.networks.xray_heads import HEADS
from medcoss_components.networks.xray_tasks import TASK_NAME

OUTPUTS = {kind: key for kind, (_, key, _) in HEADS.items()}
"""Kind of a task -> the key that names what it tells."""
DATASETS: dict[str, Any] = {
    CLASSIFICATION: classification_dataset,
    SEGMENTATION: segmentation_dataset,
    DETECTION: detection_dataset,
}
LOADERS: dict[str, Any] = {
    CLASSIFICATION: ClassificationLoader,
    SEGMENTATION: SegmentationLoader,
    DETECTION: DetectionLoader,
}
DATA_KEYS = ("data_manifest", "dataset_dir", "preparation", "validation_share", "label_ratio", "max_bad_share")
TRAINING_KEYS = ("batch_size", "intensity", "augmentation", "headline", "head")
WEIGHTS = {CLASSIFICATION: "class_weights", SEGMENTATION: "region_weights", DETECTION: "box_weight"}
Tasks = Mapping[str, Mapping[str, Any]]


def check_tasks(tasks: Tasks) -> None:
    """See that every task says its kind, its data and what it tells, and nothing that is not known.

    Raises:
        InputError: naming the task and the key.
    """
    if not tasks:
        raise InputError("tasks: at least one is needed, received none")
    for name, entry in tasks.items():
        if not TASK_NAME.fullmatch(name) or name == MEAN:
            raise InputError(f"tasks: {name!r} must be a letter a-z, then a-z, 0-9 and _, and must not be {MEAN!r}")
        kind = entry.get("kind")
        if kind not in OUTPUTS:
            raise InputError(f"task {name!r}: kind must be one of {', '.join(OUTPUTS)}, received {kind!r}")
        if not entry.get(OUTPUTS[kind]):
            raise InputError(f"task {name!r}: a task of kind {kind} needs {OUTPUTS[kind]}, received none")
        known = {"kind", OUTPUTS[kind], WEIGHTS[kind], *DATA_KEYS, *TRAINING_KEYS}
        unknown = sorted(set(entry) - known)
        if unknown:
            raise InputError(f"task {name!r}: {unknown[0]!r} is no key; known: {', '.join(sorted(known))}")


def network_tasks(tasks: Tasks) -> dict[str, dict[str, Any]]:
    """What the network needs of the tasks: kind, names of outputs and settings of the ``head``."""
    check_tasks(tasks)
    return {
        name: {key: entry[key] for key in ("kind", OUTPUTS[entry["kind"]])} | dict(entry.get("head") or {})
        for name, entry in tasks.items()
    }


def multitask_datasets(
    *, tasks: Tasks, modality: Any, store_dir: str | Path, split: str = "training", **options: Any
) -> dict[str, Any]:
    """Task -> labelled data of a split; prepared when there is no store yet.

    Args:
        tasks: see the module; ``data_manifest``, ``dataset_dir``, ``preparation``, ``validation_share``,
            ``label_ratio`` and ``max_bad_share`` of a task go before those of all.
        modality: name or entry with ``input_shape``, the same for all.
        store_dir: folder of all stores.
        split: "training", "validation" or "testing".
        options: of all tasks, as :func:`~medcoss_components.data.labelled.classification_dataset` takes them; with
            ``optional`` a task without items in the split is left out.

    Raises:
        InputError: naming the manifest.
    """
    check_tasks(tasks)
    found = {
        name: _dataset(entry, modality=get_modality(modality), store_dir=store_dir, split=split, **options)
        for name, entry in tasks.items()
    }
    return {name: dataset for name, dataset in found.items() if dataset is not None}


def _dataset(entry: Mapping[str, Any], *, modality: Any, **options: Any) -> Any:
    own = {key: entry[key] for key in DATA_KEYS if key in entry and key != "data_manifest"}
    kind = entry["kind"]
    if kind == SEGMENTATION:
        own["preparation"] = _case_preparation(modality, options.get("preparation"), own.get("preparation"))
    arguments = {**options, **own, "manifest": entry.get("data_manifest"), "modality": modality}
    return DATASETS[kind](**arguments, **{OUTPUTS[kind]: entry[OUTPUTS[kind]]})


def _case_preparation(modality: Any, shared: Mapping[str, Any] | None, own: Mapping[str, Any] | None) -> dict[str, Any]:
    """Settings of a segmentation task: those of all as far as cases know them (``fit`` is for images without masks),
    the size of the input instead of a manifest's spacing, then its own."""
    sized = {"spacing": None, "size": list(modality.input_shape[1:])}
    if own and own.get("spacing") is not None:
        sized = {"size": None}
    return {**case_settings(modality, shared or {}), **sized, **(own or {})}


def multitask_preprocessing(
    *,
    tasks: Tasks,
    modality: Any,
    intensity: Mapping[str, Any] | None = None,
    augmentation: str | None = "flip",
    seed: int = 0,
) -> dict[str, Any]:
    """Task -> what turns stored batches into inputs and targets; ``intensity`` and ``augmentation`` of a task go
    before those of all."""
    found: dict[str, TaskTransform] = {}
    for name, entry in tasks.items():
        options = {
            "modality": get_modality(modality),
            "intensity": entry.get("intensity", intensity),
            "augmentation": entry.get("augmentation", augmentation),
            "seed": seed,
        }
        if entry["kind"] == DETECTION:
            found[name] = DetectionTransform(**options)
        else:
            found[name] = TaskTransform(**options, regions=entry.get("regions"))
    return found


def multitask_loader(
    *,
    tasks: Tasks,
    datasets: Mapping[str, Any],
    batch_size: int,
    seed: int = 0,
    num_workers: int = 0,
    **schedule: Any,
) -> MultiTaskLoader:
    """The training data of all tasks in turn.

    Args:
        tasks: see the module; ``batch_size`` of a task goes before that of all.
        datasets: training data of every task.
        batch_size: of all ranks together.
        seed: of the orders.
        num_workers: reader processes.
        schedule: ``cyclic``, ``reshuffled``, ``epochs_per_visit`` and ``rounds`` of
            :class:`~medcoss_components.engines.multitask_loader.MultiTaskLoader`.
    """
    loaders = {}
    for name, entry in tasks.items():
        options = {"batch_size": entry.get("batch_size", batch_size), "seed": seed, "num_workers": num_workers}
        if entry["kind"] == SEGMENTATION:
            options["foreground_share"] = 0.0  # the window is the whole image
        loaders[name] = LOADERS[entry["kind"]](datasets[name], **options)
    return MultiTaskLoader(loaders, seed=seed, **schedule)


def multitask_losses(*, tasks: Tasks, datasets: Mapping[str, Any], network: Any) -> dict[str, Any]:
    """Task -> its loss, with ``class_weights`` or ``region_weights`` of the task; detection has its head's own."""
    found: dict[str, Any] = {}
    for name, entry in tasks.items():
        if entry["kind"] == CLASSIFICATION:
            found[name] = classification_loss(class_weights=entry.get("class_weights"), dataset=datasets[name])
        elif entry["kind"] == SEGMENTATION:
            found[name] = segmentation_loss(region_weights=entry.get("region_weights"), regions=entry["regions"])
        else:
            found[name] = detection_loss(network=network.heads[name], box_weight=entry.get("box_weight", 1.0))
    return found


def multitask_evaluator(
    *,
    tasks: Tasks,
    datasets: Mapping[str, Any],
    network: torch.nn.Module,
    preprocessing: Mapping[str, Any],
    device: torch.device | str,
    precision: str = "bf16",
    batch_size: int = 24,
    num_workers: int = 0,
) -> MultiTaskEvaluator | None:
    """The evaluator of all tasks that have data in a split; None where none has.

    Args:
        tasks: see the module; ``headline`` of a task is the metric that speaks for it.
        datasets: labelled data of a split, see :func:`multitask_datasets`.
        network: the multi-task network.
        preprocessing: of every task.
        device, precision, batch_size, num_workers: of the evaluators.
    """
    shared = {"device": device, "precision": precision}
    evaluators = {
        name: _evaluator(
            tasks[name],
            dataset,
            {"batch_size": batch_size, "num_workers": num_workers},
            shared | {"network": TaskView(network, name), "preprocessing": preprocessing[name]},
        )
        for name, dataset in datasets.items()
    }
    if not evaluators:
        return None
    headlines = {name: tasks[name].get("headline") or HEADLINES[tasks[name]["kind"]] for name in evaluators}
    return MultiTaskEvaluator(evaluators=evaluators, headlines=headlines)


def _evaluator(entry: Mapping[str, Any], dataset: Any, reading: Mapping[str, Any], shared: dict[str, Any]) -> Any:
    kind = entry["kind"]
    if kind == SEGMENTATION:
        cases = CaseLoader(dataset, num_workers=reading["num_workers"])
        return SegmentationEvaluator(**shared, val_data_loader=cases, regions=entry["regions"])
    if kind == CLASSIFICATION:
        samples = ClassificationLoader(dataset, **reading, shuffle=False)
        return ClassificationEvaluator(**shared, val_data_loader=samples, classes=entry["classes"])
    images = DetectionLoader(dataset, **reading, shuffle=False)
    return DetectionEvaluator(**shared, val_data_loader=images, categories=entry["categories"])


def feature_memory(
    *, memory: bool, output_dir: str | Path, features_dir: str | Path | None = None
) -> FeatureMemory | None:
    """Where the features of all tasks' images are cached; None without ``memory`` (muscle--).

    Args:
        memory: whether cross-task memorization is on.
        output_dir: of the run; the features lie in ``features`` there.
        features_dir: another folder, which several runs may share.
    """
    return FeatureMemory(features_dir or Path(output_dir) / "features") if memory else None
