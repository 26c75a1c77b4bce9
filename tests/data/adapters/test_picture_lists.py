"""Pictures by key, chosen kinds, and missing files as one line where there are many."""

from __future__ import annotations

from pathlib import Path

import pytest

from medcoss_components.data.adapters import picture_lists
from medcoss_components.data.adapters.picture_lists import by_key, chosen, missing_files, only_chosen
from medcoss_components.errors import InputError

ROOT = Path("root")


def test_the_first_file_of_a_key_counts():
    files = [ROOT / "a" / "1.png", ROOT / "b" / "1.png", ROOT / "b" / "2.png", ROOT / "list.csv"]
    found, left, others = by_key(files, ROOT, lambda path: path.stem if path.suffix == ".png" else None)
    assert found == {"1": files[0], "2": files[2]} and others == [files[3]]
    assert [(entry.where, entry.reason) for entry in left] == [("b/1.png", "a/1.png is the same image")]


def test_settings_choose_among_known_names():
    assert chosen({"views": ["PA", "AP"]}, "views", ("AP", "PA")) == ("PA", "AP")
    assert chosen({}, "views", ("AP",)) is None


@pytest.mark.parametrize("value", [[], ["PA", "X"], 3, [["PA"]], ""])
def test_other_settings_are_refused(value):
    with pytest.raises(InputError, match=r"views must be null or list some of AP, PA, got"):
        chosen({"views": value}, "views", ("PA", "AP"))


def test_other_kinds_are_counted():
    rows, left = only_chosen(["a1", "b1", "b2", "c1"], lambda row: row[0], ("a",), setting="parts")
    assert rows == ["a1"]
    assert [(entry.where, entry.reason) for entry in left] == [
        ("b", "2 images, as parts is set to a"),
        ("c", "1 images, as parts is set to a"),
    ]
    assert only_chosen(["a1"], lambda row: row[0], None, setting="parts") == (["a1"], [])


def test_many_missing_files_are_one_line(monkeypatch):
    monkeypatch.setattr(picture_lists, "LISTED", 1)
    assert [entry.where for entry in missing_files(["a"], "table", "not there")] == ["a"]
    (entry,) = missing_files(["a", "b"], "table", "not there")
    assert (entry.where, entry.reason) == ("table", "2 images: not there")
