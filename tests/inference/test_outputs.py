"""Label maps, mask files and the record of finished cases."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest
from PIL import Image

from medcoss_components.data.readers import read_volume
from medcoss_components.data.readers_source import source_grid
from medcoss_components.errors import InputError
from medcoss_components.inference.outputs import (
    RunRecord,
    label_map,
    mask_files,
    paint,
    safe_name,
    told_otherwise,
    write_nifti_mask,
    write_png_mask,
    write_table,
)


@pytest.mark.parametrize(
    ("regions", "values", "order"),
    [
        ({"one": "any"}, {"one": 1}, (0,)),
        ({"one": [3]}, {"one": 3}, (0,)),
        ({"core": [2], "organ": [1, 2]}, {"core": 2, "organ": 1}, (1, 0)),
        ({"left": [1], "right": [2]}, {"left": 1, "right": 2}, (0, 1)),
        ({"whole": "any", "core": [1]}, {"whole": 2, "core": 1}, (0, 1)),
        ({"a": [1, 2, 3], "b": [1, 2], "c": [1]}, {"a": 3, "b": 2, "c": 1}, (0, 1, 2)),
        ({"left": [1, 2], "upper": [2, 3]}, {}, (0, 1)),
        ({"same": [1], "again": [1]}, {}, (0, 1)),
        ({"all": [1, 2], "a": [1], "b": [2]}, {}, (0, 1, 2)),
    ],
)
def test_label_map(regions, values, order):
    plan = label_map(regions)
    assert (plan.values, plan.order) == (values, order)


def test_paint_tells_the_inner_region():
    """A core voxel outside of the organ is told as core, one inside too."""
    organ, core = [True, True, False, False], [False, True, True, False]
    regions = {"core": [2], "organ": [1, 2]}
    np.testing.assert_array_equal(paint(np.array([core, organ]), label_map(regions)), [1, 2, 2, 0])


def test_what_a_label_map_cannot_tell_is_counted():
    """The core's voxel outside of the organ is in the organ by its value; of two disjoint regions the later is told."""
    organ, core = [True, True, False, False], [False, True, True, False]
    assert told_otherwise(np.array([core, organ]), {"core": [2], "organ": [1, 2]}) == {"organ": 1}
    assert told_otherwise(np.array([organ, core]), {"left": [1], "right": [2]}) == {"left": 1}
    assert told_otherwise(np.array([organ, organ]), {"core": [2], "organ": [1, 2]}) == {}
    assert told_otherwise(np.array([organ, core]), {"left": [1, 2], "upper": [2, 3]}) == {}


def test_mask_files():
    masks = np.array([[True, False], [True, True]])
    ((stem, labels),) = mask_files(masks, {"core": [2], "organ": [1, 2]}, "x")
    assert stem == "x" and labels.tolist() == [2, 1]
    files = dict(mask_files(masks, {"left side": [1, 2], "upper": [2, 3]}, "x"))
    assert {name: mask.tolist() for name, mask in files.items()} == {"x_left-side": [1, 0], "x_upper": [1, 1]}
    assert safe_name("../é") == "region"


@pytest.mark.parametrize("codes", [(0, 2), (1, 0), (0, 0)])
def test_nifti_mask_has_the_source_grid(tmp_path, codes):
    values = np.zeros((4, 5, 6), np.int16)
    values[1, 2, 3] = 7
    affine = np.array([[0, 0, -3.0, 7], [1.5, 0, 0, -2], [0, -2.0, 0, 4], [0, 0, 0, 1]])
    image = nibabel.Nifti1Image(values, affine)
    image.set_qform(affine, codes[0])
    image.set_sform(affine, codes[1])
    image.header["descrip"] = b"DOE"
    nibabel.save(image, tmp_path / "v.nii")
    source = nibabel.load(tmp_path / "v.nii")
    mask = (read_volume(tmp_path / "v.nii").array == 7).astype(np.uint8)
    for name in ("a", "b"):
        write_nifti_mask(tmp_path / f"{name}.nii.gz", mask, source_grid(tmp_path / "v.nii"))
    written = nibabel.load(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), values == 7)
    np.testing.assert_allclose(written.affine, source.affine, atol=1e-5)
    assert written.get_data_dtype() == np.uint8 and written.header.get_xyzt_units()[0] == "mm"
    assert bytes(written.header["descrip"].tobytes()).strip(b"\0") == b""
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_png_mask(tmp_path):
    write_png_mask(tmp_path / "new" / "a.png", np.array([[0, 1], [2, 255]], np.uint8))
    assert np.asarray(Image.open(tmp_path / "new" / "a.png")).tolist() == [[0, 1], [2, 255]]


def test_table(tmp_path):
    write_table(tmp_path / "a.csv", [{"a": 1, "b": 'x,"y"'}])
    assert (tmp_path / "a.csv").read_bytes() == b'a,b\r\n1,"x,""y"""\r\n'
    write_table(tmp_path / "a.csv", [])
    assert not (tmp_path / "a.csv").exists()


def test_record(tmp_path):
    record = RunRecord(tmp_path, {"task": "x", "shape": (1, 2)})
    record.add([{"id": "a", "value": 1}, {"id": "b", "value": 2}])
    again = RunRecord(tmp_path, {"task": "x", "shape": [1, 2]})
    assert again.rows == {"a": {"id": "a", "value": 1}, "b": {"id": "b", "value": 2}}
    assert json.loads((tmp_path / "inference.json").read_text()) == {"task": "x", "shape": [1, 2]}
    with pytest.raises(InputError, match="task: 'x' -> 'y'"):
        RunRecord(tmp_path, {"task": "y", "shape": [1, 2]})


def test_record_without_settings_starts_anew(tmp_path):
    (tmp_path / "finished.jsonl").write_text('{"id": "a"}\n')
    assert RunRecord(tmp_path, {}).rows == {} and not (tmp_path / "finished.jsonl").exists()
