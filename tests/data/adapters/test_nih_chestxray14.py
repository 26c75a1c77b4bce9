"""NIH ChestX-ray14 in its publisher's layout: table, folders of images, lists of the split, defects."""

from __future__ import annotations

import pytest

from medcoss_components.data.adapters.dataset_recipe import dataset_recipe
from medcoss_components.data.adapters.nih_chestxray14 import find
from medcoss_components.data.dataset_building import build_dataset_manifest
from medcoss_components.data.manifest import SPLITS, check_manifest, read_manifest
from medcoss_components.errors import InputError

from .miniatures import recipe_source, save_noise

RECIPE = dataset_recipe("nih_chestxray14")
SIDE = 24
HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)
FINDINGS = {3: "Hernia", 7: "Mass|Effusion", 8: "Edema"}
"""Number of the patient -> findings of the first image; all other images have none."""


def save(path, number):
    save_noise(path, number, (SIDE, SIDE))


def line(name, patient, findings="No Finding", view="PA"):
    return f"{name},{findings},0,{patient},58,M,{view},2682,2749,0.143,0.143,\n"


@pytest.fixture
def data(tmp_path):
    """Ten patients with two images each, in two folders; patients 9 and 10 are the publisher's test set."""
    root = tmp_path / "download" / "CXR8"
    names, lines = [], []
    for patient in range(1, 11):
        for number in range(2):
            name = f"{patient:08d}_{number:03d}.png"
            names.append(name)
            findings = FINDINGS.get(patient, "No Finding") if number == 0 else "No Finding"
            lines.append(line(name, patient, findings, "PA" if number == 0 else "AP"))
            save(root / f"images_{1 + (patient > 5):03d}" / "images" / name, 10 * patient + number)
    (root / "Data_Entry_2017.csv").write_text(HEADER + "\n" + "".join(lines))
    (root / "train_val_list.txt").write_text("\n".join(names[:16]))
    (root / "test_list.txt").write_text("\n".join(names[16:]) + "\n")
    for name in ("BBox_List_2017.csv", "README_CHESTXRAY.pdf", "FAQ_CHESTXRAY.pdf"):
        (root / name).write_text("x")
    return root


def append(root, text):
    with open(root / "Data_Entry_2017.csv", "a") as stream:
        stream.write(text)


def look(root, **settings):
    source = recipe_source("nih_chestxray14", root, **settings)
    found, left = find(source)
    return found, left, source.notes


class TestFind:
    def test_labels_patients_and_splits(self, data):
        found, left, notes = look(data.parent)  # the folder above works as well
        assert left == [] and notes == [] and len(found) == 20
        by_name = {item.path.name: item for item in found}
        first = by_name["00000007_000.png"]
        assert first.name == "images_002/images/00000007_000" and first.label == ["Effusion", "Mass"]
        assert (first.patient, first.split, first.size) == ("00000007", "training", (SIDE, SIDE))
        assert by_name["00000010_001.png"].split == "testing"
        assert by_name["00000010_001.png"].label == ["No Finding"]
        assert {item.body_part for item in found} == {"chest"}

    def test_the_later_table_counts(self, data):
        (data / "Data_Entry_2017_v2020.csv").write_text(f"{HEADER}\n{line('00000001_000.png', 1, 'Fibrosis')}")
        found, left, _ = look(data)
        assert [item.label for item in found] == [["Fibrosis"]]
        assert len(left) == 19 and {entry.reason for entry in left} == {"no row in the table"}

    def test_views(self, data):
        found, left, _ = look(data, views="PA")
        assert len(found) == 10 and [(entry.where, entry.reason) for entry in left] == [
            ("AP", "10 images, as views is set to PA")
        ]
        with pytest.raises(InputError, match=r"views must be null or list some of AP, PA, got \['LL'\]"):
            look(data, views=["LL"])

    def test_defects_are_left_out(self, data):
        save(data / "images_003" / "00000001_000.png", 400)
        save(data / "images_001" / "images" / "00000099_000.png", 401)
        (data / "images_001" / "images" / "00000002_000.png").write_bytes(b"no picture")
        (data / "images_001" / "images" / "00000003_000.png").unlink()
        (data / "images_001" / "thumbs.zip").write_bytes(b"x")
        append(data, line("00000020_000.png", 21) + line("00000020_001.png", 20, "Fever") + line("x.png", 1))
        append(
            data, line("00000004_000.png", 4) + line("00000020_002.png", 20, "Mass|Mass") + line("00000020_003.png", "")
        )
        found, left, _ = look(data)
        reasons = {entry.where: entry.reason for entry in left}
        assert len(found) == 18 and len(reasons) == len(left) == 11
        assert reasons["images_003/00000001_000.png"] == "images_001/images/00000001_000.png is the same image"
        assert reasons["00000099_000.png"] == "no row in the table"
        assert reasons["images_001/images/00000002_000"].startswith("cannot be read")
        assert reasons["00000003_000.png"] == "a row of the table without file"
        assert reasons["images_001/thumbs.zip"] == "an archive; unpack it"
        rows = {number: reasons[f"Data_Entry_2017.csv row {number}"] for number in range(21, 27)}
        assert rows[21] == rows[26] == "its patient is not the one in the image's name"
        assert rows[22] == rows[25] == "its findings are not some of the 14 known ones, each once"
        assert rows[23].startswith("it names no image") and rows[24] == "an earlier row says the same"

    def test_without_lists(self, data):
        for name in ("train_val_list.txt", "test_list.txt"):
            (data / name).unlink()
        found, _, notes = look(data)
        assert {item.split for item in found} == {""}
        assert notes == ["train_val_list.txt and test_list.txt are not there; --split-by published needs them."]

    def test_what_contradicts_itself_is_refused(self, data):
        with open(data / "test_list.txt", "a") as stream:
            stream.write("00000001_000.png\n")
        with pytest.raises(InputError, match=r"test_list.txt: line 5 names an image of another list"):
            look(data)
        append(data, line("00000003_000.png", 3, "Mass"))
        with pytest.raises(InputError, match=r"csv: row 21 says something else about an image than an earlier row"):
            look(data)

    def test_another_layout(self, tmp_path):
        with pytest.raises(InputError, match=r"holds no Data_Entry_2017_v2020.csv"):
            look(tmp_path)
        (tmp_path / "Data_Entry_2017.csv").write_text("Image Index,Finding Labels\n")
        with pytest.raises(InputError, match="no column Patient ID, View Position"):
            look(tmp_path)


class TestWholeWay:
    def test_patients_stay_together(self, data, tmp_path):
        copy = data / "images_001" / "images" / "00000001_000.png"
        (data / "images_002" / "images" / "00000010_000.png").write_bytes(copy.read_bytes())
        built = build_dataset_manifest("nih-chestxray14", data, tmp_path / "out" / "nih.json", workers=1)
        manifest = read_manifest(built.path)
        assert sum(manifest.counts.values()) == 19  # the copy is gone
        groups = {split: {item.group for item in manifest.items(split)} for split in SPLITS}
        assert [len(groups[split]) for split in SPLITS] == [8, 1, 1] and len(set().union(*groups.values())) == 10
        assert {item.body_part for split in SPLITS for item in manifest.items(split)} == {"chest"}
        labels = [item.label for split in SPLITS for item in manifest.items(split)]
        assert labels.count(["Effusion", "Mass"]) == 1 and labels.count(["No Finding"]) == 16
        assert [problem for problem in check_manifest(manifest) if problem.severity == "error"] == []
        assert any("all has 19 items, published are 112120" in note for note in built.notes)
        text = built.path.read_text()
        assert "58" not in {str(item.label) for item in manifest.training} and '"M"' not in text

    def test_the_publishers_split(self, data, tmp_path):
        built = build_dataset_manifest(RECIPE, data, tmp_path / "nih.json", split_by="published", workers=1)
        assert built.manifest.counts == {"training": 16, "validation": 0, "testing": 4}
