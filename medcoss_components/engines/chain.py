"""The chain: stages one after the other, each from the weights and buffers of those before."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from monai.bundle import ConfigParser

from medcoss_components.continual.buffer import BUFFER_NAME
from medcoss_components.continual.strategies import get_strategy
from medcoss_components.data.modalities import get_modality
from medcoss_components.engines.chain_inputs import (
    CHAIN_FILE,
    DATA_KEYS,
    check_entries,
    modality_name,
    read_chain,
)
from medcoss_components.engines.config_steps import check_keys, read_step_config, set_keys
from medcoss_components.engines.records import changed_settings
from medcoss_components.engines.stage import STEPS, PretrainingStage, remove_work_files
from medcoss_components.errors import InputError
from medcoss_components.files import read_json, remove_partial, write_json
from medcoss_components.retention.probes import Probe, read_probes
from medcoss_components.retention.record import RetentionRecord
from medcoss_components.retention.reference import SAMPLES
from medcoss_components.retention.results import RESULT_NAME, read_retention, retention_table, summary_metrics
from medcoss_components.tracking.report import summary_table, write_report
from medcoss_components.tracking.retention_map import PICTURE_NAME
from medcoss_components.tracking.runs import TrackedRun, open_tracking

logger = logging.getLogger(__name__)

FORMAT = 1
PREPARED_PARTS = ("train#dataset", "validate#dataset")
"""Parts of the stage config that are prepared stores."""


class PretrainingChain:
    """Continual pre-training over any number of modalities, in any order (METHOD section 1).

    Each stage is the stage config with some keys set: its modality and manifest, the weights of the stage before,
    the buffers of all stages before. ``chain.json`` records each finished step; running the same command again goes
    on where it stopped.

    Args:
        stage_config: JSON config of one stage (the chain bundle's ``configs/stage.json``).
        stages: one entry a stage, in order: ``{"modality": name or registry entry, "data_manifest": path}`` and any
            other key of the stage config; ``name`` sets the folder's name.
        output_dir: receives chain.json, one folder a stage, REPORT.html and the tracking database.
        stage_settings: keys of the stage config that hold for every stage.
        strategy: how earlier modalities are kept; "joint" makes one stage of all entries, a strategy that reverses the
            order runs the last entry first.
        init_weights: where the first stage starts from; None: random.
        buffers: buffers of modalities learned before this chain.
        vocabulary: vocabulary file; default: what comes with ``init_weights``, else trained on the first text modality.
        continue_from: output folder of a finished chain; stands for its last weights, all its buffers and its
            vocabulary.
        extra_modalities: registry entries of modalities that the package does not know.
        probes: labelled sets that score the encoder after every stage: ``{"name", "data_manifest"}`` and, if wanted,
            ``modality``, ``dataset_dir``, ``limit``, ``preparation``, ``optional``; see docs/retention.md. A chain that
            began without them can get them later.
        reference_samples: unlabelled samples of each learned modality whose features are compared with those at the end
            of their own stage; 0 leaves this out.
        experiment: MLflow experiment.
        tracking: whether MLflow records.
        tracking_uri: MLflow address.

    Raises:
        InputError: no stages, an entry without modality or manifest, the same modality twice, a key that the stage
            config does not have, a missing file, a probe without labels, or a folder begun with other settings.
    """

    def __init__(
        self,
        *,
        stage_config: str | Path,
        stages: Sequence[Mapping[str, Any]],
        output_dir: str | Path,
        stage_settings: Mapping[str, Any] | None = None,
        strategy: str = "medcoss",
        init_weights: str | Path | None = None,
        buffers: Sequence[str | Path] = (),
        vocabulary: str | Path | None = None,
        continue_from: str | Path | None = None,
        extra_modalities: Sequence[Mapping[str, Any]] = (),
        probes: Sequence[Mapping[str, Any]] = (),
        reference_samples: int = SAMPLES,
        experiment: str = "medcoss",
        tracking: bool = True,
        tracking_uri: str | None = None,
    ) -> None:
        self.stage_config, self.folder = Path(stage_config), Path(output_dir)
        for entry in extra_modalities:
            get_modality(dict(entry))
        self.strategy = get_strategy(strategy)
        self.entries = self._merge(check_entries(stages))
        self.stage_settings = dict(stage_settings or {})
        self.probes, self.reference_samples = [dict(entry) for entry in probes], reference_samples
        self.experiment, self.tracking, self.tracking_uri = experiment, tracking, tracking_uri
        self.main = idist.get_rank() == 0
        self.earlier: list[str] = []
        self.prepared: dict[str, float] = {}
        self.init_weights, self.buffers, self.vocabulary = init_weights, [str(path) for path in buffers], vocabulary
        if continue_from is not None:
            self._continue(Path(continue_from))

    def _merge(self, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """One stage of all entries for a strategy that trains everything at once, or the entries in its order."""
        if self.strategy.reverses_stages:
            return entries[::-1]
        if not self.strategy.single_stage:
            return entries
        ignored = sorted({key for entry in entries for key in entry} - {*DATA_KEYS, "name"})
        if ignored:
            logger.warning("strategy %s makes one stage: %s of entries are not used", self.strategy.name, ignored)
        # a text modality comes first, since the stage's vocabulary is trained on the first one
        entries = sorted(entries, key=lambda entry: get_modality(entry["modality"]).dimension != 1)
        first, *others = [{key: entry[key] for key in DATA_KEYS if key in entry} for entry in entries]
        return [{**first, "name": "joint", "joint": others}]

    def _continue(self, folder: Path) -> None:
        """Start from a finished chain."""
        finished = read_chain(folder)
        if finished["status"] != "finished":
            raise InputError(
                f"continue_from {folder}: this chain is {finished['status']}; finish it first with its own command"
            )
        if get_strategy(finished["settings"]["strategy"]).single_stage:
            raise InputError(
                f"continue_from {folder}: this chain trained all modalities at once and kept no buffer of each; "
                "start from its weights instead (--init_weights) and give the buffers that you have"
            )
        names = [stage["folder"] for stage in finished["stages"]]
        self.earlier = [stage["modality"] for stage in finished["earlier"]] + [
            stage["modality"] for stage in finished["stages"]
        ]
        self.init_weights = folder / names[-1]
        earlier = [os.path.normpath(folder / path) for path in finished["buffers"]]
        self.buffers = [*earlier, *(str(folder / name / BUFFER_NAME) for name in names)]
        repeated = [name for name in map(modality_name, self.entries) if name in self.earlier]
        if repeated:
            raise InputError(
                f"stages: {', '.join(repeated)} was learned in {folder} already; continue_from takes new modalities"
            )

    def stage_names(self) -> list[str]:
        """Folder names, numbered on from an earlier chain."""
        offset = len(self.earlier)
        return [
            f"{offset + number:02d}_{entry.get('name', modality_name(entry))}"
            for number, entry in enumerate(self.entries, 1)
        ]

    def run(self) -> Path:
        """Run every stage that is not finished; return the output folder."""
        self._open()
        self.tracker = open_tracking(self.tracking_uri, self.folder, enabled=self.tracking and self.main)
        options = {
            "run_id": self.record["run_id"],
            "parameters": self.record["settings"],
            "experiment": self.experiment,
        }
        with self.tracker.start_run(f"chain {self.folder.name}", **options) as tracked:
            self.record["run_id"] = tracked.run_id
            self._prepare_ahead()
            self.retention.prepare()
            for number, (name, entry) in enumerate(zip(self.stage_names(), self.entries, strict=True)):
                self._run_stage(number, name, entry, tracked)
            self._finish(tracked)
        return self.folder

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.main:
            remove_partial(self.folder)
        path = self.folder / CHAIN_FILE
        self.record = read_json(path) if path.is_file() else self._new_record()
        recorded = [stage["modality"] for stage in self.record["stages"]]
        given = [modality_name(entry) for entry in self.entries]
        if recorded != given[: len(recorded)]:
            raise InputError(
                f"{path}: begun with the stages {recorded}, received {given}; "
                "keep them in this order (more may follow) or give another output_dir"
            )
        self._check_inputs()
        self.retention = self._retention(read_probes(self.probes))
        self.record["settings"] = self._settings()
        self.record["init_weights"] = os.path.relpath(self.init_weights, self.folder) if self.init_weights else None
        self.record["status"] = "running"
        idist.barrier()
        self._save()

    def _settings(self) -> dict[str, Any]:
        scoring = {"probes": self.probes, "reference_samples": self.reference_samples}
        return {"strategy": self.strategy.name, "stages": self.entries, **self.stage_settings, **scoring}

    def _retention(self, probes: Sequence[Probe]) -> RetentionRecord:
        """What scores the encoders, with the chain's own stores; on the same samples whatever the chain's seed."""
        return RetentionRecord(
            self.folder,
            probes=probes,
            reference_samples=self.reference_samples,
            store_dir=self.stage_settings.get("store_dir"),
            workers=self.stage_settings.get("preparation_workers"),
        )

    def _new_record(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "status": "running",
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "run_id": None,
            "experiment": self.experiment,
            "earlier": [{"modality": name} for name in self.earlier],
            "buffers": [os.path.relpath(path, self.folder) for path in self.buffers],
            "stages": [],
            "settings": self._settings(),
        }

    def _save(self) -> None:
        if self.main:
            write_json(self.folder / CHAIN_FILE, self.record)

    def _stage_record(self, number: int, name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
        if number == len(self.record["stages"]):
            self.record["stages"].append(
                {"name": name, "modality": modality_name(entry), "folder": name, "run_id": None, "steps": {}}
            )
        return self.record["stages"][number]

    def _finished(self, number: int) -> bool:
        """Whether every step of a stage is recorded."""
        recorded = self.record["stages"]
        return number < len(recorded) and all(step in recorded[number]["steps"] for step in STEPS)

    def _check_inputs(self) -> None:
        """Look at all stages that are to run before the first one starts: their keys and manifests."""
        for number, (name, entry) in enumerate(zip(self.stage_names(), self.entries, strict=True)):
            keys = {**self.stage_settings, **entry}
            check_keys(keys.keys() - {"name"}, self.stage_config, where=f"stage {name}")
            for part in () if self._finished(number) else (entry, *entry.get("joint", ())):
                if not Path(part["data_manifest"]).is_file():
                    raise InputError(f"stage {name}: data_manifest {part['data_manifest']}: no such file")

    def _prepare_ahead(self) -> None:
        """Prepare the images of all stages before the first one trains, so that bad data is found at once.

        Texts wait for their stage: the vocabulary may come from the stage before.
        """
        for number, (name, entry) in enumerate(zip(self.stage_names(), self.entries, strict=True)):
            if number < len(self.record["stages"]) or get_modality(entry["modality"]).dimension == 1:
                continue
            parser = self._stage_parser(number, name, entry, None)
            stores = [parser.get_parsed_content(part) for part in PREPARED_PARTS]
            self.prepared[name] = sum(store.preparation_seconds for store in stores if store is not None)

    def _run_stage(self, number: int, name: str, entry: Mapping[str, Any], tracked: TrackedRun) -> None:
        record = self._stage_record(number, name, entry)
        if self._finished(number):
            self._check_finished(name, entry)
            logger.info("%s: finished before", name)
            self._tidy(name, record)
            return
        if self.main:
            print(f"\n== stage {name} ({number + 1} of {len(self.entries)}) ==", flush=True)
        stage = self._stage_parser(number, name, entry, tracked.run_id).get_parsed_content("stage")
        stage.dataset.preparation_seconds += self.prepared.get(name, 0.0)

        def remember(finished: PretrainingStage, step: str) -> None:
            seconds = finished.record.values["preparation_seconds"]
            record["steps"] = {"prepare": {"seconds": seconds}, **finished.record.steps}
            record["run_id"] = finished.record.values.get("run_id")
            self._save()

        stage.on_step = remember
        stage.run()
        remember(stage, STEPS[-1])
        del stage
        gc.collect()
        self.retention.update(self.record, tracked)
        if self.main:
            write_report(self.folder)

    def _tidy(self, name: str, record: Mapping[str, Any]) -> None:
        """Do what a kill between a stage's last step and its end left undone."""
        if record["run_id"]:
            self.tracker.end_run(record["run_id"])
        if self.main:
            remove_work_files(self.folder / name)

    def _check_finished(self, name: str, entry: Mapping[str, Any]) -> None:
        """Refuse settings that a finished stage was not trained with."""
        path = self.folder / name / "stage.json"
        recorded = read_json(path)["settings"]
        given = {**self.stage_settings, **entry, "strategy": self.strategy.name}
        shared = sorted(set(given) & set(recorded))
        changes = changed_settings({key: recorded[key] for key in shared}, {key: given[key] for key in shared})
        if changes:
            raise InputError(
                f"{path}: stage {name} was finished with other settings ({'; '.join(changes)}). "
                "Go on with the recorded ones, set a key in a later stage's entry alone, or give another output_dir."
            )

    def _stage_parser(
        self, number: int, name: str, entry: Mapping[str, Any], parent_run_id: str | None
    ) -> ConfigParser:
        """The stage config with the keys of this stage set."""
        overrides = {**self.stage_settings, **entry, **self._chain_overrides(number, name, parent_run_id)}
        overrides.pop("name", None)
        parser = read_step_config(self.stage_config)
        set_keys(parser, overrides)
        return parser

    def _chain_overrides(self, number: int, name: str, parent_run_id: str | None) -> dict[str, Any]:
        names = self.stage_names()[:number]
        start = self.folder / names[-1] if names else self.init_weights
        return {
            "bundle_root": str(self.stage_config.resolve().parent.parent),
            "strategy": self.strategy.name,
            "init_weights": str(start) if start else None,
            "buffers": [*self.buffers, *(str(self.folder / earlier / BUFFER_NAME) for earlier in names)],
            "vocabulary": str(self.vocabulary) if self.vocabulary else None,
            "output_dir": str(self.folder / name),
            "mlflow": self.tracking,
            "tracking_uri": self.tracking_uri,
            "tracking_dir": str(self.folder),
            "experiment": self.experiment,
            "parent_run_id": parent_run_id,
        }

    def _finish(self, tracked: TrackedRun) -> None:
        self.retention.update(self.record, tracked)  # the chain may have got new probes
        self.record["status"] = "finished"
        self._save()
        if self.main:
            report = write_report(self.folder)
            tracked.log_artifact(self.folder / CHAIN_FILE)
            tracked.log_artifact(report)
            retained = self._log_retention(tracked)
            print(f"\n{summary_table(self.folder)}\n{retained}\nreport: {report}", flush=True)

    def _log_retention(self, tracked: TrackedRun) -> str:
        """The matrix for the terminal, empty where there is none; its measures and files go to MLflow."""
        result = read_retention(self.folder)
        if result is None:
            return ""
        tracked.log_metrics(summary_metrics(result), step=len(result["stages"]) - 1)
        for name in (RESULT_NAME, PICTURE_NAME):
            tracked.log_artifact(self.folder / name)
        return f"\n{retention_table(result)}\n"
