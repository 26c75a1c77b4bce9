"""What the pretext tasks put behind the encoder: the image decoder and the text head (METHOD.md section 4).

Both are thrown away and started anew at every stage.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medcoss_components.errors import InputError
from medcoss_components.networks.blocks import Block
from medcoss_components.networks.embeddings import interpolate_grid, sincos_table
from medcoss_components.networks.initialisation import fill_normal
from medcoss_components.networks.lean import run_block
from medcoss_components.pretext.masking import PatchOrder


class SincosPositions(nn.Module):
    """Fixed sine-cosine positions; the class slot is 0. Tables are kept per grid and device."""

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.width = width
        self._tables: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}

    def forward(self, grid: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
        """Class slot (W,) and patch positions (N, W)."""
        key = (tuple(grid), device)
        if key not in self._tables:
            with torch.inference_mode(False):  # a table first asked for by a preview must serve training too
                self._tables[key] = F.pad(sincos_table(grid, self.width), (0, 0, 1, 0)).to(device)
        table = self._tables[key]
        return table[0], table[1:]


class LearnedPositions(nn.Module):
    """Trainable positions that start at 0, interpolated for other grids."""

    def __init__(self, *, width: int, grid: Sequence[int]) -> None:
        super().__init__()
        self.class_slot = nn.Parameter(torch.zeros(width))
        self.grid = nn.Parameter(torch.zeros(*grid, width))

    def initialise(self, generator: torch.Generator | None) -> None:
        """Fill the parameters that this module holds itself."""
        nn.init.zeros_(self.class_slot)
        nn.init.zeros_(self.grid)

    def forward(self, grid: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
        """Class slot (W,) and patch positions (N, W)."""
        return self.class_slot, interpolate_grid(self.grid, grid).flatten(0, -2)


POSITION_KINDS = ("sincos", "learned")


def _positions(kind: str, width: int, grid: Sequence[int]) -> nn.Module:
    if kind == "sincos":
        return SincosPositions(width=width)
    if kind == "learned":
        return LearnedPositions(width=width, grid=grid)
    raise InputError(f"decoder_positions={kind!r} must be one of {', '.join(POSITION_KINDS)}.")


class ImageDecoder(nn.Module):
    """Predicts the pixels of patches from the visible tokens.

    Args:
        encoder_width: D.
        width: W of the decoder.
        depth: number of blocks.
        heads: attention heads.
        mlp_ratio: MLP width over W.
        positions: "sincos" or "learned".
        grids: trained grid of each dimension.
        outputs: numbers of a patch, P, of each dimension.
    """

    def __init__(
        self,
        *,
        encoder_width: int,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: int,
        positions: str,
        grids: dict[int, Sequence[int]],
        outputs: dict[int, int],
    ) -> None:
        super().__init__()
        self.checkpoint_blocks = False
        self.embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.ModuleDict({f"{d}d": _positions(positions, width, grid) for d, grid in grids.items()})
        self.blocks = nn.ModuleList(
            Block(width=width, heads=heads, mlp_width=mlp_ratio * width, eps=1e-6) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.heads = nn.ModuleDict({f"{d}d": nn.Linear(width, size) for d, size in outputs.items()})

    def initialise(self, generator: torch.Generator | None) -> None:
        """Fill the parameters that this module holds itself."""
        fill_normal(self.mask_token, generator)

    def _tokens(self, dimension: int, encoded: Tensor, order: PatchOrder, grid: Sequence[int]) -> Tensor:
        class_slot, table = self.positions[f"{dimension}d"](grid, encoded.device)
        batch, removed = order.index.shape[0], order.index.shape[1] - order.kept
        position = torch.cat([class_slot.expand(batch, 1, -1), F.embedding(order.index, table)], dim=1)
        visible = self.embed(encoded)
        return torch.cat([visible, self.mask_token.to(visible.dtype).expand(batch, removed, -1)], dim=1) + position

    def forward(
        self, dimension: int, encoded: Tensor, order: PatchOrder, grid: Sequence[int], *, removed_only: bool
    ) -> Tensor:
        """Predict normalised patches.

        Attention does not care for the order of its tokens, so they stay in the order of the noise: visible ones, then
        removed ones.

        Args:
            dimension: 2 or 3.
            encoded: (B, 1 + kept, D), class token first.
            order: where the visible and removed patches sit.
            grid: cells of the input on each axis.
            removed_only: predict only what the loss needs.

        Returns:
            (B, N - kept, P) or (B, N, P), in the order of ``order``.
        """
        tokens = self._tokens(dimension, encoded, order, grid)
        *blocks, last = self.blocks
        for block in blocks:
            tokens = run_block(block, tokens, checkpointed=self.checkpoint_blocks)
        first = 1 + order.kept if removed_only else 1
        wanted = run_block(last.of_last, tokens, first, checkpointed=self.checkpoint_blocks)
        return self.heads[f"{dimension}d"](self.norm(wanted))


class TextHead(nn.Module):
    """Encoder output at chosen tokens to logits: + learned vector, Linear, GELU, LayerNorm, Linear.

    Args:
        width: D.
        vocabulary_size: V.
    """

    def __init__(self, *, width: int, vocabulary_size: int) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(width))
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.output = nn.Linear(width, vocabulary_size)

    def initialise(self, generator: torch.Generator | None) -> None:
        """Fill the parameters that this module holds itself."""
        fill_normal(self.offset, generator)

    def forward(self, hidden: Tensor) -> Tensor:
        """(M, D) -> (M, V)."""
        return self.output(self.norm(F.gelu(self.dense(hidden + self.offset))))
