"""What all readers share: the returned records, orientation, rescaling and error texts.

Error texts name the file and the rule. They never quote a header or the text of a file: both may identify a patient.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medcoss_components.errors import InputError

HOUNSFIELD = "HU"
ARBITRARY = "a.u."


@dataclass(frozen=True)
class ImageData:
    """A 2D image as stored, bright = dense for radiographs.

    Args:
        array: (H, W) grey or (H, W, 3) RGB in the file's own dtype (float32 where a rescale with fractions applies).
        spacing: (row, column) distance between pixel centres in mm, or None.
        unit: "HU" or "a.u.".
    """

    array: np.ndarray
    spacing: tuple[float, float] | None = None
    unit: str = ARBITRARY


@dataclass(frozen=True)
class VolumeData:
    """A 3D image in canonical orientation.

    Axis order (Z, Y, X); index z grows towards superior, y towards posterior, x towards the patient's left. Oblique
    volumes are permuted and flipped to the nearest such orientation, not resampled.

    Args:
        array: (Z, Y, X) int16 where the values are integers that fit, else float32. All values are finite.
        spacing: (z, y, x) distance between voxel centres in mm.
        unit: "HU" where the file says so (CT DICOM), else "a.u." (values as stored).
        affine: (4, 4) float64, voxel index (x, y, z, 1) -> LPS position in mm.
    """

    array: np.ndarray
    spacing: tuple[float, float, float]
    unit: str
    affine: np.ndarray


@dataclass(frozen=True)
class TextRecord:
    """One text of a text file.

    Args:
        id: the file's identifier of it (``<pmid>-<k>`` for section k of a PubMed abstract, else ``row-<n>`` if none).
        text: the text, surrounding space removed; may be empty.
        label: class or None.
        group: what must stay in one split (PubMed: the PMID), else the id. Not hashed yet.
        language: three-letter code where the file has it, else "".
        copyrighted: a CopyrightInformation element stands beside the text.
    """

    id: str
    text: str
    label: Any = None
    group: str = ""
    language: str = ""
    copyrighted: bool = False


@contextmanager
def naming_file(path: Path, *, show_detail: bool = True) -> Iterator[None]:
    """Turn a decoder's exception into an ``InputError`` that names the file.

    Given damaged files, decoders raise about every kind of exception, some of no common base; all are turned.

    Args:
        path: file being read.
        show_detail: add the decoder's own message; false where that may quote a header.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        detail = f": {' '.join(str(error).split())[:200]}" if show_detail and str(error) else ""
        raise InputError(
            f"{path}: cannot be read, it is truncated, damaged or of an unsupported kind "
            f"({type(error).__name__}{detail}). Restore the file or leave it out."
        ) from (error if show_detail else None)


def require_file(path: str | Path) -> Path:
    """The path of an existing file.

    Raises:
        InputError: no such file, or it is empty.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file.")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty. Restore it or leave it out.")
    return path


def require_finite(array: np.ndarray, path: Path) -> np.ndarray:
    """Return ``array``, or raise when it holds NaN or infinite values."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        count = int(array.size - np.isfinite(array).sum())
        raise InputError(
            f"{path}: {count} of {array.size} voxels are NaN or infinite; all must be finite. "
            "Repair the file or leave it out."
        )
    return array


def rescale(raw: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """slope * raw + intercept, as int16 when all results are integers in its range, else as float32.

    Args:
        raw: any shape, integer or floating dtype.
        slope, intercept: of the file's header.
    """
    if raw.dtype.kind in "iub" and slope == 1 and float(intercept).is_integer():
        return _shift_integers(raw, int(intercept))
    if slope == 1 and intercept == 0:
        return raw.astype(np.float32, copy=False)
    scaled = np.multiply(raw, np.float32(slope), dtype=np.float32, casting="unsafe")
    scaled += np.float32(intercept)
    return scaled


def _shift_integers(raw: np.ndarray, shift: int) -> np.ndarray:
    limits = np.iinfo(np.int16)
    if raw.size and (int(raw.min()) + shift < limits.min or int(raw.max()) + shift > limits.max):
        return raw.astype(np.float32) + np.float32(shift)
    if shift == 0:
        return raw.astype(np.int16, copy=False)
    return (raw.astype(np.int32) + shift).astype(np.int16) if raw.dtype.itemsize > 1 else raw.astype(np.int16) + shift


def to_canonical(
    array: np.ndarray, affine: np.ndarray, unit: str, path: Path, spacing: tuple[float, ...] | None = None
) -> VolumeData:
    """Permute and flip a volume to the nearest canonical orientation; see :class:`VolumeData`.

    Args:
        array: (X, Y, Z) in file order.
        affine: (4, 4), file index -> LPS position in mm; may be oblique.
        unit: "HU" or "a.u.".
        path: for error texts.
        spacing: per file axis in mm; default: lengths of the affine's columns.

    Raises:
        InputError: an affine without three independent axes, or NaN voxels.
    """
    from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

    affine = np.asarray(affine, dtype=np.float64)
    lengths = np.linalg.norm(affine[:3, :3], axis=0) if spacing is None else np.asarray(spacing, dtype=np.float64)
    if not np.isfinite(affine).all() or (lengths <= 0).any() or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-3:
        raise InputError(f"{path}: the header's orientation or spacing is unusable (voxel size {lengths.tolist()} mm).")
    orientation = io_orientation(affine)
    canonical = np.require(apply_orientation(array, orientation).transpose(2, 1, 0), requirements=("C", "W"))
    by_axis = lengths[np.argsort(orientation[:, 0])]
    return VolumeData(
        array=require_finite(canonical, path),
        spacing=(float(by_axis[2]), float(by_axis[1]), float(by_axis[0])),
        unit=unit,
        affine=affine @ inv_ornt_aff(orientation, array.shape),
    )
