"""MIMIC-CXR-JPG in its publisher's layout: the tables say what there is, no image is opened."""

from __future__ import annotations

import csv
import gzip
import hashlib
import os

import numpy as np
import pytest
from PIL import Image

from medcoss_components.data.adapters import findings, mimic_cxr_jpg
from medcoss_components.data.adapters.findings import DatasetSource
from medcoss_components.data.adapters.mimic_cxr_jpg import CHECKSUMS, METADATA, SPLIT, find
from medcoss_components.data.dataset_building import build_dataset_manifest
from medcoss_components.data.manifest import check_manifest, read_manifest
from medcoss_components.data.modalities import get_modality
from medcoss_components.data.store import prepare_store
from medcoss_components.errors import InputError

COLUMNS = ["dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows", "Columns"]
VIEWS = ("PA", "LATERAL", "AP", "")
SIZE = (40, 24)  # width, height


def place(row):
    return f"p{row['subject_id'][:2]}/p{row['subject_id']}/s{row['study_id']}/{row['dicom_id']}.jpg"


def save(path, number):
    """A ramp from left to right, with noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ramp = np.broadcast_to(np.linspace(20, 220, SIZE[0]), SIZE[::-1])
    noise = np.random.default_rng(number).integers(0, 5, SIZE[::-1])
    Image.fromarray((ramp + noise).astype(np.uint8)).save(path, quality=95)


class Data:
    """Twelve images of six subjects, two each, in the splits train (4 subjects), validate and test (1 each)."""

    def __init__(self, root):
        self.root, self.rows, self.splits = root, [], []
        for number in range(12):
            subject = ("10000032", "10000980", "11000566", "11001469", "12000123", "19999999")[number // 2]
            row = {"dicom_id": f"{number:08x}-aaaa", "subject_id": subject, "study_id": f"5041426{number // 2}"}
            row |= {"PerformedProcedureStepDescription": 'CHEST (PA, "LAT")', "ViewPosition": VIEWS[number % 4]}
            self.rows.append(row | {"Rows": "24", "Columns": "40"})
            split = "train" if number < 8 else "validate" if number < 10 else "test"
            self.splits.append({name: row[name] for name in COLUMNS[:3]} | {"split": split})
            save(root / "files" / place(row), number)
        self.write()

    def write(self):
        for name, rows in ((METADATA, self.rows), (SPLIT, self.splits)):
            with gzip.open(self.root / f"{name}.gz", "wt", newline="") as stream:
                writer = csv.DictWriter(stream, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)

    def find(self, **settings):
        root = self.root
        source = DatasetSource(root=root, modality=get_modality("xray"), files_dir=root / "m.files", settings=settings)
        return find(source)


@pytest.fixture
def data(tmp_path):
    root = tmp_path / "mimic-cxr-jpg" / "2.1.0"
    root.mkdir(parents=True)
    return Data(root)


class TestFind:
    def test_items_come_from_the_tables(self, data, monkeypatch):
        monkeypatch.setattr(findings, "header_size", None)  # no image is opened
        found, left = data.find(views=None)
        assert left == [] and len(found) == 12
        first = found[0]
        assert first.name == "files/p10/p10000032/s50414260/00000000-aaaa" and first.size == SIZE
        assert (first.patient, first.split, first.content) == ("10000032", "training", "")
        assert [sum(item.split == split for item in found) for split in ("training", "validation", "testing")] == [
            8,
            2,
            2,
        ]
        assert "10000032" not in repr(first).replace(str(first.path), "").replace(first.name, "")

    def test_unpacked_tables_and_the_folder_above(self, data):
        for name in (METADATA, SPLIT):
            packed = data.root / f"{name}.gz"
            (data.root / name).write_bytes(gzip.decompress(packed.read_bytes()))
            packed.unlink()
        data.root = data.root.parent.parent
        assert len(data.find()[0]) == 12

    def test_views(self, data):
        found, left = data.find(views=["PA", "AP"])
        assert len(found) == 6
        assert [(entry.where, entry.reason) for entry in left] == [
            ("view LATERAL", "3 images, as views is set to PA, AP"),
            ("view none", "3 images, as views is set to PA, AP"),
        ]
        assert len(data.find(views="none")[0]) == 3
        with pytest.raises(InputError, match=r"views must be null or list some of AP, LATERAL, PA, none, got \['XX'\]"):
            data.find(views=["XX"])
        with pytest.raises(InputError, match="views must be null or list some of .* got 3"):
            data.find(views=3)

    def test_defects_are_left_out(self, data):
        files = data.root / "files"
        (files / place(data.rows[0])).unlink()
        (files / place(data.rows[1])).write_bytes(b"")
        (files / place(data.rows[2])).unlink()
        (files / place(data.rows[2])).symlink_to("nowhere.jpg")
        save(files / "p10" / "p10000032" / "s50414260" / "ffff.jpg", 1)
        for name in (
            "Thumbs.db",
            "p10/p10000032/desktop.ini",
            "index.html",
            "p10/index.html",
            "p10/p10000032/s50414260/index.html",
            ".hidden",
        ):
            (files / name).write_text("x")
        for name in ("list.txt", "p10/list.txt", "p10/p10000032/list.txt"):
            (files / name).write_text("x")
        for name in ("README.md", "IMAGE_FILENAMES", "mimic-cxr-2.0.0-chexpert.csv.gz", "m.json", "other.csv"):
            (data.root / name).write_text("x")
        data.rows[3]["Rows"] = ""
        data.write()
        found, left = data.find()
        reasons = {entry.where: entry.reason for entry in left}
        assert len(found) == 9 and found[0].size == () and len(reasons) == 8
        assert reasons[f"files/{place(data.rows[0])}"] == "a row of the metadata without file"
        for row in data.rows[1:3]:
            assert reasons[f"files/{place(row)}"] == "the file is empty, or a link that leads nowhere"
        assert reasons["other.csv"] == "not part of what is read"
        stray = ["p10/p10000032/s50414260/ffff.jpg", "list.txt", "p10/list.txt", "p10/p10000032/list.txt"]
        assert {reasons[f"files/{name}"] for name in stray} == {"no row in the metadata"}

    def test_a_download_in_part_is_counted(self, data, monkeypatch):
        monkeypatch.setattr(mimic_cxr_jpg, "LISTED", 2)
        for row in data.rows[4:8]:
            (data.root / "files" / place(row)).unlink()
        found, left = data.find()
        assert len(found) == 8
        assert [(entry.where, entry.reason) for entry in left] == [("files/p11", "4 rows of the metadata without file")]

    def test_checksums_tell_equal_images(self, data):
        lines = []
        for row in data.rows[:3]:
            path = data.root / "files" / place(row)
            lines.append(f"{hashlib.sha256(path.read_bytes()).hexdigest()} files/{place(row)}")
        (data.root / CHECKSUMS).write_text("\n".join(["0" * 64 + " LICENSE.txt", *lines]) + "\n")
        contents = [item.content for item in data.find()[0]]
        assert contents[:3] == [line.split()[0] for line in lines] and set(contents[3:]) == {""}

    def test_tables_with_faults(self, data):
        for change, message in (
            ({"subject_id": "secret"}, "row 1 names no image, subject and study"),
            ({"dicom_id": data.rows[1]["dicom_id"]}, "row 2 names an image that an earlier row names"),
        ):
            kept = dict(data.rows[0])
            data.rows[0] |= change
            data.write()
            with pytest.raises(InputError, match=message) as caught:
                data.find()
            assert "secret" not in str(caught.value)
            data.rows[0] = kept
        data.write()
        data.splits[0]["split"] = "somewhere"
        data.write()
        with pytest.raises(InputError, match="row 1: split must be one of train, validate, test. Restore"):
            data.find()
        data.splits = [{"dicom_id": "a"}]
        data.write()
        with pytest.raises(InputError, match="no column split"):
            data.find()

    def test_another_layout(self, data):
        os.remove(data.root / f"{SPLIT}.gz")
        with pytest.raises(InputError, match="holds no mimic-cxr-2.0.0-split.csv.gz, which says the split"):
            data.find()
        os.remove(data.root / f"{METADATA}.gz")
        with pytest.raises(InputError, match="holds no files, mimic-cxr-2.0.0-metadata.csv.gz"):
            data.find()


class TestWholeWay:
    def test_manifest_and_store(self, data, tmp_path):
        twin = dict(data.rows[0], dicom_id="eeeeeeee-aaaa")  # the same file under another name
        data.rows.append(twin)
        data.splits.append(dict(data.splits[0], dicom_id=twin["dicom_id"]))
        (data.root / "files" / place(twin)).write_bytes((data.root / "files" / place(data.rows[0])).read_bytes())
        data.splits[7]["split"] = "test"  # subject 11001469 stands in two splits
        data.write()
        built = build_dataset_manifest("mimic-cxr-jpg", data.root, tmp_path / "mimic.json", workers=1)
        assert built.manifest.counts == {"training": 6, "validation": 2, "testing": 3}
        reasons = sorted(entry.reason.split(" files/")[0] for entry in built.left_out)
        assert reasons == ["a copy of", "its patient also stands in the testing split of the publisher"]
        assert any("training has 6 items, published are 368960" in note for note in built.notes)
        manifest = read_manifest(built.path)
        assert [problem for problem in check_manifest(manifest) if problem.severity == "error"] == []
        assert not any("10000032" in item.group or "10000032" in item.id for item in manifest.training)
        modality = get_modality("xray", input_shape=(3, 12, 20))
        store = prepare_store(
            manifest=built.path, store_dir=tmp_path / "store", modality=modality, workers=1, progress=False
        )
        (sample,) = store.gather([0])
        columns = sample[0].astype(float).mean(axis=0)
        assert sample.shape == (1, 12, 20) and (np.diff(columns) > 5).all()  # darker left, brighter right
