"""Files below a folder: which are found, what their headers say."""

from __future__ import annotations

import numpy as np

from medcoss_components.data.adapters.findings import bare_name, header_size, walk
from medcoss_components.data.adapters.own_data import find_volumes


def picture(number, shape=(20, 24)):
    values = np.random.default_rng(number).integers(0, 255, shape)
    return values.astype(np.uint8)


def test_bare_names():
    assert [bare_name(name) for name in ("a/b.NII.GZ", "b.dcm", "c.1", "d.csv.gz")] == ["a/b", "b", "c.1", "d"]


def test_walk_skips_hidden_and_excluded(tmp_path):
    for name in ("a/1", "b/2", ".c/3", "d/.4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert walk(tmp_path, [tmp_path / "b"]) == [tmp_path / "a" / "1"]


def test_three_axes(tmp_path):
    import nibabel

    for name, shape in (("a", (3, 4, 5, 1)), ("b", (3, 4, 5, 2)), ("c", (3, 4))):
        nibabel.save(nibabel.Nifti1Image(np.zeros(shape, np.int16), np.eye(4)), tmp_path / f"{name}.nii")
    found, left = find_volumes(tmp_path)
    assert [item.size for item in found] == [(3, 4, 5)]
    assert [entry.reason for entry in left] == [
        "a volume has three axes, this file has the shape (3, 4, 5, 2)",
        "a volume has three axes, this file has the shape (3, 4)",
    ]


def test_sizes_from_headers(tmp_path):
    import SimpleITK
    from PIL import Image

    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.zeros((3, 4, 5), np.int16)), str(tmp_path / "a.nrrd"))
    assert header_size(tmp_path / "a.nrrd") == (5, 4, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(0)).save(tmp_path / "a.jpg", exif=exif)
    assert header_size(tmp_path / "a.jpg") == (20, 24)
    Image.fromarray(picture(0)).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    assert header_size(tmp_path / "a.png") == (24, 20)


def test_the_data_of_a_header_are_no_file_of_their_own(tmp_path):
    import SimpleITK

    for name in ("b.mhd", "a.nhdr"):
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.zeros((3, 4, 5), np.int16)), str(tmp_path / name))
    (tmp_path / "other.raw").write_bytes(b"x")
    (tmp_path / "lost.mhd").write_bytes((tmp_path / "b.mhd").read_bytes().replace(b"b.raw", b"lost.raw"))
    found, left = find_volumes(tmp_path)
    assert [(item.name, len(item.files), item.size) for item in found] == [("a", 2, (5, 4, 3)), ("b", 2, (5, 4, 3))]
    reasons = {entry.where: entry.reason for entry in left}
    assert reasons["lost.mhd"].startswith("the data file that its header names is missing")
    assert set(reasons) == {"lost.mhd", "other.raw"} and "files ending in .raw" in reasons["other.raw"]
