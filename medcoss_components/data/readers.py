"""Reading images, volumes and texts: one function per kind, whatever the file format.

Formats: PNG, JPEG, BMP, TIFF and DICOM images; NIfTI, NRRD, MetaImage volumes, DICOM series and stacks of pictures;
PubMed XML, CSV, TSV and JSON-lines texts. All raise :class:`~medcoss_components.errors.InputError` that names the file
and the rule, and never quote header fields or text.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from medcoss_components.data.readers_common import ImageData, TextRecord, VolumeData
from medcoss_components.data.readers_dicom import is_dicom, read_dicom_image
from medcoss_components.data.readers_image import IMAGE_SUFFIXES, read_image_file
from medcoss_components.data.readers_series import read_dicom_volume
from medcoss_components.data.readers_slices import SLICES_SUFFIX, read_slices
from medcoss_components.data.readers_text import (
    PubmedRecord,
    read_csv,
    read_json_lines,
    read_pubmed,
    read_pubmed_sections,
)
from medcoss_components.data.readers_volume import ITK_SUFFIXES, NIFTI_SUFFIXES, read_itk, read_nifti
from medcoss_components.errors import InputError

__all__ = [
    "ImageData",
    "PubmedRecord",
    "TextRecord",
    "VolumeData",
    "is_dicom",
    "read_image",
    "read_pubmed",
    "read_texts",
    "read_volume",
]

TEXT_READERS = {
    ".xml": read_pubmed_sections,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
}


def read_image(path: str | Path, *, expected_modality: str | Collection[str] | None = None) -> ImageData:
    """Read a 2D image.

    DICOM: rescale slope and intercept or the modality table are applied, MONOCHROME1 is inverted (so that dense tissue
    is bright), colour becomes RGB, padding becomes dark.

    Args:
        path: PNG, JPEG, BMP, TIFF or single-frame DICOM file.
        expected_modality: DICOM Modality codes that are admitted, for example "DX" or ("CR", "DX"); None or empty: any.
            Other formats carry no such code and pass.

    Returns:
        array (H, W) or (H, W, 3) in native dtype, spacing (row, column) in mm or None.

    Raises:
        InputError: missing, truncated, damaged or unknown file, several frames, another modality, NaN pixels.
    """
    path = Path(path)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return read_image_file(path)
    if is_dicom(path):
        return read_dicom_image(path, expected_modality)
    raise _unknown_format(path, (*IMAGE_SUFFIXES, "DICOM"))


def read_volume(path: str | Path, *, expected_modality: str | Collection[str] | None = None) -> VolumeData:
    """Read a 3D volume into canonical orientation (z superior, y posterior, x left; see :class:`VolumeData`).

    Args:
        path: NIfTI, NRRD or MetaImage file, multi-frame DICOM file, a folder holding one DICOM series, or the
            descriptor of a stack of pictures (``.slices.json``, see :mod:`~medcoss_components.data.readers_slices`).
        expected_modality: DICOM Modality codes that are admitted, for example "CT"; None or empty: any. Other formats
            carry no such code and pass.

    Returns:
        array (Z, Y, X) int16 or float32, spacing (z, y, x) in mm, unit "HU" or "a.u.".

    Raises:
        InputError: missing, truncated, damaged or unknown file, not 3D, another modality, NaN voxels; for DICOM also
            a missing or doubled slice, uneven spacing or several series (the files in question are named).
    """
    path = Path(path)
    name = path.name.lower()
    if name.endswith(NIFTI_SUFFIXES):
        return read_nifti(path)
    if name.endswith(ITK_SUFFIXES):
        return read_itk(path)
    if name.endswith(SLICES_SUFFIX):
        return read_slices(path)
    if path.is_dir() or is_dicom(path):
        return read_dicom_volume(path, expected_modality)
    raise _unknown_format(path, (*NIFTI_SUFFIXES, *ITK_SUFFIXES, SLICES_SUFFIX, "DICOM file or folder"))


def read_texts(path: str | Path, **columns: str) -> Iterator[TextRecord]:
    """Read texts one by one; empty ones are given too, for the caller to list.

    Args:
        path: PubMed XML (one record per abstract section, label = NlmCategory), CSV, TSV or JSON lines; ``.gz`` works.
        columns: for CSV, TSV and JSON lines: ``id``, ``text``, ``label``, ``group`` = name of the column or key; the
            defaults are those words. Only the text column must exist.

    Yields:
        Records in file order. Identifiers are the file's own: hash them before they go into a manifest.

    Raises:
        InputError: missing, truncated or malformed file (the line is named, not quoted), or no text column.
    """
    path = Path(path)
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    if suffix not in TEXT_READERS:
        raise _unknown_format(path, tuple(TEXT_READERS))
    return TEXT_READERS[suffix](path, **columns)


def _unknown_format(path: Path, known: tuple[str, ...]) -> InputError:
    if not path.exists():
        return InputError(f"{path}: no such file.")
    return InputError(f"{path}: unknown format; readable are {', '.join(known)}.")
