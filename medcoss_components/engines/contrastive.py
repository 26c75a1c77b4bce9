"""Contrastive pre-training of X-rays over many data sets (MD-MoCo, METHOD section 9): trainer, evaluator, optimiser."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator
from monai.utils.enums import CommonKeys
from torch import Tensor
from torch.nn import functional

from medcoss_components.continual.strategies.base import LossTerm
from medcoss_components.data.contrastive_loader import ContrastiveLoader
from medcoss_components.data.sampler import rank_rows
from medcoss_components.data.views import PairTransform
from medcoss_components.engines.evaluator import Evaluator
from medcoss_components.engines.optimisation import autocast
from medcoss_components.engines.trainer import ResumableTrainer, global_mean
from medcoss_components.errors import InputError
from medcoss_components.files import write_json
from medcoss_components.pretext.contrastive import ContrastiveModel, MomentumContrast, feature_spread
from medcoss_components.randomness import generator_for

logger = logging.getLogger(__name__)

SPREAD = "spread"
SMALLEST_GROUP = 2  # images; the statistics of one alone would be its own
COMPARED = 1024  # queries compared with all keys at once


def contrastive_optimizer(
    *, network: torch.nn.Module, learning_rate: float = 1e-4, weight_decay: float = 1e-4
) -> torch.optim.Adam:
    """Adam with the settings of MoCo-CXR (arXiv 2010.05352): the weight decay is a part of the gradient and holds for
    every parameter.

    Raises:
        InputError: when every parameter is frozen.
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not trained:
        raise InputError("network: every parameter is frozen, there is nothing to train")
    return torch.optim.Adam(trained, lr=learning_rate, weight_decay=weight_decay, fused=True)


class ContrastiveTrainer(ResumableTrainer):
    """Momentum contrast on two views of every image.

    A step: the network gives queries of one view, the key network keys of the other; the loss tells each query's key
    from the queue. After the optimiser's step the key network follows, and the keys of the whole global batch enter
    the queue, in one order on every rank. With ``accumulation_steps`` the queue moves on with every batch, the key
    network with every step of the optimiser.

    ``state.output`` is that of :class:`~medcoss_components.engines.trainer.ResumableTrainer` with two more ``parts``:
    "accuracy", the share of samples whose key is nearer than the whole queue (near 1 as long as the random keys of the
    start are in it), and "spread", :func:`~medcoss_components.pretext.contrastive.feature_spread` of the keys.

    Args:
        device: where to train.
        train_data_loader: a :class:`~medcoss_components.data.contrastive_loader.ContrastiveLoader`.
        network: the query network, holding the weights that the run starts from.
        preprocessing: draws and makes the views.
        queue_size, momentum, temperature: see :class:`~medcoss_components.pretext.contrastive.MomentumContrast`.
        normalisation_groups: parts of a global batch that batch normalisation counts over; each rank has its share of
            them and at least one, and none is below two images. Ranks make no difference to the losses where they share
            the groups evenly.
        seed: seed of the run.
        options: those of :class:`~medcoss_components.engines.trainer.ResumableTrainer`, among them ``max_epochs`` and
            ``optimizer``, see :func:`contrastive_optimizer`. The loss is computed in float32 in every precision.

    Raises:
        InputError: a setting out of range, or a loader that reads no partners.
    """

    partly_used = False

    def __init__(
        self,
        *,
        device: torch.device | str,
        train_data_loader: ContrastiveLoader,
        network: ContrastiveModel,
        preprocessing: PairTransform,
        queue_size: int = 24_576,
        momentum: float = 0.999,
        temperature: float = 0.07,
        normalisation_groups: int = 4,
        seed: int = 0,
        **options: Any,
    ) -> None:
        _check_parts(train_data_loader, network, preprocessing, normalisation_groups, queue_size)
        self.preprocessing, self.normalisation_groups = preprocessing, normalisation_groups
        self.contrast = MomentumContrast(
            network.to(torch.device(device)),
            queue_size=queue_size,
            momentum=momentum,
            temperature=temperature,
            generator=generator_for(seed, "queue"),
        ).to(torch.device(device))
        self.new_keys = torch.empty(0)
        self.measured: dict[str, Tensor] = {}
        super().__init__(
            device=device,
            train_data_loader=train_data_loader,
            network=network,
            loss_function=self.contrast.terms,
            **options,
        )
        self.add_event_handler(Events.STARTED, self._start)

    def _start(self, engine: Any) -> None:
        """The key network begins as the query network does, also where weights were put in after the construction, as
        federated clients do."""
        if self.state.iteration == 0:
            self.contrast.start(self.model)

    def groups(self, own: int) -> int:
        """Groups that ``own`` images of this rank are normalised in."""
        wanted = max(1, self.normalisation_groups // idist.get_world_size())
        return max(1, min(wanted, own // SMALLEST_GROUP))

    def loss_term(self, batch: dict[str, Any]) -> LossTerm:
        own = batch["own"]
        query_views, key_views = self.preprocessing.pair(batch, self.state.device)
        groups = self.groups(own)
        with autocast(self.precision, self.state.device):
            keys = self.contrast.keys(key_views, groups=groups)
            queries = self._forward(query_views, groups=groups)
        self.new_keys = keys_of_all_ranks(keys, batch)
        mine = self.new_keys[batch["rows"][:own].to(keys.device)]
        term, hits = self.loss_function(queries, mine)
        self.measured = {hits.kind: global_mean(hits)[1], SPREAD: feature_spread(self.new_keys)}
        return term

    def _update(self) -> None:
        super()._update()
        self.contrast.update(self.model)

    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> dict[str, Any]:
        output = super()._iteration(engine, batchdata)
        self.contrast.enqueue(self.new_keys)
        return output | {"parts": output["parts"] | self.measured}


def _check_parts(loader: Any, network: Any, preprocessing: PairTransform, groups: int, queue_size: int) -> None:
    if not isinstance(loader, ContrastiveLoader):
        raise InputError(f"train_data_loader: must be a ContrastiveLoader, received {type(loader).__name__}")
    if groups < 1:
        raise InputError(f"normalisation_groups must be at least 1, received {groups}")
    reads, makes = tuple(network.modality.input_shape), tuple(preprocessing.modality.input_shape)
    if reads != makes:
        raise InputError(f"input_shape: the network reads {reads}, the views have {makes}; give both one shape")
    if queue_size > len(loader.dataset):
        logger.warning(
            "queue_size %d is more than the %d samples of the data: earlier keys of an image are then among its "
            "negatives; a smaller queue suits a small data set",
            queue_size,
            len(loader.dataset),
        )


def rows_of_all_ranks(own: Tensor, count: int) -> Tensor:
    """Put together what the ranks have of a global batch.

    Args:
        own: (own, ...) this rank's contiguous share, see :func:`~medcoss_components.data.sampler.rank_rows`.
        count: rows of the global batch.

    Returns:
        (count, ...), rank after rank.
    """
    ranks = idist.get_world_size()
    if ranks == 1:
        return own
    sizes = [len(rank_rows(count, rank, ranks)) for rank in range(ranks)]
    longest = max(sizes)
    padded = own.new_zeros(longest, *own.shape[1:])
    padded[: len(own)] = own
    gathered: Any = idist.all_gather(padded)
    parts = gathered.split(longest)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def keys_of_all_ranks(keys: Tensor, batch: dict[str, Any]) -> Tensor:
    """Keys (B, d) of a global batch in the order of its rows, from each rank's (own, d) in shuffled order."""
    rows = batch["rows"][batch["partners"]].to(keys.device)
    gathered = rows_of_all_ranks(keys, batch["count"])
    ordered = torch.empty_like(gathered)
    ordered[rows_of_all_ranks(rows, batch["count"])] = gathered
    return ordered


class ContrastiveEvaluator(Evaluator):
    """How well two views of an image find each other among all images of a held-out data set.

    Both views go through the network in evaluation mode (the key network belongs to the training), and are drawn alike
    at every call. ``state.metrics`` has "top1", the share of first views whose nearest neighbour (cosine) among
    all second views is that of the same image (a tie with another counts as missed), and "spread",
    :func:`~medcoss_components.pretext.contrastive.feature_spread` of the second views' projections. 1 / N is chance;
    top1 depends on N, so it compares runs on one data set only.

    Args:
        preprocessing: draws and makes the views; its own seed decides them.
        options: those of :class:`~medcoss_components.engines.evaluator.Evaluator`; the loader is a
            :class:`~medcoss_components.data.sampler.PretrainingLoader` that does not shuffle, the network gives (B, d)
            for images (the query network, or a backbone's pooled features).
    """

    def __init__(self, *, preprocessing: PairTransform, **options: Any) -> None:
        self.preprocessing = preprocessing
        self.pairs: list[tuple[Tensor, Tensor]] = []
        super().__init__(**options)
        self.add_event_handler(Events.EPOCH_STARTED, self._reset)
        self.add_event_handler(Events.EPOCH_COMPLETED, self._summarise)

    def _reset(self, engine: SupervisedEvaluator) -> None:
        self.pairs = []

    def _iteration(self, engine: SupervisedEvaluator, batchdata: dict[str, Any]) -> dict[str, Any]:
        views = self.preprocessing.pair({**batchdata, "epoch": 0}, self.state.device)
        with self.evaluating():
            first, second = (functional.normalize(self.inferer(view, self.network).float(), dim=1) for view in views)
        count = batchdata["count"]
        self.pairs.append((rows_of_all_ranks(first, count), rows_of_all_ranks(second, count)))
        return {CommonKeys.PRED: first, "ids": batchdata["ids"]}

    def _summarise(self, engine: SupervisedEvaluator) -> None:
        whole = len(self.dataset)  # behind it stand rows that a last batch smaller than the number of ranks repeats
        first, second = (torch.cat(parts)[:whole] for parts in zip(*self.pairs, strict=True))
        self.pairs = []
        self.state.metrics["top1"] = float(nearest_share(first, second))
        self.state.metrics[SPREAD] = float(feature_spread(second))

    def evaluate(self) -> dict[str, float]:
        """Run over the loader once and return the metrics."""
        self.run()
        return {name: self.state.metrics[name] for name in ("top1", SPREAD)}


def write_contrastive_evaluation(*, evaluator: ContrastiveEvaluator, path: str | Path) -> dict[str, float]:
    """Evaluate, write the metrics with the number of samples to a JSON file (rank 0), print a line and return them."""
    metrics = {**evaluator.evaluate(), "samples": len(evaluator.dataset)}
    if idist.get_rank() == 0:
        write_json(path, metrics)
        print(f"{metrics['top1']:.4f} of {metrics['samples']} images: views find each other -> {path}")
    return metrics


def nearest_share(first: Tensor, second: Tensor) -> Tensor:
    """Share of rows of ``first`` that are nearer to their own row of ``second`` than to every other one.

    Args:
        first, second: (N, d) float32 of length 1.

    Returns:
        float32 scalar in [0, 1].
    """
    hits = first.new_zeros(())
    for start in range(0, len(first), COMPARED):
        similar = first[start : start + COMPARED] @ second.T
        rows = torch.arange(len(similar), device=similar.device)
        own = similar[rows, rows + start].clone()
        similar[rows, rows + start] = -torch.inf
        hits += (own > similar.amax(dim=1)).sum()
    return hits / len(first)
