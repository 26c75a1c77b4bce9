"""What a fine-tuned network keeps of the pre-trained one: the tokenizer of one modality and the encoder.

Its parameters carry the names that they have in ``PretrainingModel``, so any weights of a chain fit by name.
Axes: B samples, L text tokens, N patches in raster order, C channels of the input, D channels of the encoder.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor, nn

from medcoss_components.data.modalities import Modality, get_modality
from medcoss_components.errors import InputError
from medcoss_components.networks.embeddings import ImageEmbedding
from medcoss_components.networks.parts import block_stack, image_tokenizer, text_tokenizer
from medcoss_components.networks.presets import Preset, resolve_preset
from medcoss_components.networks.pretraining import TEXT_ATTENTION, ModalityLike
from medcoss_components.pretext.losses import grid_of, patchify

TASK_PREFIXES = ("head.", "heads.", "mask_decoder.")
"""Beginnings of the names of what fine-tuning puts behind the encoder."""
BACKBONE_MODULES = ("text_embedding", "image_embedding", "encoder")
Network = TypeVar("Network", bound="Backbone")


class Backbone(nn.Module):
    """Tokenizer and encoder of one modality, the base of the task networks.

    The learned position grid is that of ``input_shape``, so weights of another grid are interpolated once, when they
    are loaded. Inputs of other sizes still work: the grid is interpolated for each of them.

    Args:
        preset: sizes to start from: "vit_base", "vit_small" or "demo".
        modality: name or registry entry.
        input_shape: what the network reads, without the batch axis: (L,), (C, H, W) or (C, Z, H, W); None for the
            modality's own.
        class_token: whether a class token stands before the patches.
        text_attention: "bidirectional", or "causal" as the published weights need it.
        pad_id: text only, the id that fills up short texts.
        overrides: other sizes of :class:`~medcoss_components.networks.presets.Preset`.

    Attributes:
        sizes: the resolved sizes; grid and channels of the modality's dimension are those of ``input_shape``.
        modality: the registry entry with the input shape of this network.
        encoder_frozen: whether :meth:`freeze_encoder` was called.

    Raises:
        InputError: for an unknown preset, modality, size or choice, a side that is not a multiple of the patch, or a
            text longer than the position table.
    """

    def __init__(
        self,
        *,
        preset: str = "vit_base",
        modality: ModalityLike,
        input_shape: Iterable[int] | None = None,
        class_token: bool = True,
        text_attention: str = "bidirectional",
        pad_id: int = 0,
        **overrides: Any,
    ) -> None:
        super().__init__()
        if text_attention not in TEXT_ATTENTION:
            raise InputError(f"text_attention={text_attention!r} must be one of {', '.join(TEXT_ATTENTION)}.")
        self.modality = get_modality(modality, input_shape=input_shape)
        self.sizes = _sizes_for(self.modality, resolve_preset(preset, **overrides), overrides)
        self.text_attention = text_attention
        self.pad_id = int(pad_id)
        self.encoder_frozen = False
        if self.modality.dimension == 1:
            self.text_embedding = text_tokenizer(self.sizes)
        else:
            tokenizer = {self.dimension: image_tokenizer(self.sizes, self.dimension)}
            self.image_embedding = ImageEmbedding(width=self.sizes.width, tokenizers=tokenizer, class_token=class_token)
        self.encoder = block_stack(self.sizes)

    @property
    def dimension(self) -> int:
        """1 for texts, 2 for images, 3 for volumes."""
        return self.modality.dimension

    @property
    def patch(self) -> tuple[int, ...]:
        """Sides of a patch; empty for texts."""
        return patch_of(self.sizes, self.dimension)

    def padding_mask(self, ids: Tensor) -> Tensor:
        """(B, L) bool, true at real tokens of each text."""
        return ids != self.pad_id

    def encode_text(self, ids: Tensor, *, depth_noise: Tensor | None = None) -> Tensor:
        """(B, L) int64 ids -> (B, L, D). Padding is read by no token of its own text."""
        return self.encoder(
            self.text_embedding(ids),
            padding_mask=self.padding_mask(ids),
            causal=self.text_attention == "causal",
            depth_noise=depth_noise,
            padding_features=False,
        )

    def encode_image(
        self, inputs: Tensor, *, after: Sequence[int] | None = None, depth_noise: Tensor | None = None
    ) -> list[Tensor]:
        """Tokens of images or volumes after chosen blocks.

        Args:
            inputs: (B, C, H, W) or (B, C, Z, H, W); sides are multiples of the patch.
            after: numbers of blocks, counted from 1; None for the last alone.
            depth_noise: (B, 2 * depth) in [0, 1), see :class:`~medcoss_components.networks.encoder.Encoder`.

        Returns:
            One (B, N, D) for each number of ``after``; with a class token (B, 1 + N, D), class token first.

        Raises:
            InputError: when ``inputs`` has another number of axes or channels, or a side is no multiple of the patch.
        """
        self.image_embedding.tokenizer(self.dimension).check(inputs)
        grid = grid_of(inputs.shape[2:], self.patch)
        tokens = self.image_embedding(self.dimension, patchify(inputs, self.patch), grid)
        blocks = (self.sizes.depth,) if after is None else after
        return self.encoder.hidden_states(tokens, after=blocks, depth_noise=depth_noise)

    def freeze_encoder(self: Network) -> Network:
        """Leave tokenizer and encoder as they are from now on: only the head learns (linear probe).

        They also stay in evaluation mode, without stochastic depth, when the network is set to training mode.
        """
        self.encoder_frozen = True
        for part in self._backbone_modules():
            part.requires_grad_(False)
        return self.train(self.training)

    def train(self: Network, mode: bool = True) -> Network:
        """Set the mode of the network; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.encoder_frozen:
            for part in self._backbone_modules():
                part.eval()
        return self

    def _backbone_modules(self) -> list[nn.Module]:
        return [part for name, part in self.named_children() if name in BACKBONE_MODULES]


def patch_of(sizes: Preset, dimension: int) -> tuple[int, ...]:
    """Sides of a patch of images (2) or volumes (3); empty for texts (1)."""
    return {1: (), 2: sizes.patch_2d, 3: sizes.patch_3d}[dimension]


def _sizes_for(entry: Modality, sizes: Preset, overrides: dict[str, Any]) -> Preset:
    """The sizes with the grid and the channels of the input; a grid or channels asked for must agree."""
    shape, dimension = entry.input_shape, entry.dimension
    if dimension == 1:
        if shape[0] > sizes.text_positions:
            rule = f"must be at most text_positions={sizes.text_positions} tokens"
            raise InputError(f"input_shape={shape} {rule}. Cut the texts or raise text_positions.")
        return sizes
    patch = patch_of(sizes, dimension)
    _check_sides(shape, patch)
    derived: dict[str, Any] = {f"grid_{dimension}d": grid_of(shape[1:], patch), f"channels_{dimension}d": shape[0]}
    for name, value in derived.items():
        if overrides.get(name) is not None and getattr(sizes, name) != value:
            asked = getattr(sizes, name)
            raise InputError(f"{name}={asked} contradicts input_shape={shape}, which gives {value}. Leave {name} out.")
    return replace(sizes, **derived)


def _check_sides(shape: Sequence[int], patch: Sequence[int]) -> None:
    if any(side % cell for side, cell in zip(shape[1:], patch, strict=True)):
        nearest = tuple(max(1, round(side / cell)) * cell for side, cell in zip(shape[1:], patch, strict=True))
        rule = f"the sides after the channels must be multiples of the patch {tuple(patch)}"
        raise InputError(f"input_shape={tuple(shape)}: {rule}. The nearest are {nearest}.")
