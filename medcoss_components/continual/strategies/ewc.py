"""Elastic weight consolidation: weights that mattered to earlier modalities are held near where they were."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from medcoss_components.continual.strategies.base import Forward, LossTerm, Strategy
from medcoss_components.data.sampler import BatchPlan, BatchReader, rank_rows
from medcoss_components.engines.batches import ModelInputs, StepBatch, step_batch
from medcoss_components.errors import InputError
from medcoss_components.files import file_beside
from medcoss_components.networks.pretraining import ENCODER_PREFIXES
from medcoss_components.progress import progress
from medcoss_components.randomness import numpy_generator_for
from medcoss_components.weights import hash_weights, read_weights, save_weights, some_names

if TYPE_CHECKING:
    from medcoss_components.engines.stage import PretrainingStage

logger = logging.getLogger(__name__)

IMPORTANCE_NAME = "importance.safetensors"
SAMPLES = 1024
EWC_WEIGHT = 1e4
"""Chosen by a short search: demo preset, 2,500 updates on texts, then 160 on X-rays, weights of 1e2 to 1e7. The pretext
loss of X-rays ended at 0.912 to 0.916 for all of them and for sequential training; of those tried this is the smallest
that kept 95 % of the ten nearest neighbours of each text (sequential training: 53 %)."""
SHARED = "encoder."
IMAGES = (SHARED, "image_embedding.class_token", "image_embedding.norm.")
USED_BY_DIMENSION = {
    1: (SHARED, "text_embedding."),
    2: (*IMAGES, "image_embedding.tokenizers.2d."),
    3: (*IMAGES, "image_embedding.tokenizers.3d."),
}
"""Dimension of a modality -> beginnings of the names of the carried parameters that its batches train. The others get
no gradient at all and stay where they are, so they need no penalty."""


@dataclass(frozen=True)
class Held:
    """One parameter, where it was when the stage started, and how much that mattered."""

    name: str
    parameter: nn.Parameter
    anchor: Tensor
    importance: Tensor


class EWC(Strategy):
    """Elastic weight consolidation (EWC: Kirkpatrick et al., PNAS 2017, arXiv 1612.00796), in its online form.

    L = pretext loss + ewc_weight / 2 * sum over i of F_i * (w_i - w*_i)^2. w* are the weights that the stage starts
    from. F is the running sum, over all earlier stages, of the diagonal of their Fisher information; one F and one w*
    are kept, not one pair for each stage (online EWC: Schwarz et al., Progress & Compress, ICML 2018, arXiv 1805.06370,
    here without its decay of old stages, since none is to be forgotten). So the cost does not grow with the number of
    modalities. Each stage's diagonal is scaled to sum 1 over the encoder's blocks, which all modalities share:
    losses of another scale, such as those of texts and of images, then count alike, and the penalty is ``ewc_weight``
    / 2 times a weighted mean of squared changes for each earlier stage, whatever the size of the network.

    Only what is carried from stage to stage is held: encoder, tokenizers and class token. Decoder and head start afresh
    in every stage.

    Args:
        ewc_weight: see above, at least 0.
        samples: at most so many samples of a stage are looked at for its importance.

    Raises:
        InputError: when ``ewc_weight`` is below 0 or not finite, or ``samples`` is below 1.
    """

    name = "ewc"
    uses_buffers = False
    options = ("ewc_weight",)

    def __init__(self, *, ewc_weight: float = EWC_WEIGHT, samples: int = SAMPLES) -> None:
        if not 0 <= ewc_weight < math.inf:
            raise InputError(f"ewc_weight must be a finite number, at least 0, received {ewc_weight}")
        if samples < 1:
            raise InputError(f"samples must be at least 1, received {samples}")
        self.weight, self.samples = ewc_weight, samples
        self.importance: dict[str, Tensor] = {}
        self.held: list[Held] = []

    def start(self, network: nn.Module, *, init_weights: str | Path | None = None, seed: int = 0) -> None:
        path = file_beside(init_weights, IMPORTANCE_NAME)
        if path is None:
            if init_weights:
                logger.warning(
                    "%s: no %s stands beside these weights, so that nothing holds them (EWC penalty 0). Only a stage "
                    "trained with strategy ewc writes it.",
                    init_weights,
                    IMPORTANCE_NAME,
                )
            return
        self.importance = read_weights(path)
        self.held = _held(network, self.importance, path)

    def identity(self) -> dict[str, Any]:
        return {"importance": hash_weights(self.importance)} if self.importance else {}

    def current_loss(self, forward: Forward, batch: StepBatch) -> LossTerm:
        term = super().current_loss(forward, batch)
        used = USED_BY_DIMENSION[batch.modality.dimension]
        held = [entry for entry in self.held if entry.name.startswith(used)]
        if not held:
            return term
        penalty = self.weight / 2 * consolidation(held)
        return replace(term, added=(LossTerm("penalty", penalty, penalty.new_ones(())),))

    def finish(self, stage: PretrainingStage) -> None:
        """Write importance.safetensors: what this stage's modality needs, added to what the earlier ones need."""
        own = normalised(_over_ranks(stage, self.samples))
        if stage.main:
            total = {name: value.cpu() + self.importance.get(name, 0.0) for name, value in own.items()}
            save_weights(stage.folder / IMPORTANCE_NAME, total)


def consolidation(held: Iterable[Held]) -> Tensor:
    """sum over i of F_i * (w_i - w*_i)^2, a float32 scalar."""
    parts = [(entry.importance * (entry.parameter - entry.anchor).square()).sum() for entry in held]
    return torch.stack(parts).sum()


def squared_gradients(model: nn.Module, samples: Iterable[ModelInputs]) -> dict[str, Tensor]:
    """The sum, over samples, of the squared gradient of each one's own loss, for every carried parameter.

    Divided by the number of samples it is the diagonal of the empirical Fisher information: gradients of the true
    targets' loss, squared sample by sample. (Squares of a batch's mean gradient would nearly cancel where the weights
    are trained well.)

    Args:
        model: ``model(inputs, **arguments)`` gives the mean pretext loss.
        samples: inputs of one sample each.

    Returns:
        name -> float32, the parameter's shape; 0 where a parameter has no part in the loss.
    """
    parameters = {name: value for name, value in model.named_parameters() if name.startswith(ENCODER_PREFIXES)}
    sums = {name: torch.zeros_like(value) for name, value in parameters.items()}
    for given in samples:
        loss = model(given.inputs, **given.arguments)
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for total, gradient in zip(sums.values(), gradients, strict=True):
            if gradient is not None:
                total.addcmul_(gradient, gradient)
    return sums


def normalised(importance: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same scaled so that the encoder's blocks sum to 1; all zeros stay zeros."""
    total = sum((value.double().sum() for name, value in importance.items() if name.startswith(SHARED)), 0.0)
    scale = 1.0 / float(total) if float(total) > 0 else 0.0
    return {name: value * scale for name, value in importance.items()}


def _over_ranks(stage: PretrainingStage, count: int) -> dict[str, Tensor]:
    """:func:`squared_gradients` of at most ``count`` samples of a stage, each process its share of them."""
    import ignite.distributed as idist  # strategies are read where torch alone is installed, too

    was_training = stage.model.training
    stage.model.eval()  # no stochastic depth
    sums = squared_gradients(stage.model, _samples(stage, count))
    stage.model.train(was_training)
    if idist.get_world_size() > 1:
        sums = {name: idist.all_reduce(value) for name, value in sums.items()}
    return sums


def _samples(stage: PretrainingStage, count: int) -> Iterator[ModelInputs]:
    """Pretext inputs of samples drawn without replacement, one at a time, not augmented, with masks of their own."""
    import ignite.distributed as idist

    trainer, source = stage.trainer, stage.dataset
    settings = replace(trainer.settings, augment=False)
    generator = numpy_generator_for(settings.seed, "importance")
    chosen = generator.choice(len(source), min(count, len(source)), replace=False)
    reader = BatchReader([source], current=1, seed=settings.seed)
    own = rank_rows(len(chosen), idist.get_rank(), idist.get_world_size())
    for place in progress(own, description=f"importance {source.modality.name}", total=len(own), unit="sample"):
        # the epoch after the last one: masks that training has not drawn
        plan = BatchPlan(0, trainer.state.max_epochs, int(place), chosen[place : place + 1])
        batch = step_batch(reader[plan], modality=source.modality, settings=settings, device=trainer.state.device)
        yield batch.pretext()


def _held(network: nn.Module, importance: Mapping[str, Tensor], path: Path) -> list[Held]:
    """The parameters that matter, with their values as they are now."""
    parameters = dict(network.named_parameters())
    wrong = [
        name for name, value in importance.items() if name not in parameters or parameters[name].shape != value.shape
    ]
    if wrong:
        raise InputError(
            f"{path}: {some_names(wrong)} is no parameter of this network, or has another shape there. Use the preset, "
            "input sizes and vocabulary that it was written with."
        )
    return [
        Held(name, parameters[name], parameters[name].detach().clone(), value.to(parameters[name].device))
        for name, value in importance.items()
        if bool(value.any())
    ]
