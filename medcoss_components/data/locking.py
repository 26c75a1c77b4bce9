"""One process at a time: a lock on a file, freed by the operating system when its holder dies."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)


@contextmanager
def kept_lock(path: Path) -> Iterator[None]:
    """Hold the lock file ``path`` during the block; wait while another process holds it. The file stays."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextmanager
def locked(path: Path, *, what: str) -> Iterator[None]:
    """Hold the lock file ``path`` during the block; wait while another process holds it, and say so.

    Args:
        path: made if missing, removed afterwards.
        what: the thing that is being prepared, for the message.
    """
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.warning("%s is being prepared by another process; waiting for it.", what)
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
        path.unlink(missing_ok=True)
