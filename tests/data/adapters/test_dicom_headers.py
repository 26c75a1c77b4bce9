"""Headers of DICOM files: orientation, what points at a patient, and series that are no volume."""

from __future__ import annotations

import numpy as np
import pytest

from medcoss_components.data.adapters.dicom_headers import geometry_problem, read_header
from medcoss_components.data.adapters.own_dicom import index_dicom
from medcoss_components.data.modalities import get_modality
from medcoss_components.errors import InputError

AXIAL, CORONAL = [1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, ""),
        ({"places": (0, 2, 4, 8)}, "1 gaps between slices differ from the usual 2 mm"),
        ({"places": (0, 2, 2, 4)}, "1 slices lie at the place of another one"),
        ({"SOPInstanceUID": lambda n: "1.5"}, "some of its files stand there twice"),
        ({"pixels": lambda n: np.zeros((4 + n, 5), np.int16)}, "its slices differ in size"),
        ({"drop": lambda n: ("ImagePositionPatient",)}, "slices without position"),
        ({"ImageOrientationPatient": lambda n: [1, 0, 0, 0, 1 - n % 2, n % 2]}, "differ in orientation"),
    ],
)
def test_geometry(write_series, change, problem):
    change = {"SOPInstanceUID": lambda n: f"1.{n}"} | change
    folder = write_series(change.pop("places", (0.0, 2.0, 4.0, 6.0)), **change)
    headers = tuple(read_header(path) for path in sorted(folder.iterdir()))
    found = geometry_problem(headers, minimum=2)
    assert found.startswith(problem) if not problem.startswith("differ") else problem in found
    assert bool(found) == bool(problem)


def test_no_image(tmp_path, write_dicom):
    path = write_dicom(tmp_path / "report.dcm", np.zeros((4, 5), np.int16), drop=("Rows",))
    with pytest.raises(InputError, match="DICOM without an image"):
        read_header(path)


@pytest.mark.parametrize(
    ("directions", "orientation"),
    [
        (AXIAL, "axial"),
        (CORONAL, "coronal"),
        ([0, 1, 0, 0, 0, -1], "sagittal"),
        ([1, 0, 0, 0, 0.7071, -0.7071], "oblique"),
    ],
)
def test_orientations(tmp_path, write_dicom, directions, orientation):
    path = write_dicom(tmp_path / "x", np.zeros((4, 5), np.int16), ImageOrientationPatient=directions)
    assert read_header(path).orientation == orientation
    path = write_dicom(tmp_path / "y", np.zeros((4, 5), np.int16))
    assert read_header(path).orientation == "unknown" and not read_header(path).axial


def test_what_points_at_a_patient(tmp_path, write_dicom):
    fields = {"PatientName": "Roe^Jane Ann=", "PatientID": "17", "AccessionNumber": "A-99", "StudyDate": "20200131"}
    path = write_dicom(tmp_path / "x", np.zeros((4, 5), np.int16), **fields)
    found = read_header(path).identifiers
    assert {"Roe", "Jane", "Ann", "A-99", "20200131", "2020-01-31", "1900-01-01"} <= found
    assert "Roe" not in repr(read_header(path))
    index = index_dicom(tmp_path, modality=get_modality("ct"), minimum_slices=1)
    assert set(index.identifiers) == {"17"} and "Roe" not in repr(index)
    path = write_dicom(tmp_path / "y", np.zeros((4, 5), np.int16), PatientName="Anonymous^")
    assert "Anonymous" not in read_header(path).identifiers


def test_files_without_an_image_where_they_are_wanted(tmp_path, write_dicom):
    fields = {"Modality": "RTSTRUCT", "SeriesDescription": " Roe, T1 "}
    path = write_dicom(tmp_path / "set.dcm", np.zeros((4, 5), np.int16), drop=("Rows", "Columns"), **fields)
    header = read_header(path, needs_image=False)
    assert (header.modality, header.size, header.description) == ("RTSTRUCT", (0, 0), "Roe, T1")
    assert "Roe" not in repr(header)
