"""Sizes of the networks, one named entry each."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from medcoss_components.errors import InputError


@dataclass(frozen=True)
class Preset:
    """Sizes of one pre-training model; every field can be overridden by keyword in ``PretrainingModel``.

    Attributes:
        width: channels D of the encoder.
        depth: encoder blocks.
        heads: attention heads of the encoder.
        decoder_width: channels W of the image decoder.
        decoder_depth: decoder blocks.
        decoder_heads: attention heads of the decoder.
        vocabulary_size: rows of the word table and of the text head.
        layer_scale: initial value of g1 and g2; 1e-3 suits a start from trained weights, a start from scratch needs
            more.
        mlp_ratio: hidden width of the MLPs divided by the width.
        stochastic_depth: probability in [0, 1) of dropping a branch, per sample, in training.
        text_positions: longest text in tokens.
        patch_2d, patch_3d: voxels of a patch along (row, column) and (z, y, x).
        grid_2d, grid_3d: patches along each axis in the learned position tables; other inputs interpolate them.
        channels_2d, channels_3d: channels of the inputs.
    """

    width: int
    depth: int
    heads: int
    decoder_width: int
    decoder_depth: int
    decoder_heads: int
    vocabulary_size: int
    layer_scale: float
    mlp_ratio: int = 4
    stochastic_depth: float = 0.1
    text_positions: int = 512
    patch_2d: tuple[int, ...] = (16, 16)
    patch_3d: tuple[int, ...] = (16, 16, 16)
    grid_2d: tuple[int, ...] = (14, 14)
    grid_3d: tuple[int, ...] = (1, 12, 12)
    channels_2d: int = 3
    channels_3d: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):
                object.__setattr__(self, field.name, tuple(value))
        _check_heads("heads", self.heads, "width", self.width)
        _check_heads("decoder_heads", self.decoder_heads, "decoder_width", self.decoder_width)
        if not 0.0 <= self.stochastic_depth < 1.0:
            raise InputError(f"stochastic_depth={self.stochastic_depth} must be in [0, 1).")
        _check_axes(self)


def _check_heads(name: str, heads: int, width_name: str, width: int) -> None:
    if heads < 1 or width % heads:
        raise InputError(f"{width_name}={width} must be a multiple of {name}={heads}. Change one of them.")


def _check_axes(preset: Preset) -> None:
    for name, axes in (("patch_2d", 2), ("grid_2d", 2), ("patch_3d", 3), ("grid_3d", 3)):
        value = getattr(preset, name)
        if len(value) != axes or min(value) < 1:
            raise InputError(f"{name}={value} must hold {axes} positive numbers.")


PRESETS: dict[str, Preset] = {
    # METHOD.md sections 2-4: parameter for parameter the published checkpoint.
    "vit_base": Preset(
        width=768,
        depth=12,
        heads=12,
        decoder_width=512,
        decoder_depth=8,
        decoder_heads=16,
        vocabulary_size=49_411,
        layer_scale=1e-3,
    ),
    # One GPU, from scratch; the vocabulary size is that of Bio_ClinicalBERT's WordPiece list.
    "vit_small": Preset(
        width=384,
        depth=12,
        heads=6,
        decoder_width=256,
        decoder_depth=4,
        decoder_heads=8,
        vocabulary_size=28_996,
        layer_scale=0.1,
    ),
    # Two CPU cores, from scratch.
    "demo": Preset(
        width=128,
        depth=4,
        heads=4,
        decoder_width=128,
        decoder_depth=2,
        decoder_heads=4,
        vocabulary_size=4_000,
        layer_scale=0.5,
    ),
}


def resolve_preset(name: str, **overrides: Any) -> Preset:
    """The preset called ``name`` with some fields replaced; ``None`` values keep the preset's own.

    Raises:
        InputError: for an unknown preset or field, or sizes that do not fit together.
    """
    if name not in PRESETS:
        raise InputError(f"preset={name!r} is unknown. Use one of {', '.join(PRESETS)}.")
    known = [field.name for field in fields(Preset)]
    unknown = sorted(set(overrides) - set(known))
    if unknown:
        raise InputError(f"{', '.join(unknown)}: not a size of a preset. Sizes are {', '.join(known)}.")
    return replace(PRESETS[name], **{key: value for key, value in overrides.items() if value is not None})
