"""MUSCLE's pre-training through its bundle: both steps, going on, packing, and what starts from it."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from monai.bundle import create_workflow, load

from medcoss_components.errors import InputError
from medcoss_components.files import read_json
from medcoss_components.weights import read_weights
from medcoss_components.zoo.pack import pack_bundle
from medcoss_components.zoo.verify import verify_bundle

from .conftest import BUNDLES, task_data

NAME = "muscle_xray_pretraining"
CLASSES, REGIONS, CATEGORIES = ["normal", "pneumonia"], {"lungs": "any"}, ["heart"]
SIDES = [3, 32, 48]

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file", "ignore::UserWarning")


def run_bundle(name: str, *configs: str, **settings) -> None:
    files = [str(BUNDLES / name / "configs" / f"{config}.json") for config in configs]
    quiet = {"logging_file": False, "num_workers": 0, "preparation_workers": 1}
    workflow = create_workflow(config_file=files, workflow_type="train", **quiet, **settings)
    workflow.run()
    workflow.finalize()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> SimpleNamespace:
    """Manifests of the three kinds of tasks."""
    folder, config = tmp_path_factory.mktemp("data"), {"modality": "xray", "input_shape": SIDES}
    counts = {"count": 4, "validation": 2, "testing": 2}
    kinds = {"classes": CLASSES, "regions": REGIONS, "categories": CATEGORIES}
    manifests = {key: task_data(folder / key, {**config, key: value}, **counts) for key, value in kinds.items()}
    return SimpleNamespace(**manifests)


@pytest.fixture(scope="module")
def settings(data, tmp_path_factory) -> dict:
    """Settings of a pre-training of seconds."""
    tasks = {
        "pneumonia": {"kind": "classification", "data_manifest": str(data.classes), "classes": CLASSES},
        "lungs": {"kind": "segmentation", "data_manifest": str(data.regions), "regions": REGIONS},
        "organs": {"kind": "detection", "data_manifest": str(data.categories), "categories": CATEGORIES},
    }
    return {
        "manifests": [str(data.classes), {"data_manifest": str(data.categories), "name": "organs"}],
        "tasks": tasks,
        "store_dir": str(tmp_path_factory.mktemp("store")),
        "preset": "resnet_demo",
        "input_shape": SIDES,
        "precision": "float32",
        "contrastive": {"batch_size": 4, "max_epochs": 2, "queue_size": 8},
        "multitask": {"batch_size": 2, "max_epochs": 2},
    }


@pytest.fixture(scope="module")
def run(settings, tmp_path_factory) -> Path:
    """A finished pre-training, tracked."""
    folder = tmp_path_factory.mktemp("work") / "run"
    run_bundle(NAME, "train", output_dir=str(folder), **settings)
    return folder


def test_what_a_run_leaves(run: Path) -> None:
    record = read_json(run / "muscle.json")
    assert record["status"] == "finished" and [step["name"] for step in record["steps"]] == ["contrastive", "multitask"]
    assert [len(step["steps"]) for step in record["steps"]] == [4, 4]
    first, second = (read_weights(run / folder) for folder in ("01_contrastive", "02_multitask"))
    assert {name.split(".")[0] for name in first} == {"backbone", "head"}
    assert {name.split(".")[0] for name in second} == {"backbone", "heads"}
    assert read_json(run / "01_contrastive" / "metrics.json")["datasets"].keys() == {"synthetic-xray", "organs"}
    for folder in ("01_contrastive", "02_multitask"):
        assert read_json(run / folder / "run.json")["settings"]["intensity"] == {"standardise": "image"}
    rounds = read_json(run / "02_multitask" / "rounds.json")
    assert [sorted(row["order"]) for row in rounds["rounds"]] == [["lungs", "organs", "pneumonia"]] * 2
    page = (run / "REPORT.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") == 5 and page.count("/REPORT.html") == 6 and "not complete" not in page


def test_steps_are_nested_in_one_tracked_run(run: Path) -> None:
    from mlflow import MlflowClient

    client, record = MlflowClient(f"sqlite:///{run}/mlruns.db"), read_json(run / "muscle.json")
    runs = [client.get_run(step["run_id"]) for step in record["steps"]]
    assert [entry.data.tags["mlflow.parentRunId"] for entry in runs] == [record["run_id"]] * 2
    assert {entry.info.status for entry in (*runs, client.get_run(record["run_id"]))} == {"FINISHED"}


def test_the_same_command_again_changes_nothing(run: Path, settings: dict) -> None:
    files = {path: path.stat().st_mtime_ns for path in run.rglob("model.pt")}
    run_bundle(NAME, "train", output_dir=str(run), **settings)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("model.pt")} == files


def test_goes_on_with_the_step_that_is_missing(run: Path, settings: dict, tmp_path: Path) -> None:
    """Step 2 once more from the weights of step 1: the same bits."""
    shutil.copytree(run / "01_contrastive", tmp_path / "run" / "01_contrastive")
    run_bundle(NAME, "train", output_dir=str(tmp_path / "run"), mlflow=False, **settings)
    first, second = (read_weights(folder / "02_multitask") for folder in (run, tmp_path / "run"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert read_json(tmp_path / "run" / "muscle.json")["status"] == "finished"


def test_muscle_minus_goes_task_by_task_without_memory(settings: dict, tmp_path: Path) -> None:
    brief = {key: value for key, value in settings.items() if key != "multitask"}
    steps = {"multitask#batch_size": 2, "multitask#max_epochs": 2, "steps": ["multitask"], "mlflow": False}
    run_bundle(NAME, "train", "muscle_minus", output_dir=str(tmp_path / "run"), **brief, **steps)
    folder = tmp_path / "run" / "01_multitask"
    metrics = read_json(folder / "metrics.json")
    assert (metrics["cyclic"], metrics["feature_weight"], metrics["anchor_weight"]) == (False, 0, 0)
    assert not (folder / "features").exists()


@pytest.fixture(scope="module")
def packed(run: Path, tmp_path_factory) -> Path:
    return pack_bundle(NAME, weights=run / "02_multitask", to=tmp_path_factory.mktemp("dist"), bundles_dir=BUNDLES)


def test_packed_bundle_carries_the_backbone_alone(packed: Path, run: Path, tmp_path: Path, monkeypatch) -> None:
    shutil.unpack_archive(packed, tmp_path / "zoo")
    monkeypatch.chdir(tmp_path)
    network = load(NAME, bundle_dir="zoo", workflow_type="infer", device="cpu")
    trained, loaded = read_weights(run / "02_multitask"), network.state_dict()
    assert set(loaded) == {name for name in trained if name.startswith("backbone.")}
    assert all(torch.equal(value, trained[name]) for name, value in loaded.items())
    assert network(torch.zeros(1, *SIDES)).shape == (1, 128)
    card = (tmp_path / "zoo" / NAME / "README.md").read_text(encoding="utf-8")
    assert "Task lungs (segmentation), testing split, 2 samples" in card and "MICCAI 2022" in card


@pytest.mark.slow
def test_packed_bundle_passes_verification(packed: Path, tmp_path: Path) -> None:
    shutil.unpack_archive(packed, tmp_path)
    found = list(verify_bundle(tmp_path / NAME))
    assert [str(outcome) for outcome in found if outcome.status != "ok"] == []


@pytest.mark.parametrize("step", ["01_contrastive", "02_multitask"])
def test_fine_tuning_starts_from_either_step(step: str, run: Path, data: SimpleNamespace, tmp_path: Path) -> None:
    brief = {"max_epochs": 1, "batch_size": 2, "preset": "resnet_demo", "input_shape": SIDES, "feature_size": 16}
    places = {"data_manifest": str(data.regions), "store_dir": str(tmp_path), "output_dir": str(tmp_path / "run")}
    run_bundle(
        "lung_xray_segmentation",
        "train",
        init_weights=str(run / step),
        preparation={"size": SIDES[1:]},
        mlflow=False,
        precision="float32",
        **brief,
        **places,
    )
    backbone = [name for name in read_weights(run / step) if name.startswith("backbone.")]
    assert f"loaded ({len(backbone)} tensors)" in read_json(tmp_path / "run" / "metrics.json")["init"]


class TestMedCossEncoder:
    """The encoder of a chain's X-ray stage in the ResNet's place, by one key."""

    VIT = {"preset": "demo", "precision": "float32", "mlflow": False}

    def test_step_2_starts_from_it(self, run_folder: Path, settings: dict, tmp_path: Path) -> None:
        given = {**settings, **self.VIT, "steps": ["multitask"], "init_weights": str(run_folder)}
        given["multitask"] = {"batch_size": 2, "max_epochs": 1, "network_def": {"depth": 2}}
        run_bundle(NAME, "train", output_dir=str(tmp_path / "run"), **given)
        told = read_json(tmp_path / "run" / "01_multitask" / "metrics.json")["init"]
        assert "parameters loaded" in told and "0 unexpected" in told
        assert read_json(tmp_path / "run" / "01_multitask" / "run.json")["settings"]["intensity"] is None

    def test_a_task_starts_from_it(self, run_folder: Path, data: SimpleNamespace, tmp_path: Path) -> None:
        run_bundle(
            "tuberculosis_xray_detection",
            "train",
            init_weights=str(run_folder),
            categories=CATEGORIES,
            input_shape=SIDES,
            max_epochs=1,
            batch_size=2,
            data_manifest=str(data.categories),
            store_dir=str(tmp_path),
            output_dir=str(tmp_path / "run"),
            **{"network_def#depth": 2, **self.VIT},
        )
        metrics = read_json(tmp_path / "run" / "metrics.json")
        assert "0 unexpected" in metrics["init"] and 0 <= metrics["testing"]["map50"] <= 1


class TestBadInput:
    def refused(self, settings: dict, tmp_path: Path, **changes) -> str:
        with pytest.raises(Exception) as caught:
            run_bundle(NAME, "train", output_dir=str(tmp_path / "run"), mlflow=False, **{**settings, **changes})
        error: BaseException | None = caught.value
        while error is not None and not isinstance(error, InputError):
            error = error.__cause__
        assert error is not None, caught.value
        return str(error)

    def test_missing_manifest_of_a_later_step_is_told_first(self, settings, tmp_path) -> None:
        tasks = {"lungs": {"kind": "segmentation", "data_manifest": "gone.json", "regions": REGIONS}}
        told = self.refused(settings, tmp_path, tasks=tasks)
        assert "step multitask, task 'lungs': data_manifest gone.json: no such file" in told
        assert not (tmp_path / "run").exists()

    def test_key_that_a_step_does_not_have(self, settings, tmp_path) -> None:
        told = self.refused(settings, tmp_path, contrastive={"queue": 8})
        assert "step contrastive: queue is no key of" in told and "queue_size" in told

    @pytest.mark.parametrize("steps", [[], ["multitask", "contrastive"], ["finetuning"]])
    def test_steps(self, steps, settings, tmp_path) -> None:
        told = self.refused(settings, tmp_path, steps=steps)
        assert f"must be one or both of contrastive, multitask, in this order, received {steps}" in told

    def test_other_steps_than_the_folder_was_begun_with(self, settings, run) -> None:
        told = self.refused(settings, run.parent, steps=["multitask"])
        assert "begun with the steps ['contrastive', 'multitask'], received ['multitask']" in told
