"""CaSSLe: the features of the previous encoder are predicted from those of the current one, on current data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medcoss_components.continual.distillation import distillation_loss, frozen_teacher
from medcoss_components.continual.strategies.base import Forward, LossTerm, Strategy
from medcoss_components.engines.batches import ModelInputs, StepBatch
from medcoss_components.networks.initialisation import initialise
from medcoss_components.randomness import generator_for

HIDDEN_RATIO = 4
ONLY_PRETEXT = ("task", "labels")


class Predictor(nn.Module):
    """g of CaSSLe, token by token: Linear, LayerNorm, GELU, Linear.

    The paper has BatchNorm and ReLU, on one vector an image. Here a batch is tokens of texts, images or volumes, whose
    number differs from step to step and from rank to rank; LayerNorm needs no statistics over them, so one process and
    several compute the same and a resumed run has nothing else to restore.

    Args:
        width: D, channels of the features.
        hidden: hidden channels.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, features: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return self.layers(features)


class PredictingNetwork(nn.Module):
    """A pre-training model and the predictor on its features, as one module with one forward pass.

    Args:
        model: the network.
        predictor: see :class:`Predictor`.
    """

    def __init__(self, model: nn.Module, predictor: Predictor) -> None:
        super().__init__()
        self.model, self.predictor = model, predictor

    def forward(self, inputs: Tensor, *, reduction: str, **arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The pretext loss, and what the predictor makes of the encoder's output on the way.

        Returns:
            Sum and count of the pretext loss, as ``model`` gives them; predictions (B, N, D).
        """
        seen: list[Tensor] = []
        reading = self.model.encoder.register_forward_hook(lambda module, given, features: seen.append(features))
        try:
            total, count = self.model(inputs, reduction=reduction, **arguments)
        finally:
            reading.remove()
        return total, count, self.predictor(seen[0])


class CaSSLe(Strategy):
    """CaSSLe (Fini et al., Self-Supervised Models are Continual Learners, CVPR 2022), carried over to masked modelling.

    L = pretext loss + mean((g(f(x)) - f_previous(x))^2) over the visible tokens, with the same masked input x for both.
    x is data of the current modality; nothing of the earlier ones is kept. A predictor g between the two lets the new
    features hold more than the old ones. Without weights to start from there is no previous encoder, so that the first
    stage of a chain is trained by the pretext task alone.
    """

    name = "cassle"
    uses_buffers = False

    def __init__(self) -> None:
        self.teacher: nn.Module | None = None

    def start(self, network: nn.Module, *, init_weights: str | Path | None = None, seed: int = 0) -> None:
        if not init_weights:
            return
        self.teacher = frozen_teacher(network)
        width: int = network.sizes.width
        self.companion = Predictor(width, HIDDEN_RATIO * width)
        initialise(self.companion, generator_for(seed, "predictor"))
        self.companion.to(next(network.parameters()).device)

    def whole_network(self, network: nn.Module) -> nn.Module:
        return network if self.companion is None else PredictingNetwork(network, self.companion)

    def current_loss(self, forward: Forward, batch: StepBatch) -> LossTerm:
        if self.teacher is None:
            return super().current_loss(forward, batch)
        given = batch.pretext()
        total, count, predicted = forward(given.inputs, reduction="sum", **given.arguments)
        target = _features(self.teacher, given)
        squares, tokens = distillation_loss(predicted, target, token_mask=batch.token_mask(given), reduction="sum")
        previous = LossTerm("distillation", squares, torch.as_tensor(tokens, device=squares.device))
        return LossTerm("pretext", total, torch.as_tensor(count, device=total.device), added=(previous,))


@torch.no_grad()
def _features(teacher: nn.Module, given: ModelInputs) -> Tensor:
    """Features (B, N, D) of the previous encoder for what the pretext task reads."""
    arguments = {name: value for name, value in given.arguments.items() if name not in ONLY_PRETEXT}
    return teacher(given.inputs, task="features", padding_features=False, **arguments)
