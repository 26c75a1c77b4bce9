"""Bars are drawn by one process, and only when they are wanted."""

from __future__ import annotations

import pytest

from medcoss_components.progress import progress, progress_enabled


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"MEDCOSS_PROGRESS": "1"}, True),
        ({"MEDCOSS_PROGRESS": "0"}, False),
        ({"MEDCOSS_PROGRESS": "1", "RANK": "0"}, True),
        ({"MEDCOSS_PROGRESS": "1", "RANK": "2"}, False),
    ],
)
def test_enabled(variables, expected, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert progress_enabled() == expected


def test_shows_by_default(monkeypatch):
    monkeypatch.delenv("MEDCOSS_PROGRESS")
    assert progress_enabled()


def test_bar_counts_an_iterable(monkeypatch, capsys):
    monkeypatch.setenv("MEDCOSS_PROGRESS", "1")
    assert list(progress([1, 2, 3], description="read", unit="file")) == [1, 2, 3]
    shown = capsys.readouterr().err
    assert "read: 100%" in shown and "3/3" in shown and "file" in shown


def test_quiet_bar_still_iterates(capsys):
    assert list(progress(iter([1, 2]), description="read", total=2)) == [1, 2]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("terminal", "interval"), [(True, 0.2), (False, 10.0)])
def test_log_files_get_a_line_every_ten_seconds(terminal, interval, monkeypatch):
    monkeypatch.setenv("MEDCOSS_PROGRESS", "1")
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    with progress(description="read", total=2, initial=1) as bar:
        assert bar.mininterval == interval and bar.n == 1
