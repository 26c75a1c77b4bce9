"""ADNI: miniatures of a NIfTI download with its search table, with repeats, rows without file and damaged files."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from medcoss_components.data.adapters.adni import find
from medcoss_components.data.dataset_building import build_dataset_manifest
from medcoss_components.data.manifest import check_manifest, read_manifest
from medcoss_components.data.store import prepare_store
from medcoss_components.data.writers import write_nifti
from medcoss_components.errors import InputError

from .miniatures import recipe_source

RAW, SCALED = "MP-RAGE", "MPR__GradWarp__B1_Correction__N3__Scaled"
DAYS = {"bl": "2006-04-18_08_20_30.0", "m06": "2006-11-02_08_16_44.0"}
HEADER = ["Image Data ID", "Subject", "Group", "Sex", "Age", "Visit"]
HEADER += ["Modality", "Description", "Type", "Acq Date", "Format", "Downloaded"]


def disc_volume(seed, shape=(20, 40, 32)):
    """(Z, Y, X) with a bright ball of 12 mm radius at 1.5 x 1 x 1.2 mm."""
    z, y, x = np.indices(shape)
    ball = ((z - 10) * 1.5) ** 2 + (y - 20) ** 2 + ((x - 16) * 1.2) ** 2 <= 144
    return (np.random.default_rng(seed).integers(0, 40, shape) + 400 * ball).astype(np.int16)


class Download:
    """Writes volumes as the archive names them."""

    def __init__(self, root):
        self.root, self.rows = root, []

    def volume(self, subject, description, visit, number, *, row=True, suffix=".nii", folder="S13408", **changes):
        name = f"ADNI_{subject}_MR_{description}_Br_20070319113623975_S13408_I{number}{suffix}"
        path = self.root / "ADNI" / subject / description / DAYS[visit] / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_nifti(path, disc_volume(number), (1.5, 1.0, 1.2))
        if row:
            self.row(subject, visit, number, Description=description.replace("__", "; "), **changes)
        return path

    def row(self, subject, visit, number, **changes):
        values = {"Image Data ID": f"I{number}", "Subject": subject, "Visit": visit, "Modality": "MRI"}
        self.rows.append({name: values.get(name, "") for name in HEADER} | changes)

    def table(self, name="collection.csv"):
        self.root.mkdir(parents=True, exist_ok=True)
        with open(self.root / name, "w", newline="", encoding="utf-8-sig") as stream:
            writer = csv.DictWriter(stream, HEADER, quoting=csv.QUOTE_ALL)
            writer.writeheader()
            writer.writerows(self.rows)


@pytest.fixture
def download(tmp_path):
    """Subject 0295 with two visits and three volumes of the first; subject 0413 with one."""
    made = Download(tmp_path / "download")
    made.volume("002_S_0295", RAW, "bl", 13722)
    made.volume("002_S_0295", SCALED, "bl", 45108)
    made.volume("002_S_0295", SCALED.replace("MPR", "MPR-R"), "bl", 45110)
    made.volume("002_S_0295", RAW, "m06", 40966)
    made.volume("002_S_0413", SCALED, "bl", 45117, suffix=".nii.gz", folder="I45117")
    return made


def run(root, tmp_path, **settings):
    source = recipe_source("adni", root, files_dir=tmp_path / "made.files", **settings)
    found, left = find(source)
    return [number_of(item.name) for item in found], {entry.where: entry.reason for entry in left}, found


def number_of(text):
    return int(text.rpartition("_I")[2].partition(".")[0])


def reasons(left):
    """Number of the image, or row of the table -> reason."""
    return {where if " row " in where else number_of(where): why for where, why in left.items()}


def test_one_volume_of_each_visit(download, tmp_path):
    download.table()
    numbers, left, found = run(download.root, tmp_path)
    assert numbers == [40966, 45108, 45117]
    assert [item.patient for item in found] == ["002_S_0295", "002_S_0295", "002_S_0413"]
    assert {item.size for item in found} == {(32, 40, 20)} and not any(item.split for item in found)
    why = "another volume of the visit is preferred"
    assert reasons(left) == {13722: why, 45110: why}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"keep": "subject"}, [45108, 45117]),
        ({"keep": "image"}, [13722, 40966, 45110, 45108, 45117]),
        ({"descriptions": ["^mprage", "^mpr"]}, [13722, 40966, 45117]),
        ({"descriptions": ["^mprage"]}, [13722, 40966]),
        ({"without": "scaled"}, [13722, 40966]),
    ],
)
def test_settings_decide_what_is_kept(download, tmp_path, settings, expected):
    download.table()
    assert run(download.root, tmp_path, **settings)[0] == expected


def test_without_a_table_the_day_is_the_visit(download, tmp_path):
    assert run(download.root, tmp_path)[0] == [40966, 45108, 45117]
    assert run(download.root / "ADNI", tmp_path)[0] == [40966, 45108, 45117]


def test_the_visit_of_the_table_counts_before_the_day(download, tmp_path):
    for row in download.rows:
        row["Visit"] = "sc"
    download.table()
    assert run(download.root, tmp_path)[0] == [45108, 45117]


def test_defects_are_listed(download, tmp_path):
    subject = "011_S_0002"
    download.volume(subject, "Hippocampal_Mask", "bl", 1)
    download.volume(subject, "Axial_PD_T2_FSE", "bl", 2)
    cut = download.volume(subject, SCALED, "bl", 3)
    cut.write_bytes(cut.read_bytes()[:-100])
    download.volume(subject, RAW, "bl", 4)
    download.volume(subject, RAW, "m06", 5, Subject="011_S_0003")
    download.volume(subject, "MPRAGE_fMRI", "m06", 6, Modality="fMRI")
    series = download.volume(subject, RAW, "m06", 7)
    write_time_points(series)
    download.row(subject, "m12", 8)
    download.row(subject, "m12", 4)
    download.row(subject, "m12", "unknown")
    (download.root / "ADNI" / "stray_I9.nii").write_bytes(series.read_bytes())
    (series.parent / "slice_I10.dcm").write_bytes(b"")
    (download.root / "ADNI" / "ADNI_description_I11.xml").write_text("<a/>")
    (download.root / "notes_I12.docx").write_text("")
    download.table()
    numbers, left, _ = run(download.root, tmp_path)
    assert numbers == [40966, 45108, 45117, 4]
    found = {where: why for where, why in reasons(left).items() if where not in (13722, 45110)}
    assert found.pop(7).startswith("a volume has three axes")
    assert found.pop(3) == "truncated, it has 51452 of 51552 bytes"
    assert found == {
        1: "its description is one of those that are never taken (setting: without)",
        2: "its description is none of those that are taken (setting: descriptions)",
        5: "the search table has another subject for this image",
        6: "the search table says that it is no MRI",
        9: "not in the folder of a subject",
        10: "DICOM is not read here; ask the archive for NIfTI",
        12: "no NIfTI file",
        "collection.csv row 13": "no file of this image",
        "collection.csv row 14": "the image stands in an earlier row too",
        "collection.csv row 15": "no number of an image",
    }


def write_time_points(path):
    import nibabel

    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 8, 8, 5), np.int16), np.eye(4)), path)


def test_the_table_can_be_named(download, tmp_path):
    download.table()
    download.table("second.csv")
    with pytest.raises(InputError, match="2 search tables lie in it"):
        run(download.root, tmp_path)
    _, left, _ = run(download.root, tmp_path, table="second.csv")
    assert left["collection.csv"] == "no NIfTI file"
    (download.root / "second.csv").write_text("Subject,Visit\n")
    with pytest.raises(InputError, match=r"second\.csv: the table has no column Image Data ID"):
        run(download.root, tmp_path, table="second.csv")
    with pytest.raises(InputError, match=r"third\.csv: no such file"):
        run(download.root, tmp_path, table="third.csv")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": "day"}, "keep: must be one of visit, subject, image, got 'day'"),
        ({"without": 3}, r"without: must be a list of texts such as \[a, b\], got 3"),
        ({"without": ["("]}, r"without: '\(' is no regular expression"),
        ({"descriptions": ["*"]}, r"descriptions: '\*' is no regular expression"),
    ],
)
def test_settings_out_of_range(download, tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        run(download.root, tmp_path, **settings)


def test_another_layout_is_refused(tmp_path):
    (tmp_path / "brains").mkdir()
    write_nifti(tmp_path / "brains" / "a.nii", disc_volume(0), (1, 1, 1))
    with pytest.raises(InputError, match="holds no NIfTI file below a subject's folder"):
        run(tmp_path / "brains", tmp_path)


def test_from_files_to_prepared_samples(download, tmp_path):
    for subject in range(3):
        download.volume(f"100_S_{subject:04d}", SCALED, "bl", 900 + subject)
    download.table()
    built = build_dataset_manifest("adni", download.root, tmp_path / "out" / "adni.json", shares=(60, 40, 0), workers=1)
    counts = built.manifest.counts
    assert sum(counts.values()) == 6 and counts["training"] > 0 and counts["validation"] > 0
    problems = check_manifest(read_manifest(built.path))
    assert [problem for problem in problems if problem.severity == "error"] == []
    modality = {"name": "mri", "dimension": 3, "input_shape": [1, 8, 32, 32], "intensity": "zscore"}
    store = prepare_store(
        manifest=built.path, store_dir=tmp_path / "store", modality=modality, workers=1, progress=False
    )
    sample = np.asarray(store.gather([0]))[0]
    assert sample.shape == (1, 8, 32, 32)
    middle = sample[0, 4] > 0.5 * (sample[0, 4].max() + sample[0, 4].min())
    height, width = middle.any(axis=1).sum(), middle.any(axis=0).sum()
    assert abs(int(height) - int(width)) <= 1 and int(height) >= 14
