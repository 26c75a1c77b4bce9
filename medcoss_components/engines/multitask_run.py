"""A run of multi-task continual learning (step 2 of MUSCLE): cache features, train in rounds, evaluate, keep.

Every step ends with a record in ``run.json``; the same command goes on after the last finished one, and in the middle
of a visit when training was interrupted.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ignite.engine import Events

from medcoss_components.engines.finetuning_artefacts import log_defined, report_result, summary_line
from medcoss_components.engines.finetuning_run import evaluate_task
from medcoss_components.engines.multitask import MultiTaskTrainer
from medcoss_components.engines.multitask_artefacts import rounds_content, run_metrics, write_pictures
from medcoss_components.engines.multitask_evaluation import MultiTaskEvaluator, RoundSelection
from medcoss_components.engines.recorded_run import RecordedRun
from medcoss_components.engines.task_losses import task_of
from medcoss_components.engines.trained_settings import RUN_METRICS, RUN_RECORD
from medcoss_components.files import read_json, sha256_json, write_json
from medcoss_components.weights import hash_weights, read_weights, save_weights

logger = logging.getLogger(__name__)

STEPS = ("cache", "train", "evaluate", "artefacts")
CHECKPOINT, ROUNDS, HISTORY = "checkpoint.pt", "rounds.json", "history.json"


@dataclass(kw_only=True, eq=False, repr=False)
class MultiTaskTraining(RecordedRun):
    """A run of multi-task continual learning, from the cached features to the pictures.

    The folder receives model.pt (``backbone.*`` and ``heads.*``; fine-tuning takes the backbone out of it), rounds.json
    (metrics of every task after every validated round, order of the visits, forgetting), history.json (losses by
    task), metrics.json, run.json, ``previews/`` (rounds.png, losses.png) and ``evaluation/<task>/<split>``.

    Args, beside those of :class:`~medcoss_components.engines.recorded_run.RecordedRun`:
        evaluator: of the tasks' validation data; None validates nothing and keeps the last round.
        tester: evaluator of the tasks' testing data; used once, with the kept weights.
        keep: "last" or "best" round, see :class:`~medcoss_components.engines.multitask_evaluation.RoundSelection`.
        validate_every: rounds between two validations; the last round is always validated.
        seed: of the bootstrap intervals.
    """

    steps = STEPS
    record_name = RUN_RECORD

    trainer: MultiTaskTrainer
    evaluator: MultiTaskEvaluator | None
    tester: MultiTaskEvaluator | None = None
    keep: str = "last"
    validate_every: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.settings = without_places(self.settings)
        self.selector = RoundSelection(
            keep=self.keep,
            folder=self.folder,
            evaluator=self.evaluator,
            every=self.validate_every,
            writes=self.main,
            on_validated=self._on_validated,
        )

    @property
    def datasets(self) -> dict[str, Any]:
        """Task -> training data."""
        return self.trainer.data_loader.datasets

    @property
    def evaluators(self) -> dict[str, MultiTaskEvaluator]:
        """Split -> the evaluator of its tasks, for those that there are."""
        given = {"validation": self.evaluator, "testing": self.tester}
        return {split: evaluator for split, evaluator in given.items() if evaluator is not None}

    def _restore(self, step: str) -> None:
        if step == "train":
            self.history.rows = read_json(self.folder / HISTORY)["rows"]
            rows, best = self.record.values["rounds"], self.record.values["best_score"]
            self.selector.rows = [
                {**row, "metrics": {name: _number(value) for name, value in row["metrics"].items()}} for row in rows
            ]
            self.selector.best = (self.record.values["kept_round"], _number(best))

    def _completed(self, step: str) -> None:
        if step == "train":
            self.model.load_state_dict(read_weights(self.selector.best_path))

    def _identity(self) -> dict[str, Any]:
        """Everything that decides the result: the settings, the data, and what the run starts from."""
        splits = {split: evaluator.datasets for split, evaluator in self.evaluators.items()}
        keys = {
            split: {task: dataset.key for task, dataset in datasets.items()}
            for split, datasets in ({"training": self.datasets} | splits).items()
        }
        return {
            **self.settings,
            "task": self.trainer.kind,
            "kinds": {task: task_of(dataset) for task, dataset in self.datasets.items()},
            "initial_weights": hash_weights(self.model.state_dict()),
            "data": keys,
        }

    def _tags(self) -> dict[str, Any]:
        return {
            "task": self.trainer.kind,
            "tasks": ", ".join(self.datasets),
            "modality": ", ".join(self.trainer.data_loader.modalities),
            "manifest_hash": sha256_json(sorted(dataset.manifest_hash for dataset in self.datasets.values())),
        }

    def _attach_handlers(self) -> None:
        parts = {"selection": self.selector, "anchor": self.trainer.anchor}
        guard = self._attach_common(self.folder / CHECKPOINT, parts=parts, on_saved=self._on_saved)
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: guard.check())
        self.selector.attach(self.trainer)

    def _on_saved(self) -> None:
        self.tracked.flush()
        self.selector.checkpointed()

    def _on_validated(self, iteration: int, metrics: Mapping[str, float]) -> None:
        log_defined(self.tracked, "round", metrics, step=iteration)
        if self.main:
            write_json(self.folder / ROUNDS, rounds_content(self))
        if self.trainer.window_closed:  # Ctrl-C during the last validation: training would never see it
            self.checkpoint.stop_if_asked(self.trainer)

    def _cache(self) -> None:
        self.trainer.fill_memory()

    def _train(self) -> None:
        self._cache()  # opens the files; makes again with the first weights what has been removed
        if self.evaluator is not None:
            self.evaluator.set_distances(False)
        self._run_trainer(self.selector)
        if self.evaluator is not None:
            self.evaluator.set_distances(True)
        found = self.selector.to_json()
        self.record.values["kept_round"], self.record.values["best_score"] = found["best_epoch"], found["best_score"]
        self.record.values["rounds"] = found["rows"]
        if self.main:
            write_json(self.folder / HISTORY, self.history.to_json())
            write_json(self.folder / ROUNDS, rounds_content(self))

    def _evaluate(self) -> None:
        for split, whole in self.evaluators.items():
            for task, evaluator in whole.evaluators.items():
                evaluator.description = f"evaluate {task}, {split}"
                folder = self.folder / "evaluation" / task / split
                title = f"{self.name}: {task}"
                found = report_result(
                    evaluator.evaluate(), folder, title=title, split=split, settings=self.settings, seed=self.seed
                )
                if self.main:
                    print(f"{task}, {summary_line(found, split, folder)}")
                self.record.values.setdefault(split, {})[task] = found
                prefix = f"final_{split}/{task}"
                log_defined(self.tracked, prefix, found["metrics"], step=self.trainer.total_iterations)

    def _artefacts(self) -> None:
        if not self.main:
            return
        save_weights(self.folder / "model.pt", self.model.state_dict())
        write_json(self.folder / RUN_METRICS, run_metrics(self))
        pictures = write_pictures(self)
        for name in (RUN_RECORD, RUN_METRICS, HISTORY, ROUNDS):
            self.tracked.log_artifact(self.folder / name)
        self.tracked.log_artifacts(pictures, "previews")
        if self.evaluators:
            self.tracked.log_artifacts(self.folder / "evaluation", "evaluation")

    def _clean(self) -> None:
        """After the last step is recorded, not before: until then a restart needs these files."""
        if self.main:
            (self.folder / CHECKPOINT).unlink(missing_ok=True)
        self.selector.clean()


def evaluate_tasks(
    *, evaluator: MultiTaskEvaluator, output_dir: str | Path, split: str, title: str, **options: Any
) -> dict[str, dict[str, float | None]]:
    """Evaluate every task on a labelled split, each with a report folder ``<output_dir>/<task>/<split>``.

    Args:
        evaluator: of the tasks.
        output_dir: receives a folder for each task.
        split: "validation" or "testing".
        title: of the reports; the task's name is added.
        options: see :func:`~medcoss_components.engines.finetuning_run.evaluate_task`.

    Returns:
        Task -> metric -> value; None where the cases leave it undefined.
    """
    folder = Path(output_dir)
    return {
        task: evaluate_task(
            evaluator=entry,
            output_dir=folder / task,
            split=split,
            title=f"{title}: {task}",
            **{"tracking_dir": folder, **options},
        )
        for task, entry in evaluator.evaluators.items()
    }


def without_places(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without the places of the tasks' data: its content counts, and a path may name what it should not."""
    tasks = settings.get("tasks") or {}
    kept = {
        task: {key: value for key, value in entry.items() if key not in ("data_manifest", "dataset_dir")}
        for task, entry in tasks.items()
    }
    return {**settings, **({"tasks": kept} if tasks else {})}


def _number(value: float | None) -> float:
    """As JSON has it: null for what is undefined."""
    return math.nan if value is None else float(value)
