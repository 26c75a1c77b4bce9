"""Parts that bundle configs put together: device, data, vocabulary, initial weights, buffers.

Where several processes run, rank 0 does what must be done once (preparing a store, training a vocabulary) and the
others wait.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import ignite.distributed as idist
import torch

from medcoss_components.continual.buffer import open_buffer_store, read_buffer
from medcoss_components.continual.store_view import StoreView
from medcoss_components.continual.strategies import get_strategy
from medcoss_components.data.manifest import Manifest, read_manifest
from medcoss_components.data.modalities import get_modality
from medcoss_components.data.store import Store, prepare_store
from medcoss_components.engines.agreement import TIMEOUT_HOURS
from medcoss_components.engines.trained_settings import check_outputs
from medcoss_components.errors import InputError
from medcoss_components.files import file_beside
from medcoss_components.networks.initialisation import initialise
from medcoss_components.networks.lean import checkpoint_blocks
from medcoss_components.randomness import generator_for
from medcoss_components.text.vocabulary import Vocabulary, load_vocabulary, train_vocabulary
from medcoss_components.weights import load_initial_weights

if TYPE_CHECKING:
    from medcoss_components.networks.classification import ClassificationModel
    from medcoss_components.networks.segmentation import SegmentationModel
    from medcoss_components.networks.xray_tasks import XrayModel

logger = logging.getLogger(__name__)
Network = TypeVar("Network", bound=torch.nn.Module)

VOCABULARY_NAME = "vocabulary.json"
JOINT_OPTIONS = ("dataset_dir", "preparation", "max_bad_share")
"""What an entry of a joint stage may set for its own data."""


def default_device() -> torch.device:
    """This process's GPU when there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def start_distributed(timeout_hours: float = TIMEOUT_HOURS) -> None:
    """Join the process group that ``torchrun`` describes: nccl with GPUs, gloo without; nothing to do for one process.

    Args:
        timeout_hours: how long ranks wait for each other.

    Raises:
        InputError: there are GPUs, but not one for each process of this machine.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or idist.get_world_size() > 1:
        return
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if backend == "nccl":
        _check_own_gpu()
        torch.cuda.set_device(default_device())
    idist.initialize(backend, timeout=timedelta(hours=timeout_hours))


def _check_own_gpu() -> None:
    local, found = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= found:
        raise InputError(
            f"--nproc_per_node: process {local} (from 0) of this machine has no GPU of its own, {found} are visible. "
            f"Start {found} processes, or set CUDA_VISIBLE_DEVICES= (nothing) to train with all of them on the CPU."
        )


def stop_distributed() -> None:
    """Leave the process group, if there is one."""
    if idist.get_world_size() > 1:
        idist.finalize()


@contextmanager
def main_process_first() -> Iterator[None]:
    """Rank 0 runs the block, then the others do (and find its results)."""
    if idist.get_rank() > 0:
        idist.barrier()
    yield
    if idist.get_rank() == 0:
        idist.barrier()


def register_modalities(entries: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """Add modalities that a config describes to the registry; return their names."""
    return [get_modality(dict(entry)).name for entry in entries]


def prepared_dataset(
    *,
    manifest: str | Path,
    modality: str | Mapping[str, Any],
    store_dir: str | Path,
    split: str = "training",
    vocabulary: Vocabulary | None = None,
    preparation: Mapping[str, Any] | None = None,
    dataset_dir: str | Path | None = None,
    workers: int | None = None,
    max_bad_share: float = 0.01,
    optional: bool = False,
) -> Store | None:
    """The store of one split of a manifest; prepared when there is none yet (once, by rank 0).

    Args:
        optional: None instead of an error when the split has no items (validation).

    Other arguments as for :func:`~medcoss_components.data.store.prepare_store`.
    """
    content = _manifest(manifest, dataset_dir)
    if optional and not content.items(split):
        return None
    started = time.monotonic()
    with main_process_first():
        store = prepare_store(
            manifest=content,
            modality=get_modality(modality),
            store_dir=store_dir,
            split=split,
            vocabulary=vocabulary,
            preparation=preparation,
            workers=workers,
            max_bad_share=max_bad_share,
        )
    store.preparation_seconds = round(time.monotonic() - started, 3)
    return store


def _manifest(manifest: str | Path | None, dataset_dir: str | Path | None) -> Manifest:
    if not manifest:
        raise InputError(
            "data_manifest: give the path of a manifest (JSON), for example --data_manifest data/manifest.json"
        )
    return read_manifest(manifest, dataset_dir=dataset_dir)


def joint_datasets(entries: Sequence[Mapping[str, Any]], **options: Any) -> list[Store]:
    """Stores of the further modalities of a joint stage.

    Each entry has ``modality`` and ``data_manifest``, and may have ``dataset_dir``, ``preparation`` and
    ``max_bad_share`` of its own; ``options`` hold for all, see :func:`prepared_dataset`.
    """
    stores = []
    for entry in entries:
        own = {key: entry[key] for key in JOINT_OPTIONS if key in entry}
        stores.append(
            prepared_dataset(manifest=entry["data_manifest"], modality=entry["modality"], **{**options, **own})
        )
    return [store for store in stores if store is not None]


def stage_vocabulary(
    *,
    manifest: str | Path | None,
    modality: str | Mapping[str, Any],
    store_dir: str | Path,
    vocabulary: str | Path | None = None,
    init_weights: str | Path | None = None,
    size: int = 4000,
    dataset_dir: str | Path | None = None,
    train: bool = True,
    carry: bool = True,
) -> Vocabulary | None:
    """The vocabulary of a stage or of a downstream task.

    In this order: the file given; the one that came with the weights that the stage starts from; for a text modality, a
    byte-pair vocabulary trained on the training split (kept in ``store_dir``, trained once). None for image stages
    without any.

    Args:
        size: entries of a newly trained vocabulary.
        train: whether a vocabulary may be trained; False where trained weights are read.
        carry: whether an image stage hands the vocabulary of its starting weights on; a task on images does not.

    Raises:
        InputError: when a given vocabulary file does not exist, or a text modality has none and ``train`` is False.
    """
    is_text = get_modality(modality).dimension == 1
    known = vocabulary or (file_beside(init_weights, VOCABULARY_NAME) if is_text or carry else None)
    if known:
        return load_vocabulary(known)
    if not is_text:
        return None
    if not train:
        raise InputError(
            f"vocabulary: no {VOCABULARY_NAME} stands beside the weights {init_weights}; "
            "give the file that they were trained with (--vocabulary PATH)"
        )
    content = _manifest(manifest, dataset_dir)
    path = Path(store_dir) / f"vocabulary-{content.hash[:12]}-{size}" / VOCABULARY_NAME
    if init_weights:
        logger.warning(
            "%s: no %s stands beside these weights. A new one is used, which their word vectors were not trained with; "
            "--vocabulary PATH gives theirs.",
            init_weights,
            VOCABULARY_NAME,
        )
    with main_process_first():
        if not path.is_file():
            logger.info("training a byte-pair vocabulary of %d entries", size)
            train_vocabulary((item.text or "" for item in content.items("training")), size=size, path=path)
    return load_vocabulary(path)


def initialised_network(
    *,
    network: Network,
    init_weights: str | Path | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    parts: str = "encoder",
    allow_initialised: Sequence[str] = (),
    checkpoint_activations: bool = False,
) -> Network:
    """Give every parameter its first value from ``seed``, then load encoder, tokenizers and class token, or the
    backbone of an X-ray network, from ``init_weights``.

    Decoder and heads keep their fresh values (METHOD section 7), unless ``parts`` is "all" (evaluation, inference).
    What was loaded is logged, and kept as text in the network's attribute ``load_report``.

    Args:
        allow_initialised: beginnings of names that the file may lack; they keep their fresh values.
        checkpoint_activations: see :func:`~medcoss_components.networks.lean.checkpoint_blocks`.

    Raises:
        InputError: when the encoder of the file does not fit.
    """
    initialise(network, generator_for(seed, "initial weights"))
    checkpoint_blocks(network, checkpoint_activations)
    if init_weights:
        report = load_initial_weights(network, init_weights, parts=parts, allow_initialised=allow_initialised)
        logger.info("%s: %s", init_weights, report)
        network.__dict__["load_report"] = str(report)
    return network.to(device)


def task_network(
    *,
    network: ClassificationModel | SegmentationModel | XrayModel,
    init_weights: str | Path | None = None,
    freeze_encoder: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
    parts: str = "encoder",
    allow_initialised: Sequence[str] = (),
    checkpoint_activations: bool = False,
) -> ClassificationModel | SegmentationModel | XrayModel:
    """First values of a downstream network: from ``seed``, then the encoder or the backbone (or all, ``parts``) of
    ``init_weights``.

    Args:
        freeze_encoder: train the head alone (linear probe).
        parts: "all" for fine-tuned weights (evaluation, inference).
        checkpoint_activations: see :func:`~medcoss_components.networks.lean.checkpoint_blocks`.

    Raises:
        InputError: when the weights do not fit, or a run was fine-tuned with other names for its outputs.
    """
    if init_weights and parts == "all":
        check_outputs(network, init_weights)
    initialised_network(
        network=network,
        init_weights=init_weights,
        seed=seed,
        device=device,
        parts=parts,
        allow_initialised=allow_initialised,
        checkpoint_activations=checkpoint_activations,
    )
    if freeze_encoder:
        network.freeze_encoder()
    return network


def rehearsal_buffers(
    *, buffers: Sequence[str | Path] | str | Path = (), strategy: str = "medcoss", store_dir: str | Path | None = None
) -> list[StoreView]:
    """Open the buffers of earlier stages; none when the strategy does not rehearse.

    Args:
        buffers: buffer.json files or stage folders.
        strategy: name of the strategy.
        store_dir: where the earlier stores are, when they were moved.
    """
    paths = [buffers] if isinstance(buffers, str | Path) else list(buffers)
    if not get_strategy(strategy).uses_buffers:
        if paths:
            logger.info("strategy %s does not rehearse: %d buffers are not read", strategy, len(paths))
        return []
    return [open_buffer_store(read_buffer(path), store_dir) for path in paths]
