"""A tiny stage of each strategy that adds something to the loss; run by one process or, under torchrun, by two."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Events

from medcoss_components.continual.strategies.ewc import IMPORTANCE_NAME
from medcoss_components.data.modalities import get_modality
from medcoss_components.data.sampler import PretrainingLoader
from medcoss_components.engines.optimisation import pretraining_optimizer
from medcoss_components.engines.pretrainer import Pretrainer
from medcoss_components.engines.setup import start_distributed, stop_distributed
from medcoss_components.networks.pretraining import PretrainingModel, encoder_state
from medcoss_components.weights import save_weights

STRATEGIES = ("ewc", "cassle")


class Pictures:
    """Seven random X-rays of 8 x 18 pixels: batches of 5 (3 + 2 rows on two ranks) and of 2."""

    modality = get_modality("xray", input_shape=[3, 8, 18])
    key, manifest_hash = "key", "hash"

    def __init__(self) -> None:
        values = np.random.default_rng(0).random((7, *self.modality.stored_shape)) * 255
        self.samples = values.astype(self.modality.stored_dtype)
        self.ids = [f"picture-{number}" for number in range(7)]

    def __len__(self) -> int:
        return 7

    def gather(self, indices):
        return self.samples[np.asarray(indices)]


def write_start(folder: Path, sizes: dict) -> None:
    """What the first stage would have left: every weight of the encoder matters alike."""
    ones = {name: torch.ones_like(value) for name, value in encoder_state(network(sizes)).items()}
    save_weights(folder / IMPORTANCE_NAME, ones)


def network(sizes: dict) -> PretrainingModel:
    torch.manual_seed(7)
    return PretrainingModel(preset="demo", **sizes)


def trainer_of(model: PretrainingModel, **options) -> Pretrainer:
    """Three epochs over the seven pictures."""
    return Pretrainer(
        device="cpu",
        max_epochs=3,
        train_data_loader=PretrainingLoader(Pictures(), batch_size=5, seed=0),
        network=model,
        optimizer=pretraining_optimizer(network=model, learning_rate=1e-3),
        precision="float32",
        **options,
    )


def train(folder: Path, sizes: dict, strategy: str) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """The parts of every loss, and the network's weights and those of its companion at the end; then the importance."""
    model, outputs = network(sizes), []
    options = {"strategy": strategy, "strategy_options": {"ewc_weight": 10.0}, "init_weights": folder}
    trainer = trainer_of(model, max_gradient_norm=1.0, **options)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: outputs.append(engine.state.output["parts"]))
    trainer.run()
    output = folder / f"{strategy}{idist.get_world_size()}"
    main = idist.get_rank() == 0
    trainer.strategy.finish(SimpleNamespace(model=model, trainer=trainer, dataset=Pictures(), folder=output, main=main))
    state = dict(model.state_dict())
    if trainer.strategy.companion is not None:
        state |= {f"predictor.{name}": value for name, value in trainer.strategy.companion.state_dict().items()}
    return [{kind: float(value) for kind, value in parts.items()} for parts in outputs], state


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    start_distributed()
    sizes = json.loads((folder / "sizes.json").read_text())
    for strategy in STRATEGIES:
        losses, state = train(folder, sizes, strategy)
        if idist.get_rank() == 0:
            (folder / f"{strategy}.json").write_text(json.dumps(losses))
            save_weights(folder / f"{strategy}.safetensors", state)
    stop_distributed()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
