"""Several stores of one kind of data, read as one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Dataset

from medcoss_components.data.modalities import Modality
from medcoss_components.errors import InputError
from medcoss_components.files import sha256_json

if TYPE_CHECKING:
    from medcoss_components.data.store import Store


class StoreUnion(Dataset):
    """The samples of several stores, store after store, with what loaders and engines ask of one store.

    Ids and groups begin with the data set's name: ids stay unique, and two people who have one number in two data sets
    stay two people.

    Args:
        stores: stores of one modality and one stored shape.
        names: a name for each, all different.
        body_parts: body part of each sample, store after store; None: none is known.

    Attributes:
        modality: the entry that all stores were made for.
        dataset_names: the names, in order.
        datasets: (N,) int64, number of each sample's data set.
        body_parts: of each sample, None where it is not known.
        key: SHA-256 of names and keys.
        manifest_hash: SHA-256 of the hashes of all manifests.
        preparation_seconds: what the preparation of all stores took.

    Raises:
        InputError: no store, another number of names, a name twice, or stores that hold different kinds of samples.
    """

    def __init__(
        self, stores: Sequence[Store], names: Sequence[str], *, body_parts: Sequence[str | None] | None = None
    ) -> None:
        self.stores, self.dataset_names = list(stores), [str(name) for name in names]
        _check_names(self.stores, self.dataset_names)
        _check_alike(self.stores, self.dataset_names)
        self.modality: Modality = self.stores[0].modality
        sizes = [len(store) for store in self.stores]
        self._ends = np.cumsum(sizes, dtype=np.int64)
        self.datasets: np.ndarray = np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)
        self.body_parts: list[str | None] = [None] * len(self) if body_parts is None else list(body_parts)
        if len(self.body_parts) != len(self):
            raise InputError(
                f"body_parts: {len(self.body_parts)} are given for {len(self)} samples; one is needed each"
            )
        self.key: str = sha256_json([self.dataset_names, [store.key for store in self.stores]])
        self.manifest_hash: str = sha256_json([store.manifest_hash for store in self.stores])
        self.ids: list[str] = self._prefixed("ids")
        self.preparation_seconds: float = sum(getattr(store, "preparation_seconds", 0.0) for store in self.stores)

    def __repr__(self) -> str:
        return f"StoreUnion({len(self)} samples of {self.modality.name} in {', '.join(self.dataset_names)})"

    def _prefixed(self, field: str) -> list[str]:
        pairs = zip(self.dataset_names, self.stores, strict=True)
        return [f"{name}/{value}" for name, store in pairs for value in getattr(store, field)]

    @property
    def groups(self) -> list[str]:
        """Group of each sample."""
        return self._prefixed("groups")

    @property
    def labels(self) -> list[Any]:
        """Label of each sample's item, None where it has none."""
        return list(chain.from_iterable(store.labels for store in self.stores))

    @property
    def counts(self) -> dict[str, int]:
        """Data set -> number of its samples."""
        return {name: len(store) for name, store in zip(self.dataset_names, self.stores, strict=True)}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, position: int) -> dict[str, Any]:
        """One sample as the store gives it, under its id in the union."""
        position = range(len(self))[position]  # negative positions, IndexError beyond the end
        number = int(self.datasets[position])
        return self.stores[number][position - self._start(number)] | {"id": self.ids[position]}

    def _start(self, number: int) -> int:
        return int(self._ends[number - 1]) if number else 0

    def gather(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Stored samples (n, *stored_shape) at (n,) positions in 0 .. N - 1, in any order, repetitions allowed.

        Raises:
            InputError: when a position is outside.
        """
        rows = np.asarray(indices, dtype=np.int64).reshape(-1)
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise InputError(f"indices: must be in 0 .. {len(self) - 1}, got {rows.min()} .. {rows.max()}.")
        numbers = self._ends.searchsorted(rows, side="right")
        output: np.ndarray = np.empty((len(rows), *self.modality.stored_shape), np.dtype(self.modality.stored_dtype))
        for number in np.unique(numbers).tolist():
            chosen = np.flatnonzero(numbers == number)
            output[chosen] = self.stores[number].gather(rows[chosen] - self._start(number))
        return output


def union_of_stores(
    stores: Sequence[Store], names: Sequence[str], *, body_parts: Sequence[str | None] | None = None
) -> StoreUnion:
    """Join stores; arguments and errors as for :class:`StoreUnion`."""
    return StoreUnion(stores, names, body_parts=body_parts)


def _check_names(stores: Sequence[Store], names: Sequence[str]) -> None:
    if not stores:
        raise InputError("stores: a union needs at least one, received none")
    if len(stores) != len(names):
        raise InputError(f"names: one is needed for each of {len(stores)} stores, received {len(names)}")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(
            f"names: {twice[0]!r} stands {names.count(twice[0])} times; every data set of a union needs a name of its "
            "own (manifest entries take one as `name`)"
        )


def _check_alike(stores: Sequence[Store], names: Sequence[str]) -> None:
    """All stores must hold samples of one modality, shape and type."""
    wanted = _kind(stores[0])
    for store, name in zip(stores, names, strict=True):
        if _kind(store) != wanted:
            raise InputError(
                f"data set {name}: holds {_kind(store)}, {names[0]} holds {wanted}; prepare both for one modality and "
                "input_shape"
            )


def _kind(store: Store) -> str:
    entry = store.modality
    return f"{entry.name} of shape {tuple(entry.stored_shape)} for inputs of {tuple(entry.input_shape)}"
