"""Finding the cases in a file, folder, DICOM tree, table of texts or manifest. Only headers are read.

Every case gets an identifier that says nothing about the patient: a salted hash of the DICOM series, of the path below
the input or of the row of a table; a manifest's items keep theirs. Names of output files are made of it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medcoss_components.data.identifiers import hash_identifier, identifier_salt
from medcoss_components.data.readers import TEXT_READERS, is_dicom, read_texts
from medcoss_components.data.readers_dicom import check_modality, no_slice, read_dataset
from medcoss_components.data.readers_image import IMAGE_SUFFIXES
from medcoss_components.data.readers_slices import SLICES_SUFFIX
from medcoss_components.data.readers_volume import ITK_SUFFIXES, NIFTI_SUFFIXES
from medcoss_components.errors import InputError

if TYPE_CHECKING:
    from medcoss_components.data.manifest import Manifest
    from medcoss_components.data.modalities import Modality

FILE_SUFFIXES: dict[int, tuple[str, ...]] = {
    1: tuple(suffix + packed for suffix in TEXT_READERS for packed in ("", ".gz")),
    2: IMAGE_SUFFIXES,
    3: (*NIFTI_SUFFIXES, *ITK_SUFFIXES, SLICES_SUFFIX),
}
"""Dimension -> endings of the files that are cases by themselves (text: that hold cases)."""
FINISHED = "finished.jsonl"
"""File that marks a folder of predictions."""
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True, kw_only=True)
class CaseSource:
    """Where a case comes from.

    Args:
        id: name of it in every output; safe as a file name.
        source: path below the input, for tables followed by ``:`` and the row's own identifier; where a folder holds
            several series, the first file of each and how many more there are.
        path: image file, or folder of a DICOM series; None for text.
        files: the files of a DICOM case, in the order of their names; empty for other kinds.
        text: the text; never written anywhere.
    """

    id: str
    source: str
    path: Path | None = None
    files: tuple[Path, ...] = ()
    text: str | None = field(default=None, repr=False)

    @property
    def is_dicom(self) -> bool:
        """Whether the case consists of DICOM files."""
        return bool(self.files)


@dataclass(frozen=True)
class Discovery:
    """Cases that were found, and what was left out.

    Args:
        cases: in the order of their sources.
        skipped: (source, reason) of what was read but is no case, for example a series of another modality.
        preparation: a manifest's own settings.
    """

    cases: list[CaseSource]
    skipped: list[tuple[str, str]] = field(default_factory=list)
    preparation: dict[str, Any] = field(default_factory=dict)


def find_cases(
    input: str | Path,
    *,
    modality: Modality,
    columns: Mapping[str, str] | None = None,
    dataset_dir: str | Path | None = None,
    split: str = "testing",
) -> Discovery:
    """Find the cases of an input.

    Args:
        input: image, volume, DICOM file, CSV, TSV or JSON lines of texts, a folder (searched with its subfolders), or
            the JSON file of a manifest.
        modality: decides which files count: by dimension, and for DICOM by the modality's codes.
        columns: of tables of texts, see :func:`~medcoss_components.data.readers.read_texts`.
        dataset_dir: folder that a manifest's paths count from; None: the manifest's own.
        split: of a manifest.

    Raises:
        InputError: no such input, or no case in it.
    """
    path = Path(input)
    if not path.exists():
        raise InputError(f"input {path}: no such file or folder.")
    if path.is_file() and path.suffix.lower() == ".json":
        found = _manifest_cases(path, modality, dataset_dir, split)
    else:
        found = _SEARCHES[modality.dimension](path, modality, columns or {}, identifier_salt())
    if not found.cases:
        raise InputError(_nothing_found(path, modality, found))
    return Discovery(_with_own_names(found.cases), found.skipped, found.preparation)


def _nothing_found(path: Path, modality: Modality, found: Discovery) -> str:
    readable = ", ".join(FILE_SUFFIXES[modality.dimension]) + (", DICOM" if modality.dimension > 1 else "")
    left_out = f"; left out: {len(found.skipped)}, the first because {found.skipped[0][1]}" if found.skipped else ""
    return f"input {path}: holds no case of modality {modality.name} (readable: {readable}, or a manifest{left_out})."


def _with_own_names(cases: list[CaseSource]) -> list[CaseSource]:
    """Refuse two cases of one name: the second would overwrite the first."""
    seen: dict[str, CaseSource] = {}
    for case in cases:
        if case.id in seen:
            raise InputError(f"input: {case.source} and {seen[case.id].source} have the same identifier {case.id!r}.")
        seen[case.id] = case
    return cases


def _manifest_cases(path: Path, modality: Modality, dataset_dir: str | Path | None, split: str) -> Discovery:
    from medcoss_components.data.manifest import read_manifest

    manifest = read_manifest(path, dataset_dir)
    if manifest.modality.name != modality.name:
        raise InputError(f"input {path}: holds {manifest.modality.name}, the network reads {modality.name}.")
    items = manifest.items(split)
    if not items:
        raise InputError(f"input {path}: split {split!r} is empty ({manifest.counts}). Give another split.")
    cases = [_item_case(item, manifest) for item in items]
    return Discovery(cases, preparation=dict(manifest.preparation))


def _item_case(item: Any, manifest: Manifest) -> CaseSource:
    name = item.id if _SAFE_NAME.fullmatch(item.id) else hash_identifier(item.id, identifier_salt())
    if item.image is None:
        return CaseSource(id=name, source=item.id, text=item.text)
    return CaseSource(
        id=name,
        source=_below(item.image, manifest.root),
        path=item.image,
        files=_dicom_files(item.image) if manifest.modality.dimension > 1 else (),
    )


def _dicom_files(path: Path) -> tuple[Path, ...]:
    if path.is_dir():
        return tuple(file for file in sorted(path.iterdir()) if file.name.upper() != "DICOMDIR" and is_dicom(file))
    ending = path.name.lower().endswith((*FILE_SUFFIXES[2], *FILE_SUFFIXES[3]))
    return (path,) if not ending and is_dicom(path) else ()


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) and path != root else path.name


def _files(path: Path) -> tuple[list[Path], Path]:
    """Visible files of a folder and its subfolders by name, or the file itself; and the folder they count from.

    Folders that predictions were written to are left out: their masks and pictures are no cases.
    """
    if path.is_file():
        return [path], path.parent
    found = [file for file in path.rglob("*") if file.is_file()]
    outputs = {file.parent for file in found if file.name == FINISHED}
    visible = (file for file in found if not any(part.startswith(".") for part in file.relative_to(path).parts))
    own = (file for file in visible if outputs.isdisjoint(file.parents))
    return sorted(file for file in own if file.name.upper() != "DICOMDIR"), path


def _text_cases(path: Path, modality: Modality, columns: Mapping[str, str], salt: str) -> Discovery:
    files, root = _files(path)
    cases: list[CaseSource] = []
    for file in files:
        if not file.name.lower().endswith(FILE_SUFFIXES[1]):
            continue
        names: dict[str, int] = {}
        for record in read_texts(file, **columns):
            names[record.id] = names.get(record.id, 0) + 1
            row = record.id if names[record.id] == 1 else f"{record.id}#{names[record.id]}"
            source = f"{_below(file, root)}:{row}"
            cases.append(CaseSource(id=hash_identifier(source, salt), source=source, text=record.text))
    return Discovery(cases)


def _image_cases(path: Path, modality: Modality, columns: Mapping[str, str], salt: str) -> Discovery:
    """Every picture and every DICOM image is a case."""
    files, root = _files(path)
    cases, skipped = [], []
    for file in files:
        name = _below(file, root)
        if file.name.lower().endswith(IMAGE_SUFFIXES):
            cases.append(CaseSource(id=hash_identifier(name, salt), source=name, path=file))
        elif is_dicom(file):
            if (reason := _unfit(file, modality, path)) is not None:
                skipped.append((name, reason))
            else:
                cases.append(CaseSource(id=hash_identifier(name, salt), source=name, path=file, files=(file,)))
    return Discovery(cases, skipped)


def _unfit(file: Path, modality: Modality, root: Path) -> str | None:
    """Why a DICOM file is none of this modality, from its header; None when it is."""
    try:
        check_modality(read_dataset(file, stop_before_pixels=True), modality.dicom_modalities, file)
    except InputError as error:
        return without_paths(str(error), (file,))
    return None


def _volume_cases(path: Path, modality: Modality, columns: Mapping[str, str], salt: str) -> Discovery:
    """Every volume file and every DICOM series is a case, whatever folders the series is spread over."""
    files, root = _files(path)
    cases, dicom = [], []
    for file in files:
        if file.name.lower().endswith(FILE_SUFFIXES[3]):
            name = _below(file, root)
            cases.append(CaseSource(id=hash_identifier(name, salt), source=name, path=file))
        elif is_dicom(file):
            dicom.append(file)
    series, skipped = _series(dicom, modality, root)
    folders = {uid: _common_folder(members, path) for uid, members in series.items()}
    count = Counter(folders.values())
    for uid, members in series.items():
        folder = folders[uid]
        source = _below(folder, root) if count[folder] == 1 else _listed([_below(file, root) for file in members])
        cases.append(CaseSource(id=hash_identifier(uid, salt), source=source, path=folder, files=tuple(members)))
    return Discovery(cases, skipped)


def _series(files: Iterable[Path], modality: Modality, root: Path) -> tuple[dict[str, list[Path]], list[Any]]:
    """DICOM files by series; localizers and files of another modality are counted, one line for each folder."""
    from medcoss_components.progress import progress

    fitting: dict[str, list[Path]] = {}
    unfit: dict[str, list[Any]] = {}
    files = list(files)
    for file in progress(files, description="Reading headers", unit="file", leave=False) if len(files) > 1 else files:
        try:
            header = read_dataset(file, stop_before_pixels=True)
            uid = str(header.get("SeriesInstanceUID") or f"folder {_below(file.parent, root)}")
            check_modality(header, modality.dicom_modalities, file)
            if reason := no_slice(header):
                raise InputError(f"{file}: {reason}")
            fitting.setdefault(uid, []).append(file)
        except InputError as error:
            code = without_paths(str(error), (file,))
            unfit.setdefault(f"{file.parent}\0{code}", []).append((_below(file, root), code))
    return fitting, [(_listed([name for name, _ in files]), files[0][1]) for files in unfit.values()]


def _listed(names: list[str]) -> str:
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]


def _common_folder(files: list[Path], root: Path) -> Path:
    """The file itself where a series is one file, else the folder that holds all of its files."""
    if len(files) == 1:
        return files[0]
    folder = files[0].parent
    while not all(file.is_relative_to(folder) for file in files):
        folder = folder.parent
    return folder


def without_paths(message: str, paths: Iterable[Path]) -> str:
    """A reason for a table: the paths in it, which may hold names of patients, are taken out.

    Numbers of up to four digits stay, which slices are often called: they would be cut out of sizes and distances too.
    """
    forms = {form for path in paths for form in (str(path), str(path.parent), path.name)}
    shown = sorted((form for form in forms if len(form) > 1 and not re.fullmatch(r"\d{1,4}", form)), key=len)
    if shown:
        names = "|".join(re.escape(form) for form in reversed(shown))
        message = re.sub(rf"(?<![\w.])(?:{names})(?!\w)", "(file)", message)
    return message.removeprefix("(file): ")


_SEARCHES: dict[int, Callable[[Path, Any, Mapping[str, str], str], Discovery]] = {
    1: _text_cases,
    2: _image_cases,
    3: _volume_cases,
}
