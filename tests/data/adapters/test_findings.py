"""Where adapters look for files: what is hidden or was made by a build, links, folders that cannot be listed."""

from __future__ import annotations

import os

import pytest

from medcoss_components.data.adapters.findings import DatasetSource, walk, walk_folders
from medcoss_components.data.modalities import get_modality
from medcoss_components.errors import InputError


def write(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    return path


def places(root, *exclude):
    return [path.relative_to(root).as_posix() for path in walk(root, exclude)]


def test_what_is_hidden_or_barred_is_passed_over(tmp_path):
    for name in ("a/1.png", "a/._1.png", ".cache/2.png", "__MACOSX/a/._1.png", "made/3.png", "b.png"):
        write(tmp_path / name)
    assert places(tmp_path, tmp_path / "made", tmp_path / "b.png") == ["a/1.png"]


def test_links_to_folders_elsewhere_are_followed_once(tmp_path):
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    write(root / "a" / "1.png")
    write(elsewhere / "deep" / "2.png")
    (elsewhere / "back").symlink_to(root)  # a loop
    (root / "b").symlink_to(elsewhere)
    (root / "c").symlink_to(elsewhere / "deep")
    (root / "d").symlink_to(root / "a")
    (root / "e").symlink_to(tmp_path)
    (root / "f").symlink_to("nowhere")
    assert places(root) == ["a/1.png", "b/deep/2.png", "f"]


def test_a_link_to_what_holds_another_links_place_loses_nothing(tmp_path):
    write(tmp_path / "disk" / "part" / "1.png")
    write(tmp_path / "disk" / "2.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a").symlink_to(tmp_path / "disk" / "part")
    (tmp_path / "root" / "b").symlink_to(tmp_path / "disk")
    assert places(tmp_path / "root") == ["a/1.png", "b/2.png", "b/part/1.png"]


def test_a_root_that_is_a_link(tmp_path):
    write(tmp_path / "data" / "a" / "1.png")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    assert places(tmp_path / "link") == ["a/1.png"]


def test_folders_can_be_passed_over_on_the_way(tmp_path):
    write(tmp_path / "b" / "2.png")
    write(tmp_path / "a" / "1.png")
    seen = []
    for folder, folders, files in walk_folders(tmp_path):
        seen.append((folder.name, list(folders), files))
        folders[:] = folders[:1]
    assert seen == [(tmp_path.name, ["a", "b"], []), ("a", [], ["1.png"])]


def test_a_folder_that_cannot_be_listed_is_no_silent_loss(tmp_path, monkeypatch):
    write(tmp_path / "a" / "1.png")
    scandir = os.scandir

    def refuse(folder):
        if str(folder).endswith("a"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"/a: the folder cannot be listed \(Permission denied\)\. Get the right"):
        walk(tmp_path)


@pytest.fixture
def source(tmp_path):
    return DatasetSource(root=tmp_path, modality=get_modality("xray"), files_dir=tmp_path / "m.files")


def test_what_a_build_wrote_is_none_of_the_data(tmp_path, source):
    for name in ("m.json", "m.build.json", "m.items-1.parquet", "m.files/1.png", "m.png", "sub/m.json", "n.json"):
        write(tmp_path / name)
    assert [path.relative_to(tmp_path).as_posix() for path in source.files()] == ["m.png", "n.json", "sub/m.json"]
    assert source.files(tmp_path / "sub") == [tmp_path / "sub" / "m.json"]


def test_the_folder_that_macos_adds_to_archives_is_no_second_data_set(tmp_path, source):
    for name in ("set/train", "__MACOSX/train", ".old/train", "down/__MACOSX/train"):
        (tmp_path / name).mkdir(parents=True)
    assert source.locate("train") == tmp_path / "set"
