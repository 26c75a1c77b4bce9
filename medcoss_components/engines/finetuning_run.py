"""A fine-tuning run: train and keep the best epoch, evaluate it, write artefacts.

Every step ends with a record in ``run.json``; the same command goes on after the last finished one, and in the middle
of an epoch when training was interrupted.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Events

from medcoss_components.engines.finetuning import FineTuner
from medcoss_components.engines.finetuning_artefacts import (
    log_defined,
    report_result,
    run_metrics,
    summary_line,
    write_mistakes,
)
from medcoss_components.engines.recorded_run import RecordedRun
from medcoss_components.engines.selection import EpochSelection, metric_names
from medcoss_components.engines.task_evaluators import SegmentationEvaluator, TaskEvaluator
from medcoss_components.engines.trained_settings import RUN_METRICS, RUN_RECORD, check_inputs, check_put_aside
from medcoss_components.evaluation.segmentation import WITHOUT_DISTANCES
from medcoss_components.files import read_json, write_json
from medcoss_components.text.vocabulary import Vocabulary
from medcoss_components.tracking.runs import open_tracking
from medcoss_components.weights import hash_weights, read_weights, save_weights

logger = logging.getLogger(__name__)

STEPS = ("train", "evaluate", "artefacts")
CHECKPOINT = "checkpoint.pt"


@dataclass(kw_only=True, eq=False, repr=False)
class FineTuning(RecordedRun):
    """A run of fine-tuning, from the first step to the report.

    The folder receives model.pt (weights of the best epoch), metrics.json, history.json (losses), validation.json
    (metrics of every validated epoch), vocabulary.json (text), run.json, and ``evaluation/validation`` and
    ``evaluation/testing`` (see :func:`~medcoss_components.tracking.task_report.write_task_report`).

    Args, beside those of :class:`~medcoss_components.engines.recorded_run.RecordedRun`:
        evaluator: of the validation data; None keeps the last epoch, as ``best_epoch`` and a null score say.
        tester: evaluator of the testing data; used once, with the best weights.
        selection: metrics of the validation data whose sum selects the epoch, joined by "+".
        validate_every: epochs between two validations; the last epoch is always validated.
        seed: of the bootstrap intervals.
        vocabulary: of a text task; it is written beside the weights.
        show_text: write the texts of the surest mistakes to ``evaluation/<split>/mistakes.csv`` (leave False for
            patients' data: MLflow keeps the file too).
    """

    steps = STEPS
    record_name = RUN_RECORD

    trainer: FineTuner
    evaluator: TaskEvaluator | None
    tester: TaskEvaluator | None = None
    selection: str = "accuracy+auc+f1"
    validate_every: int = 1
    vocabulary: Vocabulary | None = None
    show_text: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.evaluator is not None:
            for name in metric_names(self.selection):
                self.evaluator.check_metric(name, "selection")
        self.selector = EpochSelection(
            folder=self.folder,
            evaluator=self.evaluator,
            selection=self.selection,
            every=self.validate_every,
            writes=self.main,
            on_validated=self._log_validation,
        )

    @property
    def dataset(self) -> Any:
        """Training data."""
        return self.trainer.data_loader.dataset

    @property
    def evaluators(self) -> dict[str, TaskEvaluator]:
        """Split -> its evaluator, for those that there are."""
        given = {"validation": self.evaluator, "testing": self.tester}
        return {split: evaluator for split, evaluator in given.items() if evaluator is not None}

    def _restore(self, step: str) -> None:
        if step == "train":
            self.history.rows = read_json(self.folder / "history.json")["rows"]
            score = self.record.values["best_score"]
            self.selector.best = (self.record.values["best_epoch"], math.nan if score is None else score)

    def _completed(self, step: str) -> None:
        if step == "train":
            self.model.load_state_dict(read_weights(self.selector.best_path))

    def _identity(self) -> dict[str, Any]:
        """Everything that decides the result: the settings, the data, and what the run starts from."""
        datasets = {"training": self.dataset} | {split: entry.dataset for split, entry in self.evaluators.items()}
        return {
            **self.settings,
            "task": self.trainer.kind,
            "initial_weights": hash_weights(self.model.state_dict()),
            "data": {split: dataset.key for split, dataset in datasets.items()},
            "vocabulary": None if self.vocabulary is None else self.vocabulary.hash,
        }

    def _tags(self) -> dict[str, Any]:
        return {
            "task": self.trainer.kind,
            "modality": self.dataset.modality.name,
            "manifest_hash": self.dataset.manifest_hash,
        }

    def _attach_handlers(self) -> None:
        parts = {"selection": self.selector}
        guard = self._attach_common(self.folder / CHECKPOINT, parts=parts, on_saved=self._on_saved)
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: guard.check())
        self.selector.attach(self.trainer)

    def _on_saved(self) -> None:
        self.tracked.flush()
        self.selector.checkpointed()

    def _log_validation(self, iteration: int, metrics: Mapping[str, float]) -> None:
        log_defined(self.tracked, "validation", metrics, step=iteration)
        self.checkpoint.stop_if_asked(self.trainer)  # Ctrl-C during the last validation: training would never see it

    def _train(self) -> None:
        self._set_distances(
            any(name.split("/")[0] not in WITHOUT_DISTANCES for name in metric_names(self.selector.selection))
        )
        self._run_trainer(self.selector)
        self._set_distances(True)
        validation = self.selector.to_json()
        self.record.values.update({name: validation[name] for name in ("best_epoch", "best_score")})
        if self.main:
            write_json(self.folder / "history.json", self.history.to_json())
            write_json(self.folder / "validation.json", validation)

    def _set_distances(self, wanted: bool) -> None:
        """Surface distances take long on volumes; during training they are left out unless they select the epoch."""
        if isinstance(self.evaluator, SegmentationEvaluator):
            self.evaluator.distances = wanted

    def _evaluate(self) -> None:
        for split, evaluator in self.evaluators.items():
            evaluator.description = f"evaluate {split}"
            result, folder = evaluator.evaluate(), self.folder / "evaluation" / split
            found = report_result(
                result,
                folder,
                title=self.name,
                split=split,
                settings=self.settings,
                seed=self.seed,
            )
            if self.show_text and self.vocabulary is not None and self.main:
                write_mistakes(result, evaluator.dataset, self.vocabulary, folder / "mistakes.csv")
            if self.main:
                print(summary_line(found, split, folder))
            self.record.values[split] = found
            log_defined(self.tracked, f"final_{split}", found["metrics"], step=self.trainer.total_iterations)

    def _artefacts(self) -> None:
        if not self.main:
            return
        save_weights(self.folder / "model.pt", self.model.state_dict())
        if self.vocabulary is not None:
            self.vocabulary.save(self.folder / "vocabulary.json")
        write_json(self.folder / RUN_METRICS, run_metrics(self))
        for name in (RUN_RECORD, RUN_METRICS, "history.json", "validation.json"):
            self.tracked.log_artifact(self.folder / name)
        if self.evaluators:
            self.tracked.log_artifacts(self.folder / "evaluation", "evaluation")

    def _clean(self) -> None:
        """After the last step is recorded, not before: until then a restart needs these files."""
        if self.main:
            (self.folder / CHECKPOINT).unlink(missing_ok=True)
        self.selector.clean()


def evaluate_task(
    *,
    evaluator: TaskEvaluator,
    output_dir: str | Path,
    split: str,
    title: str,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    tracking: bool = True,
    tracking_uri: str | None = None,
    tracking_dir: str | Path | None = None,
    experiment: str = "medcoss",
    parent_run_id: str | None = None,
) -> dict[str, float | None]:
    """Evaluate a network on a labelled split: report folder ``<output_dir>/<split>``, MLflow run, one printed line.

    Arguments as for :class:`FineTuning`.

    Returns:
        Metric -> value; None where the cases leave it undefined.
    """
    main, folder = idist.get_rank() == 0, Path(output_dir) / split
    tracker = open_tracking(tracking_uri, tracking_dir or output_dir, enabled=tracking and main)
    dataset = evaluator.dataset
    preparation = dataset.store.index["preparation"]
    check_inputs(evaluator.network, intensity=evaluator.preprocessing.intensity, preparation=preparation)
    check_put_aside(evaluator.network, dataset, split)
    tags = {"modality": dataset.modality.name, "manifest_hash": dataset.manifest_hash, "split": split}
    with tracker.start_run(
        f"{title} ({split})", experiment=experiment, parent_run_id=parent_run_id, parameters=settings, tags=tags
    ) as run:
        found = report_result(evaluator.evaluate(), folder, title=title, split=split, settings=settings, seed=seed)
        log_defined(run, split, found["metrics"], step=0)
        if main:
            run.log_artifacts(folder, "evaluation")
            print(summary_line(found, split, folder))
    return found["metrics"]
