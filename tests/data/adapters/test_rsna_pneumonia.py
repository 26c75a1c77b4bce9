"""The RSNA pneumonia challenge in its publisher's layout: classes, the mapping to patients, defects."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medcoss_components.data.adapters.rsna_pneumonia import find
from medcoss_components.data.dataset_building import build_dataset_manifest
from medcoss_components.data.manifest import SPLITS, check_manifest, read_manifest
from medcoss_components.data.writers import write_dicom
from medcoss_components.errors import InputError

from .miniatures import recipe_source

CLASSES = ["Normal", "Lung Opacity", "No Lung Opacity / Not Normal"]


def save(path, seed, modality="CR"):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.random.default_rng(seed).integers(0, 255, (20, 24)).astype(np.uint16)
    write_dicom(path, picture, modality=modality)


@pytest.fixture
def data(tmp_path):
    """Thirty images, ten of a class; the table names an image with two boxes twice."""
    root = tmp_path / "rsna-pneumonia-detection-challenge"
    rows = ["patientId,class"]
    for number in range(30):
        save(root / "stage_2_train_images" / f"image-{number:02d}.dcm", number)
        rows += [f"image-{number:02d},{CLASSES[number % 3]}"] * (2 if number % 3 == 1 else 1)
    (root / "stage_2_detailed_class_info.csv").write_text("\n".join(rows))
    (root / "stage_2_train_labels.csv").write_text("patientId,x,y,width,height,Target\n")
    save(root / "stage_2_test_images" / "test-01.dcm", 100)
    return root


def map_patients(root):
    """Images 0 .. 3 are of one patient, 4 .. 7 of the next one, and so on."""
    rows = [{"subset_img_id": f"image-{n:02d}", "img_id": f"{n // 4:08d}_{n % 4:03d}.png"} for n in range(30)]
    (root / "pneumonia-challenge-dataset-mappings_2018.json").write_text(json.dumps(rows))


def look(root, **settings):
    source = recipe_source("rsna_pneumonia", root, **settings)
    return *find(source), source.notes


def test_classes(data):
    found, left, notes = look(data.parent)
    assert len(found) == 20 and {item.label for item in found} == {"normal", "pneumonia"}
    assert [entry.reason for entry in left] == [
        "10 images of the class 'No Lung Opacity / Not Normal'; --set others=normal takes them"
    ]
    assert "no patient is known" in notes[0]
    assert (found[0].size, found[0].patient, found[0].body_part) == ((24, 20), "", "chest")


def test_other_findings_count_as_normal_and_patients_are_mapped(data):
    map_patients(data)
    found, left, notes = look(data, others="normal")
    assert left == [] and notes == [] and len(found) == 30
    assert sum(item.label == "normal" for item in found) == 20
    assert len({item.patient for item in found}) == 8 and found[0].patient == "00000000"


def test_defects_are_left_out(data):
    folder = data / "stage_2_train_images"
    (folder / "image-00.dcm").unlink()
    (folder / "image-01.dcm").write_bytes(b"no picture")
    save(folder / "image-03.dcm", 3, modality="CT")
    save(folder / "image-99.dcm", 99)
    (folder / "notes.txt").write_text("x")
    found, left, _ = look(data)
    reasons = {entry.where: entry.reason for entry in left}
    assert len(found) == 17 and len(reasons) == 6
    assert reasons["stage_2_train_images/image-00.dcm"] == "not there"
    assert "stage_2_train_images/image-01" in reasons
    assert reasons["stage_2_train_images/image-03"].startswith("the DICOM modality is 'CT'")
    assert reasons["stage_2_train_images/image-99"].endswith("stage_2_detailed_class_info.csv does not name")
    assert reasons["stage_2_train_images/notes.txt"] == "no DICOM file in stage_2_train_images"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("patientId,kind\na,Normal\n", "must have the columns 'patientId' and 'class', found"),
        ("patientId,class\na,Sick\n", "line 2: the class must be one of Normal, Lung Opacity, No Lung Opacity"),
        ("patientId,class\na,Normal\na,Lung Opacity\n", "line 3 gives an image another class than before"),
    ],
)
def test_wrong_tables(data, text, message):
    (data / "stage_2_detailed_class_info.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        look(data)


def test_wrong_settings_mapping_and_layout(data):
    with pytest.raises(InputError, match="others must be one of leave out, normal, got 'drop'"):
        look(data, others="drop")
    (data / "pneumonia-challenge-dataset-mappings_2018.json").write_text('[{"img_id": "x"}]')
    with pytest.raises(InputError, match="must be a list of rows with subset_img_id and img_id"):
        look(data)
    with pytest.raises(InputError, match="holds no stage_2_train_images, stage_2_detailed_class_info.csv"):
        look(data / "stage_2_test_images")


def test_no_patient_is_cut(data, tmp_path):
    map_patients(data)
    built = build_dataset_manifest("rsna-pneumonia", data, tmp_path / "out" / "r.json", workers=1)
    manifest = read_manifest(built.path)
    assert [problem for problem in check_manifest(manifest) if problem.severity == "error"] == []
    groups = {split: {item.group for item in manifest.items(split)} for split in SPLITS}
    assert all(groups.values()) and sum(map(len, groups.values())) == len(set().union(*groups.values())) == 8


def test_recipe_is_the_one_for_people():
    root, file = Path(__file__).resolve().parents[3], "rsna_pneumonia.yaml"
    shipped = root / "medcoss_components/data/recipes" / file
    assert shipped.read_bytes() == (root / "data_manifests/recipes" / file).read_bytes()
