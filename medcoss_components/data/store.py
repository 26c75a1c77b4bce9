"""The store: prepared samples of one modality and split, read at memory speed.

    <store_dir>/<modality>-<split>-<key>/   index.json  items.json  report.json  [vocabulary.json]  shard-0000.npy ...

Shards are ``.npy`` files that are memory-mapped; ``index.json`` says what they hold and how they were made,
``report.json`` what was left out and why. A store never holds text, only token ids.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import Dataset

from medcoss_components.data.build_frame import check_report
from medcoss_components.data.building import STORE_FORMAT, StorePlan, build_store
from medcoss_components.data.manifest import Manifest, read_manifest
from medcoss_components.data.modalities import Modality, get_modality
from medcoss_components.data.preparation import resolve_preparation
from medcoss_components.data.shards import samples_per_shard, shard_entry, shard_name, write_shard
from medcoss_components.data.transforms import to_model_input
from medcoss_components.errors import InputError
from medcoss_components.files import atomic_folder, read_json, sha256_file, sha256_json, write_json
from medcoss_components.text.vocabulary import Vocabulary, load_vocabulary

SUBSET_ROWS = 256  # samples copied at once when a subset is written
_OPENING = threading.RLock()
Opened = TypeVar("Opened")


class _OpenedOnce(cached_property[Opened]):
    """A cached property that several threads compute once; from Python 3.12 on ``cached_property`` has no lock."""

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        with _OPENING:
            return super().__get__(instance, owner)


class Store(Dataset):
    """Prepared samples, memory-mapped; open one with :func:`open_store`.

    It pickles as its path, so data loader workers open it anew.

    Attributes:
        path: its folder.
        modality: the entry it was made for.
        key: SHA-256 of everything that decided its content.
        manifest_hash: of the manifest it was made from.
        dtype: NumPy dtype of the samples.

    Raises:
        InputError: when the folder holds no complete store or a file of it is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.index = _read_index(self.path)
        self.modality: Modality = get_modality(self.index["modality"])
        self.key: str = self.index["key"]
        self.manifest_hash: str = self.index["manifest"]["hash"]
        self.dtype = np.dtype(self.index["dtype"])
        self._ends = np.cumsum([shard["count"] for shard in self.index["shards"]], dtype=np.int64)

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.path,)

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}, {len(self)} samples of {self.modality.name})"

    def __len__(self) -> int:
        return int(self.index["count"])

    def __getitem__(self, position: int) -> dict[str, Any]:
        """One sample as model input: ``{"id": str, "image" or "text": tensor without batch axis}``."""
        position = range(len(self))[position]  # negative positions, IndexError beyond the end
        raw = torch.from_numpy(self.gather(np.array([position])))
        return {"id": self.ids[position], self.modality.content_key: to_model_input(self.modality, raw)[0]}

    def gather(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Copy samples out of the memory map.

        Args:
            indices: (n,) positions in 0 .. len - 1, in any order, repetitions allowed.

        Returns:
            (n, *stored_shape) in the stored dtype.

        Raises:
            InputError: when a position is outside the store.
        """
        rows = np.asarray(indices, dtype=np.int64).reshape(-1)
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise InputError(
                f"indices: must be in 0 .. {len(self) - 1} for {self.path.name}, got {rows.min()} .. {rows.max()}."
            )
        output = np.empty((len(rows), *self.index["sample_shape"]), self.dtype)
        shards = self._ends.searchsorted(rows, side="right")
        starts = np.flatnonzero(np.diff(shards, prepend=-1)).tolist()  # neighbours in one shard are copied together
        for start, stop in pairwise([*starts, len(rows)]):
            shard = int(shards[start])
            inside = rows[start:stop] - (self._ends[shard - 1] if shard else 0)
            # straight into the output, without the interpreter's lock; "clip" because "raise" would copy twice
            np.take(self._shards[shard], inside, axis=0, out=output[start:stop], mode="clip")
        return output

    @_OpenedOnce
    def _shards(self) -> list[np.ndarray]:
        return [np.load(self.path / shard["file"], mmap_mode="r") for shard in self.index["shards"]]

    @_OpenedOnce
    def _items(self) -> dict[str, list[Any]]:
        return read_json(self.path / "items.json")

    @property
    def ids(self) -> list[str]:
        """Sample ids; those of an item with several samples are ``<item id>#0``, ``#1``, ..."""
        return self._items["ids"]

    @property
    def labels(self) -> list[Any]:
        """Label of each sample's item, None where it has none."""
        return self._items["labels"]

    @property
    def groups(self) -> list[str]:
        """Group (salted patient hash) of each sample."""
        return self._items["groups"]

    @property
    def vocabulary_path(self) -> Path | None:
        """The vocabulary that a text store was written with; None for images."""
        return self.path / "vocabulary.json" if self.index["vocabulary_hash"] else None

    @property
    def report(self) -> dict[str, Any]:
        """What was left out: items, samples, bad_share, bad_items with id and reason, constant_samples_left_out."""
        return read_json(self.path / "report.json")

    def verify(self) -> None:
        """Compare every shard with its SHA-256 in the index.

        Raises:
            InputError: naming the first file that differs.
        """
        for shard in self.index["shards"]:
            if sha256_file(self.path / shard["file"]) != shard["sha256"]:
                raise InputError(
                    f"{self.path}/{shard['file']}: changed since it was written. Delete the store, prepare it again."
                )

    def write_subset(self, path: str | Path, indices: Sequence[int] | np.ndarray) -> Store:
        """Write a self-contained store of the chosen samples, in the order given; atomic, and reused if it is there.

        Args:
            path: folder of the new store.
            indices: (n,) positions, n >= 1.

        Raises:
            InputError: no index, a position outside, or a folder with other content at ``path``.
        """
        path, rows = Path(path), np.asarray(indices, dtype=np.int64).reshape(-1)
        if len(rows) == 0:
            raise InputError("indices: a subset needs at least one sample, got none.")
        key = sha256_json([self.key, rows.tolist()])
        if not path.exists():
            with atomic_folder(path) as folder:
                self._write_subset(folder, rows, key)
        subset = open_store(path)
        if subset.key != key:
            raise InputError(f"{path}: holds another store already. Delete it or choose another path.")
        return subset

    def _write_subset(self, folder: Path, indices: np.ndarray, key: str) -> None:
        shape = tuple(self.index["sample_shape"])
        step = samples_per_shard(int(np.prod(shape)) * self.dtype.itemsize)
        shards = []
        for number, start in enumerate(range(0, len(indices), step)):
            chosen, target = indices[start : start + step], folder / shard_name(number)
            write_shard(target, self._blocks(chosen), count=len(chosen), shape=shape, dtype=self.dtype)
            shards.append(shard_entry(target, len(chosen)))
        fields = {name: [values[i] for i in indices] for name, values in self._items.items()}
        write_json(folder / "items.json", fields)
        if self.vocabulary_path is not None:
            shutil.copyfile(self.vocabulary_path, folder / "vocabulary.json")
        report = {"items": len(indices), "samples": len(indices), "bad_share": 0.0, "bad_items": []}
        write_json(folder / "report.json", report | {"constant_samples_left_out": 0})
        changes = {"name": f"subset of {self.index['name']}", "key": key, "count": len(indices), "shards": shards}
        write_json(folder / "index.json", self.index | changes)

    def _blocks(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        for start in range(0, len(indices), SUBSET_ROWS):
            yield self.gather(indices[start : start + SUBSET_ROWS])


def open_store(path: str | Path) -> Store:
    """Open a prepared store.

    Raises:
        InputError: when the folder holds no complete store or a file of it is damaged; the message names it.
    """
    return Store(path)


def prepare_store(
    *,
    manifest: str | Path | Manifest,
    modality: str | Mapping[str, Any] | Modality | None = None,
    store_dir: str | Path,
    split: str = "training",
    vocabulary: str | Path | Vocabulary | None = None,
    preparation: Mapping[str, Any] | None = None,
    dataset_dir: str | Path | None = None,
    workers: int | None = None,
    max_bad_share: float = 0.01,
    progress: bool = True,
) -> Store:
    """Prepare a split of a data set, or open the store that was prepared from the same content before.

    One pass over the files in parallel. A killed run goes on where it was; the bytes do not depend on that or on the
    number of workers. Processes that ask for the same store at once wait for the one that came first. Call it below
    ``if __name__ == "__main__":`` in scripts, since worker processes import the main module.

    Args:
        manifest: path, or a manifest that was read.
        modality: name or entry, for example with another ``input_shape``; None takes the manifest's. A name takes the
            registry's entry.
        store_dir: folder of all stores.
        split: training, validation or testing.
        vocabulary: path or object; text only, and needed there.
        preparation: settings over those of the manifest and the modality, see
            :func:`~medcoss_components.data.preparation.default_preparation`.
        dataset_dir: folder that the manifest's paths start from; None: the manifest's own.
        workers: processes; None: one per core where it pays; 1: this process.
        max_bad_share: share of items that may be bad; those are left out and listed in ``report.json``.
        progress: show a progress bar with the time left.

    Returns:
        The open store.

    Raises:
        InputError: a wrong argument, more bad items than allowed (no store is left then), or a full disk.
    """
    if not 0 <= max_bad_share <= 1:
        raise InputError(f"max_bad_share={max_bad_share}: a share must be in 0 .. 1.")
    if workers is not None and workers < 1:
        raise InputError(f"workers={workers}: must be at least 1, or None to choose.")
    if not isinstance(manifest, Manifest):
        manifest = read_manifest(manifest, dataset_dir)
    manifest.items(split)  # refuses a split that does not exist
    entry = _entry_for(manifest, modality)
    plan = StorePlan(
        manifest=manifest,
        split=split,
        modality=entry,
        settings=resolve_preparation(entry, manifest.preparation, preparation),
        vocabulary=_vocabulary_for(entry, vocabulary),
        store_dir=Path(store_dir),
    )
    if not plan.path.exists():
        build_store(plan, workers=workers, max_bad_share=max_bad_share, progress=progress)
    store = open_store(plan.path)
    check_report(store.report, max_bad_share=max_bad_share, path=plan.path / "report.json")
    return store


def _entry_for(manifest: Manifest, modality: str | Mapping[str, Any] | Modality | None) -> Modality:
    entry = manifest.modality if modality is None else get_modality(modality)
    if entry.name != manifest.modality.name:
        raise InputError(
            f"modality: manifest {manifest.name} holds {manifest.modality.name}, got {entry.name}. "
            f"Give a manifest of {entry.name}, or a bundle or modality of {manifest.modality.name}."
        )
    return entry


def _vocabulary_for(entry: Modality, vocabulary: str | Path | Vocabulary | None) -> Vocabulary | None:
    if entry.dimension != 1:
        return None
    if vocabulary is None:
        raise InputError(f"vocabulary: modality {entry.name} is text and needs one, got None. Train or load one.")
    return vocabulary if isinstance(vocabulary, Vocabulary) else load_vocabulary(vocabulary)


def _read_index(path: Path) -> dict[str, Any]:
    """Read and check ``index.json`` and the sizes of the shards."""
    if not (path / "index.json").is_file():
        raise InputError(f"{path}: no complete store (index.json is missing). Prepare it with prepare_store.")
    index = read_json(path / "index.json")
    if index.get("format") != STORE_FORMAT:
        raise InputError(
            f"{path}: store format {index.get('format')}, this version reads {STORE_FORMAT}. Prepare the store again."
        )
    for shard in index["shards"]:
        file = path / shard["file"]
        size = file.stat().st_size if file.is_file() else None
        if size != shard["bytes"]:
            raise InputError(
                f"{file}: {shard['bytes']} bytes expected, found {size}. Delete the store, prepare it again."
            )
    return index
