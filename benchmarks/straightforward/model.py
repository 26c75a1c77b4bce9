"""METHOD.md sections 2 to 5 as a plain network. Axes: B samples, N patches, L text tokens, D channels, P numbers."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DropPath(nn.Module):
    """Stochastic depth: in training, a branch of a sample is left out with probability ``rate``."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return branch
        kept = torch.rand(branch.shape[0], 1, 1, device=branch.device) >= self.rate
        return branch * kept / (1.0 - self.rate)


class Block(nn.Module):
    """Pre-norm transformer block; ``scale`` is the first value of the layer scale, None for a block without.

    ``need_weights`` is that of ``nn.MultiheadAttention``: with its own default the layer returns the attention weights
    too, and does not call ``scaled_dot_product_attention``.
    """

    need_weights = True

    def __init__(self, width: int, heads: int, mlp: int, eps: float, scale: float | None = None, drop: float = 0.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.linear1 = nn.Linear(width, mlp)
        self.linear2 = nn.Linear(mlp, width)
        self.gamma1 = None if scale is None else nn.Parameter(torch.full((width,), scale))
        self.gamma2 = None if scale is None else nn.Parameter(torch.full((width,), scale))
        self.drop = DropPath(drop)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.norm1(x)
        y, _ = self.attention(y, y, y, attn_mask=mask, need_weights=self.need_weights)
        x = x + self.drop(y if self.gamma1 is None else self.gamma1 * y)
        y = self.linear2(F.gelu(self.linear1(self.norm2(x))))
        return x + self.drop(y if self.gamma2 is None else self.gamma2 * y)


class StraightforwardModel(nn.Module):
    """Tokenizers, encoder, image decoder and text head.

    Args:
        sizes: numbers with the names of :class:`medcoss_components.networks.presets.Preset`.
    """

    def __init__(self, sizes: Any) -> None:
        super().__init__()
        self.sizes, width, deep = sizes, sizes.width, sizes.decoder_width
        self.word = nn.Embedding(sizes.vocabulary_size, width)
        self.text_position = nn.Embedding(sizes.text_positions, width)
        self.token_type = nn.Embedding(1, width)
        self.text_norm = nn.LayerNorm(width, eps=1e-5)
        self.patch2d = nn.Conv2d(sizes.channels_2d, width, sizes.patch_2d, sizes.patch_2d)
        self.patch3d = nn.Conv3d(sizes.channels_3d, width, sizes.patch_3d, sizes.patch_3d)
        self.position2d = nn.Parameter(torch.zeros(1, prod(sizes.grid_2d), width))
        self.position3d = nn.Parameter(torch.zeros(1, prod(sizes.grid_3d), width))
        self.temporal2d = nn.Parameter(torch.zeros(width))
        self.temporal3d = nn.Parameter(torch.zeros(width))
        self.image_norm = nn.LayerNorm(width, eps=1e-5)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        mlp, drop = sizes.mlp_ratio * width, sizes.stochastic_depth
        self.blocks = nn.ModuleList(
            Block(width, sizes.heads, mlp, 1e-5, sizes.layer_scale, drop) for _ in range(sizes.depth)
        )
        self.decoder_embed = nn.Linear(width, deep)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, deep))
        self.register_buffer("decoder_position2d", torch.zeros(1, 1 + prod(sizes.grid_2d), deep))
        self.register_buffer("decoder_position3d", torch.zeros(1, 1 + prod(sizes.grid_3d), deep))
        self.decoder_blocks = nn.ModuleList(
            Block(deep, sizes.decoder_heads, sizes.mlp_ratio * deep, 1e-6) for _ in range(sizes.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(deep, eps=1e-6)
        self.predict2d = nn.Linear(deep, sizes.channels_2d * prod(sizes.patch_2d))
        self.predict3d = nn.Linear(deep, sizes.channels_3d * prod(sizes.patch_3d))
        self.text_offset = nn.Parameter(torch.zeros(width))
        self.text_dense = nn.Linear(width, width)
        self.text_head_norm = nn.LayerNorm(width, eps=1e-12)
        self.text_output = nn.Linear(width, sizes.vocabulary_size)

    def encode_text(self, ids: Tensor, padding_mask: Tensor) -> Tensor:
        """(B, L) ids and (B, L) mask, true at real tokens -> (B, L, D)."""
        length = ids.shape[1]
        positions = torch.arange(length, device=ids.device)
        x = self.word(ids) + self.text_position(positions) + self.token_type.weight[0]
        x = self.text_norm(x)
        mask = torch.zeros(ids.shape[0], length, length, device=ids.device)
        mask = mask.masked_fill(~padding_mask[:, None, :], float("-inf"))
        mask = mask.repeat_interleave(self.sizes.heads, dim=0)
        for block in self.blocks:
            x = block(x, mask)
        return x

    def text_loss(self, ids: Tensor, padding_mask: Tensor, labels: Tensor) -> Tensor:
        """Masked language modelling; labels are -100 where nothing was chosen."""
        x = self.encode_text(ids, padding_mask) + self.text_offset
        logits = self.text_output(self.text_head_norm(F.gelu(self.text_dense(x))))
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)

    def patches(self, images: Tensor) -> Tensor:
        """(B, C, ...) -> (B, N, D) tokens of all patches."""
        flat = images.ndim == 4
        x = (self.patch2d if flat else self.patch3d)(images).flatten(2).transpose(1, 2)
        x = x + (self.position2d if flat else self.position3d) + (self.temporal2d if flat else self.temporal3d)
        return self.image_norm(x)

    def encode_image(self, images: Tensor, noise: Tensor | None = None, ratio: float = 0.0) -> Tensor:
        """(B, C, ...) -> (B, 1 + kept, D), class token first; without noise all patches are kept."""
        x = self.patches(images)
        if noise is not None:
            kept = int(x.shape[1] * (1 - ratio))
            keep = noise.argsort(dim=1)[:, :kept]
            x = torch.gather(x, 1, keep.unsqueeze(-1).repeat(1, 1, x.shape[2]))
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return x

    def decode(self, encoded: Tensor, noise: Tensor, flat: bool) -> Tensor:
        """Predictions (B, N, P) of all patches in raster order."""
        x = self.decoder_embed(encoded)
        restore = noise.argsort(dim=1).argsort(dim=1)
        hidden = self.mask_token.repeat(x.shape[0], restore.shape[1] + 1 - x.shape[1], 1)
        patches = torch.cat([x[:, 1:], hidden], dim=1)
        patches = torch.gather(patches, 1, restore.unsqueeze(-1).repeat(1, 1, x.shape[2]))
        x = torch.cat([x[:, :1], patches], dim=1) + (self.decoder_position2d if flat else self.decoder_position3d)
        for block in self.decoder_blocks:
            x = block(x)
        return (self.predict2d if flat else self.predict3d)(self.decoder_norm(x))[:, 1:]

    def image_loss(self, images: Tensor, noise: Tensor, ratio: float = 0.75) -> Tensor:
        """Masked image modelling on patches normalised by their own mean and deviation."""
        flat = images.ndim == 4
        predicted = self.decode(self.encode_image(images, noise, ratio), noise, flat)
        target = to_patches(images, self.sizes.patch_2d if flat else self.sizes.patch_3d)
        mean, variance = target.mean(dim=-1, keepdim=True), target.var(dim=-1, keepdim=True)
        target = (target - mean) / (variance + 1e-6) ** 0.5
        kept = int(target.shape[1] * (1 - ratio))
        removed = (noise.argsort(dim=1).argsort(dim=1) >= kept).float()
        loss = ((predicted - target) ** 2).mean(dim=-1)
        return (loss * removed).sum() / removed.sum()


def to_patches(images: Tensor, patch: tuple[int, ...]) -> Tensor:
    """(B, C, ...) -> (B, N, P), inside a patch channel last."""
    if images.ndim == 4:
        (b, c, h, w), (p, q) = images.shape, patch
        x = images.reshape(b, c, h // p, p, w // q, q)
        return torch.einsum("bchpwq->bhwpqc", x).reshape(b, (h // p) * (w // q), p * q * c)
    (b, c, z, h, w), (o, p, q) = images.shape, patch
    x = images.reshape(b, c, z // o, o, h // p, p, w // q, q)
    return torch.einsum("bczohpwq->bzhwopqc", x).reshape(b, (z // o) * (h // p) * (w // q), o * p * q * c)
