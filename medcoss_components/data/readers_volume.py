"""NIfTI volumes through nibabel; NRRD and MetaImage volumes through SimpleITK."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from medcoss_components.data.readers_common import (
    ARBITRARY,
    VolumeData,
    naming_file,
    require_file,
    rescale,
    to_canonical,
)
from medcoss_components.errors import InputError

NIFTI_SUFFIXES = (".nii", ".nii.gz")
ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_MILLIMETRES = {"meter": 1000.0, "micron": 0.001}


def read_nifti(path: Path) -> VolumeData:
    """Read a 3D NIfTI file (a fourth axis of length 1 is dropped); integers without a scale stay int16.

    Raises:
        InputError: missing, truncated or damaged file, not 3D, complex or colour voxels, NaN voxels, unusable affine.
    """
    image, shape, affine = _open_nifti(path)
    _require_scalar(image.get_data_dtype(), path)
    with naming_file(path):
        proxy = image.dataobj
        raw = proxy.get_unscaled().reshape(shape)
    values = rescale(raw, float(proxy.slope), float(proxy.inter))
    return to_canonical(values, affine, ARBITRARY, path)


def nifti_grid(path: Path) -> tuple[tuple[int, int, int], np.ndarray, tuple[int, int]]:
    """Shape (X, Y, Z), LPS affine (4, 4) and the qform and sform codes of a NIfTI file, from its header alone."""
    image, shape, affine = _open_nifti(path)
    codes = (int(image.header.get("qform_code", 1)), int(image.header.get("sform_code", 1)))
    return shape, affine, codes


def _open_nifti(path: Path) -> tuple[Any, tuple[int, int, int], np.ndarray]:
    """Image with unread voxels, its shape and its affine (file index -> LPS position in mm)."""
    import nibabel

    path = require_file(path)
    with naming_file(path, show_detail=False):
        image = nibabel.load(path, mmap=False)
        scale = _MILLIMETRES.get(image.header.get_xyzt_units()[0], 1.0)
    affine = RAS_TO_LPS @ np.diag([scale, scale, scale, 1.0]) @ image.affine
    return image, shape_3d(image.shape, path), affine


def read_itk(path: Path) -> VolumeData:
    """Read a 3D NRRD or MetaImage file; direction and spacing come from its header (LPS).

    Raises:
        InputError: missing, truncated or damaged file, not 3D, several values per voxel, NaN voxels.
    """
    import SimpleITK

    path = require_file(path)
    with naming_file(path, show_detail=False):
        image = SimpleITK.ReadImage(str(path))
        array = SimpleITK.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(f"{path}: has {image.GetNumberOfComponentsPerPixel()} values per voxel, a volume has 1.")
    _require_scalar(array.dtype, path)
    shape_3d(image.GetSize(), path)
    return to_canonical(rescale(array.reshape(array.shape[-3:]), 1.0, 0.0).T, _itk_affine(image), ARBITRARY, path)


def itk_grid(path: Path) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape (X, Y, Z) and LPS affine (4, 4) of an NRRD or MetaImage file, from its header alone."""
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(require_file(path)))
    with naming_file(path, show_detail=False):
        reader.ReadImageInformation()
    return shape_3d(reader.GetSize(), path), _itk_affine(reader)


def _itk_affine(image: Any) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()[:9] if image.GetDimension() == 3 else np.eye(3)).reshape(3, 3)
    affine[:3, :3] *= np.array(image.GetSpacing()[:3])
    affine[:3, 3] = image.GetOrigin()[:3]
    return affine


def _require_scalar(dtype: np.dtype, path: Path) -> None:
    if np.dtype(dtype).kind not in "iufb":
        raise InputError(f"{path}: voxels must be real numbers, got {np.dtype(dtype)}. Convert the file.")


def shape_3d(shape: tuple[int, ...], path: Path) -> tuple[int, int, int]:
    """(X, Y, Z) of a file's shape; trailing axes of length 1 do not count."""
    kept = tuple(int(size) for size in shape)
    while len(kept) > 3 and kept[-1] == 1:
        kept = kept[:-1]
    if len(kept) != 3 or min(kept) < 1:
        raise InputError(f"{path}: must be a 3D volume, got shape {tuple(shape)}. Give each time point a file.")
    return kept[0], kept[1], kept[2]
