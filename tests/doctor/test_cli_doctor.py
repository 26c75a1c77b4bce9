import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from medcoss_components import cli_doctor
from medcoss_components.data.synthetic import synthetic_manifest
from medcoss_components.doctor import decoding, installation, places
from medcoss_components.doctor.findings import ERROR, OK, Finding
from medcoss_components.doctor.run import Examination, examine
from medcoss_components.errors import InputError

LIVER = Path(__file__).parents[2] / "bundles" / "liver_tumor_ct_segmentation"


@pytest.fixture
def call(monkeypatch):
    """``medcoss doctor`` without what is slow: readers, tracking, importing optional packages."""
    monkeypatch.setattr(installation, "import_module", lambda name: None)
    monkeypatch.setattr(decoding, "check_readers", lambda: [Finding(OK, "PNG", "", fold="readers")])
    monkeypatch.setattr(places, "check_tracking", lambda: [Finding(OK, "MLflow", "works")])
    app = typer.Typer()
    app.command("other")(lambda: None)
    cli_doctor.attach(app)
    return lambda *arguments: CliRunner().invoke(app, ["doctor", *map(str, arguments)])


class TestCommand:
    def test_sections_and_a_last_line(self, call, tmp_path):
        regions = {"liver": [1], "tumor": [2]}
        path = synthetic_manifest(tmp_path / "data", "ct", count=2, shape=(12, 20, 20), regions=regions)
        done = call(
            "--manifest", path, "--bundle", LIVER, "--store-dir", tmp_path / "s", "--output-dir", tmp_path / "o",
            "--overlay", "demo", "--set", "input_shape=[1,8,16,16]",
        )  # fmt: skip
        assert done.exit_code == 0
        lines = done.stdout.splitlines()
        headings = [line for line in lines if line and not line.startswith(" ")]
        assert headings[:-1] == [
            "Installation", "Machine", "Readers", "Privacy, tracking and folders",
            "Bundle liver_tumor_ct_segmentation", f"Data {path}", "Disk",
        ]  # fmt: skip
        assert " 0 errors: ready" in lines[-1]
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["data"]

    def test_an_error_is_status_1(self, call, tmp_path):
        done = call("--manifest", tmp_path / "gone.json")
        assert done.exit_code == 1 and "1 error: not ready" in done.stdout and "gone.json: no such file" in done.stdout

    @pytest.mark.parametrize("arguments", [("--set", "seed=1"), ("--overlay", "demo"), ("--dataset-dir", "d")])
    def test_options_that_would_change_nothing(self, call, arguments):
        done = call(*arguments, "--bundle", LIVER)
        assert isinstance(done.exception, InputError) and "Give --manifest" in str(done.exception)

    def test_json(self, call, tmp_path):
        done = call("--json", "--bundle", tmp_path)
        content = json.loads(done.stdout)
        assert (done.exit_code, content["errors"]) == (1, 1)
        assert content["sections"][-1]["findings"][0]["value"].endswith("holds no configs")
        assert content["summary"].endswith("not ready: see the errors")


class TestBundle:
    def test_broken_configs(self, tmp_path, call):
        (tmp_path / "configs").mkdir()
        (tmp_path / "configs" / "train.json").write_text('{"network": {"_target_": "medcoss_components.Nothing"}}')
        *_, section = examine(Examination(bundle=tmp_path))
        assert {found.status for found in section.findings} == {ERROR}
        assert "medcoss_components.Nothing does not exist" in section.findings[0].value
