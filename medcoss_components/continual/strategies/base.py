"""What a rehearsal strategy is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

if TYPE_CHECKING:
    from medcoss_components.engines.batches import StepBatch

Forward = Callable[..., torch.Tensor]
"""The student: ``forward(inputs, **arguments)``, wrapped for mixed precision and several processes."""


@dataclass(frozen=True)
class LossTerm:
    """A loss as a sum and what it is a sum of, so that ranks can be averaged exactly.

    ``total``: float32 scalar, sum over the units. ``count``: scalar tensor, number of units (removed patches, chosen
    tokens or compared features). ``kind``: "pretext", "distillation" or "replay".
    """

    kind: str
    total: torch.Tensor
    count: torch.Tensor


class Strategy:
    """How batches become losses; the engine knows nothing else about continual learning.

    ``uses_buffers``: whether rehearsal batches are drawn at all. ``needs_teacher``: whether a frozen copy of the
    starting weights is kept. ``single_stage``: whether all modalities are trained at once.
    """

    name: ClassVar[str]
    uses_buffers: ClassVar[bool] = True
    needs_teacher: ClassVar[bool] = False
    single_stage: ClassVar[bool] = False

    def current_loss(self, forward: Forward, batch: StepBatch) -> LossTerm:
        """Loss of a batch of the current modality: the pretext task."""
        return pretext_term("pretext", forward, batch)

    def rehearsal_loss(self, forward: Forward, teacher: torch.nn.Module | None, batch: StepBatch) -> LossTerm:
        """Loss of a batch from the buffer of an earlier modality."""
        raise NotImplementedError


def pretext_term(kind: str, forward: Forward, batch: StepBatch) -> LossTerm:
    """The pretext loss of a batch as a sum and its count."""
    model_inputs = batch.pretext()
    total, count = forward(model_inputs.inputs, reduction="sum", **model_inputs.arguments)
    return LossTerm(kind, total, torch.as_tensor(count, device=total.device))
