"""What adapters find in a folder: items before they have an id, a group and a split, and what was left out.

An adapter of a published data set is one module with ``find(source: DatasetSource) -> Findings``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medcoss_components.data.masks import PICTURE_SUFFIXES as MASK_SUFFIXES
from medcoss_components.data.modalities import Modality
from medcoss_components.data.readers import TEXT_READERS
from medcoss_components.data.readers_common import naming_file
from medcoss_components.data.readers_image import IMAGE_SUFFIXES
from medcoss_components.data.readers_slices import SLICES_SUFFIX, slices_size
from medcoss_components.data.readers_volume import ITK_SUFFIXES, NIFTI_SUFFIXES
from medcoss_components.errors import InputError

VOLUME_SUFFIXES = (*NIFTI_SUFFIXES, *ITK_SUFFIXES, SLICES_SUFFIX)
TEXT_SUFFIXES = tuple(suffix + end for suffix in TEXT_READERS for end in ("", ".gz"))
_PICTURE_SUFFIXES = tuple(dict.fromkeys((*IMAGE_SUFFIXES, *MASK_SUFFIXES)))
FILE_SUFFIXES = (*VOLUME_SUFFIXES, *_PICTURE_SUFFIXES)
_OUTPUT_SUFFIXES = (".json", ".parquet")
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
        label: class; list of boxes (``boxes.py``); of a mask its path, as a ``Path``, or as a text relative to the
            manifest's folder.
        split: split that the source fixed (training, validation, testing), or "".
        size: pixels or voxels along the file's axes, as the header says.
        files: files that make it up; the file itself by default.
        content: digest known without reading the pixels, or "".
        body_part: what is shown, in lower-case words such as "chest"; "" when unknown.
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
    body_part: str = ""


@dataclass(frozen=True)
class LeftOut:
    """What did not get into the manifest: a relative path, row or line, and the reason."""

    where: str
    reason: str


Findings = tuple[list[Found], list[LeftOut]]


@dataclass(frozen=True, kw_only=True)
class DatasetSource:
    """What an adapter of a published data set is given.

    Args:
        root: folder that holds the data set as its publisher ships it, or its parent.
        modality: entry of the data set's modality.
        settings: of the recipe, see its YAML file.
        files_dir: folder for files that have to be made (masks out of contours, tiles out of slides); it may not exist.
        workers: processes for such work; None: one per core.
        notes: the adapter adds what people should know of the items that it took, such as a header it corrected.
    """

    root: Path
    modality: Modality
    files_dir: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    workers: int | None = None
    notes: list[str] = field(default_factory=list)

    def is_output(self, path: Path) -> bool:
        """Whether a path is the manifest itself, its list of items or its record, written by an earlier build."""
        stem = self.files_dir.name.removesuffix(".files")
        beside = os.path.abspath(path.parent) == os.path.abspath(self.files_dir.parent)
        return beside and path.name.startswith(f"{stem}.") and path.suffix in _OUTPUT_SUFFIXES

    def files(self, folder: Path | None = None) -> list[Path]:
        """Files below the root, or a folder of it, less hidden ones and those that a build wrote; see :func:`walk`.

        Raises:
            InputError: no such folder, or one that cannot be listed.
        """
        return [path for path in walk(folder or self.root, (self.files_dir,)) if not self.is_output(path)]

    def _holds(self, folder: Path, names: Sequence[str]) -> bool:
        shown = not any(map(is_hidden, folder.relative_to(self.root).parts))
        return shown and all((folder / name).exists() for name in names)

    def locate(self, *names: str) -> Path:
        """The folder that holds ``names``: the root, or a folder up to two levels below it.

        Raises:
            InputError: no such folder, or several.
        """
        if not self.root.is_dir():
            raise InputError(f"{self.root}: no such folder. Give the folder of the data set.")
        levels = ([self.root], self.root.glob("*/"), self.root.glob("*/*/"))
        for level in levels:
            hits = [folder for folder in sorted(level) if self._holds(folder, names)]
            if len(hits) > 1:
                raise InputError(f"{self.root}: {len(hits)} folders hold {', '.join(names)}. Give one of them as root.")
            if hits:
                return hits[0]
        raise InputError(
            f"{self.root}: holds no {', '.join(names)}, nor does a folder in it. The layout that is expected stands on "
            "the data set's page in docs/data."
        )


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
    """Files below ``root`` in order of their path, as :func:`walk_folders` lists them.

    Raises:
        InputError: no such folder, or one that cannot be listed.
    """
    return sorted(folder / name for folder, _, files in walk_folders(root, exclude) for name in files)


def walk_folders(root: Path, exclude: Collection[Path] = ()) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Every folder from ``root`` down, with the sorted names of its folders and files, one folder at a time.

    What is hidden and what lies in, or is, ``exclude`` is passed over. Links to folders elsewhere are followed once;
    those to a place that is walked anyway, or that holds ``root``, are not. The list of folders may be shortened.

    Raises:
        InputError: no such folder, or one that cannot be listed: nothing may be missed silently.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder. Give the folder that holds the files.")
    barred = {os.path.abspath(path) for path in exclude}
    new = _Places(root)
    for folder, folders, files in os.walk(root, followlinks=True, onerror=_cannot_list):
        folders[:] = [name for name in sorted(folders) if _is_shown(folder, name, barred) and new(folder, name)]
        yield Path(folder), folders, sorted(name for name in files if _is_shown(folder, name, barred))


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the data: hidden, or the folder that macOS adds to archives.

    >>> is_hidden("._1.png"), is_hidden("__MACOSX"), is_hidden("1.png")
    (True, True, False)
    """
    return name.startswith(".") or name == "__MACOSX"


def _is_shown(folder: str, name: str, barred: Collection[str]) -> bool:
    return not is_hidden(name) and os.path.abspath(os.path.join(folder, name)) not in barred


class _Places:
    """The places that a walk starts at: its root, and where links lead to."""

    def __init__(self, root: Path) -> None:
        self.walked = {root.resolve()}
        self.above = set(root.resolve().parents)

    def __call__(self, folder: str, name: str) -> bool:
        """Whether a folder is no link, or one to a place that is not walked yet, which is then added."""
        path = Path(folder, name)
        if not path.is_symlink():
            return True
        target = path.resolve()
        if target in self.above or not self.walked.isdisjoint((target, *target.parents)):
            return False
        self.walked.add(target)
        return True


def _cannot_list(error: OSError) -> None:
    raise InputError(
        f"{error.filename}: the folder cannot be listed ({error.strerror}). Get the right to read it, or take it away."
    ) from error


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
        (SLICES_SUFFIX,): slices_size,
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
