"""The frame of a run that goes on where it was interrupted: recorded steps inside one tracked run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import ignite.distributed as idist
import torch

from medcoss_components.engines.handlers import LossHistory, NonFiniteGuard, ProgressBar, ResumeCheckpoint
from medcoss_components.engines.records import StepRecord
from medcoss_components.files import remove_partial
from medcoss_components.tracking.runs import TrackedRun, Tracker, open_tracking

logger = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False, repr=False)
class RecordedRun:
    """Runs each of ``steps`` once, in order, over any number of starts of the program.

    A subclass is such a dataclass too, with the settings of its own, and has a method ``_<step>`` for every step.

    Args:
        trainer: the engine, holding network and data.
        output_dir: the run's folder.
        name: for MLflow and progress bars; default: the folder's name.
        settings: result-relevant settings; the folder refuses to go on with others.
        seed: seed of the run.
        log_interval: iterations between two records.
        checkpoint_seconds: at least this long between two resume checkpoints.
        tracking: whether MLflow records the run.
        tracking_uri: MLflow address; None takes MLFLOW_TRACKING_URI or a database in ``tracking_dir``.
        tracking_dir: where that database lies; default: ``output_dir``.
        experiment: MLflow experiment.
        parent_run_id: MLflow run that this one is nested in.
    """

    steps: ClassVar[tuple[str, ...]]
    record_name: ClassVar[str]
    trainer: Any
    output_dir: str | Path
    name: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    log_interval: int = 20
    checkpoint_seconds: float = 300.0
    tracking: bool = True
    tracking_uri: str | None = None
    tracking_dir: str | Path | None = None
    experiment: str = "medcoss"
    parent_run_id: str | None = None

    folder: Path = field(init=False)
    main: bool = field(init=False)
    record: StepRecord = field(init=False)
    history: LossHistory = field(init=False)
    checkpoint: ResumeCheckpoint = field(init=False)
    tracked: TrackedRun = field(init=False)

    def __post_init__(self) -> None:
        self.folder = Path(self.output_dir)
        self.name = self.name or self.folder.name
        self.settings = dict(self.settings or {})
        self.main = idist.get_rank() == 0
        self.tracked = TrackedRun(self.name)

    @property
    def model(self) -> torch.nn.Module:
        return self.trainer.model

    def run(self) -> Path:
        """Run every step that is not recorded as done; return the run's folder."""
        self._open()
        if all(self.record.done(step) for step in self.steps):
            logger.info("%s: finished before, nothing to do", self.name)
            if self.record.values.get("run_id"):
                self._tracker().end_run(self.record.values["run_id"])
            self._clean()
            return self.folder
        with self._tracker().start_run(self.name, **self._run_options()) as self.tracked:
            self.record.values["run_id"] = self.tracked.run_id
            self._attach_handlers()
            for step in self.steps:
                self._run_step(step)
        self._clean()
        return self.folder

    def _run_step(self, step: str) -> None:
        if self.record.done(step):
            self._restore(step)
        else:
            with self.record.step(step):
                getattr(self, f"_{step}")()
                idist.barrier()
        self._completed(step)

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.main:
            remove_partial(self.folder)
        self.record = StepRecord(self.folder / self.record_name, settings=self._identity(), writes=self.main)
        idist.barrier()
        self.record.save()

    def _tracker(self) -> Tracker:
        return open_tracking(
            self.tracking_uri, Path(self.tracking_dir or self.folder), enabled=self.tracking and self.main
        )

    def _run_options(self) -> dict[str, Any]:
        return {
            "experiment": self.experiment,
            "parent_run_id": self.parent_run_id,
            "run_id": self.record.values.get("run_id"),
            "parameters": self.settings,
            "tags": self._tags() | {"parent_weights_hash": self.record.content["settings"]["initial_weights"]},
        }

    def _identity(self) -> dict[str, Any]:
        """Everything that decides the result; "initial_weights" is the hash of what the run starts from."""
        raise NotImplementedError

    def _tags(self) -> dict[str, Any]:
        """MLflow tags."""
        raise NotImplementedError

    def _attach_handlers(self) -> None:
        """Attach what logs, guards and saves to the trainer."""
        raise NotImplementedError

    def _attach_common(
        self, checkpoint: Path, *, parts: Mapping[str, Any], on_saved: Callable[[], None] | None = None
    ) -> NonFiniteGuard:
        """Attach guard, history, resume checkpoint and bar to the trainer; return the guard.

        Order matters: the guard looks first, the history sees the loss before the checkpoint is written.

        Args:
            checkpoint: where the resume checkpoint lies.
            parts: what resumes beside trainer and history: name -> object with a ``state_dict``.
            on_saved: called after each checkpoint; default: the tracked run is flushed.
        """
        guard = NonFiniteGuard(interval=self.log_interval)
        self.history = LossHistory(interval=self.log_interval, run=self.tracked)
        self.checkpoint = ResumeCheckpoint(
            path=checkpoint,
            seconds=self.checkpoint_seconds,
            guard=guard,
            parts={"history": self.history, **parts},
            on_saved=on_saved or self.tracked.flush,
        )
        bar = ProgressBar(description=f"train {self.name}", history=self.history)
        for handler in (guard, self.history, self.checkpoint, bar):
            handler.attach(self.trainer)
        return guard

    def _run_trainer(self, selector: Any = None) -> None:
        """Train to the end, from the resume checkpoint where there is one.

        Args:
            selector: an :class:`~medcoss_components.engines.selection.EpochSelection` that goes on or starts with it.
        """
        if self.checkpoint.load(self.trainer):
            logger.info("%s: resuming after iteration %d", self.name, self.trainer.state.iteration)
            if selector is not None:
                selector.catch_up(self.trainer)
        elif selector is not None:
            selector.start_again()
        self.trainer.run()
        self.checkpoint.guard.check()  # on a GPU the last losses have not been looked at yet
        self.record.values["training_seconds"] = round(self.checkpoint.training_seconds, 3)

    def _restore(self, step: str) -> None:
        """Take up what an earlier start of the program left of a finished step."""

    def _completed(self, step: str) -> None:
        """Called after a step, whether it ran now or earlier."""

    def _clean(self) -> None:
        """Remove what only the steps needed; called after the last one is recorded."""
