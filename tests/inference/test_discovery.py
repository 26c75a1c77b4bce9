"""Which cases an input holds, and what they are called."""

from __future__ import annotations

import json

import numpy as np
import pytest

from medcoss_components.data.identifiers import hash_identifier
from medcoss_components.data.modalities import get_modality
from medcoss_components.data.writers import write_picture
from medcoss_components.errors import InputError
from medcoss_components.inference.discovery import find_cases, without_paths

PLANE = np.arange(30, dtype=np.uint8).reshape(5, 6)
SALT = "a salt for tests only"  # of tests/conftest.py


def found(path, modality, **options):
    return find_cases(path, modality=get_modality(modality), **options)


def test_pictures_in_a_tree(tmp_path):
    for name in ("b.png", "deep/a.jpg", ".hidden/c.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("not read") if name.endswith("txt") else write_picture(tmp_path / name, PLANE)
    cases = found(tmp_path, "xray").cases
    assert [case.source for case in cases] == ["b.png", "deep/a.jpg"]
    assert cases[1].id == hash_identifier("deep/a.jpg", SALT)
    (single,) = found(tmp_path / "b.png", "xray").cases
    assert (single.source, single.id, single.is_dicom) == ("b.png", cases[0].id, False)


def test_dicom_images_of_another_modality_are_left_out(tmp_path, dicom_file):
    dicom_file[0](tmp_path / "a.dcm", PLANE.astype(np.uint16), Modality="DX")
    dicom_file[0](tmp_path / "b.dcm", PLANE.astype(np.uint16), Modality="US")
    result = found(tmp_path, "xray")
    assert [(case.source, case.is_dicom) for case in result.cases] == [("a.dcm", True)]
    ((source, reason),) = result.skipped
    assert source == "b.dcm" and reason.startswith("the DICOM modality is 'US', expected CR or DX")


def test_series_of_a_dicom_tree(tmp_path, series):
    """Two series in one folder are two cases; a series over two folders is one; others are counted once."""
    volume = np.zeros((3, 4, 5), np.int16)
    series(tmp_path / "one", volume, uid="1.2.1")
    series(tmp_path / "one" / "more", volume, uid="1.2.2")
    for file in (tmp_path / "one" / "more").iterdir():
        file.rename(tmp_path / "one" / f"x{file.name}")
    series(tmp_path / "two" / "left", volume, uid="1.2.3")
    (tmp_path / "two" / "right").mkdir()
    (tmp_path / "two" / "left" / "001.dcm").rename(tmp_path / "two" / "right" / "001.dcm")
    series(tmp_path / "mr", volume, uid="1.2.4", Modality="MR")
    (tmp_path / "two" / "DICOMDIR").write_bytes(b"x")
    result = found(tmp_path, "ct")
    assert [(case.source, len(case.files)) for case in result.cases] == [
        ("one/001.dcm and 2 more", 3),
        ("one/x001.dcm and 2 more", 3),
        ("two", 3),
    ]
    assert result.cases[2].id == hash_identifier("1.2.3", SALT)
    ((source, reason),) = result.skipped
    assert source == "mr/001.dcm and 2 more" and "'MR', expected CT" in reason


def test_series_without_identifier_is_its_folder(tmp_path, series):
    series(tmp_path / "a", np.zeros((2, 4, 5), np.int16), SeriesInstanceUID="")
    series(tmp_path / "b", np.zeros((2, 4, 5), np.int16), SeriesInstanceUID="")
    assert [case.source for case in found(tmp_path, "ct").cases] == ["a", "b"]


def test_volume_files(tmp_path, nifti, series):
    nifti(tmp_path / "x" / "v.nii.gz", np.zeros((3, 4, 5), np.int16))
    series(tmp_path / "s", np.zeros((1, 4, 5), np.int16))
    assert [(case.source, case.is_dicom) for case in found(tmp_path, "ct").cases] == [
        ("x/v.nii.gz", False),
        ("s/001.dcm", True),
    ]


def test_texts(tmp_path):
    (tmp_path / "a.csv").write_text("id,body\n7,first\n7,second\n,third\n")
    (tmp_path / "b.jsonl").write_text('{"body": "fourth"}\n')
    cases = found(tmp_path, "report", columns={"text": "body"}).cases
    assert [case.source for case in cases] == ["a.csv:7", "a.csv:7#2", "a.csv:row-3", "b.jsonl:row-1"]
    assert [case.text for case in cases] == ["first", "second", "third", "fourth"]
    assert "second" not in repr(cases[1]) and len({case.id for case in cases}) == 4


def test_manifest(tmp_path):
    write_picture(tmp_path / "a.png", PLANE)
    items = [{"id": "a1", "image": "a.png", "group": "g"}, {"id": "a/2", "image": "a.png", "group": "g"}]
    head = {"schema_version": 1, "name": "n", "version": "1", "modality": "xray", "licence": "l", "source": "s"}
    document = head | {"training": items, "validation": [], "testing": [], "preparation": {"fit": "pad"}}
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(document))
    result = found(path, "xray", split="training")
    assert [case.source for case in result.cases] == ["a.png", "a.png"]
    assert [case.id for case in result.cases] == ["a1", hash_identifier("a/2", SALT)]
    assert result.preparation == {"fit": "pad"}
    with pytest.raises(InputError, match="split 'testing' is empty"):
        found(path, "xray")
    with pytest.raises(InputError, match="holds xray, the network reads ct"):
        found(path, "ct")


def test_manifest_of_texts_and_of_series(tmp_path, series):
    folder = series(tmp_path / "s", np.zeros((2, 4, 5), np.int16))
    head = {"schema_version": 1, "name": "n", "version": "1", "licence": "l", "source": "s"}
    for name, item in (("report", {"text": "words"}), ("ct", {"image": folder.name})):
        document = head | {"modality": name, "training": [], "validation": []}
        document["testing"] = [{"id": "a", "group": "g"} | item]
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    (text,) = found(tmp_path / "report.json", "report").cases
    assert (text.text, text.source) == ("words", "a")
    (scan,) = found(tmp_path / "ct.json", "ct").cases
    assert len(scan.files) == 2 and scan.source == "s"


def test_same_name_twice(tmp_path):
    (tmp_path / "a.csv").write_text("id,text\n7,first\n7#2,second\n7,third\n")
    with pytest.raises(InputError, match="a.csv:7#2 and a.csv:7#2 have the same identifier"):
        found(tmp_path / "a.csv", "report")


def test_nothing_found(tmp_path, dicom_file):
    with pytest.raises(InputError, match="absent: no such file or folder"):
        found(tmp_path / "absent", "xray")
    dicom_file[0](tmp_path / "b.dcm", PLANE.astype(np.uint16), Modality="US")
    with pytest.raises(InputError, match="holds no case of modality xray .*left out: 1, the first because the DICOM"):
        found(tmp_path, "xray")


def test_paths_are_taken_out_of_reasons(tmp_path):
    path = tmp_path / "NAME" / "file.nii"
    assert without_paths(f"{path}: is damaged", [path]) == "is damaged"
    assert without_paths(f"{path}: is damaged", [tmp_path / "a.nii", path, path.with_name("b.nii")]) == "is damaged"
    assert without_paths("nothing to do", []) == "nothing to do"
    assert without_paths("12 rows in 12", [tmp_path / "12"]) == "12 rows in 12"
    assert without_paths("DOE12 in DOE", [tmp_path / "DOE"]) == "DOE12 in (file)"
    assert without_paths("slice sizes differ in file.nii", [path]) == "slice sizes differ in (file)"


def test_localizers_and_screens_are_no_volumes(tmp_path, series, dicom_file):
    """A study as an archive exports it: localizer, dose page, one series; also a localizer inside of the series."""
    volume = np.zeros((3, 4, 5), np.int16)
    series(tmp_path / "study", volume, uid="1.2.1")
    series(tmp_path / "scout", volume[:2], uid="1.2.2", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    series(tmp_path / "study" / "top", volume[:1], uid="1.2.1", ImageType=["ORIGINAL", "PRIMARY", "AXIAL", "Topogram"])
    dicom_file[0](tmp_path / "dose.dcm", PLANE.astype(np.uint16), SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    result = found(tmp_path, "ct")
    assert [(case.source, len(case.files)) for case in result.cases] == [("study", 3)]
    assert result.skipped == [
        ("dose.dcm", "a secondary capture without a place, such as a report or a screen"),
        ("scout/001.dcm and 1 more", "a localizer"),
        ("study/top/001.dcm", "a localizer"),
    ]


def test_predictions_below_the_input_are_no_cases(tmp_path):
    for name in ("a.png", "predictions/masks/x.png", "predictions/overlays/x.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_picture(tmp_path / name, PLANE)
    (tmp_path / "predictions" / "finished.jsonl").write_text("")
    assert [case.source for case in found(tmp_path, "xray").cases] == ["a.png"]
