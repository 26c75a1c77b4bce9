"""Intra-modal mixup (IMM): mix a rehearsal sample with another one of the same modality (METHOD.md section 5).

Sample first, then apply: the draws are made once per global batch from a passed generator into a small record, and
``record.rows(index)`` gives a rank or a micro-batch its share. The caller gathers the partner rows itself::

    partners = draw_partners(len(inputs), generator)
    draw = draw_image_mix(len(inputs), generator)
    mixed = mix_images(inputs, inputs[partners], draw)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from medcoss_components.data.transfer import to_device
from medcoss_components.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ImageMixDraw:
    """How much of itself each image keeps.

    Attributes:
        weight: (B,) float32 in [0, 1), lambda of the equation x~ = lambda*x + (1 - lambda)*x[perm].
    """

    weight: Tensor

    def __len__(self) -> int:
        return len(self.weight)

    def rows(self, index: Tensor | slice) -> ImageMixDraw:
        """The draw of the samples that ``index`` picks, in its order."""
        return ImageMixDraw(weight=self.weight[index])


@dataclass(frozen=True, kw_only=True)
class TextMixDraw:
    """Which tokens each text keeps.

    Attributes:
        probability: p ~ U(0, 1), one number for the whole global batch.
        mask: (B, L) bool, m ~ Bernoulli(p); True keeps the own token, False takes the partner's.
    """

    probability: float
    mask: Tensor

    def __len__(self) -> int:
        return len(self.mask)

    def rows(self, index: Tensor | slice) -> TextMixDraw:
        """The draw of the samples that ``index`` picks, in its order; p stays that of the global batch."""
        return TextMixDraw(probability=self.probability, mask=self.mask[index])


def draw_partners(count: int, generator: torch.Generator) -> Tensor:
    """Draw the random permutation that gives every sample of a batch its partner.

    Args:
        count: B, samples in the global batch. One sample is its own partner.
        generator: source of the draw.

    Returns:
        (B,) int64 permutation of 0..B-1.
    """
    return torch.randperm(count, generator=generator, device=generator.device)


def draw_image_mix(count: int, generator: torch.Generator) -> ImageMixDraw:
    """Draw lambda ~ U(0, 1) for each of ``count`` images or volumes of one global batch."""
    return ImageMixDraw(weight=torch.rand(count, generator=generator, device=generator.device))


def draw_text_mix(count: int, length: int, generator: torch.Generator) -> TextMixDraw:
    """Draw p ~ U(0, 1) once, and m ~ Bernoulli(p) for each token of ``count`` texts of ``length`` tokens."""
    probability = torch.rand((), generator=generator, device=generator.device).item()
    drawn = torch.rand(count, length, generator=generator, device=generator.device)
    return TextMixDraw(probability=probability, mask=drawn < probability)


def _require_shape(name: str, received: Tensor, expected: torch.Size | tuple[int, ...]) -> None:
    if tuple(received.shape) != tuple(expected):
        raise InputError(f"{name}: expected shape {tuple(expected)}, received {tuple(received.shape)}.")


def mix_images(inputs: Tensor, partner_inputs: Tensor, draw: ImageMixDraw) -> Tensor:
    """Mix images: x~ = lambda*x + (1 - lambda)*x[perm], METHOD.md section 5.

    Args:
        inputs: (B, C, H, W) or (B, 1, Z, H, W), floating point; not changed.
        partner_inputs: same shape, ``inputs[perm]``.
        draw: weights of these B samples.

    Returns:
        New tensor of the same shape and dtype.

    Raises:
        InputError: when shapes or the number of weights disagree.

    >>> draw = ImageMixDraw(weight=torch.tensor([0.25]))
    >>> mix_images(torch.full((1, 1, 1, 1), 4.0), torch.zeros(1, 1, 1, 1), draw).item()
    1.0
    """
    _require_shape("partner_inputs", partner_inputs, inputs.shape)
    _require_shape("draw.weight", draw.weight, inputs.shape[:1])
    weight = to_device(draw.weight.to(inputs.dtype), inputs.device).reshape(-1, *[1] * (inputs.dim() - 1))
    return weight * inputs + (1 - weight) * partner_inputs


def mix_text(
    ids: Tensor, padding_mask: Tensor, partner_ids: Tensor, partner_padding_mask: Tensor, draw: TextMixDraw
) -> tuple[Tensor, Tensor]:
    """Mix texts token by token: x~ = m*x + (1 - m)*x[perm], and the padding mask with the same m (METHOD.md section 5).

    Args:
        ids: (B, L) integer token ids; not changed.
        padding_mask: (B, L) bool or number, True or 1 at real tokens; not changed.
        partner_ids: (B, L) ``ids[perm]``.
        partner_padding_mask: (B, L) ``padding_mask[perm]``.
        draw: choices of these B samples.

    Returns:
        Mixed ids and mixed padding mask, (B, L) each, with the dtypes given.

    Raises:
        InputError: when shapes disagree.
    """
    _require_shape("padding_mask", padding_mask, ids.shape)
    _require_shape("partner_ids", partner_ids, ids.shape)
    _require_shape("partner_padding_mask", partner_padding_mask, ids.shape)
    _require_shape("draw.mask", draw.mask, ids.shape)
    own = to_device(draw.mask, ids.device)
    return torch.where(own, ids, partner_ids), torch.where(own, padding_mask, partner_padding_mask)
