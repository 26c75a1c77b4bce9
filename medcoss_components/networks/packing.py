"""What an encoder can leave out on a CPU: padding of texts, and branches that stochastic depth drops.

Choosing rows costs little there. Real tokens of all samples stand in one row (T, D); what is computed token by token
runs on these alone, and only attention sees the padded layout (B, N, D). Results are the same; padding comes out as 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from medcoss_components.networks.blocks import Block, scaled
from medcoss_components.networks.lean import gelu_linear


@dataclass(frozen=True)
class Packing:
    """Real tokens of a batch in one row: what is computed token by token then leaves out padding.

    Attributes:
        batch, length: B and N.
        mask: see :func:`attention_mask`.
        causal: whether tokens read only themselves and earlier ones.
        real: (B, N) bool; None when every token is real.
    """

    batch: int
    length: int
    mask: Tensor | None
    causal: bool
    real: Tensor | None = None

    @cached_property
    def _places(self) -> Tensor | None:
        """(T,) places of the real tokens among all, which every block asks for; None when every token is real."""
        return None if self.real is None else self.real.flatten().nonzero().squeeze(1)

    def pack(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (T, D)."""
        rows = tokens.flatten(0, 1)
        return rows if self._places is None else rows[self._places]

    def unpack(self, rows: Tensor) -> Tensor:
        """(T, D) -> (B, N, D), zeros at padding."""
        if self._places is not None:
            rows = rows.new_zeros(self.batch * self.length, rows.shape[1]).index_copy(0, self._places, rows)
        return rows.view(self.batch, self.length, -1)

    def part(self, samples: Tensor) -> tuple[Packing, Tensor]:
        """The packing of some samples (S,), and the rows (T',) of their tokens."""
        mask = None if self.mask is None else self.mask[samples]
        if self.real is None:
            rows = (samples[:, None] * self.length + torch.arange(self.length)).flatten()
            return Packing(len(samples), self.length, mask, self.causal), rows
        chosen = torch.zeros(self.batch, dtype=torch.bool).index_fill(0, samples, True)
        owner = self.real.nonzero()[:, 0]
        part = Packing(len(samples), self.length, mask, self.causal, self.real[samples])
        return part, chosen[owner].nonzero().squeeze(1)


Branch = Callable[[Tensor, Packing], Tensor]


def packed_block(block: Block, rows: Tensor, packing: Packing, weights: Tensor | None = None) -> Tensor:
    """Run a block on packed tokens.

    Args:
        block: see :meth:`~medcoss_components.networks.blocks.Block.forward`.
        rows: (T, D).
        packing: how they are packed.
        weights: (B, 2) factors of the attention and the MLP branch of each sample (stochastic depth).

    Returns:
        (T, D).
    """

    def attention(part: Tensor, packed: Packing) -> Tensor:
        qkv = packed.unpack(block.attention.qkv(block.attention_norm(part)))
        return block.attention.output(packed.pack(block.attention.mix(qkv, packed.mask, packed.causal)))

    def perceptron(part: Tensor, packed: Packing) -> Tensor:
        return gelu_linear(block.mlp_in(block.mlp_norm(part)), block.mlp_out)

    first, second = (None, None) if weights is None else weights.unbind(-1)
    rows = _add_branch(rows, attention, block.attention_scale, first, packing)
    return _add_branch(rows, perceptron, block.mlp_scale, second, packing)


def _add_branch(
    rows: Tensor,
    branch: Branch,
    scale: Tensor | None,
    weight: Tensor | None,
    packing: Packing,
) -> Tensor:
    """rows (T, D) + scale * weight * branch(rows), computed for the samples whose weight (B,) is not 0.

    Where all are dropped, one is computed all the same: the parameters then have a gradient of 0, not none, as when the
    samples of another rank keep the branch.
    """
    if weight is None:
        return rows + scaled(branch(rows, packing), scale, None)
    samples = weight.nonzero().squeeze(1)
    if len(samples) == 0:
        samples = weight.new_zeros(1, dtype=torch.long)
    factor = weight[samples[0]]  # the same for all that are kept
    if len(samples) == len(weight):
        return rows + scaled(branch(rows, packing), scale, factor)
    part, places = packing.part(samples)
    added = scaled(branch(rows.index_select(0, places), part), scale, factor)
    return rows.index_add(0, places, added.to(rows.dtype))
