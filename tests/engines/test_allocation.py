"""Freed memory is kept: the second allocation of a large block causes no page faults."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from medcoss_components.engines import allocation
from medcoss_components.engines.allocation import keep_freed_memory

FAULTS = """
import resource
import numpy as np
from medcoss_components.engines.allocation import keep_freed_memory
if {keep}:
    print(keep_freed_memory("cpu"))
def touch():
    np.full(10_000_000, 1.0)
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep: bool) -> list[str]:
    """What a fresh process prints: page faults of five arrays of 80 MB after the first."""
    code = FAULTS.format(keep=keep)
    environment = {"NUMPY_MADVISE_HUGEPAGE": "0", "PATH": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    ).stdout.split()


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_freed_memory_is_used_again() -> None:
    kept, count = faults(keep=True)
    pages = 5 * 80_000_000 // resource.getpagesize()
    assert kept == "True"
    assert int(count) < pages / 100
    assert int(faults(keep=False)[0]) > pages / 2


def test_accelerators_are_left_alone() -> None:
    assert keep_freed_memory("meta") is False


def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        pass

    monkeypatch.setattr(allocation.ctypes, "CDLL", lambda name: Other())
    assert keep_freed_memory() is False
