"""Training steps, rehearsal and embedding of the straightforward side (METHOD.md sections 4 to 7)."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from straightforward.model import StraightforwardModel


def plain_optimizer(model: nn.Module, learning_rate: float = 3e-4) -> torch.optim.AdamW:
    """AdamW, parameter by parameter; no weight decay for one-dimensional ones."""
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), foreach=False, fused=False)


class StraightforwardTrainer:
    """One optimiser step at a time; every method returns the loss as a Python number.

    Args:
        model: network to train, already on its device.
        learning_rate: of AdamW.
        scaled: run under fp16 autocast with a gradient scaler (the straightforward way on a GPU).
    """

    def __init__(self, model: StraightforwardModel, learning_rate: float = 3e-4, *, scaled: bool = False) -> None:
        self.model, self.scaled = model, scaled
        self.device = next(model.parameters()).device.type
        self.optimizer = plain_optimizer(model, learning_rate)
        self.scaler = torch.amp.GradScaler(self.device, enabled=scaled)
        self.teacher: StraightforwardModel | None = None

    def _update(self, loss: Tensor) -> float:
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return loss.item()

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device, dtype=torch.float16, enabled=self.scaled)

    def image_step(self, images: Tensor, noise: Tensor) -> float:
        """Masked image modelling of (B, C, ...) with patch noise (B, N)."""
        self.model.train()
        with self._precision():
            loss = self.model.image_loss(images, noise)
        return self._update(loss)

    def text_step(self, ids: Tensor, padding_mask: Tensor, labels: Tensor) -> float:
        """Masked language modelling of (B, L)."""
        self.model.train()
        with self._precision():
            loss = self.model.text_loss(ids, padding_mask, labels)
        return self._update(loss)

    def remember_teacher(self) -> None:
        """Freeze a copy of the network as it stands."""
        self.teacher = copy.deepcopy(self.model).eval().requires_grad_(False)

    def rehearsal_step(self, images: Tensor, noise: Tensor, weight: Tensor, partners: Tensor) -> float:
        """Mix images (B, C, ...) with their partners by weight (B,), match the teacher's features."""
        if self.teacher is None:
            self.remember_teacher()
        self.model.train()
        weight = weight.reshape(-1, *[1] * (images.ndim - 1))
        mixed = weight * images + (1 - weight) * images[partners]
        with self._precision():
            loss = distillation(self.model, self.teacher, mixed, noise)
        return self._update(loss)


def distillation(student: StraightforwardModel, teacher: StraightforwardModel, images: Tensor, noise: Tensor) -> Tensor:
    """Mean squared difference of the features of visible tokens."""
    with torch.no_grad():
        target = teacher.encode_image(images, noise, 0.75)
    return ((student.encode_image(images, noise, 0.75) - target) ** 2).mean()


@torch.no_grad()
def embed_images(model: StraightforwardModel, batches: Iterable[Tensor]) -> np.ndarray:
    """(n, D): mean over all tokens of every image, nothing removed."""
    model.eval()
    return np.concatenate([model.encode_image(images).mean(dim=1).cpu().numpy() for images in batches])


@torch.no_grad()
def embed_texts(model: StraightforwardModel, batches: Iterable[tuple[Tensor, Tensor]]) -> np.ndarray:
    """(n, D): mean over the real tokens of every text."""
    model.eval()
    rows = []
    for ids, padding_mask in batches:
        weight = padding_mask.float().unsqueeze(-1)
        mean = (model.encode_text(ids, padding_mask) * weight).sum(dim=1) / weight.sum(dim=1)
        rows.append(mean.cpu().numpy())
    return np.concatenate(rows)
