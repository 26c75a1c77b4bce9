"""Joint training: all modalities in one stage."""

from __future__ import annotations

from medcoss_components.continual.strategies.base import Strategy


class Joint(Strategy):
    """The upper bound that continual learning is compared with: every modality's data at once, one stage, no
    buffers."""

    name = "joint"
    uses_buffers = False
    single_stage = True
