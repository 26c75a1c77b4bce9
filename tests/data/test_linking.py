"""Hashed names for files: links, headers with their data elsewhere, and links of a former manifest."""

from __future__ import annotations

import os

import numpy as np
import pytest

from medcoss_components.data import linking
from medcoss_components.data.adapters.findings import Found
from medcoss_components.data.detached import detached_data
from medcoss_components.data.linking import files_folder, item_id, link_file, link_items, remove_other_links
from medcoss_components.data.readers import read_volume
from medcoss_components.errors import InputError

SALT = "a salt for tests only"


@pytest.fixture
def folder(tmp_path):
    return files_folder(tmp_path / "films.json")


def one(path, name="roe/scan", **fields):
    return Found(name=name, path=path, files=(path,), **fields)


def write_volume(path, value=3):
    import SimpleITK

    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.full((4, 5, 6), value, np.int16)), str(path))
    return path


def test_an_image_and_its_mask(tmp_path, folder):
    image, mask = tmp_path / "Roe.NII.GZ", tmp_path / "Roe_seg.nii.gz"
    image.write_bytes(b"image")
    mask.write_bytes(b"mask")
    item = one(image, label=mask)
    (linked,), left = link_items([item], folder, SALT)
    name = item_id(item, SALT)
    assert left == [] and (linked.path, linked.label) == (folder / f"{name}.nii.gz", folder / f"{name}_mask.nii.gz")
    assert linked.path.samefile(image) and linked.label.read_bytes() == b"mask" and folder.name == "films.files"
    assert (linked.name, linked.patient, linked.files) == (item.name, item.patient, item.files)


def test_a_series_and_an_image_without_label(tmp_path, folder):
    files = []
    for number in range(3):
        files.append(tmp_path / "in" / f"Roe {number}.ima")
        files[-1].parent.mkdir(exist_ok=True)
        files[-1].write_text(str(number))
    item = Found(name="roe", path=tmp_path / "in", files=tuple(files))
    for count in (3, 2):  # fewer files the next time
        ((linked,), _) = link_items([Found(name="roe", path=item.path, files=item.files[:count])], folder, SALT)
        assert [entry.name for entry in sorted(linked.path.iterdir())] == [f"{n:05d}.dcm" for n in range(count)]
    assert [entry.read_text() for entry in sorted(linked.path.iterdir())] == ["0", "1"]


def test_symbolic_links_where_there_are_no_hard_ones(tmp_path, monkeypatch):
    def refuse(*paths):
        raise OSError(18, "another device")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "a").write_text("x")
    link_file(tmp_path / "a", tmp_path / "to" / "b")
    assert (tmp_path / "to" / "b").is_symlink() and (tmp_path / "to" / "b").read_text() == "x"
    link_file(tmp_path / "a", tmp_path / "to" / "b")  # stays
    monkeypatch.setattr(linking.Path, "symlink_to", refuse)
    with pytest.raises(InputError, match=r"the file system makes no links \(another device\).*--keep-names"):
        link_file(tmp_path / "a", tmp_path / "to" / "c")


def test_another_file_replaces_a_link(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name)
        link_file(tmp_path / name, tmp_path / "link")
        assert (tmp_path / "link").read_text() == name
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a", "b", "link"]


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
def test_headers_with_their_data_elsewhere(tmp_path, folder, suffix):
    path = write_volume(tmp_path / "in" / f"roe{suffix}")
    data = detached_data(path)
    assert data is not None and data.parent == path.parent and data.stem == "roe"
    ((linked,), left) = link_items([one(path)], folder, SALT)
    assert left == [] and b"roe" not in linked.path.read_bytes() and read_volume(linked.path).array.max() == 3
    assert len(list(folder.iterdir())) == 2
    remove_other_links(folder, [linked.path])
    assert len(list(folder.iterdir())) == 2


def test_headers_that_cannot_be_linked(tmp_path, folder):
    path = write_volume(tmp_path / "roe.mhd")
    text = path.read_text()
    path.write_text(text.replace("roe.raw", "LIST\nroe1.raw"))
    _, (left,) = link_items([one(path)], folder, SALT)
    assert left.reason.startswith("its data lie in several files. Convert it") and left.where == "roe/scan"
    path.write_text(text.replace("roe.raw", "gone.raw"))
    with pytest.raises(InputError, match="the data file that its header names is missing"):
        detached_data(path)
    path.write_text(text.replace("roe.raw", "LOCAL"))
    assert detached_data(path) is None


def test_links_of_a_former_manifest_go_other_files_stay(tmp_path, folder):
    (tmp_path / "a.png").write_text("a")
    items = [one(tmp_path / "a.png", name=name, label=tmp_path / "a.png") for name in ("one", "two")]
    series = Found(name="series", path=tmp_path, files=(tmp_path / "a.png",))
    linked, _ = link_items([*items, series], folder, SALT)
    (folder / f"{'0' * 16}-12345678.nii.gz").write_text("made by an adapter")
    remove_other_links(folder, [linked[0].path, linked[0].label])
    kept = {linked[0].path.name, linked[0].label.name, f"{'0' * 16}-12345678.nii.gz"}
    assert {entry.name for entry in folder.iterdir()} == kept
    (folder / f"{'0' * 16}-12345678.nii.gz").unlink()
    remove_other_links(folder, [])
    assert not folder.exists()
    remove_other_links(folder, [])
