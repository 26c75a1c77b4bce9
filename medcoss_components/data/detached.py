"""Items of several files: MetaImage ``.mhd`` and NRRD ``.nhdr`` with their voxels apart, the slices of a stack."""

from __future__ import annotations

import re
from pathlib import Path

from medcoss_components.data.readers_slices import content_files, is_slice_stack
from medcoss_components.errors import InputError

_FIELDS = {
    ".mhd": re.compile(rb"^(ElementDataFile[ \t]*=[ \t]*)([^\r\n]*?)([ \t]*\r?)$", re.MULTILINE | re.IGNORECASE),
    ".nhdr": re.compile(rb"^(data[ ]?file:[ \t]*)([^\r\n]*?)([ \t]*\r?)$", re.MULTILINE | re.IGNORECASE),
}
_HEADER_BYTES = 1 << 20


def voxel_files(path: Path) -> list[Path]:
    """The files that hold an item's voxels: the slices of a descriptor, a header and its data, else the file itself.

    Raises:
        InputError: a broken descriptor or header, or data that are missing.
    """
    data = None if is_slice_stack(path) else detached_data(path)
    return [path, data] if data else content_files(path)


def detached_data(path: Path) -> Path | None:
    """The data file that a header names; None for other files, and for headers with the voxels behind them.

    Raises:
        InputError: the header names several files, or one that is missing.
    """
    field = _FIELDS.get(path.suffix.lower())
    match = field.search(_header(path)) if field else None
    if match is None or match.group(2).upper() == b"LOCAL":
        return None
    name = match.group(2).decode("utf-8", errors="replace")
    if name.upper().startswith("LIST") or "%" in name:
        raise InputError(f"{path}: its data lie in several files. Convert it to a single one, such as .nii.gz or .mha.")
    data = path.parent / name
    if not data.is_file():
        raise InputError(f"{path}: the data file that its header names is missing. Restore it or leave the item out.")
    return data


def with_other_data(path: Path, name: str) -> bytes:
    """Content of a header that names another data file."""
    return _FIELDS[path.suffix.lower()].sub(
        lambda match: match.group(1) + name.encode() + match.group(3), _header(path)
    )


def _header(path: Path) -> bytes:
    with open(path, "rb") as stream:
        return stream.read(_HEADER_BYTES)
