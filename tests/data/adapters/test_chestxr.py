"""ChestXR in its publisher's layout: classes by folder, test images with and without labels, defects."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from medcoss_components.data.adapters.chestxr import find
from medcoss_components.data.adapters.dataset_recipe import dataset_recipe
from medcoss_components.data.dataset_building import build_dataset_manifest
from medcoss_components.data.manifest import check_manifest, read_manifest
from medcoss_components.data.modalities import get_modality
from medcoss_components.data.store import prepare_store
from medcoss_components.errors import InputError

from .miniatures import recipe_source

HEIGHT, WIDTH = 60, 100


def disc(number):
    """A bright disc of radius 15 on a dark ground that differs from picture to picture."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    inside = (rows - HEIGHT / 2 + 0.5) ** 2 + (columns - WIDTH / 2 + 0.5) ** 2 <= 15**2
    ground = np.random.default_rng(number).integers(0, 20, (HEIGHT, WIDTH))
    return np.where(inside, 230, ground).astype(np.uint8)


def save(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(disc(number)).save(path)


@pytest.fixture
def data(tmp_path):
    """Four training and two validation pictures per class, as the publisher names them."""
    root = tmp_path / "download" / "CXR_Covid-19_Challenge"
    names = {"covid": ("cov_{}.jpg", "cov_{}.png"), "normal": ("normal-{:04d}.jpg", "normal_{}.png")}
    names["pneumonia"] = ("pneumonia{:04d}.jpg", "pneu_{}.png")
    for place, (label, (train, validation)) in enumerate(names.items()):
        for number in range(4):
            save(root / "train" / label / train.format(number), 10 * place + number)
        for number in range(2):
            save(root / "validation" / label / validation.format(number), 100 + 10 * place + number)
    return root


def look(root, **settings):
    source = recipe_source("chestxr", root, **settings)
    found, left = find(source)
    said = "The images of the publisher's validation folder are in the testing split."
    in_testing = any(item.split == "testing" and item.name.startswith("validation/") for item in found)
    assert source.notes == ([said] if in_testing else [])
    return found, left


def splits(found):
    return {split: sum(item.split == split for item in found) for split in ("training", "validation", "testing")}


class TestFind:
    def test_labels_sizes_and_splits(self, data):
        found, left = look(data.parent)  # the folder above works as well
        assert left == [] and splits(found) == {"training": 12, "validation": 0, "testing": 6}
        first = next(item for item in found if item.name == "train/covid/cov_0")
        assert (first.label, first.split, first.size, first.patient) == ("covid", "training", (WIDTH, HEIGHT), "")
        assert {item.label for item in found} == set(dataset_recipe("chestxr").classes)

    def test_role_of_the_validation_folder(self, data):
        assert splits(look(data, validation_as="validation")[0])["validation"] == 6
        save(data / "test" / "covid" / "a.png", 300)
        assert splits(look(data)[0]) == {"training": 12, "validation": 6, "testing": 1}
        assert splits(look(data, validation_as="testing")[0])["testing"] == 7
        with pytest.raises(InputError, match="validation_as must be one of auto, validation, testing, got 'none'"):
            look(data, validation_as="none")

    def test_labels_of_the_test_images_from_a_table(self, data):
        for number in range(3):
            save(data / "test_set" / f"{number}.png", 300 + number)
        _, left = look(data)
        assert [entry.where for entry in left] == [f"test_set/{number}.png" for number in range(3)]
        assert "--set test_labels=FILE" in left[0].reason
        (data / "labels.csv").write_text("name,class\n0.png,1\n1,pneumonia\n\ngone.png,0.0\n")
        found, left = look(data, test_labels="labels.csv")
        labels = {item.name: item.label for item in found if item.split == "testing"}
        assert labels == {"test_set/0": "covid", "test_set/1": "pneumonia"} and splits(found)["validation"] == 6
        assert [entry.where for entry in left] == ["test_set/2.png", "labels.csv line 5"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("a.png,0\nb.png,3\n", "line 2: the second column must be one of covid, normal, pneumonia, 0, 1, 2"),
            ("a.png,0\na.png,1\n", "lines 1 and 2 give one image two classes"),
        ],
    )
    def test_bad_tables(self, data, text, message):
        (data / "labels.csv").write_text(text)
        with pytest.raises(InputError, match=message):
            look(data, test_labels="labels.csv")

    def test_bad_numbers_of_classes_and_missing_table(self, data):
        with pytest.raises(InputError, match=r"labels.csv: no such file"):
            look(data, test_labels="labels.csv")
        (data / "labels.csv").write_text("a,0\n")
        with pytest.raises(InputError, match=r"test_classes must list covid, normal, pneumonia .* got \['a'\]"):
            look(data, test_labels="labels.csv", test_classes=["a"])

    def test_defects_are_left_out(self, data):
        for name in ("README.md", "made.json", "made.build.json"):
            (data / name).write_text("x")
        (data / "train" / "covid" / "notes.txt").write_text("x")
        (data / "train" / "covid" / "cov_9.jpg").write_bytes(b"")
        (data / "train" / "normal" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
        save(data / "train" / "other" / "a.png", 400)
        save(data / "extra" / "a.png", 401)
        found, left = look(data)
        reasons = {entry.where: entry.reason for entry in left}
        assert len(found) == 18 and len(reasons) == 5
        assert reasons["train/covid/notes.txt"] == "files ending in .txt are not read here"
        assert reasons["train/other/a.png"].startswith("not in a folder of one of the classes")
        assert reasons["extra/a.png"].startswith("not in one of the folders train")
        assert reasons["train/covid/cov_9.jpg"].startswith("cannot be read")
        assert reasons["train/normal/broken.jpg"].startswith("cannot be read")

    def test_another_layout(self, tmp_path):
        save(tmp_path / "train" / "a.png", 0)
        with pytest.raises(InputError, match="holds no train, validation"):
            look(tmp_path)


class TestWholeWay:
    def test_manifest_and_store(self, data, tmp_path):
        save(data / "train" / "covid" / "again.png", 0)
        copies = [data / "train" / "normal" / "twice.png", data / "validation" / "covid" / "twice.png"]
        for path in copies:
            save(path, 500)  # one content under two classes
        save(data / "validation" / "normal" / "again.png", 13)
        save(data / "train" / "normal" / "again.png", 13)  # equal, and lossless as its copy
        built = build_dataset_manifest("chestxr", data, tmp_path / "chestxr.json", workers=1)
        reasons = {entry.where: entry.reason for entry in built.left_out}
        assert reasons["train/normal/twice"] == reasons["validation/covid/twice"]
        assert reasons["train/normal/again"].startswith("a copy of validation/normal/again")
        assert built.manifest.counts == {"training": 13, "validation": 0, "testing": 7}
        assert "The images of the publisher's validation folder are in the testing split." in built.notes
        assert any("training has 13 items, published are 17955" in note for note in built.notes)
        manifest = read_manifest(built.path)
        assert [problem for problem in check_manifest(manifest) if problem.severity == "error"] == []
        assert {item.label for item in manifest.training} == {"covid", "normal", "pneumonia"}

    def test_a_disc_stays_round(self, data, tmp_path):
        built = build_dataset_manifest("chestxr", data, tmp_path / "chestxr.json", workers=1)
        modality = get_modality("xray", input_shape=(3, 48, 48))
        store = prepare_store(
            manifest=built.path, store_dir=tmp_path / "store", modality=modality, workers=1, progress=False
        )
        (sample,) = store.gather([0])
        assert sample.shape == (1, 48, 48) and sample.dtype == np.uint8
        inside = sample[0] > 128
        heights, widths = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        expected = 30 * 48 / HEIGHT  # the shorter side became 48
        assert abs(len(heights) - len(widths)) <= 1 and abs(len(heights) - expected) <= 1
        assert abs(float(heights.mean()) - 23.5) <= 0.5 and abs(float(widths.mean()) - 23.5) <= 0.5
