"""Manifests of one's own files hold no identifier: not in paths, not in what was left out, not in messages."""

from __future__ import annotations

import csv
import json

import numpy as np
import pydicom
import pytest

from medcoss_components.data.identifiers import hash_identifier
from medcoss_components.data.manifest import check_manifest, read_manifest
from medcoss_components.data.manifest_building import OwnData, build_manifest
from medcoss_components.data.modalities import get_modality
from medcoss_components.data.readers import read_image, read_volume
from medcoss_components.data.readers_slices import SliceStack, write_slice_stack
from medcoss_components.data.store import prepare_store
from medcoss_components.data.writers import write_dicom_series, write_nifti, write_picture
from medcoss_components.errors import InputError

SALT = "a salt for tests only"
SECRET = "MUSTERMANN"


def write_table(path, rows):
    with open(path, "w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def films(tmp_path):
    """Six pictures of three patients in folders of their names; the table holds the patients."""
    rows = []
    for number in range(6):
        name = f"{SECRET.lower()}_{number // 2}/{number}.png"
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        write_picture(tmp_path / "in" / name, np.full((20, 24), number, np.uint8))
        rows.append({"file": name, "label": "ab"[number // 2 % 2], "patient": f"{SECRET} {number // 2}"})
    write_table(tmp_path / "labels.csv", rows)
    return tmp_path


def data(folder, **changes):
    given = {"root": folder / "in", "kind": "images", "modality": "xray", "labels": folder / "labels.csv"}
    return OwnData(**(given | {"split": (34, 33, 33)} | changes))


def items(manifest):
    return [item for split in manifest.counts for item in manifest.items(split)]


def written(folder):
    return "".join(path.read_text().upper() for path in folder.glob("*.json"))


class TestPictures:
    def test_links_stand_in_for_names(self, films):
        built = build_manifest(data(films), films / "films.json")
        found = items(read_manifest(films / "films.json"))
        assert all(item.image == films / "films.files" / f"{item.id}.png" for item in found) and len(found) == 6
        assert sorted(int(read_image(item.image).array.max()) for item in found) == list(range(6))
        assert SECRET not in written(films) + repr(built).upper()
        assert built.notes[0].startswith("The names of 6 of 6 files tell who the patient is")
        assert not [problem for problem in check_manifest(built.manifest) if problem.severity == "error"]

    def test_names_that_are_pseudonyms_are_kept_and_the_links_go(self, films):
        named = [item.id for item in items(build_manifest(data(films), films / "films.json").manifest)]
        built = build_manifest(data(films, keep_names=True), films / "films.json")
        assert [item.id for item in items(built.manifest)] == named
        assert not any("names" in note for note in built.notes)
        assert all(item.image.is_relative_to(films / "in") for item in items(built.manifest))
        assert not (films / "films.files").exists()

    def test_beside_the_files_links_are_no_data(self, films):
        for _ in range(2):
            built = build_manifest(data(films), films / "in" / "manifest.json")
        assert len(items(built.manifest)) == 6 == len(list((films / "in" / "manifest.files").iterdir()))
        assert built.left_out == ()

    def test_harmless_names_stay(self, films):
        for number in range(3):
            (films / "in" / f"{SECRET.lower()}_{number}").rename(films / "in" / f"case{number}")
        table = (films / "labels.csv").read_text().replace(f"{SECRET.lower()}_", "case")
        (films / "labels.csv").write_text(table.replace(f"{SECRET} ", "P-10"))
        built = build_manifest(data(films), films / "films.json")
        assert not any("names" in note for note in built.notes) and not (films / "films.files").exists()
        assert all(item.image.is_relative_to(films / "in") for item in items(built.manifest))

    def test_a_name_in_the_folder_above_counts(self, films):
        (films / "in").rename(films / f"{SECRET}_0")
        for number in range(3):
            (films / f"{SECRET}_0" / f"{SECRET.lower()}_{number}").rename(films / f"{SECRET}_0" / f"{number}")
        table = (films / "labels.csv").read_text().replace(f"{SECRET.lower()}_", "")
        (films / "labels.csv").write_text(table)
        build_manifest(data(films, root=films / f"{SECRET}_0"), films / "films.json")
        assert (films / "films.files").is_dir() and SECRET not in written(films)

    def test_what_was_left_out_is_masked(self, films):
        folder = films / "in" / f"{SECRET.lower()}_1"
        (folder / "broken.png").write_bytes(b"no picture")
        (folder / "copy.png").write_bytes((folder / "2.png").read_bytes())
        write_picture(folder / "unknown.png", np.eye(20, dtype=np.uint8))
        with open(films / "labels.csv", "a") as stream:
            for name in ("copy", "broken"):
                stream.write(f"{SECRET.lower()}_1/{name}.png,b,{SECRET} 1\n")
        with pytest.raises(InputError, match="2 items share their content") as caught:
            build_manifest(data(films), films / "films.json")
        assert SECRET not in str(caught.value).upper().replace(str(films).upper(), "")
        built = build_manifest(data(films, duplicates="drop"), films / "films.json")
        owner = hash_identifier(f"{SECRET} 1", SALT)
        assert {entry.where: entry.reason.partition(",")[0] for entry in built.left_out} == {
            f"{owner}/broken.png": "cannot be read",
            f"{owner}/unknown": "no row in the table",
            f"{owner}/copy": f"a copy of {owner}/2",
        }
        assert SECRET not in written(films)

    def test_short_numbers_count_in_paths_of_their_own_patient(self, films):
        for number in range(3):
            (films / "in" / f"{SECRET.lower()}_{number}").rename(films / "in" / f"p{number + 7}")
        rows = [{"file": f"p{n // 2 + 7}/{n}.png", "label": "a", "patient": n // 2 + 7} for n in range(6)]
        write_table(films / "labels.csv", rows)
        write_picture(films / "in" / "p7" / "x.png", np.eye(20, dtype=np.uint8))
        built = build_manifest(data(films), films / "films.json")
        assert (films / "films.files").is_dir() and [entry.where for entry in built.left_out] == ["p7/x"]

    def test_a_pattern_finds_patients_in_names(self, films):
        build_manifest(data(films, labels=None, group_pattern=r"(\w+)/"), films / "films.json")
        assert SECRET not in written(films) and len(list((films / "films.files").iterdir())) == 6


class TestVolumes:
    def test_masks_get_links_too(self, tmp_path):
        for number in range(3):
            for folder, value in (("scans", number), ("masks", number % 2)):
                path = tmp_path / folder / f"{SECRET}{number}_t1.nii.gz"
                path.parent.mkdir(exist_ok=True)
                write_nifti(path, np.full((4, 18, 20), value, np.uint8), (2, 1, 1))
        given = {"root": tmp_path / "scans", "kind": "nifti", "modality": "mri", "masks": tmp_path / "masks"}
        built = build_manifest(OwnData(group_pattern=r"^(\w+\d)_", **given), tmp_path / "lists" / "m.json")
        manifest = read_manifest(built.path)
        assert {item.label for item in items(manifest)} == {
            f"m.files/{item.id}_mask.nii.gz" for item in items(manifest)
        }
        assert SECRET not in written(tmp_path / "lists")
        assert not [problem for problem in check_manifest(manifest) if problem.severity == "error"]

    def test_headers_and_their_data_are_one_item(self, tmp_path):
        import SimpleITK

        for number in range(2):
            folder = tmp_path / "in" / f"case{number}"
            folder.mkdir(parents=True)
            volume = SimpleITK.GetImageFromArray(np.full((4, 18, 20), number, np.int16))
            SimpleITK.WriteImage(volume, str(folder / "scan.mhd"))
        given = {"root": tmp_path / "in", "kind": "volumes", "modality": "mri", "split": (100, 0, 0)}
        built = build_manifest(OwnData(**given), tmp_path / "m.json")  # equal headers: copies only by their data
        assert len(items(built.manifest)) == 2 and built.left_out == ()
        built = build_manifest(OwnData(**given, group_pattern="(case.)"), tmp_path / "m.json")
        assert sorted(read_volume(item.image).array.max() for item in items(built.manifest)) == [0, 1]

    def test_stacks_of_slices(self, tmp_path):
        for number in range(2):
            folder = tmp_path / "in" / f"{SECRET}{number}"
            folder.mkdir(parents=True)
            files = tuple(folder / f"{place}.png" for place in range(8))
            for place, file in enumerate(files):
                write_picture(file, np.full((20, 24), 32768 + number + place, np.uint16))
            stack = SliceStack(slices=files, spacing=(2, 1, 1), subtract=32768)
            write_slice_stack(folder / "scan.slices.json", stack)
        given = {"root": tmp_path / "in", "kind": "volumes", "modality": "ct", "split": (100, 0, 0)}
        for _ in range(2):
            built = build_manifest(OwnData(**given, group_pattern=r"^(\w+)/"), tmp_path / "m.json")
        assert SECRET not in written(tmp_path) and built.left_out == ()
        ramps = sorted(read_volume(item.image).array[:, 3, 3].tolist() for item in items(built.manifest))
        assert ramps == [[*range(8)], [*range(1, 9)]]
        for item in items(built.manifest):
            assert SECRET not in item.image.read_text() and item.image.name == f"{item.id}.slices.json"


class TestDicom:
    @pytest.fixture
    def tree(self, tmp_path):
        """Three patients in folders of their names, one with a short series too; the header knows name and number."""
        for number in range(3):
            volume = np.tile(np.arange(8, dtype=np.int16)[:, None, None], (1, 20, 24)) + number
            tags = {"PatientID": f"4711-{number}", "PatientName": f"{SECRET}^Jane{number}", "StudyDate": "20200131"}
            folder = tmp_path / "in" / f"{SECRET.lower()}, jane{number}"
            write_dicom_series(folder / "ct", volume, modality="CT", StudyInstanceUID=f"1.{number}", **tags)
            write_dicom_series(folder / "s2", volume[:3], modality="CT", StudyInstanceUID=f"1.{number}", **tags)
        return tmp_path

    def test_names_of_headers_are_found_in_paths(self, tree):
        given = {"root": tree / "in", "kind": "dicom", "modality": "ct", "split": (100, 0, 0)}
        built = build_manifest(OwnData(**given), tree / "m.json")
        assert all(word not in written(tree) for word in (SECRET, "JANE", "4711", "20200131"))
        assert {item.image.parent for item in items(built.manifest)} == {tree / "m.files"}
        assert [entry.where.endswith("/s2 (series of 3 files)") for entry in built.left_out] == [True] * 3
        assert not [problem for problem in check_manifest(built.manifest) if problem.severity == "error"]
        entry = get_modality("ct", input_shape=(1, 8, 16, 16))
        store = prepare_store(
            manifest=built.manifest, modality=entry, store_dir=tree / "stores", workers=1, progress=False
        )
        assert len(store) == 3

    def test_a_table_about_a_series_that_was_left_out(self, tree):
        rows = [{"study": f"1.{number}", "label": "ab"[number % 2]} for number in range(3)]
        write_table(tree / "labels.csv", rows)
        for path in sorted((tree / "in" / f"{SECRET.lower()}, jane2" / "ct").iterdir())[3:]:
            path.unlink()
        given = {"root": tree / "in", "kind": "dicom", "modality": "ct", "split": (50, 0, 50)}
        built = build_manifest(OwnData(**given, labels=tree / "labels.csv"), tree / "m.json")
        assert {entry.reason for entry in built.left_out} == {"3 slices, the minimum is 8"}
        assert len(built.left_out) == 4  # and no line of the table

    def test_the_name_of_the_data_set_tells_nothing(self, tree):
        folder = tree / f"{SECRET} studies"
        given = {"root": tree / "in", "kind": "dicom", "modality": "ct", "split": (100, 0, 0)}
        built = build_manifest(OwnData(**given), folder / "manifest.json")
        assert built.manifest.name.endswith("-studies") and SECRET not in written(folder)

    def test_masks_named_by_series_or_study(self, tree):
        (tree / "masks").mkdir()
        for number in range(3):
            write_nifti(
                tree / "masks" / f"1.{number}.nii.gz", np.eye(20, 24, dtype=np.uint8)[None].repeat(8, 0), (1, 1, 1)
            )
        given = {"root": tree / "in", "kind": "dicom", "modality": "ct", "split": (100, 0, 0)}
        built = build_manifest(OwnData(**given, masks=tree / "masks"), tree / "m.json")
        found = items(built.manifest)
        assert {item.label for item in found} == {f"m.files/{item.id}_mask.nii.gz" for item in found} and len(
            found
        ) == 3
        assert {entry.reason for entry in built.left_out} == {"3 slices, the minimum is 8"}

    def test_one_patient_of_the_headers_is_two_in_the_table(self, tree):
        for path in sorted((tree / "in" / f"{SECRET.lower()}, jane1" / "ct").iterdir()):
            dataset = pydicom.dcmread(path)
            dataset.PatientID = "4711-0"
            dataset.save_as(path)
        rows = [{"study": f"1.{number}", "label": "a", "patient": "p" if number == 0 else ""} for number in range(3)]
        write_table(tree / "labels.csv", rows)
        given = {"root": tree / "in", "kind": "dicom", "modality": "ct", "split": (34, 33, 33)}
        built = build_manifest(OwnData(**given, labels=tree / "labels.csv"), tree / "m.json")
        (note,) = [note for note in built.notes if "headers" in note]
        assert note.startswith("1 patients of the headers are several ones in the table")
        build_manifest(OwnData(**given | {"split": (50, 0, 50)}), tree / "m.json")


@pytest.mark.parametrize("patient", ["2", "3", "9"])
def test_numbers_of_rows_and_slices_are_no_identifiers(tmp_path, patient):
    write_dicom_series(tmp_path / "in" / "x", np.zeros((3, 20, 24), np.int16), modality="CT", PatientID=patient)
    write_dicom_series(tmp_path / "in" / "y", np.zeros((9, 20, 24), np.int16), modality="CT", PatientID="other")
    given = {"root": tmp_path / "in", "kind": "dicom", "modality": "ct", "split": (100, 0, 0)}
    (left,) = build_manifest(OwnData(**given), tmp_path / "m.json").left_out
    assert (left.where, left.reason) == ("x (series of 3 files)", "3 slices, the minimum is 8")
    lines = [json.dumps({"text": f"text {n}", "group": f"{n + 1}", "label": "a" if n != 1 else None}) for n in range(4)]
    (tmp_path / "part.jsonl").write_text("\n".join(lines))
    built = build_manifest(OwnData(root=tmp_path / "part.jsonl", kind="texts", modality="report"), tmp_path / "t.json")
    assert [entry.where for entry in built.left_out] == ["part.jsonl row 2"]


def test_an_unreadable_file_stands_once(tmp_path):
    """Neither its row in the table nor its mask is listed as well."""
    for name in ("a", "b", "c"):
        write_picture(tmp_path / f"{name}.png", np.random.default_rng(ord(name)).integers(0, 9, (20, 24), np.uint8))
        write_picture(tmp_path / f"{name}_mask.png", np.eye(20, 24, dtype=np.uint8))
    (tmp_path / "a.png").write_bytes(b"no picture")
    (tmp_path / "b_mask.png").write_bytes(b"no picture")
    given = {"root": tmp_path, "kind": "images", "modality": "xray", "split": (100, 0, 0)}
    built = build_manifest(OwnData(**given, masks=tmp_path, mask_suffix="_mask"), tmp_path / "m.json")
    places = {entry.where: entry.reason[:14] for entry in built.left_out}
    assert places == {"a.png": "cannot be read", "b": "its mask: cann"} and len(built.left_out) == 2
    table = tmp_path / "labels.csv"
    write_table(table, [{"file": name, "label": "x"} for name in ("a.png", "b", "c.png", "b_mask.png", "c_mask")])
    (tmp_path / "a_mask.png").unlink()
    built = build_manifest(OwnData(**given, labels=table, duplicates="keep"), tmp_path / "m.json")
    assert sorted(entry.where for entry in built.left_out) == ["a.png", "b_mask.png"]


def test_an_empty_text_stands_once(tmp_path):
    lines = [json.dumps({"id": f"n{n}", "text": f"text {n}" if n else " "}) for n in range(4)]
    (tmp_path / "part.jsonl").write_text("\n".join(lines))
    write_table(tmp_path / "labels.csv", [{"id": f"n{n}", "label": "ab"[n % 2]} for n in range(4)])
    given = {"root": tmp_path / "part.jsonl", "kind": "texts", "modality": "report", "labels": tmp_path / "labels.csv"}
    built = build_manifest(OwnData(**given), tmp_path / "m.json")
    assert [(entry.where, entry.reason) for entry in built.left_out] == [("part.jsonl row 1", "the text is empty")]
