"""A part of a store that looks like a store: the rehearsal buffer as batches are read from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Dataset

from medcoss_components.data.modalities import Modality
from medcoss_components.errors import InputError

if TYPE_CHECKING:
    from medcoss_components.data.store import Store


class StoreView(Dataset):
    """Chosen rows of a store, with the interface of :class:`~medcoss_components.data.store.Store`.

    Args:
        store: the whole store (or another view).
        indices: (K,) rows of ``store`` in the order wanted.

    ``key``, ``path`` and the other descriptions are those of the store looked into.
    """

    def __init__(self, store: Store | StoreView, indices: Sequence[int] | np.ndarray) -> None:
        self.store = store
        self.indices = np.asarray(indices, dtype=np.int64).reshape(-1)
        outside = self.indices[(self.indices < 0) | (self.indices >= len(store))]
        if len(outside):
            raise InputError(f"indices: must lie in 0..{len(store) - 1}, received {outside[0]}.")
        self.path: Path = Path(store.path)
        self.modality: Modality = store.modality
        self.key: str = store.key
        self.manifest_hash: str = store.manifest_hash
        self.vocabulary_path: Path | None = store.vocabulary_path
        self.ids: list[str] = [str(store.ids[row]) for row in self.indices]
        self.labels: list[Any] = [store.labels[row] for row in self.indices]
        self.groups: list[Any] = [store.groups[row] for row in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def gather(self, indices: np.ndarray) -> np.ndarray:
        """Stored rows (n, *stored_shape) for positions 0..K-1 in the view."""
        return self.store.gather(self.indices[np.asarray(indices, dtype=np.int64)])

    def __getitem__(self, position: int) -> dict[str, Any]:
        return self.store[int(self.indices[position])]

    def write_subset(self, path: str | Path, indices: Sequence[int] | np.ndarray) -> Store:
        """Copy some of the view's rows into a store of their own; atomic."""
        return self.store.write_subset(path, self.indices[np.asarray(indices, dtype=np.int64)])
