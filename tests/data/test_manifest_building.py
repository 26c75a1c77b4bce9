"""Manifests of one's own files: what is found, labelled, grouped, split and left out, and what is refused."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from medcoss_components.data.adapters.own_data import find_images
from medcoss_components.data.label_table import read_label_table
from medcoss_components.data.manifest import check_manifest, read_manifest
from medcoss_components.data.manifest_building import OwnData, build_manifest
from medcoss_components.data.manifest_summary import describe
from medcoss_components.data.writers import write_nifti, write_picture
from medcoss_components.errors import InputError

SECRET = "MUSTERMANN"


def picture(number, shape=(20, 24)):
    values = np.random.default_rng(number).integers(0, 255, shape)
    return values.astype(np.uint8)


@pytest.fixture
def films(tmp_path):
    """20 pictures of 10 patients in two folders, with a table: patient n has label n % 2."""
    root = tmp_path / "films"
    rows = []
    for number in range(20):
        name = f"{'ab'[number % 2]}/{number:02d}.png"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_picture(root / name, picture(number))
        patient = number // 2
        rows.append({"file": name, "label": ("normal", "covid")[patient % 2], "patient": f"{SECRET} {patient}"})
    write_table(root / "labels.csv", rows)
    return root


def write_table(path, rows):
    with open(path, "w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def images(root, **changes):
    return OwnData(**({"root": root, "kind": "images", "modality": "xray", "labels": root / "labels.csv"} | changes))


def reasons(built):
    return dict(Counter(entry.reason for entry in built.left_out))


class TestImages:
    def test_whole_way(self, films):
        built = build_manifest(images(films, split=(60, 20, 20)), films / "manifest.json")
        manifest = read_manifest(films / "manifest.json")
        assert manifest.counts == {"training": 12, "validation": 4, "testing": 4} and built.left_out == ()
        assert manifest.name == "films" and manifest.modality.name == "xray"
        groups = [{item.group for item in manifest.items(split)} for split in manifest.counts]
        assert [len(found) for found in groups] == [6, 2, 2] and len(set.union(*groups)) == 10
        assert {item.label for split in manifest.counts for item in manifest.items(split)} == {"normal", "covid"}
        assert [problem for problem in check_manifest(manifest) if problem.severity == "error"] == []

    def test_names_of_patients_are_nowhere(self, films):
        built = build_manifest(images(films), films / "manifest.json")
        texts = [path.read_text() for path in films.glob("*.json")]
        assert len(texts) == 2 and not any(SECRET in text for text in [*texts, repr(built), describe(built.manifest)])

    def test_equal_input_gives_an_equal_manifest(self, films):
        paths = [films / "one.json", films / "two.json"]
        one, two = (json.loads(build_manifest(images(films), path).path.read_text()) for path in paths)
        assert one["training"] == two["training"] and one["name"] == "one"
        other = build_manifest(images(films, seed=1), paths[0]).manifest
        assert [item.id for item in other.training] != [item["id"] for item in one["training"]]

    def test_what_is_left_out_and_why(self, films):
        (films / "a" / "notes.txt").write_text("x")
        (films / "a" / "broken.png").write_bytes(b"no picture")
        (films / ".hidden.png").write_bytes(b"")
        write_picture(films / "a" / "unknown.png", picture(99))
        with open(films / "labels.csv", "a") as stream:
            stream.write("gone.png,normal,x\nb/19.png,covid,\n")
        table = (films / "labels.csv").read_text().replace("a/00.png,normal", "a/00.png,")
        (films / "labels.csv").write_text(table.replace(f"b/19.png,covid,{SECRET} 9\n", ""))
        built = build_manifest(images(films), films / "manifest.json")
        found = {entry.where: entry.reason for entry in built.left_out}
        assert found["a/notes.txt"] == "files ending in .txt are not read here"
        assert found["a/broken.png"].startswith("cannot be read")
        assert found["a/unknown"] == "no row in the table" and found["a/00"] == "its label is empty"
        assert found["labels.csv line 21"] == "no file of this name was found" and len(found) == 5
        record = json.loads((films / "manifest.build.json").read_text())
        assert len(record["left_out"]) == 5 and record["items"] == built.manifest.counts
        assert "1 of 19 items have no patient" in built.notes[0]

    def test_unlabelled_for_pretraining(self, films):
        data = images(films, labels=None, unlabelled=True, group_pattern=r"/(\d)", split=(50, 0, 50))
        (films / "labels.csv").unlink()
        built = build_manifest(data, films / "manifest.json")
        assert len({item.group for split in ("training", "testing") for item in built.manifest.items(split)}) == 2
        assert all(item.label is None for item in built.manifest.training)

    def test_a_pattern_that_finds_nothing(self, films):
        write_picture(films / "x.png", picture(50))
        data = images(films, labels=None, group_pattern=r"^([ab])/", split=(50, 0, 50))
        built = build_manifest(data, films / "manifest.json")
        assert built.manifest.counts == {"training": 10, "validation": 0, "testing": 10}
        assert reasons(built)["the group pattern finds no patient in its path"] == 1

    def test_digits_from_0_become_numbers(self, films):
        table = (films / "labels.csv").read_text().replace("normal", "0").replace("covid", "1")
        (films / "labels.csv").write_text(table)
        built = build_manifest(images(films), films / "manifest.json")
        assert {item.label for item in built.manifest.training} == {0, 1}
        (films / "labels.csv").write_text(table.replace(",0,", ",2,"))
        built = build_manifest(images(films), films / "manifest.json")
        assert {item.label for item in built.manifest.training} == {"1", "2"}


class TestTable:
    def test_body_parts(self, films):
        lines = (films / "labels.csv").read_text().splitlines()
        parts = [("Chest", "left hand", "")[number % 3] for number in range(20)]
        table = [f"{line},{part}" for line, part in zip(lines, ["body_part", *parts], strict=True)]
        (films / "labels.csv").write_text("\n".join(table))
        built = build_manifest(images(films, split=(60, 20, 20)), films / "manifest.json")
        found = Counter(item.body_part for split in built.manifest.counts for item in built.manifest.items(split))
        assert found == {"chest": 7, "left hand": 7, None: 6}
        (films / "labels.csv").write_text("\n".join([*table[:3], f"{lines[3]},Dr. {SECRET}"]))
        with pytest.raises(InputError, match="labels.csv: line 4: body_part must be words") as told:
            build_manifest(images(films), films / "manifest.json")
        assert SECRET not in str(told.value)

    def test_files_by_name_without_folder_or_suffix(self, films):
        table = (films / "labels.csv").read_text().replace("a/", "").replace(".png", "").replace("b/", "")
        (films / "labels.csv").write_text(table)
        built = build_manifest(images(films), films / "manifest.json")
        assert sum(built.manifest.counts.values()) == 20 and built.left_out == ()

    def test_ambiguous_names(self, films):
        write_picture(films / "b" / "00.png", picture(77))
        table = (films / "labels.csv").read_text().replace("a/00.png", "00.png")
        (films / "labels.csv").write_text(table)
        built = build_manifest(images(films), films / "manifest.json")
        assert reasons(built) == {"fits 2 items; give the path from the root": 1, "no row in the table": 2}

    def test_semicolons_a_mark_at_the_start_and_other_names(self, tmp_path):
        path = tmp_path / "table.csv"
        path.write_text("\ufeffBild;Befund;Fall;Teil\nx.png;normal;p1;Train\n;normal;p2;test\n", encoding="utf-8")
        table = read_label_table(
            path, key_column="Bild", label_column="Befund", group_column="Fall", split_column="Teil"
        )
        (row,) = table.rows.values()
        assert table.key == "file" and (row.key, row.label, row.patient, row.split) == (
            "x.png",
            "normal",
            "p1",
            "training",
        )

    def test_another_encoding_is_told(self, tmp_path):
        path = tmp_path / "table.csv"
        path.write_bytes("file;label\nMüller.png;normal\n".encode("cp1252"))
        with pytest.raises(InputError, match="line 2 is not UTF-8") as caught:
            read_label_table(path)
        assert "ller.png" not in str(caught.value)

    def test_tabs(self, tmp_path):
        (tmp_path / "table.tsv").write_text("series\tlabel\n1.2\tx\n")
        table = read_label_table(tmp_path / "table.tsv")
        assert table.key == "series" and table.rows["1.2"].label == "x"

    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("name,label\nx,1\n", "no column 'file'; found 'name', 'label'"),
            ("file,label\nx,1\ny,1\nx,2\n", "lines 2 and 4 say different things"),
            ("file,label,part\nx,1,middle\n", "line 2: split must be one of .* got 'middle'"),
        ],
    )
    def test_refused(self, tmp_path, text, shown):
        (tmp_path / "table.csv").write_text(text)
        with pytest.raises(InputError, match=shown):
            read_label_table(tmp_path / "table.csv", split_column="part" if "part" in text else None)

    def test_fixed_split(self, films):
        rows = list(csv.DictReader((films / "labels.csv").open()))
        for number, row in enumerate(rows):
            row["part"] = "train" if number < 16 else "test"
        write_table(films / "labels.csv", rows)
        built = build_manifest(images(films, split_column="part"), films / "manifest.json")
        assert built.manifest.counts == {"training": 16, "validation": 0, "testing": 4}
        rows[0]["part"] = "test"
        write_table(films / "labels.csv", rows)
        with pytest.raises(InputError, match="1 patients stand in several splits") as caught:
            build_manifest(images(films, split_column="part"), films / "manifest.json")
        assert SECRET not in str(caught.value)
        rows[0]["part"] = ""
        write_table(films / "labels.csv", rows)
        with pytest.raises(InputError, match="the split of 1 items is empty"):
            build_manifest(images(films, split_column="part"), films / "manifest.json")


class TestCopies:
    @pytest.fixture
    def doubled(self, films):
        (films / "b" / "copy.png").write_bytes((films / "a" / "00.png").read_bytes())
        with open(films / "labels.csv", "a") as stream:
            stream.write("b/copy.png,normal,other\n")
        return films

    def test_refused(self, doubled):
        with pytest.raises(InputError, match="2 items share their content .*a/00 = b/copy"):
            build_manifest(images(doubled), doubled / "manifest.json")
        assert not (doubled / "manifest.json").exists()

    def test_dropped(self, doubled):
        built = build_manifest(images(doubled, duplicates="drop"), doubled / "manifest.json")
        assert [(entry.where, entry.reason) for entry in built.left_out] == [("b/copy", "a copy of a/00")]

    def test_contradicting_labels_drop_all(self, doubled):
        table = (doubled / "labels.csv").read_text().replace("copy.png,normal", "copy.png,covid")
        (doubled / "labels.csv").write_text(table)
        built = build_manifest(images(doubled, duplicates="drop"), doubled / "manifest.json")
        assert reasons(built) == {"the same content stands with several labels": 2}

    def test_kept(self, doubled):
        built = build_manifest(images(doubled, duplicates="keep"), doubled / "manifest.json")
        assert sum(built.manifest.counts.values()) == 21 and "2 items share" in built.notes[0]

    def test_one_stem_in_two_formats_is_no_copy(self, tmp_path):
        for number, suffix in enumerate(("png", "bmp", "tif")):
            write_picture(tmp_path / f"x.{suffix}", picture(number))
        built = build_manifest(images(tmp_path, labels=None, split=(100, 0, 0)), tmp_path / "manifest.json")
        assert built.manifest.counts["training"] == 3 and len({item.id for item in built.manifest.training}) == 3


class TestMasks:
    @pytest.fixture
    def volumes(self, tmp_path):
        """Six volumes of two patients; masks in a folder of their own with a suffix; one of another size."""
        for number in range(6):
            path = tmp_path / "scans" / f"p{number % 3}" / f"s{number}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "masks").mkdir(exist_ok=True)
            write_nifti(path, np.full((4, 6, 8), number, np.int16), (2, 1, 1))
            size = (4, 6, 8) if number else (4, 8, 6)
            mask = np.zeros(size, np.uint8)
            mask[1, :2] = 1
            if number != 5:
                write_nifti(tmp_path / "masks" / f"s{number}_seg.nii.gz", mask, (2, 1, 1))
        write_nifti(tmp_path / "masks" / "other_seg.nii.gz", mask, (2, 1, 1))
        return tmp_path

    def data(self, folder, **changes):
        given = {
            "root": folder / "scans",
            "kind": "nifti",
            "modality": "ct",
            "masks": folder / "masks",
            "mask_suffix": "_seg",
            "group_pattern": r"(p\d)/",
            "keep_names": True,
            "split": (34, 33, 33),
        }
        return OwnData(**(given | changes))

    def test_pairs(self, volumes):
        built = build_manifest(self.data(volumes), volumes / "lists" / "liver.json")
        manifest = read_manifest(built.path)
        items = [item for split in manifest.counts for item in manifest.items(split)]
        assert {Path(item.label).name.replace("_seg", "") for item in items} == {item.image.name for item in items}
        assert all((manifest.root / item.label).is_file() and item.label.startswith("../masks") for item in items)
        assert {entry.where: entry.reason for entry in built.left_out} == {
            "p0/s0": "its mask has the size (6, 8, 4), the image (8, 6, 4)",
            "p2/s5": "no mask of its name",
            "mask other_seg": "no image of its name",
        }
        assert manifest.name == "liver" and manifest.intensity_unit == "HU"
        assert "(mask)" in describe(manifest)

    def test_a_broken_mask_and_one_not_needed(self, volumes):
        (volumes / "masks" / "s1_seg.nii.gz").write_bytes(b"x")
        built = build_manifest(self.data(volumes, unlabelled=True), volumes / "liver.json")
        where = {entry.where: entry.reason for entry in built.left_out}
        assert where["p1/s1"].startswith("its mask: cannot be read") and "p2/s5" not in where

    def test_in_the_same_folder(self, tmp_path):
        for number in range(3):
            write_picture(tmp_path / f"{number}.png", picture(number))
            write_picture(tmp_path / f"{number}_mask.png", np.eye(20, 24, dtype=np.uint8))
        data = OwnData(root=tmp_path, kind="images", modality="xray", masks=tmp_path, mask_suffix="_mask")
        built = build_manifest(data, tmp_path / "manifest.json")
        assert sum(built.manifest.counts.values()) == 3 and built.left_out == ()
        with pytest.raises(InputError, match="tell them apart with --mask-suffix"):
            OwnData(root=tmp_path, kind="images", modality="xray", masks=tmp_path)

    def test_no_masks_or_two_of_one_name(self, volumes):
        with pytest.raises(InputError, match="holds no 3D mask with a name on '_none'"):
            build_manifest(self.data(volumes, mask_suffix="_none"), volumes / "liver.json")
        write_nifti(volumes / "masks" / "s1_seg.nii", np.zeros((4, 6, 8), np.uint8), (2, 1, 1))
        with pytest.raises(InputError, match="have one name"):
            build_manifest(self.data(volumes), volumes / "liver.json")


class TestSettings:
    @pytest.mark.parametrize(
        ("changes", "shown"),
        [
            ({"kind": "films"}, "must be one of images, volumes, dicom, texts, nifti, csv, got 'films'"),
            ({"kind": "volumes"}, "'volumes' does not fit the 2D xray; use images, dicom"),
            ({"masks": Path("m")}, "give one of both"),
            ({"split": (0, 50, 50)}, r"such as 70/10/20, got \(0, 50, 50\)"),
            ({"duplicates": "maybe"}, "got 'maybe'"),
            ({"group_pattern": "("}, r"'\(' is no regular expression"),
            ({"group_pattern": "abc"}, "a group in brackets, got 'abc'"),
            ({"modality": "report", "kind": "texts", "labels": None, "masks": Path("m")}, "texts have none"),
        ],
    )
    def test_refused(self, tmp_path, changes, shown):
        with pytest.raises(InputError, match=shown):
            images(tmp_path, **changes)

    def test_nothing_found(self, tmp_path):
        (tmp_path / "a.txt").write_text("x")
        with pytest.raises(InputError, match="1 x files ending in .txt are not read here"):
            build_manifest(images(tmp_path, labels=None), tmp_path / "manifest.json")
        with pytest.raises(InputError, match="gone: no such folder"):
            find_images(tmp_path / "gone")
