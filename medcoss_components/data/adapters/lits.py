"""LiTS: CT volumes of the liver with masks, ``volume-<n>.nii`` beside ``segmentation-<n>.nii``, in one or more folders.

Settings: ``unlabelled`` takes volumes without a mask too (those of the challenge's test set); ``without_geometry``
("keep" or "leave_out") is about volumes whose header gives 1 x 1 x 1 mm voxels along the axes; ``voxel_sizes`` (number
of a volume -> [x, y, z] in mm along the file's axes) goes before the header.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from medcoss_components.data.adapters.beside import odd_files
from medcoss_components.data.adapters.converting import FileJob, made_name, make_files
from medcoss_components.data.adapters.findings import (
    DatasetSource,
    Findings,
    Found,
    LeftOut,
    bare_name,
    reason,
)
from medcoss_components.data.adapters.made_volumes import save_nifti
from medcoss_components.data.masks import LARGEST
from medcoss_components.data.readers_common import naming_file
from medcoss_components.data.readers_volume import RAS_TO_LPS, nifti_grid
from medcoss_components.errors import InputError
from medcoss_components.progress import progress

CHOICES = ("keep", "leave_out")
_NAME = re.compile(r"(test-)?(volume|segmentation)-(\d+)\.nii(\.gz)?", re.IGNORECASE)
_MAKING = "lits 1"
"""Version of the functions that write files."""
Size = tuple[float, float, float]


@dataclass
class _Batches:
    """The data set's files by number, given voxel sizes, what was left out so far, and volumes without geometry."""

    root: Path
    sizes: dict[str, Size]
    volumes: dict[str, Path] = field(default_factory=dict)
    masks: dict[str, Path] = field(default_factory=dict)
    left: list[LeftOut] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    def leave(self, path: Path, why: str) -> None:
        self.left.append(LeftOut(path.relative_to(self.root).as_posix(), why))


@dataclass(frozen=True)
class _Grid:
    """Shape (X, Y, Z) and LPS affine (4, 4) of a file, from its header."""

    shape: tuple[int, int, int]
    affine: np.ndarray

    @property
    def spacing(self) -> np.ndarray:
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def unknown(self) -> bool:
        """Whether the header gives no more than unit vectors along the axes."""
        return bool(np.allclose(np.abs(self.affine[:3, :3]), np.eye(3), atol=1e-6))

    @property
    def corners(self) -> np.ndarray:
        """(8, 3) LPS positions in mm."""
        index = np.array([[*(np.array(bits) * (np.array(self.shape) - 1)), 1.0] for bits in np.ndindex(2, 2, 2)])
        return (index @ self.affine.T)[:, :3]

    def lies_on(self, other: _Grid) -> bool:
        """Whether each corner is within half a voxel of one of the other grid's; the axes may run another way."""
        distances = np.linalg.norm(self.corners[:, None] - other.corners, axis=2)
        return bool(distances.min(axis=1).max() <= other.spacing.min() / 2)


def find(source: DatasetSource) -> Findings:
    """Volumes with their masks. A mask whose header differs from its volume's gets a copy with the volume's header.

    Raises:
        InputError: no volume below the root, or a setting outside its range.
    """
    if (choice := source.settings["without_geometry"]) not in CHOICES:
        raise InputError(f"settings: without_geometry must be one of {', '.join(CHOICES)}, got {choice!r}.")
    batches = _read_tree(source, _sizes(source.settings["voxel_sizes"]))
    cases: list[_Case] = []
    entries = sorted(batches.volumes.items(), key=lambda entry: entry[1])
    for number, path in progress(entries, description="look at volumes", unit="file"):
        if case := _case(source, batches, number, path, batches.masks.pop(number, None)):
            cases.append(case)
    for mask in sorted(batches.masks.values()):
        batches.leave(mask, "a mask without its volume")
    if absent := sorted(set(batches.sizes) - set(batches.volumes)):
        raise InputError(f"settings: voxel_sizes names volume {absent[0]}, which is not there.")
    found = _with_made_files(source, batches, cases)
    _add_notes(source, batches, cases)
    return found, batches.left


def _sizes(given: Any) -> dict[str, Size]:
    """The setting ``voxel_sizes``, checked.

    Raises:
        InputError: no mapping of numbers to three sizes above 0.
    """
    try:
        sizes = {str(number): tuple(map(float, size)) for number, size in dict(given or {}).items()}
        if all(len(size) == 3 and min(size) > 0 and max(size) < np.inf for size in sizes.values()):
            return sizes  # type: ignore[return-value]
    except (TypeError, ValueError):
        pass
    raise InputError(
        f"settings: voxel_sizes must be numbers of volumes with three sizes in mm, as {{28: [0.57, 0.57, 1.6]}}, "
        f"got {given!r}."
    )


def _read_tree(source: DatasetSource, sizes: dict[str, Size]) -> _Batches:
    batches = _Batches(source.root, sizes)
    odd = []
    for path in source.files():
        if not (match := _NAME.fullmatch(path.name)):
            odd.append(path)
            continue
        test, kind, number = match.group(1) or "", match.group(2).lower(), int(match.group(3))
        files = batches.volumes if kind == "volume" else batches.masks
        if (key := f"{test.lower()}{number}") in files:
            batches.leave(path, f"{files[key].relative_to(source.root).as_posix()} has this number too")
        else:
            files[key] = path
    if not batches.volumes:
        raise InputError(
            f"{source.root}: holds no file volume-<n>.nii. Give the folder into which the training batches of LiTS "
            "were unpacked: Training Batch 1/volume-0.nii, segmentation-0.nii, ..."
        )
    batches.left += odd_files(odd, source.root, "no file of LiTS, which are volume-<n>.nii and segmentation-<n>.nii")
    return batches


@dataclass(frozen=True)
class _Case:
    """An item, its mask, and jobs that make files in place of either where the files themselves cannot be used."""

    item: Found
    mask: Path | None = None
    volume_job: FileJob | None = None
    mask_job: FileJob | None = None

    @property
    def jobs(self) -> list[FileJob]:
        return [job for job in (self.volume_job, self.mask_job) if job is not None]


def _case(source: DatasetSource, batches: _Batches, number: str, path: Path, mask: Path | None) -> _Case | None:
    """A volume with its mask; None, and listed, where it is left out."""
    if mask is None and not source.settings["unlabelled"]:
        batches.leave(path, "no mask (set unlabelled to take it nevertheless)")
        return None
    size = batches.sizes.get(number)
    if (grid := _volume_grid(source, batches, path, size)) is None:
        if mask is not None:
            batches.leave(mask, "its volume is left out")
        return None
    relative = path.relative_to(source.root).as_posix()
    item = Found(name=bare_name(relative), keys={"file": relative}, path=path, size=grid.shape, files=(path,))
    volume_job = _job(source, write_with_size, (path,), volume=path, size=size) if size else None
    if mask is None:
        return _Case(item, None, volume_job)
    if (mask_grid := _grid(batches, mask)) is None or mask_grid.shape != grid.shape:
        why = "cannot be read" if mask_grid is None else f"has {mask_grid.shape} voxels, the volume {grid.shape}"
        batches.leave(path, f"its mask {why}")
        return None
    fits = size is None and mask_grid.lies_on(grid)
    mask_job = None if fits else _job(source, write_on_grid, (mask, path), mask=mask, volume=path, size=size)
    return _Case(item, mask, volume_job, mask_job)


def _volume_grid(source: DatasetSource, batches: _Batches, path: Path, size: Size | None) -> _Grid | None:
    """The grid of a volume that is taken, as the file says; those without geometry are noted."""
    grid = _grid(batches, path)
    if grid is None or size is not None or not grid.unknown:
        return grid
    if source.settings["without_geometry"] == "leave_out":
        batches.leave(path, "its header gives no voxel size")
        return None
    batches.unknown.append(path.name)
    return grid


def _grid(batches: _Batches, path: Path) -> _Grid | None:
    """The grid of a file that has all its bytes; None, and listed, where that cannot be said."""
    try:
        shape, affine, _ = nifti_grid(path)
        _require_all_bytes(path)
    except InputError as error:
        batches.leave(path, reason(error, path))
        return None
    return _Grid(shape, affine)


def _require_all_bytes(path: Path) -> None:
    """Raise InputError when a file that is not compressed is shorter than its header says."""
    import nibabel

    if path.suffix.lower() == ".gz":
        return
    with naming_file(path, show_detail=False):
        image: Any = nibabel.load(path)
        needed = image.dataobj.offset + int(np.prod(image.shape)) * image.get_data_dtype().itemsize
    if (there := path.stat().st_size) < needed:
        raise InputError(f"{path}: the file is truncated, it has {there} of {needed} bytes. Download it again.")


def _job(source: DatasetSource, function: Callable[..., None], files: tuple[Path, ...], **arguments: Any) -> FileJob:
    """A job that makes a file out of others; the first one gives it its name."""
    settings = [_MAKING, function.__name__, arguments["size"]]
    name = made_name(files[0].relative_to(source.root).as_posix(), files, settings=settings, suffix=".nii.gz")
    return FileJob(target=source.files_dir / name, function=function, arguments=arguments)


def write_on_grid(partial: Path, *, mask: Path, volume: Path, size: Size | None) -> None:
    """Write the voxels of a mask, in the order of the file, with the header of its volume.

    Args:
        partial: where to; gzip-compressed NIfTI, uint8.
        mask, volume: NIfTI files with equally many voxels along each axis.
        size: of the voxels in mm along the file's axes; None: as the volume's header says.

    Raises:
        InputError: a damaged mask, or values that are no whole numbers from 0 to 255.
    """
    import nibabel

    with naming_file(mask, show_detail=False):
        values = np.asanyarray(nibabel.load(mask).dataobj)
    whole = values.astype(np.uint8)
    if not np.array_equal(whole, values):
        raise InputError(f"{mask}: mask values must be whole numbers from 0 to {LARGEST}. Restore the file.")
    shape, affine, _ = nifti_grid(volume)
    save_nifti(partial, whole.reshape(shape), _scaled(affine, size))


def write_with_size(partial: Path, *, volume: Path, size: Size) -> None:
    """Write a volume as it is, with another voxel size in its header.

    Args:
        partial: where to; gzip-compressed NIfTI.
        volume: NIfTI file.
        size: of the voxels in mm along the file's axes.

    Raises:
        InputError: a damaged file.
    """
    import nibabel

    _, affine, _ = nifti_grid(volume)
    with naming_file(volume, show_detail=False):
        kind: Any = nibabel.load(volume).header
        opened = gzip.open if volume.suffix.lower() == ".gz" else open
        with opened(volume, "rb") as stream:
            content = stream.read()
        header = type(kind)(content[: kind.sizeof_hdr])  # as in the file: the loaded one has lost scale and offset
    header.set_sform(RAS_TO_LPS @ _scaled(affine, size), code="scanner")
    header.set_qform(header.get_sform(), code="scanner")
    header.set_xyzt_units("mm")
    with open(partial, "wb") as plain, gzip.GzipFile("", "wb", compresslevel=1, fileobj=plain, mtime=0) as packed:
        packed.write(header.binaryblock + content[len(header.binaryblock) :])


def _scaled(affine: np.ndarray, size: Size | None) -> np.ndarray:
    """An affine (4, 4) with another length of its columns, in mm."""
    if size is None:
        return affine
    scaled = affine.copy()
    scaled[:3, :3] *= np.array(size) / np.linalg.norm(affine[:3, :3], axis=0)
    return scaled


def _with_made_files(source: DatasetSource, batches: _Batches, cases: list[_Case]) -> list[Found]:
    """Items with the paths of volumes and masks; those for which a file could not be made are listed."""
    jobs = [job for case in cases for job in case.jobs]
    failed = make_files(jobs, workers=source.workers, description="write files")
    found = []
    for case in cases:
        if problems := [failed[job.target] for job in case.jobs if job.target in failed]:
            why = problems[0].removeprefix(f"{case.mask}: ").removeprefix(f"{case.item.path}: ")
            batches.left.append(LeftOut(case.item.keys["file"], f"a file made of it failed: {why}"))
            continue
        item = case.item
        if case.volume_job is not None:
            item = replace(item, path=case.volume_job.target)
        label = case.mask_job.target if case.mask_job else case.mask
        found.append(replace(item, label=None if label is None else label.absolute()))
    return found


def _add_notes(source: DatasetSource, batches: _Batches, cases: list[_Case]) -> None:
    corrected = sum(case.mask_job is not None and case.volume_job is None for case in cases)
    if corrected:
        source.notes.append(
            f"{corrected} masks say another position, orientation or voxel size than their volumes, with the same "
            "number of voxels; copies with the header of the volume are used, voxel by voxel."
        )
    if sized := sum(case.volume_job is not None for case in cases):
        source.notes.append(f"{sized} volumes have the voxel size that the settings give; copies are used.")
    if names := batches.unknown:
        source.notes.append(
            f"{len(names)} volumes have a header without geometry, 1 x 1 x 1 mm along the axes "
            f"({', '.join(names[:3])}{' ...' if len(names) > 3 else ''}): their proportions and orientation are not "
            "known. Set voxel_sizes, or without_geometry to leave_out to go without them."
        )
