"""Flattening of settings and the tags that name the commit."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from medcoss_components.tracking.parameters import MAX_KEY, MAX_VALUE, clean_key, flatten_parameters, value_text
from medcoss_components.tracking.provenance import git_tags


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3e-4, "0.0003"),
        (True, "true"),
        (None, "null"),
        ("", ""),
        (Path("a") / "b", "a/b"),
        ((0.9, 0.95), "[0.9, 0.95]"),
        ({3, 1, 2}, "[1, 2, 3]"),
        ([Path("a")], '["a"]'),
        ({}, "{}"),
    ],
)
def test_value_text(value, text):
    assert value_text(value) == text


def test_nested_settings():
    assert flatten_parameters({"a": {"b": {"c": 1}, "d": {}}, "e": 2}) == {"a.b.c": "1", "a.d": "{}", "e": "2"}


def test_long_list_is_counted_and_hashed_not_shown():
    text = value_text([f"patient-{number}" for number in range(33)])
    assert text.startswith("33 values, sha256 ")
    assert "patient" not in text


def test_long_text_is_cut():
    text = value_text("x" * (MAX_VALUE + 1))
    assert len(text) == MAX_VALUE
    assert text.endswith("…")


@pytest.mark.parametrize(
    ("key", "cleaned"),
    [
        ("loss/xray", "loss/xray"),
        ("a@b(c)", "a_b_c_"),
        ("../a//b/", "a/b"),
        ("", "_"),
        ("/", "_"),
        ("k" * 300, "k" * MAX_KEY),
    ],
)
def test_clean_key(key, cleaned):
    assert clean_key(key) == cleaned


def run_git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


class TestGitTags:
    @pytest.fixture
    def package(self, tmp_path):
        folder = tmp_path / "repository" / "medcoss_components"
        folder.mkdir(parents=True)
        (folder / "errors.py").write_text("one\n")
        run_git(tmp_path / "repository", "init", "-q")
        return folder

    def test_commit_and_changes(self, package):
        run_git(package, "add", ".")
        run_git(package, "commit", "-qm", "one")
        tags = git_tags(package)
        assert len(tags["mlflow.source.git.commit"]) == 40
        assert tags["medcoss.git_dirty"] == "false"
        (package / "errors.py").write_text("two\n")
        assert git_tags(package)["medcoss.git_dirty"] == "true"

    def test_repository_without_a_commit(self, package):
        run_git(package, "add", ".")
        assert git_tags(package) == {}

    def test_package_that_is_not_part_of_the_repository(self, package):
        assert git_tags(package) == {}

    def test_no_git_at_all(self, package, monkeypatch):
        monkeypatch.setenv("PATH", "")
        assert git_tags(package) == {}
