"""RSNA bone age as its publisher and as the mirror ship it: sets by folder, tables of ages, defects."""

from __future__ import annotations

import pytest

from medcoss_components.data.adapters.dataset_recipe import dataset_recipe
from medcoss_components.data.adapters.rsna_bone_age import find
from medcoss_components.data.dataset_building import build_dataset_manifest
from medcoss_components.data.manifest import SPLITS, check_manifest, read_manifest
from medcoss_components.errors import InputError

from .miniatures import recipe_source, save_noise

RECIPE = dataset_recipe("rsna_bone_age")
SIDE = 24
TRAINING = "Bone Age Training Set/boneage-training-dataset"


def save(path, number):
    save_noise(path, number, (SIDE, SIDE))


@pytest.fixture
def data(tmp_path):
    """As the publisher ships it: six training, two validation and two test images."""
    root = tmp_path / "bones"
    for number in range(1377, 1383):
        save(root / TRAINING / f"{number}.png", number)
    for folder, number in ((1, 1386), (2, 1392)):
        save(root / "Bone Age Validation Set" / f"boneage-validation-dataset-{folder}" / f"{number}.png", number)
    for number in (4360, 4361):
        save(root / "Bone Age Test Set" / "Test Set Images" / f"{number}.png", number)
    rows = "".join(f"{number},{number - 1300},{number % 2 == 0}\n" for number in range(1377, 1383))
    (root / "Bone Age Training Set" / "train.csv").write_text("id,boneage,male\n" + rows)
    (root / "Bone Age Validation Set" / "Validation Dataset.csv").write_text(
        "Image ID,male,Bone Age (months)\n1386,TRUE,20\n1392,FALSE,15.5\n"
    )
    (root / "Bone Age Test Set" / "Bone age ground truth.xlsx").write_bytes(b"x")
    return root


def look(root, **settings):
    source = recipe_source("rsna_bone_age", root, **settings)
    found, left = find(source)
    return {item.path.name: item for item in found}, {entry.where: entry.reason for entry in left}, source.notes


class TestFind:
    def test_splits_and_no_labels(self, data):
        found, left, notes = look(data)
        assert len(found) == 10 and notes == [] and {item.label for item in found.values()} == {None}
        assert [left[name].split(";")[0] for name in left] == [
            "neither a radiograph <number>.png of a split nor its table"
        ]
        first = found["1377.png"]
        assert (first.name, first.split, first.patient) == (f"{TRAINING}/1377", "training", "")
        assert (first.size, first.body_part) == ((SIDE, SIDE), "hand")
        assert found["1392.png"].split == "validation" and found["4361.png"].split == "testing"

    def test_months(self, data):
        found, _, notes = look(data, label="months")
        assert (found["1377.png"].label, found["1392.png"].label, found["4360.png"].label) == (77.0, 15.5, None)
        assert notes == ["Of 2 of 10 images no bone age is known; they have no label."]
        (data / "Bone Age Test Set" / "Bone age ground truth.csv").write_text(
            "Case ID;Sex;Ground truth bone age (months)\n4360;M;168.93\n4361;F;114.8\n"
        )
        found, _, notes = look(data, label="months")
        assert found["4360.png"].label == 168.93 and notes == []
        with pytest.raises(InputError, match="label must be months or null, got 'sex'"):
            look(data, label="sex")

    def test_the_mirror(self, tmp_path):
        for split, number in (("training", 1377), ("test", 4360)):
            name = f"boneage-{split}-dataset"
            save(tmp_path / name / name / f"{number}.png", number)
        (tmp_path / "boneage-training-dataset.csv").write_text("id,boneage,male\n1377,180,False\n")
        (tmp_path / "boneage-test-dataset.csv").write_text("Case ID,Sex\n4360,M\n")
        found, left, _ = look(tmp_path, label="months")
        assert left == {} and {name: (item.split, item.label) for name, item in found.items()} == {
            "1377.png": ("training", 180.0),
            "4360.png": ("testing", None),
        }

    def test_defects_are_left_out(self, data):
        folder = data / "Bone Age Training Set"
        save(folder / "again" / "1377.png", 300)  # the same number in the same set
        save(data / TRAINING / "hand.png", 301)
        save(data / "1400.png", 302)
        (data / TRAINING / "1378.png").write_bytes(b"no picture")
        (data / "notes.csv").write_text("what\nx\n")
        (data / "ages.csv").write_text("id,boneage\n1377,80\n")  # of no set
        with open(folder / "train.csv", "a") as stream:
            stream.write("1401,12,True\n1379,old,True\nx,12,True\n1380,-3,True\n1381,inf,True\n1381,,True\n")
        found, left, _ = look(data, label="months")
        assert len(found) == 9 and found["1381.png"].label == 81.0
        table = "Bone Age Training Set/train.csv row {}"
        assert left[table.format(7)] == "its image is not there"
        unusable = {left[table.format(number)] for number in (8, 9, 10, 11)}
        assert unusable == {"its number or its bone age in months is unusable"}
        assert left[f"{TRAINING}/1377.png"] == "Bone Age Training Set/again/1377.png is the same image"
        assert left[f"{TRAINING}/1378"].startswith("cannot be read")
        odd = (
            f"{TRAINING}/hand.png",
            "1400.png",
            "notes.csv",
            "ages.csv",
            "Bone Age Test Set/Bone age ground truth.xlsx",
        )
        assert len(left) == 12 and all(left[name].startswith("neither a radiograph") for name in odd)

    def test_two_ages_of_one_image(self, data):
        (data / "Bone Age Training Set" / "other_train.csv").write_text("id,boneage\n1377,78\n")
        with pytest.raises(InputError, match=r"train.csv: .* row 1 gives an image another bone age than .* row 1"):
            look(data)

    def test_another_layout(self, data, tmp_path):
        with pytest.raises(InputError, match=r"holds no radiographs <number>.png in folders"):
            look(data / TRAINING)
        with pytest.raises(InputError, match="nowhere: no such folder"):
            look(tmp_path / "nowhere")


class TestWholeWay:
    def test_new_and_published_splits(self, data, tmp_path):
        (data / "Bone Age Test Set" / "Test Set Images" / "4361.png").write_bytes(
            (data / TRAINING / "1377.png").read_bytes()
        )
        built = build_dataset_manifest("rsna-bone-age", data, tmp_path / "new" / "bones.json", workers=1)
        manifest = read_manifest(built.path)
        assert manifest.counts == {"training": 7, "validation": 1, "testing": 1}  # the copy is gone
        assert {item.body_part for split in SPLITS for item in manifest.items(split)} == {"hand"}
        assert [problem for problem in check_manifest(manifest) if problem.severity == "error"] == []
        assert any(note.startswith("all has 9 items, published are 14236") for note in built.notes)
        built = build_dataset_manifest(
            RECIPE,
            data,
            tmp_path / "bones.json",
            split_by="published",
            settings={"label": "months"},
            workers=1,
        )
        assert built.manifest.counts == {"training": 5, "validation": 2, "testing": 2}
        assert sorted(item.label for item in read_manifest(built.path).validation) == [15.5, 20.0]
