"""From raw rows of a store to what the model reads in one step.

Everything random in a step is drawn here, for the whole global batch, from generators named after (seed, purpose,
source, epoch, step); a rank then keeps its own rows. Student and teacher share the draws, a resumed run repeats
them, and one process or several compute the same loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from medcoss_components.continual.mixup import draw_image_mix, draw_text_mix, mix_images, mix_text
from medcoss_components.data.modalities import Modality
from medcoss_components.data.transfer import to_device
from medcoss_components.data.transforms import apply_augmentation, draw_augmentation, to_model_input
from medcoss_components.errors import InputError
from medcoss_components.pretext.masking import draw_patch_noise, draw_word_masking, mask_words
from medcoss_components.randomness import generator_for

if TYPE_CHECKING:
    from medcoss_components.text.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """What every step of a run shares.

    Args:
        seed: seed of the run.
        mask_ratio: share of image patches removed, in [0, 1).
        masked_word_share: share of words chosen for masked language modelling, in (0, 1].
        vocabulary: needed as soon as a batch holds text.
        depth: encoder blocks, for the stochastic depth draws.
        patch_2d, patch_3d: pixels or voxels of a patch along each axis.
        augment: whether images are augmented.
    """

    seed: int = 0
    mask_ratio: float = 0.75
    masked_word_share: float = 0.15
    vocabulary: Vocabulary | None = None
    depth: int = 12
    patch_2d: tuple[int, ...] = (16, 16)
    patch_3d: tuple[int, ...] = (16, 16, 16)
    augment: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.mask_ratio < 1:
            raise InputError(f"mask_ratio must be at least 0 and below 1, received {self.mask_ratio}")
        if not 0 < self.masked_word_share <= 1:
            raise InputError(f"masked_word_share must be above 0 and at most 1, received {self.masked_word_share}")

    def patches(self, modality: Modality) -> int:
        """Number of patches of an image or volume."""
        patch = self.patch_2d if modality.dimension == 2 else self.patch_3d
        return math.prod(size // edge for size, edge in zip(modality.input_shape[1:], patch, strict=True))


def settings_for(network: torch.nn.Module, **options: Any) -> StepSettings:
    """:class:`StepSettings` with the sizes of a network.

    Raises:
        InputError: when the vocabulary has more pieces than the network has rows for.
    """
    sizes, vocabulary = network.sizes, options.get("vocabulary")
    if vocabulary is not None and vocabulary.size > sizes.vocabulary_size:
        raise InputError(
            f"vocabulary: has {vocabulary.size} pieces, the network has rows for {sizes.vocabulary_size}; "
            "lower vocabulary_size, or choose a preset or network with a larger table"
        )
    return StepSettings(depth=sizes.depth, patch_2d=sizes.patch_2d, patch_3d=sizes.patch_3d, **options)


@dataclass(frozen=True)
class ModelInputs:
    """Arguments of one forward pass: ``model(inputs, **arguments)``."""

    inputs: torch.Tensor
    arguments: dict[str, Any] = field(default_factory=dict)


class StepBatch:
    """One rank's share of a global batch, on the device.

    Args:
        batch: what :class:`~medcoss_components.data.sampler.BatchReader` returns.
        modality: registry entry of the batch.
        settings: see :class:`StepSettings`.
        device: where the model is.
    """

    def __init__(
        self, batch: Mapping[str, Any], *, modality: Modality, settings: StepSettings, device: torch.device
    ) -> None:
        self.batch, self.modality, self.settings, self.device = batch, modality, settings, device
        self.own_rows = batch["rows"][: batch["own"]]

    def generator(self, purpose: str) -> torch.Generator:
        """The generator of this batch for one purpose."""
        return generator_for(self.settings.seed, purpose, self.batch["source"], self.batch["epoch"], self.batch["step"])

    def depth_noise(self, purpose: str = "depth") -> torch.Tensor:
        """(own, 2 * depth) uniform draws for stochastic depth; another purpose gives other draws."""
        noise = torch.rand(self.batch["count"], 2 * self.settings.depth, generator=self.generator(purpose))
        return to_device(noise[self.own_rows], self.device)

    def _common(self, task: str) -> dict[str, Any]:
        return {"modality": self.modality.name, "task": task, "depth_noise": self.depth_noise()}

    def pretext(self) -> ModelInputs:
        """Inputs of the pretext task on the own rows."""
        raise NotImplementedError

    def mixed(self, *, mixup: bool = True) -> ModelInputs:
        """Own rows mixed with their partners (intra-modal mixup, METHOD section 5), for feature distillation.

        Without ``mixup`` the own rows as they are, everything else drawn alike.
        """
        raise NotImplementedError

    def token_mask(self, mixed: ModelInputs) -> torch.Tensor | None:
        """(own, N) True where a feature counts in distillation; None: everywhere."""
        return mixed.arguments.get("padding_mask")


class ImageBatch(StepBatch):
    """2D images and 3D volumes: augmentation, patch removal, mixing of intensities."""

    def __init__(self, batch: Mapping[str, Any], **options: Any) -> None:
        super().__init__(batch, **options)
        self.loaded = to_model_input(self.modality, to_device(batch["raw"], self.device))
        if self.settings.augment:
            record = draw_augmentation(self.modality, batch["count"], self.generator("augment"))
            self.loaded = apply_augmentation(self.loaded, record.rows(batch["rows"]))

    def _masking(self) -> dict[str, Any]:
        noise = draw_patch_noise(self.batch["count"], self.settings.patches(self.modality), self.generator("mask"))
        return {"noise": to_device(noise[self.own_rows], self.device), "mask_ratio": self.settings.mask_ratio}

    def pretext(self) -> ModelInputs:
        return ModelInputs(self.loaded[: self.batch["own"]], self._common("pretext") | self._masking())

    def mixed(self, *, mixup: bool = True) -> ModelInputs:
        inputs = self.loaded[: self.batch["own"]]
        if mixup:
            draw = draw_image_mix(self.batch["count"], self.generator("mix")).rows(self.own_rows)
            inputs = mix_images(inputs, self.loaded[to_device(self.batch["partners"], self.device)], draw)
        return ModelInputs(inputs, self._common("features") | self._masking())


def real_length(padding_mask: torch.Tensor) -> int:
    """Columns of a (B, L) mask, True at real tokens, up to the last real token of any text; at least 1.

    A mixed text may hold padding between real tokens, so columns are not counted.
    """
    columns = padding_mask.any(dim=0).nonzero()
    return int(columns[-1]) + 1 if len(columns) else 1


class TextBatch(StepBatch):
    """Reports: whole-word masking, mixing of tokens; prepared on the host, where it is cheap."""

    def __init__(self, batch: Mapping[str, Any], **options: Any) -> None:
        super().__init__(batch, **options)
        if self.settings.vocabulary is None:
            raise InputError(
                "a batch of text needs the vocabulary that encoded it: set `vocabulary` to its vocabulary.json"
            )
        self.vocabulary = self.settings.vocabulary
        self.loaded = to_model_input(self.modality, batch["raw"])
        self.padding_mask = self.loaded != self.vocabulary.pad_id

    def _inputs(self, ids: torch.Tensor, task: str, **tensors: torch.Tensor) -> ModelInputs:
        """Cut the columns behind the last real token, then move everything to the device."""
        length = real_length(tensors["padding_mask"])
        moved = {name: to_device(tensor[:, :length], self.device) for name, tensor in tensors.items()}
        return ModelInputs(to_device(ids[:, :length], self.device), self._common(task) | moved)

    def pretext(self) -> ModelInputs:
        own, vocabulary = self.batch["own"], self.vocabulary
        draw = draw_word_masking(self.batch["count"], self.loaded.shape[1], vocabulary.size, self.generator("words"))
        ids, labels = mask_words(
            self.loaded[:own],
            self.padding_mask[:own],
            draw.rows(self.own_rows),
            starts_word=vocabulary.starts_word,
            special=vocabulary.special,
            mask_id=vocabulary.mask_id,
            share=self.settings.masked_word_share,
            first_random_id=vocabulary.first_random_id,
        )
        return self._inputs(ids, "pretext", labels=labels, padding_mask=self.padding_mask[:own])

    def mixed(self, *, mixup: bool = True) -> ModelInputs:
        own, partners, length = self.batch["own"], self.batch["partners"], self.loaded.shape[1]
        ids, padding_mask = self.loaded[:own], self.padding_mask[:own]
        if mixup:
            draw = draw_text_mix(self.batch["count"], length, self.generator("mix")).rows(self.own_rows)
            ids, padding_mask = mix_text(ids, padding_mask, self.loaded[partners], self.padding_mask[partners], draw)
        inputs = self._inputs(ids, "features", padding_mask=padding_mask)
        inputs.arguments["padding_features"] = False  # distillation counts real tokens alone
        return inputs


BATCH_KINDS: dict[str, type[StepBatch]] = {"masked_image": ImageBatch, "masked_language": TextBatch}
"""Pretext rule of the modality -> how its batches are made."""


def step_batch(
    batch: Mapping[str, Any], *, modality: Modality, settings: StepSettings, device: torch.device
) -> StepBatch:
    """Make the batch object that the modality's pretext rule asks for."""
    return BATCH_KINDS[modality.pretext](batch, modality=modality, settings=settings, device=device)
