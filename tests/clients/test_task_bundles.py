"""MONAI's clients on the packed downstream bundles: verification, load, workflows from another folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from monai.bundle import create_workflow, download, load

from medcoss_components.files import read_json, sha256_file
from medcoss_components.networks.retinanet import anchor_count
from medcoss_components.weights import read_weights
from medcoss_components.zoo.pack import pack_bundle
from medcoss_components.zoo.verify import verify_bundle

from .conftest import BUNDLES, QUICK, Task, each_task, rows_of

pytestmark = pytest.mark.filterwarnings(
    "ignore:parsing config_file", "ignore:No hash value provided", "ignore::UserWarning"
)


def input_of(task: Task, folder: Path) -> Path:
    """What a user would give to inference: a folder of images, or a table of texts."""
    if task.dimension > 1:
        return task.manifest.parent / "files"
    content = read_json(task.manifest)
    texts = [item["text"] for split in ("training", "validation", "testing") for item in content[split]]
    path = folder / "cases.csv"
    path.write_text("text\n" + "".join(f'"{text}"\n' for text in texts), encoding="utf-8")
    return path


@each_task
class TestEachTask:
    def test_verification(self, task: Task, tmp_path: Path) -> None:
        found = list(verify_bundle(task.unpack(tmp_path)))
        assert [str(outcome) for outcome in found if outcome.status != "ok"] == []

    @pytest.mark.parametrize("kind", ["train", "infer"])
    def test_load(self, kind: str, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        download(name=task.name, url=task.packed.as_uri(), bundle_dir="zoo", progress=False)
        network = load(task.name, bundle_dir="zoo", workflow_type=kind, device="cpu")
        assert isinstance(network, torch.nn.Module)
        trained, loaded = read_weights(task.run), network.state_dict()
        assert set(loaded) == set(trained) and all(torch.equal(loaded[name], trained[name]) for name in trained)
        shape = (1, *task.settings["input_shape"])
        inputs = torch.ones(shape, dtype=torch.long) if task.dimension == 1 else torch.zeros(shape)
        names = len(next(task.settings[key] for key in ("classes", "regions", "categories") if key in task.settings))
        wanted = {"classification": (names,), "segmentation": (names, *shape[2:])}
        if task.kind == "detection":
            network, wanted = network.export_module(), {task.kind: (anchor_count(shape[2:]), 4 + names)}
        assert network(inputs).shape == (1, *wanted[task.kind])

    def test_predict_evaluate_and_train_from_another_folder(
        self, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        bundle = task.unpack(tmp_path / "zoo")
        quiet = {"logging_file": False, "num_workers": 0}

        def workflow(name: str, kind: str, **settings: object):
            given = {"config_file": str(bundle / "configs" / f"{name}.json"), "workflow_type": kind}
            return create_workflow(**given, **quiet, **settings)  # type: ignore[arg-type]

        inference = workflow("inference", "infer", input=str(input_of(task, tmp_path)))
        assert inference.check_properties() == []
        inference.run()
        content = read_json(task.manifest)
        cases = sum(len(content[split]) for split in ("training", "validation", "testing"))
        table = rows_of(bundle / "output" / "predictions" / "predictions.csv")  # the default lies beside the bundle
        assert len(table) == cases

        data = {"data_manifest": str(task.manifest), "mlflow": False}
        evaluation = workflow("evaluate", "eval", **data)
        assert evaluation.check_properties() == []
        evaluation.run()
        (report,) = (bundle / "output" / "evaluation").rglob("metrics.json")
        again, before = read_json(report)["metrics"], read_json(task.run / "metrics.json")["testing"]
        assert again[task.headline] == pytest.approx(before[task.headline], abs=0.02)

        brief = {
            "max_epochs": 1,
            "batch_size": 2,
            **({"iterations_per_epoch": 2} if task.kind == "segmentation" else {}),
        }
        training = workflow("train", "train", init_weights=str(bundle / "models"), **data, **brief)
        assert training.check_properties() == []
        training.run()
        training.finalize()
        assert read_json(bundle / "output" / "metrics.json")["task"] == task.kind


@pytest.mark.parametrize("task", QUICK[:1], indirect=True)
def test_same_run_same_zip(task: Task, tmp_path: Path) -> None:
    """Byte for byte, wherever the run lies and whenever its files were written."""
    copy = shutil.copytree(task.run, tmp_path / "elsewhere" / "run", copy_function=shutil.copyfile)
    zips = [
        pack_bundle(task.name, weights=run, to=tmp_path / f"dist{number}", bundles_dir=BUNDLES)
        for number, run in enumerate((task.run, copy))
    ]
    assert zips[0].name == task.packed.name and sha256_file(zips[0]) == sha256_file(zips[1])
