"""Embeddings of a whole store: what exemplars are chosen from, and what inference writes."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator
from monai.utils.enums import CommonKeys

from medcoss_components.data.modalities import Modality
from medcoss_components.data.prefetch import read_batches
from medcoss_components.data.sampler import PretrainingLoader, SampleSource, rank_rows
from medcoss_components.data.transfer import to_device
from medcoss_components.data.transforms import to_model_input
from medcoss_components.engines.batches import real_length
from medcoss_components.engines.evaluator import Evaluator
from medcoss_components.engines.optimisation import autocast
from medcoss_components.errors import InputError
from medcoss_components.files import atomic_path
from medcoss_components.progress import progress
from medcoss_components.text.vocabulary import Vocabulary


@torch.no_grad()
def embed_batch(
    model: torch.nn.Module, modality: Modality, raw: torch.Tensor, *, precision: str, pad_id: int | None = 0
) -> torch.Tensor:
    """Embed stored samples: (B, *stored_shape) -> (B, D) float32, no patch removed, no augmentation."""
    inputs, padding_mask = to_model_input(modality, raw), None
    if modality.dimension == 1:
        padding_mask = inputs != pad_id
        length = real_length(padding_mask)
        inputs, padding_mask = inputs[:, :length], padding_mask[:, :length]
    with autocast(precision, raw.device):
        return model.embedding(modality, inputs, padding_mask=padding_mask)


def _batches(
    source: SampleSource, rows: np.ndarray, batch_size: int, *, pin: bool
) -> Generator[torch.Tensor, None, None]:
    """Stored samples (B, *stored_shape), read ahead by one thread."""

    def read(chosen: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(source.gather(chosen))

    chosen = (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))
    return read_batches(read, chosen, threads=1, pin=pin)


def embed_source(
    model: torch.nn.Module,
    source: SampleSource,
    *,
    device: torch.device,
    precision: str = "bf16",
    batch_size: int = 64,
    pad_id: int | None = 0,
) -> np.ndarray:
    """Embed this rank's share of a store in eval mode; a thread reads the next batch while one is computed.

    Returns:
        (rows of this rank, D) float32, in store order; with one process all samples.
    """
    rows = rank_rows(len(source), idist.get_rank(), idist.get_world_size())
    was_training = model.training
    model.eval()
    parts = []
    with closing(_batches(source, rows, batch_size, pin=device.type == "cuda")) as batches:
        total = -(-len(rows) // batch_size)
        for raw in progress(batches, description=f"embed {source.modality.name}", total=total, unit="batch"):
            vectors = embed_batch(model, source.modality, to_device(raw, device), precision=precision, pad_id=pad_id)
            parts.append(vectors.cpu().numpy())
    model.train(was_training)
    return np.concatenate(parts) if parts else np.empty((0, model.sizes.width), np.float32)


def embed_into_file(model: torch.nn.Module, source: SampleSource, path: Path, **options) -> None:
    """Embed a store on all ranks and let rank 0 write (N, D) float32 to ``path`` (.npy); the ranks share a file
    system."""
    save_rank_rows(embed_source(model, source, **options), path)


def save_rank_rows(own: np.ndarray, path: Path) -> None:
    """Let rank 0 write the rows (n, ...) of all ranks, rank after rank, to ``path`` (.npy); the ranks share a file
    system."""
    rank, ranks = idist.get_rank(), idist.get_world_size()
    parts = [path.with_name(f".{path.stem}.rank{other}of{ranks}.npy") for other in range(ranks)]
    with atomic_path(parts[rank]) as partial:
        np.save(partial, own)
    idist.barrier()
    if rank == 0:
        with atomic_path(path) as partial:
            np.save(partial, np.concatenate([np.load(part) for part in parts]))
        for part in parts:
            part.unlink()
    idist.barrier()


class EmbeddingEvaluator(Evaluator):
    """Writes one vector per sample of a loader to a Parquet file.

    The file has the columns id (string), modality (string) and embedding (fixed-size list of D float32), in store
    order.
    One process only: embed a large data set on several GPUs by several manifests.

    Args:
        val_data_loader: a :class:`~medcoss_components.data.sampler.PretrainingLoader` that does not shuffle.
        path: output file, ends in .parquet; None writes none, ``state.metrics["embeddings"]`` is the number of vectors.
        vocabulary: needed for text.
        options: the others of :class:`~medcoss_components.engines.evaluator.Evaluator`; the network is the pre-training
            model with trained weights.

    Raises:
        InputError: when ``path`` does not end in .parquet, text comes without a vocabulary, or there are several
            processes.
    """

    def __init__(
        self,
        *,
        val_data_loader: PretrainingLoader,
        path: str | Path | None = None,
        vocabulary: Vocabulary | None = None,
        **options: Any,
    ) -> None:
        self.path = None if path is None else Path(path)
        if self.path is not None and self.path.suffix != ".parquet":
            raise InputError(f"output_file must end in .parquet, received {path}")
        ranks = idist.get_world_size()
        if ranks > 1:
            raise InputError(f"embeddings are written by one process, this is one of {ranks}; start without torchrun")
        self.modalities = val_data_loader.modalities
        if vocabulary is None and any(entry.dimension == 1 for entry in self.modalities.values()):
            raise InputError("embedding texts needs the vocabulary that encoded them: set `vocabulary`")
        self.pad_id = None if vocabulary is None else vocabulary.pad_id
        self.ids: list[str] = []
        self.vectors: list[np.ndarray] = []
        super().__init__(val_data_loader=val_data_loader, **options)
        self.add_event_handler(Events.EPOCH_STARTED, self._reset)
        self.add_event_handler(Events.EPOCH_COMPLETED, self._finish)

    def _reset(self, engine: SupervisedEvaluator) -> None:
        self.ids, self.vectors = [], []
        self.bar = progress(description="embed", total=self.state.epoch_length, unit="batch")

    def _iteration(self, engine: SupervisedEvaluator, batchdata: dict[str, Any]) -> dict[str, Any]:
        self.network.eval()
        raw = batchdata["raw"].to(self.state.device)
        modality = self.modalities[batchdata["modality"]]
        vectors = embed_batch(self.network, modality, raw, precision=self.precision, pad_id=self.pad_id)
        self.ids += batchdata["ids"]
        self.vectors.append(vectors.cpu().numpy())
        self.bar.update()
        return {CommonKeys.PRED: vectors, "ids": batchdata["ids"]}

    def _finish(self, engine: SupervisedEvaluator) -> None:
        self.bar.close()
        vectors = np.concatenate(self.vectors)
        self.state.metrics["embeddings"] = len(vectors)
        if self.path is not None:
            write_embeddings(self.path, self.ids, next(iter(self.modalities)), vectors)


def write_embeddings(path: Path, ids: Sequence[str], modality: str, vectors: np.ndarray) -> None:
    """Write (N, D) float32 vectors with their sample ids to a Parquet file, atomically."""
    import pyarrow
    import pyarrow.parquet

    columns = {
        "id": pyarrow.array([str(name) for name in ids]),
        "modality": pyarrow.array([modality] * len(vectors)),
        "embedding": pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.ravel()), vectors.shape[1]),
    }
    with atomic_path(path) as partial:
        pyarrow.parquet.write_table(pyarrow.table(columns), partial)
