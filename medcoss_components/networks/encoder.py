"""Pre-norm transformer blocks with layer scale and stochastic depth (METHOD.md section 3).

Axes: B samples, N tokens, D channels, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medcoss_components.errors import InputError


def attention_mask(padding_mask: Tensor | None, causal: bool) -> Tensor | None:
    """Which keys each query may read, from the padding of every sample on its own.

    Args:
        padding_mask: (B, N), true at real tokens; None when all are real.
        causal: whether a token reads only itself and earlier tokens.

    Returns:
        None without padding (a causal mask is then the attention kernel's own), else bool (B, 1, 1 or N, N). A query
        left with nothing to read, which only a padded one can be, reads everything, so that no NaN arises.
    """
    if padding_mask is None:
        return None
    allowed = padding_mask.bool()[:, None, None, :]
    if causal:
        length = padding_mask.shape[1]
        allowed = allowed & torch.ones(length, length, dtype=torch.bool, device=padding_mask.device).tril()
    return allowed | ~allowed.any(dim=-1, keepdim=True)


def branch_weights(noise: Tensor, rate: float) -> Tensor:
    """Stochastic depth: 0 where (B, branches) noise in [0, 1) is below ``rate``, else 1 / (1 - rate)."""
    return (noise >= rate).float() / (1.0 - rate)


def _attend(query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None, causal: bool) -> Tensor:
    """Scaled dot-product attention of (B, heads, N, D / heads).

    On a CPU it runs in float32, also under autocast: its bfloat16 backward takes three to four times as long there.
    """
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
    with torch.autocast("cpu", enabled=False):
        inputs = (query.float(), key.float(), value.float())
        return F.scaled_dot_product_attention(*inputs, attn_mask=mask, is_causal=causal)


class Attention(nn.Module):
    """Multi-head self-attention; rows of ``qkv`` are queries, keys, values."""

    def __init__(self, *, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, tokens: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        batch, length, width = tokens.shape
        qkv = self.qkv(tokens).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = _attend(query, key, value, mask=mask, causal=causal and mask is None)
        return self.output(mixed.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    """x + g1 * attention(LN(x)), then x + g2 * MLP(LN(x)), with exact GELU.

    Args:
        width: D.
        heads: attention heads.
        mlp_width: hidden channels of the MLP.
        eps: of both LayerNorms.
        layer_scale: first value of g1 and g2; None for a block without them.
    """

    def __init__(
        self, *, width: int, heads: int, mlp_width: int, eps: float = 1e-5, layer_scale: float | None = None
    ) -> None:
        super().__init__()
        self.layer_scale = layer_scale
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.attention = Attention(width=width, heads=heads)
        self.mlp_norm = nn.LayerNorm(width, eps=eps)
        self.mlp_in = nn.Linear(width, mlp_width)
        self.mlp_out = nn.Linear(mlp_width, width)
        scaled = layer_scale is not None
        self.attention_scale = nn.Parameter(torch.zeros(width)) if scaled else None
        self.mlp_scale = nn.Parameter(torch.zeros(width)) if scaled else None

    def initialise(self, generator: torch.Generator | None) -> None:
        """Fill the parameters that this module holds itself."""
        for scale in (self.attention_scale, self.mlp_scale):
            if scale is not None:
                nn.init.constant_(scale, float(self.layer_scale or 0.0))

    def forward(
        self, tokens: Tensor, mask: Tensor | None = None, causal: bool = False, weights: Tensor | None = None
    ) -> Tensor:
        """Run the block.

        Args:
            tokens: (B, N, D).
            mask: bool, true where a query may read a key; broadcasts to (B, H, N, N).
            causal: used when there is no ``mask``.
            weights: (B, 2) factors of the attention and the MLP branch of each sample (stochastic depth).

        Returns:
            (B, N, D).
        """
        first, second = (None, None) if weights is None else weights[:, None, None].unbind(-1)
        branch = self.attention(self.attention_norm(tokens), mask, causal)
        tokens = tokens + _scaled(branch, self.attention_scale, first)
        branch = self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(tokens))))
        return tokens + _scaled(branch, self.mlp_scale, second)


def _scaled(branch: Tensor, scale: Tensor | None, weight: Tensor | None) -> Tensor:
    """Branch (B, N, D) times scale (D,) times weight (B, 1, 1), each where given."""
    if weight is not None:
        scale = weight if scale is None else scale * weight
    return branch if scale is None else branch * scale


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
    ) -> list[Tensor]:
        """Encode tokens and keep them as they are after chosen blocks.

        Args:
            tokens: (B, N, D).
            after: numbers of blocks, counted from 1; 0 stands for ``tokens`` themselves.
            padding_mask: (B, N), true at real tokens; None when all are real.
            causal: whether tokens read only themselves and earlier ones.
            depth_noise: (B, 2 * depth) in [0, 1), attention and MLP branch of each block in turn; drawn when None.
                Row b concerns sample b alone. Not used in evaluation mode.

        Returns:
            One (B, N, D) for each number of ``after``, in its order.

        Raises:
            InputError: when a number of ``after`` is not one of 0 to depth.
        """
        _check_blocks(after, len(self.blocks))
        mask = attention_mask(padding_mask, causal)
        weights = self._branch_weights(tokens, depth_noise)
        kept = {0: tokens}
        for number, block in enumerate(self.blocks):
            pair = None if weights is None else weights[:, 2 * number : 2 * number + 2]
            tokens = block(tokens, mask, causal, pair)
            if number + 1 in after:
                kept[number + 1] = tokens
        return [kept[number] for number in after]

    def forward(
        self,
        tokens: Tensor,
        *,
        padding_mask: Tensor | None = None,
        causal: bool = False,
        depth_noise: Tensor | None = None,
    ) -> Tensor:
        """Encode tokens: (B, N, D) -> (B, N, D) after the last block. Arguments as in :meth:`hidden_states`."""
        after = (len(self.blocks),)
        return self.hidden_states(
            tokens, after=after, padding_mask=padding_mask, causal=causal, depth_noise=depth_noise
        )[0]


def _check_blocks(after: Sequence[int], depth: int) -> None:
    if not set(after) <= set(range(depth + 1)):
        raise InputError(f"after={tuple(after)} must hold numbers of blocks, 0 to {depth}.")
