"""Both sides of a training step on the same network sizes, weights and batches.

Ours is the step that users run: a batch from ``PretrainingLoader`` over a store goes through ``Pretrainer``, that is
conversion to float, augmentation, masking, forward, backward and optimiser, in bfloat16 as the configs say. The
straightforward side gets the same batch converted, augmented and masked beforehand, which is in its favour.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Options
from inputs import fabricated_store, word_list
from straightforward.model import StraightforwardModel
from straightforward.same_weights import load_ours
from straightforward.steps import StraightforwardTrainer

from medcoss_components.continual.store_view import StoreView
from medcoss_components.data.modalities import Modality, get_modality
from medcoss_components.data.store import Store
from medcoss_components.engines.batches import ModelInputs
from medcoss_components.engines.optimisation import pretraining_optimizer
from medcoss_components.networks.lean import checkpoint_blocks
from medcoss_components.networks.pretraining import PretrainingModel
from medcoss_components.text.vocabulary import Vocabulary

SEED = 0


@dataclass(frozen=True)
class Setting:
    """What both sides train.

    Attributes:
        modality: name or entry.
        batch: samples of a step.
        sizes: sizes over those of the preset.
        preset: "vit_base" for the figures, smaller in tests.
        pieces: of the vocabulary.
        device: where both sides run.
        precision: of our side.
        kernel_attention: whether the straightforward side asks ``nn.MultiheadAttention`` for
            ``scaled_dot_product_attention`` (``need_weights=False``), instead of calling it as it is.
        checkpointed: whether our blocks keep only what enters them (``checkpoint_activations`` of the configs).
    """

    modality: str | Modality
    batch: int = 16
    sizes: dict[str, Any] = field(default_factory=dict)
    preset: str = "vit_base"
    pieces: int = 28_996
    device: str = "cpu"
    precision: str = "bf16"
    kernel_attention: bool = False
    checkpointed: bool = False

    @property
    def entry(self) -> Modality:
        return get_modality(self.modality)

    @property
    def is_text(self) -> bool:
        return self.entry.dimension == 1


def our_network(setting: Setting) -> PretrainingModel:
    """Our network, from a fixed seed."""
    torch.manual_seed(SEED)
    unread = {} if setting.is_text else {"vocabulary_size": 1000}  # images read no word table: built faster so
    network = PretrainingModel(preset=setting.preset, **{**unread, **setting.sizes})
    checkpoint_blocks(network, setting.checkpointed)
    return network


def straightforward_network(network: PretrainingModel) -> StraightforwardModel:
    """The straightforward network with the weights of ours."""
    with torch.device("meta"):  # without first values of its own
        model = StraightforwardModel(network.sizes)
    return load_ours(model, network.state_dict())


def made_up_store(setting: Setting, folder: Path, count: int) -> tuple[Store, Vocabulary | None]:
    """A store of the modality, and the vocabulary of a text store."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = word_list(folder, setting.pieces) if setting.is_text else None
    return fabricated_store(folder / "store", setting.entry, count, vocabulary=vocabulary, seed=SEED), vocabulary


def engine_installed() -> bool:
    """Whether MONAI and Ignite are there; without them :mod:`lean` stands in for ``Pretrainer``."""
    return all(find_spec(name) is not None for name in ("monai", "ignite"))


def loader_over(store: Any, *, buffers: Sequence[Any] = (), batch_size: int, num_workers: int = 0) -> Any:
    """``PretrainingLoader``, or its stand-in."""
    if engine_installed():
        from medcoss_components.data.sampler import PretrainingLoader as Loader
    else:
        from lean import LeanLoader as Loader
    return Loader(store, buffers=buffers, batch_size=batch_size, seed=SEED, num_workers=num_workers)


def trainer_over(loader: Any, setting: Setting, network: PretrainingModel, vocabulary: Any, **options: Any) -> Any:
    """``Pretrainer`` as the configs set it up, or its stand-in."""
    if engine_installed():
        from medcoss_components.engines.pretrainer import Pretrainer as Trainer
    else:
        from lean import LeanTrainer as Trainer
    network = network.to(setting.device)
    arguments: dict[str, Any] = {
        "device": setting.device,
        "max_epochs": 1,
        "train_data_loader": loader,
        "network": network,
        "optimizer": pretraining_optimizer(network=network),
        "vocabulary": vocabulary,
        "precision": setting.precision,
        "seed": SEED,
    }
    return Trainer(**arguments | options)


class OurSteps:
    """Training steps of our side; one call is one step and returns its seconds.

    Args:
        setting: what to train.
        folder: for the store.
        network: network to train; None builds it.
        rehearsal: whether steps rehearse (student and teacher, mixup, distillation) rather than do the pretext task.
        batches: different batches that are gone through in turn.
        options: further arguments of ``Pretrainer``.
    """

    def __init__(
        self,
        setting: Setting,
        folder: Path,
        *,
        network: PretrainingModel | None = None,
        rehearsal: bool = False,
        batches: int = 4,
        **options: Any,
    ) -> None:
        self.setting, self.network = setting, network or our_network(setting)
        self.store, self.vocabulary = made_up_store(setting, folder, setting.batch * batches)
        buffers = [StoreView(self.store, np.arange(len(self.store)))] if rehearsal else []
        loader = loader_over(self.store, buffers=buffers, batch_size=setting.batch)
        self.trainer = trainer_over(loader, setting, self.network, self.vocabulary, **options)
        self.batches = [batch for batch in loader if batch["rehearsal"] == rehearsal]
        self._turn = self._batches()

    def _batches(self) -> Iterator[dict[str, Any]]:
        while True:
            yield from self.batches

    def step(self) -> torch.Tensor:
        """One step; the loss stays on the device."""
        self.trainer.state.iteration += 1
        return self.trainer._iteration(self.trainer, next(self._turn))["loss"]

    def __call__(self) -> float:
        started = time.perf_counter()
        self.step()
        wait_for(self.setting.device)
        return time.perf_counter() - started

    def prepared(self, batch: dict[str, Any]) -> ModelInputs:
        """What our network reads of a batch of the pretext task."""
        with torch.no_grad():
            return self.trainer.step_batch(batch).pretext()

    def mixing(self, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of a batch of the buffer: inputs before mixing, patch noise, weights and partners."""
        from medcoss_components.continual.mixup import draw_image_mix

        prepared = self.trainer.step_batch(batch)
        weight = draw_image_mix(batch["count"], prepared.generator("mix")).weight
        noise = prepared.mixed().arguments["noise"]
        return prepared.loaded, noise, weight.to(noise.device), batch["partners"].to(noise.device)


class StraightforwardSteps:
    """Training steps of the straightforward side on the batches of ours; one call is one step, in seconds."""

    def __init__(self, ours: OurSteps, *, rehearsal: bool = False, scaled: bool = False) -> None:
        self.device = ours.setting.device
        model = straightforward_network(ours.network).to(self.device)
        for block in [*model.blocks, *model.decoder_blocks]:
            block.need_weights = not ours.setting.kernel_attention
        self.trainer = StraightforwardTrainer(model, scaled=scaled)
        self.works = [self._work(ours, batch, rehearsal) for batch in ours.batches]
        self._next = 0

    def _work(self, ours: OurSteps, batch: dict[str, Any], rehearsal: bool) -> Callable[[], float]:
        if rehearsal:
            self.trainer.remember_teacher()
            mixing = ours.mixing(batch)
            return lambda: self.trainer.rehearsal_step(*mixing)
        inputs = ours.prepared(batch)
        if not ours.setting.is_text:
            return lambda: self.trainer.image_step(inputs.inputs, inputs.arguments["noise"])
        ids, padding, labels = full_length(ours, inputs)
        return lambda: self.trainer.text_step(ids, padding, labels)

    def step(self) -> float:
        """One step; returns the loss."""
        self._next += 1
        return self.works[(self._next - 1) % len(self.works)]()

    def __call__(self) -> float:
        started = time.perf_counter()
        self.step()
        wait_for(self.device)
        return time.perf_counter() - started


def full_length(ours: OurSteps, inputs: ModelInputs) -> Sequence[torch.Tensor]:
    """Masked ids, padding mask and labels at the full length of the modality; ours are cut behind the longest text."""
    vocabulary, length = ours.trainer.settings.vocabulary, ours.setting.entry.input_shape[0]
    fills = (vocabulary.pad_id, False, -100)
    tensors = (inputs.inputs, inputs.arguments["padding_mask"], inputs.arguments["labels"])
    return [
        torch.nn.functional.pad(tensor, (0, length - tensor.shape[1]), value=fill)
        for tensor, fill in zip(tensors, fills, strict=True)
    ]


def wait_for(device: str) -> None:
    """Let the accelerator finish what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def free() -> None:
    """Give memory of finished rows back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def steps_of(setting: Setting, options: Options, name: str, *, rehearsal: bool = False) -> tuple[Any, Any]:
    """Both sides with equal weights and batches."""
    folder = options.folder / name
    network = our_network(setting)
    ours = OurSteps(setting, folder, network=network, rehearsal=rehearsal)
    return StraightforwardSteps(ours, rehearsal=rehearsal), ours
