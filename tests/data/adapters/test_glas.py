"""GlaS: pictures, masks and the table of patients, and what can be wrong with them."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from medcoss_components.data.adapters.glas import find
from medcoss_components.data.case_store import prepare_cases
from medcoss_components.data.dataset_building import build_dataset_manifest
from medcoss_components.data.manifest import SPLITS, check_manifest
from medcoss_components.errors import InputError

from .miniatures import recipe_source
from .miniatures_pathology import cut_short, disc, extent, save, write_glas

PATIENTS = {"train_1": 1, "train_2": 2, "train_3": 3, "testA_1": 4, "testA_2": 1, "testB_1": 5, "testB_2": 6}


@pytest.fixture
def root(tmp_path):
    return write_glas(tmp_path / "Warwick QU Dataset (Released 2016_07_08)", PATIENTS)


def look(root, **settings):
    found, left = find(recipe_source("glas", root, files_dir=root / "manifest.files", **settings))
    return {item.name: item for item in found}, {entry.where: entry.reason for entry in left}


def test_picture_mask_patient_and_published_split(root):
    found, left = look(root.parent)
    assert left == {} and {name: int(item.patient) for name, item in found.items()} == PATIENTS
    item = found["testA_2"]
    assert (item.split, item.size) == ("testing", (60, 40))
    assert item.label == root / "testA_2_anno.bmp" and item.path == root / "testA_2.bmp"
    assert found["train_3"].split == "training"


def test_one_part_alone(root):
    found, left = look(root, parts=["train", "testA"])
    assert len(look(root, parts="train")[0]) == 3 and len(found) == 5
    assert sorted(left) == [f"testB_{n}{mask}.bmp" for n in (1, 2) for mask in ("", "_anno")]


def test_what_cannot_be_used_is_left_out_and_named(root):
    (root / "train_1_anno.bmp").unlink()
    (root / "train_2.bmp").unlink()
    cut_short(root / "train_3.bmp", 3000)
    save(root / "testA_1_anno.bmp", disc((40, 50), radius=9)[1].astype(np.uint8))
    save(root / "testA_3.bmp", disc((40, 60), radius=5)[0])
    save(root / "testA_3_anno.bmp", np.ones((40, 60), np.uint8))
    save(root / "testB_1.png", disc((40, 60), radius=5)[0])
    save(root / "other_1.bmp", disc((40, 60), radius=5)[0])
    (root / "readme.txt").write_text("x")
    with (root / "Grade.csv").open("ab") as stream:
        stream.write(b"\rtestA_3,, benign, healthy\r")
    found, left = look(root)
    assert sorted(found) == ["testA_2", "testB_1", "testB_2"]
    assert left == {
        "train_1.bmp": "a picture without mask",
        "train_2_anno.bmp": "a mask without picture",
        "other_1.bmp": "its name begins with none of train, testA, testB",
        "testB_1.png": "pictures and masks of this data set end in .bmp",
        "Grade.csv, line 3": "no such picture",
        "testA_3.bmp": "Grade.csv does not name its patient",
        "train_3": left["train_3"],
        "testA_1": left["testA_1"],
    }
    assert "truncated" in left["train_3"] and "(40, 50), its image (40, 60)" in left["testA_1"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("name,grade\ntrain_1,x\n", "must have the columns 'name' and 'patient ID', found grade, name"),
        ("name,patient ID\ntrain_1,1\n\ntrain_1,2\n", "lines 2 and 4 name two patients"),
        ("", "the file is empty"),
    ],
)
def test_a_table_that_says_no_patient(root, lines, message):
    (root / "Grade.csv").write_text(lines)
    with pytest.raises(InputError, match=message):
        look(root)


@pytest.mark.parametrize("parts", [[], ["test"], None])
def test_unknown_parts(root, parts):
    with pytest.raises(InputError, match="must be some of train, testA, testB, got"):
        look(root, parts=parts)


def test_another_layout_is_refused(root):
    (root / "Grade.csv").unlink()
    with pytest.raises(InputError, match=r"holds no Grade\.csv"):
        look(root)


def test_from_the_folder_to_prepared_cases(root, tmp_path):
    shutil.copy(root / "train_1.bmp", root / "train_2.bmp")  # a picture that stands there twice
    built = build_dataset_manifest("glas", root.parent, tmp_path / "glas.json", workers=1, shares=(60, 20, 20))
    assert sum(built.manifest.counts.values()) == 6
    assert [(entry.where, entry.reason) for entry in built.left_out] == [("train_2", "a copy of train_1")]
    assert built.notes == ("all has 6 items, published are 165 (-159).",)
    places = {split: {item.group for item in built.manifest.items(split)} for split in SPLITS}
    assert all(places.values()) and sum(map(len, places.values())) == 5  # patients 1, 3, 4, 5 and 6, in one split each
    assert not [problem for problem in check_manifest(built.path) if problem.severity == "error"]
    store = prepare_cases(
        manifest=built.path, store_dir=tmp_path / "store", input_shape=(3, 32, 32), workers=1, progress=False
    )
    case = store.case(0)
    assert case.image.shape == (3, 40, 60) and case.mask.shape == (40, 60)
    assert set(np.unique(case.mask)) == {0, 3} and extent(case.mask) == (24, 24) == extent(case.image[2] < 100)
    assert case.image[:, 20, 30].tolist() == [200, 40, 60]


def test_the_published_split_keeps_patients_apart(root, tmp_path):
    built = build_dataset_manifest("glas", root, tmp_path / "glas.json", split_by="published", workers=1)
    assert built.manifest.counts == {"training": 2, "validation": 0, "testing": 4}
    assert [entry.where for entry in built.left_out] == ["train_1"]  # its patient is tested too
    as_is = build_dataset_manifest("glas", root, tmp_path / "glas.json", split_by="as_published", workers=1)
    assert as_is.manifest.counts == {"training": 3, "validation": 0, "testing": 4}
    assert any("1 patients stand in several" in note for note in as_is.notes)


def test_a_manifest_in_the_data_sets_folder(root):
    first = build_dataset_manifest("glas", root, root / "glas.json", workers=1)
    again = build_dataset_manifest("glas", root, root / "glas.json", workers=1)
    assert again.left_out == first.left_out == () and again.manifest.hash == first.manifest.hash
