"""NCT-CRC-HE: folders of classes as the archives unpack, and what can be wrong with them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from medcoss_components.data.adapters.dataset_recipe import dataset_recipe
from medcoss_components.data.adapters.nct_crc_he import CLASSES, find
from medcoss_components.data.dataset_building import build_dataset_manifest
from medcoss_components.data.manifest import check_manifest
from medcoss_components.data.store import prepare_store
from medcoss_components.errors import InputError

from .miniatures import recipe_source
from .miniatures_pathology import cut_short, save, tile, write_nct

TRAINING, TESTING, PLAIN = "NCT-CRC-HE-100K", "CRC-VAL-HE-7K", "NCT-CRC-HE-100K-NONORM"


@pytest.fixture
def root(tmp_path):
    return write_nct(tmp_path / "crc")


def look(root, **settings):
    return find(recipe_source("nct_crc_he", root, files_dir=root / "manifest.files", **settings))


def test_every_tile_has_the_class_of_its_folder(root):
    found, left = look(root)
    assert left == [] and len(found) == 2 * 9 * 2
    assert {item.label for item in found} == set(CLASSES) == set(dataset_recipe("nct_crc_he").classes)
    assert all(item.path.parent.name == item.label and item.size == (224, 224) for item in found)
    assert {item.split for item in found if TESTING in item.name} == {"testing"}
    assert all(item.patient == "" for item in found)


def test_an_archive_that_was_unpacked_into_a_folder_of_its_name(root):
    (root / "new").mkdir()
    (root / TRAINING).rename(root / "new" / TRAINING)
    (root / "new").rename(root / TRAINING)
    assert len(look(root)[0]) == 36
    assert len(look(root.parent)[0]) == 36  # one level up


def test_the_set_without_normalisation_is_taken_when_asked_for(root):
    write_nct(root, per_class=1, folders=(PLAIN,))
    left = {entry.where: entry.reason for entry in look(root)[1]}
    assert list(left) == [PLAIN] and "--set training" in left[PLAIN]
    found, left = look(root, training=PLAIN)
    assert len(found) == 9 + 18 and [entry.where for entry in left] == [TRAINING]


def test_training_tiles_alone(root):
    shutil.rmtree(root / TESTING)
    assert {item.split for item in look(root, testing=None)[0]} == {"training"}


def test_what_is_no_tile_is_left_out_and_named(root):
    folder = root / TRAINING
    tiles = sorted((folder / "ADI").iterdir())
    cut_short(tiles[0], 60)
    save(folder / "ADI" / "ADI-PPPPPPPP.png", tile((1, 2, 3)))
    shutil.copy(tiles[1], folder / "BACK" / tiles[1].name)
    save(folder / "UNKNOWN" / "UNKNOWN-A.tif", tile((1, 2, 3)))
    (folder / "list.xlsx").write_text("x")
    (folder / "README.txt").write_text("x")
    (folder / "ADI" / "Thumbs.db").write_text("x")
    (folder / "ADI" / ".hidden").write_text("x")
    found, left = look(root)
    reasons = {entry.where: entry.reason for entry in left}
    assert len(found) == 35 and len(reasons) == 5
    assert "truncated" in reasons[f"{TRAINING}/ADI/{tiles[0].stem}"]
    assert "end in .tif" in reasons[f"{TRAINING}/ADI/ADI-PPPPPPPP.png"]
    assert "begin with BACK-" in reasons[f"{TRAINING}/BACK/{tiles[1].name}"]
    assert reasons[f"{TRAINING}/UNKNOWN"] == "no folder of a class"
    assert "beside the folders" in reasons[f"{TRAINING}/list.xlsx"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"training": None, "testing": None}, r"each must name a folder of its own, got \{\}"),
        ({"testing": TRAINING}, "each must name a folder of its own"),
        ({"training": "NCT-CRC-HE-100K-RENORM"}, "holds no NCT-CRC-HE-100K-RENORM"),
    ],
)
def test_settings_that_fit_no_folder(root, settings, message):
    with pytest.raises(InputError, match=message):
        look(root, **settings)


def test_another_layout_is_refused(root, tmp_path):
    shutil.rmtree(root / TRAINING)
    save(root / TRAINING / "tile.tif", tile((1, 2, 3)))
    with pytest.raises(InputError, match="none of the folders ADI, BACK"):
        look(root)
    with pytest.raises(InputError, match="holds no NCT-CRC-HE-100K, CRC-VAL-HE-7K"):
        look(root / TESTING)
    with pytest.raises(InputError, match="no such folder"):
        look(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["nct_crc_he", "glas", "tcga"])
def test_recipes_stand_in_the_repository_too_and_their_counts_add_up(name):
    here = Path(__file__).parents[3]
    shipped = here / "medcoss_components/data/recipes" / f"{name}.yaml"
    assert shipped.read_bytes() == (here / "data_manifests/recipes" / f"{name}.yaml").read_bytes()
    for counts in dataset_recipe(name).expected.values():
        assert sum(counts.get("labels", {"": counts["items"]}).values()) == counts["items"]


def test_from_the_folders_to_a_store(root, tmp_path):
    copies = sorted((root / TRAINING / "TUM").iterdir())
    shutil.copy(copies[0], root / TRAINING / "TUM" / "TUM-COPYCOPY.tif")
    built = build_dataset_manifest("nct_crc_he", root, tmp_path / "crc.json", workers=1)
    assert built.manifest.counts == {"training": 18, "validation": 0, "testing": 18}
    assert [entry.reason[:9] for entry in built.left_out] == ["a copy of"]
    assert any(note.startswith("training has 18 items, published are 100000") for note in built.notes)
    assert any("training has 2 items of TUM, published are 14317" in note for note in built.notes)
    problems = check_manifest(built.path)
    assert not [problem for problem in problems if problem.severity == "error"]
    assert len({item.group for item in built.manifest.training}) == 18  # no patients are known
    store = prepare_store(manifest=built.path, split="testing", store_dir=tmp_path / "store", workers=1, progress=False)
    samples = store.gather(range(18))
    assert samples.shape == (18, 3, 224, 224)
    for sample, item in zip(samples, built.manifest.testing, strict=True):
        colour = [200, 40, 20 * CLASSES.index(item.label)]
        assert (sample[:, :-8] == np.reshape(colour, (3, 1, 1))).all()  # red above blue


def test_what_lies_beside_the_folders_is_listed(root):
    write_nct(root / PLAIN, per_class=1, folders=(PLAIN,))  # nested as some archives unpack
    for name in (
        "NCT-CRC-HE-100K.zip",
        "notes.txt",
        "manifest.json",
        "manifest.files/1.png",
        "__MACOSX/a",
        "Thumbs.db",
    ):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"x")
    (root / "new").mkdir()
    (root / TRAINING).rename(root / "new" / TRAINING)
    (root / "new").rename(root / TRAINING)
    (root / TRAINING / "list.csv").write_bytes(b"x")
    found, left = look(root)
    assert len(found) == 36 and {entry.where: entry.reason for entry in left} == {
        f"{TRAINING}/list.csv": "not part of what is read",
        PLAIN: "tiles of another kind (--set training=... or testing=... takes them)",
        "NCT-CRC-HE-100K.zip": "an archive; unpack it",
        "notes.txt": "not part of what is read",
    }
