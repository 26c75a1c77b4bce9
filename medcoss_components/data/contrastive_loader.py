"""Batches of unlabelled images, each rank with the rows whose queries and the rows whose keys it computes."""

from __future__ import annotations

from medcoss_components.data.sampler import BatchReader, PretrainingLoader, SampleSource


class ContrastiveLoader(PretrainingLoader):
    """A :class:`~medcoss_components.data.sampler.PretrainingLoader` that reads a shuffled partner for every own row.

    Queries are computed of the own rows, keys of the partners. Both together are the global batch once, so that keys
    are normalised among other images than their queries (see
    :class:`~medcoss_components.pretext.contrastive.MomentumContrast`) and no image is sent from process to process.

    Args:
        dataset: a store, or several as a :class:`~medcoss_components.data.union.StoreUnion`.
        batch_size: global batch size.
        seed: seed of the run.
        num_workers: threads that read ahead; 0 reads in the calling thread.

    Raises:
        InputError: as for the base class.
    """

    def __init__(self, dataset: SampleSource, *, batch_size: int, seed: int = 0, num_workers: int = 0) -> None:
        super().__init__(dataset, batch_size=batch_size, seed=seed, num_workers=num_workers)
        # "current" 0: a partner is read for each sample, as it is for those of rehearsal buffers
        reader = self.reader
        self.reader = BatchReader([dataset], current=0, seed=seed, rank=reader.rank, ranks=reader.ranks)
