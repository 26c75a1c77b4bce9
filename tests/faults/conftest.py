"""A chain small enough to be killed many times, run as the real command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from medcoss_components.data.synthetic import synthetic_manifest

ROOT = Path(__file__).parents[2]
BUNDLES = ROOT / "bundles"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "MEDCOSS_PROGRESS": "0", "CUDA_VISIBLE_DEVICES": ""}
NETWORK = {
    "width": 24,
    "depth": 1,
    "heads": 2,
    "decoder_width": 16,
    "decoder_depth": 1,
    "decoder_heads": 2,
    "vocabulary_size": 200,
}
SETTINGS = {
    "preset": "demo",
    "batch_size": 4,
    "max_epochs": 2,
    "warmup_epochs": 0.5,
    "base_learning_rate": 0.1,
    "precision": "float32",
    "num_workers": 0,
    "log_interval": 3,
    "checkpoint_seconds": 0,
    "vocabulary_size": 120,
    "buffer_ratio": 0.3,
    "cluster_ratio": 0.2,
    "preparation_workers": 1,
    "mlflow": False,
}


class KillServer:
    """See ``kill_server.py``."""

    def __init__(self) -> None:
        command = [sys.executable, str(Path(__file__).with_name("kill_server.py"))]  # its folder is on sys.path
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=ROOT
        )

    def __call__(
        self, arguments: Sequence[str], *, log: Path, moment: Mapping[str, Any] | None = None, folder: Path = ROOT
    ) -> int:
        """Run one command in ``folder`` to its end; return its code, -9 when it was killed."""
        line = json.dumps({"argv": list(arguments), "log": str(log), "moment": moment, "folder": str(folder)})
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()


@pytest.fixture(scope="session")
def kill_server() -> Iterator[KillServer]:
    server = KillServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Modality -> manifest of a few synthetic items."""
    folder = tmp_path_factory.mktemp("data")
    return {
        "report": synthetic_manifest(folder / "report", "report", count=24, validation=4, seed=1),
        "xray": synthetic_manifest(folder / "xray", "xray", count=10, validation=2, seed=2),
        "ct": synthetic_manifest(folder / "ct", "ct", count=4, validation=1, seed=3),
    }


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """One thread, no GPU, no bars."""
    return ENVIRONMENT


@pytest.fixture(scope="session")
def tiny_settings() -> dict[str, Any]:
    """What makes a stage of the chain bundle tiny, as an overlay."""
    return {**SETTINGS, "+stage_settings": {"network_def": NETWORK}}


@pytest.fixture(scope="session")
def write_chain() -> Callable[..., list[str]]:
    """``write_chain(folder, manifests, **settings) -> arguments of python -m monai.bundle``."""
    return _write_chain


@pytest.fixture(scope="session")
def write_stage() -> Callable[..., list[str]]:
    """``write_stage(folder, modality, manifest, output_dir, *overlays, **settings)``: the same for a stage bundle."""
    return _write_stage


def _arguments(configs: Path, overlays: Sequence[str], path: Path, settings: Mapping[str, Any]) -> list[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings), encoding="utf-8")
    files = [configs / "train.json", *(configs / name for name in overlays), path]
    return ["run", "--config_file", str([str(file) for file in files])]


def _write_chain(folder: Path, manifests: Mapping[str, Path], *overlays: str, **settings: Any) -> list[str]:
    values = {
        **SETTINGS,
        "stages": [{"modality": name, "data_manifest": str(path)} for name, path in manifests.items()],
        "store_dir": str(folder / "store"),
        "output_dir": str(folder / "chain"),
        "+stage_settings": {"network_def": NETWORK},
        **settings,
    }
    return _arguments(BUNDLES / "medcoss_continual_pretraining" / "configs", overlays, folder / "tiny.json", values)


def _write_stage(
    folder: Path, modality: str, manifest: Path, output_dir: Path, *overlays: str, **settings: Any
) -> list[str]:
    values = {
        **SETTINGS,
        "data_manifest": str(manifest),
        "store_dir": str(folder / "store"),
        "output_dir": str(output_dir),
        "+network_def": NETWORK,
        **settings,
    }
    configs = BUNDLES / f"medcoss_{modality}_pretraining" / "configs"
    return _arguments(configs, overlays, folder / f"{output_dir.name}.json", values)
