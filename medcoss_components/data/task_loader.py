"""Batches of labelled data: samples with class numbers, pictures with boxes, windows of cases, and whole cases.

Like :class:`~medcoss_components.data.sampler.PretrainingLoader`: everything follows from (seed, epoch, step), so a run
resumes at any batch, and every rank derives the same plan and reads its own rows of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from medcoss_components.data.detection import DetectionDataset
from medcoss_components.data.labelled import ClassificationDataset, SegmentationDataset
from medcoss_components.data.modalities import Modality
from medcoss_components.data.sampler import BatchPlan, BatchSampler, rank_rows
from medcoss_components.errors import InputError
from medcoss_components.randomness import numpy_generator_for

Data = TypeVar("Data", ClassificationDataset, SegmentationDataset, DetectionDataset)


class _Reader(Dataset):
    """Turns a :class:`BatchPlan` into the rows of it that one rank computes."""

    def __init__(self, dataset: Any, *, rank: int, ranks: int) -> None:
        self.dataset, self.rank, self.ranks = dataset, rank, ranks

    def _common(self, plan: BatchPlan) -> tuple[np.ndarray, dict[str, Any]]:
        """Dataset rows of this rank, and what every batch says about itself."""
        own = rank_rows(len(plan.indices), self.rank, self.ranks)
        indices = plan.indices[own]
        return indices, {
            "modality": self.dataset.modality.name,
            "epoch": plan.epoch,
            "step": plan.step,
            "count": len(plan.indices),
            "rows": torch.from_numpy(own),
            "own": len(own),
            "indices": torch.from_numpy(indices),
            "ids": [self.dataset.ids[index] for index in indices],
        }


class _SampleReader(_Reader):
    def __getitem__(self, plan: BatchPlan) -> dict[str, Any]:
        indices, batch = self._common(plan)
        raw, target = self.dataset.gather(indices), self.dataset.targets[indices]
        return batch | {"raw": torch.from_numpy(raw), "target": torch.from_numpy(target)}


class _BoxReader(_Reader):
    def __getitem__(self, plan: BatchPlan) -> dict[str, Any]:
        indices, batch = self._common(plan)
        raw = torch.from_numpy(self.dataset.gather(indices))
        targets = [self.dataset.targets[index] for index in indices.tolist()]
        return batch | {"raw": raw, "target": targets}


class _WindowReader(_Reader):
    """Reads one window of each case; sampling draws its numbers for the global batch, so ranks agree."""

    def __init__(
        self, dataset: SegmentationDataset, *, window: tuple[int, ...], foreground_share: float, seed: int, **ranks: int
    ) -> None:
        super().__init__(dataset, **ranks)
        self.window, self.foreground_share, self.seed = window, foreground_share, seed

    def __getitem__(self, plan: BatchPlan) -> dict[str, Any]:
        plan = self._with_cases(plan)
        indices, batch = self._common(plan)
        generator = numpy_generator_for(self.seed, "windows", plan.epoch, plan.step)
        numbers = generator.random((batch["count"], 3 + len(self.window)))[batch["rows"].numpy()]
        pairs = [
            self.dataset.window(index, self.start(index, draw), self.window)
            for index, draw in zip(indices.tolist(), numbers, strict=True)
        ]
        images, masks = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*pairs, strict=True))
        return batch | {"raw": images, "target": masks}

    def _with_cases(self, plan: BatchPlan) -> BatchPlan:
        """Turn virtual rows, of which an epoch may have more or fewer than cases, into rows of the data set.

        Every case occurs equally often up to one; which ones occur once more changes from epoch to epoch.
        """
        count = len(self.dataset)
        order = numpy_generator_for(self.seed, "cases", plan.epoch).permutation(count)
        return BatchPlan(plan.source, plan.epoch, plan.step, order[plan.indices % count])

    def start(self, index: int, draw: np.ndarray) -> list[int]:
        """First index of a window along each axis.

        Args:
            index: row of the case.
            draw: (3 + D,) numbers in [0, 1): whether on foreground, which region, which position, place per axis.
        """
        spare = [size - length for size, length in zip(self.dataset.shape(index), self.window, strict=True)]
        found = self.dataset.foreground(index) if draw[0] < self.foreground_share else {}
        if not found:
            return [
                int(place * (left + 1)) if left > 0 else left // 2 for place, left in zip(draw[3:], spare, strict=True)
            ]
        positions = list(found.values())[int(draw[1] * len(found))]
        centre = positions[int(draw[2] * len(positions))].tolist()
        wanted = [place - length // 2 for place, length in zip(centre, self.window, strict=True)]
        return [min(max(0, first), left) if left > 0 else left // 2 for first, left in zip(wanted, spare, strict=True)]


class _CaseReader(_Reader):
    def __getitem__(self, plan: BatchPlan) -> dict[str, Any]:
        indices, batch = self._common(plan)
        row = int(indices[0])
        case = self.dataset.case(row)
        raw, mask = (torch.from_numpy(np.array(array))[None] for array in (case.image, case.mask))
        return batch | {"row": row, "count": 1, "raw": raw, "target": mask}


def _keep(batch: Any) -> Any:
    return batch


class TaskLoader(Generic[Data]):
    """What the loaders of this module share; not used by itself.

    After ``set_position(epoch, step)`` the next iteration starts at that batch; it then goes on epoch by epoch.

    Attributes:
        dataset: what is read.
        sampler: plans of an epoch.
        reader: turns a plan into a batch.
    """

    dataset: Data
    reader: _Reader

    def __init__(
        self, dataset: Data, *, size: int, batch_size: int, seed: int, num_workers: int, shuffle: bool
    ) -> None:
        self.dataset, self.num_workers = dataset, num_workers
        self.pin_memory = False
        ranks = _ranks()
        self.sampler = BatchSampler(
            sizes=(size,), batch_size=batch_size, seed=seed, ranks=ranks["ranks"], shuffle=shuffle
        )
        self.epoch, self.step = 0, 0

    @property
    def batch_size(self) -> int:
        """Global batch size."""
        return self.sampler.batch_size

    @property
    def modalities(self) -> dict[str, Modality]:
        """The one modality, by name."""
        return {self.dataset.modality.name: self.dataset.modality}

    def set_position(self, epoch: int, step: int) -> None:
        """Start the next iteration at batch ``step`` (from 0) of epoch ``epoch`` (from 0)."""
        self.epoch, self.step = epoch, step

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        plans = self.sampler.plans(self.epoch)[self.step :]
        make = partial(
            DataLoader, self.reader, sampler=plans, batch_size=None, collate_fn=_keep, pin_memory=self.pin_memory
        )
        yield from make(num_workers=self.num_workers, persistent_workers=False)
        self.epoch, self.step = self.epoch + 1, 0


def _ranks() -> dict[str, int]:
    import ignite.distributed as idist

    return {"rank": idist.get_rank(), "ranks": idist.get_world_size()}


class ClassificationLoader(TaskLoader[ClassificationDataset]):
    """Batches of samples with class numbers; an epoch visits each sample once.

    A batch is ``modality`` (name), ``epoch``, ``step``, ``count`` (global batch size), ``rows`` (own,) int64 numbers in
    the global batch, ``own``, ``indices`` (own,) int64 rows of the data set, ``ids``, ``raw`` (own, *stored_shape) in
    stored dtype, ``target`` (own,) int64.

    Args:
        dataset: what to read.
        batch_size: of all ranks together.
        seed: of the order.
        num_workers: reader processes; 0 reads in this process. The batches are the same either way.
        shuffle: False reads in the data set's order (evaluation); the last batch may then repeat samples where it has
            fewer than there are ranks.
    """

    def __init__(
        self,
        dataset: ClassificationDataset,
        *,
        batch_size: int,
        seed: int = 0,
        num_workers: int = 0,
        shuffle: bool = True,
    ) -> None:
        super().__init__(
            dataset, size=len(dataset), batch_size=batch_size, seed=seed, num_workers=num_workers, shuffle=shuffle
        )
        self.reader = _SampleReader(dataset, **_ranks())


class DetectionLoader(TaskLoader[DetectionDataset]):
    """Batches of pictures with boxes; an epoch visits each picture once.

    A batch is that of :class:`ClassificationLoader` with ``target``: a list of own ``{"boxes": (n, 4) float32 left,
    top, right, bottom in pixels of the prepared picture, "labels": (n,) int64}``; n may be 0.

    Args:
        dataset, batch_size, seed, num_workers, shuffle: see :class:`ClassificationLoader`.
    """

    def __init__(
        self, dataset: DetectionDataset, *, batch_size: int, seed: int = 0, num_workers: int = 0, shuffle: bool = True
    ) -> None:
        super().__init__(
            dataset, size=len(dataset), batch_size=batch_size, seed=seed, num_workers=num_workers, shuffle=shuffle
        )
        self.reader = _BoxReader(dataset, **_ranks())


class SegmentationLoader(TaskLoader[SegmentationDataset]):
    """Batches of windows cut at random from cases.

    A batch is that of :class:`ClassificationLoader` with ``raw`` (own, C, *window) in stored dtype and ``target``
    (own, *window) uint8 mask values.

    Args:
        dataset: what to read.
        batch_size: windows of all ranks together.
        window: spatial size; None: the modality's input.
        iterations_per_epoch: batches; every case then occurs equally often up to one. None: each case once.
        foreground_share: probability that a window is centred on a voxel of a region: a region of the case is drawn,
            then one of its stored positions. Otherwise the window lies anywhere within the case.
        seed, num_workers, shuffle: see :class:`ClassificationLoader`.

    Raises:
        InputError: a window with a wrong number of axes, a share out of 0 .. 1, or no iteration.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        *,
        batch_size: int,
        window: Sequence[int] | None = None,
        iterations_per_epoch: int | None = None,
        foreground_share: float = 0.5,
        seed: int = 0,
        num_workers: int = 0,
        shuffle: bool = True,
    ) -> None:
        sides = _window(dataset, window)
        if not 0 <= foreground_share <= 1:
            raise InputError(f"foreground_share={foreground_share}: must be in 0 .. 1.")
        if iterations_per_epoch is not None and iterations_per_epoch < 1:
            raise InputError(f"iterations_per_epoch={iterations_per_epoch}: must be at least 1, or None.")
        size = len(dataset) if iterations_per_epoch is None else iterations_per_epoch * batch_size
        super().__init__(dataset, size=size, batch_size=batch_size, seed=seed, num_workers=num_workers, shuffle=shuffle)
        self.reader = _WindowReader(dataset, window=sides, foreground_share=foreground_share, seed=seed, **_ranks())


def _window(dataset: SegmentationDataset, window: Sequence[int] | None) -> tuple[int, ...]:
    sides = tuple(dataset.modality.input_shape[1:] if window is None else window)
    if len(sides) != dataset.modality.dimension or any(side < 1 for side in sides):
        raise InputError(
            f"window={list(sides)}: must be {dataset.modality.dimension} positive sizes for {dataset.modality.name}."
        )
    return sides


class CaseLoader(TaskLoader[SegmentationDataset]):
    """Whole cases, one per batch and rank, in the data set's order.

    A batch is ``row`` (of the data set), ``ids`` (one), ``raw`` (1, C, *S) in stored dtype, ``target`` (1, *S) uint8,
    ``count`` 1, and the other entries of :class:`ClassificationLoader`. With several ranks the last cases may repeat
    the first ones, so that every rank has as many.
    """

    def __init__(self, dataset: SegmentationDataset, *, num_workers: int = 0) -> None:
        ranks = _ranks()
        super().__init__(
            dataset, size=len(dataset), batch_size=ranks["ranks"], seed=0, num_workers=num_workers, shuffle=False
        )
        self.reader = _CaseReader(dataset, **ranks)
