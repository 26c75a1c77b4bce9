"""Freed memory stays with the process, so that the next step need not ask the system for it again.

A training step on a CPU allocates and frees gigabytes. By default glibc returns large blocks to the system at once, and
each page that is asked for again is zeroed in a page fault: up to a fifth of the time of a step
(benchmarks/RESULTS.md).
"""

from __future__ import annotations

import ctypes

import torch

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
"""Parameters of glibc's mallopt(3)."""
LARGEST_KEPT = 1 << 30
"""Bytes; larger blocks still go back to the system when they are freed."""
NEVER = -1


def keep_freed_memory(device: torch.device | str = "cpu") -> bool:
    """Let the C library keep what is freed, for the rest of the process; it holds as much as its largest step needed.

    Args:
        device: where the steps run; on another device than the CPU nothing changes.

    Returns:
        Whether the C library took the setting; False where it has none (macOS, musl) and on accelerators.
    """
    return torch.device(device).type == "cpu" and set_thresholds(LARGEST_KEPT, NEVER)


def set_thresholds(largest_kept: int, largest_rest: int) -> bool:
    """Say which freed blocks stay with the process.

    Args:
        largest_kept: bytes; a larger block goes back to the system when it is freed (M_MMAP_THRESHOLD).
        largest_rest: bytes that may lie unused at the end of the heap (M_TRIM_THRESHOLD); -1: any number.

    Returns:
        Whether the C library took both.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc
        return False
    return bool(set_option(MMAP_THRESHOLD, largest_kept) and set_option(TRIM_THRESHOLD, largest_rest))
