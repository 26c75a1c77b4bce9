"""Small DICOM files made in the test, with patient fields that must never show up in an error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

SECRET = "SECRET^PATIENT"


def _write_dicom(
    path: Path, pixels: np.ndarray, *, compression: str | None = None, drop: tuple[str, ...] = (), **fields
):
    """Write ``pixels`` (rows, columns[, 3]) or frames (n, rows, columns) to a DICOM file; ``fields`` override."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = SECRET, SECRET, "19000101"
    dataset.Modality, dataset.SeriesInstanceUID = "CT", "1.2.3"
    colour = pixels.ndim == 3 and pixels.shape[-1] == 3
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        dataset.PlanarConfiguration = 0
    elif pixels.ndim == 3:
        dataset.NumberOfFrames = len(pixels)
    dataset.Rows, dataset.Columns = pixels.shape[:2] if colour else pixels.shape[-2:]
    dataset.BitsAllocated = dataset.BitsStored = pixels.dtype.itemsize * 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    for name, value in fields.items():
        setattr(dataset, name, value)
    for name in drop:
        delattr(dataset, name)
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OW"
    if compression:
        dataset.compress(
            getattr(__import__("pydicom.uid", fromlist=[compression]), compression), generate_instance_uid=False
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def write_dicom():
    """``write_dicom(path, pixels, compression=None, drop=(), **fields) -> path``."""
    return _write_dicom


@pytest.fixture
def secret():
    """The text that stands in every patient field of :func:`write_dicom`'s files."""
    return SECRET


@pytest.fixture
def write_series(tmp_path):
    """Write an axial CT series of 4 x 5 pixels whose slice k holds the value 100 + place; return its folder.

    ``places``: z of each slice in mm, in file order; ``fields`` may be callables of the file number.
    """

    def write(places=(0.0, 2.0, 4.0), **fields):
        folder = tmp_path / "series"
        for number, place in enumerate(places):
            values = {
                "ImagePositionPatient": [0.0, 0.0, place],
                "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
                "PixelSpacing": [0.5, 0.75],
                "RescaleSlope": 1,
                "RescaleIntercept": -1000,
            } | {name: value(number) if callable(value) else value for name, value in fields.items()}
            pixels = values.pop("pixels", np.full((4, 5), 100 + int(place), np.int16))
            drop = values.pop("drop", ())
            _write_dicom(folder / f"{number:02d}.dcm", pixels, drop=drop, **values)
        return folder

    return write
