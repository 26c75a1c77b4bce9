"""MURA v1.1 in its publisher's layout: body parts, studies and classes by folder, tables, defects."""

from __future__ import annotations

import pytest

from medcoss_components.data.adapters.dataset_recipe import dataset_recipe
from medcoss_components.data.adapters.mura import find
from medcoss_components.data.dataset_building import build_dataset_manifest
from medcoss_components.data.manifest import SPLITS, check_manifest, read_manifest
from medcoss_components.errors import InputError

from .miniatures import recipe_source, save_noise

RECIPE = dataset_recipe("mura")
HEIGHT, WIDTH = 32, 20
STUDIES = [  # set, body part, patient, study with its class
    ("train", "ELBOW", 1, "study1_positive"),
    ("train", "ELBOW", 1, "study2_negative"),
    ("train", "HAND", 1, "study1_negative"),
    ("train", "WRIST", 2, "study1_positive"),
    ("train", "WRIST", 3, "study1_negative"),
    ("train", "SHOULDER", 4, "study1_negative"),
    ("valid", "HUMERUS", 5, "study1_positive"),
    ("valid", "FINGER", 6, "study1_negative"),
]


def place(folder, part, patient, study, number=1):
    return f"{folder}/XR_{part}/patient{patient:05d}/{study}/image{number}.png"


def save(path, number):
    save_noise(path, number, (HEIGHT, WIDTH))


@pytest.fixture
def data(tmp_path):
    """Eight studies of six patients with two images each, and the four tables."""
    root = tmp_path / "MURA-v1.1"
    for folder in ("train", "valid"):
        paths, studies = [], []
        for number, study in enumerate(STUDIES):
            if study[0] == folder:
                places = [place(*study, image) for image in (1, 2)]
                for image, name in enumerate(places):
                    save(root / name, 10 * number + image)
                paths += [f"MURA-v1.1/{name}\n" for name in places]
                studies.append(f"MURA-v1.1/{places[0].rpartition('/')[0]}/,{int(study[3].endswith('positive'))}\n")
        (root / f"{folder}_image_paths.csv").write_text("".join(paths) + "\n")
        (root / f"{folder}_labeled_studies.csv").write_text("".join(studies))
    return root


def look(root, **settings):
    source = recipe_source("mura", root, **settings)
    found, left = find(source)
    assert source.notes == []
    return found, left


class TestFind:
    def test_classes_patients_and_body_parts(self, data):
        found, left = look(data.parent)  # the folder above works as well
        assert left == [] and len(found) == 16
        by_name = {item.name: item for item in found}
        first = by_name["train/XR_ELBOW/patient00001/study1_positive/image2"]
        assert (first.label, first.patient, first.split) == ("abnormal", "patient00001", "training")
        assert (first.body_part, first.size) == ("elbow", (WIDTH, HEIGHT))
        other = by_name["train/XR_HAND/patient00001/study1_negative/image1"]
        assert (other.label, other.body_part, other.patient) == ("normal", "hand", "patient00001")
        assert {item.split for item in found if item.name.startswith("valid/")} == {"testing"}

    def test_without_tables(self, data):
        for path in data.glob("*.csv"):
            path.unlink()
        found, left = look(data)
        assert left == [] and len(found) == 16

    def test_settings(self, data):
        found, left = look(data, body_parts=["wrist"], validation_as="validation")
        assert len(found) == 4 and {item.body_part for item in found} == {"wrist"}
        assert {entry.where: entry.reason.split()[0] for entry in left} == {
            "elbow": "4", "finger": "2", "hand": "2", "humerus": "2", "shoulder": "2"
        }  # fmt: skip
        assert "validation" in {item.split for item in look(data, validation_as="validation")[0]}
        with pytest.raises(InputError, match="validation_as must be one of testing, validation, got 'train'"):
            look(data, validation_as="train")
        with pytest.raises(InputError, match=r"body_parts must be null or list some of elbow, .* got 'knee'"):
            look(data, body_parts="knee")

    def test_defects_are_left_out(self, data):
        save(data / place("train", "WRIST", 2, "study1_positive", 3), 300)  # in no list
        (data / place("train", "WRIST", 2, "study1_positive", 1)).unlink()
        (data / place("train", "HAND", 1, "study1_negative", 1)).write_bytes(b"no picture")
        save(data / "train" / "XR_KNEE" / "patient00009" / "study1_negative" / "image1.png", 301)
        save(data / "train" / "XR_WRIST" / "patient00003" / "image1.png", 302)
        (data / "valid" / "._image1.png").write_bytes(b"x")  # of macOS
        (data / "LICENSE.txt").write_text("x")
        found, left = look(data)
        reasons = {entry.where: entry.reason for entry in left}
        assert len(found) == 14 and len(reasons) == len(left) == 5
        assert reasons[place("train", "WRIST", 2, "study1_positive", 3)] == "not named in train_image_paths.csv"
        assert reasons[place("train", "WRIST", 2, "study1_positive", 1)].endswith("csv, but not there")
        assert reasons["train/XR_HAND/patient00001/study1_negative/image1"].startswith("cannot be read")
        odd = {"train/XR_KNEE/patient00009/study1_negative/image1.png", "train/XR_WRIST/patient00003/image1.png"}
        assert {reasons[name] for name in odd} == {"not in a folder of a study, or not called image<n>.png"}

    def test_contradicting_studies_are_left_out(self, data):
        for path in data.glob("*_image_paths.csv"):
            path.unlink()
        save(data / place("train", "WRIST", 2, "study1_negative"), 300)
        (data / "valid_labeled_studies.csv").write_text("MURA-v1.1/valid/XR_FINGER/patient00006/study1_negative/,1\n")
        found, left = look(data)
        reasons = {entry.where: entry.reason for entry in left}
        assert len(found) == 12 and len(reasons) == 5
        assert reasons[place("train", "WRIST", 2, "study1_negative")] == "its study has a folder of each class"
        assert reasons[place("train", "WRIST", 2, "study1_positive", 2)] == "its study has a folder of each class"
        other = reasons[place("valid", "FINGER", 6, "study1_negative", 2)]
        assert other == "valid_labeled_studies.csv says the other class"

    def test_another_layout_and_a_broken_table(self, data):
        with pytest.raises(InputError, match="holds no train, valid"):
            look(data / "train")
        (data / "train_labeled_studies.csv").write_text("MURA-v1.1/train/XR_WRIST/patient00002/study1_positive/,2\n")
        with pytest.raises(InputError, match=r"train_labeled_studies.csv: row 1 has no class 0 or 1"):
            look(data)


class TestWholeWay:
    def test_patients_stay_together(self, data, tmp_path):
        twice = data / place("train", "SHOULDER", 4, "study1_negative", 1)
        (data / place("train", "WRIST", 2, "study1_positive", 1)).write_bytes(twice.read_bytes())  # under two classes
        built = build_dataset_manifest("mura", data, tmp_path / "out" / "mura.json", workers=1)
        reasons = {entry.where: entry.reason for entry in built.left_out}
        assert set(reasons.values()) == {"the same content stands with several labels"} and len(reasons) == 2
        manifest = read_manifest(built.path)
        groups = {split: {item.group for item in manifest.items(split)} for split in SPLITS}
        assert len(set().union(*groups.values())) == 6 == sum(map(len, groups.values()))
        assert min(map(len, groups.values())) >= 1 and sum(manifest.counts.values()) == 14
        items = [item for split in SPLITS for item in manifest.items(split)]
        assert {(item.body_part, item.label) for item in items if item.body_part in ("elbow", "humerus")} == {
            ("elbow", "abnormal"), ("elbow", "normal"), ("humerus", "abnormal")
        }  # fmt: skip
        assert [problem for problem in check_manifest(manifest) if problem.severity == "error"] == []
        assert any(note.startswith("all has 9 items of normal, published are 23602") for note in built.notes)

    def test_the_publishers_split(self, data, tmp_path):
        built = build_dataset_manifest(RECIPE, data, tmp_path / "mura.json", split_by="published", workers=1)
        assert built.manifest.counts == {"training": 12, "validation": 0, "testing": 4}
