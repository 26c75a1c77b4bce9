"""Tokenizers: text ids and image patches become tokens of the encoder's width (METHOD.md section 2).

Axes: B samples, L text tokens, N patches in raster order, K visible patches, P numbers of a patch, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medcoss_components.errors import InputError
from medcoss_components.networks.initialisation import fill_normal, fill_xavier

INTERPOLATION = {2: "bicubic", 3: "trilinear"}


def interpolate_grid(table: Tensor, grid: Sequence[int]) -> Tensor:
    """Resize a learned position table to another grid: bicubic in 2D, trilinear in 3D.

    Args:
        table: (*grid, D), one vector for each cell.
        grid: cells wanted on each axis.

    Returns:
        (*grid, D); ``table`` itself when the grid is already the wanted one.
    """
    if tuple(table.shape[:-1]) == tuple(grid):
        return table
    channels_first = table.movedim(-1, 0).unsqueeze(0)
    mode = INTERPOLATION[len(tuple(grid))]
    resized = F.interpolate(channels_first, size=tuple(grid), mode=mode, align_corners=False)
    return resized.squeeze(0).movedim(0, -1)


def sincos_table(grid: Sequence[int], width: int) -> Tensor:
    """Fixed sine-cosine positions: (product(grid), width) float32 in raster order.

    Each axis gets 2 * (width // (2 * axes)) channels, sines then cosines of the cell number times 10000^(-k/K);
    channels left over are 0. METHOD.md section 4, as in MAE.
    """
    half = width // (2 * len(grid))
    frequency = 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / max(half, 1))
    cells = torch.meshgrid(*(torch.arange(size, dtype=torch.float64) for size in grid), indexing="ij")
    angles = [cell.reshape(-1, 1) * frequency for cell in cells]
    table = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)
    return F.pad(table, (0, width - table.shape[1])).float()


class TextEmbedding(nn.Module):
    """Token ids to tokens: word vector + learned position + one token type, then LayerNorm.

    Args:
        width: D.
        vocabulary_size: rows of the word table.
        positions: longest text, in tokens.
    """

    def __init__(self, *, width: int, vocabulary_size: int, positions: int) -> None:
        super().__init__()
        self.word = nn.Embedding(vocabulary_size, width)
        self.position = nn.Parameter(torch.zeros(positions, width))
        self.token_type = nn.Parameter(torch.zeros(width))
        self.norm = nn.LayerNorm(width, eps=1e-5)

    def initialise(self, generator: torch.Generator | None) -> None:
        """Fill the parameters that this module holds itself."""
        fill_normal(self.position, generator)
        fill_normal(self.token_type, generator)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, L) int64 ids -> (B, L, D).

        Raises:
            InputError: when ``ids`` has another shape or is longer than the position table.
        """
        if ids.ndim != 2 or ids.shape[1] > self.position.shape[0]:
            rule = f"must be (samples, at most {self.position.shape[0]} tokens)"
            raise InputError(f"text ids of shape {tuple(ids.shape)} {rule}. Cut the texts or raise text_positions.")
        position = self.position[: ids.shape[1]] + self.token_type
        return self.norm(self.word(ids) + position)


class PatchEmbedding(nn.Module):
    """Patches to tokens before the LayerNorm: a convolution whose stride is its kernel, plus learned positions.

    The convolution is computed as a matrix product on the patches that are asked for, so with a mask ratio of 0.75
    three quarters of it are never computed.

    Args:
        width: D.
        channels: C of the input.
        patch: sides of a patch, one per spatial axis.
        grid: cells of the learned position table.
    """

    def __init__(self, *, width: int, channels: int, patch: Sequence[int], grid: Sequence[int]) -> None:
        super().__init__()
        self.patch = tuple(patch)
        self.channels = channels
        self.weight = nn.Parameter(torch.zeros(width, channels, *patch))
        self.bias = nn.Parameter(torch.zeros(width))
        self.position = nn.Parameter(torch.zeros(*grid, width))
        self.temporal = nn.Parameter(torch.zeros(width))

    def initialise(self, generator: torch.Generator | None) -> None:
        """Fill the parameters that this module holds itself."""
        fill_xavier(self.weight, generator)
        nn.init.zeros_(self.bias)
        fill_normal(self.position, generator)
        nn.init.zeros_(self.temporal)

    def check(self, inputs: Tensor) -> None:
        """Raise InputError unless ``inputs`` is (B, channels, one size per patch side)."""
        axes = len(self.patch)
        if inputs.ndim != 2 + axes or inputs.shape[1] != self.channels:
            expected = f"(samples, {self.channels}, {axes} spatial sizes)"
            raise InputError(f"input of shape {tuple(inputs.shape)} must be {expected} for a {axes}D modality.")

    def forward(self, patches: Tensor, grid: Sequence[int], index: Tensor | None = None) -> Tensor:
        """Embed patches.

        Args:
            patches: (B, K, P), channel last inside a patch as ``patchify`` gives them.
            grid: cells of the whole input on each axis.
            index: (B, K) raster position of each patch; None when all N are given in raster order.

        Returns:
            (B, K, D).
        """
        weight = (self.weight.movedim(1, -1) if self.channels > 1 else self.weight).flatten(1)
        table = interpolate_grid(self.position, grid).flatten(0, -2) + self.temporal
        # F.embedding has a deterministic gradient on the CPU, plain indexing has not.
        position = table if index is None else F.embedding(index, table)
        return F.linear(patches, weight, self.bias) + position


class ImageEmbedding(nn.Module):
    """2D and 3D tokenizers with their shared LayerNorm, and the class token of images.

    Args:
        width: D.
        tokenizers: patch embedding of each dimension.
        class_token: whether a class token stands before the patches (not in segmentation).
    """

    def __init__(self, *, width: int, tokenizers: dict[int, PatchEmbedding], class_token: bool = True) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.zeros(1, 1, width)) if class_token else None
        self.tokenizers = nn.ModuleDict({f"{dimension}d": part for dimension, part in tokenizers.items()})
        self.norm = nn.LayerNorm(width, eps=1e-5)

    def initialise(self, generator: torch.Generator | None) -> None:
        """Fill the parameters that this module holds itself."""
        if self.class_token is not None:
            fill_normal(self.class_token, generator)

    def tokenizer(self, dimension: int) -> PatchEmbedding:
        """The patch embedding of 2D or 3D inputs."""
        return self.tokenizers[f"{dimension}d"]

    def forward(self, dimension: int, patches: Tensor, grid: Sequence[int], index: Tensor | None = None) -> Tensor:
        """Patches (B, K, P) -> (B, 1 + K, D), the class token first; (B, K, D) without one."""
        tokens = self.norm(self.tokenizer(dimension)(patches, grid, index))
        if self.class_token is None:
            return tokens
        return torch.cat([self.class_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
