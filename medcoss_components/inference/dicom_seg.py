"""Masks as DICOM Segmentation objects that belong to the study of their source (DICOM PS3.3 A.51), through highdicom.

Such a file carries the patient and study of its source, since it goes back to the archive beside it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from medcoss_components._version import __version__
from medcoss_components.data.readers_common import naming_file
from medcoss_components.data.readers_source import SourceGrid
from medcoss_components.errors import InputError
from medcoss_components.files import atomic_path

MANUFACTURER = "medcoss_components"
NEEDED = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)
"""Attributes of type 2: they must stand in the file, without a value where the source has none."""
STRUCTURES = {
    "liver": "Liver",
    "lung": "Lung",
    "lungs": "Lung",
    "kidney": "Kidney",
    "spleen": "Spleen",
    "heart": "Heart",
    "left_atrium": "LeftAtrium",
    "brain": "Brain",
    "grey_matter": "GrayMatter",
    "white_matter": "WhiteMatter",
}
"""Region name -> pydicom's keyword of the SNOMED CT code of an anatomical structure."""
LESIONS = {"tumour": "Neoplasm", "tumor": "Neoplasm", "lesion": "Lesion", "infection": "InfectiousDisease"}
"""Region name -> the same for a morphologically altered structure."""


def dicom_seg_available() -> bool:
    """Whether highdicom is installed."""
    return find_spec("highdicom") is not None


def require_dicom_seg() -> None:
    """Raise when highdicom is missing, with what to install.

    Raises:
        InputError: highdicom is not installed.
    """
    if not dicom_seg_available():
        raise InputError(
            "formats: 'dicom_seg' needs the package highdicom, which is not installed. Run: "
            "pip install 'medcoss-components[dicom]', or choose formats nifti or png."
        )


def write_dicom_seg(path: str | Path, masks: np.ndarray, *, grid: SourceGrid, regions: Sequence[str]) -> None:
    """Write a binary segmentation with a segment per region that refers to every instance of the source.

    Args:
        path: ends in ``.dcm``.
        masks: (K, Z, Y, X) bool in canonical orientation; of a single image (K, H, W).
        grid: of the source, with its frames.
        regions: K names.

    Raises:
        InputError: highdicom is missing, or the source lacks what a segmentation refers to.
    """
    require_dicom_seg()
    first = grid.frames[0][0]
    needed = (*NEEDED, "FrameOfReferenceUID") if masks.ndim == 4 else NEEDED
    sources = [_source(file, needed) for file in dict.fromkeys(file for file, _ in grid.frames)]
    for source in sources:
        _complete_geometry(source, grid if masks.ndim == 4 else None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they may quote header values
        try:
            dataset = _segmentation(sources, _frames(masks, grid), regions)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise InputError(
                f"{first}: highdicom can make no DICOM segmentation for this kind of file ({type(error).__name__}). "
                "Use format nifti or png."
            ) from error
        with atomic_path(path) as partial:
            dataset.save_as(partial)


def _source(file: Path, needed: Sequence[str]) -> Any:
    """Header of a source file, complete enough for a segmentation to refer to it."""
    import pydicom

    with naming_file(file, show_detail=False):
        dataset = pydicom.dcmread(file, force=True, stop_before_pixels=True)
    if missing := [name for name in needed if not dataset.get(name)]:
        raise InputError(f"{file}: lacks {', '.join(missing)}, which a DICOM segmentation needs.")
    for name in MAY_BE_EMPTY:
        if name not in dataset:
            setattr(dataset, name, "")
    return dataset


def _complete_geometry(source: Any, grid: SourceGrid | None) -> None:
    """Give a header without slice thickness what highdicom can write and read again; ``grid`` is None for an image.

    Its reader refuses a pixel spacing without a slice thickness. A series gets the distance of its slices; a radiograph
    has no thickness, so that the spacing stays with the source image, which the segmentation refers to.
    """
    if "PerFrameFunctionalGroupsSequence" in source or source.get("SliceThickness"):
        return
    if grid is None:
        source.pop("PixelSpacing", None)
    else:
        source.SliceThickness = f"{np.linalg.norm(grid.affine[:3, 2]):.6g}"


def _frames(masks: np.ndarray, grid: SourceGrid) -> np.ndarray:
    """(frames, rows, columns, K) uint8 in the order of the source's frames."""
    if masks.ndim == 3:
        return np.moveaxis(masks, 0, -1)[None].astype(np.uint8)
    one_file = len({file for file, _ in grid.frames}) == 1
    places = np.argsort([frame for _, frame in grid.frames]) if one_file else np.arange(len(grid.frames))
    columns, rows, slices = grid.shape
    output: np.ndarray = np.empty((slices, rows, columns, len(masks)), np.uint8)
    for number, mask in enumerate(masks):
        output[..., number] = grid.from_canonical(mask).transpose(2, 1, 0)[places]
    return output


def _segmentation(sources: list[Any], frames: np.ndarray, regions: Sequence[str]) -> Any:
    from highdicom import UID
    from highdicom.seg import Segmentation, SegmentationTypeValues

    return Segmentation(
        source_images=sources,
        pixel_array=frames,
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[_description(number, name) for number, name in enumerate(regions, start=1)],
        series_instance_uid=UID(),
        series_number=900,
        sop_instance_uid=UID(),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MANUFACTURER,
        software_versions=__version__,
        device_serial_number="0",
        content_label="SEGMENTATION",
        content_description="Made by an algorithm, not reviewed",
    )


def _description(number: int, name: str) -> Any:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentAlgorithmTypeValues, SegmentDescription
    from pydicom.sr.codedict import codes

    category, kind = _codes(name)
    return SegmentDescription(
        segment_number=number,
        segment_label=name[:64],
        segmented_property_category=category,
        segmented_property_type=kind,
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=AlgorithmIdentificationSequence(
            name=MANUFACTURER, version=__version__, family=codes.cid7162.ArtificialIntelligence
        ),
    )


def _codes(name: str) -> tuple[Any, Any]:
    """Category (DICOM CID 7150) and type of a region; "Tissue" where its name says no more."""
    from pydicom.sr.codedict import codes

    key = name.strip().lower().replace(" ", "_")
    if key in STRUCTURES:
        return codes.cid7150.AnatomicalStructure, getattr(codes.SCT, STRUCTURES[key])
    if key in LESIONS:
        return codes.cid7150.MorphologicallyAbnormalStructure, getattr(codes.SCT, LESIONS[key])
    return codes.cid7150.Tissue, codes.SCT.Tissue
