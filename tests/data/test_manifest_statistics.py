"""Sizes, intensities and text lengths of a manifest, on items whose numbers can be told by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from medcoss_components.data import manifest_statistics
from medcoss_components.data.grid_headers import read_image_grid, read_volume_grid
from medcoss_components.data.manifest import Item, Manifest
from medcoss_components.data.manifest_statistics import describe_statistics, statistics
from medcoss_components.data.readers import read_volume
from medcoss_components.data.writers import write_dicom, write_dicom_series, write_nifti, write_picture
from medcoss_components.errors import InputError


def manifest(root, modality, *, training, testing=(), unit=""):
    """A manifest of files below ``root``, or of texts where the modality has them."""

    def items(names):
        if modality == "report":
            return tuple(Item(f"t{place}", text=text, group="g") for place, text in enumerate(names))
        return tuple(Item(str(name), image=root / name, group="g") for name in names)

    described = {"name": "m", "version": "1", "licence": "x", "source": "x", "intensity_unit": unit}
    lists = {"training": items(training), "testing": items(testing)}
    return Manifest(root=root, modality=modality, **described, **lists)


class TestImages:
    @pytest.fixture
    def films(self, tmp_path):
        """Three sizes; film k holds the values 10 k and 10 k + 100 in equal shares."""
        for number, (height, width) in enumerate([(10, 20), (12, 30), (14, 60)]):
            picture = np.full((height, width), 10 * number, np.uint8)
            picture[: height // 2] += 100
            write_picture(tmp_path / f"{number}.png", picture)
        return tmp_path

    def test_by_hand(self, films):
        names = [f"{number}.png" for number in range(3)]
        content = statistics(manifest(films, "xray", training=names, testing=names[:1]))
        sizes = content["sizes"]["training"]
        assert (sizes["items"], sizes["bad"], "spacing" in sizes) == (3, 0, False)
        assert sizes["axes"] == {
            "width": {"min": 20, "median": 30, "max": 60},
            "height": {"min": 10, "median": 12, "max": 14},
        }
        found = content["intensities"]["training"]
        assert (found["min"], found["max"], found["low"], found["high"]) == (0, 120, 0, 120)
        assert (found["unit"], found["types"], found["items"]) == ("a.u.", ["uint8"], 3)
        testing = content["intensities"]["testing"]
        assert testing["median"] == 50 and "validation" not in content["sizes"]
        assert json.loads(json.dumps(content)) == content

    def test_bad_files_are_counted(self, films):
        (films / "broken.png").write_bytes(b"no picture")
        names = ["0.png", "broken.png", "gone.png", "unknown.xyz"]
        content = statistics(manifest(films, "xray", training=names, testing=names[1:2]))
        assert [content[kind]["training"]["bad"] for kind in ("sizes", "intensities")] == [3, 3]
        assert content["sizes"]["testing"] == content["intensities"]["testing"] == {"items": 0, "bad": 1}
        lines = describe_statistics(content).splitlines()
        assert lines[2].split() == ["testing", "0", "(1", "unreadable)", "-", "-", "-"]
        assert lines[-1].split()[-7:] == ["-"] * 7

    def test_choice_is_limited_and_repeats(self, films, monkeypatch):
        names = [f"{number}.png" for number in range(3)] * 4
        whole = manifest(films, "xray", training=names)
        first, again = (statistics(whole, headers=5, read=2, workers=1) for _ in range(2))
        assert first == again and first["sizes"]["training"]["items"] == 5
        assert first["intensities"]["training"]["items"] == 2
        assert statistics(whole, headers=0, read=0) == {"sizes": {}, "intensities": {}}
        monkeypatch.setattr(manifest_statistics, "PIXELS", 64)
        found = statistics(whole, headers=0)["intensities"]["training"]
        assert found["min"] == 0 and found["max"] == 120  # of all pixels, not of the drawn ones

    def test_unit_of_the_manifest(self, films):
        content = statistics(manifest(films, "xray", training=["0.png"], unit="8-bit sRGB"))
        assert content["intensities"]["training"]["unit"] == "8-bit sRGB"

    def test_dicom(self, tmp_path):
        picture = np.arange(200, dtype=np.int16).reshape(10, 20)
        write_dicom(tmp_path / "a.dcm", picture, modality="CR", PixelSpacing=[0.2, 0.1])
        write_dicom(tmp_path / "b.dcm", picture, modality="CR", PixelSpacing=[0, 0])
        assert read_image_grid(tmp_path / "a.dcm").size == (20, 10)
        assert read_image_grid(tmp_path / "a.dcm").spacing == pytest.approx((0.1, 0.2))
        assert read_image_grid(tmp_path / "b.dcm").spacing == ()
        content = statistics(manifest(tmp_path, "xray", training=["a.dcm", "b.dcm"]))
        assert content["sizes"]["training"]["spacing"]["height"] == {"min": 0.2, "median": 0.2, "max": 0.2}


class TestVolumes:
    def test_by_hand(self, tmp_path):
        for number, shape in enumerate([(8, 10, 12), (16, 10, 12), (40, 10, 12)]):
            write_nifti(tmp_path / f"{number}.nii.gz", np.full(shape, number - 1000, np.int16), (2.5, 1.0, 0.5))
        content = statistics(manifest(tmp_path, "ct", training=[f"{n}.nii.gz" for n in range(3)], unit="HU"))
        sizes = content["sizes"]["training"]
        assert sizes["axes"]["depth"] == {"min": 8, "median": 16, "max": 40}
        assert sizes["axes"]["width"]["max"] == 12 and sizes["axes"]["height"]["min"] == 10
        assert [axis["median"] for axis in sizes["spacing"].values()] == [0.5, 1, 2.5]
        found = content["intensities"]["training"]
        assert (found["min"], found["max"], found["unit"], found["types"]) == (-1000, -998, "HU", ["int16"])

    @pytest.mark.parametrize("suffix", [".nii", ".nrrd"])
    def test_axes_are_those_of_the_patient(self, tmp_path, suffix):
        """A sagittal file: its first axis runs from front to back, its third from left to right."""
        path = tmp_path / f"a{suffix}"
        values = np.zeros((5, 7, 9), np.int16)
        if suffix == ".nii":
            import nibabel

            affine = np.array([[0, 0, -3.0, 0], [-1.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 0, 1]])
            nibabel.save(nibabel.Nifti1Image(values, affine), path)
        else:
            import SimpleITK

            image = SimpleITK.GetImageFromArray(values.T)
            image.SetSpacing((1.0, 2.0, 3.0))
            image.SetDirection((0, 0, 1, 1, 0, 0, 0, 1, 0))
            SimpleITK.WriteImage(image, str(path))
        grid, volume = read_volume_grid(path), read_volume(path)
        assert grid.size == (9, 5, 7) == volume.array.shape[::-1]
        assert grid.spacing == pytest.approx((3, 1, 2)) == volume.spacing[::-1]

    def test_dicom_series_and_slices(self, tmp_path, monkeypatch):
        volume = np.arange(6 * 4 * 5, dtype=np.int16).reshape(6, 4, 5)
        for name in "abc":
            write_dicom_series(tmp_path / name, volume, modality="CT", thickness=2.0)
        monkeypatch.setattr(manifest_statistics, "SERIES", 2)
        content = statistics(manifest(tmp_path, "ct", training=["a", "b", "c"]))
        sizes = content["sizes"]["training"]
        assert sizes["items"] == 2 and [axis["max"] for axis in sizes["axes"].values()] == [5, 4, 6]
        assert [axis["max"] for axis in sizes["spacing"].values()] == [1, 1, 2]
        assert content["intensities"]["training"]["unit"] == "HU"
        (tmp_path / "a" / "0003.dcm").unlink()
        assert statistics(manifest(tmp_path, "ct", training=["a", "b"]))["sizes"]["training"]["bad"] == 1

    def test_slice_stack(self, tmp_path):
        from medcoss_components.data.readers_slices import SliceStack, write_slice_stack

        for number in range(3):
            write_picture(tmp_path / f"{number}.png", np.zeros((4, 6), np.uint16))
        files = tuple(tmp_path / f"{number}.png" for number in range(3))
        write_slice_stack(tmp_path / "a.slices.json", SliceStack(slices=files, spacing=(5.0, 0.8, 0.7)))
        grid = read_volume_grid(tmp_path / "a.slices.json")
        assert grid.size == (6, 4, 3) and grid.spacing == pytest.approx((0.7, 0.8, 5.0))

    @pytest.mark.parametrize("look", [read_image_grid, read_volume_grid])
    def test_unknown_and_missing_files(self, tmp_path, look):
        (tmp_path / "a.xyz").write_text("x")
        for name in ("a.xyz", "gone.nii.gz", "gone.png"):
            with pytest.raises(InputError, match=name):
                look(tmp_path / name)


def test_texts(tmp_path):
    content = statistics(manifest(tmp_path, "report", training=["a bc", "one two three", "x"], testing=["abc"]))
    assert content["texts"]["training"] == {
        "items": 3,
        "characters": {"min": 1, "median": 4, "max": 13},
        "words": {"min": 1, "median": 2, "max": 3},
    }
    assert describe_statistics(content).splitlines() == [
        "text length           looked at  min  median  max",
        "training, characters          3    1       4   13",
        "training, words               3    1       2    3",
        "testing, characters           1    3       3    3",
        "testing, words                1    1       1    1",
    ]


def test_description_of_volumes(tmp_path):
    write_nifti(tmp_path / "a.nii", np.full((8, 10, 12), -5, np.int16), (2.5, 1.0, 0.9765625))
    lines = describe_statistics(statistics(manifest(tmp_path, "ct", training=["a.nii"], unit="HU"))).splitlines()
    assert lines[0].split() == ["size", "looked", "at", "min", "median", "max"]
    assert lines[1].endswith("12 x 10 x 8  12 x 10 x 8  12 x 10 x 8")
    assert lines[3].endswith("0.9766 x 1 x 2.5") and lines[5].split()[1:] == ["1", *["-5"] * 5, "HU", "int16"]


def test_nothing_to_describe(tmp_path):
    empty = statistics(manifest(tmp_path, "ct", training=[]))
    assert empty == {"sizes": {}, "intensities": {}} and describe_statistics(empty) == ""
