"""Volumes as stacks of picture files, against the same volume in a NIfTI file."""

from __future__ import annotations

import json
from dataclasses import replace

import nibabel
import numpy as np
import pytest
from PIL import Image

from medcoss_components.data.adapters.findings import bare_name, header_size
from medcoss_components.data.manifest import Item, Manifest, check_manifest
from medcoss_components.data.readers import read_volume
from medcoss_components.data.readers_slices import (
    SliceStack,
    content_files,
    is_slice_stack,
    read_slice_stack,
    slices_size,
    write_slice_stack,
)
from medcoss_components.data.readers_source import source_grid
from medcoss_components.errors import InputError


@pytest.fixture
def write_stack(tmp_path):
    """``write_stack(array, name="a", **fields of SliceStack) -> descriptor``; array: (slices, rows, columns)."""

    def write(array, name="a", **fields):
        files = [tmp_path / "pictures" / f"{name}-{number:02d}.png" for number in range(len(array))]
        files[0].parent.mkdir(exist_ok=True)
        for file, plane in zip(files, array, strict=True):
            Image.fromarray(plane).save(file)
        path = tmp_path / "made" / f"{name}.slices.json"
        write_slice_stack(path, SliceStack(**{"slices": tuple(files), "spacing": (5.0, 0.75, 0.5), **fields}))
        return path

    return write


def stored(shape=(4, 6, 8)):
    return np.random.default_rng(0).integers(31000, 34000, shape).astype(np.uint16)


def test_a_stack_is_read_like_the_nifti_file_of_the_same_slices(write_stack, tmp_path):
    array = stored()
    volume = read_volume(write_stack(array, directions="IPL", subtract=32768, unit="HU"))
    rows_columns_slices = (array.transpose(1, 2, 0).astype(np.int32) - 32768).astype(np.int16)
    affine = np.array([[0, -0.5, 0, 0], [-0.75, 0, 0, 0], [0, 0, -5.0, 0], [0, 0, 0, 1]])  # RAS: rows go back
    nibabel.save(nibabel.Nifti1Image(rows_columns_slices, affine), tmp_path / "same.nii")
    same = read_volume(tmp_path / "same.nii")
    np.testing.assert_array_equal(volume.array, same.array)
    np.testing.assert_allclose(volume.affine, same.affine)
    assert (volume.array.dtype, volume.unit, volume.spacing) == (np.int16, "HU", (5.0, 0.75, 0.5))
    assert volume.array[0, 0, 0] == int(array[-1, 0, 0]) - 32768  # the last slice lies nearest the feet


@pytest.mark.parametrize("directions", ["SPL", "IAR", "PSL", "LIA"])
def test_directions_put_every_voxel_in_its_place(write_stack, directions):
    array = stored((3, 4, 5))
    volume = read_volume(write_stack(array, directions=directions))
    axes = ["SI", "PA", "LR"]  # canonical (z, y, x) grows to the first of each
    order = [next(axis for axis, letter in enumerate(directions) if letter in pair) for pair in axes]
    expected = array.transpose(order)
    flipped = [number for number, pair in enumerate(axes) if directions[order[number]] == pair[1]]
    np.testing.assert_array_equal(volume.array, np.flip(expected, flipped))
    assert volume.spacing == tuple((5.0, 0.75, 0.5)[axis] for axis in order)


@pytest.mark.parametrize(
    ("dtype", "value", "subtract", "result"),
    [
        (np.uint16, 0, 32768, -32768),
        (np.uint16, 65535, 32768, 32767),
        (np.uint8, 200, 0, 200),
        (np.uint8, 3, 1024, -1021),
        (np.uint16, 65535, 0, 65535),
    ],
)
def test_values(write_stack, dtype, value, subtract, result):
    volume = read_volume(write_stack(np.full((2, 3, 4), value, dtype), subtract=subtract))
    assert (volume.array == result).all()
    assert volume.array.dtype == (np.float32 if result > 32767 else np.int16)


def test_descriptor_size_and_files(write_stack, tmp_path):
    path = write_stack(stored())
    assert is_slice_stack(path) and not is_slice_stack("a.json")
    assert header_size(path) == (8, 6, 4) and bare_name("b/a.slices.json") == "b/a"
    assert content_files(path) == [tmp_path / "pictures" / f"a-{number:02d}.png" for number in range(4)]
    assert content_files(tmp_path / "b.nii") == [tmp_path / "b.nii"]
    assert json.loads(path.read_text())["slices"][0] == "../pictures/a-00.png"


def test_masks_can_go_back_to_the_slices(write_stack):
    path = write_stack(stored(), directions="IPL", subtract=32768)
    grid, volume = source_grid(path), read_volume(path)
    restored = grid.from_canonical(volume.array)
    assert restored.shape == grid.shape == slices_size(path)
    np.testing.assert_array_equal(restored.transpose(2, 1, 0), stored().astype(np.int32) - 32768)


def test_the_data_set_can_move_as_a_whole(write_stack, tmp_path):
    before = read_volume(write_stack(stored())).array
    (tmp_path / "moved").mkdir()
    for name in ("made", "pictures"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    np.testing.assert_array_equal(read_volume(tmp_path / "moved" / "made" / "a.slices.json").array, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "a.slices.json: no descriptor .* needs the keys format, slices"),
        ({"colour": 1}, "no descriptor of a volume"),
        ({"slices": []}, "slices must be a list of one or more files that end in .png"),
        ({"slices": ["../patient.txt"]}, "slices must be a list"),
        ({"spacing": [1, 2]}, "spacing must be three distances in mm above 0"),
        ({"spacing": [1, 0, 1]}, "spacing must be"),
        ({"spacing": [1, float("nan"), 1]}, "spacing must be"),
        ({"directions": "SIL"}, "directions must be three letters, one of S and I"),
        ({"directions": "XPL"}, "directions must be"),
        ({"directions": 3}, "directions must be"),
        ({"subtract": 0.5}, "subtract must be a whole number"),
        ({"unit": "mm"}, "unit must be one of HU, a.u."),
    ],
)
def test_broken_descriptors(write_stack, change, message):
    path = write_stack(stored())
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=message):
        read_volume(path)


def test_bad_slices_are_named(write_stack, tmp_path):
    path, pictures = write_stack(stored()), tmp_path / "pictures"
    whole = (pictures / "a-02.png").read_bytes()
    (pictures / "a-02.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="a-02.png: cannot be read, it is truncated"):
        read_volume(path)
    Image.fromarray(stored((1, 6, 9))[0]).save(pictures / "a-02.png")
    with pytest.raises(InputError, match=r"a.slices.json: slice sizes differ: a-00.png has \(6, 8\), a-02.png has"):
        read_volume(path)
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(pictures / "a-02.png")
    with pytest.raises(InputError, match="a-02.png: a slice of a volume has one value per pixel"):
        read_volume(path)
    (pictures / "a-02.png").unlink()
    with pytest.raises(InputError, match="a-02.png: no such file"):
        read_volume(path)
    (pictures / "a-00.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="a-00.png: cannot be read"):
        header_size(path)
    with pytest.raises(InputError, match="none.slices.json: no such file"):
        read_slice_stack(tmp_path / "none.slices.json")
    (tmp_path / "c.raw").write_bytes(b"\0" * 200)
    with pytest.raises(InputError, match="c.raw: unknown format; readable are .*, .slices.json, DICOM"):
        read_volume(tmp_path / "c.raw")


class TestManifestCheck:
    @pytest.fixture
    def manifest(self, write_stack, tmp_path):
        paths = {name: write_stack(stored((4, 20, 18)) + number, name) for number, name in enumerate("abc")}

        def build():
            items = [Item(id=name, image=path, group=name) for name, path in paths.items()]
            header = {"name": "t", "version": "1", "modality": "ct", "licence": "none", "source": "test"}
            return Manifest(**header, root=tmp_path, training=tuple(items[:2]), testing=tuple(items[2:]))

        return build

    def problems(self, manifest, **options):
        found = check_manifest(manifest, workers=1, **options)
        return [(problem.rule, problem.where) for problem in found if problem.severity == "error"]

    def test_whole_stacks_have_no_error(self, manifest):
        assert self.problems(manifest()) == self.problems(manifest(), open_files=False) == []

    @pytest.mark.parametrize(("open_files", "rule"), [(True, "unreadable-file"), (False, "missing-file")])
    def test_missing_slices(self, manifest, tmp_path, open_files, rule):
        (tmp_path / "pictures" / "b-01.png").unlink()
        assert self.problems(manifest(), open_files=open_files) == [(rule, "training item b")]

    @pytest.mark.parametrize("open_files", [True, False])
    def test_broken_descriptor(self, manifest, tmp_path, open_files):
        (tmp_path / "made" / "b.slices.json").write_text("[]")
        assert self.problems(manifest(), open_files=open_files) == [("unreadable-file", "training item b")]

    def test_equal_slices_under_two_names(self, manifest, tmp_path):
        for number in range(4):
            source, copy = (tmp_path / "pictures" / f"{name}-{number:02d}.png" for name in "ac")
            copy.write_bytes(source.read_bytes())
        assert self.problems(manifest()) == [("duplicate-content", "items a, c")]

    def test_slices_outside_the_folder_of_the_manifest(self, manifest, tmp_path):
        inner = replace(manifest(), root=tmp_path / "made")
        outside = [
            [problem.message for problem in check_manifest(entry, workers=1) if problem.rule == "path-outside"]
            for entry in (manifest(), inner)
        ]
        assert outside[0] == [] and outside[1][0].startswith("3 files lie outside")
