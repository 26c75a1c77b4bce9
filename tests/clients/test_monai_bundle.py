"""MONAI's own clients on the packed zip: download, load, create_workflow, and the command line in a fresh environment.

MONAI 1.6.1: ``download`` hands ``--url`` to ``urllib``, which reads ``file://``; without ``--name`` it fails after
unpacking. ``load`` reads ``configs/<workflow_type>.json``, so "infer" needs ``configs/infer.json``.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from monai.bundle import create_workflow, download, load

from medcoss_components.weights import read_weights

from .conftest import BRIEF, NAME, ROOT, Task, offline, page_commands, rows_of

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
    fresh_python: Path,
    packed: Path,
    manifest: Path,
    make_task: Callable[[str], Task],
    tmp_path: Path,
    shell: Callable[..., str],
) -> None:
    """docs/use-one-bundle.md as it stands, from the zips to predictions and embeddings.

    The package comes from the bundle alone, all else from what its requirements.txt asks for.
    """
    import pyarrow.parquet

    task, here = make_task("chest_xray_classification"), tmp_path / "here"
    here.mkdir()
    for source in (packed, task.packed):
        (here / source.name).symlink_to(source)
    (here / "films").symlink_to(task.manifest.parent / "files")
    (here / "data").symlink_to(manifest.parent)

    absent = "from importlib.util import find_spec; print([bool(find_spec(name)) for name in {names}])"
    names = ["monai", "medcoss_components", "pytest", "onnx", "highdicom"]
    found = shell([fresh_python, "-c", absent.format(names=names)], here, **offline(fresh_python))
    assert found.split() == ["[True,", "False,", "False,", "False,", "False]"]
    commands = page_commands(PAGE)
    printed = shell(["bash", "-e", "-c", commands], here, **offline(fresh_python))
    assert str(tmp_path / "venv") in printed and "ClassificationModel" in printed  # where the package came from

    rows = rows_of(here / "predictions" / "predictions.csv")
    assert len(rows) == len(list((here / "films").iterdir())) and "predicted" in rows[0]
    for row in rows:
        assert sum(float(value) for name, value in row.items() if name.startswith("prob_")) == pytest.approx(
            1, abs=1e-4
        )
    table = pyarrow.parquet.read_table(here / "embeddings.parquet")
    assert len(table) == 6 and len(table["embedding"][0]) == 128
    assert not (here / task.name / "build").exists()
    card = (here / task.name / "README.md").read_text(encoding="utf-8")
    (predict,) = [block for block in card.split("\n\n") if "--input cases" in block]
    assert textwrap.dedent(predict).strip().replace("--input cases", "--input films") in commands
