"""Ctrl-C that reaches one of two processes alone; run under torchrun, each process writes where it stopped."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import ignite.distributed as idist
from ignite.engine import Events
from strategy_ranks import network, trainer_of

from medcoss_components.engines.handlers import NonFiniteGuard, ResumeCheckpoint
from medcoss_components.engines.setup import start_distributed, stop_distributed


def interrupt(engine) -> None:
    if idist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGINT)


def main(folder: Path) -> None:
    start_distributed()
    trainer = trainer_of(network(json.loads((folder / "sizes.json").read_text())))
    ResumeCheckpoint(path=folder / "checkpoint.pt", seconds=600, guard=NonFiniteGuard(), parts={}).attach(trainer)
    trainer.add_event_handler(Events.ITERATION_STARTED(once=3), interrupt)
    try:
        trainer.run()
    except KeyboardInterrupt:
        (folder / f"stopped{idist.get_rank()}").write_text(str(trainer.state.iteration))
    stop_distributed()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
