"""Random generators that depend on names and counters alone, never on what ran before.

Every draw of the project comes from ``generator_for(seed, purpose, epoch, step, ...)``. A resumed run, another
number of reader threads or workers or another number of ranks therefore sees the same numbers without saving generator
states.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive_seed(seed: int, *keys: int | str) -> int:
    """Mix a run's seed with names and counters into one integer in [0, 2**63).

    >>> derive_seed(0, "augment", 3) == derive_seed(0, "augment", 3)
    True
    """
    text = "\x1f".join(f"{type(key).__name__}:{key}" for key in (int(seed), *keys))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") % 2**63


def generator_for(seed: int, *keys: int | str) -> torch.Generator:
    """A CPU ``torch.Generator`` for one purpose, for example ``generator_for(seed, "mask", epoch, step)``."""
    import torch

    return torch.Generator().manual_seed(derive_seed(seed, *keys))


def numpy_generator_for(seed: int, *keys: int | str) -> np.random.Generator:
    """A NumPy generator for one purpose; see :func:`generator_for`."""
    return np.random.default_rng(derive_seed(seed, *keys))
