"""What a rehearsal strategy is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from medcoss_components.continual.distillation import TeacherMode
from medcoss_components.continual.exemplars import ExemplarRule

if TYPE_CHECKING:
    from medcoss_components.engines.batches import StepBatch
    from medcoss_components.engines.stage import PretrainingStage

Forward = Callable[..., Any]
"""The student: ``forward(inputs, **arguments)``, wrapped for mixed precision and several processes."""


@dataclass(frozen=True)
class LossTerm:
    """A loss as a sum and what it is a sum of, so that ranks can be averaged exactly.

    ``total``: float32 scalar, sum over the units. ``count``: scalar tensor, number of units (removed patches, chosen
    tokens or compared features; 1 for a penalty on the weights, which every rank computes alike). ``kind``: "pretext",
    "distillation", "replay" or "penalty". ``added``: further terms of the same step, of other kinds and with units of
    their own; the loss is the sum of all means.
    """

    kind: str
    total: torch.Tensor
    count: torch.Tensor
    added: tuple[LossTerm, ...] = ()


class Strategy:
    """How batches become losses; the engine knows nothing else about continual learning.

    An object belongs to one stage. The engine calls :meth:`start` once, before anything is trained or resumed, then a
    loss for every batch, then :meth:`finish` when the weights are trained.

    Attributes:
        uses_buffers: whether rehearsal batches are drawn at all.
        needs_teacher: whether a frozen copy of the starting weights is kept for the rehearsal batches.
        single_stage: whether all modalities are trained at once.
        mixup: whether rehearsal samples are mixed inside their modality.
        teacher_mode: "eval", or "train" for a teacher with stochastic depth.
        exemplars: how the samples of a buffer are chosen: "kmeans" or "random".
        buffer_ratio: size of the buffer as a share of the samples; None: the stage's setting.
        reverses_stages: whether a chain takes its stages from the last to the first.
        options: settings that the constructor takes by name.
        companion: a module that is trained beside the network in this stage, resumes with it and is then thrown away.
    """

    name: ClassVar[str]
    uses_buffers: ClassVar[bool] = True
    needs_teacher: ClassVar[bool] = False
    single_stage: ClassVar[bool] = False
    mixup: ClassVar[bool] = True
    teacher_mode: ClassVar[TeacherMode] = "eval"
    exemplars: ClassVar[ExemplarRule] = "kmeans"
    buffer_ratio: ClassVar[float | None] = None
    reverses_stages: ClassVar[bool] = False
    options: ClassVar[tuple[str, ...]] = ()
    companion: torch.nn.Module | None = None

    def start(self, network: torch.nn.Module, *, init_weights: str | Path | None = None, seed: int = 0) -> None:
        """Take what a stage needs of the weights that it starts from.

        Args:
            network: holds these weights, on its device.
            init_weights: the stage folder or file that they were read from; None: fresh ones.
            seed: seed of the run.
        """

    def whole_network(self, network: torch.nn.Module) -> torch.nn.Module:
        """The one module that a step calls: the network, or a module that holds it and the companion."""
        return network

    def identity(self) -> dict[str, Any]:
        """What decides a stage's result beside its settings and first weights, as JSON values."""
        return {}

    def current_loss(self, forward: Forward, batch: StepBatch) -> LossTerm:
        """Loss of a batch of the current modality: the pretext task."""
        return pretext_term("pretext", forward, batch)

    def rehearsal_loss(self, forward: Forward, teacher: torch.nn.Module | None, batch: StepBatch) -> LossTerm:
        """Loss of a batch from the buffer of an earlier modality."""
        raise NotImplementedError

    def finish(self, stage: PretrainingStage) -> None:
        """Write what the next stage needs beside model.pt.

        Every process calls it with the trained weights in ``stage.model``; the first one writes into ``stage.folder``.
        A stage that is killed here calls it again.
        """


def pretext_term(kind: str, forward: Forward, batch: StepBatch) -> LossTerm:
    """The pretext loss of a batch as a sum and its count."""
    model_inputs = batch.pretext()
    total, count = forward(model_inputs.inputs, reduction="sum", **model_inputs.arguments)
    return LossTerm(kind, total, torch.as_tensor(count, device=total.device))
