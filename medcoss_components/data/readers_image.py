"""PNG, JPEG, BMP and TIFF images through Pillow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medcoss_components.data.readers_common import ImageData, naming_file, require_file, require_finite

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
_CONVERSIONS = {"1": "L", "LA": "L", "La": "L", "PA": "RGB", "P": "RGB", "RGBA": "RGB", "RGBX": "RGB", "RGBa": "RGB"}
_CONVERSIONS |= {"CMYK": "RGB", "YCbCr": "RGB", "LAB": "RGB", "HSV": "RGB"}
"""Pillow mode -> mode that we read it as. Transparency is dropped, not blended."""


def read_image_file(path: Path) -> ImageData:
    """Read one image, turned upright where EXIF says so. Of a TIFF with several pages the first is read.

    Raises:
        InputError: missing, truncated, damaged or oversized file, or NaN pixels.
    """
    from PIL import Image, ImageOps

    path = require_file(path)
    with naming_file(path), Image.open(path) as image:
        array = _pixels(ImageOps.exif_transpose(image))
    return ImageData(require_finite(array, path))


def _pixels(image: Image) -> np.ndarray:
    """(H, W) or (H, W, 3) in the machine's byte order; 32-bit integers that fit become uint16."""
    array = np.array(image.convert(_CONVERSIONS[image.mode]) if image.mode in _CONVERSIONS else image)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype == np.int32 and array.min() >= 0 and array.max() <= np.iinfo(np.uint16).max:
        return array.astype(np.uint16)
    return array
