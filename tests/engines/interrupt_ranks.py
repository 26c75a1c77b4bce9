"""Ctrl-C that reaches one of two processes alone; run under torchrun, each process writes where it stopped."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import ignite.distributed as idist
from ignite.engine import Events
from strategy_ranks import Pictures, network

from medcoss_components.data.sampler import PretrainingLoader
from medcoss_components.engines.handlers import NonFiniteGuard, ResumeCheckpoint
from medcoss_components.engines.optimisation import pretraining_optimizer
from medcoss_components.engines.pretrainer import Pretrainer
from medcoss_components.engines.setup import start_distributed, stop_distributed


def interrupt(engine) -> None:
    if idist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGINT)


def main(folder: Path) -> None:
    start_distributed()
    model = network(json.loads((folder / "sizes.json").read_text()))
    trainer = Pretrainer(
        device="cpu",
        max_epochs=3,
        train_data_loader=PretrainingLoader(Pictures(), batch_size=5, seed=0),
        network=model,
        optimizer=pretraining_optimizer(network=model, learning_rate=1e-3),
        precision="float32",
    )
    ResumeCheckpoint(path=folder / "checkpoint.pt", seconds=600, guard=NonFiniteGuard(), parts={}).attach(trainer)
    trainer.add_event_handler(Events.ITERATION_STARTED(once=3), interrupt)
    try:
        trainer.run()
    except KeyboardInterrupt:
        (folder / f"stopped{idist.get_rank()}").write_text(str(trainer.state.iteration))
    stop_distributed()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
