"""What configs use when they run: bundle folder, default weights, check of the settings, short errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from monai.bundle import ConfigParser, ConfigWorkflow, create_workflow

from medcoss_components.errors import InputError
from medcoss_components.zoo.runtime import bundle_root, bundle_weights, check_settings, show_error, start_bundle

CONFIG = {
    "bundle_root": {"_target_": "medcoss_components.zoo.runtime.bundle_root"},
    "max_epochs": 3,
    "buffers": [],
    "output_dir": "$@bundle_root + '/output'",
    "about": {"purpose": "a test"},
    "part": {"_target_": "collections.Counter", "output_dir": "@output_dir", "n": "@max_epochs", "b": "@buffers"},
    "initialize": [{"_target_": "medcoss_components.zoo.runtime.start_bundle", "bundle_root": "@bundle_root"}],
    "run": ["$print(@part['output_dir'], @part['n'], @part['b'])"],
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "bundle" / "configs" / "train.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(CONFIG))
    return path


def test_root_is_the_parent_of_configs_from_any_folder(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for given in (str(config), "bundle/configs/train.json"):
        workflow = create_workflow(config_file=given, workflow_type="train")
        assert workflow.bundle_root == str(tmp_path / "bundle")
        # fixed by start_bundle: also without a workflow on the call stack
        assert workflow.parser.get_parsed_content("output_dir") == str(tmp_path / "bundle" / "output")


def test_root_of_a_config_outside_a_configs_folder_and_by_hand(config: Path, tmp_path: Path) -> None:
    loose = tmp_path / "train.json"
    loose.write_text(config.read_text())
    assert create_workflow(config_file=str(loose)).bundle_root == str(tmp_path)
    assert create_workflow(config_file=str(config), bundle_root="elsewhere").bundle_root == "elsewhere"


def test_root_without_a_workflow_is_the_default(tmp_path: Path) -> None:
    parser = ConfigParser({"root": {**CONFIG["bundle_root"], "default": str(tmp_path)}})
    assert parser.get_parsed_content("root") == str(tmp_path)
    assert bundle_root() == str(Path.cwd())


def test_weights_published_before_trained_before_last_stage(tmp_path: Path) -> None:
    places = ["output/01_ct/model.pt", "output/02_mri/model.pt", "output/model.pt", "models/model.pt"]
    assert bundle_weights(tmp_path) == str(tmp_path / "models/model.pt")
    for place in places:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
        assert bundle_weights(str(tmp_path)) == str(tmp_path / place)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("max_epoch", 2, "unknown setting max_epoch; did you mean max_epochs?"),
        ("buffer", ["a"], "unknown setting buffer; did you mean buffers?"),
        ("zzz", {"a": 1}, "unknown setting zzz; settings: buffers, max_epochs, output_dir"),
    ],
)
def test_misspelt_setting(config: Path, setting: str, value: object, message: str) -> None:
    with pytest.raises(RuntimeError, match="start_bundle") as caught:
        create_workflow(config_file=str(config), **{setting: value})
    assert str(caught.value.__cause__) == message


def test_settings_that_are_fine() -> None:
    clients = {"dataset_dir": "d", "run_name": "r", "_meta_": {}, "imports": ["$import os"]}
    parts = {"train": {"a": [{"_target_": "dict"}]}, "network": {"_target_": "dict", "n": "@max_epochs"}}
    check_settings({**clients, **parts, "max_epochs": 1})
    start_bundle(bundle_root=".")  # no workflow: nothing to check


def test_evaluation_merged_over_training(config: Path) -> None:
    """MONAI's federated client: settings of replaced parts stay behind; a misspelt one is still refused."""
    part = {"_target_": "dict"}
    training = {"train": {"x": part | {"start": "@init_weights"}}, "init_weights": None, **CONFIG}
    config.write_text(json.dumps(training))
    evaluation = config.with_name("evaluate.json")
    evaluation.write_text(json.dumps({"train": {"x": part}, "evaluator": part}))
    files = [str(config), str(evaluation)]
    create_workflow(config_file=files)
    with pytest.raises(RuntimeError, match="start_bundle") as caught:
        create_workflow(config_file=files, max_epoch=2)
    assert "unknown setting max_epoch" in str(caught.value.__cause__)


def test_short_error_and_full_one(capsys: pytest.CaptureFixture[str]) -> None:
    def failing(error: Exception) -> RuntimeError:
        try:
            try:
                raise error
            except ValueError as cause:
                raise RuntimeError("outer") from cause
        except RuntimeError as outer:
            return outer

    show_error(RuntimeError, failing(InputError("batch_size must be 1 or more, got 0")), None)
    shown = capsys.readouterr().err
    assert shown == "error: batch_size must be 1 or more, got 0\n(MEDCOSS_DEBUG=1 shows the traceback)\n"
    outer = failing(ValueError("a bug"))
    show_error(RuntimeError, outer, outer.__traceback__)
    assert "Traceback" in capsys.readouterr().err


def run_bundle(config: Path, folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(config), *options]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)


def test_monai_command_line(config: Path, tmp_path: Path) -> None:
    done = run_bundle(config, tmp_path, "--max_epochs", "2", "--buffers", "['x/y','z']")
    assert done.returncode == 0
    assert f"{tmp_path / 'bundle' / 'output'} 2 ['x/y', 'z']" in done.stdout
    failed = run_bundle(config, tmp_path, "--max_epoch", "2")
    assert failed.returncode == 1
    assert "error: unknown setting max_epoch; did you mean max_epochs?" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_default_of_a_nested_reading_is_the_outer_bundle(config: Path) -> None:
    class Reader:
        """Reads a second config while a workflow runs, as the chain does with its stage config."""

        def read(self) -> str:
            return bundle_root()

    workflow = ConfigWorkflow(config_file=str(config), reader={"_target_": Reader}, run=["$@reader.read()"])
    workflow.initialize()
    assert workflow.run() == [str(config.parents[1])]
