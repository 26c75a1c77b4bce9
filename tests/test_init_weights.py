"""Every bundle starts from every kind of weights: what is loaded, what the log says, what is refused."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from monai.bundle import create_workflow

from medcoss_components import published_weights
from medcoss_components.data.synthetic import synthetic_manifest
from medcoss_components.errors import InputError
from medcoss_components.networks.presets import resolve_preset
from medcoss_components.networks.pretraining import PretrainingModel, encoder_state
from medcoss_components.networks.published import to_published
from medcoss_components.published_weights import import_weights
from medcoss_components.weights import read_weights, save_weights

BUNDLES = Path(__file__).parents[1] / "bundles"
KINDS = ("stage folder", "encoder.safetensors", "model.pt", "imported folder", "imported safetensors", "published.pth")
SMALLER = {"depth": 1, "decoder_depth": 1, "vocabulary_size": 300}
SIZES = resolve_preset("demo", **SMALLER)
BRIEF = {
    "preset": "demo", "max_epochs": 1, "warmup_epochs": 0, "batch_size": 4, "num_workers": 0, "precision": "float32",
    "mlflow": False, "preparation_workers": 1,
}  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file")


@pytest.fixture(scope="module")
def source():
    """The model whose weights everything starts from."""
    torch.manual_seed(11)
    return PretrainingModel(preset="demo", decoder_positions="learned", **SMALLER)


@pytest.fixture(scope="module")
def weights(source, tmp_path_factory):
    """Kind -> path, all with the same encoder."""
    folder, patch = tmp_path_factory.mktemp("weights"), pytest.MonkeyPatch()
    save_weights(folder / "stage" / "model.pt", source.state_dict())
    save_weights(folder / "encoder.safetensors", encoder_state(source))
    save_weights(folder / "alone" / "model.pt", source.state_dict())
    published = to_published(source.state_dict(), sizes=SIZES)
    torch.save({"model": published, "optimizer": {}, "args": argparse.Namespace(lr=1)}, folder / "published.pth")
    patch.setattr(published_weights, "SIZES", SIZES)
    import_weights(folder / "published.pth", folder / "imported")
    patch.undo()
    paths = (
        "stage",
        "encoder.safetensors",
        "alone/model.pt",
        "imported",
        "imported/model.safetensors",
        "published.pth",
    )
    return {kind: folder / path for kind, path in zip(KINDS, paths, strict=True)}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Manifest and store of a few X-rays."""
    folder = tmp_path_factory.mktemp("data")
    manifest = synthetic_manifest(folder / "xray", "xray", count=6, seed=3)
    return {"data_manifest": str(manifest), "store_dir": str(folder / "store")}


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, "medcoss_components")
    return lambda: [record.getMessage() for record in caplog.records if "parameters loaded" in record.getMessage()]


def stage(modality="xray", **settings):
    sizes = {f"network_def#{name}": value for name, value in SMALLER.items()}
    config = str(BUNDLES / f"medcoss_{modality}_pretraining" / "configs" / "train.json")
    return create_workflow(
        config_file=config, workflow_type="train", logging_file=False, **{**BRIEF, **sizes, **settings}
    )


def line(source):
    """What the log says of an encoder that fits."""
    model, encoder = source.state_dict(), encoder_state(source)
    left = [name for name in model if name not in encoder and not name.startswith("decoder.positions")]
    loaded, fresh = (sum(model[name].numel() for name in names) for names in (encoder, left))
    return (
        f"{loaded:,} parameters loaded ({len(encoder)} tensors), 0 interpolated, {fresh:,} left at initialisation "
        f"({len(left)} tensors: decoder.mask_token, "
    )


@pytest.mark.parametrize("kind", KINDS)
def test_stage(kind, weights, data, source, log):
    network = stage(init_weights=str(weights[kind]), **data).parser.get_parsed_content("network")
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in encoder_state(network).items())
    assert not torch.equal(network.state_dict()["decoder.embed.weight"], source.state_dict()["decoder.embed.weight"])
    (message,) = log()
    assert message.startswith(f"{weights[kind]}: {line(source)}")


@pytest.mark.parametrize("modality", ["ct", "mri", "pathology", "report"])
def test_every_stage_bundle(modality, weights, source, log):
    init_weights = str(weights["published.pth"])
    network = stage(modality, init_weights=init_weights).parser.get_parsed_content("network")
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in encoder_state(network).items())
    assert len(log()) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_chain(kind, weights, data, source, log, tmp_path, monkeypatch):
    """The encoder of the first stage is the given one: it is trained for one step of length 0."""
    from medcoss_components.engines import stage as stage_module

    monkeypatch.setattr(stage_module, "write_previews", lambda stage: (stage.folder / "previews").mkdir())
    entry = {"modality": "xray", "data_manifest": data["data_manifest"], "network_def": SMALLER}
    config = str(BUNDLES / "medcoss_continual_pretraining" / "configs" / "train.json")
    chain = create_workflow(
        config_file=config, workflow_type="train", logging_file=False, stages=[entry], output_dir=str(tmp_path),
        store_dir=data["store_dir"], init_weights=str(weights[kind]), base_learning_rate=0.0, **BRIEF,
    )  # fmt: skip
    chain.run()
    trained = read_weights(tmp_path / "01_xray" / "encoder.safetensors")
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in trained.items())
    (message,) = log()
    assert message.startswith(f"{weights[kind]}: {line(source)}")


def test_other_grids_are_interpolated_and_counted(weights, data, log):
    sizes = {"network_def#grid_2d": [7, 7], "network_def#grid_3d": [1, 6, 6]}
    stage(init_weights=str(weights["published.pth"]), **sizes, **data).parser.get_parsed_content("network")
    (message,) = log()
    # (7 x 7 + 1 x 6 x 6) cells of width 128
    assert ", 10,880 interpolated (2 tensors: image_embedding.tokenizers.2d.position, " in message


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_that_does_not_match_is_refused(kind, weights, data):
    settings = {"init_weights": str(weights[kind]), "network_def#depth": 2}
    with pytest.raises((InputError, RuntimeError)) as caught:
        stage(**settings, **data).parser.get_parsed_content("network")
    error = caught.value if isinstance(caught.value, InputError) else caught.value.__cause__
    assert isinstance(error, InputError)
    assert f"{weights[kind]}: does not hold the encoder weights" in str(error)
    assert "encoder.blocks.1.attention_scale (absent)" in str(error)


def test_on_the_command_line(weights, data, tmp_path):
    """The line stands in the log of a real run; a wrong encoder ends it in one line and status 1."""
    command = [sys.executable, "-m", "monai.bundle", "run", "--output_dir", str(tmp_path / "run")]
    command += ["--config_file", str(BUNDLES / "medcoss_xray_pretraining" / "configs" / "train.json")]
    for key, value in {**BRIEF, **data, "init_weights": str(weights["published.pth"])}.items():
        command += [f"--{key}", str(value)]
    sizes = [part for name, value in SMALLER.items() for part in (f"--network_def#{name}", str(value))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MEDCOSS_PROGRESS": "0", "CUDA_VISIBLE_DEVICES": ""}
    options = {"capture_output": True, "text": True, "env": environment, "cwd": tmp_path}
    good = subprocess.run(command + sizes, **options)
    assert good.returncode == 0, good.stderr[-3000:]
    assert "published.pth: " in good.stderr and "parameters loaded" in good.stderr
    bad = subprocess.run(command + sizes + ["--network_def#width", "64"], **options)
    assert bad.returncode == 1 and "Traceback" not in bad.stderr
    assert "error: " in bad.stderr and "does not hold the encoder weights" in bad.stderr
    shutil.rmtree(tmp_path / "run")
