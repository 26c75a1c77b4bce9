"""Reading masks: integer images and volumes, in the same orientation as the readers give their images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medcoss_components.data.readers_common import ImageData, VolumeData, naming_file, require_file
from medcoss_components.data.readers_volume import ITK_SUFFIXES, NIFTI_SUFFIXES
from medcoss_components.errors import InputError

if TYPE_CHECKING:
    from medcoss_components.data.modalities import Modality

PICTURE_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif")
VOLUME_SUFFIXES = (*NIFTI_SUFFIXES, *ITK_SUFFIXES)
_SUFFIXES = {2: PICTURE_SUFFIXES, 3: VOLUME_SUFFIXES}
LARGEST = 255


def names_mask(label: Any, dimension: int) -> bool:
    """Whether a manifest's label is the path of a mask file: a text that ends as mask files of the dimension do."""
    return isinstance(label, str) and label.lower().endswith(_SUFFIXES.get(dimension, ()) or ("\0",))


def read_mask(path: str | Path, dimension: int) -> np.ndarray:
    """Read a mask.

    Args:
        path: 2D: PNG, BMP or TIFF with one channel (or equal ones); a palette's numbers are the values. 3D: NIfTI, NRRD
            or MetaImage.
        dimension: 2 or 3.

    Returns:
        (H, W) or (Z, Y, X) uint8, oriented like :func:`~medcoss_components.data.readers.read_image` and
        :func:`~medcoss_components.data.readers.read_volume` give their arrays.

    Raises:
        InputError: missing, damaged, lossy or unknown file, several differing channels, values that are no integers in
            0 .. 255.
    """
    return _read_picture(Path(path)) if dimension == 2 else _read_volume(Path(path)).array


def read_labelled(
    image: str | Path, mask: str | Path, *, modality: Modality
) -> tuple[np.ndarray, tuple[float, ...] | None, np.ndarray]:
    """Read an image and its mask and compare their grids.

    Returns:
        image array, spacing per axis in mm (None where a picture has none), mask uint8.

    Raises:
        InputError: an unreadable file, or grids that differ; both are named.
    """
    from medcoss_components.data.readers import read_image, read_volume

    reader: Any = read_image if modality.dimension == 2 else read_volume
    source = reader(image, expected_modality=modality.dicom_modalities or None)
    return source.array, source.spacing, read_mask_of(source, mask)


def read_mask_of(image: ImageData | VolumeData, path: str | Path) -> np.ndarray:
    """Read the mask of an image that was read, and compare the grids.

    Raises:
        InputError: an unreadable mask, or grids that differ; both are named.
    """
    path = Path(path)
    if isinstance(image, ImageData):
        labels = read_mask(path, 2)
        _same_shape(image.array.shape[:2], labels.shape, path)
        return labels
    volume = _read_volume(path)
    _same_shape(image.array.shape, volume.array.shape, path)
    _same_place(image, volume, path)
    return volume.array


def _same_shape(image: tuple[int, ...], mask: tuple[int, ...], path: Path) -> None:
    if tuple(image) != tuple(mask):
        raise InputError(
            f"{path}: the mask has the shape {tuple(mask)}, its image {tuple(image)}; both need the same grid. "
            "Resample the mask to the image, or correct the pairing."
        )


def _same_place(image: VolumeData, mask: VolumeData, path: Path) -> None:
    """Compare the positions of the corners; half a voxel is tolerated."""
    sizes = image.array.shape[::-1]
    corners = np.array([[*(np.array(bits) * (np.array(sizes) - 1)), 1.0] for bits in np.ndindex(2, 2, 2)])
    distance = np.linalg.norm(((image.affine - mask.affine) @ corners.T)[:3], axis=0).max()
    if distance > min(image.spacing) / 2:
        raise InputError(
            f"{path}: the mask lies up to {distance:.1f} mm beside its image (voxels {mask.spacing} and "
            f"{image.spacing} mm); both need the same grid. Correct the header of one of them."
        )


def _read_picture(path: Path) -> np.ndarray:
    from PIL import Image, ImageOps

    path = require_file(path)
    if not path.name.lower().endswith(PICTURE_SUFFIXES):
        raise InputError(f"{path}: a 2D mask is a lossless picture ({', '.join(PICTURE_SUFFIXES)}). Convert the file.")
    with naming_file(path), Image.open(path) as picture:
        array = np.array(ImageOps.exif_transpose(picture))
        bands = picture.getbands()
    if array.ndim == 3:
        array = _one_channel(array[..., :-1] if bands[-1] == "A" else array, path)
    return _whole_numbers(array, path)


def _one_channel(array: np.ndarray, path: Path) -> np.ndarray:
    if (array != array[..., :1]).any():
        raise InputError(
            f"{path}: a mask has one channel, this one has {array.shape[2]} that differ. Convert the file."
        )
    return array[..., 0]


def _read_volume(path: Path) -> VolumeData:
    from medcoss_components.data.readers import read_volume

    if path.is_file() and not path.name.lower().endswith(VOLUME_SUFFIXES):
        raise InputError(f"{path}: a 3D mask is one of {', '.join(VOLUME_SUFFIXES)}. Convert the file.")
    volume = read_volume(path)
    return VolumeData(_whole_numbers(volume.array, path), volume.spacing, volume.unit, volume.affine)


def _whole_numbers(array: np.ndarray, path: Path) -> np.ndarray:
    """The array as uint8."""
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > LARGEST or (array.dtype.kind == "f" and bool((array != np.rint(array)).any())):
        raise InputError(
            f"{path}: mask values must be whole numbers from 0 to {LARGEST}, found {low:g} to {high:g} "
            f"({array.dtype}). Renumber the regions."
        )
    return array.astype(np.uint8)
