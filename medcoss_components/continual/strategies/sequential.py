"""Sequential training: one modality after the other, nothing rehearsed."""

from __future__ import annotations

from medcoss_components.continual.strategies.base import Strategy


class Sequential(Strategy):
    """The lower bound of continual learning: earlier modalities are not seen again."""

    name = "sequential"
    uses_buffers = False
