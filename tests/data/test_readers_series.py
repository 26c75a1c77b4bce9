import numpy as np
import pytest

from medcoss_components.data.readers import read_volume
from medcoss_components.errors import InputError

AXIAL = [1, 0, 0, 0, 1, 0]


def slice_values(volume):
    return volume.array[:, 0, 0].tolist()


def test_slices_are_sorted_by_position_not_by_name(write_series):
    volume = read_volume(write_series((4.0, 0.0, 6.0, 2.0)), expected_modality="CT")
    assert slice_values(volume) == [-900, -898, -896, -894]
    assert (volume.array.dtype, volume.array.shape) == (np.int16, (4, 4, 5))
    assert (volume.spacing, volume.unit) == ((2.0, 0.5, 0.75), "HU")
    np.testing.assert_allclose(volume.affine, np.diag([0.75, 0.5, 2.0, 1.0]))


def test_hidden_files_beside_the_slices_are_none_of_them(write_series):
    folder = write_series((0.0, 2.0, 4.0))
    (folder / "._slice.dcm").write_bytes(b"\0\5\x16\7 of macOS")
    assert read_volume(folder).array.shape[0] == 3


def test_pixels_lie_where_simpleitk_puts_them(write_series):
    import SimpleITK

    rng = np.random.default_rng(0)
    angle = np.deg2rad(25)
    row, column = np.array([0, 1, 0]), np.array([np.sin(angle), 0, -np.cos(angle)])
    normal = np.cross(row, column)
    folder = write_series(
        (0, 1, 2, 3, 4),
        ImageOrientationPatient=[*row, *column],
        ImagePositionPatient=lambda number: (np.array([7.0, 8.0, 9.0]) - 3.0 * number * normal).tolist(),
        pixels=lambda number: rng.integers(0, 2000, (4, 6)).astype(np.int16),
        InstanceNumber=lambda number: number,
    )
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    oracle = SimpleITK.DICOMOrient(reader.Execute(), "LPS")
    volume = read_volume(folder)
    np.testing.assert_array_equal(volume.array, SimpleITK.GetArrayFromImage(oracle))
    np.testing.assert_allclose(volume.spacing, oracle.GetSpacing()[::-1])
    np.testing.assert_allclose(volume.affine[:3, 3], oracle.GetOrigin())


@pytest.mark.parametrize(("orientation", "shape"), [(AXIAL, (3, 4, 5)), ([1, 0, 0, 0, 0, -1], (4, 3, 5))])
def test_axial_and_coronal_end_in_the_same_axis_order(write_series, orientation, shape):
    folder = write_series(
        ImageOrientationPatient=orientation,
        ImagePositionPatient=lambda number: (np.cross(orientation[:3], orientation[3:]) * 2.0 * number).tolist(),
    )
    assert read_volume(folder).array.shape == shape


def test_slope_and_intercept_of_each_slice(write_series):
    volume = read_volume(
        write_series(Modality="PT", RescaleSlope=lambda number: [1, 2, 0.5][number], RescaleIntercept=0)
    )
    assert slice_values(volume) == [100, 204, 52]
    assert (volume.array.dtype, volume.unit) == (np.float32, "a.u.")


@pytest.mark.parametrize("compression", ["RLELossless", "JPEG2000Lossless"])
def test_compressed_series(write_series, compression):
    pixels = [np.random.default_rng(number).integers(0, 3000, (64, 40)).astype(np.int16) for number in range(3)]
    volume = read_volume(write_series(compression=compression, pixels=lambda number: pixels[number]))
    np.testing.assert_array_equal(volume.array, np.stack(pixels) - 1000)


def test_padding_outside_the_scanner_becomes_dark(write_series):
    pixels = np.full((4, 5), 1500, np.uint16)
    pixels[0] = 65535
    pixels[1] = 700
    array = read_volume(write_series(pixels=pixels, PixelPaddingValue=65535)).array
    assert array[0, :, 0].tolist() == [-300, -300, 500, 500]


def test_other_files_in_the_folder_are_passed_over(write_series):
    folder = write_series()
    (folder / "readme.txt").write_text("text")
    (folder / "DICOMDIR").write_bytes((folder / "00.dcm").read_bytes())
    (folder / "sub").mkdir()
    assert len(read_volume(folder).array) == 3


def test_single_slice_takes_its_thickness(write_series):
    volume = read_volume(write_series((5.0,), SliceThickness=3.0))
    assert (volume.array.shape, volume.spacing) == ((1, 4, 5), (3.0, 0.5, 0.75))


def test_tilted_gantry_keeps_the_distance_along_the_normal(write_series):
    volume = read_volume(write_series(ImagePositionPatient=lambda number: [0.0, 0.3 * number, 2.0 * number]))
    assert volume.spacing[0] == 2.0
    np.testing.assert_allclose(volume.affine[:3, 2], [0.0, 0.3, 2.0])


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ((0, 2, 4, 8, 10), r"1 missing slice\(s\) between 02.dcm and 03.dcm: 4.000 mm apart at 4.000 mm, .* 2.000 mm"),
        ((0, 2, 4, 10, 12, 14), r"2 missing slice\(s\) between 02.dcm and 03.dcm"),
        ((0, 2, 4, 7, 9), r"inconsistent spacing between 02.dcm and 03.dcm: 3.000 mm apart"),
        ((0, 2, 4, 4, 6), r"02.dcm and 03.dcm lie at the same place \(4.000 mm\)"),
    ],
)
def test_gaps_and_copies_are_named(write_series, places, message):
    with pytest.raises(InputError, match=message):
        read_volume(write_series(tuple(map(float, places))))


def test_small_rounding_of_positions_is_accepted(write_series):
    assert read_volume(write_series((0.0, 2.01, 3.99, 6.0))).array.shape == (4, 4, 5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"Modality": "MR"}, "00.dcm: the DICOM modality is 'MR', expected CT"),
        ({"SeriesInstanceUID": lambda number: f"1.2.{number}"}, "series: the folder holds 3 DICOM series"),
        (
            {"ImageOrientationPatient": lambda number: AXIAL if number else [0, 1, 0, 0, 0, -1]},
            "series: 01.dcm is oriented differently from 00.dcm",
        ),
        (
            {"PixelSpacing": lambda number: [0.5, 0.5 + number]},
            r"pixel spacing differs: 00.dcm has \(0.5, 0.5\), 01.dcm has \(0.5, 1.5\) mm",
        ),
        (
            {"pixels": lambda number: np.zeros((4 + number, 5), np.int16)},
            r"slice sizes differ: 00.dcm has \(4, 5\), 01.dcm has \(5, 5\)",
        ),
        ({"drop": ("ImagePositionPatient",)}, "00.dcm: ImagePositionPatient is missing"),
        ({"drop": ("ImageOrientationPatient",)}, "00.dcm: ImageOrientationPatient is missing"),
        ({"drop": ("PixelSpacing",)}, "00.dcm: PixelSpacing is missing"),
        ({"pixels": np.zeros((4, 5, 3), np.uint8)}, "00.dcm: colour pixels; a volume has one value per voxel"),
    ],
)
def test_series_that_are_no_volume(write_series, fields, message, secret):
    with pytest.raises(InputError, match=message) as caught:
        read_volume(write_series(**fields), expected_modality="CT")
    assert secret not in str(caught.value)


def test_truncated_slice_is_named(write_series):
    folder = write_series(pixels=np.zeros((40, 50), np.int16))
    path = folder / "01.dcm"
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(InputError, match="01.dcm: cannot be read, it is truncated"):
        read_volume(folder)


def test_empty_folder(tmp_path):
    with pytest.raises(InputError, match="the folder holds no DICOM file"):
        read_volume(tmp_path)


def multi_frame(write_dicom, path, places, *, nested=True):
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    def group(sequence, **fields):
        inner, outer = Dataset(), Dataset()
        for name, value in fields.items():
            setattr(inner, name, value)
        setattr(outer, sequence, Sequence([inner]))
        return outer

    shared = group("PlaneOrientationSequence", ImageOrientationPatient=AXIAL)
    shared.update(group("PixelMeasuresSequence", PixelSpacing=[0.5, 0.75]))
    shared.update(group("PixelValueTransformationSequence", RescaleSlope=2, RescaleIntercept=-1))
    frames = [group("PlanePositionSequence", ImagePositionPatient=[0.0, 0.0, place]) for place in places]
    pixels = np.stack([np.full((4, 5), 10 * number, np.uint16) for number in range(len(places))])
    fields = {"SharedFunctionalGroupsSequence": Sequence([shared])}
    if nested:
        fields["PerFrameFunctionalGroupsSequence"] = Sequence(frames)
    return write_dicom(path, pixels, **fields)


def test_multi_frame_file(tmp_path, write_dicom):
    volume = read_volume(multi_frame(write_dicom, tmp_path / "a.dcm", (6.0, 3.0, 0.0)))
    assert slice_values(volume) == [39, 19, -1]
    assert volume.spacing == (3.0, 0.5, 0.75)


def test_multi_frame_file_with_a_gap_names_the_frames(tmp_path, write_dicom):
    with pytest.raises(InputError, match="missing slice.* between a.dcm frame 2 and a.dcm frame 3"):
        read_volume(multi_frame(write_dicom, tmp_path / "a.dcm", (0.0, 3.0, 9.0, 12.0, 15.0)))


def test_multi_frame_file_without_positions(tmp_path, write_dicom):
    with pytest.raises(InputError, match="a.dcm: ImagePositionPatient is missing"):
        read_volume(multi_frame(write_dicom, tmp_path / "a.dcm", (0.0, 3.0), nested=False))
