"""Networks that need no training, and small inputs of every kind."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer

from medcoss_components.data.task_inputs import TaskTransform
from medcoss_components.inference.cases import InferenceCases, InferenceLoader
from medcoss_components.inference.classification import ClassificationPredictor
from medcoss_components.inference.segmentation import SegmentationPredictor

SHARED = Path(__file__).parents[1] / "data" / "conftest.py"
SHAPES = {"ct": (1, 4, 6, 8), "mri": (1, 4, 6, 8), "xray": (3, 8, 12), "pathology": (3, 8, 12), "report": (14,)}


class Brighter(torch.nn.Module):
    """Region k is where the input is above its level: logits 200 * (mean over channels - level)."""

    def __init__(self, *levels):
        super().__init__()
        self.levels = torch.nn.Parameter(torch.tensor(levels, dtype=torch.float32))
        self.calls = 0

    def forward(self, inputs):
        self.calls += 1
        axes = [1] * (inputs.ndim - 2)
        return 200 * (inputs.mean(dim=1, keepdim=True) - self.levels.view(1, -1, *axes))


class Mean(torch.nn.Module):
    """Logits (0, 4 * mean of the input): class 1 for bright images."""

    def __init__(self):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor(4.0))
        self.calls = 0

    def forward(self, inputs):
        self.calls += 1
        mean = inputs.float().flatten(1).mean(dim=1)
        return torch.stack([torch.zeros_like(mean), self.slope * mean], dim=1)


@pytest.fixture
def brighter():
    """``brighter(level, ...)``: :class:`Brighter`."""
    return Brighter


@pytest.fixture(scope="session")
def dicom_file():
    """The writer of small DICOM files of ``tests/data/conftest.py``."""
    spec = importlib.util.spec_from_file_location("data_conftest", SHARED)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module._write_dicom, module.SECRET


@pytest.fixture
def series(dicom_file):
    """``series(folder, volume (Z, Y, X) int16, **fields)``: an axial series, files against the order of places."""
    from pydicom.uid import generate_uid

    def write(folder, volume, *, spacing=(2.0, 0.5, 0.75), uid=None, flat=False, **fields):
        uid, study, frame = uid or generate_uid(), generate_uid(), generate_uid()
        for number, plane in enumerate(volume):
            place = {
                "ImagePositionPatient": [1.0, 2.0, 3.0 + spacing[0] * number],
                "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
                "PixelSpacing": [spacing[1], spacing[2]],
                "RescaleSlope": 1,
                "RescaleIntercept": 0,
            }
            common = {
                "SeriesInstanceUID": uid,
                "StudyInstanceUID": study,
                "FrameOfReferenceUID": frame,
                "InstanceNumber": number + 1,
                "SliceThickness": spacing[0],
            }
            dicom_file[0](folder / f"{len(volume) - number:03d}.dcm", plane, **(place | common | fields))
        return folder

    return write


@pytest.fixture
def nifti():
    """``nifti(path, volume (Z, Y, X), affine)``."""

    def write(path, volume, affine=None):
        path.parent.mkdir(parents=True, exist_ok=True)
        affine = np.diag([-1.0, -1.0, 2.0, 1.0]) if affine is None else affine
        nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(volume.T), affine), path)
        return path

    return write


@pytest.fixture
def ball():
    """(10, 14, 18) int16 HU: -1000 outside, 500 in a block of 4 x 5 x 6, 900 in its core of 2 x 2 x 2."""
    volume = np.full((10, 14, 18), -1000, np.int16)
    volume[3:7, 4:9, 6:12] = 500
    volume[4:6, 5:7, 8:10] = 900
    return volume


@pytest.fixture
def find():
    """``find(input, modality, kind=..., **options) -> InferenceCases`` of the small shapes."""

    def build(path, modality="ct", **options):
        return InferenceCases(input=path, modality=modality, input_shape=SHAPES[modality], **options)

    return build


@pytest.fixture
def segmenter(tmp_path, find):
    """``segmenter(input, modality, network=..., **options of the predictor)`` that writes to ``tmp_path / "out"``."""

    def build(path, modality="ct", *, network=None, regions=None, preparation=None, **options):
        cases = find(path, modality, kind="segmentation", preparation=preparation)
        regions = regions or {"organ": [1, 2], "core": [2]}
        shape = SHAPES[modality]
        settings = {
            "output_dir": tmp_path / "out",
            "inferer": SlidingWindowInferer(roi_size=shape[1:], sw_batch_size=2, overlap=0.5, mode="gaussian"),
            "precision": "float32",
            "preprocessing": TaskTransform(modality=modality, input_shape=shape, regions=regions),
            "overlay": False,
            "formats": "nifti" if len(shape) == 4 else "png",
        } | options
        return SegmentationPredictor(
            device="cpu",
            val_data_loader=InferenceLoader(dataset=cases),
            network=network or Brighter(0.2, 0.7),
            regions=regions,
            **settings,
        )

    return build


@pytest.fixture
def classifier(tmp_path, find):
    """``classifier(input, modality, **options of the predictor)`` that writes to ``tmp_path / "out"``."""

    def build(path, modality="xray", *, network=None, case_options=None, batch_size=None, **options):
        cases = find(path, modality, **(case_options or {}))
        settings = {
            "output_dir": tmp_path / "out",
            "precision": "float32",
            "preprocessing": TaskTransform(modality=modality, input_shape=SHAPES[modality]),
            "classes": ["dark", "bright"],
        } | options
        return ClassificationPredictor(
            device="cpu",
            val_data_loader=InferenceLoader(dataset=cases, batch_size=batch_size),
            network=network or Mean(),
            **settings,
        )

    return build
