"""NCT-CRC-HE-100K and CRC-VAL-HE-7K: tiles of colorectal tissue, one folder per class in one folder per split."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from medcoss_components.data.adapters.beside import is_beside, odd_files
from medcoss_components.data.adapters.findings import DatasetSource, Findings, Found, LeftOut, is_hidden
from medcoss_components.data.adapters.picture_headers import with_sizes
from medcoss_components.data.manifest import SPLITS
from medcoss_components.errors import InputError

CLASSES = ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")
SUFFIX = ".tif"


def find(source: DatasetSource) -> Findings:
    """Tiles of the folders that the settings name for training, validation and testing.

    Raises:
        InputError: another layout: a folder is missing or has no folder of a class.
    """
    folders = {split: source.settings[split] for split in SPLITS if source.settings.get(split)}
    if not folders or len({*map(str, folders.values())}) < len(folders) or not _are_texts(folders.values()):
        raise InputError(f"training, testing: each must name a folder of its own, got {folders}.")
    base = source.locate(*folders.values())
    found, left = list[Found](), list[LeftOut]()
    for split, name in folders.items():
        place = _unpacked(base / name)
        if place is None:
            raise InputError(
                f"{base / name}: holds none of the folders {', '.join(CLASSES)} with the tiles of a class. Unpack the "
                "archive as it comes."
            )
        tiles, more = _split(base, place, split)
        found += tiles
        left += more
        if place != base / name:
            left += _others(source, base, base / name, {name})
    found, more = with_sizes(found)
    return found, left + _others(source, base, base, set(folders.values())) + more


def _are_texts(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _others(source: DatasetSource, base: Path, folder: Path, used: set[str]) -> list[LeftOut]:
    """What lies beside the used folders: folders of tiles, such as the set without colour normalisation, and others."""
    paths = [folder / entry.name for entry in _entries(folder) if entry.name not in used]
    kinds = [path for path in paths if path.is_dir() and _unpacked(path)]
    why = "tiles of another kind (--set training=... or testing=... takes them)"
    left = [LeftOut(path.relative_to(base).as_posix(), why) for path in kinds]
    made = source.files_dir.absolute()
    odd = [path for path in paths if path not in kinds and path.absolute() != made and not source.is_output(path)]
    return left + odd_files(odd, base, "not part of what is read")


def _unpacked(folder: Path) -> Path | None:
    """The folder of the classes; archives that were unpacked into a folder of their own name nest it twice."""
    places = (folder, folder / folder.name)
    return next((place for place in places if any((place / name).is_dir() for name in CLASSES)), None)


def _split(base: Path, folder: Path, split: str) -> Findings:
    found, left = list[Found](), list[LeftOut]()
    for entry in _entries(folder):
        where = Path(entry.path).relative_to(base).as_posix()
        if not entry.is_dir():
            left.append(LeftOut(where, "a file beside the folders of the classes"))
        elif entry.name not in CLASSES:
            left.append(LeftOut(where, "no folder of a class"))
        else:
            tiles, more = _class(base, entry, split)
            found += tiles
            left += more
    return found, left


def _class(base: Path, folder: os.DirEntry[str], split: str) -> Findings:
    found, left = list[Found](), list[LeftOut]()
    for entry in _entries(folder.path):
        path = Path(entry.path)
        where = path.relative_to(base).as_posix()
        if problem := _problem(path, folder.name):
            left.append(LeftOut(where, problem))
            continue
        name = where[: -len(SUFFIX)]
        found.append(Found(name=name, path=path, label=folder.name, split=split, files=(path,)))
    return found, left


def _problem(path: Path, label: str) -> str:
    """Why a file in the folder of a class is no tile of it, or ""."""
    if path.suffix.lower() != SUFFIX:
        return f"tiles of this data set end in {SUFFIX}"
    if not path.name.startswith(f"{label}-"):
        return f"its name does not begin with {label}-, the class of its folder"
    return ""


def _entries(folder: str | Path) -> Iterator[os.DirEntry[str]]:
    """What a folder holds, by name, without hidden and well-known files."""
    with os.scandir(folder) as entries:
        shown = [entry for entry in entries if not is_hidden(entry.name) and not is_beside(Path(entry.name))]
    yield from sorted(shown, key=lambda entry: entry.name)
