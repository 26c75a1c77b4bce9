import numpy as np
import pytest
from PIL import Image

from medcoss_components.data.readers import read_image
from medcoss_components.errors import InputError

GREY = np.arange(15, dtype=np.uint8).reshape(3, 5)
COLOUR = np.arange(45, dtype=np.uint8).reshape(3, 5, 3)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".TIFF"])
@pytest.mark.parametrize("pixels", [GREY, COLOUR], ids=["grey", "colour"])
def test_lossless_formats_keep_every_pixel(tmp_path, suffix, pixels):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(pixels).save(path)
    data = read_image(path)
    assert data.array.dtype == np.uint8
    np.testing.assert_array_equal(data.array, pixels)
    assert (data.spacing, data.unit) == (None, "a.u.")


def test_jpeg_of_one_colour(tmp_path):
    Image.new("RGB", (16, 8), (200, 200, 200)).save(tmp_path / "a.jpg", quality=100)
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg").array, np.full((8, 16, 3), 200))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_kept(tmp_path, suffix):
    pixels = np.array([[0, 300], [40000, 65535]], np.uint16)
    Image.fromarray(pixels).save(tmp_path / f"a{suffix}")
    array = read_image(tmp_path / f"a{suffix}").array
    assert array.dtype == np.uint16
    np.testing.assert_array_equal(array, pixels)


def test_big_endian_tiff_comes_in_machine_order(tmp_path):
    image = Image.frombytes("I;16B", (2, 1), np.array([1, 258], ">u2").tobytes())
    image.save(tmp_path / "a.tif")
    array = read_image(tmp_path / "a.tif").array
    assert array.dtype.isnative
    np.testing.assert_array_equal(array, [[1, 258]])


def test_32_bit_integers_that_fit_become_16_bit(tmp_path):
    Image.fromarray(np.array([[0, 40000]], np.int32)).save(tmp_path / "a.tif")
    Image.fromarray(np.array([[0, 70000]], np.int32)).save(tmp_path / "b.tif")
    assert read_image(tmp_path / "a.tif").array.dtype == np.uint16
    assert read_image(tmp_path / "b.tif").array.max() == 70000


@pytest.mark.parametrize(
    ("mode", "pixel", "expected"),
    [
        ("1", 1, 255),
        ("LA", (9, 0), 9),
        ("RGBA", (1, 2, 3, 0), (1, 2, 3)),
        ("P", 0, (0, 0, 0)),
        ("CMYK", (0, 0, 0, 0), (255, 255, 255)),
    ],
)
def test_other_modes_become_grey_or_rgb(tmp_path, mode, pixel, expected):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image = Image.new(mode, (2, 2), pixel)
    if mode == "P":
        image.putpalette([0, 0, 0] * 256)
    image.save(path)
    np.testing.assert_array_equal(read_image(path).array[0, 0], expected)


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(GREY).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").array, np.rot90(GREY, -1))


def test_nan_pixels(tmp_path):
    Image.fromarray(np.array([[0, np.nan, np.inf]], np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match=r"a.tif: 2 of 3 voxels are NaN or infinite"):
        read_image(tmp_path / "a.tif")


def test_truncated_file(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match=r"a.png: cannot be read, it is truncated, damaged"):
        read_image(path)


def test_a_text_with_an_image_suffix(tmp_path):
    (tmp_path / "a.jpg").write_text("no image")
    with pytest.raises(InputError, match=r"a.jpg: cannot be read.*UnidentifiedImageError"):
        read_image(tmp_path / "a.jpg")


def test_oversized_image(tmp_path, monkeypatch):
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    with pytest.raises(InputError, match="a.png: cannot be read.*15 pixels"):
        read_image(tmp_path / "a.png")


def test_missing_empty_and_unknown_files(tmp_path):
    with pytest.raises(InputError, match=r"a.png: no such file"):
        read_image(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a.xyz: no such file"):
        read_image(tmp_path / "a.xyz")
    (tmp_path / "b.png").touch()
    with pytest.raises(InputError, match=r"b.png: the file is empty"):
        read_image(tmp_path / "b.png")
    (tmp_path / "c.txt").write_text("text")
    with pytest.raises(InputError, match=r"c.txt: unknown format; readable are .png, .*DICOM"):
        read_image(tmp_path / "c.txt")
