"""Step 1 of MUSCLE as a run: train, evaluate, embed, write artefacts.

Every step ends with a record in ``run.json``; the same command goes on after the last finished one, and in the middle
of an epoch when training was interrupted.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events

from medcoss_components.data.modalities import Modality
from medcoss_components.engines.contrastive import ContrastiveEvaluator, ContrastiveTrainer
from medcoss_components.engines.contrastive_artefacts import run_metrics, write_previews
from medcoss_components.engines.embedding import embed_into_file
from medcoss_components.engines.recorded_run import RecordedRun
from medcoss_components.engines.trained_settings import RUN_METRICS, RUN_RECORD
from medcoss_components.errors import InputError
from medcoss_components.even_spread import evenly_spread
from medcoss_components.files import read_json, write_json
from medcoss_components.pretext.contrastive import PooledFeatures, feature_spread
from medcoss_components.weights import hash_weights, read_weights, save_weights

logger = logging.getLogger(__name__)

STEPS = ("train", "evaluate", "embed", "artefacts")
CHECKPOINT, EMBEDDINGS = "checkpoint.pt", "embeddings.npy"


@dataclass(kw_only=True, eq=False, repr=False)
class ContrastivePretraining(RecordedRun):
    """MD-MoCo over the union of X-ray data sets (METHOD section 9, step 1).

    The folder receives model.pt (``backbone.*`` and the projection ``head.*`` of the query network), metrics.json,
    history.json, run.json and ``previews`` (curves, view pairs, map of the embeddings by data set and by body part).
    The weights are those of the last epoch: nothing is selected, since no label is seen.

    Args, beside those of :class:`~medcoss_components.engines.recorded_run.RecordedRun`:
        evaluator: of held-out images; None leaves it out.
        embedding_samples: images, spread evenly over the data, that are embedded for the map and the spread.
        embedding_batch_size: images per embedding batch.

    Raises:
        InputError: ``embedding_samples`` below 2, of which no map can be drawn.
    """

    steps = STEPS
    record_name = RUN_RECORD

    trainer: ContrastiveTrainer
    evaluator: ContrastiveEvaluator | None = None
    embedding_samples: int = 20_000
    embedding_batch_size: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.embedding_samples < 2:
            raise InputError(f"embedding_samples must be at least 2, received {self.embedding_samples}")

    @property
    def dataset(self) -> Any:
        """Training data."""
        return self.trainer.data_loader.dataset

    @property
    def weights_path(self) -> Path:
        return self.folder / "model.pt"

    @property
    def embeddings_path(self) -> Path:
        return self.folder / EMBEDDINGS

    @property
    def embedded_rows(self) -> np.ndarray:
        """Rows of the data that are embedded: (min(N, embedding_samples),) int64, rising."""
        return evenly_spread(len(self.dataset), self.embedding_samples)

    def _restore(self, step: str) -> None:
        if step == "train":
            self.history.rows = read_json(self.folder / "history.json")["rows"]

    def _completed(self, step: str) -> None:
        if step == "train":  # each rank has batch norm statistics of its own until then
            self.model.load_state_dict(read_weights(self.weights_path))

    def _identity(self) -> dict[str, Any]:
        """Everything that decides the result: the settings, the data, and what the run starts from."""
        trainer = self.trainer
        data = {"training": self.dataset.key}
        if self.evaluator is not None:
            data["validation"] = self.evaluator.dataset.key
        return {
            **self.settings,
            "task": "contrastive",
            "initial_weights": hash_weights(self.model.state_dict()),
            "data": data,
            "views": asdict(trainer.preprocessing.views),
            "contrast": {
                "queue_size": len(trainer.contrast.queue),
                "momentum": trainer.contrast.momentum,
                "temperature": trainer.contrast.temperature,
                "normalisation_groups": trainer.normalisation_groups,
            },
        }

    def _tags(self) -> dict[str, Any]:
        return {
            "task": "contrastive",
            "modality": self.dataset.modality.name,
            "manifest_hash": self.dataset.manifest_hash,
        }

    def _attach_handlers(self) -> None:
        guard = self._attach_common(self.folder / CHECKPOINT, parts={"contrast": self.trainer.contrast})
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: guard.check())

    def _train(self) -> None:
        self._run_trainer()
        self.record.values["preparation_seconds"] = getattr(self.dataset, "preparation_seconds", 0.0)
        if self.main:
            write_json(self.folder / "history.json", self.history.to_json())
            save_weights(self.weights_path, self.model.state_dict())

    def _evaluate(self) -> None:
        metrics = self.evaluator.evaluate() if self.evaluator is not None else None
        self.record.values["validation"] = metrics
        if metrics is not None:
            values = {f"validation/{name}": value for name, value in metrics.items()}
            self.tracked.log_metrics(values, step=self.trainer.total_iterations)

    def _embed(self) -> None:
        embed_into_file(
            PooledFeatures(self.model, self.trainer.preprocessing.intensity),
            ChosenRows(self.dataset, self.embedded_rows),
            self.embeddings_path,
            device=self.trainer.state.device,
            precision=self.trainer.precision,
            batch_size=self.embedding_batch_size,
        )
        spread = float(feature_spread(torch.from_numpy(np.load(self.embeddings_path))))
        self.record.values["feature_spread"] = spread
        self.tracked.log_metrics({"feature_spread": spread}, step=self.trainer.total_iterations)

    def _artefacts(self) -> None:
        if not self.main:
            return
        write_previews(self)
        write_json(self.folder / RUN_METRICS, run_metrics(self))
        for name in (RUN_RECORD, RUN_METRICS, "history.json"):
            self.tracked.log_artifact(self.folder / name)
        self.tracked.log_artifacts(self.folder / "previews", "previews")

    def _clean(self) -> None:
        """After the last step is recorded, not before: until then a restart needs these files."""
        if self.main:
            for name in (CHECKPOINT, EMBEDDINGS):
                (self.folder / name).unlink(missing_ok=True)


class ChosenRows:
    """Some rows of a data set, as much of a store as embedding needs.

    Args:
        dataset: the whole.
        rows: (n,) int64 positions in it.
    """

    def __init__(self, dataset: Any, rows: np.ndarray) -> None:
        self.dataset, self.rows = dataset, rows
        self.modality: Modality = dataset.modality
        self.ids: Sequence[str] = [dataset.ids[row] for row in rows]

    def __len__(self) -> int:
        return len(self.rows)

    def gather(self, indices: np.ndarray) -> np.ndarray:
        """Stored samples (n, *stored_shape)."""
        return self.dataset.gather(self.rows[np.asarray(indices, dtype=np.int64)])
