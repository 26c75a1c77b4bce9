"""docs/own-data.md, walked through as it stands on made-up files."""

from __future__ import annotations

import csv
import json
import re
import shlex
import textwrap
from pathlib import Path

import numpy as np
import pytest

from medcoss_components.data.manifest import read_manifest
from medcoss_components.data.writers import write_dicom_series, write_nifti, write_picture

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "own-data.md"
SECRET = "MUSTERMANN"


def page_blocks() -> list[str]:
    """The indented blocks of the page, in order."""
    text = PAGE.read_text(encoding="utf-8")
    return [textwrap.dedent(block).strip("\n") for block in re.findall(r"(?:(?<=\n\n)(?:    [^\n]*\n)+)", text)]


def write_table(path: Path, rows: list[dict]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_films(folder: Path) -> None:
    """Twenty radiographs of ten patients, one broken file, a note among them, a row too many."""
    generator, rows = np.random.default_rng(0), []
    (folder / "ward3").mkdir(parents=True)
    for number in range(21):
        name = f"ward3/{number:04d}.png"
        write_picture(folder / name, generator.integers(0, 255, (96, 80), np.uint8))
        label = ("normal", "effusion")[number // 2 % 2]
        rows.append({"file": name, "label": label, "patient": f"p-{number // 2:02d}"})
    (folder / "ward3" / "0020.png").write_bytes(b"no picture")
    (folder / "ward3" / "notes.txt").write_text("x")
    write_table(folder / "labels.csv", [*rows, {"file": "ward3/gone.png", "label": "normal", "patient": "p-11"}])


def write_exports(folder: Path) -> None:
    """Six CT studies with a thin and a thick series, in the patient's folder; of every other one they are mixed."""
    rows = []
    for number in range(6):
        tags = {"PatientID": f"4711{number}", "PatientName": f"{SECRET}^A{number}", "StudyInstanceUID": f"1.2.{number}"}
        for name, slices in (("thin", 12), ("thick", 9)):
            volume = np.random.default_rng(number).integers(-1000, 500, (slices, 32, 40)).astype(np.int16)
            source = folder / f"{name}{number}"  # the writer makes UIDs out of paths
            write_dicom_series(source, volume, modality="CT", SeriesInstanceUID=f"1.3.{number}.{slices}", **tags)
            place = folder / f"{SECRET}_{number}" / ("" if number % 2 else name)
            place.mkdir(parents=True, exist_ok=True)
            for path in source.iterdir():
                path.rename(place / f"{name}{path.stem}")
            source.rmdir()
        rows.append({"study": f"1.2.{number}", "label": ("clear", "lesion")[number % 2]})
    write_table(folder.parent / "findings.csv", rows)


def write_scans(folder: Path) -> None:
    """Volumes of five subjects with masks of a bright cube in a folder of their own."""
    for number in range(5):
        volume = np.random.default_rng(number).normal(size=(16, 20, 24)).astype(np.float32)
        mask = np.zeros(volume.shape, np.uint8)
        mask[6:10, 5:9, 7:12] = 1
        for kind, end, values in (("scans", "", volume + 3 * mask), ("masks", "_seg", mask)):
            (folder / kind).mkdir(exist_ok=True)
            write_nifti(folder / kind / f"sub-{number:02d}{end}.nii.gz", values, (2, 1, 1))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_films(tmp_path / "films")
    write_exports(tmp_path / "exports")
    write_scans(tmp_path)
    sections = ("history", "findings")
    notes = [
        {"text": f"made-up sentence {n}", "section": sections[n % 2], "patient": f"{SECRET} {n // 4}"}
        for n in range(40)
    ]
    write_table(tmp_path / "notes.csv", notes)
    (tmp_path / "bundles").symlink_to(ROOT / "bundles")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_of_the_guide(medcoss, folder):
    shown = ""
    for block in page_blocks():
        if block.startswith(("left out: ", "note: ")):
            assert [line for line in block.splitlines() if line not in shown] == [], shown
        for command in shlex.split(block, comments=True) and block.replace("\\\n", "").splitlines():
            if command.startswith("medcoss "):
                status, out, err = medcoss(*shlex.split(command)[1:])
                assert status == 0 or (status == 1 and " doctor " in command), f"{command}\n{out}\n{err}"
                shown += out
    assert {path.name for path in folder.glob("*.png")} == {"films.png", "ct.png", "scans.png"}
    for name, count in (("films", 20), ("ct", 6), ("scans", 5), ("notes", 40)):
        assert sum(read_manifest(folder / name / "manifest.json").counts.values()) == count
    written = "".join(path.read_text().upper() for path in folder.glob("*/*.json"))
    assert SECRET not in written and SECRET not in shown.upper() and "4711" not in written
    record = json.loads((folder / "ct" / "manifest.build.json").read_text())
    assert {(study["series"], study["chosen"][0]["slices"]) for study in record["series"]} == {(2, 12)}
    first = read_manifest(folder / "ct" / "manifest.json").training[0]
    assert first.image == folder / "ct" / "manifest.files" / first.id
    assert "sub-" in read_manifest(folder / "scans" / "manifest.json").training[0].image.name
    assert any((folder / "stores").iterdir())


def test_options_of_the_guide_exist(medcoss):
    out = medcoss("manifest", "build", "--help")[1] + medcoss("manifest", "prepare", "--help")[1]
    named = set(re.findall(r"(--[a-z][a-z-]+)", PAGE.read_text(encoding="utf-8"))) - {"--manifest"}
    assert {option for option in named if option[:14] not in out} == set()
