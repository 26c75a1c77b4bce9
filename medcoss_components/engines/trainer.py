"""What pre-training and fine-tuning share: a step that accumulates, clips and scales, and that resumes anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Any

import ignite.distributed as idist
import torch
from monai.engines import SupervisedTrainer
from monai.inferers import Inferer, SimpleInferer
from monai.utils.enums import CommonKeys

from medcoss_components.continual.strategies import LossTerm
from medcoss_components.data.transfer import pin_for
from medcoss_components.engines.allocation import keep_freed_memory
from medcoss_components.engines.optimisation import check_precision
from medcoss_components.engines.stepping import StepInBackward
from medcoss_components.errors import InputError


def global_mean(term: LossTerm) -> tuple[torch.Tensor, torch.Tensor]:
    """Average a loss over all ranks: the scalar to differentiate on this rank, and the value to report.

    DistributedDataParallel averages gradients over ranks, so the local sum is multiplied by the number of ranks and
    divided by the units of all ranks: the gradient is that of the mean over the global batch, however the units are
    spread.
    """
    ranks = idist.get_world_size()
    if ranks == 1:
        mean = term.total / term.count.clamp(min=1)
        return mean, mean.detach()
    sums = idist.all_reduce(torch.stack([term.total.detach().double(), term.count.double()]))
    count = sums[1].clamp(min=1)
    return term.total * ranks / count.to(term.total.dtype), (sums[0] / count).float()


def added_means(term: LossTerm) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The mean of a term plus the means of those added to it (a penalty has one unit on every rank).

    Returns:
        (scalar to differentiate on this rank, kind -> value to report); see :func:`global_mean`.
    """
    means = {part.kind: global_mean(part) for part in (term, *term.added)}
    loss = means[term.kind][0]
    for part in term.added:
        loss = loss + means[part.kind][0]
    return loss, {kind: reported for kind, (_, reported) in means.items()}


class ResumableTrainer(SupervisedTrainer):
    """A MONAI trainer whose step is ``loss_term`` of a batch, and whose handlers do the rest.

    A subclass says what the loss of a batch is; ``state.output`` is ``{"loss": float32 scalar tensor (mean over the
    global batch), "kind", "modality", "count", "ids"}``.

    Args:
        device: where to train.
        max_epochs: epochs of the run.
        train_data_loader: a loader with ``set_position(epoch, step)``, such as
            :class:`~medcoss_components.data.sampler.PretrainingLoader`.
        network: the network to train, holding the weights that the run starts from.
        optimizer: its optimiser.
        loss_function: what :meth:`loss_term` makes of outputs and targets.
        precision: "float32", "bf16" or "fp16".
        accumulation_steps: batches per optimiser step.
        max_gradient_norm: gradient norm is clipped to this; None does not clip.
        inferer: MONAI inferer that calls the network.
        train_handlers: further handlers.
    """

    partly_used = True  # a step of pre-training uses one tokenizer and one head of several

    def __init__(
        self,
        *,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: Any,
        network: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_function: Any = global_mean,
        precision: str = "bf16",
        accumulation_steps: int = 1,
        max_gradient_norm: float | None = None,
        inferer: Inferer | None = None,
        train_handlers: Sequence[Any] = (),
    ) -> None:
        device = torch.device(device)
        self.precision = check_precision(precision, device)
        keep_freed_memory(device)
        pin_for(train_data_loader, device)
        self.model = network.to(device)
        self.max_gradient_norm = max_gradient_norm
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            train_data_loader=train_data_loader,
            network=wrap_for_ranks(self.whole_network().to(device), partly_used=self.partly_used),
            optimizer=optimizer,
            loss_function=loss_function,
            inferer=SimpleInferer() if inferer is None else inferer,
            decollate=False,
            optim_set_to_none=True,
            accumulation_steps=accumulation_steps,
        )
        self.gradient_scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        self.early_steps = StepInBackward(self.optimizer) if self._may_step_early else None
        self._register_handlers(list(train_handlers))  # last: they may ask for any attribute

    @property
    def _may_step_early(self) -> bool:
        """Whether nothing looks at the gradients of the whole network, of several batches or of several ranks."""
        alone = self.max_gradient_norm is None and self.accumulation_steps == 1 and idist.get_world_size() == 1
        return alone and not self.gradient_scaler.is_enabled()

    def whole_network(self) -> torch.nn.Module:
        """What a step calls and trains: the network, in a subclass perhaps with a module beside it that is not kept.

        One module, since ``DistributedDataParallel`` only sees what passes through one ``forward``.
        """
        return self.model

    def loss_term(self, batch: dict[str, Any]) -> LossTerm:
        """The loss of this rank's share of a batch, as a sum and what it is a sum of."""
        raise NotImplementedError

    @property
    def total_iterations(self) -> int:
        return self.state.max_epochs * self.state.epoch_length

    def _forward(self, inputs: torch.Tensor, **arguments: Any) -> Any:
        return self.inferer(inputs, self.network, **arguments)

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
        term = self.loss_term(batchdata)
        loss, reported = added_means(term)
        if self.early_steps is not None:
            self.early_steps.backward(loss)
        else:
            self.gradient_scaler.scale(loss / window).backward()
        if last:
            self._update()
        return {
            CommonKeys.LOSS: reduce(torch.add, reported.values()),
            "kind": term.kind,
            "parts": reported,
            "modality": batchdata["modality"],
            "count": batchdata["count"],
            "ids": batchdata["ids"],
        }

    def _update(self) -> None:
        """Let the optimiser step, where it has not done so in the backward pass."""
        if self.early_steps is not None:
            return
        if self.max_gradient_norm is not None:
            self.gradient_scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.max_gradient_norm)
        self.gradient_scaler.step(self.optimizer)
        self.gradient_scaler.update()

    def resume_at(self, iteration: int) -> None:
        """Let the next :meth:`run` continue after ``iteration`` finished iterations, in the middle of an epoch if
        need be.

        Raises:
            InputError: when the run has fewer iterations.
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


def wrap_for_ranks(network: torch.nn.Module, *, partly_used: bool = True) -> torch.nn.Module:
    """DistributedDataParallel when there are several processes, else the network itself.

    Args:
        network: the network.
        partly_used: whether a step may leave parameters without gradient.
    """
    if idist.get_world_size() == 1:
        return network
    return idist.auto_model(network, find_unused_parameters=partly_used)


def module_of(network: torch.nn.Module) -> torch.nn.Module:
    """The network inside a DistributedDataParallel wrapper."""
    return network.module if hasattr(network, "module") else network


def loss_terms(outputs: Iterable[dict[str, Any]]) -> dict[tuple[str, str], float]:
    """Mean loss per (modality, kind) of several outputs, the parts of a sum apart; transfers to the host once."""
    groups: dict[tuple[str, str], list[torch.Tensor]] = {}
    for output in outputs:
        for kind, loss in (output.get("parts") or {output["kind"]: output[CommonKeys.LOSS]}).items():
            groups.setdefault((output["modality"], kind), []).append(loss)
    return {key: float(torch.stack(losses).mean()) for key, losses in groups.items()}
