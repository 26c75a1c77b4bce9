"""QaTa-COV19 v2 in its publisher's layout: pairs of images and masks, subjects of BIMCV, defects."""

from __future__ import annotations

import numpy as np
import pytest

from medcoss_components.data.adapters.qata_cov19 import find
from medcoss_components.data.case_store import prepare_cases
from medcoss_components.data.dataset_building import build_dataset_manifest
from medcoss_components.data.manifest import check_manifest, read_manifest
from medcoss_components.data.writers import write_picture
from medcoss_components.errors import InputError

from .miniatures import recipe_source

SIDE = 32
SUBJECT = "sub-S0{0}_ses-E0{1}_run-1_bp-chest_vp-ap_dx.png"


def save(root, folder, name, number, side=SIDE, mask=True, image=True):
    """An image whose top left quarter is brighter, and the mask of that quarter (0 and 255)."""
    picture = np.random.default_rng(number).integers(0, 60, (SIDE, SIDE)).astype(np.uint8)
    picture[: SIDE // 2, : SIDE // 2] += 150
    region = np.zeros((side, side), np.uint8)
    region[: side // 2, : side // 2] = 255
    for part, wanted, values, prefix in (("Images", image, picture, ""), ("Ground-truths", mask, region, "mask_")):
        (root / folder / part).mkdir(parents=True, exist_ok=True)
        if wanted:
            write_picture(root / folder / part / f"{prefix}{name}", values)


@pytest.fixture
def data(tmp_path):
    """Two images without subject and three of two subjects for training; three for testing."""
    root = tmp_path / "QaTa-COV19" / "QaTa-COV19-v2"
    training = ["covid_1.png", "covid_2.png", SUBJECT.format(1, 1), SUBJECT.format(1, 2), SUBJECT.format(2, 1)]
    testing = ["covid_3.png", SUBJECT.format(3, 1), SUBJECT.format(4, 1)]
    for number, name in enumerate(training):
        save(root, "Train Set", name, number)
    for number, name in enumerate(testing):
        save(root, "Test Set", name, 10 + number)
    return root


def look(root):
    source = recipe_source("qata_cov19", root)
    found, left = find(source)
    assert source.notes == ["Of 3 of 8 images no patient is known; each counts as a patient."]
    return found, left


class TestFind:
    def test_pairs_and_patients(self, data):
        found, left = look(data.parent.parent)
        assert left == [] and len(found) == 8
        by_name = {item.name.split("/")[-1]: item for item in found}
        first, second = by_name["covid_1"], by_name[SUBJECT.format(1, 2)[:-4]]
        assert (first.patient, first.split, first.size) == ("", "training", (SIDE, SIDE))
        assert first.label == data / "Train Set" / "Ground-truths" / "mask_covid_1.png"
        assert second.patient == "sub-S01" and by_name["covid_3"].split == "testing"

    def test_defects_are_left_out(self, data):
        save(data, "Train Set", "covid_5.png", 20, mask=False)
        save(data, "Train Set", "covid_6.png", 21, image=False)
        save(data, "Test Set", "covid_7.png", 22, side=16)
        save(data, "Test Set", "covid_8.png", 23)
        save(data, "Test Set", "covid_9.png", 24)
        (data / "Test Set" / "Images" / "covid_8.png").write_bytes(b"no picture")
        (data / "Test Set" / "Ground-truths" / "mask_covid_9.png").write_bytes(b"no picture")
        (data / "Train Set" / "Images" / "covid_1.txt").write_text("x")
        (data / "Train Set" / "Ground-truths" / "infection_4.png").write_bytes(b"x")
        (data / "list.xlsx").write_bytes(b"x")
        for name in ("readme.txt", "made.json"):
            (data / name).write_text("x")
        found, left = look(data)
        reasons = {entry.where: entry.reason for entry in left}
        assert len(found) == 8 and len(reasons) == 8
        assert reasons["Train Set/Images/covid_5.png"] == "an image without mask"
        assert reasons["Train Set/Ground-truths/mask_covid_6.png"] == "a mask without image"
        sizes = "the image has (32, 32) pixels (width, height), its mask (16, 16)"
        assert reasons["Test Set/Images/covid_7.png"] == sizes
        assert reasons["Test Set/Images/covid_8.png"].startswith("cannot be read")
        assert reasons["Test Set/Images/covid_9.png"].startswith("its mask cannot be read")
        assert reasons["Train Set/Images/covid_1.txt"] == "files ending in .txt are not read here"
        assert reasons["Train Set/Ground-truths/infection_4.png"].endswith("does not begin with mask_")
        assert reasons["list.xlsx"].startswith("a file that lies elsewhere than in Train Set or Test Set")

    def test_another_layout(self, data, tmp_path):
        with pytest.raises(InputError, match="holds no Train Set, Test Set"):
            look(data / "Train Set")
        (data / "Test Set" / "Ground-truths").rename(tmp_path / "elsewhere")
        with pytest.raises(InputError, match="Test Set: holds no folder Ground-truths. Unpack"):
            look(data)

    def test_a_second_mask_of_an_image(self, data):
        folder = data / "Test Set" / "Ground-truths"
        (folder / "mask_covid_3.PNG").write_bytes((folder / "mask_covid_3.png").read_bytes())
        found, left = look(data)
        assert len(found) == 8
        assert [(entry.where, entry.reason) for entry in left] == [
            ("Test Set/Ground-truths/mask_covid_3.png", "mask_covid_3.PNG is a mask of this image too")
        ]


class TestWholeWay:
    def test_subjects_stay_in_one_split(self, data, tmp_path):
        save(data, "Train Set", SUBJECT.format(3, 9), 30)  # subject 3 is tested on
        (data / "Train Set" / "Images" / "copy.png").write_bytes(
            (data / "Test Set" / "Images" / "covid_3.png").read_bytes()
        )
        write_picture(data / "Train Set" / "Ground-truths" / "mask_copy.png", np.zeros((SIDE, SIDE), np.uint8))
        built = build_dataset_manifest("qata-cov19", data, tmp_path / "out" / "qata.json", workers=1)
        assert built.manifest.counts == {"training": 5, "validation": 0, "testing": 3}
        reasons = {entry.where: entry.reason for entry in built.left_out}
        left = "Train Set/Images/" + SUBJECT.format(3, 9)[:-4]
        assert reasons[left] == "its patient also stands in the testing split of the publisher"
        assert reasons["Train Set/Images/copy"] == "a copy of Test Set/Images/covid_3 in testing"
        assert len({item.group for item in built.manifest.training}) == 4
        assert "sub-S01" not in str({item.group for item in built.manifest.training})
        again = build_dataset_manifest("qata_cov19", data, tmp_path / "new.json", split_by="patients", workers=1)
        assert sum(again.manifest.counts.values()) == 9
        assert [problem for problem in check_manifest(again.manifest) if problem.severity == "error"] == []

    def test_prepared_cases(self, data, tmp_path):
        built = build_dataset_manifest("qata_cov19", data, tmp_path / "out" / "qata.json", workers=1)
        problems = check_manifest(read_manifest(built.path))
        assert [problem for problem in problems if problem.severity == "error"] == []
        store = prepare_cases(
            manifest=built.path,
            store_dir=tmp_path / "store",
            input_shape=(3, 16, 16),
            preparation={"size": [16, 16]},
            workers=1,
        )
        case = store.case(0)
        quarter = np.zeros((16, 16), np.uint8)
        quarter[:8, :8] = 255
        assert len(store) == 5 and np.array_equal(case.mask, quarter)
        assert case.image[0][quarter > 0].min() > case.image[0][quarter == 0].max()
