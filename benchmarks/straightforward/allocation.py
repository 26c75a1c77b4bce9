"""How the C library hands memory out when nobody asks it for anything else."""

from __future__ import annotations

import ctypes

from medcoss_components.engines.allocation import MMAP_THRESHOLD, TRIM_THRESHOLD

LARGEST_KEPT, LARGEST_REST = 32 << 20, 64 << 20
"""Bytes; where glibc's own adaptation of both thresholds ends (mallopt(3), M_MMAP_THRESHOLD)."""


def give_back_freed_memory() -> bool:
    """Undo ``keep_freed_memory``: set what a process comes to by itself once it has freed a large block.

    Returns:
        Whether the C library took the setting.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc
        return False
    return bool(set_option(MMAP_THRESHOLD, LARGEST_KEPT) and set_option(TRIM_THRESHOLD, LARGEST_REST))
