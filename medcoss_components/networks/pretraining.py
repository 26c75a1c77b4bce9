"""The pre-training model: three tokenizers, one encoder, an image decoder and a text head.

Behaviour depends on the dimension of a modality alone (1 text, 2 images, 3 volumes), never on its name.
Axes: B samples, N patches or text tokens, D channels of the encoder, P numbers of a patch.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from medcoss_components.data.modalities import Modality, get_modality
from medcoss_components.errors import InputError
from medcoss_components.networks.decoder import ImageDecoder, TextHead
from medcoss_components.networks.embeddings import ImageEmbedding
from medcoss_components.networks.initialisation import initialise
from medcoss_components.networks.parts import block_stack, image_tokenizer, text_tokenizer
from medcoss_components.networks.presets import PRESETS, Preset, resolve_preset
from medcoss_components.pretext.losses import (
    Reduction,
    denormalise_patches,
    grid_of,
    masked_patch_loss,
    masked_token_loss,
    patchify,
    unpatchify,
)
from medcoss_components.pretext.masking import IGNORED_LABEL, PatchOrder, order_patches, select_patches

__all__ = [
    "ENCODER_PREFIXES",
    "PRESETS",
    "PRETEXT_PREFIXES",
    "PretrainingModel",
    "Preset",
    "encoder_state",
    "reset_pretext_heads",
]

ENCODER_PREFIXES = ("text_embedding.", "image_embedding.", "encoder.", "backbone.")
PRETEXT_PREFIXES = ("decoder.", "text_head.")
TEXT_ATTENTION = ("bidirectional", "causal")
TASKS = ("features", "pretext")

ModalityLike = str | dict | Modality


def _image_parts(sizes: Preset, decoder_positions: str) -> tuple[ImageEmbedding, ImageDecoder]:
    tokenizers = {dimension: image_tokenizer(sizes, dimension) for dimension in (2, 3)}
    decoder = ImageDecoder(
        encoder_width=sizes.width,
        width=sizes.decoder_width,
        depth=sizes.decoder_depth,
        heads=sizes.decoder_heads,
        mlp_ratio=sizes.mlp_ratio,
        positions=decoder_positions,
        grids={2: sizes.grid_2d, 3: sizes.grid_3d},
        outputs={dimension: part.channels * prod(part.patch) for dimension, part in tokenizers.items()},
    )
    return ImageEmbedding(width=sizes.width, tokenizers=tokenizers), decoder


class PretrainingModel(nn.Module):
    """One encoder for texts, images and volumes, with the pretext tasks that train it (METHOD.md sections 2-4).

    Args:
        preset: sizes to start from: "vit_base" (the published ones), "vit_small" or "demo".
        modality: name or registry entry used when a call names none; None when every call names one.
        text_attention: "bidirectional", or "causal" as the published weights need it.
        decoder_positions: "sincos" (fixed) or "learned" (start at 0), in the image decoder.
        vocabulary_size: rows of the word table; None for the preset's.
        overrides: other sizes of :class:`Preset`, for example ``width=48, heads=3``.

    Attributes:
        sizes: the resolved :class:`Preset`.

    Raises:
        InputError: for an unknown preset, size or choice, or sizes that do not fit together.

    Example:
        >>> model = PretrainingModel(preset="demo", modality="xray")
        >>> model(torch.zeros(2, 3, 64, 96)).shape  # 4 x 6 patches and the class token
        torch.Size([2, 25, 128])
    """

    def __init__(
        self,
        *,
        preset: str = "vit_base",
        modality: ModalityLike | None = None,
        text_attention: str = "bidirectional",
        decoder_positions: str = "sincos",
        vocabulary_size: int | None = None,
        **overrides: Any,
    ) -> None:
        super().__init__()
        if text_attention not in TEXT_ATTENTION:
            raise InputError(f"text_attention={text_attention!r} must be one of {', '.join(TEXT_ATTENTION)}.")
        self.sizes = resolve_preset(preset, vocabulary_size=vocabulary_size, **overrides)
        self.modality = None if modality is None else get_modality(modality)
        self.text_attention = text_attention
        self.decoder_positions = decoder_positions
        self._build(self.sizes)
        initialise(self)

    def _build(self, sizes: Preset) -> None:
        self.text_embedding = text_tokenizer(sizes)
        self.image_embedding, self.decoder = _image_parts(sizes, self.decoder_positions)
        self.encoder = block_stack(sizes)
        self.text_head = TextHead(width=sizes.width, vocabulary_size=sizes.vocabulary_size)

    def dimension(self, modality: ModalityLike | None) -> int:
        """1, 2 or 3: the dimension of a modality, or of the model's own when None.

        Raises:
            InputError: when neither the call nor the constructor named a modality.
        """
        if modality is None:
            modality = self.modality
        if modality is None:
            raise InputError("modality=None: name the modality in the call or when building the model.")
        return get_modality(modality).dimension

    def grid(self, modality: ModalityLike | None, inputs: Tensor) -> tuple[int, ...]:
        """Patches on each axis of an image or volume batch."""
        return grid_of(inputs.shape[2:], self.image_embedding.tokenizer(self.dimension(modality)).patch)

    def forward(
        self, inputs: Tensor, *, modality: ModalityLike | None = None, task: str = "features", **arguments: Any
    ) -> Any:
        """One door for every task, because ``DistributedDataParallel`` only passes through ``forward``.

        Args:
            inputs: images (B, C, H, W), volumes (B, 1, Z, H, W) or token ids (B, L).
            modality: name or entry; None for the constructor's.
            task: "features" -> :meth:`features`, "pretext" -> :meth:`pretext_loss`.
            arguments: passed on.

        Raises:
            InputError: for another task.
        """
        if task == "features":
            return self.features(modality, inputs, **arguments)
        if task == "pretext":
            return self.pretext_loss(modality, inputs, **arguments)
        raise InputError(f"task={task!r} must be one of {', '.join(TASKS)}.")

    def features(
        self,
        modality: ModalityLike | None,
        inputs: Tensor,
        *,
        padding_mask: Tensor | None = None,
        noise: Tensor | None = None,
        mask_ratio: float = 0.0,
        depth_noise: Tensor | None = None,
        padding_features: bool = True,
    ) -> Tensor:
        """Encode a batch.

        Args:
            modality: name or entry; None for the constructor's.
            inputs: as in :meth:`forward`.
            padding_mask: text only, (B, L), true or 1 at real tokens; None when all are real.
            noise: images only, (B, N) in [0, 1); drawn when None and needed.
            mask_ratio: share of patches to leave out, in [0, 1). Texts are never shortened.
            depth_noise: (B, 2 * depth) in [0, 1), for stochastic depth in training mode; drawn when None.
            padding_features: text only; false where nobody reads the features of padding, which may then be 0.

        Returns:
            Text: (B, L, D). Images: (B, 1 + kept, D), class token first, then the visible patches in ascending order of
            noise; with ``mask_ratio`` 0 all patches in raster order.
        """
        dimension = self.dimension(modality)
        if dimension == 1:
            return self._encode_text(inputs, padding_mask, depth_noise, padding_features)
        patches, grid = self._patches(dimension, inputs)
        order = self._order(patches, noise, mask_ratio) if mask_ratio else None
        return self._encode_patches(dimension, patches, grid, order, depth_noise)

    def embedding(self, modality: ModalityLike | None, inputs: Tensor, *, padding_mask: Tensor | None = None) -> Tensor:
        """One vector per sample: the mean of its tokens (class token included, padding left out). (B, D) float32."""
        features = self.features(modality, inputs, padding_mask=padding_mask, padding_features=False).float()
        if padding_mask is None or self.dimension(modality) != 1:
            return features.mean(dim=1)
        weight = padding_mask.to(features.dtype).unsqueeze(-1)
        return (features * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1.0)

    def pretext_loss(
        self,
        modality: ModalityLike | None,
        inputs: Tensor,
        *,
        labels: Tensor | None = None,
        padding_mask: Tensor | None = None,
        noise: Tensor | None = None,
        mask_ratio: float = 0.75,
        depth_noise: Tensor | None = None,
        reduction: Reduction = "mean",
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Masked image modelling, or masked language modelling for texts.

        Args:
            labels: text only, (B, L): true ids at chosen tokens, -100 elsewhere; ``inputs`` are the masked ids.
            reduction: "mean" -> scalar; "sum" -> (sum, count), count = removed patches or chosen tokens.

        Other arguments as in :meth:`features`.

        Returns:
            float32 scalars on the device of ``inputs``.

        Raises:
            InputError: for a text without labels.
        """
        dimension = self.dimension(modality)
        if dimension == 1:
            if labels is None:
                raise InputError("labels=None: masked language modelling needs the labels that mask_words returned.")
            chosen = (labels != IGNORED_LABEL).nonzero(as_tuple=True)  # once: on a GPU the host waits for it
            hidden = self._encode_text(inputs, padding_mask, depth_noise)[chosen]
            return masked_token_loss(self.text_head(hidden), labels[chosen], reduction)
        patches, grid = self._patches(dimension, inputs)
        order = self._order(patches, noise, mask_ratio)
        encoded = self._encode_patches(dimension, patches, grid, order, depth_noise)
        predicted = self.decoder(dimension, encoded, order, grid, removed_only=True)
        return masked_patch_loss(predicted, select_patches(patches, order.removed), reduction)

    def reconstruct(
        self,
        modality: ModalityLike | None,
        inputs: Tensor,
        *,
        noise: Tensor | None = None,
        mask_ratio: float = 0.75,
    ) -> tuple[Tensor, Tensor]:
        """Predict every patch of images, in the normalised units of the loss.

        Returns:
            (B, N, P) predictions and (B, N) mask, 1 = removed, both in raster order.
        """
        dimension = self.dimension(modality)
        patches, grid = self._patches(dimension, inputs)
        order = self._order(patches, noise, mask_ratio)
        encoded = self._encode_patches(dimension, patches, grid, order, None)
        predicted = self.decoder(dimension, encoded, order, grid, removed_only=False)
        return order.to_raster(predicted), order.mask()

    def reconstruction_images(
        self,
        modality: ModalityLike | None,
        inputs: Tensor,
        *,
        noise: Tensor | None = None,
        mask_ratio: float = 0.75,
        fill: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Images for a reconstruction panel.

        A prediction only says how a patch varies; its brightness and contrast are taken from the true patch.

        Returns:
            The inputs with ``fill`` in removed patches, and the inputs with predictions in removed patches; both have
            the shape of ``inputs``, float32.
        """
        predicted, mask = self.reconstruct(modality, inputs, noise=noise, mask_ratio=mask_ratio)
        patch = self.image_embedding.tokenizer(self.dimension(modality)).patch
        patches, grid = patchify(inputs.float(), patch), self.grid(modality, inputs)
        removed = mask.unsqueeze(-1).bool()
        masked = patches.masked_fill(removed, fill)
        rebuilt = torch.where(removed, denormalise_patches(predicted, patches), patches)
        return unpatchify(masked, patch, grid), unpatchify(rebuilt, patch, grid)

    def predict_tokens(
        self, modality: ModalityLike | None, inputs: Tensor, positions: Tensor, *, padding_mask: Tensor | None = None
    ) -> Tensor:
        """Logits (M, V) float32 at the M true places of ``positions`` (B, L), row by row.

        Raises:
            InputError: for a modality that is not text.
        """
        if self.dimension(modality) != 1:
            raise InputError(f"predict_tokens reads texts only, not {self.dimension(modality)}D inputs.")
        hidden = self._encode_text(inputs, padding_mask, None)[positions.bool()]
        return self.text_head(hidden).float()

    def _encode_text(
        self, ids: Tensor, padding_mask: Tensor | None, depth_noise: Tensor | None, padding_features: bool = False
    ) -> Tensor:
        return self.encoder(
            self.text_embedding(ids),
            padding_mask=padding_mask,
            causal=self.text_attention == "causal",
            depth_noise=depth_noise,
            padding_features=padding_features,
        )

    def _patches(self, dimension: int, inputs: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        tokenizer = self.image_embedding.tokenizer(dimension)
        tokenizer.check(inputs)
        return patchify(inputs, tokenizer.patch), grid_of(inputs.shape[2:], tokenizer.patch)

    def _order(self, patches: Tensor, noise: Tensor | None, mask_ratio: float) -> PatchOrder:
        shape = tuple(patches.shape[:2])
        if noise is None:
            noise = torch.rand(shape, device=patches.device)
        if tuple(noise.shape) != shape:
            raise InputError(f"noise of shape {tuple(noise.shape)} must be {shape}: samples, patches.")
        return order_patches(noise.to(patches.device), mask_ratio)

    def _encode_patches(
        self,
        dimension: int,
        patches: Tensor,
        grid: tuple[int, ...],
        order: PatchOrder | None,
        depth_noise: Tensor | None,
    ) -> Tensor:
        index = None if order is None else order.visible
        visible = patches if index is None else select_patches(patches, index)
        return self.encoder(self.image_embedding(dimension, visible, grid, index), depth_noise=depth_noise)


def encoder_state(model: nn.Module) -> dict[str, Tensor]:
    """The part of the state that goes to the next stage: encoder, tokenizers and class token."""
    return {name: value for name, value in model.state_dict().items() if name.startswith(ENCODER_PREFIXES)}


def reset_pretext_heads(model: PretrainingModel, generator: torch.Generator | None = None) -> None:
    """Give the image decoder and the text head fresh values, as every stage starts with."""
    initialise(model.decoder, generator)
    initialise(model.text_head, generator)
