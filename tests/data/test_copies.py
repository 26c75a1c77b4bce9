"""Items of equal content: what is read to find them, and which one stays."""

from __future__ import annotations

import pytest

from medcoss_components.data import copies
from medcoss_components.data.adapters.findings import Found
from medcoss_components.data.copies import PREFIX_BYTES, without_copies
from medcoss_components.errors import InputError


@pytest.fixture
def make(tmp_path):
    """``make(name, content, **fields) -> Found`` with a file of that content."""

    def item(name, content, **fields):
        path = tmp_path / name
        path.write_bytes(content)
        return Found(name=name, path=path, files=(path,), **fields)

    return item


@pytest.fixture
def read(monkeypatch):
    """Names of the files that were read: their beginning, and as a whole."""
    seen = {"beginning": [], "whole": []}
    beginning, whole = copies._beginning, copies.sha256_file
    monkeypatch.setattr(copies, "_beginning", lambda path: seen["beginning"].append(path.name) or beginning(path))
    monkeypatch.setattr(copies, "sha256_file", lambda path: seen["whole"].append(path.name) or whole(path))
    return seen


def test_no_more_is_read_than_needed(make, read):
    start = b"x" * PREFIX_BYTES
    found = [
        make("alone", b"123"),
        make("a", b"12"),
        make("b", b"21"),
        make("long1", start + b"1"),
        make("long2", start + b"2"),
        make("long3", start + b"1"),
    ]
    kept, left, notes = without_copies(found, rule="drop")
    assert [item.name for item in kept] == ["alone", "a", "b", "long1", "long2"] and notes == []
    assert [(entry.where, entry.reason) for entry in left] == [("long3", "a copy of long1")]
    assert sorted(read["beginning"]) == ["a", "b", "long1", "long2", "long3"]
    assert sorted(read["whole"]) == ["long1", "long2", "long3"]


@pytest.mark.parametrize(
    ("splits", "stays"),
    [
        (("training", "testing", "validation"), 1),
        (("training", "validation", "training"), 1),
        (("training", "training", "training"), 0),
        (("", "", ""), 0),
    ],
)
def test_the_copy_in_testing_stays_then_the_one_in_validation(make, splits, stays):
    found = [make(f"i{number}", b"same", split=split) for number, split in enumerate(splits)]
    kept, left, _ = without_copies(found, rule="drop")
    assert [item.name for item in kept] == [f"i{stays}"]
    where = f" in {splits[stays]}" if len(set(splits)) > 1 else ""
    assert {entry.reason for entry in left} == {f"a copy of i{stays}{where}"}


def test_labels_that_contradict(make):
    found = [make("a", b"same", label="x"), make("b", b"same", label="y"), make("c", b"more", label="x")]
    kept, left, _ = without_copies(found, rule="drop")
    assert [item.name for item in kept] == ["c"] and [entry.where for entry in left] == ["a", "b"]
    kept, left, _ = without_copies(found, rule="drop", by_label=False)
    assert [item.name for item in kept] == ["a", "c"]


def test_texts_and_known_contents(read):
    found = [
        Found(name="t1", text="one  two"),
        Found(name="s1", content="digest"),
        Found(name="t2", text="one two "),
        Found(name="s2", content="digest"),
        Found(name="t3", text="one three"),
    ]
    _, _, (note,) = without_copies(found, rule="keep")
    assert note.startswith("4 items share their content") and read == {"beginning": [], "whole": []}
    with pytest.raises(InputError, match=r"4 items share their content with another one \(t1 = t2; s1 = s2\)"):
        without_copies(found, rule="refuse")


def test_files_of_a_series_count_together(tmp_path):
    found = []
    for name, contents in (("one", (b"1", b"2")), ("two", (b"1", b"2")), ("three", (b"1", b"3"))):
        files = []
        for number, content in enumerate(contents):
            files.append(tmp_path / f"{name}{number}")
            files[-1].write_bytes(content)
        found.append(Found(name=name, path=tmp_path, files=tuple(files)))
    kept, _, _ = without_copies(found, rule="drop")
    assert [item.name for item in kept] == ["one", "three"]


def test_a_file_that_went_away_is_left_out_and_the_rest_goes_on(make):
    found = [make("gone", b"12"), make("a", b"12"), make("b", b"12")]
    found[0].path.unlink()
    kept, left, _ = without_copies(found, rule="drop")
    assert [item.name for item in kept] == ["a"]
    assert [(entry.where, entry.reason) for entry in left] == [
        ("gone", "cannot be read (No such file or directory)"),
        ("b", "a copy of a"),
    ]


def test_portions_keep_the_order(make, monkeypatch):
    monkeypatch.setattr(copies, "_PORTION", 3)
    found = [make(f"{number:02d}", bytes([number // 2])) for number in range(10)]
    kept, left, _ = without_copies(found, rule="drop")
    assert [item.name for item in kept] == ["00", "02", "04", "06", "08"]
    assert [entry.where for entry in left] == ["01", "03", "05", "07", "09"]
