"""A tiny downstream task put together in Python, as the configs do it; also what each of two processes runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from medcoss_components.data.labelled import classification_dataset, segmentation_dataset
from medcoss_components.data.modalities import get_modality
from medcoss_components.data.task_inputs import TaskTransform
from medcoss_components.data.task_loader import CaseLoader, ClassificationLoader, SegmentationLoader
from medcoss_components.engines.finetuning import FineTuner
from medcoss_components.engines.finetuning_run import FineTuning
from medcoss_components.engines.handlers import PolynomialDecay
from medcoss_components.engines.optimisation import finetuning_optimizer
from medcoss_components.engines.task_evaluators import ClassificationEvaluator, SegmentationEvaluator
from medcoss_components.engines.task_losses import classification_loss, segmentation_loss
from medcoss_components.networks.classification import ClassificationModel
from medcoss_components.networks.initialisation import initialise
from medcoss_components.networks.segmentation import SegmentationModel
from medcoss_components.randomness import generator_for

CLASSES = ("small", "large")
REGIONS = {"organ": [1, 2], "core": [2]}


def build_network(task: str, modality: Any, sizes: dict[str, Any], seed: int) -> Any:
    entry = get_modality(modality)
    if task == "classification":
        network = ClassificationModel(preset="demo", modality=entry, classes=CLASSES, **sizes)
    else:
        network = SegmentationModel(preset="demo", modality=entry, regions=REGIONS, feature_size=4, **sizes)
    initialise(network, generator_for(seed, "initial weights"))
    return network


def build_task(
    *,
    task: str,
    manifest: str | Path,
    modality: Any,
    store_dir: str | Path,
    vocabulary: Any = None,
    sizes: dict[str, Any],
    seed: int = 0,
    batch_size: int = 3,
    learning_rate: float = 1e-3,
    frozen: bool = False,
    source_geometry: bool = False,
    augmentation: str | None = None,
    network: Any = None,
    handlers: Any = None,
    loss: Any = None,
    **options: Any,
) -> SimpleNamespace:
    """trainer, validator, tester, network, vocabulary and training data of a task; ``options`` go to the trainer."""
    is_class = task == "classification"
    data = {"manifest": manifest, "modality": modality, "store_dir": store_dir, "workers": 1}
    kind = {"classes": CLASSES, "vocabulary": vocabulary} if is_class else {"regions": REGIONS}
    if not is_class and get_modality(modality).dimension == 2:
        data["preparation"] = {"size": list(get_modality(modality).input_shape[1:])}
    make = classification_dataset if is_class else segmentation_dataset
    training, validation, testing = (
        make(**data, **kind, split=split) for split in ("training", "validation", "testing")
    )
    network = build_network(task, modality, sizes, seed) if network is None else network
    if frozen:
        network.freeze_encoder()
    preprocessing = TaskTransform(
        modality=modality, augmentation=augmentation, regions=None if is_class else REGIONS, seed=seed
    )
    shared = {"device": "cpu", "network": network, "preprocessing": preprocessing, "precision": "float32"}
    loader = ClassificationLoader if is_class else SegmentationLoader
    trainer = FineTuner(
        **(shared | {"max_epochs": 2, "seed": seed} | options),
        train_data_loader=loader(training, batch_size=batch_size, seed=seed),
        optimizer=finetuning_optimizer(network=network, learning_rate=learning_rate),
        loss_function=loss or (classification_loss() if is_class else segmentation_loss()),
        train_handlers=[PolynomialDecay()] if handlers is None else handlers,
    )

    def evaluator(dataset: Any) -> Any:
        if is_class:
            whole = ClassificationLoader(dataset, batch_size=2, shuffle=False)
            return ClassificationEvaluator(**shared, val_data_loader=whole, classes=CLASSES)
        return SegmentationEvaluator(
            **shared, val_data_loader=CaseLoader(dataset), regions=REGIONS, source_geometry=source_geometry
        )

    return SimpleNamespace(
        trainer=trainer,
        validator=evaluator(validation),
        tester=evaluator(testing),
        network=network,
        vocabulary=vocabulary,
        training=training,
        preprocessing=preprocessing,
    )


def build_run(parts: SimpleNamespace, output_dir: str | Path, **options: Any) -> FineTuning:
    """A run over the parts of a task, without tracking, with a record of every iteration."""
    selection = "dice" if parts.trainer.kind == "segmentation" else "accuracy+auc+f1"
    defaults = {"evaluator": parts.validator, "tester": parts.tester, "selection": selection, "settings": {"seed": 0}}
    defaults |= {"tracking": False, "log_interval": 1, "vocabulary": parts.vocabulary}
    return FineTuning(trainer=parts.trainer, output_dir=output_dir, **(defaults | options))


def main() -> None:
    """``torchrun task_parts.py tasks.json folder``: one whole run for each entry, into ``folder/<task>_<modality>``."""
    from medcoss_components.engines.setup import start_distributed, stop_distributed

    start_distributed()
    for arguments in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        name = f"{arguments['task']}_{arguments['modality']['name']}"
        build_run(build_task(**arguments), Path(sys.argv[2]) / name).run()
    stop_distributed()


if __name__ == "__main__":
    main()
