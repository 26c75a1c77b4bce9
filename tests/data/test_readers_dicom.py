import io

import numpy as np
import pytest
from PIL import Image

from medcoss_components.data.readers import is_dicom, read_image
from medcoss_components.data.readers_dicom import TAGS
from medcoss_components.errors import InputError

PIXELS = np.arange(40, dtype=np.uint16).reshape(5, 8) * 100


def test_monochrome2_is_read_as_stored(tmp_path, write_dicom):
    data = read_image(write_dicom(tmp_path / "a.dcm", PIXELS, Modality="DX", PixelSpacing=[0.2, 0.3]))
    np.testing.assert_array_equal(data.array, PIXELS)
    assert (data.array.dtype, data.spacing, data.unit) == (np.uint16, (0.2, 0.3), "a.u.")


@pytest.mark.parametrize(
    ("stored", "bits", "expected"),
    [
        (np.array([[0, 1000, 4095]], np.uint16), 12, [[4095, 3095, 0]]),
        (np.array([[0, 10, 255]], np.uint8), 8, [[255, 245, 0]]),
        (np.array([[-2048, 0, 2047]], np.int16), 12, [[2047, -1, -2048]]),
    ],
)
def test_monochrome1_is_inverted_within_its_bits(tmp_path, write_dicom, stored, bits, expected):
    fields = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": bits, "HighBit": bits - 1}
    array = read_image(write_dicom(tmp_path / "a.dcm", stored, **fields)).array
    assert array.dtype == stored.dtype
    np.testing.assert_array_equal(array, expected)


def test_monochrome1_and_monochrome2_of_the_same_film_agree(tmp_path, write_dicom):
    positive = write_dicom(tmp_path / "a.dcm", PIXELS)
    negative = write_dicom(tmp_path / "b.dcm", 65535 - PIXELS, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read_image(positive).array, read_image(negative).array)


def test_inversion_before_slope_and_intercept(tmp_path, write_dicom):
    stored = np.array([[0, 100, 255]], np.uint8)
    fields = {"PhotometricInterpretation": "MONOCHROME1", "RescaleSlope": 2, "RescaleIntercept": 5}
    np.testing.assert_array_equal(read_image(write_dicom(tmp_path / "a.dcm", stored, **fields)).array, [[515, 315, 5]])


@pytest.mark.parametrize(
    ("slope", "intercept", "dtype"), [(1, -1024, np.int16), (2.5, 0, np.float32), (1, 0, np.uint16)]
)
def test_slope_and_intercept(tmp_path, write_dicom, slope, intercept, dtype):
    data = read_image(write_dicom(tmp_path / "a.dcm", PIXELS, RescaleSlope=slope, RescaleIntercept=intercept))
    assert (data.array.dtype, data.unit) == (dtype, "HU")
    np.testing.assert_array_equal(data.array, PIXELS * slope + float(intercept))


@pytest.mark.parametrize(("interpretation", "expected"), [("MONOCHROME2", [7, 9, 30]), ("MONOCHROME1", [30, 28, 7])])
def test_modality_table(tmp_path, write_dicom, interpretation, expected):
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    table = Dataset()
    table.LUTDescriptor, table.LUTData = [3, 0, 16], [7, 9, 30]
    table["LUTDescriptor"].VR = "US"
    table["LUTData"].VR = "US"
    table.ModalityLUTType = "US"
    stored = np.array([[0, 1, 2]], np.uint8)
    fields = {"ModalityLUTSequence": Sequence([table]), "PhotometricInterpretation": interpretation}
    np.testing.assert_array_equal(read_image(write_dicom(tmp_path / "a.dcm", stored, **fields)).array, [expected])


@pytest.mark.parametrize(
    ("interpretation", "padding", "stored", "expected"),
    [
        ("MONOCHROME2", 255, [10, 20, 255], [10, 20, 10]),
        ("MONOCHROME2", 0, [10, 20, 0], [10, 20, 0]),
        ("MONOCHROME1", 0, [10, 20, 0], [245, 235, 235]),
        ("MONOCHROME2", 9, [9, 9, 9], [9, 9, 9]),
    ],
)
def test_padding_is_never_bright(tmp_path, write_dicom, interpretation, padding, stored, expected):
    path = tmp_path / "a.dcm"
    fields = {"PhotometricInterpretation": interpretation, "PixelPaddingValue": padding}
    write_dicom(path, np.array([stored], np.uint8), **fields)
    np.testing.assert_array_equal(read_image(path).array, [expected])


@pytest.mark.parametrize("name", ["RLELossless", "JPEG2000Lossless", "DeflatedExplicitVRLittleEndian"])
def test_lossless_compression_keeps_every_pixel(tmp_path, write_dicom, name):
    import pydicom

    pixels = np.random.default_rng(0).integers(0, 4096, (40, 64)).astype(np.uint16)
    if name.startswith("Deflated"):
        dataset = pydicom.dcmread(write_dicom(tmp_path / "a.dcm", pixels))
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
        dataset.save_as(tmp_path / "a.dcm")
    else:
        write_dicom(tmp_path / "a.dcm", pixels, compression=name)
    np.testing.assert_array_equal(read_image(tmp_path / "a.dcm").array, pixels)


def test_damaged_jpeg2000_is_named_once(tmp_path, write_dicom, caplog):
    path = write_dicom(
        tmp_path / "a.dcm", np.arange(4096, dtype=np.uint16).reshape(64, 64), compression="JPEG2000Lossless"
    )
    content = path.read_bytes()
    path.write_bytes(content.replace(b"\xff\x4f\xff\x51", b"\0\0\0\0"))
    with pytest.raises(InputError, match="a.dcm: cannot be read, it is truncated, damaged"):
        read_image(path)
    assert caplog.records == []


def test_jpeg_baseline(tmp_path, write_dicom):
    import pydicom
    from pydicom.encaps import encapsulate

    flat = np.full((16, 24), 120, np.uint8)
    dataset = pydicom.dcmread(write_dicom(tmp_path / "a.dcm", flat))
    Image.fromarray(flat).save(buffer := io.BytesIO(), "jpeg", quality=100)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
    dataset.PixelData = encapsulate([buffer.getvalue()])
    dataset["PixelData"].VR = "OB"
    dataset.save_as(tmp_path / "a.dcm")
    np.testing.assert_array_equal(read_image(tmp_path / "a.dcm").array, flat)


def test_big_endian_comes_in_machine_order(tmp_path, write_dicom):
    import pydicom

    dataset = pydicom.dcmread(write_dicom(tmp_path / "a.dcm", PIXELS))
    dataset.PixelData = PIXELS.astype(">u2").tobytes()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRBigEndian
    pydicom.dcmwrite(tmp_path / "b.dcm", dataset, implicit_vr=False, little_endian=False)
    array = read_image(tmp_path / "b.dcm").array
    assert array.dtype.isnative
    np.testing.assert_array_equal(array, PIXELS)


def test_colour(tmp_path, write_dicom):
    pixels = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    np.testing.assert_array_equal(read_image(write_dicom(tmp_path / "a.dcm", pixels)).array, pixels)


def test_ybr_colour_becomes_rgb(tmp_path, write_dicom):
    pixels = np.full((2, 2, 3), (100, 128, 128), np.uint8)
    path = write_dicom(tmp_path / "a.dcm", pixels, PhotometricInterpretation="YBR_FULL")
    np.testing.assert_array_equal(read_image(path).array, np.full((2, 2, 3), 100))


@pytest.mark.parametrize(("bits", "factor"), [(16, 257), (8, 1)])
def test_palette_becomes_rgb(tmp_path, write_dicom, bits, factor):
    fields = {"PhotometricInterpretation": "PALETTE COLOR"}
    for number, colour in enumerate(("Red", "Green", "Blue")):
        entries = (np.array([10, 20]) + number) * factor
        fields[f"{colour}PaletteColorLookupTableDescriptor"] = [2, 0, bits]
        fields[f"{colour}PaletteColorLookupTableData"] = entries.astype(f"uint{bits}").tobytes()
    array = read_image(write_dicom(tmp_path / "a.dcm", np.array([[0, 1]], np.uint8), **fields)).array
    np.testing.assert_array_equal(array, [[[10, 11, 12], [20, 21, 22]]])
    assert array.dtype == np.uint8


@pytest.mark.parametrize(
    "fields", [{"ImagerPixelSpacing": [0.1, 0.2]}, {"PixelSpacing": [0.1, 0.2], "ImagerPixelSpacing": [9, 9]}]
)
def test_spacing(tmp_path, write_dicom, fields):
    assert read_image(write_dicom(tmp_path / "a.dcm", PIXELS, **fields)).spacing == (0.1, 0.2)


def test_no_spacing(tmp_path, write_dicom):
    assert read_image(write_dicom(tmp_path / "a.dcm", PIXELS)).spacing is None


@pytest.mark.parametrize("expected", ["MR", ("CR", "DX"), ["MR"]])
def test_another_modality_names_both(tmp_path, write_dicom, expected):
    path = write_dicom(tmp_path / "a.dcm", PIXELS)
    wanted = expected if isinstance(expected, str) else " or ".join(expected)
    with pytest.raises(InputError, match=rf"a.dcm: the DICOM modality is 'CT', expected {wanted}"):
        read_image(path, expected_modality=expected)


@pytest.mark.parametrize("expected", [None, "CT", ("CT", "MR"), ()])
def test_admitted_modality(tmp_path, write_dicom, expected):
    assert read_image(write_dicom(tmp_path / "a.dcm", PIXELS), expected_modality=expected).array.shape == (5, 8)


def test_missing_modality(tmp_path, write_dicom):
    path = write_dicom(tmp_path / "a.dcm", PIXELS, drop=("Modality",))
    with pytest.raises(InputError, match="the DICOM modality is 'not given', expected CT"):
        read_image(path, expected_modality="CT")


def test_several_frames(tmp_path, write_dicom):
    with pytest.raises(InputError, match="an image has 1 frame, this file has 3"):
        read_image(write_dicom(tmp_path / "a.dcm", np.zeros((3, 4, 5), np.uint16)))


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_truncated_file_names_the_file_and_nobody(tmp_path, write_dicom, share, secret):
    path = write_dicom(tmp_path / "a.dcm", np.zeros((30, 40), np.uint16))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(InputError, match="a.dcm: ") as caught:
        read_image(path)
    assert secret not in str(caught.value)


def test_patient_fields_are_never_kept():
    assert not [tag for tag in TAGS if tag.startswith("Patient") or tag.endswith(("Date", "Time", "Name"))]


def test_file_without_preamble(tmp_path, write_dicom):
    """Old archives write the bare data set in implicit little endian."""
    import pydicom

    dataset = pydicom.dcmread(write_dicom(tmp_path / "a.dcm", PIXELS))
    bare = pydicom.Dataset(dataset)
    bare.save_as(tmp_path / "b.dcm", implicit_vr=True, little_endian=True)
    assert (tmp_path / "b.dcm").read_bytes()[128:132] != b"DICM"
    np.testing.assert_array_equal(read_image(tmp_path / "b.dcm").array, PIXELS)


def test_no_image_in_the_file(tmp_path, write_dicom):
    (tmp_path / "a.dcm").write_bytes(b"no DICOM at all" * 40)
    with pytest.raises(InputError, match="a.dcm: "):
        read_image(tmp_path / "a.dcm")


def test_recognition(tmp_path, write_dicom):
    path = write_dicom(tmp_path / "IM0001", PIXELS)
    (tmp_path / "a.txt").write_text("text")
    assert [is_dicom(entry) for entry in (path, tmp_path / "a.txt", tmp_path)] == [True, False, False]
    assert read_image(path).array.shape == (5, 8)


def test_damaged_header_field_names_the_file_and_nobody(tmp_path, write_dicom, secret):
    """pydicom converts fields when they are asked for, so a damaged one shows up late."""
    path = write_dicom(tmp_path / "a.dcm", PIXELS)
    path.write_bytes(path.read_bytes().replace(b"\x08\x00\x60\x00CS", b"\x08\x00\x60\x00Ci"))
    with pytest.raises(InputError, match="a.dcm: cannot be read, it is truncated, damaged") as caught:
        read_image(path)
    assert secret not in str(caught.value)
