"""The rehearsal buffer: which samples of a stage later stages rehearse, and how to read them again.

``buffer.json`` names the exemplars and the store that holds them; the modality's registry entry stands in the file, so
a modality of one's own needs no other registration. A materialised buffer carries a store of its own beside the file,
so that the next stage runs where the earlier data cannot go. Paths in the file are relative to the file; in memory they
are absolute.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medcoss_components.continual.exemplars import Exemplars
from medcoss_components.continual.store_view import StoreView
from medcoss_components.data.modalities import Modality, get_modality
from medcoss_components.data.store import Store, open_store
from medcoss_components.errors import InputError
from medcoss_components.files import PARTIAL_SUFFIX, read_json, write_text

BUFFER_FORMAT = 1
BUFFER_NAME = "buffer.json"
BUFFER_STORE_NAME = "buffer_store"


@dataclass(frozen=True, kw_only=True)
class Buffer:
    """The exemplars of one stage. Row ``i`` of ids, indices, clusters and distances speaks of the same sample.

    Attributes:
        modality: full registry entry as plain values; see :attr:`entry`.
        ids: sample ids in the store.
        indices: rows of the store, ascending, none twice.
        clusters: k-means cluster of each exemplar.
        distances: Euclidean distance of each exemplar to its cluster's centre.
        encoder_hash: SHA-256 of the encoder weights that chose them.
        manifest_hash: hash of the manifest that the samples come from.
        store_key: key of the store that the indices count in.
        store: absolute path where that store was.
        materialised: absolute path of the buffer's own store, or None.
        ratio: share of the samples asked for.
        seed: seed of the choice.
        source_size: N, samples in the store.
    """

    modality: Mapping[str, Any]
    ids: tuple[str, ...]
    indices: tuple[int, ...]
    clusters: tuple[int, ...]
    distances: tuple[float, ...]
    encoder_hash: str
    manifest_hash: str
    store_key: str
    store: str
    ratio: float
    seed: int
    source_size: int
    materialised: str | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def name(self) -> str:
        """Name of the modality."""
        return str(self.modality["name"])

    @property
    def entry(self) -> Modality:
        """The modality's registry entry; a new name is registered by asking for it."""
        return get_modality(self.modality)


def make_buffer(
    *, store: Store | StoreView, exemplars: Exemplars, encoder_hash: str, ratio: float, seed: int
) -> Buffer:
    """Describe the chosen samples of a store; nothing is written.

    Args:
        store: the store whose samples were embedded, in its own order.
        exemplars: the choice; see :func:`~medcoss_components.continual.exemplars.select_exemplars`.
        encoder_hash: SHA-256 of the encoder weights.
        ratio: share of the samples asked for.
        seed: seed of the choice.
    """
    return Buffer(
        modality=store.modality.to_dict(),
        ids=tuple(str(store.ids[row]) for row in exemplars.indices),
        indices=tuple(int(row) for row in exemplars.indices),
        clusters=tuple(int(number) for number in exemplars.clusters),
        distances=tuple(float(f"{distance:.6g}") for distance in exemplars.distances),
        encoder_hash=encoder_hash,
        manifest_hash=store.manifest_hash,
        store_key=store.key,
        store=str(Path(store.path).resolve()),
        ratio=float(ratio),
        seed=int(seed),
        source_size=len(store),
    )


def _buffer_file(path: str | Path) -> Path:
    path = Path(path)
    return path if path.suffix == ".json" and not path.is_dir() else path / BUFFER_NAME


def _relative(path: str, folder: Path) -> str:
    """``path`` as seen from ``folder``; unchanged where there is no relative way (another drive)."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:
        return path


def _absolute(path: str, folder: Path) -> str:
    return os.path.normpath(folder / path)


def write_buffer(buffer: Buffer, path: str | Path) -> Path:
    """Write ``buffer.json`` atomically, one exemplar a line; the file's folder may be moved or copied afterwards.

    Args:
        buffer: what to write.
        path: the file (``*.json``) or the stage's folder.

    Returns:
        The file written.
    """
    file = _buffer_file(path)
    folder = Path(os.path.abspath(file)).parent.resolve()
    header = {
        "format": BUFFER_FORMAT,
        "modality": dict(buffer.modality),
        "size": len(buffer),
        "source_size": buffer.source_size,
        "ratio": buffer.ratio,
        "seed": buffer.seed,
        "encoder_hash": buffer.encoder_hash,
        "manifest_hash": buffer.manifest_hash,
        "store_key": buffer.store_key,
        "store": _relative(buffer.store, folder),
        "materialised": None if buffer.materialised is None else _relative(buffer.materialised, folder),
    }
    rows = zip(buffer.ids, buffer.indices, buffer.clusters, buffer.distances, strict=True)
    lines = [
        json.dumps({"id": name, "index": index, "cluster": cluster, "distance": distance}, ensure_ascii=False)
        for name, index, cluster, distance in rows
    ]
    opening = json.dumps(header, indent=2, ensure_ascii=False).removesuffix("\n}")
    text = f'{opening},\n  "exemplars": [\n    ' + ",\n    ".join(lines) + "\n  ]\n}\n"
    write_text(file, text)
    return file


def read_buffer(path: str | Path) -> Buffer:
    """Read ``buffer.json``; the modality need not be registered.

    Args:
        path: the file or the stage's folder.

    Raises:
        InputError: the file is missing, is not a buffer, has another format version or contradicts itself.
    """
    file = _buffer_file(path)
    content = read_json(file)
    found = content.get("format") if isinstance(content, dict) else None
    if found != BUFFER_FORMAT:
        raise InputError(
            f"{file}: a buffer has format {BUFFER_FORMAT}, found {found!r}. "
            "Give a buffer.json written by this version, or choose the exemplars again."
        )
    try:
        buffer = _buffer_from(content, file.resolve().parent)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file}: not a complete buffer ({type(error).__name__}: {error}). Write it again.") from error
    _check_buffer(buffer, size=content.get("size"), file=file)
    return buffer


def _buffer_from(content: dict[str, Any], folder: Path) -> Buffer:
    rows, materialised = content["exemplars"], content["materialised"]
    return Buffer(
        modality=Modality.from_dict(content["modality"]).to_dict(),
        ids=tuple(str(row["id"]) for row in rows),
        indices=tuple(int(row["index"]) for row in rows),
        clusters=tuple(int(row["cluster"]) for row in rows),
        distances=tuple(float(row["distance"]) for row in rows),
        encoder_hash=str(content["encoder_hash"]),
        manifest_hash=str(content["manifest_hash"]),
        store_key=str(content["store_key"]),
        store=_absolute(content["store"], folder),
        ratio=float(content["ratio"]),
        seed=int(content["seed"]),
        source_size=int(content["source_size"]),
        materialised=None if materialised is None else _absolute(materialised, folder),
    )


def _check_buffer(buffer: Buffer, *, size: object, file: Path) -> None:
    if len(buffer) < 1 or size != len(buffer):
        raise InputError(
            f"{file}: size must be the number of exemplars and at least 1, found {size} and {len(buffer)}."
        )
    if len(set(buffer.indices)) < len(buffer) or len(set(buffer.ids)) < len(buffer):
        raise InputError(f"{file}: an exemplar stands in the list twice.")
    outside = [row for row in buffer.indices if not 0 <= row < buffer.source_size]
    if outside:
        raise InputError(f"{file}: index must lie in 0..{buffer.source_size - 1}, found {outside[0]}.")
    wrong = [distance for distance in buffer.distances if not (math.isfinite(distance) and distance >= 0)]
    if wrong:
        raise InputError(f"{file}: distance must be finite and not negative, found {wrong[0]}.")


def open_buffer_store(buffer: Buffer, store_dir: str | Path | None = None) -> StoreView:
    """Open exactly the exemplars of a buffer, in the buffer's order.

    The buffer's own materialised store wins. Else the store is looked for where it was and in ``store_dir`` under the
    same folder name, and must have the key recorded in the buffer.

    Args:
        buffer: the buffer as read.
        store_dir: folder that holds prepared stores.

    Raises:
        InputError: no usable store is left; the message lists what was tried and says what to do.
    """
    buffer.entry  # noqa: B018  a modality of one's own is registered here
    tried: list[str] = []
    if buffer.materialised is not None and (view := _try_store(buffer, Path(buffer.materialised), tried, own=True)):
        return view
    places = [Path(buffer.store)]
    if store_dir is not None:
        places.append(Path(store_dir) / places[0].name)
    for place in places:
        if view := _try_store(buffer, place, tried):
            return view
    raise InputError(
        f"The buffer of {buffer.name} ({len(buffer)} samples, store key {buffer.store_key}) has no usable store: "
        f"{'; '.join(tried)}. Give --store_dir the folder that holds {places[0].name}, or materialise the buffer "
        "where the data is and copy it with its folder."
    )


def _try_store(buffer: Buffer, place: Path, tried: list[str], *, own: bool = False) -> StoreView | None:
    """A view on the store at ``place``, or None and the reason added to ``tried``."""
    if not place.is_dir():
        tried.append(f"{place}: no such folder")
        return None
    try:
        store = open_store(place)
    except InputError as error:
        tried.append(str(error))
        return None
    if not own and store.key != buffer.store_key:
        tried.append(f"{place}: has another key, {store.key}")
        return None
    rows = range(len(buffer)) if own else buffer.indices
    if (own and len(store) != len(buffer)) or any(row >= len(store) for row in rows):
        tried.append(f"{place}: has {len(store)} samples")
        return None
    view = StoreView(store, rows)
    if view.ids != list(buffer.ids) or view.manifest_hash != buffer.manifest_hash:
        tried.append(f"{place}: does not hold the ids of the buffer, or was made from another manifest")
        return None
    return view


def materialise_buffer(buffer: Buffer, store: Store | StoreView, path: str | Path) -> Buffer:
    """Copy the exemplars into a store of their own, atomically; write the returned buffer with :func:`write_buffer`.

    A store that stands at ``path`` already is replaced: it may come from an earlier choice.

    Args:
        buffer: the choice.
        store: the store that the buffer's indices count in, or the view that :func:`open_buffer_store` gives.
        path: folder of the copy, usually ``buffer_store`` beside ``buffer.json``.

    Returns:
        The buffer with ``materialised`` set.

    Raises:
        InputError: the store does not hold the buffer's samples, or ``path`` is a folder that is not a store.
    """
    indices = np.arange(len(buffer)) if len(store) == len(buffer) else np.asarray(buffer.indices)
    held = [str(store.ids[row]) for row in indices if row < len(store)]
    if held != list(buffer.ids):
        raise InputError(f"store: {store.path} does not hold the {len(buffer)} samples of the buffer of {buffer.name}.")
    path = Path(path).resolve()
    if path == Path(store.path).resolve():
        raise InputError(f"path: {path} is the store to copy from. Give another folder.")
    _remove_former(path)
    store.write_subset(path, indices)
    return replace(buffer, materialised=str(path))


def _remove_former(path: Path) -> None:
    """Remove a store in one step for any reader: rename it, then delete."""
    if not path.exists():
        return
    try:
        open_store(path)
    except InputError as error:
        raise InputError(f"path: {path} exists and is not a usable store ({error}). Give a new folder.") from error
    doomed = path.with_name(f".{path.name}.{os.getpid()}.former{PARTIAL_SUFFIX}")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)
