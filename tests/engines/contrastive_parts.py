"""Tiny contrastive runs put together in Python; also what each of two processes runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Events

from medcoss_components.data.contrastive_loader import ContrastiveLoader
from medcoss_components.data.modalities import get_modality
from medcoss_components.data.sampler import PretrainingLoader
from medcoss_components.data.views import PairTransform
from medcoss_components.engines.contrastive import ContrastiveEvaluator, ContrastiveTrainer, contrastive_optimizer
from medcoss_components.engines.contrastive_run import ContrastivePretraining
from medcoss_components.networks.initialisation import initialise
from medcoss_components.networks.xray_backbones import xray_backbone
from medcoss_components.pretext.contrastive import ContrastiveModel
from medcoss_components.randomness import generator_for
from medcoss_components.weights import save_weights

SHAPE = (3, 32, 40)
STANDARDISED = {"standardise": "image"}


class Films:
    """Blurred noise, a picture of its own for each sample, with what loaders ask of a store."""

    modality = get_modality("xray", input_shape=SHAPE)
    key, manifest_hash = "key of films", "hash of films"

    def __init__(self, count: int = 10) -> None:
        coarse = torch.rand(count, 1, 5, 6, generator=torch.Generator().manual_seed(0))
        fine = torch.nn.functional.interpolate(coarse, SHAPE[1:], mode="bicubic").clamp(0, 1)
        self.samples = (fine * 255).to(torch.uint8).numpy()
        self.ids = [f"film-{number:02d}" for number in range(count)]

    def __len__(self) -> int:
        return len(self.samples)

    def gather(self, indices: Any) -> np.ndarray:
        return self.samples[np.asarray(indices)]


def make_network(**options: Any) -> ContrastiveModel:
    backbone = xray_backbone("resnet_demo", input_shape=SHAPE, planes=(4, 4, 8, 8))
    network = ContrastiveModel(backbone=backbone, **({"dimension": 6} | options))
    initialise(network, generator_for(0, "initial weights"))
    return network


def make_preprocessing(**options: Any) -> PairTransform:
    return PairTransform(**({"modality": "xray", "input_shape": SHAPE, "intensity": STANDARDISED} | options))


def make_trainer(dataset: Any = None, *, batch_size: int = 4, seed: int = 0, rate: float = 1e-2, **options: Any) -> Any:
    """A trainer over films; ``options`` go to it."""
    network = options.pop("network", None) or make_network()
    defaults = {"device": "cpu", "max_epochs": 2, "queue_size": 6, "normalisation_groups": 2, "precision": "float32"}
    return ContrastiveTrainer(
        **(defaults | {"preprocessing": make_preprocessing(seed=seed), "seed": seed, "momentum": 0.9} | options),
        train_data_loader=ContrastiveLoader(Films() if dataset is None else dataset, batch_size=batch_size, seed=seed),
        network=network,
        optimizer=contrastive_optimizer(network=network, learning_rate=rate),
    )


def make_evaluator(network: Any, dataset: Any = None, *, batch_size: int = 4, **options: Any) -> ContrastiveEvaluator:
    dataset = Films(7) if dataset is None else dataset
    loader = PretrainingLoader(dataset, batch_size=batch_size, shuffle=False)
    options = {"preprocessing": make_preprocessing(), "precision": "float32"} | options
    return ContrastiveEvaluator(device="cpu", val_data_loader=loader, network=network, **options)


def make_run(folder: Path, trainer: Any = None, **options: Any) -> ContrastivePretraining:
    trainer = trainer or make_trainer()
    defaults = {"evaluator": make_evaluator(trainer.model), "settings": {"seed": 0}, "tracking": False}
    return ContrastivePretraining(
        trainer=trainer, output_dir=folder, **(defaults | {"log_interval": 1, "embedding_batch_size": 4} | options)
    )


def losses_of(trainer: Any) -> list[dict[str, float]]:
    """Train; the parts of every iteration."""
    parts: list[dict[str, float]] = []

    def keep(engine: Any) -> None:
        parts.append({kind: float(value) for kind, value in engine.state.output["parts"].items()})

    trainer.add_event_handler(Events.ITERATION_COMPLETED, keep)
    trainer.run()
    return parts


def train(groups: int) -> tuple[list[dict[str, float]], dict[str, torch.Tensor], dict[str, float]]:
    """Ten films in batches of 5 (on two ranks 3 + 2 rows): losses, final state, evaluation."""
    trainer = make_trainer(Films(10), batch_size=5, normalisation_groups=groups, max_epochs=3, rate=1e-3)
    losses = losses_of(trainer)
    contrast = {f"contrast.{name}": value for name, value in trainer.contrast.state_dict().items()}
    return losses, trainer.model.state_dict() | contrast, make_evaluator(trainer.model).evaluate()


def main(folder: Path) -> None:
    """``torchrun contrastive_parts.py folder``: train on two ranks; then a whole run with all its steps."""
    from medcoss_components.engines.setup import start_distributed, stop_distributed

    torch.set_num_threads(1)
    start_distributed()
    losses, state, metrics = train(2)
    if idist.get_rank() == 0:
        save_weights(folder / "state.safetensors", state)
        (folder / "losses.json").write_text(json.dumps([losses, metrics]))
    make_run(folder / "run").run()
    stop_distributed()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
