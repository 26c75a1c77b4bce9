"""Experience replay: the pretext task again on the buffers."""

from __future__ import annotations

import torch

from medcoss_components.continual.strategies.base import Forward, LossTerm, Strategy, pretext_term
from medcoss_components.engines.batches import StepBatch


class ExperienceReplay(Strategy):
    """Buffer batches are trained like current ones (the ER baseline of the MedCoSS paper)."""

    name = "experience_replay"

    def rehearsal_loss(self, forward: Forward, teacher: torch.nn.Module | None, batch: StepBatch) -> LossTerm:
        return pretext_term("replay", forward, batch)
