"""The grid of a source file: what brings a mask from canonical orientation back to the file's own voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medcoss_components.data.readers_dicom import is_dicom
from medcoss_components.data.readers_series import dicom_stack, series_files
from medcoss_components.data.readers_slices import is_slice_stack, read_slice_stack, slices_size
from medcoss_components.data.readers_volume import ITK_SUFFIXES, NIFTI_SUFFIXES, RAS_TO_LPS, itk_grid, nifti_grid
from medcoss_components.errors import InputError


@dataclass(frozen=True)
class SourceGrid:
    """Voxels of a volume file in the file's own order.

    Args:
        shape: (X, Y, Z) along the file's axes; of a DICOM series (columns, rows, slices).
        affine: (4, 4) float64, file index (i, j, k, 1) -> LPS position in mm; may be oblique.
        frames: of DICOM: (file, frame number) of each slice; else empty.
        codes: NIfTI qform and sform codes, so that a written file says the same space; (1, 1) for other files.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    frames: tuple[tuple[Path, int], ...] = ()
    codes: tuple[int, int] = (1, 1)

    @property
    def affine_ras(self) -> np.ndarray:
        """(4, 4), file index -> RAS position in mm, as NIfTI has it."""
        return RAS_TO_LPS @ self.affine

    def from_canonical(self, array: np.ndarray) -> np.ndarray:
        """View a canonical (Z, Y, X) array in the file's order (X, Y, Z); undoes the readers' permutation and flips.

        Raises:
            InputError: an array of another shape than the readers give for this file.
        """
        from nibabel.orientations import apply_orientation, io_orientation, ornt_transform

        orientation = io_orientation(self.affine)
        back = ornt_transform(np.array([[0, 1], [1, 1], [2, 1]]), orientation)
        view = apply_orientation(array.transpose(2, 1, 0), back)
        if view.shape != self.shape:
            raise InputError(f"array: the file holds {self.shape} voxels (x, y, z), the canonical array {array.shape}.")
        return view


def source_grid(path: str | Path, files: Sequence[Path] = ()) -> SourceGrid:
    """The grid of a volume, from its header alone.

    Args:
        path: what :func:`~medcoss_components.data.readers.read_volume` reads.
        files: of a DICOM series in a folder that holds others too: its files.

    Raises:
        InputError: missing, damaged or unknown file, or no volume.
    """
    path = Path(path)
    name = path.name.lower()
    if name.endswith(NIFTI_SUFFIXES):
        shape, affine, codes = nifti_grid(path)
        return SourceGrid(shape=shape, affine=affine, codes=codes)
    if name.endswith(ITK_SUFFIXES):
        shape, affine = itk_grid(path)
        return SourceGrid(shape=shape, affine=affine)
    if is_slice_stack(path):
        return SourceGrid(shape=slices_size(path), affine=read_slice_stack(path).affine)
    if files or path.is_dir() or is_dicom(path):
        stack = dicom_stack(files or series_files(path), path=path)
        return SourceGrid(shape=stack.shape, affine=stack.affine, frames=stack.frames)
    raise InputError(f"{path}: no volume file.")
