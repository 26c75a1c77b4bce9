"""Every stage bundle runs: two epochs of training, evaluation and inference on synthetic data, from another folder."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigWorkflow, create_workflow

from medcoss_components.data.synthetic import synthetic_manifest
from medcoss_components.files import read_json

BUNDLES = Path(__file__).parents[2] / "bundles"
SAMPLES = {"report": 8, "xray": 6, "ct": 3, "mri": 3, "pathology": 6}
SMALL = {"preset": "demo", "network_def#depth": 2, "num_workers": 0, "logging_file": False}

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file")


def workflow(bundle: Path, *configs: str, kind: str, **settings: Any) -> ConfigWorkflow:
    files = [str(bundle / "configs" / f"{config}.json") for config in configs]
    return create_workflow(config_file=files, workflow_type=kind, **{**SMALL, **settings})


@pytest.mark.parametrize("modality", SAMPLES)
def test_train_evaluate_infer(modality: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet

    monkeypatch.chdir(tmp_path)
    manifest = synthetic_manifest(tmp_path / "data", modality, count=SAMPLES[modality], seed=3)
    bundle = BUNDLES / f"medcoss_{modality}_pretraining"
    data = {"data_manifest": str(manifest.relative_to(tmp_path)), "store_dir": "store"}
    brief = {"max_epochs": 2, "warmup_epochs": 1, "batch_size": 4, "vocabulary_size": 300, "mlflow": False}

    training = workflow(bundle, "train", "demo", kind="train", output_dir="run", **data, **brief)
    assert training.check_properties() == []
    assert training.bundle_root == str(bundle) and training.max_epochs == 2
    training.run()
    training.finalize()
    metrics = read_json(tmp_path / "run" / "metrics.json")
    assert metrics["epochs"] == 2 and math.isfinite(metrics["final_loss"])

    evaluation = workflow(bundle, "evaluate", kind="eval", weights="run", output_file="evaluation.json", **data)
    assert evaluation.check_properties() == []
    evaluation.run()
    assert math.isfinite(read_json(tmp_path / "evaluation.json")["pretext_loss"])

    encoder = {"weights": "run/encoder.safetensors", "output_file": "vectors.parquet"}
    inference = workflow(bundle, "inference", kind="infer", **encoder, **data)
    assert inference.check_properties() == []
    inference.run()
    table = pyarrow.parquet.read_table(tmp_path / "vectors.parquet")
    assert table.column_names == ["id", "modality", "embedding"]
    assert len(table) == metrics["samples"] and set(table["modality"].to_pylist()) == {modality}
