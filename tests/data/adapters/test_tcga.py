"""TCGA: folders of tiles and whole slides, patients from barcodes, and what can be wrong with them."""

from __future__ import annotations

import shutil
import sys

import numpy as np
import pytest

from medcoss_components.data.adapters.tcga import find
from medcoss_components.data.dataset_building import build_dataset_manifest
from medcoss_components.data.manifest import SPLITS, check_manifest
from medcoss_components.data.store import prepare_store
from medcoss_components.errors import InputError

from .miniatures import recipe_source
from .miniatures_pathology import RED, WHITE, cut_short, disc, extent, save, tile, write_slide

FIRST, SECOND = "TCGA-A2-A0T2-01Z-00-DX1", "TCGA-A2-A0T2-01A-01-TS1"
OTHER = "TCGA-09-0364-01Z-00-DX1"


def stained(size=(128, 256)):
    """(H, W, 3): the left half is tissue."""
    picture = np.full((*size, 3), WHITE, np.uint8)
    picture[:, : size[1] // 2] = RED
    return picture


@pytest.fixture
def root(tmp_path):
    """Two cohorts: two slides of one patient and one of another as tiles, another slide as it was downloaded."""
    root, number = tmp_path / "tcga", 0
    for folder, count in ((f"TCGA-BRCA/{FIRST}", 4), (f"TCGA-BRCA/{SECOND}", 2), (f"TCGA-OV/{OTHER}", 3)):
        for index in range(count):
            number += 1
            suffix = (".png", ".jpg", ".jpeg")[index % 3]
            save(root / folder / f"tile_{index}{suffix}", tile(RED, size=(32, 48), number=5 * number))
    download = root / "TCGA-OV" / "0a1b2c"
    write_slide(download / "TCGA-13-0720-01A-01-BS1.5d9e.svs", stained(), levels=1)
    (download / "annotations.txt").write_text("x")
    return root


SMALL = {"size": 32, "microns_per_pixel": 0.5, "picture": "png"}


def look(root, **settings):
    found, left = find(recipe_source("tcga", root, files_dir=root / "m.files", **(SMALL | settings)))
    return {item.name: item for item in found}, {entry.where: entry.reason for entry in left}


def test_tiles_and_slides_of_patients(root):
    found, left = look(root)
    assert left == {}
    patients = {}
    for item in found.values():
        patients[item.patient] = patients.get(item.patient, 0) + 1
    # the slide's tissue is 128 x 128 pixels of 0.25 um: 2 x 2 tiles of 32 pixels of 0.5 um
    assert patients == {"TCGA-A2-A0T2": 6, "TCGA-09-0364": 3, "TCGA-13-0720": 4}
    assert found[f"TCGA-BRCA/{FIRST}/tile_0"].size == (48, 32)
    made = found["TCGA-OV/0a1b2c/TCGA-13-0720-01A-01-BS1.5d9e/r0001c0000"]
    assert made.size == (32, 32) and made.path.parent.parent == root / "m.files"
    assert "TCGA" not in made.path.parent.name
    assert look(root)[0] == found  # what was made is no input of the next call, and is not made again


def test_at_most_so_many_tiles_of_a_slide(root):
    found, left = look(root, at_most=3)
    assert len(found) == 3 + 2 + 3 + 3
    assert left == {f"TCGA-BRCA/{FIRST} (4 tiles)": "1 tiles above the 3 of a slide (at_most)"}
    seeds = [frozenset(look(root, at_most=2, seed=seed)[0]) for seed in range(4)]
    assert len(set(seeds)) > 1 and look(root, at_most=2, seed=3)[0].keys() == seeds[3]


def test_cohorts_types_of_slides_and_slides_at_all(root):
    assert len(look(root, cohorts="TCGA-BRCA")[0]) == 6
    found, left = look(root, slide_types=["dx"])
    assert len(found) == 7 and len(left) == 2 and all("was not asked for (DX)" in why for why in left.values())
    found, left = look(root, slides=False)
    assert len(found) == 9 and [*left.values()] == ["a whole slide (--set slides=true cuts it)"]


def test_what_cannot_be_used_is_left_out_and_named(root):
    cut_short(root / "TCGA-BRCA" / SECOND / "tile_0.png", 20)
    save(root / "TCGA-BRCA" / "unknown" / "a.png", tile(RED))
    save(root / "TCGA-BRCA" / FIRST / "TCGA-OR-A5J1" / "a.png", tile(RED))
    (root / "TCGA-BRCA" / FIRST / "notes.docx").write_text("x")
    (root / "MANIFEST.txt").write_text("x")
    (root / "m.json").write_text("{}")
    empty = write_slide(root / "TCGA-OV" / "1" / "TCGA-13-0721-01A-01-BS1.svs", np.full((128, 128, 3), WHITE, np.uint8))
    broken = root / "TCGA-OV" / "2" / "TCGA-13-0722-01A-01-BS1.svs"
    broken.parent.mkdir()
    broken.write_bytes(empty.read_bytes()[:500])
    write_slide(root / "TCGA-OV" / "3" / f"{OTHER}.svs", stained())
    write_slide(root / "TCGA-OV" / "4" / "no-barcode.svs", stained())
    found, left = look(root)
    assert len(found) == 13 - 1 and len(left) == 8
    assert "truncated" in left[f"TCGA-BRCA/{SECOND}/tile_0"]
    assert "no barcode" in left["TCGA-BRCA/unknown (1 tiles)"]
    assert left[f"TCGA-BRCA/{FIRST}/TCGA-OR-A5J1 (1 tiles)"] == "its path has the barcodes of several patients"
    assert "neither a tile" in left[f"TCGA-BRCA/{FIRST}/notes.docx"]
    assert left[f"TCGA-OV/3/{OTHER}.svs"] == "a folder holds its tiles"
    assert "no barcode" in left["TCGA-OV/4/no-barcode.svs"]
    assert left["TCGA-OV/1/TCGA-13-0721-01A-01-BS1.svs"].startswith("none of its 4 tiles is tissue")
    assert left["TCGA-OV/2/TCGA-13-0722-01A-01-BS1.svs"].startswith("cannot be read, it is truncated")
    assert len(list((root / "m.files").iterdir())) == 1  # nothing is left of what failed


def test_slides_without_barcode_can_count_as_patients(root):
    save(root / "TCGA-BRCA" / "unknown" / "a.png", tile(RED))
    found, left = look(root, unknown_patients="folder")
    assert left == {} and found["TCGA-BRCA/unknown/a"].patient == "folder TCGA-BRCA/unknown"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unknown_patients": "keep"}, "must be one of leave_out, folder, got 'keep'"),
        ({"cohorts": ["TCGA-BRCA", "TCGA-UVM"]}, "holds no folder TCGA-UVM"),
        ({"at_most": -1}, "at_most: must be a whole number from 1, got -1"),
    ],
)
def test_settings_that_do_not_fit(root, settings, message):
    with pytest.raises(InputError, match=message):
        look(root, **settings)


def test_another_layout_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no folders of tiles and no \.svs files"):
        look(tmp_path / "empty")
    with pytest.raises(InputError, match="no such folder"):
        look(tmp_path / "nowhere")


def test_slides_without_openslide(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "openslide", None)
    with pytest.raises(InputError, match="medcoss-components"):
        look(root)
    assert len(look(root, slides=False)[0]) == 9


def test_from_tiles_and_slides_to_a_store(root, tmp_path):
    picture, _ = disc((60, 100), radius=20, centre=(30, 50))
    save(root / "TCGA-UVM" / "TCGA-V4-A9E5-01Z-00-DX1" / "disc.png", picture)
    shutil.copy(root / "TCGA-UVM/TCGA-V4-A9E5-01Z-00-DX1/disc.png", root / "TCGA-OV" / OTHER / "again.png")
    built = build_dataset_manifest("tcga", root, tmp_path / "tcga.json", shares=(60, 40, 0), settings=SMALL, workers=1)
    assert sum(built.manifest.counts.values()) == 15 - 4  # the slide's four tiles are equal, and so are two discs
    assert {entry.reason.split(" of ")[0] for entry in built.left_out} == {"a copy"}
    groups = [{item.group for item in built.manifest.items(split)} for split in SPLITS]
    assert groups[0] and groups[1] and not groups[2] and not groups[0] & groups[1]
    assert not [problem for problem in check_manifest(built.path) if problem.severity == "error"]
    for split in ("training", "validation"):
        store = prepare_store(manifest=built.path, split=split, store_dir=tmp_path / "store", workers=1, progress=False)
        items = built.manifest.items(split)
        for sample, item in zip(store.gather(range(len(store))), items, strict=True):
            assert sample.shape == (3, 224, 224)
            middle = sample[:, 112, 112].astype(int)
            assert np.abs(middle - RED).max() <= 3 and middle[0] > middle[2]
            if item.image.name in ("disc.png", "again.png"):
                height, width = extent(sample[2] < 150)
                assert abs(height - width) <= 1 and abs(height - 41 * 224 / 60) <= 2


def test_tiles_that_differ_in_their_suffix_alone_are_two_items(root):
    save(root / "TCGA-OV" / OTHER / "tile_0.jpg", tile(RED, size=(32, 48), number=77))
    built = build_dataset_manifest("tcga", root, root / "m.json", settings={"slides": False}, workers=1)
    ids = [item.id for split in SPLITS for item in built.manifest.items(split)]
    assert len(ids) == len(set(ids)) == 10


@pytest.mark.parametrize("settings", [{"cohorts": 5}, {"slide_types": {"DX": 1}}])
def test_names_are_a_list_of_texts(root, settings):
    with pytest.raises(InputError, match="must be a list of texts"):
        look(root, **settings)


def test_slides_that_are_linked_in(root, tmp_path):
    (root / "TCGA-OV" / OTHER).rename(tmp_path / "elsewhere")
    (root / "TCGA-OV" / OTHER).symlink_to(tmp_path / "elsewhere")
    assert len(look(root, slides=False)[0]) == 9
