"""The prepared data of the retention experiment: one vocabulary, the stores, and features of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from retention_plan import Scale

from medcoss_components.data.locking import kept_lock
from medcoss_components.data.modalities import get_modality
from medcoss_components.data.store import Store
from medcoss_components.engines.embedding import embed_source
from medcoss_components.engines.setup import default_device, initialised_network, prepared_dataset, stage_vocabulary
from medcoss_components.errors import InputError
from medcoss_components.files import remove_partial
from medcoss_components.networks.pretraining import PretrainingModel
from medcoss_components.retention.probes import SPLITS
from medcoss_components.text.vocabulary import Vocabulary, load_vocabulary

EMBEDDING_BATCH = 128


class Data:
    """Opens, and prepares where needed, what the runs read; all below ``<root>/stores``.

    Args:
        scale: the experiment.
        root: folder of all runs.
    """

    def __init__(self, scale: Scale, root: Path) -> None:
        scale.register()
        self.scale, self.root, self.store_dir = scale, root, root / "stores"
        self._stores: dict[tuple[str, str], Store | None] = {}

    @property
    def vocabulary_path(self) -> Path:
        """The vocabulary of all runs: trained on the text stage, whatever the seed."""
        return self.root / "vocabulary.json"

    @property
    def vocabulary(self) -> Vocabulary:
        return load_vocabulary(self.vocabulary_path)

    def prepare(self) -> None:
        """Train the vocabulary and prepare every store, in this process, before runs start side by side."""
        with kept_lock(self.root / ".prepare.lock"):
            self.root.mkdir(parents=True, exist_ok=True)
            remove_partial(self.root)
            if not self.vocabulary_path.is_file():
                self._train_vocabulary()
            for entry in self.scale.stages:
                for split in SPLITS[:2]:
                    self.store(entry, split)
            for probe in self.scale.probes:
                for split in SPLITS:
                    self.store(probe, split)

    def _train_vocabulary(self) -> None:
        text = self.scale.stages[0]
        words = stage_vocabulary(
            manifest=text["manifest"],
            modality=text["modality"],
            store_dir=self.store_dir,
            size=self.scale.vocabulary_size,
        )
        if words is None:
            raise InputError(f"stages[0]: the first stage must be text, received modality {text['modality']}")
        words.save(self.vocabulary_path)

    def store(self, entry: Mapping[str, Any], split: str) -> Store | None:
        """Prepared samples of a stage's or a probe's manifest; None when the split is empty (validation)."""
        key = (entry["manifest"], split)
        if key not in self._stores:
            is_text = get_modality(entry["modality"]).dimension == 1
            self._stores[key] = prepared_dataset(
                manifest=entry["manifest"],
                modality=entry["modality"],
                store_dir=self.store_dir,
                split=split,
                vocabulary=self.vocabulary if is_text else None,
                preparation=entry.get("preparation"),
                optional=split == "validation",
            )
        return self._stores[key]

    def training(self, entry: Mapping[str, Any]) -> Store:
        """Training samples of a stage or probe.

        Raises:
            InputError: when there are none.
        """
        store = self.store(entry, "training")
        if store is None or not len(store):
            raise InputError(f"{entry['manifest']}: has no training samples")
        return store

    def network(self, weights: Path | None, seed: int) -> PretrainingModel:
        """The encoder of a stage folder; ``None`` gives the first values of that seed, the untrained encoder."""
        model = PretrainingModel(**self.scale.network)
        initialised = initialised_network(network=model, init_weights=weights, seed=seed, device=default_device())
        return initialised.eval()

    def features(self, model: PretrainingModel, store: Any) -> np.ndarray:
        """(N, D) float32 embeddings in store order."""
        return embed_source(
            model,
            store,
            device=default_device(),
            precision=self.scale.precision,
            batch_size=EMBEDDING_BATCH,
            pad_id=self.vocabulary.pad_id,
        )


def threads_from_environment() -> None:
    """Follow OMP_NUM_THREADS, so that runs side by side do not share their cores."""
    import os

    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
