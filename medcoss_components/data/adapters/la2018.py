"""2018 Atrial Segmentation Challenge: NRRD as the organisers ship it, or the h5 crops of the UA-MT study.

The NRRD headers say 1 mm and no orientation, though the voxels have 0.625 mm: volumes and masks are written again as
NIfTI with the true spacing. Nothing identifies patients; items with the same mask are of one patient.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medcoss_components.data.adapters.beside import odd_files
from medcoss_components.data.adapters.checked_settings import length
from medcoss_components.data.adapters.converting import FileJob, made_name, make_files
from medcoss_components.data.adapters.findings import (
    DatasetSource,
    Findings,
    Found,
    LeftOut,
    header_size,
    reason,
)
from medcoss_components.data.adapters.made_volumes import save_nifti, smallest_type
from medcoss_components.data.readers_common import naming_file, require_file
from medcoss_components.data.readers_volume import itk_grid, read_itk, shape_3d
from medcoss_components.errors import InputError
from medcoss_components.files import sha256_file
from medcoss_components.progress import progress

IMAGE, MASK, CROP = "lgemri.nrrd", "laendo.nrrd", "mri_norm2.h5"
LISTS = {"train.list": "training", "test.list": "testing"}
VERSION = 1
"""Raise it when the files that this module makes change."""


@dataclass(frozen=True, kw_only=True)
class _Case:
    """One case: its files, what to make of them (targets by kind), and its size in voxels."""

    image: Path
    mask: Path
    size: tuple[int, ...]
    jobs: Mapping[str, FileJob]

    def path(self, kind: str) -> Path:
        """File to read as "image" or "mask": the made one, or the publisher's."""
        return self.jobs[kind].target if kind in self.jobs else getattr(self, kind)


def find(source: DatasetSource) -> Findings:
    """Volumes with the mask of the left atrium's cavity.

    Settings: ``spacing``: mm of a voxel, used where a header says 1 mm (an h5 file has no header), or null to leave
    headers as they are; ``lists``: take the split from train.list and test.list where they are there.

    Raises:
        InputError: no case below the root, or h5py is missing.
    """
    length(source.settings, "spacing")
    files = source.files()
    crops = [file for file in files if file.name == CROP]
    images = [file for file in files if file.name == IMAGE]
    if not crops and not images:
        raise InputError(
            f"{source.root}: holds no {IMAGE} and no {CROP}. The layout that is expected stands on the data set's page "
            "in docs/data."
        )
    # a crop is made of the volume beside it; of such a pair the volume is read
    whole = {image.parent for image in images}
    crops = [crop for crop in crops if crop.parent not in whole]
    if crops:
        require_h5py()
    cases, left = _cases(source, [*images, *crops])
    jobs = [job for case in cases for job in case.jobs.values()]
    failed = make_files(jobs, workers=source.workers, description="write volumes")
    kept, more = _without_failed(source, cases, failed)
    source.notes.extend(_notes(source, kept))
    lists = read_lists(files) if source.settings["lists"] else {}
    found = _found(source, kept, lists)
    absent = sorted(set(lists) - {image.parent.name for image in (*images, *crops)})
    more += [LeftOut(name, f"the list of {lists[name]} names it, but it is not there") for name in absent]
    used = {*images, *crops, *(image.with_name(MASK) for image in images), *(f for f in files if f.name in LISTS)}
    return found, [*left, *more, *odd_files(set(files) - used, source.root, "neither volume nor mask of the cavity")]


def require_h5py() -> None:
    """Raise where the optional reader of h5 files is missing.

    Raises:
        InputError: names the extra that has it.
    """
    try:
        import h5py  # noqa: F401
    except ImportError as error:
        raise InputError(
            "h5py is missing, it reads .h5 files. Run: pip install 'medcoss-components[datasets]'"
        ) from error


def read_lists(files: Iterable[Path]) -> dict[str, str]:
    """Name of a case -> split, out of train.list and test.list.

    Raises:
        InputError: a case that stands in both.
    """
    splits: dict[str, str] = {}
    for file in files:
        if file.name not in LISTS:
            continue
        for name in file.read_text(encoding="utf-8", errors="replace").split():
            if splits.setdefault(name, LISTS[file.name]) != LISTS[file.name]:
                raise InputError(f"{file}: a case stands in several lists. Correct them, or give --set lists=false.")
    return splits


def _cases(source: DatasetSource, images: Sequence[Path]) -> tuple[list[_Case], list[LeftOut]]:
    cases, left = list[_Case](), list[LeftOut]()
    for image in progress(images, description="look at volumes", unit="file"):
        try:
            cases.append(_crop(source, image) if image.name == CROP else _volume(source, image))
        except InputError as error:
            left.append(LeftOut(image.relative_to(source.root).as_posix(), reason(error, image)))
    return cases, left


def _volume(source: DatasetSource, image: Path) -> _Case:
    """A case of NRRD files. Raises InputError where it is none."""
    mask = image.with_name(MASK)
    if not mask.is_file():
        raise InputError(f"{image}: no {MASK} beside it, it has no label")
    size, mask_size = header_size(image), header_size(mask)
    if size != mask_size:
        raise InputError(f"{image}: its mask has {mask_size} voxels, the image {size}")
    spacing = length(source.settings, "spacing")
    if spacing is None or not (_is_default(image) and _is_default(mask)):
        return _Case(image=image, mask=mask, size=size, jobs={})
    jobs = {kind: _job(source, path, kind, make_volume) for kind, path in (("image", image), ("mask", mask))}
    return _Case(image=image, mask=mask, size=size, jobs=jobs)


def _is_default(path: Path) -> bool:
    """Whether the header says nothing of the geometry: voxels of 1 mm along the axes."""
    _, affine = itk_grid(path)
    return bool(np.allclose(affine[:3, :3], np.eye(3)))


def _crop(source: DatasetSource, path: Path) -> _Case:
    """A case of an h5 file."""
    size = crop_size(path)
    jobs = {kind: _job(source, path, kind, make_crop) for kind in ("image", "mask")}
    return _Case(image=path, mask=path, size=size, jobs=jobs)


def crop_size(path: Path) -> tuple[int, int, int]:
    """Voxels (x, y, z) of an h5 file with the arrays ``image`` and ``label``.

    Raises:
        InputError: a damaged file, one of the arrays is missing, or their shapes differ.
    """
    import h5py

    with naming_file(require_file(path), show_detail=False), h5py.File(path, "r") as content:
        missing = [name for name in ("image", "label") if name not in content]
        if missing:
            raise InputError(f"{path}: holds no array {' and no '.join(missing)}")
        shape = shape_3d(content["image"].shape, path)
        if content["label"].shape != content["image"].shape:
            raise InputError(f"{path}: its label has {content['label'].shape} voxels, the image {shape}")
    return shape


def _job(source: DatasetSource, path: Path, kind: str, function: Callable[..., None]) -> FileJob:
    spacing = length(source.settings, "spacing")
    relative = path.relative_to(source.root).as_posix()
    name = made_name(f"{kind} {relative}", [path], settings=[VERSION, spacing], suffix=".nii.gz")
    arguments = {"path": path, "spacing": spacing, "kind": kind}
    return FileJob(target=source.files_dir / f"{kind}s" / name, function=function, arguments=arguments)


def make_volume(partial: Path, *, path: Path, spacing: float, kind: str) -> None:
    """Write an NRRD file without geometry as NIfTI with a spacing in mm; ``kind`` does not matter here."""
    array = read_itk(path).array
    save_nifti(partial, smallest_type(array.transpose(2, 1, 0)), _affine(spacing))


def make_crop(partial: Path, *, path: Path, spacing: float | None, kind: str) -> None:
    """Write the image or the mask of an h5 file, axes (x, y, z), as NIfTI with a spacing in mm (None: 1)."""
    import h5py

    with naming_file(path, show_detail=False), h5py.File(path, "r") as content:
        array = np.asarray(content["image" if kind == "image" else "label"])
    if kind == "image":
        array = array.astype(np.float32)
    save_nifti(partial, smallest_type(array), _affine(spacing or 1.0))


def _affine(spacing: float) -> np.ndarray:
    """Voxels along the axes: x to the left, y to the back, z to the head, as the headers' default means."""
    return np.diag([spacing, spacing, spacing, 1.0])


def _without_failed(
    source: DatasetSource, cases: Sequence[_Case], failed: Mapping[Path, str]
) -> tuple[list[_Case], list[LeftOut]]:
    kept, left = list[_Case](), list[LeftOut]()
    for case in cases:
        whys = [failed[job.target] for job in case.jobs.values() if job.target in failed]
        if whys:
            left.append(
                LeftOut(case.image.relative_to(source.root).as_posix(), whys[0].removeprefix(f"{case.image}: "))
            )
        else:
            kept.append(case)
    return kept, left


def _notes(source: DatasetSource, cases: Sequence[_Case]) -> Iterable[str]:
    """What was changed, and what was taken for one patient."""
    spacing = length(source.settings, "spacing")
    crops = sum(case.image.name == CROP for case in cases)
    if written := sum(bool(case.jobs) for case in cases) - crops:
        yield f"{written} volumes have no geometry in their header and were written with voxels of {spacing} mm."
    if crops:
        yield f"{crops} crops of the UA-MT study were written with voxels of {spacing or 1.0} mm; none is whole."
    if equal := len(same_masks([case.mask for case in cases])):
        yield f"{equal} volumes have a mask that another one has too; such volumes count as one patient."


def _found(source: DatasetSource, cases: Sequence[_Case], lists: Mapping[str, str]) -> list[Found]:
    patients = same_masks([case.mask for case in cases])
    found = []
    for case in cases:
        relative = case.image.parent.relative_to(source.root).as_posix()
        split = lists.get(case.image.parent.name) or _split_of(f"{source.root.name}/{relative}")
        image = case.path("image")
        found.append(
            Found(
                name=relative if relative != "." else case.image.parent.name,
                path=image,
                patient=patients.get(case.mask, ""),
                label=case.path("mask").absolute(),
                split=split,
                size=case.size,
                files=(image,),
            )
        )
    return found


def _split_of(relative: str) -> str:
    """The split that the name of a folder above the case's says.

    >>> [_split_of(path) for path in ("Training Set/06SR", "a/Testing Set/ZQPM", "2018LA_Seg_Training Set/06SR", "a/b")]
    ['training', 'testing', 'training', '']
    """
    folder = relative.lower().rpartition("/")[0]
    return "training" if "training set" in folder else "testing" if "testing set" in folder else ""


def same_masks(masks: Sequence[Path]) -> dict[Path, str]:
    """Name of a patient for the masks whose file is equal to another one's: two scans cannot have the same cavity."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for mask in masks:
        if mask.name == MASK:
            by_size[mask.stat().st_size].append(mask)
    by_content: dict[str, list[Path]] = defaultdict(list)
    for several in by_size.values():
        for mask in several if len(several) > 1 else ():
            by_content[sha256_file(mask)].append(mask)
    equal = [group for group in by_content.values() if len(group) > 1]
    return {mask: f"mask of {group[0].parent.name}" for group in equal for mask in group}
