"""Validation after epochs of fine-tuning, and the weights of the best one."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ignite.engine import Events

from medcoss_components.errors import InputError
from medcoss_components.weights import save_weights

if TYPE_CHECKING:
    from medcoss_components.engines.task_evaluators import TaskEvaluator
    from medcoss_components.engines.trainer import ResumableTrainer

logger = logging.getLogger(__name__)


def metric_names(selection: str) -> tuple[str, ...]:
    """The metrics whose sum selects the epoch.

    Raises:
        InputError: when none is named.

    >>> metric_names("accuracy+auc")
    ('accuracy', 'auc')
    """
    names = tuple(name.strip() for name in selection.split("+"))
    if not all(names):
        raise InputError(f"selection: give names of metrics joined by +, for example accuracy+auc, got {selection!r}")
    return names


def selection_score(metrics: Mapping[str, float], selection: str) -> float:
    """Sum of the selected metrics; those that the cases leave undefined (NaN) are left out, -inf when all are.

    Raises:
        InputError: for a name that is no metric of the task.
    """
    names = metric_names(selection)
    unknown = [name for name in names if name not in metrics]
    if unknown:
        known = ", ".join(name for name in metrics if "/" not in name)
        raise InputError(f"selection: {unknown[0]!r} is no metric of this task; choose from {known}")
    defined = [metrics[name] for name in names if not math.isnan(metrics[name])]
    if len(defined) < len(names):
        logger.warning("selection %s: the validation cases leave a part of it undefined; it is left out", selection)
    return sum(defined) if defined else -math.inf


class EpochSelection:
    """Validates every ``every`` epochs and after the last, and keeps the weights of the best one (the first of equals).

    The weights of epoch e are in ``best-<e>.pt``. Those that the last resume checkpoint knows of stay until the next
    checkpoint, so that a crash at any moment finds both. Without an evaluator the last epoch is kept.

    Args:
        folder: of the run.
        evaluator: of the validation data, or None.
        selection: metrics whose sum is maximised, joined by "+".
        every: epochs between two validations.
        writes: whether this process writes files (rank 0).
        on_validated: called with iteration and metrics (the tracker).
    """

    def __init__(
        self,
        *,
        folder: Path,
        evaluator: TaskEvaluator | None,
        selection: str,
        every: int = 1,
        writes: bool = True,
        on_validated: Callable[[int, Mapping[str, float]], None] = lambda iteration, metrics: None,
    ) -> None:
        if every < 1:
            raise InputError(f"validate_every must be at least 1 epoch, received {every}")
        metric_names(selection)
        self.folder, self.evaluator, self.selection, self.every = folder, evaluator, selection, every
        self.writes, self.on_validated = writes, on_validated
        self.rows: list[dict[str, Any]] = []
        self.best: tuple[int, float] | None = None
        self.saved_epoch: int | None = None

    def attach(self, engine: ResumableTrainer) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: ResumableTrainer) -> None:
        epoch, last = engine.state.epoch, engine.state.epoch == engine.state.max_epochs
        if self.evaluator is None:
            if last:
                self._keep(engine, epoch, math.nan)
        elif last or epoch % self.every == 0:
            self._validate(engine, epoch, self.evaluator)

    def catch_up(self, engine: ResumableTrainer) -> None:
        """Validate the epoch that a checkpoint stands at the end of, when that had not been done before it."""
        epoch, step = divmod(engine.state.iteration, engine.state.epoch_length)
        known = epoch in [row["epoch"] for row in self.rows] or (self.evaluator is None and self.best is not None)
        if epoch and step == 0 and not known:
            self(engine)

    def _validate(self, engine: ResumableTrainer, epoch: int, evaluator: TaskEvaluator) -> None:
        evaluator.run()
        metrics = {name: float(value) for name, value in evaluator.state.metrics.items()}
        score = selection_score(metrics, self.selection)
        self.rows.append({"epoch": epoch, "iteration": engine.state.iteration, "score": score, "metrics": metrics})
        if self.best is None or score > self.best[1]:
            self._keep(engine, epoch, score)
        self.on_validated(engine.state.iteration, metrics | {"score": score})  # last: it may save a checkpoint

    def _keep(self, engine: ResumableTrainer, epoch: int, score: float) -> None:
        if self.writes:
            save_weights(self.path(epoch), engine.model.state_dict())
        self.best = (epoch, score)
        self._remove_others()

    def path(self, epoch: int) -> Path:
        return self.folder / f"best-{epoch}.pt"

    @property
    def best_path(self) -> Path:
        """File of the best epoch's weights.

        Raises:
            InputError: before the first validation.
        """
        if self.best is None:
            raise InputError(f"{self.folder}: holds no weights of a best epoch yet; train first")
        return self.path(self.best[0])

    def checkpointed(self) -> None:
        """A checkpoint that knows the present best epoch has been written: only that one is needed."""
        self.saved_epoch = None if self.best is None else self.best[0]
        self._remove_others()

    def start_again(self) -> None:
        """Forget what an interrupted run that left no checkpoint has kept."""
        self.rows, self.best, self.saved_epoch = [], None, None
        self._remove_others()

    def _remove_others(self) -> None:
        wanted = {self.saved_epoch, self.best[0] if self.best else None}
        if self.writes:
            for path in self.folder.glob("best-*.pt"):
                if path not in {self.path(epoch) for epoch in wanted if epoch is not None}:
                    path.unlink(missing_ok=True)

    def clean(self) -> None:
        """Remove the weights: the finished run has them as model.pt."""
        if self.writes:
            for path in self.folder.glob("best-*.pt"):
                path.unlink(missing_ok=True)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": [dict(row) for row in self.rows], "best": None if self.best is None else list(self.best)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rows = [dict(row) for row in state["rows"]]
        self.best = None if state["best"] is None else (int(state["best"][0]), float(state["best"][1]))
        self.checkpointed()

    def to_json(self) -> dict[str, Any]:
        """Content of validation.json: a row per validated epoch; null for what is undefined."""
        from medcoss_components.evaluation.results import json_numbers

        rows = [
            {**row, **json_numbers({"score": row["score"]}), "metrics": json_numbers(row["metrics"])}
            for row in self.rows
        ]
        epoch, score = self.best or (None, math.nan)
        return {
            "selection": None if self.evaluator is None else self.selection,
            "best_epoch": epoch,
            "best_score": json_numbers({"score": score})["score"],
            "rows": rows,
        }
