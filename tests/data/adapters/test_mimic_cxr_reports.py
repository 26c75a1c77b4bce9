"""MIMIC-CXR reports: miniatures of the tree, the archive and the tables, with made-up texts and numbers."""

import csv
import gzip
import zipfile

import numpy as np
import pytest

from medcoss_components.data.adapters.findings import DatasetSource
from medcoss_components.data.adapters.mimic_cxr_reports import find
from medcoss_components.data.adapters.mimic_cxr_studies import Studies
from medcoss_components.data.dataset_building import build_dataset_manifest
from medcoss_components.data.manifest import check_manifest, read_manifest
from medcoss_components.data.modalities import get_modality
from medcoss_components.errors import InputError

REPORT = (
    " FINAL REPORT\n INDICATION:  Cough.\n\n FINDINGS:\n\n Lungs of ___ {0}\n are clear.\n\n IMPRESSION:  Normal {0}.\n"
)
STUDIES = {"50000001": "10000001", "50000002": "10000001", "50000003": "10000002", "50000004": "11000001"}
SPLITS = {"10000001": "train", "10000002": "validate", "11000001": "test"}


def place(study):
    patient = STUDIES[study]
    return f"files/p{patient[:2]}/p{patient}/s{study}"


def write_table(path, columns, rows):
    """A table, packed where the name ends in .gz."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(rows)


def write_study_list(root):
    rows = [(patient, study, f"{place(study)}.txt") for study, patient in STUDIES.items()]
    write_table(root / "cxr-study-list.csv.gz", ("subject_id", "study_id", "path"), rows)


def write_split_list(root, splits=SPLITS):
    rows = [(f"image-{study}-{k}", study, STUDIES[study], splits[STUDIES[study]]) for study in STUDIES for k in (0, 1)]
    write_table(root / "mimic-cxr-2.0.0-split.csv.gz", ("dicom_id", "study_id", "subject_id", "split"), rows)


def write_sections(root, rows=None):
    rows = rows or [(f"s{study}", f"Normal\n {study}.", "Clear  lungs.", "", "None.") for study in STUDIES]
    columns = ("study", "impression", "findings", "last_paragraph", "comparison")
    write_table(root / "mimic_cxr_sectioned.csv", columns, rows)


@pytest.fixture
def root(tmp_path):
    """Four reports of three patients, a folder of images, and what else comes with the download."""
    base = tmp_path / "mimic"
    for study in STUDIES:
        path = base / f"{place(study)}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(REPORT.format(study))
    (base / place("50000001")).mkdir()
    (base / place("50000001") / "image.dcm").write_bytes(b"image")
    (base / "LICENSE.txt").write_text("x")
    (base / "files/p10/index.html").write_text("x")
    return base


def run(root, **settings):
    where = DatasetSource(root=root, modality=get_modality("report"), files_dir=root, settings=settings)
    found, left = find(where)
    return {item.name: item for item in found}, {entry.where: entry.reason for entry in left}


def as_archive(root):
    """Pack the tree as the publisher does and take it away."""
    import shutil

    with zipfile.ZipFile(root / "mimic-cxr-reports.zip", "w") as archive:
        for path in sorted(root.glob("files/**/*.txt")):
            archive.write(path, path.relative_to(root).as_posix())
    shutil.rmtree(root / "files")


def test_text_files(root):
    found, left = run(root)
    assert list(found) == [place(study) for study in STUDIES] and not left
    item = found[place("50000003")]
    assert item.text == "Lungs of ___ 50000003 are clear. Normal 50000003."
    assert (item.patient, item.split, item.label) == ("10000002", "", None)


def test_the_number_of_reports_is_compared_with_the_published_one(root, monkeypatch):
    (root / f"{place('50000002')}.txt").write_text("")
    source = DatasetSource(root=root, modality=get_modality("report"), files_dir=root, settings={})
    find(source)
    assert source.notes == ["4 reports were read, published are 227835 (-227831)."]
    monkeypatch.setattr("medcoss_components.data.adapters.mimic_cxr_reports.PUBLISHED", 4)
    source.notes.clear()
    find(source)
    assert source.notes == []


def test_archive_gives_the_same_as_the_tree(root):
    tree, _ = run(root)
    as_archive(root)
    found, left = run(root)
    assert found == tree and not left


def test_table_gives_the_same_names_and_patients(root):
    tree, _ = run(root)
    write_sections(root)
    write_study_list(root)
    found, left = run(root)
    assert {name: item.patient for name, item in found.items()} == {name: item.patient for name, item in tree.items()}
    assert found[place("50000001")].text == "Clear lungs. Normal 50000001." and not left
    assert run(root, reports="files")[0] == tree


def test_published_split_is_by_study_then_by_patient(root):
    write_split_list(root)
    late = root / "files/p10/p10000002/s50000009.txt"
    late.write_text(REPORT.format("50000009"))
    stranger = root / "files/p19/p19000001/s50000010.txt"
    stranger.parent.mkdir(parents=True)
    stranger.write_text(REPORT.format("50000010"))
    found, left = run(root)
    splits = [item.split for item in found.values()]
    assert splits == ["training", "training", "validation", "validation", "testing", ""] and not left


def test_split_list_elsewhere(root, tmp_path):
    (tmp_path / "jpg").mkdir()
    write_split_list(tmp_path / "jpg")
    found, _ = run(root, split_file=str(tmp_path / "jpg/mimic-cxr-2.0.0-split.csv.gz"))
    assert found[place("50000004")].split == "testing"
    with pytest.raises(InputError, match=r"split_file: missing\.csv: no such file"):
        run(root, split_file="missing.csv")


def test_defective_files_are_left_out(root):
    patient = root / "files/p10/p10000002"
    (patient / "s50000003.txt").write_text("")
    (patient / "s50000005.txt").write_bytes(b"IMPRESSION: caf\xe9 is seen.")
    (patient / "s50000006.txt").write_bytes(b"IMPRESSION: \0\0\0")
    (patient / "s50000007.txt").write_text(" INDICATION:  Cough.\n\n No heading.")
    (patient / "s50000008.txt").write_text("IMPRESSION: Normal.")
    (patient / "s50000009.doc").write_text("x")
    (root / "files/p10/q10000003").mkdir()
    (root / "files/other").mkdir()
    (root / "my notes.txt").write_text("x")
    found, left = run(root, minimum_words=3)
    assert set(found) == {place(study) for study in STUDIES} - {place("50000003")}
    base = "files/p10/p10000002"
    assert left == {
        f"{base}/s50000003": "the report is empty",
        f"{base}/s50000005": "not UTF-8",
        f"{base}/s50000006": "no text",
        f"{base}/s50000007": "the report has no findings and no impression",
        f"{base}/s50000008": "fewer than 3 words",
        f"{base}/s50000009.doc": "not part of the published layout",
        "files/p10/q10000003": "not part of the published layout",
        "files/other": "not part of the published layout",
        "my notes.txt": "not part of the published layout",
    }
    assert run(root, last_paragraph=True)[0][f"{base}/s50000007"].text == "No heading."


def test_a_file_that_cannot_be_read(root, monkeypatch):
    from pathlib import Path

    read_bytes = Path.read_bytes
    broken = root / f"{place('50000002')}.txt"

    def fail(path):
        if path == broken:
            raise OSError("input/output error")
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", fail)
    assert run(root)[1] == {place("50000002"): "cannot be read"}


def test_a_damaged_member_of_the_archive(root):
    (root / "files/p10/notes.txt").write_text("x")
    as_archive(root)
    path = root / "mimic-cxr-reports.zip"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"Lungs of ___ 50000003", b"Lungs of ___ 5000000X"))
    found, left = run(root)
    assert len(found) == 3
    assert left == {
        place("50000003"): "damaged in the archive",
        "mimic-cxr-reports.zip: files/p10/notes.txt": "not part of the published layout",
    }


def test_defective_rows_of_the_table(root):
    write_study_list(root)
    rows = [
        ("s50000001", "Normal.", "Clear lungs.", "", ""),
        ("s50000001", "Again.", "A second one.", "", ""),
        ("s50000002", "", "  ", "The last one.", "None."),
        ("50000003", "", "Number without a letter.", "", ""),
        ("s59999999", "No patient.", "", "", ""),
        ("total", "5", "", "", ""),
    ]
    write_sections(root, rows)
    found, left = run(root, reports="sections")
    assert [item.text for item in found.values()] == ["Clear lungs. Normal.", "Number without a letter."]
    assert left == {
        "mimic_cxr_sectioned.csv row 2": f"a second row of {place('50000001')}",
        place("50000002"): "the report has no findings and no impression",
        "mimic_cxr_sectioned.csv row 5": "no table says which patient it is of",
        "mimic_cxr_sectioned.csv row 6": "no number of a study",
        "1 studies of the tables, such as s50000004": "their report is not there",
    }
    assert run(root, last_paragraph=True)[0][place("50000002")].text == "The last one."


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (lambda root: root.rename(root.with_name("away")), {}, "no such folder"),
        (lambda root: (root / "files").rename(root / "reports"), {}, "holds no mimic_cxr_sectioned.csv, files"),
        (lambda root: None, {"reports": "zip"}, r"holds no mimic-cxr-reports\.zip"),
        (lambda root: None, {"reports": "pdf"}, "reports: must be one of auto, sections, files, zip, got 'pdf'"),
        (lambda root: (root / "files/p10").rename(root / "files/x") and (root / "files/p11").rename(root / "files/y"),
         {}, "holds no folders such as p10/p10000032"),
        (lambda root: write_sections(root), {}, "does not say which patient a study is of"),
        (lambda root: (root / "mimic-cxr-reports.zip").write_bytes(b"none"), {"reports": "zip"}, "cannot be read"),
    ],
)  # fmt: skip
def test_another_layout(root, change, settings, message):
    change(root)
    with pytest.raises(InputError, match=message):
        run(root, **settings)


def test_an_archive_of_something_else(root):
    with zipfile.ZipFile(root / "mimic-cxr-reports.zip", "w") as archive:
        archive.writestr("reports/a.txt", "x")
    with pytest.raises(InputError, match=r"holds no files/p10"):
        run(root, reports="zip")


def test_defective_tables(root):
    write_split_list(root, SPLITS | {"10000002": "held out"})
    with pytest.raises(InputError, match=r"row 5: split must be one of train, validate, test\.$"):
        run(root)
    (root / "mimic-cxr-2.0.0-split.csv.gz").write_bytes(gzip.compress(b"subject_id,study_id,split\n")[:-5])
    with pytest.raises(InputError, match="cannot be read"):
        run(root)
    (root / "mimic-cxr-2.0.0-split.csv.gz").unlink()
    write_table(root / "mimic-cxr-2.0.0-split.csv", ("study_id", "split"), [])
    with pytest.raises(InputError, match="no column subject_id"):
        run(root)
    write_table(root / "mimic-cxr-2.0.0-split.csv", ("study_id", "subject_id", "split"), [("5", "10000001", "train")])
    with pytest.raises(InputError, match=r"row 1: study_id and subject_id must have eight digits"):
        run(root)


def test_what_the_tables_say_is_not_shown():
    assert repr(Studies({"50000001": "10000001"})) == "Studies()"


def test_from_reports_to_a_store(root, tmp_path, vocabulary):
    from medcoss_components.data.store import prepare_store

    path = tmp_path / "manifest.json"
    built = build_dataset_manifest("mimic_cxr_reports", root, path, shares=(50, 50, 0), workers=1)
    counts = built.manifest.counts
    assert sum(counts.values()) == 4 and counts["training"] > 0 < counts["validation"]

    write_split_list(root)
    manifest = build_dataset_manifest("mimic_cxr_reports", root, path, split_by="published", workers=1).manifest
    assert manifest.counts == {"training": 2, "validation": 1, "testing": 1}
    assert len({item.group for item in manifest.training}) == 1
    written = "".join(file.read_text() for file in sorted(tmp_path.glob("manifest*.json")))
    assert not [number for number in (*STUDIES, *SPLITS) if f"s{number}" in written or f"p{number}" in written]
    assert not [problem for problem in check_manifest(read_manifest(path)) if problem.severity == "error"]
    store = prepare_store(manifest=path, store_dir=tmp_path / "store", vocabulary=vocabulary, workers=1)
    texts = [f"Lungs of ___ {study} are clear. Normal {study}." for study in ("50000001", "50000002")]
    assert np.array_equal(store.gather([0, 1]), vocabulary.encode_batch(texts, 112))
