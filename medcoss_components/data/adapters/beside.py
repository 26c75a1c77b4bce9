"""Files that lie beside the data of a published data set and need no word: read-me files, licences, checksums."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from medcoss_components.data.adapters.findings import LeftOut

_STEMS = ("readme", "license", "licence", "changelog", "faq", "md5sum", "md5sums", "sha256sums")
_SUFFIXES = (".md5", ".sha256", ".html", ".ini", ".db")
_ARCHIVES = (".zip", ".gz", ".tar", ".tgz", ".7z", ".rar")
_READ_COMPRESSED = (".nii.gz", ".csv.gz", ".tsv.gz", ".xml.gz", ".jsonl.gz")
SHOWN = 3
"""Up to so many odd files of a folder are listed one by one."""


def is_beside(path: Path) -> bool:
    """Whether a file is a read-me, licence or checksum file, or one that a file browser left.

    >>> is_beside(Path("a/README.md")), is_beside(Path("a/volume-0.nii"))
    (True, False)
    """
    return path.name.lower().split(".")[0] in _STEMS or path.suffix.lower() in _SUFFIXES


def odd_files(files: Iterable[Path], root: Path, why: str) -> list[LeftOut]:
    """What is left out because it is no part of the data set: each file, or the folder where there are many.

    Args:
        files: not used, of any kind.
        root: that the listed places count from.
        why: the reason.
    """
    folders: dict[Path, list[Path]] = defaultdict(list)
    for path in files:
        if not is_beside(path):
            folders[path.parent].append(path)
    left: list[LeftOut] = []
    for folder, entries in sorted(folders.items()):
        if len(entries) > SHOWN:
            left.append(LeftOut(folder.relative_to(root).as_posix(), f"{len(entries)} files: {why}"))
            continue
        left += [LeftOut(path.relative_to(root).as_posix(), _archive(path) or why) for path in sorted(entries)]
    return left


def _archive(path: Path) -> str:
    """What to do with an archive, "" for other files; volumes and tables are read compressed."""
    name = path.name.lower()
    return "an archive; unpack it" if name.endswith(_ARCHIVES) and not name.endswith(_READ_COMPRESSED) else ""
