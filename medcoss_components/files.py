"""Writing files so that a reader never sees half of one, and hashing them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medcoss_components.errors import DiskFullError, InputError

PARTIAL_SUFFIX = ".partial"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one behind it, says that the disk, the quota on it or the largest file size is reached."""
    while error is not None:
        if isinstance(error, DiskFullError) or (isinstance(error, OSError) and _tells_no_room(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _tells_no_room(error: OSError) -> bool:
    """By its number; NumPy tells an array that was cut short without one ("10 requested and 8 written")."""
    return error.errno in NO_ROOM or (error.errno is None and "requested and" in str(error))


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Say which file has no room; torch tells it as a RuntimeError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if isinstance(error, DiskFullError) or not is_disk_full(error):
            raise
        there = next(folder for folder in path.absolute().parents if folder.is_dir())
        raise DiskFullError(
            f"{path}: the disk, or the quota on it, is full ({shutil.disk_usage(there).free} bytes are free). Free "
            "some room and run the same command again; it goes on from what was finished, nothing unfinished is used."
        ) from error


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on success flush it to disk and rename it to ``path``.

    The temporary name carries the process number, so two processes never write into each other's file. When the block
    raises, the temporary file is removed and ``path`` keeps its former content.
    """
    path = Path(path)
    partial = path.with_name(f".{path.stem}.{os.getpid()}{PARTIAL_SUFFIX}{path.suffix}")
    try:
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            with open(partial, "rb") as stream:
                os.fsync(stream.fileno())
            os.replace(partial, path)
            _sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Like :func:`atomic_path` for a folder that does not exist yet: fill the temporary folder, then rename it."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL_SUFFIX}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with _explained(path):
            partial.mkdir(parents=True)
            yield partial
            os.replace(partial, path)
            _sync_folder(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_partial(folder: str | Path) -> int:
    """Remove what interrupted writers left behind in ``folder`` (not below it); return how many entries."""
    leftovers = [entry for entry in Path(folder).glob(f".*{PARTIAL_SUFFIX}*")] if Path(folder).is_dir() else []
    for entry in leftovers:
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
    return len(leftovers)


def folder_of(path: str | Path) -> Path:
    """A folder itself; of anything else the folder that it lies in."""
    path = Path(path)
    return path if path.is_dir() else path.parent


def file_beside(path: str | Path | None, name: str) -> Path | None:
    """The file ``name`` in a folder, or beside a file; None where there is none, or no ``path``."""
    found = folder_of(path) / name if path else None
    return found if found is not None and found.is_file() else None


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any) -> None:
    """Write ``content`` as indented JSON, atomically."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: when the file is missing or is not JSON; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file. Give the path of an existing JSON file.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a JSON file ({error}). Write it again or restore it.") from error


def check_archive(path: str | Path) -> None:
    """Compare the contents of a zip archive, the form of ``torch.save``, with the checksums that it carries.

    ``torch.load`` does not look at them: a changed byte would become a changed weight. Other files pass.

    Raises:
        InputError: when a checksum differs; the message names the file.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        damaged = str(error)
    if damaged is not None:
        raise InputError(f"{path}: damaged since it was written ({damaged} differs from its checksum).")


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_json(content: Any) -> str:
    """SHA-256 of a JSON value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
