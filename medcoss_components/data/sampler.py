"""Which samples make up which batch, and the loader that reads them.

Every batch holds one modality. An epoch visits each sample of every source once, in batches of the *global* size;
the batches of all sources are shuffled together, so that a buffer appears in proportion to its size; or rehearsal gets
a fixed share of the batches. Everything follows from (seed, epoch): a run resumes at any batch, and every rank derives
the same plan and reads its own rows of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from medcoss_components.continual.mixup import draw_partners
from medcoss_components.data.modalities import Modality
from medcoss_components.data.prefetch import read_batches
from medcoss_components.data.rehearsal_order import RehearsalOrder, check_share, rehearsal_batches
from medcoss_components.errors import InputError
from medcoss_components.randomness import generator_for, numpy_generator_for


class SampleSource(Protocol):
    """What the loader needs of a store or of a view on one."""

    modality: Modality
    ids: Sequence[str]

    def __len__(self) -> int: ...

    def gather(self, indices: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class BatchPlan:
    """One global batch: ``indices`` (B,) int64 name samples of source number ``source``."""

    source: int
    epoch: int
    step: int
    indices: np.ndarray


def _split_into_batches(order: np.ndarray, batch_size: int, minimum: int) -> list[np.ndarray]:
    """Cut an order into batches; a batch below ``minimum`` samples is topped up by repeating from the start of the
    order."""
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if len(batches[-1]) < minimum:
        batches[-1] = np.resize(np.concatenate([batches[-1], order]), minimum)
    return batches


@dataclass(frozen=True, kw_only=True)
class BatchSampler:
    """Plans of one epoch over several sources.

    Args:
        sizes: samples in each source; source 0 is the current modality, the others are rehearsal buffers.
        batch_size: global batch size, all ranks and accumulation steps of one forward pass together.
        seed: seed of the run.
        full_batches: the rehearsal buffers. One that is smaller than a batch is repeated up to ``batch_size``.
        ranks: number of processes; no batch is smaller, so that every rank has a sample.
        shuffle: False keeps each source's own order.
        rehearsal_share: share of an epoch's batches that come from the buffers, in (0, 1), spread evenly over them; an
            epoch still visits every sample of the other sources. Every sample of a buffer is used before any is used
            again, over as many epochs as it takes. None: an epoch visits every sample of the buffers too.

    Raises:
        InputError: when a source is empty, the batch size is below the number of ranks or the share is outside.
    """

    sizes: tuple[int, ...]
    batch_size: int
    seed: int
    full_batches: frozenset[int] = frozenset()
    ranks: int = 1
    shuffle: bool = True
    rehearsal_share: float | None = None

    def __post_init__(self) -> None:
        check_share(self.rehearsal_share)
        for source, size in enumerate(self.sizes):
            if size < 1:
                raise InputError(f"source {source} holds {size} samples; every source needs at least 1")
        if self.batch_size < self.ranks:
            raise InputError(
                f"batch_size must be at least the number of processes ({self.ranks}), received {self.batch_size}"
            )

    def __len__(self) -> int:
        return self._visited_batches + (self._rehearsal.per_epoch if self._rehearsal else 0)

    @property
    def _visited(self) -> list[int]:
        """Sources of which an epoch visits every sample."""
        shared = self.full_batches if self.rehearsal_share is not None else frozenset()
        return [source for source in range(len(self.sizes)) if source not in shared]

    @property
    def _visited_batches(self) -> int:
        return sum(-(-self.sizes[source] // self.batch_size) for source in self._visited)

    @cached_property
    def _rehearsal(self) -> RehearsalOrder | None:
        """The order of the buffers when rehearsal has a fixed share."""
        if self.rehearsal_share is None or not self.full_batches:
            return None
        return RehearsalOrder(
            sizes={source: self.sizes[source] for source in sorted(self.full_batches)},
            batch_size=self.batch_size,
            per_epoch=rehearsal_batches(self._visited_batches, self.rehearsal_share),
            seed=self.seed,
            shuffle=self.shuffle,
        )

    def plans(self, epoch: int) -> list[BatchPlan]:
        """All batches of an epoch in the order in which they run."""
        batches = [
            (source, indices)
            for source in self._visited
            for indices in self._batches(source, self.sizes[source], epoch)
        ]
        if self._rehearsal:
            batches += self._rehearsal.batches(epoch)
        if self.shuffle:
            order = numpy_generator_for(self.seed, "batch order", epoch).permutation(len(batches))
            batches = [batches[position] for position in order]
        return [BatchPlan(source, epoch, step, indices) for step, (source, indices) in enumerate(batches)]

    def _batches(self, source: int, size: int, epoch: int) -> list[np.ndarray]:
        order = np.arange(size)
        if self.shuffle:
            order = numpy_generator_for(self.seed, "sample order", source, epoch).permutation(size)
        short = size < self.batch_size and source in self.full_batches
        return _split_into_batches(order, self.batch_size, self.batch_size if short else self.ranks)


def rank_rows(count: int, rank: int, ranks: int) -> np.ndarray:
    """Rows of a global batch of ``count`` samples that rank ``rank`` of ``ranks`` computes: contiguous, sizes differ
    by at most 1."""
    return np.array_split(np.arange(count), ranks)[rank]


class BatchReader(Dataset):
    """Turns a :class:`BatchPlan` into a batch of raw samples for one rank.

    The batch is a dict: ``source``, ``modality`` (name), ``rehearsal`` (bool), ``epoch``, ``step``, ``count``
    (global batch size), ``rows`` (R,) int64 global row numbers that were read, ``own`` (how many of them, at the
    front, this rank computes), ``partners`` (own,) int64 positions in ``rows`` of each own row's mixing partner,
    ``raw`` (R, *stored_shape) in stored dtype, ``ids`` of the own rows. Partners come from one permutation of the
    global batch; those of other ranks are read here too, so that the result does not depend on the number of ranks.
    """

    def __init__(
        self, sources: Sequence[SampleSource], *, current: int, seed: int, rank: int = 0, ranks: int = 1
    ) -> None:
        self.sources, self.current, self.seed, self.rank, self.ranks = list(sources), current, seed, rank, ranks

    def __getitem__(self, plan: BatchPlan) -> dict[str, Any]:
        source = self.sources[plan.source]
        rehearsal = plan.source >= self.current
        own = rank_rows(len(plan.indices), self.rank, self.ranks)
        rows, partners = own, np.arange(len(own))
        if rehearsal:
            generator = generator_for(self.seed, "partners", plan.source, plan.epoch, plan.step)
            rows, partners = _with_partners(own, draw_partners(len(plan.indices), generator).numpy())
        return {
            "source": plan.source,
            "modality": source.modality.name,
            "rehearsal": rehearsal,
            "epoch": plan.epoch,
            "step": plan.step,
            "count": len(plan.indices),
            "rows": torch.from_numpy(rows),
            "own": len(own),
            "partners": torch.from_numpy(partners),
            "raw": torch.from_numpy(source.gather(plan.indices[rows])),
            "ids": [source.ids[index] for index in plan.indices[own]],
        }


def _with_partners(own: np.ndarray, permutation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Own rows followed by the partner rows that are not own; and where each own row's partner stands in that list."""
    wanted = permutation[own]
    foreign = np.setdiff1d(wanted, own)
    rows = np.concatenate([own, foreign])
    position = {int(row): place for place, row in enumerate(rows)}
    return rows, np.array([position[int(row)] for row in wanted], dtype=np.int64)


class PretrainingLoader:
    """Batches of the current modality and of the rehearsal buffers, one epoch per iteration over it.

    Args:
        dataset: store of the current modality.
        joint: further stores trained with the pretext task in the same stage (strategy ``joint``).
        buffers: rehearsal buffers of earlier modalities.
        batch_size: global batch size.
        seed: seed of the run.
        num_workers: threads that read ahead; 0 reads in the calling thread. The batches are the same either way.
        shuffle: False gives every source in its own order (evaluation).
        rehearsal_share: share of an epoch's batches that come from the buffers, see :class:`BatchSampler`; None: each
            buffer appears in proportion to its size. Without buffers it changes nothing.

    Raises:
        InputError: when a source is empty, ``num_workers`` is negative, the batch size is below the number of processes
            or the share is outside (0, 1).

    After ``set_position(epoch, step)`` the next iteration starts at that batch; it then goes on epoch by epoch.
    """

    def __init__(
        self,
        dataset: SampleSource,
        *,
        joint: Sequence[SampleSource] = (),
        buffers: Sequence[SampleSource] = (),
        batch_size: int,
        seed: int = 0,
        num_workers: int = 0,
        shuffle: bool = True,
        rehearsal_share: float | None = None,
    ) -> None:
        import ignite.distributed as idist

        if num_workers < 0:
            raise InputError(f"num_workers must be 0 or more threads, received {num_workers}")
        current = [dataset, *joint]
        self.sources = [*current, *buffers]
        self.current = len(current)
        self.num_workers = num_workers
        self.pin_memory = False
        rank, ranks = idist.get_rank(), idist.get_world_size()
        self.sampler = BatchSampler(
            sizes=tuple(len(source) for source in self.sources),
            batch_size=batch_size,
            seed=seed,
            full_batches=frozenset(range(self.current, len(self.sources))),
            ranks=ranks,
            shuffle=shuffle,
            rehearsal_share=rehearsal_share,
        )
        self.reader = BatchReader(self.sources, current=self.current, seed=seed, rank=rank, ranks=ranks)
        self.epoch, self.step = 0, 0

    @property
    def dataset(self) -> SampleSource:
        return self.sources[0]

    @property
    def batch_size(self) -> int:
        return self.sampler.batch_size

    @property
    def modalities(self) -> dict[str, Modality]:
        """Every modality that occurs, by name."""
        return {source.modality.name: source.modality for source in self.sources}

    def set_position(self, epoch: int, step: int) -> None:
        """Start the next iteration at batch ``step`` (from 0) of epoch ``epoch`` (from 0)."""
        self.epoch, self.step = epoch, step

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        plans = self.sampler.plans(self.epoch)[self.step :]
        yield from read_batches(self.reader.__getitem__, plans, threads=self.num_workers, pin=self.pin_memory)
        self.epoch, self.step = self.epoch + 1, 0
