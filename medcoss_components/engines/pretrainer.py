"""The training engine of a stage: an Ignite engine whose step is short and whose handlers do the rest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import ignite.distributed as idist
import torch
from monai.engines import SupervisedTrainer
from monai.inferers import Inferer, SimpleInferer
from monai.utils.enums import CommonKeys

from medcoss_components.continual.distillation import frozen_teacher
from medcoss_components.continual.strategies import LossTerm, Strategy, get_strategy
from medcoss_components.data.sampler import PretrainingLoader
from medcoss_components.engines.batches import StepBatch, settings_for, step_batch
from medcoss_components.engines.optimisation import autocast, check_precision
from medcoss_components.errors import InputError
from medcoss_components.text.vocabulary import Vocabulary


def global_mean(term: LossTerm) -> tuple[torch.Tensor, torch.Tensor]:
    """Average a loss over all ranks: the scalar to differentiate on this rank, and the value to report.

    DistributedDataParallel averages gradients over ranks, so the local sum is multiplied by the number of ranks and
    divided by the
    units of all ranks: the gradient is that of the mean over the global batch, however the units are spread.
    """
    ranks = idist.get_world_size()
    if ranks == 1:
        mean = term.total / term.count.clamp(min=1)
        return mean, mean.detach()
    sums = idist.all_reduce(torch.stack([term.total.detach().double(), term.count.double()]))
    count = sums[1].clamp(min=1)
    return term.total * ranks / count.to(term.total.dtype), (sums[0] / count).float()


class Pretrainer(SupervisedTrainer):
    """Pre-training of one stage (METHOD sections 4 and 5).

    Each iteration takes one batch of one modality. A batch of the current modality gives the pretext loss, a batch
    from a buffer what the strategy makes of it. ``state.output`` is ``{"loss": float32 scalar tensor (mean over the
    global batch), "kind", "modality", "count", "ids"}``.

    Args:
        device: where to train.
        max_epochs: epochs of the stage.
        train_data_loader: a :class:`~medcoss_components.data.sampler.PretrainingLoader`.
        network: the pre-training model, holding the weights that the stage starts from.
        optimizer: see :func:`~medcoss_components.engines.optimisation.pretraining_optimizer`.
        strategy: name or object of a rehearsal strategy.
        vocabulary: needed when a batch holds text.
        seed: seed of the run.
        precision: "float32", "bf16" or "fp16".
        mask_ratio: share of removed patches.
        masked_word_share: share of words masked.
        augment: whether images are augmented.
        accumulation_steps: batches per optimiser step.
        max_gradient_norm: gradient norm is clipped to this; None does not clip.
        inferer: MONAI inferer that calls the network.
        train_handlers: further handlers.
    """

    def __init__(
        self,
        *,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: PretrainingLoader,
        network: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        strategy: str | Strategy = "medcoss",
        vocabulary: Vocabulary | None = None,
        seed: int = 0,
        precision: str = "bf16",
        mask_ratio: float = 0.75,
        masked_word_share: float = 0.15,
        augment: bool = True,
        accumulation_steps: int = 1,
        max_gradient_norm: float | None = None,
        inferer: Inferer | None = None,
        train_handlers: Sequence[Any] = (),
    ) -> None:
        device = torch.device(device)
        self.precision = check_precision(precision, device)
        self.strategy = get_strategy(strategy)
        self.model = network.to(device)
        self.teacher = self._make_teacher(train_data_loader)
        self.max_gradient_norm = max_gradient_norm
        self.modalities = train_data_loader.modalities
        self.settings = settings_for(
            network,
            seed=seed,
            mask_ratio=mask_ratio,
            masked_word_share=masked_word_share,
            vocabulary=vocabulary,
            augment=augment,
        )
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            train_data_loader=train_data_loader,
            network=wrap_for_ranks(self.model),
            optimizer=optimizer,
            loss_function=global_mean,
            inferer=SimpleInferer() if inferer is None else inferer,
            decollate=False,
            optim_set_to_none=True,
            accumulation_steps=accumulation_steps,
        )
        self.gradient_scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        self._register_handlers(list(train_handlers))  # last: they may ask for any attribute

    def _make_teacher(self, loader: PretrainingLoader) -> torch.nn.Module | None:
        has_buffers = len(loader.sources) > loader.current
        return frozen_teacher(self.model) if self.strategy.needs_teacher and has_buffers else None

    @property
    def total_iterations(self) -> int:
        return self.state.max_epochs * self.state.epoch_length

    def step_batch(self, batch: dict[str, Any]) -> StepBatch:
        """Draw and apply this step's randomness."""
        return step_batch(
            batch, modality=self.modalities[batch["modality"]], settings=self.settings, device=self.state.device
        )

    def _forward(self, inputs: torch.Tensor, **arguments: Any) -> Any:
        return self.inferer(inputs, self.network, **arguments)

    def _loss(self, batch: dict[str, Any]) -> LossTerm:
        prepared = self.step_batch(batch)
        with autocast(self.precision, self.state.device):
            if batch["rehearsal"]:
                return self.strategy.rehearsal_loss(self._forward, self.teacher, prepared)
            return self.strategy.current_loss(self._forward, prepared)

    def _accumulation_place(self) -> tuple[bool, bool, int]:
        """Whether this iteration opens and closes an accumulation window, and the window's length."""
        steps, length = self.accumulation_steps, self.state.epoch_length
        place = (self.state.iteration - 1) % length
        window = min(steps, length - place // steps * steps)
        return place % steps == 0, place % steps == window - 1, window

    @property
    def window_closed(self) -> bool:
        """Whether the optimiser has stepped after the last iteration, so that no gradient is pending."""
        return self._accumulation_place()[1]

    def _iteration(self, engine: SupervisedTrainer, batchdata: dict[str, Any]) -> dict[str, Any]:
        first, last, window = self._accumulation_place()
        self.network.train()
        if first:
            self.optimizer.zero_grad(set_to_none=True)
        term = self._loss(batchdata)
        loss, reported = self.loss_function(term)
        self.gradient_scaler.scale(loss / window).backward()
        if last:
            self._update()
        return {
            CommonKeys.LOSS: reported,
            "kind": term.kind,
            "modality": batchdata["modality"],
            "count": batchdata["count"],
            "ids": batchdata["ids"],
        }

    def _update(self) -> None:
        if self.max_gradient_norm is not None:
            self.gradient_scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.max_gradient_norm)
        self.gradient_scaler.step(self.optimizer)
        self.gradient_scaler.update()

    def resume_at(self, iteration: int) -> None:
        """Let the next :meth:`run` continue after ``iteration`` finished iterations, in the middle of an epoch if
        need be.

        Raises:
            InputError: when the stage has fewer iterations.
        """
        if not 0 <= iteration <= self.total_iterations:
            raise InputError(
                f"the checkpoint stands at iteration {iteration}, the stage has {self.total_iterations}; "
                "resume with the settings that it was started with"
            )
        self.state.iteration = iteration
        self.state.epoch, step = divmod(iteration, self.state.epoch_length)
        self.data_loader.set_position(self.state.epoch, step)

    def run(self) -> None:
        """Train until ``max_epochs``; nothing happens when they are done already."""
        if self.state.iteration < self.total_iterations:
            super().run()


def wrap_for_ranks(network: torch.nn.Module) -> torch.nn.Module:
    """DistributedDataParallel when there are several processes, else the network itself.

    A step uses one tokenizer and one head, so parameters without gradient are expected.
    """
    if idist.get_world_size() == 1:
        return network
    return idist.auto_model(network, find_unused_parameters=True)


def module_of(network: torch.nn.Module) -> torch.nn.Module:
    """The network inside a DistributedDataParallel wrapper."""
    return network.module if hasattr(network, "module") else network


def loss_terms(outputs: Iterable[dict[str, Any]]) -> dict[tuple[str, str], float]:
    """Mean loss per (modality, kind) of several outputs; transfers to the host once."""
    groups: dict[tuple[str, str], list[torch.Tensor]] = {}
    for output in outputs:
        groups.setdefault((output["modality"], output["kind"]), []).append(output[CommonKeys.LOSS])
    return {key: float(torch.stack(losses).mean()) for key, losses in groups.items()}
