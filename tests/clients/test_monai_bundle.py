"""MONAI's own clients on the packed zip: download, load, create_workflow, and the command line in a fresh environment.

MONAI 1.6.1: ``download`` hands ``--url`` to ``urllib``, which reads ``file://``; without ``--name`` it fails after
unpacking. ``load`` reads ``configs/<workflow_type>.json``, so "infer" needs ``configs/infer.json``.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from monai.bundle import create_workflow, download, load

from medcoss_components.weights import read_weights

from .conftest import BRIEF, NAME, ROOT, offline, page_commands

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file", "ignore:No hash value provided")


@pytest.mark.parametrize("kind", ["train", "infer", "inference"])
def test_load(kind: str, packed: Path, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    download(name=NAME, url=packed.as_uri(), bundle_dir="zoo", progress=False)
    network = load(NAME, bundle_dir="zoo", workflow_type=kind, device="cpu")
    assert isinstance(network, torch.nn.Module), "load gives a state dict when it finds no config"
    trained, loaded = read_weights(run_folder), network.state_dict()
    assert set(loaded) == set(trained)
    assert all(torch.equal(loaded[name], trained[name]) for name in trained)
    assert network(torch.zeros(1, 3, 224, 224)).shape == (1, 14 * 14 + 1, 128)


def test_download_needs_the_name(packed: Path, tmp_path: Path) -> None:
    """docs/use-one-bundle.md says so; when MONAI changes it, the page can lose the sentence."""
    with pytest.raises(TypeError):
        download(url=packed.as_uri(), bundle_dir=tmp_path, progress=False)
    assert (tmp_path / NAME / "SHA256SUMS").is_file()


def test_create_workflow_from_another_folder(
    unpacked: Path, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = {"data_manifest": str(manifest), "logging_file": False}
    inference = create_workflow(
        config_file=str(unpacked / "configs" / "inference.json"), workflow_type="infer", num_workers=0, **data
    )
    assert inference.check_properties() == []
    inference.run()
    assert (unpacked / "output" / "embeddings.parquet").is_file()  # the default lies beside the bundle
    training = create_workflow(
        config_file=str(unpacked / "configs" / "train.json"),
        workflow_type="train",
        init_weights=str(unpacked / "models"),
        **BRIEF,
        **data,
    )
    assert training.check_properties() == []
    training.run()
    training.finalize()
    assert (unpacked / "output" / "metrics.json").is_file()


PAGE = ROOT / "docs" / "use-one-bundle.md"


def test_fresh_environment(
    fresh_python: Path, packed: Path, manifest: Path, tmp_path: Path, shell: Callable[..., str]
) -> None:
    """docs/use-one-bundle.md as it stands, from the zip to embeddings; the package comes from the bundle alone."""
    import pyarrow.parquet

    here = tmp_path / "here"
    (here / "data").mkdir(parents=True)
    (here / packed.name).symlink_to(packed)
    for entry in manifest.parent.iterdir():
        (here / "data" / entry.name).symlink_to(entry)

    absent = subprocess.run([fresh_python, "-c", "import medcoss_components"], cwd=here, env={}, capture_output=True)
    assert absent.returncode == 1 and b"ModuleNotFoundError" in absent.stderr
    printed = shell(["bash", "-e", "-c", page_commands(PAGE)], here, **offline(fresh_python))
    assert str(tmp_path / "venv") in printed  # where the package was imported from
    table = pyarrow.parquet.read_table(here / "embeddings.parquet")
    assert len(table) == 6 and len(table["embedding"][0]) == 128
    assert not (here / NAME / "build").exists()
