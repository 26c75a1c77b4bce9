"""Small CT data sets in the layout of their publishers."""

from __future__ import annotations

import nibabel
import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

COLUMNS = (
    "File_name,Patient_index,Study_index,Series_ID,Key_slice_index,Measurement_coordinates,Bounding_boxes,"
    "Lesion_diameters_Pixel_,Normalized_lesion_location,Coarse_lesion_type,Possibly_noisy,Slice_range,Spacing_mm_px_,"
    "Image_size,DICOM_windows,Patient_gender,Patient_age,Train_Val_Test"
)


def body(shape, *, seed=0):
    """(X, Y, Z) int16 of air with a bright cuboid off the centre, so that flips and swaps show."""
    x, y, z = shape
    array = np.full(shape, -1000, np.int16)
    array[x // 2 : x - 2, 1 : y // 2, 1 : z - 1] = 60
    return array + np.random.default_rng(seed).integers(0, 5, shape).astype(np.int16)


def liver(shape):
    """(X, Y, Z) uint8: the cuboid of :func:`body` is liver (1), its first columns tumor (2)."""
    x, y, z = shape
    array = np.zeros(shape, np.uint8)
    array[x // 2 : x - 2, 1 : y // 2, 1 : z - 1] = 1
    array[x // 2 : x // 2 + 3, 1 : y // 2, 1 : z - 1] = 2
    return array


def save_nifti(path, array, affine):
    """Write a NIfTI file; ``affine`` is RAS, or the voxel size in mm."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([*affine, 1.0]) if np.ndim(affine) == 1 else affine
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


def write_lits(root, numbers, *, shape=(24, 20, 18), spacing=(-0.75, -0.75, 2.5)):
    """Volumes and masks of the training batches; numbers below 28 lie in the first one."""
    for number in numbers:
        folder = root / f"Training Batch {1 + (number >= 28)}"
        save_nifti(folder / f"volume-{number}.nii", body(shape, seed=number), spacing)
        save_nifti(folder / f"segmentation-{number}.nii", liver(shape), spacing)
    return root


def save_slice(path, pixels, **fields):
    """Write a CT slice as TCIA ships it; ``fields`` override."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    values = {
        "Modality": "CT",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "PixelSpacing": [0.8, 0.8],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
    }
    dataset.Rows, dataset.Columns = pixels.shape
    for name, value in (values | fields).items():
        setattr(dataset, name, value)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.PixelData = pixels.astype(np.int16).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def write_series(root, patient, *, study=1, series=1, slices=16, step=2.0, missing=(), name="CHEST", **fields):
    """A series at ``<root>/<patient>/<date and study>/<series>``; slice k holds k + 24 less 1024, brighter at the left.

    Slice numbers grow towards the feet. Returns the folder.
    """
    folder = root / patient / f"05-1{study}-2005-NA-CT CHEST-0000{study}" / f"{series}.000000-{name}-1234{series}"
    uid = f"1.2.{sum(map(ord, patient))}.{patient[-2:].lstrip('0') or 0}.{study}"
    for number in range(slices):
        if number not in missing:
            pixels = np.full((20, 24), 24 + number)
            pixels[:, 12:] += 500
            values = {
                "PatientID": patient,
                "PatientName": patient,
                "StudyInstanceUID": uid,
                "SeriesInstanceUID": f"{uid}.{series}",
                "SOPInstanceUID": f"{uid}.{series}.{number + 1}",
                "InstanceNumber": number + 1,
                "ImagePositionPatient": [0.0, 0.0, -step * number],
            }
            save_slice(folder / f"1-{number + 1:03d}.dcm", pixels, **(values | fields))
    return folder


def lesion_row(series, *, key, span, spacing="0.8, 0.8, 5", split=1):
    """A line of DL_info.csv."""
    patient, study, number = (int(part) for part in series.split("_"))
    first, last = span
    return (
        f'{series}_{key:03d}.png,{patient},{study},{number},{key},"1, 2, 3, 4, 5, 6, 7, 8","1, 2, 3, 4","9.1, 5.2",'
        f'"0.5, 0.5, 0.5",-1,0,"{first}, {last}","{spacing}","512, 512","-175, 275",F,61,{split}'
    )


def lesion_slices(folder, numbers, *, shape=(20, 18)):
    """16-bit slices; slice k is air (-1000 HU) with a square of k HU in the upper left quarter."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        values = np.full(shape, -1000)
        values[2:9, 1:8] = number
        Image.fromarray((values + 32768).astype(np.uint16)).save(folder / f"{number:03d}.png")


def write_table(root, rows):
    """DL_info.csv of lines."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "DL_info.csv").write_text("\n".join((COLUMNS, *rows)) + "\n")
