"""Choosing what the pretext tasks hide: image patches and whole words.

Random numbers are drawn first, into a tensor or a small record, and applied afterwards. A draw is made for a whole
global batch and its rows are picked per rank, so that the number of processes does not change the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from medcoss_components.errors import InputError

IGNORED_LABEL = -100
MASK_SHARE = 0.8
RANDOM_SHARE = 0.1


def draw_patch_noise(count: int, tokens: int, generator: torch.Generator | None = None) -> Tensor:
    """Noise that orders the patches of each sample: (count, tokens) float32, uniform in [0, 1), on the CPU."""
    return torch.rand(count, tokens, generator=generator)


def kept_count(tokens: int, mask_ratio: float) -> int:
    """How many of ``tokens`` patches stay visible: floor(tokens * (1 - mask_ratio)), at least one.

    >>> kept_count(196, 0.75), kept_count(10, 0.9), kept_count(3, 0.75)
    (49, 1, 1)

    Raises:
        InputError: when ``mask_ratio`` is outside [0, 1).
    """
    if not 0.0 <= mask_ratio < 1.0:
        raise InputError(f"mask_ratio={mask_ratio} must be in [0, 1): the share of patches to remove.")
    return max(1, int(tokens * (1.0 - mask_ratio) + 1e-6))  # 10 * (1 - 0.9) is 0.9999999999999998 in floating point


@dataclass(frozen=True)
class PatchOrder:
    """The patches of each sample sorted by noise: the visible ones first, then the removed ones.

    Attributes:
        index: (B, N) int64, raster positions in ascending order of noise.
        kept: how many of them, from the front, are visible.
    """

    index: Tensor
    kept: int

    @property
    def visible(self) -> Tensor:
        """(B, kept) raster positions of the visible patches, in ascending order of noise."""
        return self.index[:, : self.kept]

    @property
    def removed(self) -> Tensor:
        """(B, N - kept) raster positions of the removed patches, in ascending order of noise."""
        return self.index[:, self.kept :]

    def mask(self) -> Tensor:
        """(B, N) float32 in raster order: 1 where the patch is removed, 0 where it is visible."""
        mask = torch.zeros(self.index.shape, device=self.index.device)
        return mask.scatter(1, self.removed, 1.0)

    def to_raster(self, ordered: Tensor) -> Tensor:
        """Bring (B, N, P) from the order of this record back to raster order."""
        return select_patches(ordered, self.index.argsort(dim=1))


def order_patches(noise: Tensor, mask_ratio: float) -> PatchOrder:
    """Sort patches by (B, N) noise; equal noise keeps raster order. METHOD.md section 4, as in MAE."""
    index = torch.argsort(noise, dim=1, stable=True)
    return PatchOrder(index=index, kept=kept_count(noise.shape[1], mask_ratio))


def select_patches(patches: Tensor, index: Tensor) -> Tensor:
    """Pick rows of (B, N, P) at (B, K) positions -> (B, K, P)."""
    return patches.gather(1, index.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))


@dataclass(frozen=True)
class WordMaskingDraw:
    """Random numbers for whole-word masking of B texts of L tokens.

    Attributes:
        select: (B, L) float32 in [0, 1); a word's number is the one at its first token.
        action: (B, L) float32 in [0, 1); below 0.8 mask, below 0.9 a random token, else unchanged.
        replacement: (B, L) int64 in [0, vocabulary size), picks the random token.
    """

    select: Tensor
    action: Tensor
    replacement: Tensor

    def rows(self, index: Tensor | slice) -> WordMaskingDraw:
        """The draw of some samples only."""
        return WordMaskingDraw(self.select[index], self.action[index], self.replacement[index])


def draw_word_masking(
    count: int, length: int, vocabulary_size: int, generator: torch.Generator | None = None
) -> WordMaskingDraw:
    """Draw the numbers for ``count`` texts of ``length`` tokens, on the CPU."""
    return WordMaskingDraw(
        select=torch.rand(count, length, generator=generator),
        action=torch.rand(count, length, generator=generator),
        replacement=torch.randint(vocabulary_size, (count, length), generator=generator),
    )


def _word_starts(ids: Tensor, maskable: Tensor, starts_word: Tensor) -> Tensor:
    """(B, L) bool: first tokens of words. A continuation after something that is no word starts a word of its own."""
    previous = torch.zeros_like(maskable)
    previous[:, 1:] = maskable[:, :-1]
    return maskable & (starts_word[ids] | ~previous)


def _choose_words(starts: Tensor, select: Tensor, share: float) -> Tensor:
    """(B, L) bool: starts of the max(1, round(share * words)) words with the smallest draw, ties by position."""
    words = starts.sum(dim=1, keepdim=True)
    quota = torch.clamp(torch.round(words.double() * share), min=1.0)
    order = torch.argsort(select.masked_fill(~starts, torch.inf), dim=1, stable=True)
    rank = torch.argsort(order, dim=1)
    return starts & (rank < quota)


def _spread_over_words(chosen: Tensor, starts: Tensor, maskable: Tensor) -> Tensor:
    """(B, L) bool: every token of a word whose first token is chosen."""
    position = torch.arange(starts.shape[1], device=starts.device).expand(starts.shape)
    first = torch.where(starts, position, 0).cummax(dim=1).values
    return chosen.gather(1, first) & maskable


def _random_tokens(replacement: Tensor, special: Tensor, first_random_id: int) -> Tensor:
    candidates = torch.nonzero(~special[first_random_id:]).squeeze(1) + first_random_id
    if candidates.numel() == 0:
        raise InputError(f"first_random_id={first_random_id} leaves no ordinary token out of {special.numel()}.")
    return candidates[replacement % candidates.numel()]


def mask_words(
    ids: Tensor,
    padding_mask: Tensor,
    draw: WordMaskingDraw,
    *,
    starts_word: Tensor,
    special: Tensor,
    mask_id: int,
    share: float = 0.15,
    first_random_id: int = 0,
) -> tuple[Tensor, Tensor]:
    """Hide whole words of each text, with BERT's 80/10/10 replacement per token. METHOD.md section 4.

    Args:
        ids: (B, L) int64 token ids.
        padding_mask: (B, L), true at real tokens.
        draw: random numbers of the same shape.
        starts_word: (vocabulary size,) bool, true for tokens that begin a word.
        special: (vocabulary size,) bool, true for tokens that are never chosen nor used as replacement.
        mask_id: the token that hides.
        share: share of the words of each text to choose, in (0, 1]; every text with a word gives at least one.
        first_random_id: smallest id used as a random replacement.

    Returns:
        The masked ids (B, L) and the labels (B, L): the original id at chosen tokens, -100 elsewhere.

    Raises:
        InputError: when ``share`` is outside (0, 1], or no token is left for random replacement.
    """
    if not 0.0 < share <= 1.0:
        raise InputError(f"share={share} must be in (0, 1]: the share of words to choose.")
    maskable = padding_mask.bool() & ~special[ids]
    starts = _word_starts(ids, maskable, starts_word)
    chosen = _spread_over_words(_choose_words(starts, draw.select, share), starts, maskable)
    hidden = chosen & (draw.action < MASK_SHARE)
    randomised = chosen & ~hidden & (draw.action < MASK_SHARE + RANDOM_SHARE)
    masked = torch.where(hidden, mask_id, ids)
    masked = torch.where(randomised, _random_tokens(draw.replacement, special, first_random_id), masked)
    return masked, torch.where(chosen, ids, IGNORED_LABEL)
