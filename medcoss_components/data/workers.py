"""Running independent jobs in several processes that end with their parent."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")
WINDOW = 3  # jobs handed out per worker, so that stopping early does not have to cancel thousands


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_jobs(
    function: Callable[[Job], Result], jobs: Iterable[Job], *, workers: int
) -> Generator[tuple[Job, Result], None, None]:
    """Call ``function`` on every job and yield each with its result as it is finished, in any order.

    Args:
        function: a module-level function.
        jobs: picklable where ``workers`` > 1.
        workers: processes, started afresh ("spawn"); up to 1 stays in this process.

    Raises:
        Exception: the first that a job raised; jobs that did not start are dropped.
        concurrent.futures.process.BrokenProcessPool: when a worker was killed.
    """
    if workers <= 1:
        for job in jobs:
            yield job, function(job)
        return
    from multiprocessing import get_context

    executor = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker)
    try:
        yield from _run_parallel(executor, function, jobs, window=WINDOW * workers)
    finally:
        executor.shutdown(cancel_futures=True)


def _run_parallel(
    executor: ProcessPoolExecutor, function: Callable[[Job], Result], jobs: Iterable[Job], *, window: int
) -> Iterator[tuple[Job, Result]]:
    pending = dict[Future, Job]()
    for job in jobs:
        pending[executor.submit(function, job)] = job
        if len(pending) >= window:
            yield from _take_finished(pending)
    while pending:
        yield from _take_finished(pending)


def _take_finished(pending: dict[Future, Job]) -> Iterator[tuple[Job, Result]]:
    finished, _ = wait(pending, return_when=FIRST_COMPLETED)
    for future in finished:
        yield pending.pop(future), future.result()


def _start_worker() -> None:
    """One thread per worker, no answer to Ctrl-C (the parent answers), and an end when the parent is killed."""
    os.environ["OMP_NUM_THREADS"] = "1"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    from multiprocessing import parent_process

    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
