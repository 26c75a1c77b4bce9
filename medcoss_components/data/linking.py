"""Hashed names for files whose own names would tell who the patient is: links in ``<manifest>.files`` beside it.

Hard links where the file system allows, else symbolic ones; no data are copied. A manifest that names the links can be
shown to others, and moves together with the folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from medcoss_components.data.adapters.findings import Found, LeftOut, bare_name, reason
from medcoss_components.data.detached import detached_data, with_other_data
from medcoss_components.data.identifiers import hash_identifier
from medcoss_components.data.readers_slices import is_slice_stack, read_slice_stack, write_slice_stack
from medcoss_components.errors import InputError
from medcoss_components.files import PARTIAL_SUFFIX, atomic_path, remove_partial
from medcoss_components.progress import progress

DATA = "_data"
"""What the name of a header's data file has behind the header's."""
_OURS = re.compile(rf"[0-9a-f]{{16}}(_mask)?({DATA})?(\.[a-z.]+)?")
_DATA_SUFFIXES = (".raw", ".zraw", ".gz")


def files_folder(manifest: Path) -> Path:
    """Folder beside a manifest that holds its links."""
    return manifest.with_name(f"{manifest.stem}.files")


def item_id(item: Found, salt: str) -> str:
    """Id of an item: a salted hash of its place."""
    return hash_identifier(f"item {item.keys.get('file', '')} {item.name}", salt)


def link_items(found: Sequence[Found], folder: Path, salt: str) -> tuple[list[Found], list[LeftOut]]:
    """Link every item's file, series and mask into ``folder``, named by the item's id.

    Args:
        found: items; a label that is a ``Path`` is a mask.
        folder: made where it is missing; see :func:`remove_other_links`.
        salt: of the ids.

    Returns:
        the items with the links as paths; those that cannot be linked, because their data lie in several files.
    """
    remove_partial(folder)
    linked, left = list[Found](), list[LeftOut]()
    for item in progress(found, description="link files", unit="item"):
        try:
            linked.append(_linked(item, folder, item_id(item, salt)))
        except InputError as error:
            left.append(LeftOut(item.name, reason(error, item.path) if item.path else str(error)))
    return linked, left


def _linked(item: Found, folder: Path, name: str) -> Found:
    path, label = item.path, item.label
    if path is not None and path.is_dir():
        path = link_series(item.files, folder / name)
    elif path is not None:
        path = _link_one(path, folder, name)
    if isinstance(label, Path):
        label = _link_one(label, folder, f"{name}_mask")
    return replace(item, path=path, label=label)


def _link_one(source: Path, folder: Path, name: str) -> Path:
    """Link a file, and what a header or descriptor names; the suffix stays, readers go by it."""
    target = folder / f"{name}{source.name[len(bare_name(source.name)) :].lower()}"
    if is_slice_stack(source):
        stack = read_slice_stack(source)
        slices = link_files(stack.slices, folder / name, stack.slices[0].suffix.lower())
        write_slice_stack(target, replace(stack, slices=slices))
        return target
    data = detached_data(source)
    if data is None:
        link_file(source, target)
        return target
    suffix = data.suffix.lower() if data.suffix.lower() in _DATA_SUFFIXES else _DATA_SUFFIXES[0]
    other = folder / f"{name}{DATA}{suffix}"
    link_file(data, other)
    with atomic_path(target) as partial:
        partial.write_bytes(with_other_data(source, other.name))
    return target


def link_series(files: Sequence[Path], folder: Path) -> Path:
    """Link the files of a DICOM series into a folder of its own; others in it are removed."""
    link_files(files, folder, ".dcm")
    return folder


def link_files(files: Sequence[Path], folder: Path, suffix: str) -> tuple[Path, ...]:
    """Link files into a folder of their own as 00000, 00001, ... with a suffix; others in it are removed."""
    links = tuple(folder / f"{number:05d}{suffix}" for number in range(len(files)))
    for file, link in zip(files, links, strict=True):
        link_file(file, link)
    for old in set(folder.iterdir()) - set(links):
        old.unlink()
    return links


def link_file(source: Path, target: Path) -> None:
    """Make ``target`` a hard link, else a symbolic link, to a file; one that stands there already is kept or replaced.

    Raises:
        InputError: the file system has neither.
    """
    source = Path(os.path.realpath(source))
    if target.exists() and target.samefile(source):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}{PARTIAL_SUFFIX}")
    partial.unlink(missing_ok=True)
    try:
        _link(source, partial)
        os.replace(partial, target)
    except OSError as error:
        raise InputError(
            f"{target.parent}: the file system makes no links ({error.strerror}). Write the manifest elsewhere, or "
            "give --keep-names where the names are pseudonyms."
        ) from error


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        target.symlink_to(source)


def remove_other_links(folder: Path, used: Collection[Path]) -> None:
    """Remove links of a former manifest from its folder; ``used`` are the paths that the new one names.

    Only names that :func:`link_items` and the sorting of series make are touched.
    """
    kept = {_stem(path) for path in used if path.parent == folder}
    for entry in folder.iterdir() if folder.is_dir() else ():
        if _OURS.fullmatch(entry.name) and _stem(entry) not in kept:
            _remove(entry)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _stem(path: Path) -> str:
    return path.name.partition(".")[0].removesuffix(DATA)


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        for file in entry.iterdir():
            file.unlink()
        entry.rmdir()
    else:
        entry.unlink()
