"""MUSCLE's pre-training (METHOD section 9): contrastive learning on all X-rays, then several labelled tasks in turn."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import ignite.distributed as idist

from medcoss_components.engines.config_steps import check_keys, read_step_config, set_keys
from medcoss_components.engines.trained_settings import RUN_RECORD
from medcoss_components.errors import InputError
from medcoss_components.files import read_json, remove_partial, write_json
from medcoss_components.tracking.muscle_report import MUSCLE_FILE, REPORT_NAME, muscle_table, write_muscle_report
from medcoss_components.tracking.runs import TrackedRun, open_tracking

logger = logging.getLogger(__name__)

FORMAT = 1
CONTRASTIVE, MULTITASK = "contrastive", "multitask"
STEPS = (CONTRASTIVE, MULTITASK)
RUN_KEY = "pretraining"
"""Key of a step's config that runs it."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of the pipeline: the config that it runs, and the keys set in it."""

    name: str
    folder: str
    config: Path
    settings: Mapping[str, Any]


class MusclePretraining:
    """Both steps of MUSCLE's pre-training, one after the other, in nested MLflow runs.

    Step 1 (``contrastive``, MD-MoCo) learns without labels from the union of any number of X-ray manifests; step 2
    (``multitask``) starts from its backbone and learns labelled tasks in cyclic, reshuffled rounds with cross-task
    memorization. Each step is a config of the bundle with some keys set, so it also runs on its own. Running the same
    command again goes on in the middle of the step that was interrupted.

    Args:
        contrastive_config: JSON config of step 1.
        multitask_config: JSON config of step 2.
        output_dir: receives muscle.json, a folder for each step, REPORT.html and the tracking database.
        manifests: X-ray manifests of step 1: paths, or entries as
            :func:`~medcoss_components.engines.xray_union.xray_union` takes them.
        tasks: tasks of step 2 by name, as :func:`~medcoss_components.engines.multitask_setup.check_tasks` wants them.
        steps: which of "contrastive" and "multitask" run, in this order.
        settings: keys set in the configs of both steps.
        contrastive: further keys of step 1.
        multitask: further keys of step 2.
        init_weights: where the first step starts from (an encoder of a MedCoSS chain, published weights); None: random.
        experiment: MLflow experiment.
        tracking: whether MLflow records.
        tracking_uri: MLflow address; None takes MLFLOW_TRACKING_URI or a database in ``output_dir``.

    Raises:
        InputError: an unknown step, a key that a step's config does not have, a manifest that does not exist, a task
            that breaks a rule, or a folder begun with other steps.
    """

    def __init__(
        self,
        *,
        contrastive_config: str | Path,
        multitask_config: str | Path,
        output_dir: str | Path,
        manifests: str | Path | Sequence[str | Path | Mapping[str, Any]] = (),
        tasks: Mapping[str, Mapping[str, Any]] | None = None,
        steps: str | Sequence[str] = STEPS,
        settings: Mapping[str, Any] | None = None,
        contrastive: Mapping[str, Any] | None = None,
        multitask: Mapping[str, Any] | None = None,
        init_weights: str | Path | None = None,
        experiment: str = "medcoss",
        tracking: bool = True,
        tracking_uri: str | None = None,
    ) -> None:
        self.folder, self.init_weights = Path(output_dir), init_weights
        self.experiment, self.tracking, self.tracking_uri = experiment, tracking, tracking_uri
        self.main = idist.get_rank() == 0
        configs = {CONTRASTIVE: Path(contrastive_config), MULTITASK: Path(multitask_config)}
        own = {
            CONTRASTIVE: {"manifests": _listed(manifests), **(contrastive or {})},
            MULTITASK: {"tasks": dict(tasks or {}), **(multitask or {})},
        }
        self.steps = [
            Step(
                name=name,
                folder=f"{number:02d}_{name}",
                config=configs[name],
                settings={**(settings or {}), **own[name]},
            )
            for number, name in enumerate(_check_steps(steps), 1)
        ]

    def run(self) -> Path:
        """Run every step that is not finished; return the output folder."""
        self._open()
        tracker = open_tracking(self.tracking_uri, self.folder, enabled=self.tracking and self.main)
        options = {
            "run_id": self.record["run_id"],
            "parameters": {step.name: dict(step.settings) for step in self.steps},
            "experiment": self.experiment,
        }
        with tracker.start_run(f"muscle {self.folder.name}", **options) as tracked:
            self.record["run_id"] = tracked.run_id
            self._save()
            start = self.init_weights
            for step in self.steps:
                self._run_step(step, start, tracked.run_id)
                start = self.folder / step.folder
            self._finish(tracked)
        return self.folder

    def _open(self) -> None:
        """Look at the keys of all steps, and at what an earlier start left, before anything runs."""
        for step in self.steps:
            check_keys(step.settings, step.config, where=f"step {step.name}")
            _check_data(step)
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.main:
            remove_partial(self.folder)
        path = self.folder / MUSCLE_FILE
        self.record = read_json(path) if path.is_file() else self._new_record()
        recorded, given = [step["name"] for step in self.record["steps"]], [step.name for step in self.steps]
        if recorded != given:
            raise InputError(
                f"{path}: begun with the steps {recorded}, received {given}; "
                "go on with those or give another output_dir"
            )
        self.record["status"] = "running"
        idist.barrier()
        self._save()

    def _new_record(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "status": "running",
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "run_id": None,
            "init_weights": os.path.relpath(self.init_weights, self.folder) if self.init_weights else None,
            "steps": [{"name": step.name, "folder": step.folder, "run_id": None, "steps": {}} for step in self.steps],
        }

    def _save(self) -> None:
        if self.main:
            write_json(self.folder / MUSCLE_FILE, self.record)

    def _run_step(self, step: Step, start: str | Path | None, parent_run_id: str | None) -> None:
        if self.main:
            print(f"\n== step {step.name} ({self.steps.index(step) + 1} of {len(self.steps)}) ==", flush=True)
        parser = read_step_config(step.config)
        set_keys(parser, {**step.settings, **self._places(step, start, parent_run_id)})
        parser.get_parsed_content(RUN_KEY).run()
        del parser
        gc.collect()
        done = read_json(self.folder / step.folder / RUN_RECORD)
        entry = next(entry for entry in self.record["steps"] if entry["name"] == step.name)
        entry.update(run_id=done["values"].get("run_id"), steps=done["steps"])
        self._save()
        if self.main:
            write_muscle_report(self.folder)

    def _finish(self, tracked: TrackedRun) -> None:
        self.record["status"] = "finished"
        self._save()
        if self.main:
            report = self.folder / REPORT_NAME
            for path in (self.folder / MUSCLE_FILE, report):
                tracked.log_artifact(path)
            print(f"\n{muscle_table(self.folder)}\n\nreport: {report}", flush=True)

    def _places(self, step: Step, start: str | Path | None, parent_run_id: str | None) -> dict[str, Any]:
        """Keys of a step that follow from its place in the pipeline."""
        return {
            "bundle_root": str(step.config.resolve().parent.parent),
            "init_weights": str(start) if start else None,
            "output_dir": str(self.folder / step.folder),
            "mlflow": self.tracking,
            "tracking_uri": self.tracking_uri,
            "tracking_dir": str(self.folder),
            "experiment": self.experiment,
            "parent_run_id": parent_run_id,
        }


def _listed(entries: Any) -> list[Any]:
    """Several entries as a list; one alone stands for itself."""
    return [entries] if isinstance(entries, str | Path | Mapping) else list(entries)


def _check_data(step: Step) -> None:
    """See that what a step reads is there, before an earlier one trains for hours.

    Raises:
        InputError: no data, a manifest that does not exist, or a task that breaks a rule.
    """
    from medcoss_components.engines.multitask_setup import check_tasks
    from medcoss_components.engines.xray_union import manifest_entries

    if step.name == CONTRASTIVE:
        entries = [("manifests", entry["data_manifest"]) for entry in manifest_entries(step.settings["manifests"])]
    else:
        check_tasks(step.settings["tasks"])
        entries = [(f"task {name!r}", task.get("data_manifest")) for name, task in step.settings["tasks"].items()]
    for where, path in entries:
        if not path or not Path(path).is_file():
            raise InputError(f"step {step.name}, {where}: data_manifest {path}: no such file")


def _check_steps(steps: str | Sequence[str]) -> list[str]:
    """The steps as a list.

    Raises:
        InputError: none, an unknown one, or another order.
    """
    given = _listed(steps)
    if not given or given != [name for name in STEPS if name in given]:
        raise InputError(f"steps: must be one or both of {', '.join(STEPS)}, in this order, received {given}")
    return given
