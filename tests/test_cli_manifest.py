"""``medcoss manifest build`` and ``show``: from a folder to a checked manifest."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from medcoss_components.data.manifest import read_manifest
from medcoss_components.data.synthetic import synthetic_manifest
from medcoss_components.data.writers import write_picture


@pytest.fixture
def films(tmp_path):
    """30 pictures of 30 patients, a table of labels, and 25 files that are no pictures."""
    with open(tmp_path / "labels.csv", "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file", "label", "patient"])
        for number in range(30):
            pixels = np.random.default_rng(number).integers(0, 255, (20, 24)).astype(np.uint8)
            write_picture(tmp_path / f"{number}.png", pixels)
            writer.writerow([f"{number}.png", "yes" if number % 3 else "no", f"p{number}"])
    for number in range(25):
        (tmp_path / f"{number}.txt").write_text("x")
    return tmp_path


def build(medcoss, films, *more):
    given = ("--from", "images", "--modality", "xray", "--labels", films / "labels.csv", *more)
    return medcoss("manifest", "build", films, films / "manifest.json", *given)


def test_help(medcoss):
    for command, words in (
        ("build", ("--from", "--masks", "Example: medcoss manifest build")),
        ("show", ("--contact",)),
    ):
        status, out, _ = medcoss("manifest", command, "--help")
        assert status == 0 and all(word in out for word in words)


def test_build_check_and_show(medcoss, films):
    status, out, err = build(medcoss, films, "--contact-sheet", films / "sheet.png", "--name", "chests")
    assert status == 0, err
    lines = out.splitlines()
    assert lines[0] == "chests 1: xray, licence: not stated"
    assert [line.split()[:2] for line in lines[1:5]] == [
        ["label", "training"],
        ["all", "21"],
        ["no", "7"],
        ["yes", "14"],
    ]
    assert "left out: 0.txt, 1.txt, 10.txt and 22 more: files ending in .txt are not read here" in lines
    assert lines[-2].endswith(f"25 left out; next: medcoss manifest check {films / 'manifest.json'}")
    assert (films / "sheet.png").is_file() and "treat it like the data" in lines[-1]
    assert medcoss("manifest", "check", films / "manifest.json")[0] == 0
    again = build(medcoss, films, "--contact-sheet", films / "sheet.png", "--name", "chests")
    assert again[:2] == (0, out)  # neither the sheet nor the manifest counts as data
    kept = build(medcoss, films, "--exclude", films / "0.png", "--exclude", films / "sheet.png")[1]
    assert "29 items, 26 left out" in kept and "labels.csv line 2: no file of this name was found" in kept
    build(medcoss, films, "--exclude", films / "sheet.png", "--name", "chests")
    status, shown, _ = medcoss("manifest", "show", films / "manifest.json", "--contact-sheet", films / "two.png")
    assert status == 0 and shown.splitlines()[:5] == lines[:5] and (films / "two.png").is_file()


def test_notes_and_unreadable_pictures_are_printed(medcoss, films):
    (films / "labels.csv").write_text("file,label\n" + "".join(f"{n}.png,{n % 2}\n" for n in range(4)))
    (films / "3.png").write_bytes((films / "3.png").read_bytes()[:-40])
    status, out, _ = build(medcoss, films, "--contact-sheet", films / "sheet.png", "--split", "50/25/25")
    assert status == 0 and "note: 4 of 4 items have no patient" in out and "contact sheet: item " in out
    status, out, _ = medcoss("manifest", "show", films / "manifest.json", "--contact-sheet", films / "sheet.png")
    assert status == 0 and "contact sheet: item " in out


def test_many_reasons_are_cut_short(medcoss, films):
    for number in range(25):
        (films / f"{number}.txt").rename(films / f"{number}.{number}x")
    status, out, _ = build(medcoss, films)
    assert status == 0 and "left out: for 5 more reasons, all in manifest.build.json" in out


def test_names_of_patients(medcoss, films):
    (films / "labels.csv").write_text("file,label,patient\n" + "".join(f"{n}.png,{n % 2},{n}\n" for n in range(9)))
    status, out, _ = build(medcoss, films)
    assert status == 0 and "note: The names of 9 of 9 files tell who the patient is" in out
    assert (films / "manifest.files").is_dir()
    status, out, _ = build(medcoss, films, "--keep-names")
    assert status == 0 and "tell who the patient is" not in out and not (films / "manifest.files").exists()
    assert {item.image.parent for item in read_manifest(films / "manifest.json").training} == {films}


@pytest.mark.parametrize(
    ("more", "shown"),
    [
        (("--split", "80/20"), "three numbers such as 70/10/20, got '80/20'"),
        (("--masks", "x"), "give one of both"),
        (("--label-column", "findings"), "no column 'findings'"),
    ],
)
def test_errors_on_one_line(medcoss, films, more, shown):
    status, _, err = build(medcoss, films, *more)
    assert status == 1 and err.startswith("error: ") and shown in err and len(err.splitlines()) == 1


def test_show_finds_files_elsewhere(medcoss, tmp_path):
    path = synthetic_manifest(tmp_path / "data", "xray", count=4)
    status, out, _ = medcoss("manifest", "show", path, "--dataset-dir", tmp_path / "data")
    assert status == 0 and read_manifest(path).name in out
