"""Three tiny X-ray tasks put together in Python, as the configs do it; also what each of two processes runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from medcoss_components.data.modalities import get_modality
from medcoss_components.data.synthetic import synthetic_manifest
from medcoss_components.data.synthetic_detection import synthetic_detection
from medcoss_components.engines.multitask import MultiTaskTrainer
from medcoss_components.engines.multitask_run import MultiTaskTraining
from medcoss_components.engines.multitask_setup import (
    feature_memory,
    multitask_datasets,
    multitask_evaluator,
    multitask_loader,
    multitask_losses,
    multitask_preprocessing,
    network_tasks,
)
from medcoss_components.engines.optimisation import finetuning_optimizer
from medcoss_components.networks.initialisation import initialise
from medcoss_components.networks.xray_tasks import MultiTaskXrayModel
from medcoss_components.randomness import generator_for

MODALITY = {"name": "xray", "input_shape": [3, 32, 48]}
BACKBONE = {"backbone": "resnet_demo", "layers": (1, 1, 1, 1), "planes": (4, 4, 4, 8)}
TASKS: dict[str, dict[str, Any]] = {
    "size": {"kind": "classification", "classes": ["small", "large"]},
    "organs": {"kind": "segmentation", "regions": {"organ": [1, 2], "core": [2]}, "head": {"head_width": 8}},
    "spots": {"kind": "detection", "categories": ["small", "large"], "head": {"head_width": 16}},
}


def write_manifests(folder: Path) -> dict[str, dict[str, Any]]:
    """The tasks with manifests of five to eight training, two validation and two testing pictures each."""
    entry, shared = get_modality(MODALITY), {"validation": 2, "testing": 2, "shape": (32, 48)}
    pictures = {"modality": entry, **shared}
    paths = {
        "size": synthetic_manifest(folder / "size", count=8, seed=1, classes=TASKS["size"]["classes"], **pictures),
        "organs": synthetic_manifest(
            folder / "organs", count=5, seed=2, regions=TASKS["organs"]["regions"], **pictures
        ),
        "spots": synthetic_detection(folder / "spots", count=6, seed=3, **pictures),
    }
    return {name: {**TASKS[name], "data_manifest": str(path)} for name, path in paths.items()}


def build_parts(
    *,
    tasks: dict[str, dict[str, Any]],
    store_dir: str | Path,
    output_dir: str | Path,
    seed: int = 0,
    memory: bool = True,
    rounds: int = 2,
    augmentation: str = "flip",
    learning_rate: float = 1e-3,
    schedule: dict[str, Any] | None = None,
    **options: Any,
) -> SimpleNamespace:
    """trainer, validator and tester over the tasks; ``options`` go to the trainer."""
    splits = {
        split: multitask_datasets(tasks=tasks, modality=MODALITY, store_dir=store_dir, split=split, workers=1)
        for split in ("training", "validation", "testing")
    }
    network = MultiTaskXrayModel(tasks=network_tasks(tasks), input_shape=MODALITY["input_shape"], **BACKBONE)
    initialise(network, generator_for(seed, "initial weights"))
    preprocessing = multitask_preprocessing(tasks=tasks, modality=MODALITY, augmentation=augmentation, seed=seed)
    shared = {"device": "cpu", "network": network, "preprocessing": preprocessing, "precision": "float32"}
    loader = multitask_loader(
        tasks=tasks, datasets=splits["training"], batch_size=3, seed=seed, rounds=rounds, **(schedule or {})
    )
    losses = multitask_losses(tasks=tasks, datasets=splits["training"], network=network)
    trainer = MultiTaskTrainer(
        **(shared | {"feature_weight": 0.1, "anchor_weight": 0.1, "losses": losses} | options),
        max_epochs=rounds,
        train_data_loader=loader,
        optimizer=finetuning_optimizer(network=network, learning_rate=learning_rate),
        memory=feature_memory(memory=memory, output_dir=output_dir),
    )
    evaluators = {
        split: multitask_evaluator(tasks=tasks, datasets=splits[split], batch_size=2, **shared)
        for split in ("validation", "testing")
    }
    return SimpleNamespace(
        trainer=trainer, validator=evaluators["validation"], tester=evaluators["testing"], network=network
    )


def build_run(parts: SimpleNamespace, output_dir: str | Path, **options: Any) -> MultiTaskTraining:
    """A run over the parts, without tracking, with a record of every iteration."""
    defaults = {"evaluator": parts.validator, "tester": parts.tester, "settings": {"seed": 0}}
    defaults |= {"tracking": False, "log_interval": 1}
    return MultiTaskTraining(trainer=parts.trainer, output_dir=output_dir, **(defaults | options))


def main(folder: Path) -> None:
    """``torchrun multitask_parts.py folder``: one whole run into ``folder/run<ranks>``."""
    import ignite.distributed as idist

    from medcoss_components.engines.setup import start_distributed, stop_distributed

    start_distributed()
    tasks = json.loads((folder / "tasks.json").read_text(encoding="utf-8"))
    output = folder / f"run{idist.get_world_size()}"
    build_run(build_parts(tasks=tasks, store_dir=folder / "stores", output_dir=output), output, tester=None).run()
    stop_distributed()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
