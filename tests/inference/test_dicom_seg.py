"""DICOM segmentations are read by pydicom and by highdicom, and refer to their source."""

from __future__ import annotations

import highdicom as hd
import numpy as np
import pytest

from medcoss_components.errors import InputError
from medcoss_components.inference.dicom_seg import write_dicom_seg
from medcoss_components.inference.outputs import CasesFailedError
from medcoss_components.inference.segmentation import chosen_formats


def segmentation(folder):
    (path,) = (folder / "out" / "masks").glob("*.dcm")
    return hd.seg.segread(path)


def by_instance(seg, folder):
    """Masks (Z, Y, X, K) that highdicom gives for the source's instances, in the order of their places."""
    import pydicom

    headers = [pydicom.dcmread(file) for file in folder.iterdir()]
    headers.sort(key=lambda header: float(header.ImagePositionPatient[2]))
    uids = [header.SOPInstanceUID for header in headers]
    return seg.get_pixels_by_source_instance(uids, ignore_spatial_locations=True, assert_missing_frames_are_empty=True)


def test_series(tmp_path, series, ball, segmenter):
    import pydicom

    folder = series(tmp_path / "in", ball, Manufacturer="scanner")
    segmenter(folder, formats=["nifti", "dicom_seg"], regions={"liver": [1, 2], "tumour": [2]}).run()
    assert len(list((tmp_path / "out" / "masks").iterdir())) == 2
    seg, source = segmentation(tmp_path), pydicom.dcmread(next(folder.iterdir()))
    pixels = by_instance(seg, folder)
    np.testing.assert_array_equal(pixels[..., 0], ball >= 500)
    np.testing.assert_array_equal(pixels[..., 1], ball == 900)
    assert seg.StudyInstanceUID == source.StudyInstanceUID and seg.PatientID == source.PatientID
    assert seg.FrameOfReferenceUID == source.FrameOfReferenceUID
    (referred,) = seg.ReferencedSeriesSequence
    assert referred.SeriesInstanceUID == source.SeriesInstanceUID and len(referred.ReferencedInstanceSequence) == 10
    first, second = seg.SegmentSequence
    assert (first.SegmentLabel, first.SegmentAlgorithmType, seg.SegmentationType) == ("liver", "AUTOMATIC", "BINARY")
    assert first.SegmentedPropertyTypeCodeSequence[0].CodeValue == "10200004"
    assert second.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "49755003"
    assert seg.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0].AlgorithmName == "medcoss_components"


def test_orientation_is_that_of_the_source(tmp_path, series, ball, segmenter):
    """Rows that run towards the front and the right: the reader flips both axes, the segmentation flips them back."""
    folder = series(tmp_path / "in", ball, ImageOrientationPatient=[-1, 0, 0, 0, -1, 0])
    segmenter(folder, formats="dicom_seg").run()
    np.testing.assert_array_equal(by_instance(segmentation(tmp_path), folder)[..., 0], ball >= 500)


def test_multiframe_file(tmp_path, dicom_file, ball, segmenter):
    """One file whose frames stand against the order of their places."""
    from pydicom.dataset import Dataset
    from pydicom.uid import EnhancedCTImageStorage, generate_uid

    def group(number):
        frame, position = Dataset(), Dataset()
        position.ImagePositionPatient = [0.0, 0.0, float(-2 * number)]
        frame.PlanePositionSequence = [position]
        return frame

    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.5, 0.75], 2.0
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    dicom_file[0](
        tmp_path / "in" / "a.dcm",
        ball,
        SOPClassUID=EnhancedCTImageStorage,
        StudyInstanceUID=generate_uid(),
        FrameOfReferenceUID=generate_uid(),
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=[group(number) for number in range(len(ball))],
    )
    segmenter(tmp_path / "in", formats="dicom_seg").run()
    seg = segmentation(tmp_path)
    uid = seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID
    pixels = seg.get_pixels_by_source_frame(
        uid, list(range(1, 11)), ignore_spatial_locations=True, assert_missing_frames_are_empty=True
    )
    np.testing.assert_array_equal(pixels[..., 0], ball >= 500)


def test_radiograph_without_frame_of_reference(tmp_path, dicom_file, segmenter, brighter):
    from pydicom.uid import DigitalXRayImageStorageForPresentation, generate_uid

    picture = np.full((8, 12), 100, np.uint16)
    picture[2:5, 3:9] = 4000
    uid = generate_uid()
    fields = {"Modality": "DX", "SOPClassUID": DigitalXRayImageStorageForPresentation, "StudyInstanceUID": uid}
    dicom_file[0](tmp_path / "in" / "a.dcm", picture, drop=("PatientBirthDate",), **fields)
    segmenter(
        tmp_path / "in", "xray", network=brighter(0.5), regions={"spot": "any"}, formats=["png", "dicom_seg"]
    ).run()
    np.testing.assert_array_equal(segmentation(tmp_path).pixel_array.reshape(8, 12), picture > 1000)


def test_radiograph_with_pixel_spacing_can_be_read_again(tmp_path, dicom_file, segmenter, brighter):
    """highdicom writes a spacing without a slice thickness, but refuses to read it."""
    from pydicom.uid import ComputedRadiographyImageStorage, generate_uid

    picture = np.full((8, 12), 100, np.uint16)
    picture[2:5, 3:9] = 4000
    fields = {"Modality": "CR", "SOPClassUID": ComputedRadiographyImageStorage, "StudyInstanceUID": generate_uid()}
    dicom_file[0](tmp_path / "in" / "a.dcm", picture, PixelSpacing=[0.2, 0.4], **fields)
    predictor = segmenter(tmp_path / "in", "xray", network=brighter(0.5), regions={"spot": "any"}, formats="auto")
    predictor.run()
    np.testing.assert_array_equal(segmentation(tmp_path).pixel_array.reshape(8, 12), picture > 1000)
    (row,) = predictor.rows.values()
    assert row["area_mm2/spot"] == 18 * 0.08 and row["note"] == ""


@pytest.mark.parametrize("thickness", ["", None])
def test_series_without_slice_thickness(tmp_path, series, ball, segmenter, thickness):
    """It may be empty (type 2); the segmentation gets the distance of the slices."""
    segmenter(series(tmp_path / "in", ball, SliceThickness=thickness), formats="dicom_seg").run()
    seg = segmentation(tmp_path)
    np.testing.assert_array_equal(by_instance(seg, tmp_path / "in")[..., 0], ball >= 500)
    assert float(seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness) == 2.0


def test_source_that_highdicom_refuses(tmp_path, dicom_file, segmenter, brighter):
    """A CT slice without frame of reference, taken as an image."""
    picture = np.arange(96, dtype=np.uint16).reshape(8, 12)
    dicom_file[0](tmp_path / "in" / "a.dcm", picture, Modality="DX", StudyInstanceUID="1.2.3")
    with pytest.raises(CasesFailedError, match="can make no DICOM segmentation for this kind of file .ValueError"):
        segmenter(tmp_path / "in", "xray", network=brighter(0.5), regions={"spot": "any"}, formats=["dicom_seg"]).run()


def test_source_without_study(tmp_path, series, ball, segmenter):
    folder = series(tmp_path / "in", ball, StudyInstanceUID="")
    with pytest.raises(CasesFailedError, match="lacks StudyInstanceUID, which a DICOM segmentation needs"):
        segmenter(folder, formats=["nifti", "dicom_seg"]).run()
    predictor = segmenter(folder, formats="auto", output_dir=tmp_path / "auto")
    predictor.run()
    (row,) = predictor.rows.values()
    assert row["note"].startswith("no DICOM segmentation: lacks StudyInstanceUID") and row["voxels/organ"] == 120
    assert len(list((tmp_path / "auto" / "masks").iterdir())) == 1


def test_nothing_found_is_an_empty_segmentation(tmp_path, series, ball, segmenter):
    folder = series(tmp_path / "in", np.clip(ball, -1000, -900) + (ball > 0).astype(np.int16) * 50)
    segmenter(folder, formats="dicom_seg").run()
    assert not by_instance(segmentation(tmp_path), folder).any()


def test_no_dicom_input(tmp_path, nifti, ball, segmenter):
    path = nifti(tmp_path / "v.nii.gz", ball)
    with pytest.raises(CasesFailedError, match="the case is no DICOM"):
        segmenter(path, formats="dicom_seg").run()
    segmenter(path, formats="auto", output_dir=tmp_path / "auto").run()
    assert [file.name[16:] for file in (tmp_path / "auto" / "masks").iterdir()] == [".nii.gz"]


def test_without_highdicom(monkeypatch, tmp_path):
    monkeypatch.setattr("medcoss_components.inference.dicom_seg.find_spec", lambda name: None)
    monkeypatch.setattr("medcoss_components.inference.segmentation.dicom_seg_available", lambda: False)
    assert (chosen_formats("auto", 3), chosen_formats("auto", 2)) == (("nifti",), ("png",))
    with pytest.raises(InputError, match=r"highdicom, which is not installed. Run: pip install .*\[dicom\]"):
        chosen_formats(["dicom_seg"], 3)
    with pytest.raises(InputError, match="highdicom"):
        write_dicom_seg(tmp_path / "a.dcm", np.zeros((1, 2, 2, 2), bool), grid=None, regions=["a"])
