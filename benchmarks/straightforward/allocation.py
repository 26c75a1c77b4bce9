"""How the C library hands memory out when nobody asks it for anything else."""

from __future__ import annotations

from medcoss_components.engines.allocation import set_thresholds

LARGEST_KEPT, LARGEST_REST = 32 << 20, 64 << 20
"""Bytes; where glibc's own adaptation of both thresholds ends (mallopt(3), M_MMAP_THRESHOLD)."""


def give_back_freed_memory() -> bool:
    """Undo ``keep_freed_memory``: set what a process comes to by itself once it has freed a large block.

    Returns:
        Whether the C library took the setting.
    """
    return set_thresholds(LARGEST_KEPT, LARGEST_REST)
