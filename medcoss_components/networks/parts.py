"""The parts that every network of this package is put together from, built from the sizes of a preset."""

from __future__ import annotations

from medcoss_components.networks.embeddings import PatchEmbedding, TextEmbedding
from medcoss_components.networks.encoder import Encoder
from medcoss_components.networks.presets import Preset


def text_tokenizer(sizes: Preset) -> TextEmbedding:
    """The embedding of token ids."""
    return TextEmbedding(width=sizes.width, vocabulary_size=sizes.vocabulary_size, positions=sizes.text_positions)


def image_tokenizer(sizes: Preset, dimension: int) -> PatchEmbedding:
    """The patch embedding of images (2) or volumes (3)."""
    channels, patch, grid = {
        2: (sizes.channels_2d, sizes.patch_2d, sizes.grid_2d),
        3: (sizes.channels_3d, sizes.patch_3d, sizes.grid_3d),
    }[dimension]
    return PatchEmbedding(width=sizes.width, channels=channels, patch=patch, grid=grid)


def block_stack(sizes: Preset) -> Encoder:
    """The shared encoder."""
    return Encoder(
        width=sizes.width,
        depth=sizes.depth,
        heads=sizes.heads,
        mlp_width=sizes.mlp_ratio * sizes.width,
        layer_scale=sizes.layer_scale,
        stochastic_depth=sizes.stochastic_depth,
    )
