"""Pretext loss on held-out data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator
from monai.utils.enums import CommonKeys

from medcoss_components.continual.strategies.base import LossTerm, pretext_term
from medcoss_components.data.sampler import PretrainingLoader
from medcoss_components.engines.batches import settings_for, step_batch
from medcoss_components.engines.evaluator import Evaluator
from medcoss_components.files import write_json
from medcoss_components.text.vocabulary import Vocabulary


class PretextEvaluator(Evaluator):
    """Mean pretext loss over a loader in eval mode, without augmentation and with the same masks at every call.

    After :meth:`run`, ``state.metrics["pretext_loss"]`` is the mean over all removed patches or chosen tokens of the
    data set (rank-wise sums are added up).

    Args:
        val_data_loader: a :class:`~medcoss_components.data.sampler.PretrainingLoader` that does not shuffle.
        network: the pre-training model.
        vocabulary: needed for text.
        seed: of the masks.
        mask_ratio, masked_word_share: as in training.
        options: the others of :class:`~medcoss_components.engines.evaluator.Evaluator`.
    """

    def __init__(
        self,
        *,
        val_data_loader: PretrainingLoader,
        network: torch.nn.Module,
        vocabulary: Vocabulary | None = None,
        seed: int = 0,
        mask_ratio: float = 0.75,
        masked_word_share: float = 0.15,
        **options: Any,
    ) -> None:
        self.modalities = val_data_loader.modalities
        self.settings = settings_for(
            network,
            seed=seed,
            mask_ratio=mask_ratio,
            masked_word_share=masked_word_share,
            vocabulary=vocabulary,
            augment=False,
        )
        self.terms: list[LossTerm] = []
        super().__init__(val_data_loader=val_data_loader, network=network, **options)
        self.add_event_handler(Events.EPOCH_STARTED, self._reset)
        self.add_event_handler(Events.EPOCH_COMPLETED, self._summarise)

    def _iteration(self, engine: SupervisedEvaluator, batchdata: dict[str, Any]) -> dict[str, Any]:
        # epoch 0 always: every call masks the same patches
        batch = {**batchdata, "epoch": 0}
        prepared = step_batch(
            batch, modality=self.modalities[batch["modality"]], settings=self.settings, device=self.state.device
        )
        with self.evaluating():
            term = pretext_term(
                "pretext", lambda inputs, **arguments: self.inferer(inputs, self.network, **arguments), prepared
            )
        self.terms.append(term)
        return {CommonKeys.LOSS: term.total / term.count.clamp(min=1), "count": batch["count"], "ids": batch["ids"]}

    def _reset(self, engine: SupervisedEvaluator) -> None:
        self.terms = []

    def _summarise(self, engine: SupervisedEvaluator) -> None:
        import ignite.distributed as idist

        sums = torch.stack([torch.stack([term.total.double(), term.count.double()]) for term in self.terms]).sum(dim=0)
        sums = idist.all_reduce(sums) if idist.get_world_size() > 1 else sums
        self.state.metrics["pretext_loss"] = float(sums[0] / sums[1].clamp(min=1))

    def evaluate(self) -> dict[str, float]:
        """Run over the loader once and return ``{"pretext_loss": value}``."""
        self.run()
        return {"pretext_loss": self.state.metrics["pretext_loss"]}


def write_evaluation(*, evaluator: PretextEvaluator, path: str | Path) -> dict[str, float]:
    """Evaluate, write the metrics with the number of samples to a JSON file (rank 0) and return them."""
    import ignite.distributed as idist

    metrics = {**evaluator.evaluate(), "samples": len(evaluator.data_loader.dataset)}
    if idist.get_rank() == 0:
        write_json(path, metrics)
        print(f"pretext loss {metrics['pretext_loss']:.4f} over {metrics['samples']} samples -> {path}")
    return metrics
