"""Kermany's radiographs in both releases: classes by folder, patients by name, defects."""

from __future__ import annotations

from pathlib import Path

import pytest

from medcoss_components.data.adapters.dataset_recipe import dataset_recipe
from medcoss_components.data.adapters.kermany_pneumonia import find, patient_of
from medcoss_components.data.dataset_building import build_dataset_manifest
from medcoss_components.data.manifest import SPLITS, check_manifest, read_manifest
from medcoss_components.errors import InputError

from .miniatures import recipe_source, save_noise

KAGGLE = [
    *(f"train/NORMAL/IM-01{n:02d}-0001.jpeg" for n in range(10)),
    *(
        "train/NORMAL/NORMAL2-IM-0927-0001.jpeg",
        "test/NORMAL/IM-0001-0001.jpeg",
        "val/NORMAL/NORMAL2-IM-1427-0001.jpeg",
    ),
    *(f"train/PNEUMONIA/person{n}_bacteria_{n}.jpeg" for n in range(2, 10)),
    *("train/PNEUMONIA/person1_bacteria_1.jpeg", "train/PNEUMONIA/person1_virus_7.jpeg"),
    *("test/PNEUMONIA/person1_virus_6.jpeg", "val/PNEUMONIA/person1946_bacteria_4874.jpeg"),
]


def save(path, number):
    save_noise(path.with_suffix(".png"), number, (20, 24))
    path.with_suffix(".png").rename(path)  # the reader looks at the content


@pytest.fixture
def data(tmp_path):
    root = tmp_path / "download" / "chest_xray"
    for number, name in enumerate(KAGGLE):
        save(root / name, number)
    return root


def look(root):
    source = recipe_source("kermany_pneumonia", root)
    return *find(source), source.notes


def test_classes_patients_and_splits(data):
    found, left, notes = look(data.parent)
    assert left == [] and notes == [] and len(found) == len(KAGGLE)
    items = {item.path.name: item for item in found}
    normal, sick = items["NORMAL2-IM-0927-0001.jpeg"], items["person1_virus_6.jpeg"]
    assert (normal.label, normal.split, normal.patient) == ("normal", "training", "IM-0927")
    assert (sick.label, sick.split, sick.patient, sick.size) == ("pneumonia", "testing", "person1", (24, 20))
    assert {item.body_part for item in found} == {"chest"}
    assert {item.label for item in found} == set(dataset_recipe("kermany_pneumonia").classes)


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("BACTERIA-1008087-0001.jpeg", "1008087"),
        ("NORMAL-1003233-0001.jpeg", "1003233"),
        ("NORMAL2-IM-1094-0001-0002.jpeg", "IM-1094"),
        ("1.jpeg", ""),
    ],
)
def test_patients_of_names(name, patient):
    assert patient_of(name) == patient


def test_second_copy_of_the_archive_is_passed_over(data):
    save(data / "chest_xray" / "train" / "NORMAL" / "IM-0100-0001.jpeg", 0)
    found, left, _ = look(data)
    assert left == [] and len(found) == len(KAGGLE)


def test_defects_are_left_out(data):
    (data / "train" / "NORMAL" / "IM-0500-0001.jpeg").write_bytes(b"no picture")
    (data / "train" / "NORMAL" / "Thumbs.db").write_bytes(b"x")
    (data / "train" / "PNEUMONIA" / "list.txt").write_text("x")
    save(data / "train" / "OTHER" / "person5_virus_1.jpeg", 90)
    save(data / "person5_virus_1.jpeg", 91)
    save(data / "train" / "NORMAL" / "unknown.jpeg", 92)
    found, left, notes = look(data)
    reasons = {entry.where: entry.reason for entry in left}
    assert len(found) == len(KAGGLE) + 1 and len(reasons) == 4
    assert reasons["train/NORMAL/IM-0500-0001"].startswith("cannot be read")
    assert reasons["train/PNEUMONIA/list.txt"].startswith("no image in a folder train, val, test, in it NORMAL or")
    assert {"train/OTHER/person5_virus_1.jpeg", "person5_virus_1.jpeg"} <= set(reasons)
    assert notes == [f"Of 1 of {len(found)} images the name tells no patient; each counts as one."]


def test_another_layout(tmp_path):
    save(tmp_path / "train" / "NORMAL" / "a.jpeg", 0)
    with pytest.raises(InputError, match="holds no train, test"):
        look(tmp_path)


def test_no_patient_is_cut(data, tmp_path):
    copy = data / "train" / "PNEUMONIA" / "person9_bacteria_77.jpeg"
    copy.write_bytes((data / KAGGLE[0]).read_bytes())  # one content under two classes
    built = build_dataset_manifest("kermany-pneumonia", data, tmp_path / "out" / "k.json", workers=1)
    assert [e.reason for e in built.left_out] == ["the same content stands with several labels"] * 2
    assert any("all has 24 items, published are 5856" in note for note in built.notes)
    manifest = read_manifest(built.path)
    assert [problem for problem in check_manifest(manifest) if problem.severity == "error"] == []
    groups = {split: {item.group for item in manifest.items(split)} for split in SPLITS}
    assert all(groups.values()) and sum(map(len, groups.values())) == len(set().union(*groups.values()))
    assert {item.body_part for item in manifest.training} == {"chest"}
    assert "person" not in "".join(f"{item.id}{item.group}" for item in manifest.training)


def test_published_folders(data, tmp_path):
    built = build_dataset_manifest("kermany_pneumonia", data, tmp_path / "k.json", split_by="published", workers=1)
    # person1 is tested on, so its two training images go
    assert built.manifest.counts == {"training": 19, "validation": 2, "testing": 2}


def test_recipe_is_the_one_for_people():
    root = Path(__file__).resolve().parents[3]
    name = "kermany_pneumonia.yaml"
    shipped = root / "medcoss_components/data/recipes" / name
    assert shipped.read_bytes() == (root / "data_manifests/recipes" / name).read_bytes()
