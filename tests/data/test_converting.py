"""Files that adapters make: once, in parallel, whole or not at all."""

from __future__ import annotations

import os

import numpy as np

from medcoss_components.data.adapters.converting import FileJob, made_name, make_files
from medcoss_components.data.readers import read_image
from medcoss_components.data.writers import write_picture
from medcoss_components.errors import InputError


def write(partial, *, text):
    """Write a text; "bad" fails halfway."""
    partial = partial / "a.txt" if partial.is_dir() else partial
    partial.write_text(text)
    if text == "bad":
        raise InputError("the text is bad")


def jobs(into, *texts, **options):
    return [
        FileJob(target=into / f"{number}", function=write, arguments={"text": text}, **options)
        for number, text in enumerate(texts)
    ]


def test_several_processes(tmp_path):
    pictures = [np.full((4, 5), value, np.uint8) for value in (1, 2, 3)]
    plan = [
        FileJob(target=tmp_path / f"{value}.png", function=write_picture, arguments={"picture": picture})
        for value, picture in enumerate(pictures)
    ]
    assert make_files(plan, workers=2, description="make") == {}
    for job, picture in zip(plan, pictures, strict=True):
        np.testing.assert_array_equal(read_image(job.target).array, picture)


def test_failures_leave_nothing(tmp_path):
    plan = jobs(tmp_path / "made", "one", "bad", "three")
    assert make_files(plan, workers=1, description="make") == {plan[1].target: "the text is bad"}
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["0", "2"]


def test_what_exists_is_kept_and_leftovers_go(tmp_path):
    plan = jobs(tmp_path, "one", "two")
    plan[0].target.write_text("older")
    (tmp_path / ".1.7.partial").write_text("half")
    assert make_files(plan, workers=1, description="make") == {}
    assert [job.target.read_text() for job in plan] == ["older", "two"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]
    assert make_files(plan, description="make") == {}


def test_folders_appear_whole(tmp_path):
    plan = jobs(tmp_path, "one", "bad", folder=True)
    assert list(make_files(plan, workers=1, description="make")) == [plan[1].target]
    assert (plan[0].target / "a.txt").read_text() == "one" and not plan[1].target.exists()


def test_names_depend_on_the_files_but_show_nothing(tmp_path):
    path = tmp_path / "DOE-JOHN.png"
    path.write_text("x")
    name = made_name("DOE-JOHN", [path], settings={"a": 1}, suffix=".nii.gz")
    assert "DOE" not in name and name.endswith(".nii.gz") and made_name("DOE-JOHN", [path], settings={"a": 1}) in name
    assert made_name("DOE-JOHN", [path], settings={"a": 2}) not in name
    os.utime(path, ns=(1, 1))
    assert made_name("DOE-JOHN", [path], settings={"a": 1}) not in name
