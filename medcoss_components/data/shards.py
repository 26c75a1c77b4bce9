"""Files of a store: parts while it is prepared, shards when it is finished, and the index.

A part holds the samples of a few items as raw bytes beside a small JSON file whose existence says that it is whole.
Shards are ``.npy`` files of at most 1 GiB that are memory-mapped for reading.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from medcoss_components.data.manifest import Item
from medcoss_components.data.modalities import Modality
from medcoss_components.data.preparation import encode_texts, prepare_item
from medcoss_components.errors import InputError
from medcoss_components.files import atomic_path, is_disk_full, read_json, sha256_file, write_json
from medcoss_components.text.vocabulary import Vocabulary

SHARD_BYTES = 1 << 30
COPY_BYTES = 64 << 20
PART_ITEMS = {1: 16384, 2: 128, 3: 4}  # items per part by dimension, at most
PARTS_AT_LEAST = 32  # a small data set is cut finer, so that every worker has something to do


@dataclass(frozen=True, kw_only=True)
class PartJob:
    """What one worker does at a time: the items of one part.

    Args:
        number: position of the part in the store.
        items: its items, in the manifest's order.
        modality, settings: what to make of them.
        folder: where ``part-<number>.bin`` and ``.json`` go.
        root: the data set's folder, cut from paths in reasons.
        vocabulary: for text.
    """

    number: int
    items: tuple[Item, ...]
    modality: Modality
    settings: Mapping[str, Any]
    folder: Path
    root: Path | None = None
    vocabulary: Vocabulary | None = None

    @property
    def data_path(self) -> Path:
        return self.folder / f"part-{self.number:06d}.bin"

    @property
    def note_path(self) -> Path:
        return self.folder / f"part-{self.number:06d}.json"


def split_into_jobs(items: Sequence[Item], **common: Any) -> list[PartJob]:
    """Cut a split into parts; the cut depends on the number of items alone, so every run cuts alike."""
    step = max(1, min(PART_ITEMS[common["modality"].dimension], -(-len(items) // PARTS_AT_LEAST)))
    if common["modality"].dimension == 1:
        step = PART_ITEMS[1]
    starts = range(0, len(items), step)
    return [PartJob(number=n, items=tuple(items[start : start + step]), **common) for n, start in enumerate(starts)]


def stored_dtype(modality: Modality, vocabulary: Vocabulary | None) -> np.dtype:
    """The dtype of the samples in little-endian order; a large vocabulary needs uint32."""
    name = modality.stored_dtype if vocabulary is None else vocabulary.dtype
    return np.dtype(name).newbyteorder("<")


def sample_bytes(modality: Modality, dtype: np.dtype) -> int:
    """Bytes of one stored sample."""
    return int(np.prod(modality.stored_shape)) * dtype.itemsize


def finished_note(job: PartJob, *, with_bad: bool = True) -> dict[str, Any] | None:
    """The note of a part that an earlier run finished, else None.

    Args:
        job: the part.
        with_bad: whether a part with bad items counts as finished; it does not when a run starts, since somebody may
            have repaired a file.
    """
    if not job.note_path.is_file() or not job.data_path.is_file():
        return None
    note = read_json(job.note_path)
    if note["bytes"] != job.data_path.stat().st_size or (note["bad"] and not with_bad):
        return None
    return note


def prepare_part(job: PartJob) -> dict[str, Any]:
    """Make one part and return its note.

    Returns:
        ``counts`` samples of each item, ``bad`` reasons by position in the part, ``constant`` number of samples left
        out because all their values are equal, ``bytes`` size of the data file.

    Raises:
        OSError: when the disk is full. Anything wrong with an item is noted as a reason instead.
    """
    job.note_path.unlink(missing_ok=True)
    with atomic_path(job.data_path) as partial:
        note = _text_part(job, partial) if job.modality.dimension == 1 else _image_part(job, partial)
        note["bytes"] = partial.stat().st_size
    write_json(job.note_path, note)
    return note


def _text_part(job: PartJob, path: Path) -> dict[str, Any]:
    if job.vocabulary is None:
        raise InputError(f"vocabulary: modality {job.modality.name} is text and needs one to be stored, got None.")
    ids, bad = encode_texts(job.items, modality=job.modality, settings=job.settings, vocabulary=job.vocabulary)
    path.write_bytes(ids.astype(stored_dtype(job.modality, job.vocabulary), copy=False).tobytes())
    counts = [int(position not in bad) for position in range(len(job.items))]
    return {"counts": counts, "bad": {str(position): reason for position, reason in bad.items()}, "constant": 0}


def _image_part(job: PartJob, path: Path) -> dict[str, Any]:
    note: dict[str, Any] = {"counts": [], "bad": {}, "constant": 0}
    with open(path, "wb") as stream:
        for position, item in enumerate(job.items):
            start = stream.tell()
            try:
                count, constant = _write_samples(job, item, stream)
            except Exception as error:
                if isinstance(error, MemoryError) or is_disk_full(error):
                    raise
                stream.seek(start)
                stream.truncate()
                count, constant = 0, 0
                note["bad"][str(position)] = _reason(error, job.root)
            note["counts"].append(count)
            note["constant"] += constant
    return note


def _write_samples(job: PartJob, item: Item, stream: BinaryIO) -> tuple[int, int]:
    """Append the samples of one item; return how many, and how many constant ones were left out."""
    dtype, count, constant = stored_dtype(job.modality, None), 0, 0
    for sample in prepare_item(item, modality=job.modality, settings=job.settings):
        if sample.min() == sample.max():
            constant += 1
        else:
            stream.write(np.ascontiguousarray(sample, dtype=dtype).tobytes())
            count += 1
    if count == 0:
        raise InputError("every sample of the item is constant")
    return count, constant


def _reason(error: Exception, root: Path | None) -> str:
    """Why an item is bad. Other errors than ours may quote headers, which can identify a patient: only their kind."""
    if not isinstance(error, InputError):
        return f"the file could not be read ({type(error).__name__})"
    return _without_root(str(error), root)


def _without_root(reason: str, root: Path | None) -> str:
    """Cut the data set's folder from a reason, so that reports do not depend on where the data lie."""
    return reason if root is None else reason.replace(f"{root}{os.sep}", "")


def write_shard(
    path: Path, blocks: Iterable[np.ndarray | bytes], *, count: int, shape: tuple[int, ...], dtype: np.dtype
) -> None:
    """Write one ``.npy`` shard atomically from consecutive blocks of samples."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (count, *shape)}
    with atomic_path(path) as partial, open(partial, "wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for block in blocks:
            stream.write(block if isinstance(block, bytes) else block.tobytes())


def file_blocks(paths: Iterable[Path]) -> Iterable[bytes]:
    """The bytes of several files one after the other, 64 MiB at a time."""
    for path in paths:
        with open(path, "rb") as stream:
            while block := stream.read(COPY_BYTES):
                yield block


def samples_per_shard(bytes_per_sample: int) -> int:
    return max(1, SHARD_BYTES // bytes_per_sample)


def group_parts(counts: list[int], limit: int) -> list[list[int]]:
    """Consecutive parts per shard: as many as fit into ``limit`` samples; a larger part is a shard of its own.

    >>> group_parts([3, 3, 3, 9, 0, 1], 6)
    [[0, 1], [2], [3], [4, 5]]
    """
    groups: list[list[int]] = []
    filled = limit + 1
    for part, count in enumerate(counts):
        if filled + count > limit:
            groups.append([])
            filled = 0
        groups[-1].append(part)
        filled += count
    return groups


def shard_entry(path: Path, count: int) -> dict[str, Any]:
    """What the index says about a shard."""
    return {"file": path.name, "count": count, "bytes": path.stat().st_size, "sha256": sha256_file(path)}


def sample_id(item_id: str, number: int, several: bool) -> str:
    """``<item id>#<number>`` where an item may give several samples, else the item's id."""
    return f"{item_id}#{number}" if several else item_id


def shard_name(number: int) -> str:
    return f"shard-{number:04d}.npy"
