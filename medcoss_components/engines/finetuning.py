"""Fine-tuning of a task network: classification, segmentation or detection, decided by data, loss and network alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from medcoss_components.continual.strategies import LossTerm
from medcoss_components.data.transfer import to_device
from medcoss_components.engines.batches import real_length
from medcoss_components.engines.optimisation import autocast
from medcoss_components.engines.task_losses import as_float32, task_of
from medcoss_components.engines.trainer import ResumableTrainer
from medcoss_components.randomness import generator_for

if TYPE_CHECKING:
    from medcoss_components.data.task_inputs import TaskTransform


class FineTuner(ResumableTrainer):
    """Supervised training of a task network (METHOD section 8).

    Everything random in a step follows from (seed, epoch, step) for the whole global batch, so a resumed run and a run
    on several ranks see the same draws. ``state.output`` is that of
    :class:`~medcoss_components.engines.trainer.ResumableTrainer`; ``kind`` is "classification", "segmentation" or
    "detection".

    Args:
        train_data_loader: a :class:`~medcoss_components.data.task_loader.ClassificationLoader` or
            :class:`~medcoss_components.data.task_loader.SegmentationLoader` or one of detection.
        network: the task network, holding the weights that the run starts from.
        loss_function: ``(outputs, targets) ->`` a :class:`~medcoss_components.continual.strategies.LossTerm` or a
            scalar mean over the samples (any loss of torch or MONAI).
        preprocessing: turns a stored batch into inputs and targets, see
            :class:`~medcoss_components.data.task_inputs.TaskTransform`.
        seed: seed of the run.
        max_gradient_norm: gradient norm is clipped to this; None does not clip.
        options: those of :class:`~medcoss_components.engines.trainer.ResumableTrainer`, among them ``device``,
            ``max_epochs`` and ``optimizer``, see :func:`~medcoss_components.engines.optimisation.finetuning_optimizer`.
            The loss is computed in float32 in every precision.
    """

    partly_used = False

    def __init__(
        self,
        *,
        train_data_loader: Any,
        network: torch.nn.Module,
        loss_function: Callable[[Any, Any], LossTerm | torch.Tensor],
        preprocessing: TaskTransform,
        seed: int = 0,
        max_gradient_norm: float | None = 12.0,
        **options: Any,
    ) -> None:
        self.preprocessing, self.seed = preprocessing, seed
        self.kind = task_of(train_data_loader.dataset)
        self.depth = _branches(network)
        super().__init__(
            train_data_loader=train_data_loader,
            network=network,
            loss_function=loss_function,
            max_gradient_norm=max_gradient_norm,
            **options,
        )

    def depth_noise(self, batch: dict[str, Any]) -> torch.Tensor:
        """(own, 2 * depth) uniform draws for stochastic depth, the own rows of those of the global batch."""
        generator = generator_for(self.seed, "depth", batch["epoch"], batch["step"])
        noise = torch.rand(batch["count"], 2 * self.depth, generator=generator)
        return to_device(noise[batch["rows"][: batch["own"]]], self.state.device)

    def loss_term(self, batch: dict[str, Any]) -> LossTerm:
        inputs, targets = self.preprocessing.training(batch, self.state.device)
        inputs = without_padding(inputs, self.model)
        arguments = {"depth_noise": self.depth_noise(batch)} if self.depth else {}
        with autocast(self.precision, self.state.device):
            outputs = self._forward(inputs, **arguments)
        return self._as_term(self.loss_function(as_float32(outputs), targets), len(inputs))

    def _as_term(self, loss: LossTerm | torch.Tensor, count: int) -> LossTerm:
        if isinstance(loss, LossTerm):
            return loss
        return LossTerm(self.kind, loss * count, torch.tensor(float(count), device=loss.device))


def without_padding(inputs: torch.Tensor, network: torch.nn.Module) -> torch.Tensor:
    """Ids (B, L) without the columns behind the longest text, which no token reads; images as they are."""
    if inputs.ndim != 2:
        return inputs
    return inputs[:, : real_length(inputs != network.pad_id)]


def _branches(network: torch.nn.Module) -> int:
    """Encoder blocks of a network that takes ``depth_noise``; 0 for any other."""
    takes = "depth_noise" in inspect.signature(network.forward).parameters
    return network.sizes.depth if takes else 0
