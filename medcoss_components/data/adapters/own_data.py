"""One's own files: images, volumes and texts below a folder, found by their suffix and looked at by their headers."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medcoss_components.data.masks import PICTURE_SUFFIXES as MASK_SUFFIXES
from medcoss_components.data.readers import TEXT_READERS, read_texts
from medcoss_components.data.readers_common import naming_file
from medcoss_components.data.readers_image import IMAGE_SUFFIXES
from medcoss_components.data.readers_volume import ITK_SUFFIXES, NIFTI_SUFFIXES
from medcoss_components.errors import InputError
from medcoss_components.progress import progress

VOLUME_SUFFIXES = (*NIFTI_SUFFIXES, *ITK_SUFFIXES)
TEXT_SUFFIXES = tuple(suffix + end for suffix in TEXT_READERS for end in ("", ".gz"))
_PICTURE_SUFFIXES = tuple(dict.fromkeys((*IMAGE_SUFFIXES, *MASK_SUFFIXES)))
FILE_SUFFIXES = (*VOLUME_SUFFIXES, *_PICTURE_SUFFIXES)
GROUP_COLUMNS = ("group", "patient")
_EXIF_ORIENTATION, _FIRST_TURNED = 0x0112, 5


@dataclass(frozen=True, kw_only=True)
class Found:
    """One file, series or text, before it has an id, a group and a split.

    Args:
        name: relative POSIX path without suffix, of a text file and row; masks are matched with it.
        keys: what a label table may call it: "file", "id", "series", "study", "patient" -> value.
        path: file or folder of a series; None for a text.
        text: the text; None for images.
        patient: identifier as the source has it, not hashed; "" when unknown.
        label: class, or relative path of a mask.
        split: split that a label table fixed, or "".
        size: pixels or voxels along the file's axes, as the header says.
        files: files that make it up; the file itself by default.
        content: digest known without reading the pixels, or "".
    """

    name: str
    keys: Mapping[str, str] = field(default_factory=dict, repr=False)
    path: Path | None = None
    text: str | None = field(default=None, repr=False)
    patient: str = field(default="", repr=False)
    label: Any = None
    split: str = ""
    size: tuple[int, ...] = ()
    files: tuple[Path, ...] = field(default=(), repr=False)
    content: str = ""


@dataclass(frozen=True)
class LeftOut:
    """What did not get into the manifest: a relative path, row or line, and the reason."""

    where: str
    reason: str


Findings = tuple[list[Found], list[LeftOut]]


def bare_name(path: str | Path) -> str:
    """A POSIX path without the suffix of its file; ``.nii.gz`` counts as one.

    >>> bare_name("a/b.1.nii.gz"), bare_name("c.png"), bare_name("series.2/d")
    ('a/b.1', 'c', 'series.2/d')
    """
    text = str(path).replace("\\", "/")
    lower = text.lower()
    known = (".nii.gz", *FILE_SUFFIXES, *TEXT_SUFFIXES, ".dcm")
    suffix = next((suffix for suffix in known if lower.endswith(suffix)), "")
    return text[: len(text) - len(suffix)]


def walk(root: Path, exclude: Collection[Path] = ()) -> list[Path]:
    """Files below ``root`` in order of their path, without hidden ones and without what lies in or is ``exclude``.

    Raises:
        InputError: no such folder.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder. Give the folder that holds the files.")
    barred = {os.path.abspath(path) for path in exclude}
    found: list[Path] = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name[0] != "." and _absolute(folder, name) not in barred]
        found += [Path(folder, name) for name in files if name[0] != "." and _absolute(folder, name) not in barred]
    return sorted(found)


def _absolute(folder: str, name: str) -> str:
    return os.path.abspath(os.path.join(folder, name))


def find_images(root: Path, *, exclude: Collection[Path] = ()) -> Findings:
    """PNG, JPEG, BMP and TIFF files below ``root``."""
    return _find_files(root, IMAGE_SUFFIXES, exclude)


def find_volumes(root: Path, *, exclude: Collection[Path] = ()) -> Findings:
    """NIfTI, NRRD and MetaImage files below ``root``."""
    return _find_files(root, VOLUME_SUFFIXES, exclude)


def _find_files(root: Path, suffixes: tuple[str, ...], exclude: Collection[Path]) -> Findings:
    found, left = list[Found](), list[LeftOut]()
    for path in progress(walk(root, exclude), description="look at files", unit="file"):
        relative = path.relative_to(root).as_posix()
        if not path.name.lower().endswith(suffixes):
            left.append(LeftOut(relative, f"files ending in {path.suffix or 'nothing'} are not read here"))
            continue
        try:
            size = header_size(path)
        except InputError as error:
            left.append(LeftOut(relative, reason(error, path)))
            continue
        keys = {"file": relative}
        found.append(Found(name=bare_name(relative), keys=keys, path=path, size=size, files=(path,)))
    return found, left


def reason(error: InputError, path: Path) -> str:
    """The error's text without the path that it opens with."""
    return str(error).removeprefix(f"{path}: ")


def header_size(path: Path) -> tuple[int, ...]:
    """Pixels (width, height) or voxels (x, y, z) of a file, from its header alone.

    Raises:
        InputError: a header that cannot be read.
    """
    name = path.name.lower()
    readers: dict[tuple[str, ...], Callable[[Path], Iterable[int]]] = {
        _PICTURE_SUFFIXES: _image_size,
        NIFTI_SUFFIXES: _nifti_size,
        ITK_SUFFIXES: _itk_size,
    }
    read = next(function for suffixes, function in readers.items() if name.endswith(suffixes))
    with naming_file(path, show_detail=False):
        return tuple(int(size) for size in read(path))


def _image_size(path: Path) -> Iterable[int]:
    from PIL import Image

    with Image.open(path) as image:
        # of a PNG file the method of its own class would read all pixels first
        turned = Image.Image.getexif(image).get(_EXIF_ORIENTATION, 1) >= _FIRST_TURNED
        return image.size[::-1] if turned else image.size


def _nifti_size(path: Path) -> Iterable[int]:
    import nibabel

    return _three_axes(path, nibabel.load(path).shape)


def _itk_size(path: Path) -> Iterable[int]:
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return _three_axes(path, reader.GetSize())


def _three_axes(path: Path, shape: Sequence[int]) -> Sequence[int]:
    if len(shape) < 3 or any(size != 1 for size in shape[3:]):
        raise InputError(f"{path}: a volume has three axes, this file has the shape {tuple(shape)}")
    return shape[:3]


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
            yield LeftOut(f"{relative} row {number}", "the text is empty")
            continue
        if not isinstance(record.label, str | int | float | None):
            yield LeftOut(f"{relative} row {number}", "its label is neither a text nor a number")
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
