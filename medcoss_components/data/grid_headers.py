"""Size and spacing of images and volumes from their headers alone, in the orientation that the readers give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medcoss_components.data.adapters.findings import header_size
from medcoss_components.data.readers_common import naming_file, require_file
from medcoss_components.data.readers_dicom import image_spacing, is_dicom, read_dataset
from medcoss_components.data.readers_image import IMAGE_SUFFIXES
from medcoss_components.data.readers_series import dicom_stack, series_files
from medcoss_components.data.readers_slices import SLICES_SUFFIX, read_slice_stack, slices_size
from medcoss_components.data.readers_volume import ITK_SUFFIXES, NIFTI_SUFFIXES, itk_grid, nifti_grid
from medcoss_components.errors import InputError


@dataclass(frozen=True)
class HeaderGrid:
    """What a header says of an image or a volume.

    Args:
        size: pixels (width, height), or voxels (x, y, z): left-right, front-back, feet-head.
        spacing: mm along the same axes; () where the file does not tell.
    """

    size: tuple[int, ...]
    spacing: tuple[float, ...] = ()


def read_image_grid(path: Path) -> HeaderGrid:
    """Width and height of an image that :func:`~medcoss_components.data.readers.read_image` reads.

    Raises:
        InputError: missing, damaged or unknown file.
    """
    if path.name.lower().endswith(IMAGE_SUFFIXES):
        return HeaderGrid(header_size(require_file(path)))
    if not is_dicom(path):
        raise InputError(f"{path}: no such file, or no image of a known format.")
    header = read_dataset(path, stop_before_pixels=True)
    with naming_file(path, show_detail=False):
        spacing = image_spacing(header) or ()
        return HeaderGrid((int(header.Columns), int(header.Rows)), spacing[::-1])


def read_volume_grid(path: Path) -> HeaderGrid:
    """Voxels and spacing of a volume that :func:`~medcoss_components.data.readers.read_volume` reads.

    Of a DICOM series the header of every slice is read.

    Raises:
        InputError: missing, damaged or unknown file, or a series that is no volume.
    """
    name = path.name.lower()
    if name.endswith(NIFTI_SUFFIXES):
        shape, affine, _ = nifti_grid(path)
    elif name.endswith(ITK_SUFFIXES):
        shape, affine = itk_grid(path)
    elif name.endswith(SLICES_SUFFIX):
        return _upright(slices_size(path), read_slice_stack(path).affine)
    elif path.is_dir() or is_dicom(path):
        stack = dicom_stack(series_files(path), path=path)
        shape, affine = stack.shape, stack.affine
    else:
        raise InputError(f"{path}: no such file, or no volume of a known format.")
    with naming_file(path, show_detail=False):
        return _upright(shape, affine)


def _upright(shape: Sequence[int], affine: np.ndarray) -> HeaderGrid:
    """The axes of a file in the order x, y, z of the patient.

    Args:
        shape: voxels along the file's axes.
        affine: (4, 4), index along these axes -> LPS position in mm.
    """
    from nibabel.orientations import io_orientation

    order = np.argsort(io_orientation(affine)[:, 0])
    spacing = np.linalg.norm(affine[:3, :3], axis=0)[order]
    return HeaderGrid(tuple(int(shape[axis]) for axis in order), tuple(float(step) for step in spacing))
