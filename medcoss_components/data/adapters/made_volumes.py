"""Volumes, masks and folders of links that adapters make: functions for :func:`.converting.make_files`."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medcoss_components.data.linking import link_series
from medcoss_components.data.readers_volume import RAS_TO_LPS


def save_nifti(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """Write a compressed NIfTI file under any name; equal input gives equal bytes.

    Args:
        path: file, also one with a temporary suffix.
        array: (X, Y, Z) of a type that NIfTI has.
        affine: (4, 4), index (x, y, z, 1) -> LPS position in mm.
    """
    import nibabel

    image = nibabel.Nifti1Image(np.asarray(array), RAS_TO_LPS @ affine)
    image.header.set_xyzt_units("mm")
    with open(path, "wb") as stream, gzip.GzipFile("", "wb", compresslevel=1, fileobj=stream, mtime=0) as packed:
        packed.write(image.to_bytes())


def smallest_type(array: np.ndarray) -> np.ndarray:
    """Whole numbers in 0 .. 255 as uint8; others as they are."""
    fits = array.dtype.kind in "iub" and array.size and int(array.min()) >= 0 and int(array.max()) <= 255
    return array.astype(np.uint8) if fits else array


def make_series_folder(partial: Path, *, files: Sequence[Path]) -> None:
    """Fill a folder with links to the files of a DICOM series."""
    link_series(files, partial)
