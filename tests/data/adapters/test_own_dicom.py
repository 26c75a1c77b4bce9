"""DICOM trees indexed by headers: what becomes an item, which series is taken, what is left out and why."""

from __future__ import annotations

import csv
import json
from collections import Counter

import numpy as np
import pytest

from medcoss_components.data.adapters import own_dicom
from medcoss_components.data.adapters.own_dicom import (
    find_dicom,
    index_dicom,
    series_note,
)
from medcoss_components.data.manifest import check_manifest, read_manifest
from medcoss_components.data.manifest_building import OwnData, build_manifest
from medcoss_components.data.modalities import get_modality
from medcoss_components.data.readers import read_volume
from medcoss_components.data.store import prepare_store
from medcoss_components.data.writers import write_dicom_series
from medcoss_components.errors import InputError

SECRET = "MUSTERMANN"
AXIAL, CORONAL = [1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1]
COMPRESSIONS = ("RLELossless", "JPEG2000Lossless", "JPEGLSLossless")


def write_table(path, rows):
    with open(path, "w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def reasons(built):
    return dict(Counter(entry.reason for entry in built.left_out))


def frame_groups(places, directions=AXIAL):
    """Shared group and group of every frame, as enhanced CT and MR have them."""
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    shared, orientation, measures, scale = Dataset(), Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient, measures.PixelSpacing = directions, [0.5, 0.75]
    scale.RescaleSlope, scale.RescaleIntercept = 1, -1000
    shared.PlaneOrientationSequence = Sequence([orientation])
    shared.PixelMeasuresSequence, shared.PixelValueTransformationSequence = Sequence([measures]), Sequence([scale])
    frames = []
    for along in places:
        frame, position = Dataset(), Dataset()
        position.ImagePositionPatient = [0, 0, along] if directions == AXIAL else [0, along, 0]
        frame.PlanePositionSequence = Sequence([position])
        frames.append(frame)
    return {
        "SharedFunctionalGroupsSequence": Sequence([shared]),
        "PerFrameFunctionalGroupsSequence": Sequence(frames),
    }


def encoder_of(compression):
    import pydicom.uid
    from pydicom.pixels import get_encoder

    return get_encoder(getattr(pydicom.uid, compression))


def ramps(frames, size=(40, 48)):
    """(frames, rows, columns) int16: frame k holds 1000 + k, with another value in one corner."""
    volume = np.tile(np.arange(1000, 1000 + frames, dtype=np.int16)[:, None, None], (1, *size))
    volume[:, :2, :2] = 0
    return volume


class TestDicom:
    def series(self, folder, patient="p", study="1.1", slices=9, modality="CT", start=0, **tags):
        volume = np.full((slices, 5, 6), start, np.int16)
        write_dicom_series(
            folder, volume, modality=modality, PatientID=f"{SECRET} {patient}", StudyInstanceUID=study, **tags
        )
        return folder

    @pytest.fixture
    def tree(self, tmp_path):
        """Patients a, b, c with an axial series each; a also has a shorter one, b a localizer and an MR series."""
        root = tmp_path / "tree"
        for number, name in enumerate("abc"):
            self.series(root / name / "axial", name, f"1.{number}")
        self.series(root / "a" / "thin", "a", "1.0", slices=8)
        self.series(root / "b" / "scout", "b", "1.1", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
        self.series(root / "b" / "mr", "b", "1.1", modality="MR")
        self.series(root / "c" / "short", "c", "1.9", slices=3)
        (root / "c" / "DICOMDIR").write_bytes(b"x")
        (root / "c" / "readme.txt").write_text("x")
        return root

    def test_one_item_a_series(self, tree, tmp_path):
        write_table(tmp_path / "labels.csv", [{"study": f"1.{n}", "label": "xy"[n % 2]} for n in range(4)])
        data = OwnData(root=tree, kind="dicom", modality="ct", labels=tmp_path / "labels.csv", split=(34, 33, 33))
        built = build_manifest(data, tmp_path / "manifest.json")
        manifest = read_manifest(built.path)
        assert manifest.counts == {"training": 1, "validation": 1, "testing": 1}
        images = sorted(item.image.relative_to(tree).as_posix() for s in manifest.counts for item in manifest.items(s))
        assert images == ["a/axial", "b/axial", "c/axial"]
        found = reasons(built)
        assert found["a localizer"] == 9 and found["the DICOM modality is 'MR', expected CT"] == 9
        assert found["3 slices, the minimum is 8"] == 1 and found["no DICOM file"] == 1
        assert found["no study of this name was found"] == 1
        (shorter,) = [entry for entry in built.left_out if entry.reason.startswith("another series")]
        assert shorter.where == "a/thin (series of 8 files)"
        assert SECRET not in (tmp_path / "manifest.json").read_text() + (tmp_path / "manifest.build.json").read_text()

    def test_all_series(self, tree):
        found, _ = find_dicom(tree, modality=get_modality("ct"), series="all", minimum_slices=2)
        assert sorted(item.name for item in found) == ["a/axial", "a/thin", "b/axial", "c/axial", "c/short"]
        with pytest.raises(InputError, match="must be one of largest, all, got 'first'"):
            find_dicom(tree, modality=get_modality("ct"), series="first")

    def test_axial_goes_before_more_slices(self, tmp_path):
        self.series(tmp_path / "axial", slices=8)
        folder = self.series(tmp_path / "coronal", slices=12)
        import pydicom

        for number, path in enumerate(sorted(folder.iterdir())):
            dataset = pydicom.dcmread(path)
            dataset.ImageOrientationPatient, dataset.ImagePositionPatient = [1, 0, 0, 0, 0, -1], [0, number, 0]
            dataset.save_as(path)
        found, _ = find_dicom(tmp_path, modality=get_modality("ct"))
        assert [item.name for item in found] == ["axial"]

    def test_mixed_folders_are_sorted_out(self, tmp_path):
        for number in range(3):
            self.series(tmp_path / f"s{number}", f"{number}", f"1.{number}", start=number)
            for path in (tmp_path / f"s{number}").iterdir():
                (tmp_path / "flat").mkdir(exist_ok=True)
                path.rename(tmp_path / "flat" / f"{number}-{path.name}")
            (tmp_path / f"s{number}").rmdir()
        _, left = find_dicom(tmp_path / "flat", modality=get_modality("ct"))
        assert len(left) == 3 and all("give --sort-into FOLDER" in entry.reason for entry in left)
        data = OwnData(
            root=tmp_path / "flat", kind="dicom", modality="ct", sort_into=tmp_path / "sorted", split=(34, 33, 33)
        )
        for _ in range(2):  # again over the links of the first time
            built = build_manifest(data, tmp_path / "manifest.json")
        items = [item for split in built.manifest.counts for item in built.manifest.items(split)]
        assert sorted(read_volume(item.image).array.max() for item in items) == [0, 1, 2]
        assert all(item.image.parent == tmp_path / "sorted" and len(list(item.image.iterdir())) == 9 for item in items)

    def test_links_between_file_systems(self, tmp_path, monkeypatch):
        def refuse(*paths):
            raise OSError("another device")

        monkeypatch.setattr("os.link", refuse)
        for number in range(2):
            self.series(tmp_path / "in", f"{number}", SeriesInstanceUID=f"1.{number}")
            for path in (tmp_path / "in").glob("0*.dcm"):
                path.rename(path.with_name(f"{number}-{path.name}"))
        modality = get_modality("ct")
        found, _ = find_dicom(tmp_path / "in", modality=modality, series="all", sort_into=tmp_path / "out")
        assert len(found) == 2 and next(found[0].path.iterdir()).is_symlink() and read_volume(found[0].path)

    def test_images(self, tmp_path, write_dicom):
        for number in range(4):
            pixels = np.full((8, 9), number, np.uint16)
            write_dicom(
                tmp_path / f"{number}.dcm", pixels, Modality="DX", PatientID=f"{number // 2}", StudyInstanceUID="1"
            )
        write_dicom(tmp_path / "frames.dcm", np.zeros((2, 8, 9), np.uint16), Modality="DX")
        write_table(tmp_path / "labels.csv", [{"patient": str(n), "label": "xy"[n]} for n in range(2)])
        data = OwnData(root=tmp_path, kind="dicom", modality="xray", labels=tmp_path / "labels.csv", split=(50, 0, 50))
        built = build_manifest(data, tmp_path / "manifest.json")
        assert built.manifest.counts == {"training": 2, "validation": 0, "testing": 2}
        assert reasons(built) == {"2 frames, an image has one": 1}
        assert {len({item.label for item in built.manifest.items(s)}) for s in ("training", "testing")} == {1}

    @pytest.mark.parametrize(
        ("places", "change", "problem"),
        [
            (range(9), {}, ""),
            (range(8, -1, -1), {}, ""),
            (range(3), {}, "3 slices, the minimum is 8"),
            ([0, 1, 2, 3, 4, 6, 7, 8, 9], {}, "1 gaps between slices differ from the usual 1 mm; slices are missing"),
            ([0, 1, 2, 3] * 3, {}, "8 slices lie at the place of another one"),
            (range(9), {"drop": ("SharedFunctionalGroupsSequence",)}, "frames without position or orientation"),
            (range(9), {"drop": ("PerFrameFunctionalGroupsSequence",)}, "frames without position or orientation"),
        ],
    )
    def test_frames(self, tmp_path, write_dicom, places, change, problem):
        write_dicom(tmp_path / "frames.dcm", ramps(len(places)), **frame_groups(places), **change)
        found, left = find_dicom(tmp_path, modality=get_modality("ct"))
        assert [entry.reason for entry in left] == [problem] * bool(problem)
        assert [(item.name, item.size) for item in found] == [("frames", (48, 40, 9))] * (not problem)

    def test_frames_that_are_turned(self, tmp_path, write_dicom):
        groups, other = frame_groups(range(9)), frame_groups(range(9), CORONAL)
        shared = other["SharedFunctionalGroupsSequence"][0]
        groups["PerFrameFunctionalGroupsSequence"][4].PlaneOrientationSequence = shared.PlaneOrientationSequence
        write_dicom(tmp_path / "scout.dcm", ramps(9), **groups)
        _, (left,) = find_dicom(tmp_path, modality=get_modality("ct"))
        assert left.reason == "its frames differ in orientation"

    def test_orientation_of_frames_counts(self, tmp_path, write_dicom):
        for name, directions, frames in (("a", AXIAL, 9), ("c", CORONAL, 12)):
            fields = frame_groups(range(frames), directions) | {"StudyInstanceUID": "1.1", "PatientID": "p"}
            write_dicom(tmp_path / f"{name}.dcm", ramps(frames), SeriesInstanceUID=f"1.{frames}", **fields)
        index = index_dicom(tmp_path, modality=get_modality("ct"))
        assert [item.name for item in index.found] == ["a"]
        assert index.studies[0].chosen == ((9, "axial"),) and index.studies[0].rule == "the only axial series"

    def test_copies_are_known_by_their_headers(self, tmp_path):
        self.series(tmp_path / "one")
        (tmp_path / "two").mkdir()
        for path in (tmp_path / "one").iterdir():
            (tmp_path / "two" / path.name).write_bytes(path.read_bytes())
        found, left = find_dicom(tmp_path, modality=get_modality("ct"))
        assert found == [] and left[0].reason == "some of its files stand there twice"


class TestChoice:
    """Which series of a study is taken, and what is told about it."""

    @pytest.fixture
    def tree(self, tmp_path):
        root = tmp_path / "tree"
        for study, folder, slices in (("1.1", "thick", 9), ("1.1", "thin", 12), ("1.2", "short", 3), ("1.3", "one", 8)):
            write_dicom_series(
                root / study / folder,
                ramps(slices),
                modality="CT",
                PatientID=f"{SECRET}{study}",
                StudyInstanceUID=study,
            )
        return root

    @pytest.mark.parametrize(
        ("rule", "told"),
        [
            (
                "largest",
                [
                    (2, [12], "the axial series with most slices"),
                    (1, [], "none is usable"),
                    (1, [8], "the only usable series"),
                ],
            ),
            ("all", [(2, [9, 12], "every usable series"), (1, [], "none is usable"), (1, [8], "every usable series")]),
        ],
    )
    def test_told(self, tree, rule, told):
        index = index_dicom(tree, modality=get_modality("ct"), series=rule)
        records = [study.record() for study in index.studies]
        found = [
            (record["series"], [entry["slices"] for entry in record["chosen"]], record["rule"]) for record in records
        ]
        assert found == told and {entry["orientation"] for record in records for entry in record["chosen"]} == {"axial"}
        assert len({record["study"] for record in records}) == len({record["group"] for record in records}) == 3
        assert SECRET not in json.dumps(records) + repr(index) and "1.1" not in json.dumps(records)

    def test_none_is_axial(self, tmp_path, write_dicom):
        for name, frames in (("a", 9), ("b", 10)):
            fields = frame_groups(range(frames), CORONAL) | {
                "StudyInstanceUID": "1",
                "SeriesInstanceUID": f"1.{frames}",
            }
            write_dicom(tmp_path / name, ramps(frames), **fields)
        (study,) = index_dicom(tmp_path, modality=get_modality("ct")).studies
        assert (study.series, study.chosen, study.rule) == (2, ((10, "coronal"),), "most slices, none is axial")

    def test_screens_and_scouts_are_no_series(self, tmp_path, write_dicom):
        pixels = np.zeros((4, 5), np.int16)
        write_dicom(tmp_path / "screen", pixels, SOPClassUID="1.2.840.10008.5.1.4.1.1.7.2")
        write_dicom(tmp_path / "scout", pixels, ImageType=["ORIGINAL", "PRIMARY", "SCOUT"])
        index = index_dicom(tmp_path, modality=get_modality("ct"))
        assert [entry.reason for entry in index.left] == [
            "a localizer",
            "a secondary capture without a place, such as a report or a screen",
        ]
        assert index.studies == ()


@pytest.mark.parametrize("cores", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_many_files_are_read_in_portions(tmp_path, monkeypatch, cores):
    for number in range(3):
        write_dicom_series(tmp_path / f"s{number}", ramps(8), modality="CT", StudyInstanceUID=f"1.{number}")
    (tmp_path / "s1" / "readme.txt").write_text("x")
    one = index_dicom(tmp_path, modality=get_modality("ct"))
    monkeypatch.setattr(own_dicom, "PARALLEL_ABOVE", 5)
    monkeypatch.setattr(own_dicom, "_PORTION", 7)
    monkeypatch.setattr(own_dicom, "available_cores", lambda: cores)
    assert index_dicom(tmp_path, modality=get_modality("ct")) == one and len(one.found) == 3
    assert [entry.reason for entry in one.left] == ["no DICOM file"]


def test_nothing_is_usable(tmp_path, write_dicom):
    write_dicom(tmp_path / "x", np.zeros((4, 5), np.int16))
    (tmp_path / "y").write_bytes((tmp_path / "x").read_bytes()[:300])
    index = index_dicom(tmp_path, modality=get_modality("ct"))
    assert series_note(index) == "1 studies with 1 series: 0 taken."
    assert sorted(entry.reason[:8] for entry in index.left) == ["1 slices", "DICOM wi"]


class TestWholeWay:
    """build, check, store: what the headers promise is what is read."""

    def stored(self, manifest):
        entry = get_modality(manifest.modality.name, input_shape=(1, 8, 32, 32))
        folder = manifest.root / "stores"
        return prepare_store(manifest=manifest, modality=entry, store_dir=folder, workers=1, progress=False)

    def build(self, root, path, **changes):
        given = {"kind": "dicom", "modality": "ct", "split": (100, 0, 0)} | changes
        built = build_manifest(OwnData(root=root, **given), path)
        problems = check_manifest(built.manifest)
        assert [str(problem) for problem in problems if problem.severity == "error"] == []
        return built

    @pytest.mark.parametrize("compression", COMPRESSIONS)
    def test_compressed_series_without_suffix(self, tmp_path, write_dicom, compression):
        if not encoder_of(compression).is_available:
            pytest.skip(f"no encoder of {compression} is installed")
        volume = ramps(8)
        volume[0, 0, 0] = 17
        for number, pixels in enumerate(volume):
            place = {"ImagePositionPatient": [0.0, 0.0, 2.0 * number], "ImageOrientationPatient": AXIAL}
            scale = {"PixelSpacing": [1, 1], "RescaleSlope": 1, "RescaleIntercept": -1000, "PatientID": "p"}
            name = tmp_path / "dicom" / f"I{7 - number:06d}"  # names run against the places
            write_dicom(name, pixels, compression=compression, StudyInstanceUID="1.1", **place, **scale)
        (tmp_path / "dicom" / "DICOMDIR").write_bytes(b"x")
        built = self.build(tmp_path / "dicom", tmp_path / "manifest.json")
        array = read_volume(built.manifest.training[0].image).array
        assert array[:, 20, 20].tolist() == list(range(8)) and array[0, 0, 0] == -983
        assert self.stored(built.manifest)[0]["image"].shape == (1, 8, 32, 32) and built.left_out == ()

    @pytest.mark.parametrize(
        ("modality", "compression"), [("CT", None), ("CT", "RLELossless"), ("MR", "JPEG2000Lossless")]
    )
    def test_enhanced(self, tmp_path, write_dicom, modality, compression):
        fields = frame_groups(range(8)) | {"Modality": modality, "PatientID": "p", "StudyInstanceUID": "1.1"}
        write_dicom(tmp_path / "in" / "IM1", ramps(8), compression=compression, **fields)
        built = self.build(tmp_path / "in", tmp_path / "manifest.json", modality=modality.lower().replace("mr", "mri"))
        volume = read_volume(built.manifest.training[0].image)
        assert volume.array[:, 20, 20].tolist() == list(range(8)) and volume.spacing == (1.0, 0.5, 0.75)
        assert len(self.stored(built.manifest)) >= 1

    def test_two_series_in_one_folder(self, tmp_path):
        for number, slices in enumerate((8, 10)):
            folder = tmp_path / f"s{number}"
            write_dicom_series(folder, ramps(slices), modality="CT", PatientID=SECRET, StudyInstanceUID="1.1")
            for path in folder.iterdir():
                (tmp_path / "flat").mkdir(exist_ok=True)
                path.rename(tmp_path / "flat" / f"{number}-{path.name}")
        built = self.build(tmp_path / "flat", tmp_path / "manifest.json", series="all")
        items = built.manifest.training
        assert sorted(read_volume(item.image).array.shape[0] for item in items) == [8, 10]
        assert all(item.image.parent == tmp_path / "manifest.files" for item in items)
        assert any("2 series lay among other DICOM files" in note for note in built.notes)
        record = json.loads((tmp_path / "manifest.build.json").read_text())
        assert record["series"][0]["series"] == 2 and len(record["series"][0]["chosen"]) == 2
        built = self.build(tmp_path / "flat", tmp_path / "manifest.json")
        (item,) = built.manifest.training
        assert len(list(item.image.iterdir())) == 10 and len(list((tmp_path / "manifest.files").iterdir())) == 1
        assert "1 studies with 2 series: 1 taken (1 axial; 10 slices)." in built.notes


def test_a_file_that_may_not_be_read_is_left_out(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "1.dcm").write_bytes(b"x")
    monkeypatch.setattr(own_dicom, "is_dicom", refuse)
    found, left = find_dicom(tmp_path, modality=get_modality("ct"))
    assert found == [] and [entry.where for entry in left] == ["1.dcm"]
    assert "(PermissionError)" in left[0].reason
