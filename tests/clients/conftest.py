"""A run trained by a bundle's own config on synthetic radiographs, and the zip packed from it."""

from __future__ import annotations

import os
import re
import subprocess
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = ROOT / "bundles"
NAME = "medcoss_xray_pretraining"
BRIEF = {"max_epochs": 1, "warmup_epochs": 0, "batch_size": 4, "num_workers": 0, "mlflow": False}
"""Settings of a short training run."""


def page_commands(page: Path) -> str:
    """The indented commands of a page as one shell script; blocks marked "not run by the test" are left out."""
    blocks = re.split(r"\n(?!    |\n)", page.read_text(encoding="utf-8"))
    commands = [
        textwrap.dedent("\n".join(line for line in block.splitlines() if line.startswith("    ")))
        for block in blocks
        if "(not run by the test)" not in block
    ]
    return "\n".join(command for command in commands if command)


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from medcoss_components.data.synthetic import synthetic_manifest

    return synthetic_manifest(tmp_path_factory.mktemp("data"), "xray", count=6, validation=2, seed=5)


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory, manifest: Path) -> Path:
    """A finished stage: preset demo with two blocks instead of four."""
    from monai.bundle import create_workflow

    folder = tmp_path_factory.mktemp("work")
    files = [str(BUNDLES / NAME / "configs" / f"{config}.json") for config in ("train", "demo")]
    workflow = create_workflow(
        config_file=files,
        workflow_type="train",
        logging_file=False,
        data_manifest=str(manifest),
        store_dir=str(folder / "store"),
        output_dir=str(folder / "run"),
        **{"network_def#depth": 2, **BRIEF},
    )
    workflow.run()
    workflow.finalize()
    return folder / "run"


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory, run_folder: Path) -> Path:
    """The zip."""
    from medcoss_components.zoo.pack import pack_bundle

    return pack_bundle(NAME, weights=run_folder, to=tmp_path_factory.mktemp("dist"), bundles_dir=BUNDLES)


@pytest.fixture
def unpacked(packed: Path, tmp_path: Path) -> Path:
    """The bundle's folder, unpacked for one test."""
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(tmp_path / "unpacked")
    return tmp_path / "unpacked" / NAME


@pytest.fixture
def shell() -> Callable[..., str]:
    """``shell(arguments, cwd, python=..., **variables)``: run a program without network, return what it printed."""

    def call(arguments: list[object], cwd: Path, **variables: str) -> str:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **variables}
        done = subprocess.run(list(map(str, arguments)), cwd=cwd, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return call
