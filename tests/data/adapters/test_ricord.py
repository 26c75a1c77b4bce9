"""RICORD: two trees of DICOM files, several series per study, defects of series."""

from __future__ import annotations

import numpy as np
import pytest

from medcoss_components.data.adapters.ricord import find
from medcoss_components.data.dataset_building import build_dataset_manifest
from medcoss_components.data.manifest import check_manifest
from medcoss_components.data.modalities import get_modality
from medcoss_components.data.store import prepare_store
from medcoss_components.errors import InputError

from .miniatures import recipe_source
from .miniatures_ct import write_series

A, B = "MIDRC-RICORD-1A", "MIDRC-RICORD-1B"


@pytest.fixture
def root(tmp_path):
    """Two patients of each collection as the retriever lays them; the first has a coronal and a shorter series too."""
    root = tmp_path / "download"
    first, second = root / "manifest-1608266677008" / A, root / "manifest-1612365584013" / B
    write_series(first, f"{A}-419639-000082", slices=17)
    write_series(first, f"{A}-419639-000082", series=2, slices=16, name="AXIAL 5X5")
    write_series(
        first,
        f"{A}-419639-000082",
        series=3,
        slices=20,
        name="COR 3X3",
        ImageOrientationPatient=[1, 0, 0, 0, 0, -1],
        ImagePositionPatient=[0.0, 0.0, 0.0],
    )
    write_series(first, f"{A}-440808-000016")
    write_series(second, f"{B}-419639-000350")
    write_series(second, f"{B}-440808-000100")
    for folder in (first.parent, second.parent):
        (folder / "metadata.csv").write_text("Series UID,Collection\n")
        (folder / "LICENSE").write_text("CC BY-NC 4.0\n")
    return root


def source(root, **settings):
    return recipe_source("ricord", root, files_dir=root.parent / "m.files", **settings)


def look(root, **settings):
    return find(source(root, **settings))


class TestFind:
    def test_classes_patients_and_the_longest_axial_series(self, root):
        given = source(root)
        found, left = find(given)
        assert given.notes == [
            f"{A}: 2 studies, 1 with several series; taken: 2 axial; 0 studies without a usable one.",
            f"{B}: 2 studies, 0 with several series; taken: 2 axial; 0 studies without a usable one.",
        ]
        assert [(item.patient, item.label) for item in found] == [
            ("419639-000082", "positive"),
            ("440808-000016", "positive"),
            ("419639-000350", "negative"),
            ("440808-000100", "negative"),
        ]
        assert [item.size for item in found] == [(24, 20, 17), (24, 20, 16), (24, 20, 16), (24, 20, 16)]
        assert found[0].name.startswith(f"{A}/{A}-419639-000082/") and found[0].name.endswith("1.000000-CHEST-12341")
        assert len({item.name for item in found}) == 4
        assert len(left) == 2 and all(entry.where.startswith(f"{A}/{A}-419639-000082/") for entry in left)
        assert not (root.parent / "m.files").exists()

    def test_every_series(self, root):
        found, left = look(root, series="all")
        assert sum(item.label == "positive" for item in found) == 3 and len(found) == 5  # the coronal one is broken
        assert len(left) == 1

    def test_broken_series_make_room_for_the_next(self, root):
        folder = root / "manifest-1612365584013" / B
        write_series(folder, f"{B}-419639-000350", series=2, slices=30, missing=(9,))  # longer, but with a gap
        write_series(folder, f"{B}-419639-000350", study=2, slices=12)
        write_series(folder, f"{B}-999999-000001", slices=18, Modality="MR")
        scout = write_series(folder, f"{B}-440808-000100", series=5, slices=1, ImageType=["ORIGINAL", "LOCALIZER"])
        (scout / "1-002.dcm").write_bytes(b"\0" * 128 + b"DICM")
        (scout / "LICENSE").write_text("text")
        (scout / "notes.txt").write_text("text")
        found, left = look(root)
        assert len(found) == 4 and [item.size[2] for item in found if item.label == "negative"] == [16, 16]
        text = "\n".join(f"{entry.where}: {entry.reason}" for entry in left)
        assert "slices are missing" in text and "12 slices, the minimum is 16" in text
        assert "the DICOM modality is 'MR'" in text and "localizer" in text and "notes.txt: no DICOM file" in text
        assert "1-002.dcm" in text and "LICENSE" not in text

    def test_series_in_one_folder_are_linked_apart(self, root):
        study = next((root / "manifest-1608266677008" / A / f"{A}-440808-000016").iterdir())
        (series,) = study.iterdir()
        other = write_series(root / "elsewhere", f"{A}-440808-000016", series=7, slices=18)
        for file in other.iterdir():
            file.rename(series / f"other-{file.name}")
        found, _ = look(root)
        assert found[1].size == (24, 20, 18) and found[1].path.parent == root.parent / "m.files"

    def test_names_of_the_imaging_data_commons(self, root):
        (root / "manifest-1608266677008" / A).rename(root / "midrc_ricord_1a")
        (root / "manifest-1612365584013" / B).rename(root / "midrc_ricord_1b")
        assert len(look(root)[0]) == 4

    def test_a_tree_that_was_unpacked_into_a_folder_of_its_name(self, root):
        tree = root / "manifest-1608266677008" / A
        tree.rename(root / "tree")
        tree.mkdir()
        (root / "tree").rename(tree / A)
        (root / "__MACOSX" / A).mkdir(parents=True)
        assert len(look(root)[0]) == 4

    def test_wrong_layout_and_settings(self, root, tmp_path):
        with pytest.raises(InputError, match="none: no such folder"):
            look(tmp_path / "none")
        with pytest.raises(InputError, match=f"holds no folder {A}. RICORD is expected as two trees"):
            look(root / "manifest-1612365584013")
        (root / "midrc_ricord_1b").mkdir()
        with pytest.raises(InputError, match=f"2 folders are called {B}"):
            look(root)
        (root / "midrc_ricord_1b").rmdir()
        with pytest.raises(InputError, match="series: must be one of largest, all, got 'first'"):
            look(root, series="first")


def test_manifest_and_prepared_volume(root, tmp_path):
    write_series(root / "manifest-1612365584013" / B, f"{B}-440808-000016")  # the site's number stands in 1A too
    built = build_dataset_manifest("ricord", root, tmp_path / "ricord.json", workers=1, shares=(50, 0, 50))
    items = {item.label: [] for split in ("training", "testing") for item in built.manifest.items(split)}
    for split in ("training", "testing"):
        for item in built.manifest.items(split):
            items[item.label].append((split, item.group))
    assert {label: len(entries) for label, entries in items.items()} == {"positive": 2, "negative": 3}
    shared = {group for _, group in items["positive"]} & {group for _, group in items["negative"]}
    assert len(shared) == 1  # one person in both classes, and in one split
    assert "all has 3 items of negative, published are 120 (-117)." in built.notes
    assert not [problem for problem in check_manifest(built.path, workers=1) if problem.severity == "error"]
    store = prepare_store(
        manifest=built.path,
        modality=get_modality("ct", input_shape=(1, 8, 10, 12)),
        store_dir=tmp_path / "store",
        preparation={"depth": "whole", "fit": "pad"},
        workers=1,
        progress=False,
    )
    sample = store.gather(np.arange(len(store)))[0, 0]
    assert sample.shape == (8, 10, 12)
    assert sample[-1].mean() < sample[0].mean()  # files run from head (low values) to feet; z grows to the head
    assert (sample[:, :, -2].astype(int) - sample[:, :, 1] > 400).all()  # bright at the patient's left: high x
    assert abs(int(sample[0, 5, 1]) - (24 + 15 - 1024)) < 3
