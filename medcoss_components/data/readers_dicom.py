"""DICOM files through pydicom (compressed pixels: pylibjpeg), and images made of them. Series: ``readers_series.py``.

Only the attributes in :data:`TAGS` are kept from a file: names, dates and identifiers of patients are skipped when it
is parsed, so no error and no log can show them.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from medcoss_components.data.readers_common import (
    ARBITRARY,
    HOUNSFIELD,
    ImageData,
    naming_file,
    require_file,
    require_finite,
    rescale,
)
from medcoss_components.errors import InputError

DICOM_SUFFIXES = (".dcm", ".dicom", ".dic", ".ima")
PIXEL_TAGS = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData",
    "SegmentedRedPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData",
    "SegmentedBluePaletteColorLookupTableData",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    "PixelData",
    "FloatPixelData",
    "DoubleFloatPixelData",
)
GEOMETRY_TAGS = (
    "Modality",
    "ImageType",
    "SOPClassUID",
    "SeriesInstanceUID",
    "InstanceNumber",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "NominalScannedPixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)
TAGS = (*PIXEL_TAGS, *GEOMETRY_TAGS)
UNITS = {"CT": HOUNSFIELD}
LOCALIZERS = {"LOCALIZER", "SCOUT", "TOPOGRAM"}
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


def is_dicom(path: str | Path) -> bool:
    """Whether a file has the DICOM mark at byte 128, or a suffix that says DICOM."""
    path = Path(path)
    if not path.is_file():
        return False
    with open(path, "rb") as stream:
        return stream.read(132)[128:] == b"DICM" or path.suffix.lower() in DICOM_SUFFIXES


def read_dicom_image(path: Path, expected_modality: str | Collection[str] | None = None) -> ImageData:
    """Read a single-frame DICOM image; see :func:`medcoss_components.data.readers.read_image`."""
    with naming_file(path, show_detail=False):
        return _read_image(require_file(path), expected_modality)


def _read_image(path: Path, expected_modality: str | Collection[str] | None) -> ImageData:
    dataset = read_dataset(path)
    code = check_modality(dataset, expected_modality, path)
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise InputError(f"{path}: an image has 1 frame, this file has {frames}. Read it as a volume or split it.")
    with naming_file(path):
        pixels = _colour(dataset, decode(dataset)) if is_colour(dataset) else _grey(dataset, decode(dataset))
    return ImageData(require_finite(pixels, path), image_spacing(dataset), UNITS.get(code, ARBITRARY))


def read_dataset(path: Path, *, stop_before_pixels: bool = False) -> Any:
    import pydicom

    quieten()
    with naming_file(path, show_detail=False):
        dataset = pydicom.dcmread(path, force=True, specific_tags=list(TAGS), stop_before_pixels=stop_before_pixels)
        if "Rows" not in dataset or "Columns" not in dataset:
            raise InputError(f"{path}: no DICOM image (Rows or Columns is missing). Restore the file or leave it out.")
        if "TransferSyntaxUID" not in dataset.file_meta:
            dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    return dataset


@cache
def quieten() -> None:
    """No warnings that quote header values, no tracebacks of decoders: our own error says what failed."""
    from pydicom import config

    config.settings.reading_validation_mode = config.IGNORE
    for name in ("pydicom.pixels", "openjpeg"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def check_modality(dataset: Any, expected: str | Collection[str] | None, path: Path) -> str:
    code = str(dataset.get("Modality") or "")
    admitted = (expected,) if isinstance(expected, str) else tuple(expected or ())
    if admitted and code not in admitted:
        raise InputError(
            f"{path}: the DICOM modality is {code or 'not given'!r}, expected {' or '.join(admitted)}. "
            "Take the file out of the data set or correct the manifest's modality."
        )
    return code


def no_slice(dataset: Any) -> str:
    """Why a file of the right modality is no slice of a volume though nothing is wrong with it; "" where it is one."""
    if LOCALIZERS & {str(value).upper() for value in dataset.get("ImageType") or ()}:
        return "a localizer"
    placed = "ImagePositionPatient" in dataset or "SharedFunctionalGroupsSequence" in dataset
    if not placed and str(dataset.get("SOPClassUID") or "").startswith(SECONDARY_CAPTURE):
        return "a secondary capture without a place, such as a report or a screen"
    return ""


def decode(dataset: Any) -> np.ndarray:
    """Pixels of all frames as stored, in the machine's byte order; YBR colour as RGB."""
    from pydicom.pixels import pixel_array

    pixels = pixel_array(dataset)
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


def is_colour(dataset: Any) -> bool:
    return int(dataset.get("SamplesPerPixel") or 1) == 3 or dataset.PhotometricInterpretation == "PALETTE COLOR"


def _colour(dataset: Any, pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) RGB, uint8 where the file's palette or samples allow it."""
    from pydicom.pixels import apply_color_lut

    if dataset.PhotometricInterpretation != "PALETTE COLOR":
        return pixels
    looked_up = apply_color_lut(pixels, dataset)[..., :3]
    return (looked_up >> 8).astype(np.uint8) if looked_up.dtype == np.uint16 else looked_up


def _grey(dataset: Any, stored: np.ndarray) -> np.ndarray:
    """(H, W) with dense tissue bright: MONOCHROME1 inverted, then slope and intercept (or the modality table)."""
    from pydicom.pixels import apply_modality_lut

    inverted = dataset.PhotometricInterpretation == "MONOCHROME1"
    slope, intercept = float(dataset.get("RescaleSlope") or 1), float(dataset.get("RescaleIntercept") or 0)
    if "ModalityLUTSequence" in dataset:
        values = apply_modality_lut(stored, dataset)
        values = int(values.max()) + int(values.min()) - values if inverted else values
    else:
        values = _invert(dataset, stored) if inverted else stored
        values = values if (slope, intercept) == (1, 0) else rescale(values, slope, intercept)
    return darken_padding(dataset, stored, values)


def _invert(dataset: Any, stored: np.ndarray) -> np.ndarray:
    """Mirror stored values inside the range of BitsStored: largest + smallest - value."""
    signed = int(dataset.get("PixelRepresentation") or 0)
    bits = int(dataset.get("BitsStored") or stored.dtype.itemsize * 8)
    ends = -1 if signed else 2**bits - 1
    return (ends - stored.astype(np.int64)).astype(stored.dtype)


def darken_padding(dataset: Any, stored: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Padding that would show brighter than the darkest real pixel gets that pixel's value."""
    padding = dataset.get("PixelPaddingValue")
    if padding is None or not (mask := stored == padding).any() or mask.all():
        return values
    darkest = values[~mask].min()
    return np.where(mask & (values > darkest), darkest, values)


def image_spacing(dataset: Any) -> tuple[float, float] | None:
    """(row, column) distance of pixels in mm as the header of an image says, or None."""
    for name in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        values = dataset.get(name)
        if values is not None and len(values) == 2 and min(values) > 0:
            return float(values[0]), float(values[1])
    return None
