"""One way to show progress: tqdm, quiet on ranks other than 0 and when MEDCOSS_PROGRESS=0."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any


def progress_enabled() -> bool:
    """Whether this process should draw progress bars."""
    return os.environ.get("MEDCOSS_PROGRESS", "1") != "0" and int(os.environ.get("RANK", "0")) == 0


def progress(
    iterable: Iterable | None = None, *, description: str, total: int | None = None, unit: str = "it", **options: Any
):
    """A ``tqdm`` bar with elapsed and remaining time; on a pipe or log file it prints a line every ten seconds."""
    from tqdm import tqdm

    interval = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(
        iterable,
        desc=description,
        total=total,
        unit=unit,
        mininterval=interval,
        dynamic_ncols=True,
        disable=not progress_enabled(),
        **options,
    )
