"""Published data sets: recipes, splits without shared patients, counts against the published ones."""

from __future__ import annotations

import json

import numpy as np
import pytest

from medcoss_components.data.adapters.dataset_recipe import (
    DatasetRecipe,
    dataset_recipe,
    read_dataset_recipe,
    shipped_datasets,
)
from medcoss_components.data.adapters.findings import DatasetSource, Found, LeftOut
from medcoss_components.data.dataset_building import build_dataset_manifest, is_like
from medcoss_components.data.manifest import SPLITS, read_manifest
from medcoss_components.data.modalities import get_modality
from medcoss_components.data.writers import write_picture
from medcoss_components.errors import InputError

TEXTS = ("name", "title", "description", "source", "access", "licence", "citation", "attribution", "layout", "groups")
FIELDS = {key: f"some {key}" for key in TEXTS} | {
    "name": "tiny",
    "modality": "xray",
    "version": "1",
    "task": "classification",
    "bundle": "chest_xray_classification",
    "classes": ["no", "yes"],
    "intensity_unit": "a.u.",
    "split": "some",
    "adapter": "medcoss_components.data.adapters.tiny",
    "settings": {"odd": True},
    "settings_help": {"odd": "take odd ones"},
    "expected": {"training": {"items": 3, "labels": {"no": 2, "yes": 2}}, "testing": {"items": 2}},
    "expected_source": "made up",
}
ROWS = [  # patient, label, split
    ("a", "no", "training"),
    ("a", "yes", "training"),
    ("b", "no", "training"),
    ("c", "yes", "training"),
    ("c", "no", "testing"),
    ("d", "yes", "testing"),
    ("b", "yes", "validation"),
    ("e", "no", ""),
]


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A recipe whose adapter finds a picture per row, and the source that it was given."""
    given = []

    def find(source: DatasetSource):
        given.append(source)
        found = []
        for number, (patient, label, split) in enumerate(ROWS):
            path = tmp_path / "root" / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            write_picture(path, np.random.default_rng(number).integers(0, 255, (20, 24)).astype(np.uint8))
            found.append(Found(name=str(number), path=path, patient=patient, label=label, split=split, files=(path,)))
        return found, [LeftOut("readme", "nothing to read")]

    monkeypatch.setattr(DatasetRecipe, "load_adapter", lambda self: find)
    return DatasetRecipe.from_dict(FIELDS), given


def places(manifest):
    """Number of the picture -> split."""
    return {int(item.image.stem): split for split in SPLITS for item in manifest.items(split)}


def test_published_splits_keep_a_patient_in_the_last_one(tiny, tmp_path):
    recipe, given = tiny
    built = build_dataset_manifest(recipe, tmp_path / "root", tmp_path / "tiny.json", workers=3)
    # patient c stays in testing (row 3 goes), patient b in validation (row 2 goes), row 7 has no split
    expected = {0: "training", 1: "training", 4: "testing", 5: "testing", 6: "validation"}
    assert places(read_manifest(tmp_path / "tiny.json")) == expected
    reasons = {entry.where: entry.reason for entry in built.left_out}
    assert reasons["3"].endswith("stands in the testing split of the publisher")
    assert reasons["2"].endswith("stands in the validation split of the publisher")
    assert reasons["7"] == "the publisher puts it into no split" and reasons["readme"] == "nothing to read"
    assert "training has 2 items, published are 3 (-1)." in built.notes
    assert "training has 1 items of no, published are 2 (-1)." in built.notes
    assert not any("testing has" in note for note in built.notes)
    source = given[0]
    assert source.files_dir == tmp_path / "tiny.files" and source.settings == {"odd": True} and source.workers == 3
    record = json.loads((tmp_path / "tiny.build.json").read_text())
    assert record["dataset"] == "tiny" and record["split_by"] == "published" and record["settings"] == {"odd": True}


def test_header_says_what_the_recipe_says(tiny, tmp_path):
    recipe, _ = tiny
    build_dataset_manifest(recipe, tmp_path, tmp_path / "tiny.json")
    manifest = read_manifest(tmp_path / "tiny.json")
    assert (manifest.name, manifest.licence, manifest.attribution) == ("tiny", "some licence", "some attribution")


def test_anew_by_patients(tiny, tmp_path):
    recipe, _ = tiny
    built = build_dataset_manifest(
        recipe, tmp_path, tmp_path / "tiny.json", split_by="patients", shares=(50, 0, 50), settings={"odd": False}
    )
    groups = {split: {item.group for item in built.manifest.items(split)} for split in SPLITS}
    assert sum(built.manifest.counts.values()) == 8 and not groups["training"] & groups["testing"]
    assert groups["training"] and groups["testing"] and not groups["validation"]
    assert not any("published are" in note for note in built.notes)  # other settings are not comparable


def test_published_counts_of_a_new_split_are_their_sums(tiny, tmp_path):
    recipe, _ = tiny
    built = build_dataset_manifest(recipe, tmp_path, tmp_path / "tiny.json", split_by="patients", shares=(50, 0, 50))
    assert [note for note in built.notes if "published are" in note] == [
        "all has 8 items, published are 5 (+3).",
        "all has 4 items of no, published are 2 (+2).",
        "all has 4 items of yes, published are 2 (+2).",
    ]


def test_as_published_counts_shared_patients_apart(tiny, tmp_path):
    recipe, _ = tiny
    built = build_dataset_manifest(recipe, tmp_path, tmp_path / "tiny.json", split_by="as_published")
    assert built.manifest.counts == {"training": 4, "validation": 1, "testing": 2}
    assert any(note.startswith("2 patients stand in several") for note in built.notes)
    groups = [{item.group for item in built.manifest.items(split)} for split in SPLITS]
    assert not groups[0] & groups[1] and not groups[0] & groups[2]


def test_copies_are_dropped_and_masks_are_relative(tiny, tmp_path, monkeypatch):
    recipe, _ = tiny
    pictures = [tmp_path / "root" / name for name in ("a.png", "b.png", "mask.png")]
    (tmp_path / "root").mkdir()
    for path in pictures:
        write_picture(path, np.full((20, 24), 7, np.uint8))
    mask = pictures[2]
    found = [Found(name=path.stem, path=path, label=mask, split="training", files=(path,)) for path in pictures[:2]]
    monkeypatch.setattr(DatasetRecipe, "load_adapter", lambda self: lambda source: (found, []))
    fields = FIELDS | {"task": "segmentation", "classes": [], "regions": {"lung": "any"}, "expected": {}}
    built = build_dataset_manifest(DatasetRecipe.from_dict(fields), tmp_path, tmp_path / "out" / "tiny.json")
    assert [item.label for item in built.manifest.training] == ["../root/mask.png"]
    assert [entry.reason for entry in built.left_out] == ["a copy of a"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"split_by": "sites"}, "split_by: must be one of published, patients, as_published, got 'sites'"),
        ({"settings": {"even": 1}}, "has no 'even'; known: odd"),
        ({"settings": {"odd": "no"}}, "settings: odd must be of the kind of its default True, got 'no'"),
    ],
)
def test_wrong_arguments(tiny, tmp_path, change, words):
    with pytest.raises(InputError, match=words):
        build_dataset_manifest(tiny[0], tmp_path, tmp_path / "tiny.json", **change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": "sorting"}, "task must be one of .* got 'sorting'"),
        ({"split_by": "site"}, "split_by must be one of .* got 'site'"),
        ({"duplicates": "refuse"}, "duplicates must be one of drop, keep, got 'refuse'"),
        ({"classes": []}, "a classification has classes"),
        ({"categories": ["box"]}, "a detection has categories.* got task 'classification' with"),
        ({"task": "detection"}, "got task 'detection' with classes .*, categories none"),
        ({"task": "pretraining"}, "pre-training none of them; got task 'pretraining'"),
        ({"settings_help": {}}, r"same keys; differing: \['odd'\]"),
        ({"expected": {"train": {"items": 1}}}, r"expected knows .* got \['train'\]"),
        ({"modality": "sonar"}, "'sonar' is not registered"),
        ({"colour": "red"}, "unexpected keyword argument 'colour'"),
    ],
)
def test_wrong_recipes(change, words):
    with pytest.raises(InputError, match=words):
        DatasetRecipe.from_dict(FIELDS | change)


def test_adapters_come_from_the_package_only():
    with pytest.raises(InputError, match="adapter must start with"):
        DatasetRecipe.from_dict(FIELDS | {"adapter": "os.path"}).load_adapter()
    with pytest.raises(InputError, match="no adapter module"):
        DatasetRecipe.from_dict(FIELDS).load_adapter()


def test_unknown_data_sets_and_files(tmp_path):
    with pytest.raises(InputError, match="there is no recipe 'mnist'; there are"):
        dataset_recipe("mnist")
    with pytest.raises(InputError, match="no such recipe file"):
        read_dataset_recipe(tmp_path / "x.yaml")


@pytest.mark.parametrize("name", list(shipped_datasets()))
def test_shipped_recipes(name):
    recipe = shipped_datasets()[name]
    assert recipe.name == name and callable(recipe.load_adapter())
    assert dataset_recipe(name.replace("_", "-")) == recipe


def test_locate_looks_two_levels_deep(tmp_path):
    def locate(root, *names):
        return DatasetSource(root=root, modality=get_modality("ct"), files_dir=tmp_path / "x").locate(*names)

    (tmp_path / "data" / "set" / "train").mkdir(parents=True)
    for root in (tmp_path, tmp_path / "data", tmp_path / "data" / "set"):
        assert locate(root, "train") == tmp_path / "data" / "set"
    with pytest.raises(InputError, match="holds no train, test"):
        locate(tmp_path, "train", "test")
    (tmp_path / "data" / "other" / "train").mkdir(parents=True)
    with pytest.raises(InputError, match="2 folders hold train"):
        locate(tmp_path, "train")
    with pytest.raises(InputError, match="no such folder"):
        locate(tmp_path / "nowhere", "train")


@pytest.mark.parametrize(
    ("default", "fitting", "others"),
    [
        (3, [0, 4], ["3", 2.5, True, None]),
        (0.5, [1, 0.25, None], ["x", True, [1]]),
        ("a", ["b", None], [1, ["a"], False]),
        (["a"], [["b", "c"], "b", ()], [1, None, {"a": 1}]),
        (True, [False], ["no", 0, None]),
        (None, [1, "a", ["a"], None], []),
    ],
)
def test_settings_are_of_the_kind_of_their_defaults(default, fitting, others):
    assert [value for value in (*fitting, *others) if is_like(value, default)] == fitting
