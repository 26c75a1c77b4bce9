"""The loader and the step of ``Pretrainer`` without MONAI and Ignite, for machines that have torch alone.

Everything that takes time is the package's own: plans, reader, conversion, augmentation, masking, network, losses,
strategy and optimiser.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from medcoss_components.continual.distillation import frozen_teacher
from medcoss_components.continual.strategies import get_strategy
from medcoss_components.data.modalities import Modality
from medcoss_components.data.prefetch import read_batches
from medcoss_components.data.sampler import BatchReader, BatchSampler
from medcoss_components.data.transfer import pin_for
from medcoss_components.engines.batches import StepBatch, settings_for, step_batch
from medcoss_components.engines.optimisation import autocast
from medcoss_components.engines.stepping import StepInBackward


class LeanLoader:
    """Stands in for ``PretrainingLoader`` in one process."""

    def __init__(
        self, dataset: Any, *, buffers: Sequence[Any] = (), batch_size: int, seed: int = 0, num_workers: int = 0
    ) -> None:
        self.sources, self.current, self.num_workers = [dataset, *buffers], 1, num_workers
        sizes, full = tuple(len(source) for source in self.sources), frozenset(range(1, len(self.sources)))
        self.sampler = BatchSampler(sizes=sizes, batch_size=batch_size, seed=seed, full_batches=full)
        self.reader = BatchReader(self.sources, current=1, seed=seed)
        self.epoch, self.pin_memory = 0, False

    @property
    def modalities(self) -> dict[str, Modality]:
        return {source.modality.name: source.modality for source in self.sources}

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        plans = self.sampler.plans(self.epoch)
        yield from read_batches(self.reader.__getitem__, plans, threads=self.num_workers, pin=self.pin_memory)
        self.epoch += 1


class LeanTrainer:
    """Stands in for ``Pretrainer``: the same step, without events."""

    def __init__(
        self,
        *,
        device: str,
        max_epochs: int,
        train_data_loader: LeanLoader,
        network: Any,
        optimizer: torch.optim.Optimizer,
        vocabulary: Any = None,
        precision: str = "bf16",
        seed: int = 0,
    ) -> None:
        self.state = SimpleNamespace(iteration=0, device=torch.device(device))
        self.network, self.optimizer, self.precision = network, optimizer, precision
        pin_for(train_data_loader, self.state.device)
        self.early_steps = StepInBackward(optimizer)
        self.strategy, self.modalities = get_strategy("medcoss"), train_data_loader.modalities
        self.settings = settings_for(
            network, seed=seed, mask_ratio=0.75, masked_word_share=0.15, vocabulary=vocabulary, augment=True
        )
        self.teacher = frozen_teacher(network) if len(train_data_loader.sources) > 1 else None

    def step_batch(self, batch: dict[str, Any]) -> StepBatch:
        modality = self.modalities[batch["modality"]]
        return step_batch(batch, modality=modality, settings=self.settings, device=self.state.device)

    def _iteration(self, engine: Any, batch: dict[str, Any]) -> dict[str, Any]:
        self.network.train()
        prepared = self.step_batch(batch)
        with autocast(self.precision, self.state.device):
            if batch["rehearsal"]:
                term = self.strategy.rehearsal_loss(self.network, self.teacher, prepared)
            else:
                term = self.strategy.current_loss(self.network, prepared)
        loss = term.total / term.count.clamp(min=1)
        self.early_steps.backward(loss)
        return {"loss": loss.detach()}
