"""Looking at all tasks after a round: one evaluator over the evaluators of the tasks, and which round is kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator

from medcoss_components.engines.selection import EpochSelection
from medcoss_components.engines.task_evaluators import SegmentationEvaluator
from medcoss_components.engines.task_losses import CLASSIFICATION, DETECTION, SEGMENTATION, task_of
from medcoss_components.errors import InputError
from medcoss_components.evaluation.segmentation import WITHOUT_DISTANCES

HEADLINES = {CLASSIFICATION: "auc", SEGMENTATION: "dice", DETECTION: "map"}
"""Kind of a task -> the metric that speaks for it."""
MEAN = "mean"
KEEP = ("last", "best")


class MultiTaskEvaluator(SupervisedEvaluator):
    """Runs the evaluator of every task; an iteration is a task.

    After :meth:`run`, ``state.metrics`` has for each task its headline number as ``<task>`` and all its numbers as
    ``<task>/<metric>``, and the mean of the headlines that are defined as ``mean``.

    Args:
        evaluators: task -> evaluator of its labelled data, see
            :class:`~medcoss_components.engines.task_evaluators.TaskEvaluator`.
        headlines: task -> metric that speaks for it; default: that of :data:`HEADLINES` by the task's result.
        device: where the network runs; None: that of the evaluators.
        val_handlers: further handlers.

    Raises:
        InputError: no evaluator, a task's name that is the word "mean", or a headline that is no metric of its task.
    """

    def __init__(
        self,
        *,
        evaluators: Mapping[str, Any],
        headlines: Mapping[str, str] | None = None,
        device: torch.device | str | None = None,
        val_handlers: Sequence[Any] = (),
    ) -> None:
        if not evaluators or MEAN in evaluators:
            raise InputError(f"evaluators: need at least one task, none called {MEAN!r}; received {list(evaluators)}")
        self.evaluators, self.headlines = dict(evaluators), dict(headlines or {})
        first = next(iter(self.evaluators.values()))
        super().__init__(
            device=first.state.device if device is None else torch.device(device),
            val_data_loader=list(self.evaluators),
            network=first.network,
            val_handlers=list(val_handlers),
            decollate=False,
        )
        for task, name in self.names.items():
            self.evaluators[task].check_metric(name, f"task {task!r}: headline")
        self.add_event_handler(Events.EPOCH_STARTED, lambda engine: self.state.metrics.clear())
        self.add_event_handler(Events.EPOCH_COMPLETED, self._finish)

    @property
    def datasets(self) -> dict[str, Any]:
        """Task -> its labelled data."""
        return {task: evaluator.dataset for task, evaluator in self.evaluators.items()}

    @property
    def names(self) -> dict[str, str]:
        """Task -> the metric that speaks for it."""
        return {
            task: self.headlines.get(task) or HEADLINES[task_of(evaluator.dataset)]
            for task, evaluator in self.evaluators.items()
        }

    def headline(self, task: str, metrics: Mapping[str, float]) -> float:
        """The number that speaks for a task.

        Raises:
            InputError: for a name that is no metric of the task.
        """
        name = self.names[task]
        if name not in metrics:
            known = ", ".join(entry for entry in metrics if "/" not in entry)
            raise InputError(f"headline of task {task!r}: {name!r} is none of its metrics; choose from {known}")
        return float(metrics[name])

    def set_distances(self, wanted: bool) -> None:
        """Whether surface distances are computed; they take long, and the headline is another number."""
        for task, evaluator in self.evaluators.items():
            if isinstance(evaluator, SegmentationEvaluator):
                evaluator.distances = wanted or self.names[task].split("/")[0] not in WITHOUT_DISTANCES

    def _iteration(self, engine: Any, batchdata: str) -> dict[str, Any]:
        evaluator = self.evaluators[batchdata]
        result = evaluator.evaluate()
        metrics = result.metrics()
        self.state.metrics[batchdata] = self.headline(batchdata, metrics)
        self.state.metrics.update({f"{batchdata}/{name}": float(value) for name, value in metrics.items()})
        return {"task": batchdata, "count": len(result.cases)}

    def _finish(self, engine: Any) -> None:
        defined = [value for task in self.evaluators if math.isfinite(value := self.state.metrics[task])]
        self.state.metrics[MEAN] = sum(defined) / len(defined) if defined else math.nan


class RoundSelection(EpochSelection):
    """Validates after rounds; keeps the last round, or the best by the mean of the headlines.

    The last is the default: step 2 hands its backbone on to further fine-tuning, for which the scores of heads that
    are thrown away say little, and a mean over tasks would let the one with the widest swings choose.

    Args:
        keep: "last" or "best".

    Other arguments as for :class:`~medcoss_components.engines.selection.EpochSelection`.

    Raises:
        InputError: for another word.
    """

    def __init__(self, *, keep: str = "last", **options: Any) -> None:
        if keep not in KEEP:
            raise InputError(f"keep must be one of {', '.join(KEEP)}, received {keep!r}")
        self.keep = keep
        super().__init__(selection=MEAN, **options)

    def _validate(self, engine: Any, epoch: int, evaluator: Any) -> None:
        if self.keep == "last":
            self.best = None  # whatever came before, this round replaces it
        super()._validate(engine, epoch, evaluator)
