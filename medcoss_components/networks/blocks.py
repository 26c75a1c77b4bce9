"""Attention, and pre-norm transformer blocks with layer scale (METHOD.md section 3).

Axes: B samples, N tokens, D channels, H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medcoss_components.networks.lean import gelu_linear

SHORT_TOKENS = 256
LOWEST = -1e9


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
    """Scaled dot-product attention of (B, heads, N, D / heads); there may be fewer queries than keys.

    On a CPU in bfloat16 it is written out as matrix products, which take half to two thirds of the time of the kernel
    in float32 and a quarter of its bfloat16 backward; the probabilities are kept for the backward pass. Long inputs,
    where these would fill the memory, take the kernel in float32.
    """
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
    if query.dtype == torch.bfloat16 and key.shape[2] <= SHORT_TOKENS and not causal:
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        return (scores if mask is None else scores.masked_fill(~mask, LOWEST)).softmax(dim=-1) @ value
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
        return self.output(self.mix(self.qkv(tokens), mask, causal))

    def read_by_last(self, tokens: Tensor, first: int) -> Tensor:
        """(B, N, D) -> (B, N - first, D): all tokens are read, but only by those from number ``first`` on."""
        width = tokens.shape[2]
        weight, bias = self.qkv.weight, self.qkv.bias
        query = F.linear(tokens[:, first:], weight[:width], bias[:width])
        key, value = F.linear(tokens, weight[width:], bias[width:]).chunk(2, dim=-1)
        split = [part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (query, key, value)]
        return self.output(_attend(*split, mask=None, causal=False).transpose(1, 2).flatten(2))

    def mix(self, qkv: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """(B, N, 3 * D) -> (B, N, D), before the output's Linear."""
        batch, length, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
        query, key, value = qkv.view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = _attend(query, key, value, mask=mask, causal=causal and mask is None)
        return mixed.transpose(1, 2).reshape(batch, length, width)


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
        with_scale = layer_scale is not None
        self.attention_scale = nn.Parameter(torch.zeros(width)) if with_scale else None
        self.mlp_scale = nn.Parameter(torch.zeros(width)) if with_scale else None

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
        return self._perceptron(tokens + scaled(branch, self.attention_scale, first), second)

    def _perceptron(self, tokens: Tensor, weight: Tensor | None) -> Tensor:
        branch = gelu_linear(self.mlp_in(self.mlp_norm(tokens)), self.mlp_out)
        return tokens + scaled(branch, self.mlp_scale, weight)

    def of_last(self, tokens: Tensor, first: int) -> Tensor:
        """The same for the tokens from number ``first`` on, where nobody reads the others afterwards.

        (B, N, D) -> (B, N - first, D), without mask and stochastic depth.
        """
        branch = self.attention.read_by_last(self.attention_norm(tokens), first)
        return self._perceptron(tokens[:, first:] + scaled(branch, self.attention_scale, None), None)


def scaled(branch: Tensor, scale: Tensor | None, weight: Tensor | None) -> Tensor:
    """Branch (B, N, D) times scale (D,) times weight (B, 1, 1), each where given."""
    if weight is not None:
        scale = weight if scale is None else scale * weight
    return branch if scale is None else branch * scale
