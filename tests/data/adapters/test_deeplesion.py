"""DeepLesion: runs of slices become volumes with the table's voxel size; missing, empty and doubled slices."""

from __future__ import annotations

import json

import numpy as np
import pytest

from medcoss_components.data.adapters.deeplesion import find, read_table, runs
from medcoss_components.data.dataset_building import build_dataset_manifest
from medcoss_components.data.manifest import check_manifest
from medcoss_components.data.modalities import get_modality
from medcoss_components.data.readers import read_volume
from medcoss_components.data.store import prepare_store
from medcoss_components.errors import InputError

from .miniatures import recipe_source
from .miniatures_ct import COLUMNS, lesion_row, lesion_slices, write_table


@pytest.fixture
def root(tmp_path):
    """Three patients; the first has two series, one of them with two runs around two key slices."""
    root = tmp_path / "DeepLesion"
    write_table(
        root,
        [
            lesion_row("000001_01_01", key=109, span=(103, 112)),
            lesion_row("000001_01_01", key=110, span=(103, 112)),
            lesion_row("000001_01_01", key=204, span=(200, 209)),
            lesion_row("000001_02_01", key=13, span=(8, 19), spacing="0.75, 0.625, 1.25"),
            lesion_row("000002_01_01", key=12, span=(8, 17), split=2),
            lesion_row("000003_01_01", key=12, span=(8, 17), split=3),
        ],
    )
    lesion_slices(root / "Images_png" / "000001_01_01", [*range(103, 113), *range(200, 210)])
    lesion_slices(root / "Images_png" / "000001_02_01", range(8, 20))
    for patient in (2, 3):
        lesion_slices(root / "Images_png" / f"{patient:06d}_01_01", range(8, 18), shape=(20, 17 + patient))
    return root


def source(root, **settings):
    return recipe_source("deeplesion", root, files_dir=root.parent / "m.files", **settings)


def reasons(left):
    return {entry.where: entry.reason for entry in left}


class TestFind:
    def test_runs_become_volumes(self, root):
        look = source(root.parent)  # the folder above works as well
        found, left = find(look)
        assert left == []
        assert [(item.name, item.patient, item.split, item.size) for item in found] == [
            ("000001_01_01_103-112", "000001", "training", (18, 20, 10)),
            ("000001_01_01_200-209", "000001", "training", (18, 20, 10)),
            ("000001_02_01_008-019", "000001", "training", (18, 20, 12)),
            ("000002_01_01_008-017", "000002", "validation", (19, 20, 10)),
            ("000003_01_01_008-017", "000003", "testing", (20, 20, 10)),
        ]
        assert found[0].path.parent == look.files_dir and "000001" not in found[0].path.name
        assert len(found[0].files) == 10 and found[0].files[0].name == "103.png"

    def test_values_places_and_spacing(self, root):
        found, _ = find(source(root))
        volume = read_volume(found[2].path)
        assert (volume.unit, volume.spacing, volume.array.dtype) == ("HU", (1.25, 0.625, 0.75), np.int16)
        assert volume.array[:, 5, 4].tolist() == list(range(19, 7, -1))  # slice 19 lies nearest the feet
        assert (volume.array[:, 2:9, 1:8] > 0).all() and (volume.array[:, 9:] == -1000).all()  # in front, at the right

    def test_a_second_call_makes_nothing_new(self, root):
        paths = [item.path for item in find(source(root))[0]]
        times = [path.stat().st_mtime_ns for path in paths]
        assert [item.path for item in find(source(root))[0]] == paths
        assert [path.stat().st_mtime_ns for path in paths] == times
        content = paths[1].read_text()
        paths[1].write_text("")  # as after a power cut
        (paths[1].parent / ".a.slices.json.7.partial").write_text("")
        find(source(root))
        assert paths[1].read_text() == content and paths[0].stat().st_mtime_ns == times[0]
        lines = (paths[0].parent / "volumes.csv").read_text().splitlines()
        assert lines[:2] == ["descriptor,volume", f"{paths[0].name},000001_01_01_103-112"]
        assert len(list(paths[0].parent.iterdir())) == len(paths) + 1

    def test_another_voxel_size_makes_another_descriptor(self, root):
        before = {item.name: item.path for item in find(source(root))[0]}
        table = root / "DL_info.csv"
        table.write_text(table.read_text().replace("0.75, 0.625, 1.25", "0.75, 0.625, 2.5"))
        after = {item.name: item.path for item in find(source(root))[0]}
        assert [name for name in before if before[name] != after[name]] == ["000001_02_01_008-019"]

    def test_archives_unpacked_into_folders_of_their_own(self, root):
        for number in (1, 2):
            (root / f"Images_png_{number:02d}" / "Images_png").mkdir(parents=True)
        for number, name in ((1, "000001_01_01"), (1, "000001_02_01"), (2, "000002_01_01"), (2, "000003_01_01")):
            (root / "Images_png" / name).rename(root / f"Images_png_{number:02d}" / "Images_png" / name)
        lesion_slices(root / "Images_png_02" / "Images_png" / "000001_02_01", range(8, 20))
        found, left = find(source(root))
        assert len(found) == 5
        assert reasons(left) == {
            "Images_png_02/Images_png/000001_02_01": "Images_png_01/Images_png/000001_02_01 is the same series"
        }

    def test_defects_are_left_out(self, root):
        images = root / "Images_png"
        (images / "000001_01_01" / "108.png").unlink()  # 103-107 is too short, 109-112 too
        (images / "000001_01_01" / "205.png").write_bytes(b"")
        (images / "000001_02_01" / "020.jpg").write_bytes(b"x")
        (images / "000001_02_01" / "021.png").symlink_to("nowhere.png")
        for name in ("._008.png", "Thumbs.db", ".DS_Store"):
            (images / "000001_02_01" / name).write_bytes(b"x")
        (images / "000001_02_01" / "8.png").write_bytes((images / "000001_02_01" / "008.png").read_bytes())
        (images / "000002_01_01" / "008.png").write_bytes(b"no picture")
        lesion_slices(images / "000009_01_01", range(8, 18))
        lesion_slices(root / "Key_slices", range(4))
        (root / "Images_png_07.zip").write_bytes(b"x")
        (root / "DL_save_nifti.py").write_text("pass")
        (root / "FAQ.pdf").write_bytes(b"x")
        with open(root / "DL_info.csv", "a") as stream:
            stream.write(lesion_row("000004_01_01", key=5, span=(1, 12)) + "\n")
        found, left = find(source(root, minimum_slices=5))
        assert [item.name for item in found] == [
            "000001_01_01_103-107",
            "000001_01_01_200-204",
            "000001_02_01_008-019",
            "000003_01_01_008-017",
        ]
        why = reasons(left)
        assert [entry.reason for entry in left if entry.where == "Images_png/000001_01_01"] == [
            "2 slices that DL_info.csv lists are missing: 108, 205"
        ]
        assert why["000001_01_01_109-112"] == "4 slices, the minimum is 5"
        assert why["000001_01_01_206-209"] == "4 slices, the minimum is 5"
        assert why["Images_png/000001_01_01/205.png"] == "the file is empty"
        assert why["Images_png/000001_02_01/021.png"] == "a link that leads nowhere"
        assert not [where for where in why if where.endswith((".db", "/._008.png", ".DS_Store"))]
        assert why["Images_png/000001_02_01/020.jpg"].startswith("no slice")
        assert why["Images_png/000001_02_01/8.png"] == "another file has this slice number"
        assert why["000002_01_01_008-017"].startswith("008.png: cannot be read")
        assert why["Images_png/000009_01_01"] == "no usable row in DL_info.csv, so its voxel size is not known"
        assert why["000004_01_01"] == "named in DL_info.csv, but not there"
        assert why["Key_slices"] == "4 files: it lies in no folder of a series"
        assert why["Images_png_07.zip"] == "an archive; unpack it"
        assert why["DL_save_nifti.py"] == "it lies in no folder of a series" and "FAQ.pdf" not in why

    def test_rows_that_disagree(self, root):
        with open(root / "DL_info.csv", "a") as stream:
            stream.write(lesion_row("000001_01_01", key=205, span=(200, 209), spacing="0.8, 0.8, 1") + "\n")
        found, left = find(source(root))
        assert reasons(left) == {"000001_01_01_200-209": "the rows of DL_info.csv disagree on its voxel size"}
        assert found[0].name == "000001_01_01_103-112"  # the rows of this run agree

    def test_slices_that_no_row_spans_take_the_spacing_of_the_series(self, root):
        lesion_slices(root / "Images_png" / "000001_02_01", range(40, 50))
        found, _ = find(source(root))
        assert [read_volume(item.path).spacing[0] for item in found if item.name.startswith("000001_02")] == [
            1.25,
            1.25,
        ]

    @pytest.mark.parametrize("minimum", [0, 2.5, "8", True])
    def test_bad_setting(self, root, minimum):
        with pytest.raises(InputError, match="minimum_slices must be a whole number above 0"):
            find(source(root, minimum_slices=minimum))

    def test_wrong_layout(self, root, tmp_path):
        (root / "Images_png").rename(tmp_path / "elsewhere")
        with pytest.raises(InputError, match="holds no folder of a series. DeepLesion is expected as DL_info.csv"):
            find(source(root))
        (root / "DL_info.csv").unlink()
        with pytest.raises(InputError, match="holds no DL_info.csv"):
            find(source(root))


class TestTable:
    def test_bad_rows_are_named_by_number(self, tmp_path):
        good = lesion_row("000001_01_01", key=9, span=(1, 12))
        bad = [
            good.replace("000001_01_01_009.png", "secret.png"),
            good.replace('"1, 12"', '"12, 1"'),
            good.replace('"1, 12"', '"1"'),
            good.replace('"0.8, 0.8, 5"', '"0.8, 0.8, 0"'),
            good.replace('"0.8, 0.8, 5"', '"0.8, 0.8, nan"'),
            good[:-1] + "4",
            "000001_01_01_009.png",
        ]
        write_table(tmp_path, [good, *bad])
        rows, left = read_table(tmp_path / "DL_info.csv")
        assert list(rows) == ["000001_01_01"] and len(rows["000001_01_01"]) == 1
        assert [entry.where for entry in left] == [f"DL_info.csv row {number}" for number in range(3, 10)]
        assert "secret" not in str(left)

    def test_missing_columns(self, tmp_path):
        (tmp_path / "DL_info.csv").write_text(COLUMNS.replace("Spacing_mm_px_", "Spacing") + "\n" + "1," * 17 + "\n")
        with pytest.raises(InputError, match="DL_info.csv: no column Spacing_mm_px_. Take the table"):
            read_table(tmp_path / "DL_info.csv")
        (tmp_path / "DL_info.csv").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(InputError, match="DL_info.csv: line 1 is not UTF-8"):
            read_table(tmp_path / "DL_info.csv")


def test_runs():
    assert runs([]) == [] and runs([4]) == [[4]] and runs([1, 2, 5]) == [[1, 2], [5]]


class TestManifest:
    def test_patients_are_split_anew(self, root, tmp_path):
        built = build_dataset_manifest("deeplesion", root, tmp_path / "deeplesion.json", shares=(60, 40, 0), workers=1)
        groups = {split: {item.group for item in built.manifest.items(split)} for split in ("training", "validation")}
        assert sum(built.manifest.counts.values()) == 5 and len(groups["training"] | groups["validation"]) == 3
        assert not groups["training"] & groups["validation"]
        assert "all has 5 items, published are 20094 (-20089)." in built.notes
        inside = [build_dataset_manifest("deeplesion", root, root / "m.json", workers=1) for _ in range(2)]
        assert inside[0].manifest.hash == inside[1].manifest.hash and not inside[1].left_out  # nothing of the first
        assert not [problem for problem in check_manifest(built.path, workers=1) if problem.severity == "error"]

    def test_a_patient_in_two_published_lists(self, root, tmp_path):
        lesion_slices(root / "Images_png" / "000003_02_01", range(8, 18), shape=(20, 25))
        with open(root / "DL_info.csv", "a") as stream:
            stream.write(lesion_row("000003_02_01", key=9, span=(8, 17), split=1) + "\n")
        built = build_dataset_manifest("deeplesion", root, tmp_path / "m.json", split_by="published", workers=1)
        assert built.manifest.counts == {"training": 3, "validation": 1, "testing": 1}
        assert reasons(built.left_out) == {
            "000003_02_01_008-017": "its patient also stands in the testing split of the publisher"
        }

    def test_the_same_slices_under_two_series(self, root, tmp_path):
        lesion_slices(root / "Images_png" / "000001_03_01", range(8, 20))
        with open(root / "DL_info.csv", "a") as stream:
            stream.write(lesion_row("000001_03_01", key=9, span=(8, 19)) + "\n")
        built = build_dataset_manifest("deeplesion", root, tmp_path / "m.json", split_by="published", workers=1)
        assert "a copy of 000001_02_01_008-019" in reasons(built.left_out)["000001_03_01_008-019"]

    def test_prepared_samples_and_a_damaged_slice(self, root, tmp_path):
        built = build_dataset_manifest("deeplesion", root, tmp_path / "m.json", split_by="published", workers=1)
        damaged = root / "Images_png" / "000001_02_01" / "012.png"
        damaged.write_bytes(damaged.read_bytes()[:-40])
        errors = [problem for problem in check_manifest(built.path, workers=1) if problem.severity == "error"]
        assert [problem.rule for problem in errors] == ["unreadable-file"] and "012.png" in errors[0].message
        store = prepare_store(
            manifest=built.path,
            modality=get_modality("ct", input_shape=(1, 10, 20, 20)),
            store_dir=tmp_path / "store",
            max_bad_share=0.5,
            workers=1,
            progress=False,
        )
        report = json.loads(next((tmp_path / "store").rglob("report.json")).read_text())
        assert len(store) == 2 and "012.png" in json.dumps(report)
        for sample, last in zip(store.gather(np.arange(2)), (112, 209), strict=True):
            values = sample[0]
            inside = values > 0
            assert inside.sum() == 10 * 7 * 7 and values[~inside].max() <= -1000  # a square stays a square
            assert [plane[plane > 0].mean() for plane in values] == list(range(last, last - 10, -1))
