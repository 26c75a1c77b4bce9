"""Scoring a chain: one column of numbers for the encoder that it starts from and one after each stage.

    <chain>/retention/<column>.json       scores of one encoder, rewritten after every probe
    <chain>/retention/<modality>.npz      features of reference samples at the end of their own stage
    <chain>/retention.json, retention.png the matrix, made of the columns

Everything is read from the chain's folder. What is there and still fits is not computed again, so a killed chain goes
on, and a finished one can get new probes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch

from medcoss_components.continual.buffer import read_buffer
from medcoss_components.continual.store_view import StoreView
from medcoss_components.data.labelled import ClassificationDataset
from medcoss_components.engines.embedding import embed_into_file, embed_source
from medcoss_components.engines.setup import default_device
from medcoss_components.errors import InputError
from medcoss_components.files import atomic_path, folder_of, read_json, remove_partial, sha256_json, write_json
from medcoss_components.retention import reference, scores
from medcoss_components.retention.encoders import Column, chain_columns, named
from medcoss_components.retention.probes import SPLITS, Probe
from medcoss_components.retention.results import FOLDER, RESULT_NAME, column_metrics, retention_result
from medcoss_components.text.vocabulary import load_vocabulary
from medcoss_components.tracking.retention_map import PICTURE_NAME, retention_map
from medcoss_components.tracking.runs import TrackedRun

logger = logging.getLogger(__name__)

BATCH_SIZE = 64
NO_VOCABULARY = "no text was learned yet, so there is no vocabulary"


class RetentionRecord:
    """Scores the encoders of a chain; every rank calls it, rank 0 writes.

    Args:
        folder: the chain's output folder.
        probes: labelled sets.
        reference_samples: unlabelled samples of each learned modality; 0 leaves CKA and overlap out.
        store_dir: prepared stores; default: ``<folder>/retention/stores``.
        workers: processes that prepare them.
        seed: of the choice of reference samples; the same for all chains that are to be compared.
        device: where encoders run; default: the GPU when there is one.

    Raises:
        InputError: a negative number of reference samples, or 1, which has no neighbour.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        probes: Sequence[Probe] = (),
        reference_samples: int = reference.SAMPLES,
        store_dir: str | Path | None = None,
        workers: int | None = None,
        seed: int = 0,
        device: torch.device | None = None,
    ) -> None:
        if reference_samples < 0 or reference_samples == 1:
            raise InputError(f"reference_samples={reference_samples} must be 0 (none) or at least 2.")
        self.chain, self.folder = Path(folder), Path(folder) / FOLDER
        self.probes, self.reference_samples = list(probes), reference_samples
        self.store_dir = self.folder / "stores" if store_dir is None else Path(store_dir)
        self.workers, self.seed = workers, seed
        self.device = default_device() if device is None else device
        self.main = idist.get_rank() == 0
        self.opened: dict[tuple[str, Path | None], dict[str, ClassificationDataset]] = {}
        self.sampled: dict[Path, StoreView] = {}

    def prepare(self) -> None:
        """Prepare the image probes, so that bad data is found before the first stage trains."""
        for probe in self.probes:
            if probe.modality.dimension != 1:
                self.open_probe(probe, None, {})

    def update(self, record: Mapping[str, Any], tracked: TrackedRun | None = None) -> Path | None:
        """Score what is not scored yet.

        Args:
            record: content of the chain's chain.json.
            tracked: MLflow run of the chain; the step of its metrics is the number of the stage.

        Returns:
            Path of retention.json; None when no stage is finished or there is nothing to score.
        """
        idist.barrier()  # rank 0 may still be writing what the others are about to read
        columns = chain_columns(self.chain, record)
        if not columns or not (self.probes or self.reference_samples):
            return None
        if self.main:
            self.folder.mkdir(exist_ok=True)
            remove_partial(self.folder)
        found = self._earlier(record) if self.reference_samples else {}
        known = reference.references(columns, found) if self.reference_samples else []
        states = [ColumnState(self, column, number) for number, column in enumerate(columns)]
        idist.barrier()
        for state in states:
            state.score_probes(columns, record)
            state.score_references(known)
            state.log(tracked)
            state.release()
        if self.main:
            self._write(states, known)
        idist.barrier()
        return self.chain / RESULT_NAME

    def _write(self, states: Sequence[ColumnState], known: Sequence[reference.Reference]) -> None:
        own = {entry.modality: entry.own for entry in known}
        result = retention_result([(state.column, state.content) for state in states], own)
        path = self.chain / RESULT_NAME
        if not path.is_file() or read_json(path) != result or not (self.chain / PICTURE_NAME).is_file():
            write_json(path, result)
            retention_map(result, self.chain / PICTURE_NAME)

    def _earlier(self, record: Mapping[str, Any]) -> dict[str, Path]:
        """Modality learned before the chain -> folder of its stage, where both buffer and stage are there."""
        folders = {}
        for path in record.get("buffers", ()):
            buffer = (self.chain / path).resolve()
            folder = folder_of(buffer)
            if (folder / "stage.json").is_file() and (folder / "metrics.json").is_file():
                folders[read_buffer(buffer).name] = folder
        return folders

    def samples(self, entry: reference.Reference) -> StoreView:
        """Reference samples of a modality, looked up once."""
        folder = entry.column.folder
        if folder not in self.sampled:
            self.sampled[folder] = entry.samples(self.reference_samples, seed=self.seed, store_dir=self.store_dir)
        return self.sampled[folder]

    def open_probe(
        self, probe: Probe, vocabulary: Path | None, settings: Mapping[str, Any]
    ) -> dict[str, ClassificationDataset]:
        """The splits of a probe, opened once for each vocabulary."""
        key = (probe.name, vocabulary)
        if key not in self.opened:
            self.opened[key] = probe.open(
                self.store_dir,
                vocabulary=None if vocabulary is None else load_vocabulary(vocabulary),
                preparation=text_preparation(probe, settings),
                workers=self.workers,
            )
        return self.opened[key]


def text_preparation(probe: Probe, settings: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """How the chain cuts texts of the probe's modality: positions beyond its length were not trained."""
    if probe.modality.dimension != 1:
        return None
    for entry in settings.get("stages", ()):
        for part in (entry, *entry.get("joint", ())):
            if named(part["modality"]) == probe.modality.name:
                return part.get("preparation", settings.get("preparation"))
    return settings.get("preparation")


class ColumnState:
    """The scores of one encoder: its file, and what is missing there.

    Args:
        record: what it belongs to.
        column: the encoder.
        number: its place, 0 for the start.
    """

    def __init__(self, record: RetentionRecord, column: Column, number: int) -> None:
        self.record, self.column, self.number = record, column, number
        self.path = record.folder / f"{column.name}.json"
        self.content: dict[str, Any] = {"state": column.state, "probes": {}, "reference": {}, "logged": None}
        if self.path.is_file() and (found := read_json(self.path)).get("state") == column.state:
            self.content = found

    @cached_property
    def network(self) -> torch.nn.Module | None:
        """The encoder; None, and a warning, when its weights are gone."""
        try:
            return self.column.network(self.record.device)
        except InputError as error:
            logger.warning("retention: %s is left out: %s", self.column.name, error)
            return None

    def release(self) -> None:
        """Let the network go: a chain has as many as stages."""
        self.__dict__.pop("network", None)

    def score_probes(self, columns: Sequence[Column], chain: Mapping[str, Any]) -> None:
        """Score the probes that have no score here, or one of other samples."""
        for probe in self.record.probes:
            vocabulary = None if probe.modality.dimension != 1 else self._vocabulary(columns)
            if probe.modality.dimension == 1 and vocabulary is None:
                self._keep("probes", probe.name, {"modality": probe.modality.name, "reason": NO_VOCABULARY})
                continue
            splits = self.record.open_probe(probe, vocabulary, chain["settings"])
            identity = sha256_json([splits[split].key for split in SPLITS])
            known = self.content["probes"].get(probe.name, {})
            if known.get("identity") == identity:
                continue
            if self.network is None:
                cell = {"modality": probe.modality.name, "reason": "the weights of this encoder are not there"}
            else:
                cell = {"identity": identity, "modality": probe.modality.name, **self._probe_scores(splits)}
            self._keep("probes", probe.name, cell)

    def _vocabulary(self, columns: Sequence[Column]) -> Path | None:
        """The stage's own, or the first one that a later stage brought: the word vectors were there before it."""
        if self.column.vocabulary is not None and not self.column.is_start:
            return self.column.vocabulary
        return next((column.vocabulary for column in columns[self.number :] if column.vocabulary is not None), None)

    def _probe_scores(self, splits: Mapping[str, ClassificationDataset]) -> dict[str, Any]:
        """Accuracies of one probe, and what they stand on; nothing on other ranks than 0."""
        features = {split: self._embed(splits[split], splits[split].vocabulary_path) for split in SPLITS}
        targets = {split: splits[split].targets for split in SPLITS}
        counts = np.bincount(targets["testing"], minlength=len(splits["testing"].classes))
        facts = {
            "classes": len(counts),
            "majority": float(counts.max() / counts.sum()),
            "samples": {split: len(splits[split]) for split in SPLITS},
        }
        if not self.record.main:
            return facts
        pairs = {split: (features[split], targets[split]) for split in SPLITS}
        k = min(scores.NEIGHBOURS, len(splits["training"]))
        logistic = scores.logistic_accuracy(*(pairs[split] for split in SPLITS))
        return {
            "k_nn": scores.knn_accuracy(*pairs["training"], *pairs["testing"], k=k),
            "logistic": logistic.accuracy,
            "chosen_c": logistic.chosen_c,
            "k": k,
            **facts,
        }

    def score_references(self, known: Iterable[reference.Reference]) -> None:
        """Compare the features of learned modalities with those at the end of their own stage."""
        for entry in known:
            if entry.own > self.number:
                continue
            try:
                samples = self.record.samples(entry)
                identity = entry.identity(samples, self.record.reference_samples)
                if self.content["reference"].get(entry.modality, {}).get("identity") != identity:
                    self._compare(entry, samples, identity)
            except InputError as error:
                logger.warning("retention: %s after %s is left out: %s", entry.modality, self.column.name, error)
                self._keep("reference", entry.modality, {"reason": "its samples or the weights of its stage are gone"})

    def _compare(self, entry: reference.Reference, samples: StoreView, identity: str) -> None:
        before, own = self._own_features(entry, samples, identity), self._learned_here(entry)
        now = before if own else self._embed(samples, samples.vocabulary_path)
        cell: dict[str, Any] = {"identity": identity, "samples": len(samples)}
        if self.record.main:
            k = min(scores.OVERLAP_NEIGHBOURS, len(samples) - 1)
            cell |= {"cka": scores.linear_cka(before, now), "k": k}
            cell["overlap"] = scores.neighbour_overlap(before, now, k=k)
        self._keep("reference", entry.modality, cell)

    def _learned_here(self, entry: reference.Reference) -> bool:
        """Whether this is the encoder at the end of the modality's own stage."""
        return entry.column.folder == self.column.folder and not self.column.is_start

    def _own_features(self, entry: reference.Reference, samples: StoreView, identity: str) -> np.ndarray:
        """Features at the end of the modality's own stage; (0, 0) on other ranks than 0."""
        path = self.record.folder / f"{entry.modality}.npz"
        kept = _kept_features(path, identity)
        idist.barrier()  # all ranks have looked before rank 0 writes
        if kept is not None:
            return kept
        model = self.network if self._learned_here(entry) else entry.column.network(self.record.device)
        features = self._embed(samples, samples.vocabulary_path, model=model, precision=entry.column.precision)
        if self.record.main:
            with atomic_path(path) as partial, open(partial, "wb") as stream:
                np.savez(stream, identity=np.array(identity), features=features)
        return features

    def _embed(
        self, source: Any, vocabulary: Path | None, *, model: torch.nn.Module | None = None, precision: str = ""
    ) -> np.ndarray:
        """(N, D) float32 features of a source on rank 0, empty on the others."""
        model = self.network if model is None else model
        if model is None:
            raise InputError(f"{self.column.folder}: the weights of this encoder are not there")
        options: dict[str, Any] = {
            "device": self.record.device,
            "precision": precision or self.column.precision,
            "batch_size": BATCH_SIZE,
            "pad_id": None if vocabulary is None else load_vocabulary(vocabulary).pad_id,
        }
        if idist.get_world_size() == 1:
            return embed_source(model, source, **options)
        path = self.record.folder / "features.npy"
        embed_into_file(model, source, path, **options)
        if not self.record.main:
            return np.empty((0, 0), np.float32)
        features = np.load(path)
        path.unlink()
        return features

    def _keep(self, kind: str, name: str, cell: dict[str, Any]) -> None:
        if self.content[kind].get(name) == cell:
            return
        self.content[kind][name], self.content["logged"] = cell, None
        self._save()

    def _save(self) -> None:
        if self.record.main:
            write_json(self.path, self.content)

    def log(self, tracked: TrackedRun | None) -> None:
        """Send the column to MLflow, once for each run and content."""
        if tracked is None or tracked.run_id is None or self.content["logged"] == tracked.run_id:
            return
        tracked.log_metrics(column_metrics(self.content), step=self.number)
        tracked.flush()
        self.content["logged"] = tracked.run_id
        self._save()


def _kept_features(path: Path, identity: str) -> np.ndarray | None:
    if not path.is_file():
        return None
    with np.load(path) as content:
        return content["features"] if str(content["identity"]) == identity else None


def score_chain(
    folder: str | Path,
    record: Mapping[str, Any],
    *,
    probes: Sequence[Probe] = (),
    store_dir: str | Path | None = None,
    reference_samples: int | None = None,
    device: torch.device | None = None,
) -> dict[str, Any]:
    """Score a chain's finished stages outside of its run.

    Args:
        folder: the chain's output folder.
        record: content of its chain.json.
        probes: labelled sets; those scored before stay in the matrix.
        store_dir: prepared stores; default: the chain's where it is there, else one in the chain's folder.
        reference_samples: see :class:`RetentionRecord`; None: as many as the chain took.
        device: where encoders run.

    Returns:
        The content of retention.json.

    Raises:
        InputError: no finished stage, or nothing to score.
    """
    known = record["settings"].get("store_dir")
    if store_dir is None and known is not None and Path(known).is_dir():
        store_dir = known
    if reference_samples is None:
        reference_samples = int(record["settings"].get("reference_samples", reference.SAMPLES))
    scorer = RetentionRecord(
        folder, probes=probes, reference_samples=reference_samples, store_dir=store_dir, device=device
    )
    if scorer.update(record) is None:
        raise InputError(
            f"{folder}: nothing to score. The chain needs a finished stage, and probes or reference_samples above 0."
        )
    return read_json(scorer.chain / RESULT_NAME)
