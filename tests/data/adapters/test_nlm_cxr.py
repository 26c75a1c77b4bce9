"""China-Set and Montgomery in their publishers' layouts: classes by name, masks of one or both lungs, defects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medcoss_components.data.adapters.dataset_recipe import dataset_recipe
from medcoss_components.data.adapters.nlm_cxr import find, join_lungs
from medcoss_components.data.dataset_building import build_dataset_manifest
from medcoss_components.data.manifest import SPLITS, check_manifest, read_manifest
from medcoss_components.data.masks import read_mask
from medcoss_components.data.writers import write_picture
from medcoss_components.errors import InputError

from .miniatures import recipe_source

HEIGHT, WIDTH = 24, 30
NAMES = ("china_set_cxr", "china_set_cxr_lungs", "montgomery_cxr", "montgomery_cxr_lungs", "nlm_cxr_lungs")


def save(path, seed=None, *, columns=None, size=(HEIGHT, WIDTH)):
    """Noise of a seed, or a mask (0 and 255) of some columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if columns is None:
        return write_picture(path, np.random.default_rng(seed).integers(0, 255, size).astype(np.uint8))
    mask = np.zeros(size, np.uint8)
    mask[4:20, columns] = 255
    return write_picture(path, mask)


@pytest.fixture
def china(tmp_path):
    """Twelve radiographs, readings, masks of all but the last."""
    root = tmp_path / "china"
    for number in range(1, 13):
        stem = f"CHNCXR_{number:04d}_{int(number > 6)}"
        save(root / "ChinaSet_AllFiles" / "CXR_png" / f"{stem}.png", number)
        reading = root / "ChinaSet_AllFiles" / "ClinicalReadings" / f"{stem}.txt"
        reading.parent.mkdir(exist_ok=True)
        reading.write_text("male 45yrs\nSECRET")
        if number < 12:
            save(root / "mask" / "mask" / f"{stem}_mask.png", columns=slice(3, 27))
    return root


@pytest.fixture
def montgomery(tmp_path):
    """Ten radiographs with a mask of each lung; the masks overlap in a column."""
    root = tmp_path / "MontgomerySet"
    for number in range(1, 11):
        name = f"MCUCXR_{number:04d}_{int(number > 5)}.png"
        save(root / "CXR_png" / name, 100 + number)
        save(root / "ManualMask" / "rightMask" / name, columns=slice(3, 13))
        save(root / "ManualMask" / "leftMask" / name, columns=slice(12, 27))
    return root


def look(root, recipe, **settings):
    return find(recipe_source(recipe, root, files_dir=root.parent / "made.files", **settings))


class TestClasses:
    def test_china_set(self, china):
        found, left = look(china, "china_set_cxr")
        assert left == [] and len(found) == 12
        first = next(item for item in found if item.path.stem == "CHNCXR_0001_0")
        assert (first.label, first.patient, first.size) == ("normal", "CHNCXR_0001", (WIDTH, HEIGHT))
        assert [item.label for item in found].count("tuberculosis") == 6
        assert {item.body_part for item in found} == {"chest"} and len({item.patient for item in found}) == 12

    def test_montgomery_beside_the_other_set(self, china, montgomery):
        found, left = look(china.parent, "montgomery_cxr")
        assert len(found) == 10 and {item.label for item in found} == {"normal", "tuberculosis"}
        assert {entry.reason.partition(": ")[2] for entry in left} == {"no radiograph of these sets and no mask of one"}
        assert len(look(china.parent, "montgomery_cxr", sets=["china_set", "montgomery"])[0]) == 22

    def test_defects_are_left_out(self, china):
        folder = china / "ChinaSet_AllFiles" / "CXR_png"
        (folder / "CHNCXR_0001_0.png").write_bytes(b"no picture")
        save(china / "test" / "CHNCXR_0002_0.png", 2)
        (folder / "CHNCXR_1_0.png").write_bytes(b"x")
        (folder / "Thumbs.db").write_bytes(b"x")
        found, left = look(china, "china_set_cxr")
        reasons = {entry.where: entry.reason for entry in left}
        assert len(found) == 11 and len(reasons) == 3
        assert reasons["ChinaSet_AllFiles/CXR_png/CHNCXR_0001_0"].startswith("cannot be read")
        assert reasons["test/CHNCXR_0002_0.png"] == "ChinaSet_AllFiles/CXR_png/CHNCXR_0002_0.png is the same image"
        assert reasons["ChinaSet_AllFiles/CXR_png/CHNCXR_1_0.png"].startswith("no radiograph of these sets")

    def test_wrong_settings_and_folders(self, china, tmp_path):
        with pytest.raises(InputError, match="labels must be one of class, lungs, got 'heart'"):
            look(china, "china_set_cxr", labels="heart")
        with pytest.raises(InputError, match="sets must be null or list some of china_set, montgomery, got"):
            look(china, "china_set_cxr", sets=["jsrt"])
        with pytest.raises(InputError, match="holds no MCUCXR_<number>_<class>.png"):
            look(china, "montgomery_cxr")
        with pytest.raises(InputError, match="no such folder"):
            look(tmp_path / "nowhere", "montgomery_cxr")


class TestLungs:
    def test_masks_of_another_source(self, china):
        found, left = look(china, "china_set_cxr_lungs")
        assert len(found) == 11
        assert [(entry.where[-13:], entry.reason) for entry in left] == [("CHNCXR_0012_1", "a radiograph without mask")]
        assert found[0].label == china / "mask" / "mask" / "CHNCXR_0001_0_mask.png"

    def test_masks_of_both_lungs_are_joined_once(self, montgomery):
        found, left = look(montgomery, "montgomery_cxr_lungs")
        assert left == [] and len(found) == 10
        mask = read_mask(found[0].label, 2)
        assert mask.shape == (HEIGHT, WIDTH) and "MCUCXR" not in found[0].label.name
        assert [int(value) for value in mask[10, [2, 3, 11, 12, 26, 27]]] == [0, 1, 1, 2, 2, 0]
        before = {item.label: item.label.stat().st_mtime_ns for item in found}
        again, _ = look(montgomery, "montgomery_cxr_lungs")
        assert {item.label: item.label.stat().st_mtime_ns for item in again} == before
        save(montgomery / "ManualMask" / "leftMask" / "MCUCXR_0001_0.png", columns=slice(20, 22))
        changed, _ = look(montgomery, "montgomery_cxr_lungs")
        assert len({item.label for item in changed} - set(before)) == 1

    def test_masks_with_defects(self, montgomery):
        masks = montgomery / "ManualMask"
        (masks / "leftMask" / "MCUCXR_0001_0.png").unlink()
        save(masks / "leftMask" / "MCUCXR_0002_0.png", columns=slice(0, 4), size=(8, 8))
        (masks / "rightMask" / "MCUCXR_0003_0.png").write_bytes(b"no picture")
        colours = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        colours[..., 1] = 9
        write_picture(masks / "rightMask" / "MCUCXR_0004_0.png", colours)
        (montgomery / "CXR_png" / "MCUCXR_0010_1.png").unlink()
        found, left = look(montgomery, "montgomery_cxr_lungs")
        reasons = {entry.where.rpartition("/")[2]: entry.reason for entry in left}
        assert len(found) == 5
        assert reasons["MCUCXR_0001_0"] == "only its right lung has a mask"
        assert reasons["MCUCXR_0002_0"] == "the radiograph has (30, 24) pixels (width, height), its mask (8, 8)"
        assert reasons["MCUCXR_0003_0"].startswith("its mask cannot be read")
        assert reasons["MCUCXR_0004_0"].startswith("MCUCXR_0004_0.png: a mask has one channel")
        assert reasons["MCUCXR_0010_1.png"] == "a mask without radiograph"

    def test_lungs_of_different_sizes(self, tmp_path):
        save(tmp_path / "left.png", columns=slice(0, 4))
        save(tmp_path / "right.png", columns=slice(0, 4), size=(8, 8))
        with pytest.raises(
            InputError, match=r"right.png: has the shape \(8, 8\), the mask of the left lung \(24, 30\)"
        ):
            join_lungs(tmp_path / "joined.png", left=tmp_path / "left.png", right=tmp_path / "right.png")

    def test_release_with_both_sets(self, tmp_path):
        root = tmp_path / "data" / "Lung Segmentation"
        for number, name in enumerate(("CHNCXR_0001_0", "MCUCXR_0002_1", "CHNCXR_0003_1")):
            save(root / "CXR_png" / f"{name}.png", number)
        save(root / "test" / "CHNCXR_0003_1.png", 2)
        save(root / "masks" / "CHNCXR_0001_0_mask.png", columns=slice(3, 9))
        save(root / "masks" / "MCUCXR_0002_1.png", columns=slice(3, 9))
        found, left = look(tmp_path / "data", "nlm_cxr_lungs")
        assert {item.path.stem: item.label.name for item in found} == {
            "CHNCXR_0001_0": "CHNCXR_0001_0_mask.png",
            "MCUCXR_0002_1": "MCUCXR_0002_1.png",
        }
        assert sorted(entry.reason for entry in left) == [
            "Lung Segmentation/CXR_png/CHNCXR_0003_1.png is the same image",
            "a radiograph without mask",
        ]


class TestWholeWay:
    def test_manifest_of_lungs(self, montgomery, tmp_path):
        built = build_dataset_manifest("montgomery-cxr-lungs", montgomery, tmp_path / "out" / "m.json", workers=1)
        assert built.manifest.counts == {"training": 8, "validation": 1, "testing": 1}
        manifest = read_manifest(built.path)
        assert [problem for problem in check_manifest(manifest) if problem.severity == "error"] == []
        assert all((manifest.root / item.label).is_file() for item in manifest.training)
        assert {item.body_part for split in SPLITS for item in manifest.items(split)} == {"chest"}

    def test_manifest_of_classes_never_holds_readings(self, china, tmp_path):
        built = build_dataset_manifest("china_set_cxr", china, tmp_path / "china.json", workers=1)
        assert sum(built.manifest.counts.values()) == 12
        assert {item.label for item in built.manifest.training} == {"normal", "tuberculosis"}
        assert "SECRET" not in built.path.read_text() and "45yrs" not in built.path.read_text()


@pytest.mark.parametrize("name", NAMES)
def test_recipes_are_those_for_people(name):
    root, file = Path(__file__).resolve().parents[3], f"{name}.yaml"
    shipped = root / "medcoss_components/data/recipes" / file
    assert shipped.read_bytes() == (root / "data_manifests/recipes" / file).read_bytes()
    recipe = dataset_recipe(name)
    assert (recipe.split_by, recipe.shares) == ("patients", (80, 10, 10)) and bool(recipe.regions) == ("lungs" in name)
