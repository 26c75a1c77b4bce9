"""``medcoss retention`` on a finished tiny chain."""

from __future__ import annotations

import json
import shutil

import pytest
import typer
from typer.testing import CliRunner

from medcoss_components import cli_retention
from medcoss_components.cli_retention import read_probe_file
from medcoss_components.errors import InputError

runner = CliRunner()


@pytest.fixture
def application():
    app = typer.Typer()
    app.callback()(lambda: None)
    cli_retention.attach(app)
    return app


@pytest.fixture
def copy(finished, tmp_path):
    target = finished.parent / f"copy of {tmp_path.name}"
    shutil.copytree(finished, target)
    return target


def test_own_probes_are_scored_and_the_others_stay(application, copy, labelled, tmp_path):
    folder = labelled["tiny_text"].parent
    (tmp_path / "data").symlink_to(folder)
    probes = tmp_path / "probes.yaml"
    probes.write_text("- name: mine\n  data_manifest: data/manifest.json\n  limit: 6\n")
    outcome = runner.invoke(application, ["retention", str(copy), "--probes", str(probes)], catch_exceptions=False)
    assert outcome.exit_code == 0
    assert "mine" in outcome.output and "probe_text" in outcome.output and "linear CKA" in outcome.output
    result = json.loads((copy / "retention.json").read_text())
    assert result["probes"]["mine"]["samples"]["training"] == 6 and None not in result["probes"]["mine"]["k_nn"]
    assert "mine" in (copy / "REPORT.html").read_text()


def test_without_probes_the_matrix_is_shown(application, copy):
    outcome = runner.invoke(application, ["retention", str(copy)], catch_exceptions=False)
    assert outcome.exit_code == 0 and "probe_picture" in outcome.output


class TestProbeFile:
    def test_json_too(self, tmp_path):
        path = tmp_path / "probes.json"
        path.write_text(json.dumps([{"name": "a", "data_manifest": "x/m.json", "dataset_dir": "../d"}]))
        assert read_probe_file(path) == [
            {
                "name": "a",
                "data_manifest": str(tmp_path / "x/m.json"),
                "dataset_dir": str(tmp_path.parent / "d"),
            }
        ]

    @pytest.mark.parametrize(
        ("content", "match"),
        [("{", "not a JSON or YAML file"), ("a: b", "must hold a list of mappings"), ("- a", "must hold a list")],
    )
    def test_refused(self, content, match, tmp_path):
        path = tmp_path / "probes.yaml"
        path.write_text(content)
        with pytest.raises(InputError, match=match):
            read_probe_file(path)

    def test_missing(self, tmp_path):
        with pytest.raises(InputError, match="no such file"):
            read_probe_file(tmp_path / "probes.yaml")
