"""``medcoss bundles verify``: good bundles pass, each planted defect is caught by the check that is for it."""

from __future__ import annotations

import json
import math
import pickle
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from medcoss_components.errors import InputError
from medcoss_components.networks.pretraining import PretrainingModel
from medcoss_components.weights import save_weights
from medcoss_components.zoo import verify_network, verify_workflow
from medcoss_components.zoo.verify import CHECKS, Outcome, bundle_folders, verify_bundle
from medcoss_components.zoo.verify_subject import CheckFailed, Subject, differences, root_cause

BUNDLES = Path(__file__).parents[2] / "bundles"
WHOLE = {
    "medcoss_report_pretraining": "(1, 112) -> (1, 112, 768)",
    "medcoss_ct_pretraining": "(1, 1, 16, 192, 192) -> (1, 145, 768)",
    "medcoss_continual_pretraining": "(1, 3, 224, 224) -> (1, 197, 768)",
}
"""Bundles that go through every check here -> what their network reads and gives."""
OTHERS = sorted({path.name for path in BUNDLES.iterdir()} - set(WHOLE))
TINY = {"width": 32, "depth": 1, "heads": 2, "vocabulary_size": 50}
"""A network that is built in no time, for defects that the shipped one would show more slowly."""


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A copy of the X-ray bundle with a tiny network and the metadata to fit."""
    folder = tmp_path / "medcoss_xray_pretraining"
    shutil.copytree(BUNDLES / folder.name, folder, ignore=shutil.ignore_patterns("models", "output", "store"))
    for name in ("train", "evaluate", "inference"):
        change(folder, name, lambda config: config["network_def"].update(TINY) or config.update(preset="demo"))
    change(folder, "metadata", lambda content: output_of(content).update(spatial_shape=[32]))
    return folder


def output_of(metadata: dict[str, Any]) -> dict[str, Any]:
    return metadata["network_data_format"]["outputs"]["pred"]


def input_of(metadata: dict[str, Any]) -> dict[str, Any]:
    return metadata["network_data_format"]["inputs"]["image"]


def change(folder: Path, name: str, edit: Any) -> None:
    path = folder / "configs" / f"{name}.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def outcomes(folder: Path, *checks: str, **options: Any) -> dict[str, Outcome]:
    return {outcome.check: outcome for outcome in verify_bundle(folder, checks=checks or tuple(CHECKS), **options)}


def failure(folder: Path, check: str, **options: Any) -> str:
    outcome = outcomes(folder, check, **options)[check]
    assert outcome.status == "failed", outcome
    return outcome.reason


class TestGoodBundles:
    @pytest.mark.parametrize(("name", "shapes"), WHOLE.items())
    def test_every_check_passes_on_what_is_shipped(self, name, shapes):
        found = outcomes(BUNDLES / name)
        assert list(found) == list(CHECKS)
        assert [str(outcome) for outcome in found.values() if outcome.status == "failed"] == []
        assert found["network"].reason == shapes
        assert "steps, loss" in found["training"].reason
        assert re.fullmatch(r"evaluate: \d+ files, inference: \d+ files", found["inference"].reason)
        assert found["torchscript"].reason.startswith("traced, cannot be scripted: ")
        assert found["onnx"].reason.startswith("largest difference ")
        assert found["weights"].reason == "no models/model.pt and no --weights"

    @pytest.mark.parametrize("name", OTHERS)
    def test_networks_of_the_others(self, name):
        """Their settings agree and give the declared shape at full size, without numbers.

        Every check runs on packed copies of the tasks and of a stage, in tests/clients.
        """
        with Subject(BUNDLES / name) as subject, torch.device("meta"), torch.no_grad():
            first, *others = map(verify_network.network_settings, subject.published_networks.values())
            assert all(other == first for other in others)
            (given,), (expected,) = (verify_network.declared(subject, kind) for kind in ("inputs", "outputs"))
            network = verify_network.exportable(verify_network.build_network(subject.networks["inference"]))
            expected.check(network(torch.zeros(given.shape, dtype=given.dtype)))

    def test_tiny_copy_has_no_failure(self, bundle):
        assert [str(outcome) for outcome in outcomes(bundle).values() if outcome.status == "failed"] == []


class TestPlantedDefects:
    def test_unknown_target(self, bundle):
        change(bundle, "evaluate", lambda config: config["evaluator"].update(_target_="medcoss_components.Evaluater"))
        assert failure(bundle, "targets").startswith("evaluate: evaluator: medcoss_components.Evaluater does not exist")

    def test_misspelt_argument(self, bundle):
        change(bundle, "train", lambda config: config["stage"].update(bufer_ratio=0.1))
        assert (
            "train: stage: medcoss_components.PretrainingStage: got an unexpected keyword argument 'bufer_ratio'"
            in (failure(bundle, "targets"))
        )

    def test_absolute_path(self, bundle):
        change(bundle, "inference", lambda config: config.update(store_dir="/home/me/store"))
        assert failure(bundle, "paths") == "inference: store_dir: absolute path in '/home/me/store'"

    @pytest.mark.parametrize(
        ("check", "name"),
        [
            ("workflows", "configs/evaluate.json"),
            ("readme", "docs/README.md"),
            ("licence", "LICENSE"),
            ("logging", "configs/logging.conf"),
        ],
    )
    def test_missing_file(self, bundle, check, name):
        (bundle / name).unlink()
        assert failure(bundle, check) == f"{bundle / name} is missing"
        if check == "workflows":
            assert failure(bundle, "properties") == f"{name} is missing"

    def test_version_not_in_changelog(self, bundle):
        change(bundle, "metadata", lambda content: content.update(version="0.2.0"))
        assert failure(bundle, "changelog") == "metadata version '0.2.0' is not in the changelog"

    def test_metadata_against_its_schema(self, bundle):
        change(bundle, "metadata", lambda content: content.pop("authors"))
        assert "'authors' is a required property" in failure(bundle, "metadata")

    @pytest.mark.parametrize(
        ("edit", "shown"),
        [({"depth": 3}, "depth: 1, 3"), ({"text_attention": "causal"}, "text_attention: 'bidirectional', 'causal'")],
    )
    def test_network_of_train_and_inference_differ(self, bundle, edit, shown):
        change(bundle, "inference", lambda config: config["network_def"].update(edit))
        assert failure(bundle, "network") == f"network_def of train and inference differ: {shown}"

    def test_wrong_channels_of_the_input(self, bundle):
        change(bundle, "metadata", lambda content: input_of(content).update(num_channels=1))
        assert "input of shape (1, 1, 224, 224) must be (samples, 3, 2 spatial sizes)" in failure(bundle, "network")

    @pytest.mark.parametrize(
        ("edit", "shown"),
        [
            ({"num_channels": 196}, "pred is (1, 197, 32) torch.float32, metadata says (1, 196, 32) torch.float32"),
            ({"spatial_shape": []}, "metadata says (1, 197)"),
            ({"dtype": "float16"}, "metadata says (1, 197, 32) torch.float16"),
            ({"dtype": "float"}, ""),
            ({"dtype": "floaty"}, "dtype 'floaty' of pred is no torch dtype"),
        ],
    )
    def test_wrong_output(self, bundle, edit, shown):
        change(bundle, "metadata", lambda content: output_of(content).update(edit))
        if shown:
            assert shown in failure(bundle, "network")
        else:  # torch.float is torch.float32
            assert outcomes(bundle, "network")["network"].status == "ok"

    def test_no_format_no_network_no_module(self, bundle):
        change(bundle, "metadata", lambda content: content.pop("network_data_format"))
        assert failure(bundle, "network") == "metadata: network_data_format#inputs is missing"
        change(bundle, "inference", lambda config: config.pop("network_def"))
        assert "network_def is needed for training and inference, found in: train, evaluate" in (
            failure(bundle, "network")
        )
        for name in ("train", "evaluate", "inference"):
            change(bundle, name, lambda config: config.update(network_def={"_target_": "SimpleInferer"}))
        assert failure(bundle, "torchscript") == "network_def is SimpleInferer, not a torch module"

    def test_unknown_reference_header_reserved_name_and_setting(self, bundle):
        change(bundle, "train", lambda config: config.update(tracking=True, seed="@sead", about={"purpose": "p"}, n=1))
        found = outcomes(bundle, "references", "headers", "reserved names", "settings")
        assert {outcome.status for outcome in found.values()} == {"failed"}
        assert "train: seed: @sead is not in the config" in found["references"].reason
        assert "train: about: command is missing" in found["headers"].reason
        assert "train: tracking: " in found["reserved names"].reason
        assert "unknown setting n, tracking" in found["settings"].reason

    def test_missing_property(self, bundle):
        change(bundle, "inference", lambda config: config.pop("inferer"))
        change(bundle, "inference", lambda config: config["evaluator"].pop("inferer"))
        assert "inference: KeyError: \"Property 'inferer'" in failure(bundle, "properties")

    def test_property_under_another_name(self, bundle, monkeypatch):
        monkeypatch.setattr("monai.bundle.ConfigWorkflow.check_properties", lambda workflow: ["val_interval"])
        assert failure(bundle, "properties") == "train: properties are missing: val_interval"

    def test_part_that_cannot_be_built(self, bundle):
        change(bundle, "evaluate", lambda config: config.update(split="elsewhere"))
        reason = failure(bundle, "properties")
        assert reason.startswith("evaluate: ") and "elsewhere" in reason

    def test_damaged_config_fails_every_check_that_reads_it(self, bundle):
        (bundle / "configs" / "train.json").write_text("{")
        assert {outcome.status for outcome in outcomes(bundle, "targets", "network", "training").values()} == {"failed"}


class Poison:
    """Unpickling it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


class TestWeights:
    def state(self) -> dict[str, torch.Tensor]:
        return PretrainingModel(preset="demo", **TINY).state_dict()

    def test_flat_state_that_fits(self, bundle, tmp_path):
        save_weights(bundle / "models" / "model.pt", self.state())
        assert outcomes(bundle, "weights")["weights"].reason == f"{len(self.state())} tensors of model.pt"
        save_weights(tmp_path / "w.safetensors", self.state())
        assert outcomes(bundle, "weights", weights=tmp_path / "w.safetensors")["weights"].status == "ok"

    def test_pickled_module_is_refused_and_not_executed(self, bundle, tmp_path):
        (bundle / "models").mkdir()
        torch.save(PretrainingModel(preset="demo", **TINY), bundle / "models" / "model.pt")
        assert "model.pt holds pickled objects, not a flat state dict; not executed" in failure(bundle, "weights")
        poison = pickle.dumps({"weight": Poison(tmp_path / "executed")}, protocol=2)
        (tmp_path / "poison.pt").write_bytes(poison)
        assert failure(bundle, "weights", weights=tmp_path / "poison.pt")
        assert not (tmp_path / "executed").exists()

    def test_nested_state_and_no_file(self, bundle, tmp_path):
        torch.save({"model": self.state()}, tmp_path / "nested.pt")
        assert failure(bundle, "weights", weights=tmp_path / "nested.pt") == (
            "nested.pt is not a flat state dict of names and tensors"
        )
        assert "gone.pt" in failure(bundle, "weights", weights=tmp_path / "gone.pt")

    def test_every_kind_of_misfit_is_named(self, bundle, tmp_path):
        state = self.state()
        state["extra"] = state.pop("image_embedding.class_token")
        state["encoder.blocks.0.mlp_out.bias"] = torch.zeros(5)
        save_weights(tmp_path / "w.pt", state)
        assert failure(bundle, "weights", weights=tmp_path / "w.pt") == (
            "3 tensors do not fit: image_embedding.class_token is missing; extra is unknown; "
            "encoder.blocks.0.mlp_out.bias has (5,), the network (32,)"
        )


class Scriptable(nn.Module):
    """Doubles its input; ``wrong`` makes it random, so that no export agrees."""

    def __init__(self, wrong: bool = False) -> None:
        super().__init__()
        self.wrong = wrong
        self.register_buffer("two", torch.full((), 2.0), persistent=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs + torch.rand_like(inputs) if self.wrong else inputs * self.two


class TestSmallNetworks:
    @pytest.mark.parametrize(
        ("config", "expected"),
        [
            ({"preset": "vit_base"}, {"preset": "demo"}),
            ({"input_shape": [3, 512, 512]}, {"input_shape": [3, 64, 64]}),
            (
                {"preset": "vit_base", "input_shape": [1, 64, 192, 192]},
                {"preset": "demo", "input_shape": [1, 16, 32, 32]},
            ),
            ({"input_shape": [112]}, {"input_shape": [48]}),
            ({"input_shape": [20]}, {"input_shape": [20]}),
            ({"input_shape": None}, {}),
        ],
    )
    def test_settings(self, config, expected):
        assert verify_network.small_settings(config) == expected

    def test_ids_are_those_of_the_network(self, bundle):
        """A packed text bundle may have fewer words than the highest id that is usually drawn."""
        entry = {"num_channels": 5, "dtype": "int64", "spatial_shape": [], "value_range": [0, 49410]}
        change(bundle, "metadata", lambda content: input_of(content).update(entry))
        network = SimpleNamespace(sizes=SimpleNamespace(vocabulary_size=7))
        with Subject(bundle) as subject:
            (ids,) = verify_network._small_inputs(subject, network, 0)
        assert ids.shape == (1, 5) and ids.min() == 0 and ids.max() == 6


class TestExports:
    def test_script_where_it_is_possible(self, bundle, monkeypatch):
        monkeypatch.setattr(verify_network, "build_network", lambda config, **settings: Scriptable())
        assert outcomes(bundle, "torchscript")["torchscript"] == Outcome(bundle.name, "torchscript", "ok", "scripted")

    def test_export_that_differs(self, bundle, monkeypatch):
        monkeypatch.setattr(verify_network, "build_network", lambda config, **settings: Scriptable(wrong=True))
        assert failure(bundle, "torchscript").startswith("TorchScript and PyTorch differ by ")

    def test_another_shape(self):
        with pytest.raises(CheckFailed, match=r"ONNX gives \(2,\), PyTorch \(3,\)"):
            verify_network._compare(torch.zeros(2), torch.zeros(3), "ONNX")

    def test_onnx_says_what_is_not_installed(self, bundle, monkeypatch):
        monkeypatch.setattr(verify_network, "find_spec", lambda name: None)
        outcome = outcomes(bundle, "onnx")["onnx"]
        assert outcome.status == "not run"
        assert outcome.reason.startswith("onnx, onnxscript, onnxruntime not installed; pip install ")

    def test_onnx(self, bundle):
        assert outcomes(bundle, "onnx")["onnx"].reason.startswith("largest difference ")

    @pytest.mark.parametrize("error", [0.0, 0.25])
    def test_onnx_outputs_are_compared(self, bundle, monkeypatch, error):
        """The packages of the export extra are stood in for: the "ONNX" file is a trace, its runtime adds ``error``."""

        class Session:
            def __init__(self, path, providers):
                self.network = torch.jit.load(path)

            def get_inputs(self):
                return [SimpleNamespace(name="input")]

            def run(self, outputs, given):
                return [self.network(torch.from_numpy(given["input"])).detach().numpy() + np.float32(error)]

        def export(network, inputs, path, **options):
            torch.jit.save(torch.jit.trace(network, inputs), path)

        monkeypatch.setattr(verify_network, "find_spec", lambda name: name)
        monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(InferenceSession=Session))
        monkeypatch.setattr("torch.onnx.export", export)
        outcome = outcomes(bundle, "onnx")["onnx"]
        if error:
            assert (outcome.status, outcome.reason) == ("failed", "ONNX and PyTorch differ by 0.25")
        else:
            assert (outcome.status, outcome.reason) == ("ok", "largest difference 0")

    def test_network_that_is_random_differs_from_its_twin(self, bundle, monkeypatch):
        entry = {"num_channels": 3, "spatial_shape": ["16*n", "2**p"]}
        change(bundle, "metadata", lambda content: (input_of(content).update(entry), output_of(content).update(entry)))
        monkeypatch.setattr(verify_network, "network_settings", lambda config: {})
        monkeypatch.setattr(verify_network, "build_network", lambda config, **settings: Scriptable())
        assert outcomes(bundle, "network")["network"].reason == "(1, 3, 16, 16) -> (1, 3, 16, 16)"
        monkeypatch.setattr(verify_network, "build_network", lambda config, **settings: Scriptable(wrong=True))
        assert "give different outputs from the same weights" in failure(bundle, "network")


class TestTraining:
    @pytest.mark.parametrize(
        ("rows", "shown"),
        [
            ([[1, "pretext", 0.5]], "history.json shows 1 training steps, 2 are needed"),
            ([[1, "pretext", 0.5], [2, "replay", math.nan]], "losses that are not finite: replay nan at step 2"),
            ([[1, "pretext", None], [2, "pretext", 1]], "losses that are not finite: pretext None at step 1"),
        ],
    )
    def test_history_is_read(self, bundle, monkeypatch, rows, shown):
        def trained(subject):
            (subject.scratch / "run").mkdir()
            history = {"columns": ["iteration", "kind", "loss"], "rows": rows}
            (subject.scratch / "run" / "history.json").write_text(json.dumps(history))

        monkeypatch.setattr(verify_workflow, "_trained", trained)
        assert failure(bundle, "training") == shown

    def test_no_weights_afterwards(self, bundle):
        change(bundle, "train", lambda config: config.update(run=[]))
        assert failure(bundle, "training") == "training left no model.pt"

    @pytest.mark.parametrize("name", ["evaluate", "inference"])
    def test_evaluation_and_inference_must_leave_files(self, bundle, name):
        change(bundle, name, lambda config: config.update(run=["$@output_file"]))
        assert failure(bundle, "inference") == f"{name}: its run left no file"

    def test_run_that_fails_is_named(self, bundle):
        change(bundle, "inference", lambda config: config.update(run=["$1 / 0"]))
        assert failure(bundle, "inference") == "inference: ZeroDivisionError: division by zero"

    def test_bundle_without_a_modality_is_not_run(self, bundle):
        change(bundle, "train", lambda config: config.pop("modality"))
        assert outcomes(bundle, "training")["training"].status == "not run"


class TestParts:
    def test_ids_reach_both_ends(self):
        entry = verify_network.TensorFormat("text", (1, 9), torch.int64, (3, 5))
        ids = entry.draw(torch.Generator().manual_seed(0))
        assert ids.shape == (1, 9) and ids.dtype == torch.int64 and {3, 5} <= set(ids.flatten().tolist()) <= {3, 4, 5}
        assert entry.draw(torch.Generator().manual_seed(0), highest=4).max() == 4

    def test_values_stay_in_the_range(self):
        entry = verify_network.TensorFormat("image", (1, 1, 50), torch.float32, (-1, 3))
        values = entry.draw(torch.Generator().manual_seed(0))
        assert -1 <= values.min() < -0.5 and 2.5 < values.max() <= 3

    def test_differences(self):
        assert differences({"a": 1, "b": 2}, {"a": 1, "c": 3}) == ["b: 2, None", "c: None, 3"]

    def test_root_cause_prefers_what_a_user_can_act_on(self):
        def chained(*errors):
            for error, cause in zip(errors, errors[1:], strict=False):
                error.__cause__ = cause
            return errors[0]

        assert root_cause(chained(RuntimeError("outer"), InputError("a\n b"), KeyError("k"))) == "a b"
        assert root_cause(chained(RuntimeError("outer"), KeyError("k"))) == "KeyError: 'k'"
        assert root_cause(ValueError("x" * 500)) == f"ValueError: {'x' * 400} ..."

    def test_folders(self, tmp_path):
        with pytest.raises(InputError, match="no folder with configs"):
            bundle_folders(tmp_path)
        for name in ("b", "a"):
            (tmp_path / name / "configs").mkdir(parents=True)
        assert [folder.name for folder in bundle_folders(tmp_path)] == ["a", "b"]
        assert bundle_folders(tmp_path, ["b"]) == [tmp_path / "b"]
        with pytest.raises(InputError, match="no bundle called c below .*known: a, b"):
            bundle_folders(tmp_path, ["b", "c"])

    def test_scratch_needs_the_with_statement(self, tmp_path):
        with pytest.raises(RuntimeError, match="with statement"):
            Subject(tmp_path).scratch  # noqa: B018


class TestCommand:
    @pytest.fixture
    def medcoss(self, monkeypatch, capsys):
        """``medcoss(*arguments) -> (exit status, stdout, stderr)``, with three quick checks."""
        from typer.testing import CliRunner

        from medcoss_components import cli

        for name in set(CHECKS) - {"readme", "changelog", "weights"}:
            monkeypatch.delitem(CHECKS, name)
        monkeypatch.setattr(verify_bundle, "__kwdefaults__", {"weights": None, "checks": tuple(CHECKS)})
        return lambda *arguments: CliRunner().invoke(cli.app, ["bundles", "verify", *map(str, arguments)])

    def test_lines_and_status_0(self, medcoss, bundle):
        done = medcoss("--root", bundle.parent)
        assert done.exit_code == 0, done.output
        assert done.stdout == (
            f"{bundle.name}: readme: ok\n{bundle.name}: changelog: ok\n"
            f"{bundle.name}: weights: not run: no models/model.pt and no --weights\n2 ok, 0 failed, 1 not run\n"
        )

    def test_a_failure_is_status_1(self, medcoss, bundle):
        (bundle / "docs" / "README.md").unlink()
        done = medcoss(bundle.name, "--root", bundle.parent)
        assert done.exit_code == 1
        assert f"{bundle.name}: readme: failed: {bundle}/docs/README.md is missing\n" in done.stdout
        assert done.stdout.endswith("1 ok, 1 failed, 1 not run\n")
