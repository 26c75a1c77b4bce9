"""``medcoss manifest show`` as a command of its own: counts, statistics, contact sheet, JSON."""

import json

import pytest
import typer
from typer.testing import CliRunner

from medcoss_components import cli_show
from medcoss_components.data import manifest_statistics
from medcoss_components.data.synthetic import synthetic_manifest


@pytest.fixture
def show():
    app = typer.Typer()
    app.command("other")(lambda: None)
    cli_show.attach(app)
    return lambda *arguments: CliRunner().invoke(app, ["show", *map(str, arguments)])


@pytest.fixture
def films(tmp_path):
    return synthetic_manifest(tmp_path / "data", "xray", count=4, validation=2, shape=(20, 30))


class TestShow:
    def test_counts_and_measures(self, show, films):
        done = show(films)
        assert done.exit_code == 0
        assert done.stdout.startswith("synthetic-xray 0: xray, licence: CC0-1.0\nlabel ")
        lines = {line.split("  ")[0]: line.split() for line in done.stdout.splitlines()}
        assert done.stdout.count("30 x 20") == 6  # least, median and greatest of two splits
        assert "intensity" in lines and "items (groups); a group has 1 to 1 items, 1 on average" in done.stdout

    def test_counts_only(self, show, films, monkeypatch):
        monkeypatch.setattr(manifest_statistics, "statistics", None)
        done = show(films, "--counts-only")
        assert done.exit_code == 0 and "intensity" not in done.stdout

    def test_json(self, show, films, tmp_path):
        done = show(films, "--json", "--contact-sheet", tmp_path / "sheet.png", "--seed", 1)
        content = json.loads(done.stdout)
        assert content["items"] == {"training": 4, "validation": 2, "testing": 0}
        assert content["sizes"]["training"]["axes"]["width"] == {"min": 30, "median": 30, "max": 30}
        assert "treat it like the data" in done.stderr and (tmp_path / "sheet.png").is_file()

    def test_missing_files_are_counted(self, show, films, tmp_path):
        for file in (films.parent).rglob("training-000*"):
            file.unlink()
        done = show(films)
        assert done.exit_code == 0 and "3 (1 unreadable)" in done.stdout

    def test_contact_sheet(self, show, films, tmp_path):
        done = show(films, "--counts-only", "--contact-sheet", tmp_path / "sheet.png")
        assert done.stdout.splitlines()[-1].startswith(f"contact sheet: {tmp_path / 'sheet.png'} (shows images")

    def test_texts(self, show, tmp_path):
        done = show(synthetic_manifest(tmp_path / "data", "report", count=3))
        assert "training, characters" in done.stdout and "training, words" in done.stdout
