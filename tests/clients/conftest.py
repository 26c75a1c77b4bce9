"""Runs trained by the bundles' own configs on synthetic data, and the zips packed from them."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
import sysconfig
import textwrap
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from packaging.requirements import Requirement

from medcoss_components.files import read_json
from medcoss_components.zoo.pack import requirements

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = ROOT / "bundles"
NAME = "medcoss_xray_pretraining"
BRIEF = {"max_epochs": 1, "warmup_epochs": 0, "batch_size": 4, "num_workers": 0, "mlflow": False}
"""Settings of a short training run."""
TASK_BRIEF = {"max_epochs": 1, "batch_size": 2, "num_workers": 0, "preparation_workers": 1, "vocabulary_size": 300}
TASK_BRIEF |= {"iterations_per_epoch": 2, "overlap": 0.25, "mlflow": False, "precision": "float32"}
"""The same for fine-tuning; a config is given those that it has."""
INPUTS = {1: [24], 2: [3, 32, 48], 3: [1, 16, 32, 32]}
"""Number of axes -> small input of a task's network."""
FILES = {2: (40, 56), 3: (20, 40, 36)}
"""Number of axes -> size of the synthetic files."""
TASKS = sorted(path.parents[1].name for path in BUNDLES.glob("*/configs/train.json") if "pretraining" not in str(path))
QUICK = (
    "pubmed_abstract_classification",
    "gland_pathology_segmentation",
    "covid_ct_classification",
    "tuberculosis_xray_detection",
)
HEADLINES = {"classification": "accuracy", "segmentation": "dice", "detection": "map"}
"""Kind of a task -> the metric that speaks for it."""
"""Tasks that every run of the tests goes through; the others are slow tests: the same code on other settings."""
each_task = pytest.mark.parametrize(
    "task",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in TASKS],
    indirect=True,
)


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


@dataclass(frozen=True)
class Task:
    """A packed downstream bundle with the run and the data that it comes from."""

    name: str
    run: Path
    packed: Path
    manifest: Path
    settings: dict[str, Any]

    @property
    def dimension(self) -> int:
        return max(1, len(self.settings["input_shape"]) - 1)

    @property
    def kind(self) -> str:
        return self.name.rpartition("_")[2]

    @property
    def headline(self) -> str:
        return HEADLINES[self.kind]

    def unpack(self, to: Path) -> Path:
        with zipfile.ZipFile(self.packed) as archive:
            archive.extractall(to)
        return to / self.name


def task_data(folder: Path, config: dict[str, Any], **counts: int) -> Path:
    """Manifest of a task's synthetic data; its files lie beside it."""
    from medcoss_components.data.synthetic import synthetic_manifest
    from medcoss_components.data.synthetic_detection import synthetic_detection

    if "categories" in config:
        return synthetic_detection(folder, config["modality"], categories=config["categories"], **counts)
    labels = {key: config[key] for key in ("classes", "regions") if key in config}
    axes = len(config["input_shape"]) - 1
    shape = FILES.get(axes)
    return synthetic_manifest(folder, config["modality"], shape=shape, **labels, **counts)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def make_task(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Task]:
    """``make_task(name)``: train the bundle's own train.json with a tiny network and pack the run.

    Once for all files of tests: workers of pytest-xdist find what another one has made.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def make(name: str) -> Task:
        folder = shared / f"task_{name}"
        settings = task_settings(name)
        with FileLock(f"{folder}.lock"):
            packed = next((folder / "dist").glob("*.zip"), None) or _train_and_pack(name, folder, settings)
        config = read_json(BUNDLES / name / "configs" / "train.json")
        return Task(name, folder / "run", packed, folder / "data" / "manifest.json", {**config, **settings})

    return make


def task_settings(name: str) -> dict[str, Any]:
    """Settings that make a task's network and training tiny; those that its config has."""
    from medcoss_components.zoo.verify_network import small_preset

    config = read_json(BUNDLES / name / "configs" / "train.json")
    settings = {"preset": small_preset(config["preset"]), "input_shape": INPUTS[max(1, len(config["input_shape"]) - 1)]}
    settings |= {key: value for key, value in TASK_BRIEF.items() if key in config}
    if "size" in (config["preparation"] or {}):
        settings["preparation"] = {"size": [48, 64]}
    return settings


def _train_and_pack(name: str, folder: Path, settings: dict[str, Any]) -> Path:
    from monai.bundle import create_workflow

    from medcoss_components.zoo.pack import pack_bundle

    config = read_json(BUNDLES / name / "configs" / "train.json")
    each = len(config.get("classes", ())) or 2
    manifest = task_data(folder / "data", config, count=max(4, each), validation=each, testing=each)
    places = {"data_manifest": str(manifest), "store_dir": str(folder / "store"), "output_dir": str(folder / "run")}
    workflow = create_workflow(
        config_file=str(BUNDLES / name / "configs" / "train.json"),
        workflow_type="train",
        logging_file=False,
        **settings,
        **places,
        **({"network_def#depth": 2} if settings["preset"] == "demo" else {}),
    )
    workflow.run()
    workflow.finalize()
    return pack_bundle(name, weights=folder / "run", to=folder / "dist", bundles_dir=BUNDLES)


@pytest.fixture
def task(request: pytest.FixtureRequest, make_task: Callable[[str], Task]) -> Task:
    """The packed task bundle that ``each_task`` names."""
    return make_task(request.param)


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


def rows_of(path: Path) -> list[dict[str, str]]:
    """Rows of a table, column name -> text."""
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def shell() -> Callable[..., str]:
    """``shell(arguments, cwd, python=..., **variables)``: run a program without network, return what it printed."""

    def call(arguments: list[object], cwd: Path, **variables: str) -> str:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **variables}
        done = subprocess.run(list(map(str, arguments)), cwd=cwd, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return call


@pytest.fixture
def fresh_python(tmp_path: Path) -> Path:
    """Python of a new environment with torch, MONAI, ignite, what the bundle's requirements ask for, and nothing else.

    Links to the packages of this environment stand for an installation, because there is no network.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    links = tmp_path / "packages"
    links.mkdir()
    purelib = Path(sysconfig.get_path("purelib"))
    for entry in sorted(_entries("pip", "torch", "monai", "pytorch-ignite", *requirements())):
        if (purelib / entry).exists():
            (links / entry).symlink_to(purelib / entry)
    (place,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (place / "others.pth").write_text(f"{links}\n")
    return tmp_path / "venv" / "bin" / "python"


def _entries(*wanted: str) -> set[str]:
    """Files and folders of site-packages that belong to the required packages and to all that these require."""
    open_, seen, entries = [Requirement(line) for line in wanted], set(), set()
    while open_:
        requirement = open_.pop()
        key = (requirement.name.lower(), *sorted(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            found = distribution(requirement.name)
        except PackageNotFoundError:  # for another platform
            continue
        entries |= {file.parts[0] for file in found.files or () if file.suffix != ".pth"}
        for line in found.requires or ():
            needed = Requirement(line)
            extras = ("", *requirement.extras)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                open_.append(needed)
    return entries - {"..", "__pycache__"}


def offline(python: Path) -> dict[str, str]:
    """Variables for programs of a fresh environment that must not reach a network."""
    path = f"{python.parent}:/usr/bin:/bin"
    proxies = {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    return {"PYTHONPATH": "", "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PATH": path, **proxies}
