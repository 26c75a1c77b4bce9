"""One's own files: images, volumes and texts below a folder, found by their suffix and looked at by their headers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from medcoss_components.data.adapters.findings import (
    TEXT_SUFFIXES,
    VOLUME_SUFFIXES,
    Findings,
    Found,
    LeftOut,
    bare_name,
    header_size,
    reason,
    walk,
)
from medcoss_components.data.detached import voxel_files
from medcoss_components.data.readers import read_texts
from medcoss_components.data.readers_image import IMAGE_SUFFIXES
from medcoss_components.errors import InputError
from medcoss_components.progress import progress

GROUP_COLUMNS = ("group", "patient")


@dataclass(frozen=True)
class LeftFile(LeftOut):
    """What was left out, with what a table of labels may call it; see :class:`Found` for the keys."""

    keys: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)


def left_item(item: Found, why: str) -> LeftFile:
    """An item that is left out."""
    return LeftFile(item.name, why, {**item.keys, "patient": item.patient or item.keys.get("patient", "")})


def find_images(root: Path, *, exclude: Collection[Path] = ()) -> Findings:
    """PNG, JPEG, BMP and TIFF files below ``root``."""
    return _find_files(root, IMAGE_SUFFIXES, exclude)


def find_volumes(root: Path, *, exclude: Collection[Path] = ()) -> Findings:
    """NIfTI, NRRD and MetaImage files below ``root``."""
    return _find_files(root, VOLUME_SUFFIXES, exclude)


def _find_files(root: Path, suffixes: tuple[str, ...], exclude: Collection[Path]) -> Findings:
    found, left, data = list[Found](), list[LeftOut](), set[Path]()
    for path in progress(walk(root, exclude), description="look at files", unit="file"):
        relative = path.relative_to(root).as_posix()
        if not path.name.lower().endswith(suffixes):
            left.append(LeftOut(relative, f"files ending in {path.suffix or 'nothing'} are not read here"))
            continue
        try:
            size, files = header_size(path), tuple(voxel_files(path))
        except InputError as error:
            left.append(LeftOut(relative, reason(error, path)))
            continue
        data |= {*files}
        keys = {"file": relative}
        found.append(Found(name=bare_name(relative), keys=keys, path=path, size=size, files=files))
    used = {path.relative_to(root).as_posix() for path in data if path.is_relative_to(root)}
    return found, [entry for entry in left if entry.where not in used]


def find_texts(root: Path, *, columns: Mapping[str, str] | None = None, exclude: Collection[Path] = ()) -> Findings:
    """Texts of a CSV, TSV, JSON-lines or PubMed XML file, or of all such files below a folder.

    Args:
        root: file or folder.
        columns: names of the columns ``id``, ``text``, ``label``, ``group``; PubMed XML has its own. Without ``group``
            the column of that name, else ``patient``, is the patient.
        exclude: files that are none of it, such as a table of labels.
    """
    files = [root] if root.is_file() else walk(root, exclude)
    base = root.parent if root.is_file() else root
    found, left = list[Found](), list[LeftOut]()
    for path in files:
        relative = path.relative_to(base).as_posix()
        if not path.name.lower().endswith(TEXT_SUFFIXES):
            left.append(LeftOut(relative, f"files ending in {path.suffix or 'nothing'} are not read here"))
            continue
        entries = list(_texts(path, relative, columns or {}))
        found += [entry for entry in entries if isinstance(entry, Found)]
        left += [entry for entry in entries if isinstance(entry, LeftOut)]
    return found, left


def _texts(path: Path, relative: str, columns: Mapping[str, str]) -> Iterator[Found | LeftOut]:
    if path.name.lower().removesuffix(".gz").endswith(".xml"):
        columns = {}
    elif "group" not in columns:
        columns = {**columns, "group": _group_column(path, columns)}
    records = progress(read_texts(path, **columns), description="read texts", unit="text")
    for number, record in enumerate(records, start=1):
        if not record.text:
            yield LeftFile(f"{relative} row {number}", "the text is empty", {"id": record.id})
            continue
        if not isinstance(record.label, str | int | float | None):
            why = "its label is neither a text nor a number"
            yield LeftFile(f"{relative} row {number}", why, {"id": record.id})
            continue
        patient = "" if record.group == record.id else record.group
        yield Found(
            name=f"{relative} row {number}",
            keys={"id": record.id, "patient": patient},
            text=record.text,
            patient=patient,
            label=record.label,
        )


def _group_column(path: Path, columns: Mapping[str, str]) -> str:
    """The first of the usual names under which the first record has a patient."""
    for name in GROUP_COLUMNS:
        first = next(read_texts(path, **{**columns, "group": name}), None)
        if first is not None and first.group != first.id:
            return name
    return GROUP_COLUMNS[0]
