"""One stage of continual pre-training: train, evaluate, embed, choose exemplars, write artefacts.

Every step ends with a record in ``stage.json``; the same command goes on after the last finished one, and in the
middle of an epoch when training was interrupted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medcoss_components.continual.buffer import make_buffer, materialise_buffer, write_buffer
from medcoss_components.continual.exemplars import cluster_count, exemplar_count, select_exemplars
from medcoss_components.data.store import Store
from medcoss_components.engines.artefacts import stage_metrics, write_previews
from medcoss_components.engines.embedding import embed_into_file
from medcoss_components.engines.evaluation import PretextEvaluator
from medcoss_components.engines.pretrainer import Pretrainer
from medcoss_components.engines.recorded_run import RecordedRun
from medcoss_components.errors import InputError
from medcoss_components.files import read_json, sha256_json, write_json
from medcoss_components.networks.pretraining import encoder_state
from medcoss_components.text.vocabulary import Vocabulary
from medcoss_components.weights import hash_weights, read_weights, save_weights

logger = logging.getLogger(__name__)

WORK_FILES = ("checkpoint.pt", "embeddings.npy")
STEPS = ("train", "evaluate", "embed", "select", "artefacts")


@dataclass(kw_only=True, eq=False, repr=False)
class PretrainingStage(RecordedRun):
    """A stage of the chain, or a stage on its own.

    The folder receives model.pt, encoder.safetensors, buffer.json, metrics.json, history.json, vocabulary.json and
    previews/.

    Args, beside those of :class:`~medcoss_components.engines.recorded_run.RecordedRun`:
        dataset: prepared store of the current modality.
        evaluator: pretext loss on validation data; None leaves it out.
        buffer_ratio: size of the rehearsal buffer, share of the samples, in (0, 1]; a strategy may have its own.
        cluster_ratio: k-means clusters, share of the samples, in (0, 1].
        materialise: copy the exemplars into the stage's folder, so that the next stage needs no earlier data.
        embedding_batch_size: samples per embedding batch.
        show_text: whether preview pictures may show words of reports (leave False for patients' data).
    """

    steps = STEPS
    record_name = "stage.json"

    trainer: Pretrainer
    dataset: Store
    evaluator: PretextEvaluator | None = None
    buffer_ratio: float = 0.05
    cluster_ratio: float = 0.01
    materialise: bool = False
    embedding_batch_size: int = 64
    show_text: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.strategy = self.trainer.strategy
        if self.strategy.buffer_ratio is not None:
            self.buffer_ratio = self.strategy.buffer_ratio
        self.exemplars = exemplar_count(len(self.dataset), self.buffer_ratio)
        self.clusters = cluster_count(len(self.dataset), self.cluster_ratio)
        self.on_step: Callable[[PretrainingStage, str], None] = lambda stage, step: None

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary of a stage that holds text.

        Raises:
            InputError: when the stage has none.
        """
        if self.trainer.settings.vocabulary is None:
            raise InputError(f"stage {self.name}: has no vocabulary; set `vocabulary` to a vocabulary.json")
        return self.trainer.settings.vocabulary

    @property
    def weights_path(self) -> Path:
        return self.folder / "model.pt"

    @property
    def checkpoint_path(self) -> Path:
        return self.folder / WORK_FILES[0]

    @property
    def embeddings_path(self) -> Path:
        return self.folder / WORK_FILES[1]

    def _restore(self, step: str) -> None:
        if step == "train":
            self.model.load_state_dict(read_weights(self.weights_path))
            self.history.rows = read_json(self.folder / "history.json")["rows"]

    def _completed(self, step: str) -> None:
        self.on_step(self, step)

    def _open(self) -> None:
        super()._open()
        if "preparation_seconds" not in self.record.values:
            self.record.values["preparation_seconds"] = getattr(self.dataset, "preparation_seconds", 0.0)
            self.record.save()

    def _identity(self) -> dict[str, Any]:
        """Everything that decides the result: the settings and what the stage starts from."""
        loader = self.trainer.data_loader
        return {
            **self.settings,
            **self.strategy.identity(),
            "initial_weights": hash_weights(self.model.state_dict()),
            "stores": [source.key for source in loader.sources[: loader.current]],
            "buffers": [sha256_json(list(source.ids)) for source in loader.sources[loader.current :]],
        }

    def _tags(self) -> dict[str, Any]:
        return {"modality": self.dataset.modality.name, "manifest_hash": self.dataset.manifest_hash}

    def _attach_handlers(self) -> None:
        companion = self.strategy.companion
        self._attach_common(self.checkpoint_path, parts={} if companion is None else {"companion": companion})

    def _train(self) -> None:
        self._run_trainer()
        if self.main:
            write_json(self.folder / "history.json", self.history.to_json())
            save_weights(self.weights_path, self.model.state_dict())

    def _evaluate(self) -> None:
        loss = self.evaluator.evaluate()["pretext_loss"] if self.evaluator is not None else None
        self.record.values["validation_loss"] = loss
        if loss is not None:
            self.tracked.log_metrics({"validation_loss": loss}, step=self.trainer.total_iterations)

    def _embed(self) -> None:
        embed_into_file(
            self.model,
            self.dataset,
            self.embeddings_path,
            device=self.trainer.state.device,
            precision=self.trainer.precision,
            batch_size=self.embedding_batch_size,
            pad_id=self._pad_id(),
        )

    def _pad_id(self) -> int | None:
        vocabulary = self.trainer.settings.vocabulary
        return None if vocabulary is None else vocabulary.pad_id

    def _select(self) -> None:
        if not self.main:
            return
        features = np.load(self.embeddings_path)
        chosen = select_exemplars(
            features, count=self.exemplars, clusters=self.clusters, seed=self.seed, rule=self.strategy.exemplars
        )
        buffer = make_buffer(
            store=self.dataset,
            exemplars=chosen,
            encoder_hash=hash_weights(self.model.state_dict()),
            ratio=self.buffer_ratio,
            seed=self.seed,
        )
        if self.materialise:
            buffer = materialise_buffer(buffer, self.dataset, self.folder / "buffer")
        write_buffer(buffer, self.folder / "buffer.json")

    def _artefacts(self) -> None:
        self.strategy.finish(self)
        if not self.main:
            return
        save_weights(self.folder / "encoder.safetensors", encoder_state(self.model))
        if self.trainer.settings.vocabulary is not None:
            self.trainer.settings.vocabulary.save(self.folder / "vocabulary.json")
        write_previews(self)
        write_json(self.folder / "metrics.json", stage_metrics(self))
        for name in ("stage.json", "buffer.json", "metrics.json", "history.json"):
            self.tracked.log_artifact(self.folder / name)
        self.tracked.log_artifacts(self.folder / "previews", "previews")

    def _clean(self) -> None:
        """After the last step is recorded, not before: until then a restart needs these files."""
        if self.main:
            remove_work_files(self.folder)


def remove_work_files(folder: Path) -> None:
    """Remove from a finished stage's folder what only its steps needed."""
    for name in WORK_FILES:
        (folder / name).unlink(missing_ok=True)
