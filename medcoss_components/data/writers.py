"""Small writers of image files: the counterpart of ``readers.py`` for samples, synthetic items and tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def write_nifti(
    path: Path, volume: np.ndarray, spacing: Sequence[float], *, origin: Sequence[float] = (0.0, 0.0, 0.0)
) -> None:
    """Write a volume as NIfTI; equal input gives equal bytes.

    Args:
        volume: (Z, Y, X) with +z superior, +y posterior, +x left.
        spacing: (z, y, x) in millimetres.
        origin: position (z, y, x) of the first voxel in millimetres along the same directions.
    """
    import nibabel

    z, y, x = spacing
    affine = np.diag([-x, -y, z, 1.0])
    affine[:3, 3] = (-origin[2], -origin[1], origin[0])
    image = nibabel.Nifti1Image(np.ascontiguousarray(volume.T), affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, str(path))


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write uint8 (H, W) or (H, W, 3), or uint16 (H, W), as PNG, with little compression: it is read once."""
    from PIL import Image

    Image.fromarray(picture).save(path, compress_level=1)


def write_dicom(path: Path, picture: np.ndarray, *, modality: str, position: float | None = None, **tags: Any) -> None:
    """Write ``picture`` (H, W) of a 16-bit integer type as an uncompressed DICOM file without patient data.

    Args:
        modality: DICOM modality code such as "CR", "CT" or "MR".
        position: z of the slice in millimetres for a series of parallel axial slices (None: a plain radiograph).
        tags: further elements by keyword, for example ``PhotometricInterpretation="MONOCHROME1"``.
    """
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(path)])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    values = _dicom_elements(path, picture, modality, position) | tags
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.PixelData = np.ascontiguousarray(picture).tobytes()
    dataset.save_as(str(path), enforce_file_format=True)


def _dicom_elements(path: Path, picture: np.ndarray, modality: str, position: float | None) -> dict[str, Any]:
    from pydicom.uid import generate_uid

    values: dict[str, Any] = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7",
        "SOPInstanceUID": generate_uid(entropy_srcs=[str(path)]),
        "SeriesInstanceUID": generate_uid(entropy_srcs=[str(path.parent)]),
        "Modality": modality,
        "Rows": picture.shape[0],
        "Columns": picture.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": int(np.issubdtype(picture.dtype, np.signedinteger)),
        "PixelSpacing": [1.0, 1.0],
    }
    if position is not None:
        values |= {
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "ImagePositionPatient": [0.0, 0.0, position],
            "SliceThickness": 1.0,
            "InstanceNumber": int(round(position)) + 1,
            "RescaleSlope": 1,
            "RescaleIntercept": 0,
        }
    return values


def write_dicom_series(folder: Path, volume: np.ndarray, *, modality: str, thickness: float = 1.0, **tags: Any) -> None:
    """Write ``volume`` (Z, Y, X) of a 16-bit integer type as one axial DICOM file per slice, z upwards."""
    folder.mkdir(parents=True, exist_ok=True)
    tags = {"SliceThickness": thickness} | tags
    for index, picture in enumerate(volume):
        extra = {"InstanceNumber": index + 1} | tags
        write_dicom(folder / f"{index:04d}.dcm", picture, modality=modality, position=index * thickness, **extra)
