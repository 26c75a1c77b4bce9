"""MedCoSS: intra-modal mixup and feature distillation on the buffers; and what the method is without each part."""

from __future__ import annotations

import torch

from medcoss_components.continual.distillation import distillation_loss
from medcoss_components.continual.strategies.base import Forward, LossTerm, Strategy
from medcoss_components.engines.batches import StepBatch
from medcoss_components.errors import InputError


class MedCoSS(Strategy):
    """Mean squared difference between student and frozen teacher on mixed buffer samples (MedCoSS, arXiv 2311.17597).

    Both see the same mixed samples with the same patches removed; text is not dropped. The teacher runs in eval mode
    without gradient.
    """

    name = "medcoss"
    needs_teacher = True

    def rehearsal_loss(self, forward: Forward, teacher: torch.nn.Module | None, batch: StepBatch) -> LossTerm:
        if teacher is None:
            raise InputError(
                f"strategy {self.name} needs a teacher: a frozen copy of the weights that the stage starts from"
            )
        mixed = batch.mixed(mixup=self.mixup)
        own_depth = {"depth_noise": batch.depth_noise("teacher depth")} if self.teacher_mode == "train" else {}
        with torch.no_grad():
            target = teacher(mixed.inputs, **{**mixed.arguments, **own_depth})
        features = forward(mixed.inputs, **mixed.arguments)
        total, count = distillation_loss(features, target, token_mask=batch.token_mask(mixed), reduction="sum")
        return LossTerm("distillation", total, torch.as_tensor(count, device=total.device))
