"""The training engine of a stage: an Ignite engine whose step is short and whose handlers do the rest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from medcoss_components.continual.distillation import frozen_teacher
from medcoss_components.continual.strategies import LossTerm, Strategy, get_strategy
from medcoss_components.data.sampler import PretrainingLoader
from medcoss_components.engines.batches import StepBatch, settings_for, step_batch
from medcoss_components.engines.optimisation import autocast, decay_groups
from medcoss_components.engines.trainer import ResumableTrainer
from medcoss_components.text.vocabulary import Vocabulary


class Pretrainer(ResumableTrainer):
    """Pre-training of one stage (METHOD sections 4 and 5).

    Each iteration takes one batch of one modality. A batch of the current modality gives the pretext loss, a batch
    from a buffer what the strategy makes of it. ``state.output`` is ``{"loss": float32 scalar tensor (mean over the
    global batch), "kind", "modality", "count", "ids"}``.

    Args:
        device: where to train.
        train_data_loader: a :class:`~medcoss_components.data.sampler.PretrainingLoader`.
        network: the pre-training model, holding the weights that the stage starts from.
        optimizer: see :func:`~medcoss_components.engines.optimisation.pretraining_optimizer`.
        strategy: name or object of a rehearsal strategy.
        strategy_options: settings of strategies by name, such as ``ewc_weight``; None for a strategy's own value.
        init_weights: where the network's weights were read from, for strategies that find more there; None: from
            scratch.
        vocabulary: needed when a batch holds text.
        seed: seed of the run.
        mask_ratio: share of removed patches.
        masked_word_share: share of words masked.
        augment: whether images are augmented.
        options: those of :class:`~medcoss_components.engines.trainer.ResumableTrainer`, ``max_epochs`` among them.
    """

    def __init__(
        self,
        *,
        device: torch.device | str,
        train_data_loader: PretrainingLoader,
        network: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        strategy: str | Strategy = "medcoss",
        strategy_options: Mapping[str, Any] | None = None,
        init_weights: str | Path | None = None,
        vocabulary: Vocabulary | None = None,
        seed: int = 0,
        mask_ratio: float = 0.75,
        masked_word_share: float = 0.15,
        augment: bool = True,
        **options: Any,
    ) -> None:
        self.strategy = get_strategy(strategy, strategy_options)
        self.strategy.start(network.to(device), init_weights=init_weights, seed=seed)
        _add_parameters(optimizer, self.strategy.companion)
        self.teacher = self._make_teacher(network, train_data_loader)
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
            device=device, train_data_loader=train_data_loader, network=network, optimizer=optimizer, **options
        )

    def _make_teacher(self, network: torch.nn.Module, loader: PretrainingLoader) -> torch.nn.Module | None:
        if not self.strategy.needs_teacher or len(loader.sources) == loader.current:
            return None
        return frozen_teacher(network, mode=self.strategy.teacher_mode)

    def whole_network(self) -> torch.nn.Module:
        """The network with the module that the strategy trains beside it, if it does."""
        return self.strategy.whole_network(self.model)

    def step_batch(self, batch: dict[str, Any]) -> StepBatch:
        """Draw and apply this step's randomness."""
        return step_batch(
            batch, modality=self.modalities[batch["modality"]], settings=self.settings, device=self.state.device
        )

    def loss_term(self, batch: dict[str, Any]) -> LossTerm:
        prepared = self.step_batch(batch)
        with autocast(self.precision, self.state.device):
            if batch["rehearsal"]:
                return self.strategy.rehearsal_loss(self._forward, self.teacher, prepared)
            return self.strategy.current_loss(self._forward, prepared)


def _add_parameters(optimizer: torch.optim.Optimizer, companion: torch.nn.Module | None) -> None:
    """Let the optimiser train a companion too: its matrices decay as those of the network, the rest does not."""
    if companion is None:
        return
    decay = max(group.get("weight_decay", 0.0) for group in optimizer.param_groups)
    for group in decay_groups(companion, decay):
        optimizer.add_param_group(group)
