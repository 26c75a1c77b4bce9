"""``kill -9`` at many moments of MUSCLE's pre-training, then the same command: bit for bit the uninterrupted result."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from medcoss_components.data.synthetic import synthetic_manifest
from medcoss_components.data.synthetic_detection import synthetic_detection

CONFIG = Path(__file__).parents[2] / "bundles" / "muscle_xray_pretraining" / "configs" / "train.json"
CLASSES, REGIONS, CATEGORIES = ["normal", "pneumonia"], {"lungs": "any"}, ["heart"]
CONTRAST = "medcoss_components.engines.contrastive:ContrastiveTrainer._iteration"
VISIT = "medcoss_components.engines.multitask:MultiTaskTrainer._iteration"
CACHE = "medcoss_components.continual.memorization:FeatureMemory.fill"
MOMENTS = (
    ("first muscle.json", {"rename": "muscle.json", "count": 1, "when": "half"}),
    # step 1: 12 images in 3 batches an epoch, 2 epochs
    ("contrast, in the first epoch", {"call": CONTRAST, "count": 3}),
    ("checkpoint in the second epoch", {"rename": "checkpoint.pt", "count": 3, "when": "half"}),
    ("weights of step 1 written, not recorded", {"rename": "model.pt", "count": 1, "when": "after"}),
    # step 2: three tasks of 4 to 6 images in batches of 2, 2 rounds
    ("features of the second task", {"call": CACHE, "count": 2}),
    ("in the first visit", {"call": VISIT, "count": 2}),
    ("in the second round", {"call": VISIT, "count": 8}),
    ("checkpoint in a visit", {"rename": "checkpoint.pt", "count": 1, "when": "before"}),
    ("rounds.json", {"rename": "rounds.json", "count": 1, "when": "half"}),
    ("the last muscle.json", {"rename": "muscle.json", "count": 5, "when": "before"}),
)
SAME = ("01_contrastive/model.pt", "02_multitask/model.pt", "02_multitask/rounds.json")
WORK = ("checkpoint.pt", "embeddings.npy")


@pytest.fixture
def manifests(tmp_path: Path) -> dict[str, str]:
    """Kind of task -> manifest."""
    counts = {"count": 4, "validation": 2, "testing": 2, "seed": 3}
    made = {
        "classification": synthetic_manifest(tmp_path / "classes", "xray", classes=CLASSES, **counts),
        "segmentation": synthetic_manifest(tmp_path / "regions", "xray", regions=REGIONS, **counts),
        "detection": synthetic_detection(tmp_path / "boxes", categories=CATEGORIES, **counts),
    }
    return {kind: str(path) for kind, path in made.items()}


def write_settings(folder: Path, manifests: dict[str, str]) -> list[str]:
    """Arguments of ``python -m monai.bundle`` for a run into ``folder``."""
    outputs = {
        "classification": {"classes": CLASSES},
        "segmentation": {"regions": REGIONS},
        "detection": {"categories": CATEGORIES},
    }
    settings = {
        "manifests": [{"data_manifest": path, "name": kind} for kind, path in manifests.items()],
        "tasks": {kind: {"kind": kind, "data_manifest": path, **outputs[kind]} for kind, path in manifests.items()},
        "store_dir": str(folder / "store"),
        "output_dir": str(folder / "run"),
        "preset": "resnet_demo",
        "input_shape": [3, 32, 48],
        "precision": "float32",
        "preparation_workers": 1,
        "contrastive": {"batch_size": 4, "max_epochs": 2, "queue_size": 8},
        "multitask": {"batch_size": 2, "max_epochs": 2},
        "num_workers": 0,
        "log_interval": 2,
        "checkpoint_seconds": 0,
        "mlflow": False,
    }
    folder.mkdir(exist_ok=True)
    (folder / "tiny.json").write_text(json.dumps(settings), encoding="utf-8")
    return ["run", "--config_file", str([str(CONFIG), str(folder / "tiny.json")])]


@pytest.mark.slow
def test_killed_again_and_again_ends_like_an_uninterrupted_run(
    tmp_path: Path, manifests, environment, kill_server
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = [sys.executable, "-m", "monai.bundle"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    reference = subprocess.Popen([*command, *write_settings(whole, manifests)], env=environment, **quiet)
    arguments, log = write_settings(killed, manifests), killed / "log.txt"
    for name, moment in MOMENTS:
        code = kill_server(arguments, log=log, moment=moment)
        assert code == -9, f"{name}: ended with {code}\n{log.read_text()[-3000:]}"
        for path in killed.rglob("*.json"):
            if ".partial" not in path.name:
                json.loads(path.read_text(encoding="utf-8"))
    assert kill_server(arguments, log=log) == 0, log.read_text()[-3000:]
    assert reference.wait(timeout=300) == 0
    for file in SAME:
        assert (killed / "run" / file).read_bytes() == (whole / "run" / file).read_bytes(), file
    for step in ("01_contrastive", "02_multitask"):
        histories = [json.loads((folder / "run" / step / "history.json").read_text()) for folder in (killed, whole)]
        assert [row[:5] for row in histories[0]["rows"]] == [row[:5] for row in histories[1]["rows"]]
    assert not list((killed / "run").rglob("*.partial*"))
    assert not [path for name in WORK for path in (killed / "run").rglob(name)]
