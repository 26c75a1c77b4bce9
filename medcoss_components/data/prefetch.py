"""Reading ahead with threads.

A sample is copied out of a memory map, and the copy lets other threads run meanwhile. Threads therefore read as fast as
worker processes would, without sending batches from process to process and without a start in every epoch.

MONAI's ``ThreadBuffer`` is not used: when its source raises, it ends as if the source were exhausted. The thread
workers of its ``ThreadDataLoader`` seed the generator of the whole process.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from medcoss_components.data.transfer import pinned, pinning_start

Plan = TypeVar("Plan")
Batch = TypeVar("Batch")

PLANS_PER_THREAD = 2  # one that is read and one that is next


def read_ahead(
    read: Callable[[Plan], Batch],
    plans: Iterable[Plan],
    *,
    threads: int,
    start: Callable[[], None] | None = None,
) -> Generator[Batch, None, None]:
    """What ``read`` makes of each plan, in the order of the plans.

    Beside the item that was handed out last, at most ``PLANS_PER_THREAD`` plans per thread are under way or wait to be
    taken. An exception of ``read`` is raised here, in its place in the order. No thread is left once the last item is
    handed out, nor when the iteration is closed before.

    Args:
        read: called in one of the threads, by several of them at a time.
        plans: taken in the calling thread, one by one as there is room.
        threads: reader threads; 0 reads in the calling thread, each item when it is asked for.
        start: called in each reader thread before it reads.
    """
    if threads == 0:
        yield from map(read, plans)
        return
    waiting, executor = iter(plans), ThreadPoolExecutor(threads, "reader", initializer=start)
    try:
        pending = deque(executor.submit(read, plan) for plan in islice(waiting, PLANS_PER_THREAD * threads))
        while pending:
            pending.extend(executor.submit(read, plan) for plan in islice(waiting, 1))
            yield _take(pending, executor)  # without a name here, so that the item does not outlive the caller's use
    finally:
        executor.shutdown(cancel_futures=True)


def read_batches(
    read: Callable[[Plan], Batch], plans: Iterable[Plan], *, threads: int, pin: bool
) -> Generator[Batch, None, None]:
    """:func:`read_ahead` of batches that go to a GPU (``pin``): the thread that reads one pins it, too."""
    if not pin:
        return read_ahead(read, plans, threads=threads)
    return read_ahead(lambda plan: pinned(read(plan)), plans, threads=threads, start=pinning_start())


def _take(pending: deque[Future[Batch]], executor: ThreadPoolExecutor) -> Batch:
    """Wait for the item that is next; after the last one the threads are sent home."""
    batch = pending.popleft().result()
    if not pending:
        executor.shutdown()
    return batch
