"""A handler for the configs of these tests: what each rank reads in each step."""

from __future__ import annotations

import json
from pathlib import Path

import ignite.distributed as idist
from ignite.engine import Events


class RankRecorder:
    """Appends one line (iteration, modality, kind, ids of the own rows) a step to ``<folder>/rank<r>of<R>.jsonl``."""

    def __init__(self, folder: str) -> None:
        self.path = Path(folder) / f"rank{idist.get_rank()}of{idist.get_world_size()}.jsonl"

    def attach(self, engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine) -> None:
        output = engine.state.output
        line = [engine.state.iteration, output["modality"], output["kind"], output["ids"], float(output["loss"])]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
