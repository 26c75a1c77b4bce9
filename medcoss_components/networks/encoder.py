"""The encoder: a stack of transformer blocks with stochastic depth (METHOD.md section 3).

Axes: B samples, N tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medcoss_components.errors import InputError
from medcoss_components.networks.blocks import Block, attention_mask, branch_weights
from medcoss_components.networks.lean import is_traced, run_block
from medcoss_components.networks.packing import Packing, packed_block


class Encoder(nn.Module):
    """A stack of blocks without a final LayerNorm.

    Args:
        width: D.
        depth: number of blocks.
        heads: attention heads.
        mlp_width: hidden channels of the MLPs.
        layer_scale: first value of g1 and g2.
        stochastic_depth: probability of dropping a branch, per sample, in training mode.
    """

    def __init__(
        self, *, width: int, depth: int, heads: int, mlp_width: int, layer_scale: float, stochastic_depth: float = 0.1
    ) -> None:
        super().__init__()
        self.stochastic_depth = stochastic_depth
        self.checkpoint_blocks = False
        self.blocks = nn.ModuleList(
            Block(width=width, heads=heads, mlp_width=mlp_width, layer_scale=layer_scale) for _ in range(depth)
        )

    def _branch_weights(self, tokens: Tensor, noise: Tensor | None) -> Tensor | None:
        if not self.training or self.stochastic_depth == 0.0:
            return None
        shape = (tokens.shape[0], 2 * len(self.blocks))
        if noise is None:
            noise = torch.rand(shape, device=tokens.device)
        if tuple(noise.shape) != shape:
            raise InputError(f"depth_noise of shape {tuple(noise.shape)} must be {shape}: samples, branches.")
        return branch_weights(noise.to(tokens.device), self.stochastic_depth)

    def hidden_states(
        self,
        tokens: Tensor,
        *,
        after: Sequence[int],
        padding_mask: Tensor | None = None,
        causal: bool = False,
        depth_noise: Tensor | None = None,
        padding_features: bool = True,
    ) -> list[Tensor]:
        """Encode tokens and keep them as they are after chosen blocks.

        Args:
            tokens: (B, N, D).
            after: numbers of blocks, counted from 1; 0 stands for ``tokens`` themselves.
            padding_mask: (B, N), true at real tokens; None when all are real.
            causal: whether tokens read only themselves and earlier ones.
            depth_noise: (B, 2 * depth) in [0, 1), attention and MLP branch of each block in turn; drawn when None.
                Row b concerns sample b alone. Not used in evaluation mode.
            padding_features: whether anybody reads what comes out at padding; if not, a CPU leaves padding out, and
                it comes out as 0.

        Returns:
            One (B, N, D) for each number of ``after``, in its order.

        Raises:
            InputError: when a number of ``after`` is not one of 0 to depth.
        """
        _check_blocks(after, len(self.blocks))
        mask = attention_mask(padding_mask, causal)
        weights = self._branch_weights(tokens, depth_noise)
        if tokens.device.type == "cpu" and not is_traced():
            real = None if padding_features or padding_mask is None else padding_mask.bool()
            packing = Packing(tokens.shape[0], tokens.shape[1], mask, causal, real)
            return self._packed_states(tokens, after, packing, weights)
        kept = {0: tokens}
        for number, block in enumerate(self.blocks):
            pair = None if weights is None else weights[:, 2 * number : 2 * number + 2]
            tokens = run_block(block, tokens, mask, causal, pair, checkpointed=self.checkpoint_blocks)
            if number + 1 in after:
                kept[number + 1] = tokens
        return [kept[number] for number in after]

    def _packed_states(
        self, tokens: Tensor, after: Sequence[int], packing: Packing, weights: Tensor | None
    ) -> list[Tensor]:
        """:meth:`hidden_states` without what can be left out."""
        rows = packing.pack(tokens)
        kept = {0: tokens}
        for number, block in enumerate(self.blocks):
            pair = None if weights is None else weights[:, 2 * number : 2 * number + 2]
            rows = run_block(packed_block, block, rows, packing, pair, checkpointed=self.checkpoint_blocks)
            if number + 1 in after:
                kept[number + 1] = packing.unpack(rows)
        return [kept[number] for number in after]

    def forward(
        self,
        tokens: Tensor,
        *,
        padding_mask: Tensor | None = None,
        causal: bool = False,
        depth_noise: Tensor | None = None,
        padding_features: bool = True,
    ) -> Tensor:
        """Encode tokens: (B, N, D) -> (B, N, D) after the last block. Arguments as in :meth:`hidden_states`."""
        return self.hidden_states(
            tokens,
            after=(len(self.blocks),),
            padding_mask=padding_mask,
            causal=causal,
            depth_noise=depth_noise,
            padding_features=padding_features,
        )[0]


def _check_blocks(after: Sequence[int], depth: int) -> None:
    if not set(after) <= set(range(depth + 1)):
        raise InputError(f"after={tuple(after)} must hold numbers of blocks, 0 to {depth}.")
