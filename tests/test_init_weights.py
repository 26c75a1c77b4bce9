"""Every bundle starts from every kind of weights: what is loaded, what the log says, what is refused."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import subprocess
import sys
from math import prod
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from monai.bundle import create_workflow

from medcoss_components import published_weights
from medcoss_components.data.synthetic import synthetic_manifest
from medcoss_components.errors import InputError
from medcoss_components.networks.backbone import TASK_PREFIXES
from medcoss_components.networks.classification import ClassificationModel
from medcoss_components.networks.initialisation import initialise
from medcoss_components.networks.presets import resolve_preset
from medcoss_components.networks.pretraining import ENCODER_PREFIXES, PretrainingModel, encoder_state
from medcoss_components.networks.published import to_published
from medcoss_components.networks.segmentation import SegmentationModel
from medcoss_components.published_weights import import_weights
from medcoss_components.weights import load_initial_weights, read_weights, save_weights

BUNDLES = Path(__file__).parents[1] / "bundles"
KINDS = ("stage folder", "encoder.safetensors", "model.pt", "imported folder", "imported safetensors", "published.pth")
CLASS_TOKEN = "image_embedding.class_token"
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


TASKS = {
    "report": (ClassificationModel, {"classes": 5}),
    "xray": (ClassificationModel, {"classes": ["normal", "pneumonia"]}),
    "ct": (ClassificationModel, {"classes": 2, "input_shape": (1, 16, 192, 192)}),
    "pathology": (SegmentationModel, {"regions": 1, "input_shape": (3, 224, 224), "feature_size": 2}),
    "mri": (SegmentationModel, {"regions": {"white": 2}, "input_shape": (1, 16, 192, 192), "feature_size": 2}),
}


def task_model(modality, seed=4, **arguments):
    kind, settings = TASKS[modality]
    model = kind(preset="demo", modality=modality, depth=1, vocabulary_size=300, **(settings | arguments))
    initialise(model, torch.Generator().manual_seed(seed))
    return model


def bundle_network(bundle, init_weights):
    """The network of a task bundle's training, from its own config."""
    config = str(BUNDLES / bundle / "configs" / "train.json")
    settings = {f"network_def#{name}": SMALLER[name] for name in ("depth", "vocabulary_size")}
    workflow = create_workflow(
        config_file=config, workflow_type="train", logging_file=False, init_weights=str(init_weights), preset="demo",
        mlflow=False, **settings,
    )  # fmt: skip
    return workflow.parser.get_parsed_content("network")


TASK_BUNDLES = sorted(path.name for path in BUNDLES.iterdir() if not path.name.endswith("_pretraining"))
BACKBONE = "backbone."
"""Before the encoder's names in the networks of the X-ray tasks."""


@pytest.mark.parametrize("bundle", TASK_BUNDLES)
def test_every_task_bundle(bundle, weights, source, log):
    """Tokenizer and encoder of a published checkpoint, its position grid in the size of the task's input."""
    network, carried = bundle_network(bundle, weights["published.pth"]), source.state_dict()
    (message,) = log()
    assert message.startswith(f"{weights['published.pth']}: ") and "0 unexpected" in message
    for name, value in encoder_state(network).items():
        given = carried[name.removeprefix(BACKBONE)]
        if value.shape == given.shape:
            assert torch.equal(value, given), name
        else:
            assert name.endswith(".position") and f"{value.numel():,} interpolated (1 tensors: {name}" in message


class TestTaskModels:
    """Networks for tasks take their tokenizer and encoder from any kind of weights."""

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("modality", list(TASKS))
    def test_every_kind_of_weights(self, kind, modality, weights, source):
        model, fresh = task_model(modality), task_model(modality).state_dict()
        report = load_initial_weights(model, weights[kind])
        state = model.state_dict()
        carried = [name for name in state if name.startswith(ENCODER_PREFIXES)]
        assert all(torch.equal(state[name], source.state_dict()[name]) for name in carried)
        assert report.loaded == tuple(carried)
        assert report.untouched == tuple(name for name in state if name.startswith(TASK_PREFIXES))
        assert all(torch.equal(state[name], fresh[name]) for name in report.untouched)
        assert not (report.interpolated or report.initialised or report.unexpected)

    @pytest.mark.parametrize("modality", list(TASKS))
    def test_the_rest_of_a_chain_is_not_needed(self, modality, source):
        model = task_model(modality)
        report = load_initial_weights(model, source.state_dict())
        assert set(report.not_needed) == set(source.state_dict()) - set(model.state_dict())
        assert f"0 unexpected, 0 dropped, {len(report.not_needed)} not needed (decoder." in str(report)

    def test_what_no_network_has_is_unexpected(self, source):
        strangers = {"encoder.blocks.9.mlp_in.bias", "other", "image_embedding.tokenizers.2d.extra"}
        state = source.state_dict() | {name: torch.ones(2) for name in strangers}
        assert set(load_initial_weights(task_model("xray"), state).unexpected) == strangers

    @pytest.mark.parametrize(
        ("modality", "shape", "grid"), [("ct", (1, 64, 192, 192), (4, 12, 12)), ("pathology", (3, 512, 256), (32, 16))]
    )
    def test_the_grid_is_interpolated_once(self, modality, shape, grid, source):
        model = task_model(modality, input_shape=shape)
        report = load_initial_weights(model, source.state_dict())
        name = f"image_embedding.tokenizers.{len(grid)}d.position"
        assert report.interpolated == (name,) and f"{128 * prod(grid):,} interpolated" in str(report)
        table = source.state_dict()[name].movedim(-1, 0)[None]
        mode = {2: "bicubic", 3: "trilinear"}[len(grid)]
        wanted = F.interpolate(table, grid, mode=mode, align_corners=False)[0].movedim(0, -1)
        torch.testing.assert_close(model.state_dict()[name], wanted)

    @pytest.mark.parametrize("modality", list(TASKS))
    def test_fine_tuned_weights_come_back_whole(self, modality, tmp_path):
        save_weights(tmp_path / "model.pt", task_model(modality, seed=1).state_dict())
        model = task_model(modality, seed=2)
        report = load_initial_weights(model, tmp_path, parts="all")
        expected = task_model(modality, seed=1).state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
        assert report.loaded == tuple(expected)
        assert not (report.untouched or report.not_needed or report.unexpected)

    def test_fine_tuned_weights_start_another_task(self):
        """Only the encoder is taken; the head of the earlier task does not have to fit."""
        earlier, model = task_model("xray"), task_model("pathology", seed=5)
        report = load_initial_weights(model, earlier.state_dict())
        assert report.not_needed == (*sorted(n for n in earlier.state_dict() if "head." in n), CLASS_TOKEN)
        report = load_initial_weights(task_model("xray", classes=7), earlier.state_dict())
        assert report.untouched == ("head.norm.weight", "head.norm.bias", "head.output.weight", "head.output.bias")

    @pytest.mark.parametrize(
        ("modality", "arguments", "message"),
        [
            ("xray", {"classes": 4}, r"all weights .* head\.output\.weight \(has \(2, 128\), needs \(4, 128\)\)"),
            (
                "pathology",
                {"regions": 3},
                r"output\.conv\.conv\.bias \(has \(1,\), needs \(3,\)\).*classes and regions",
            ),
            ("mri", {"feature_size": 4}, r"image\.layer\.conv1\.conv\.weight \(has \(2, 1, 3, 3, 3\), needs \(4, 1,"),
        ],
    )
    def test_fine_tuned_weights_of_other_outputs_are_refused(self, modality, arguments, message):
        model = task_model(modality, seed=2, **arguments)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(InputError, match=message):
            load_initial_weights(model, task_model(modality).state_dict(), parts="all")
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def test_a_chain_has_no_head(self, weights):
        with pytest.raises(InputError, match=r"model\.pt: .* head\.norm\.weight \(absent\)"):
            load_initial_weights(task_model("xray"), weights["model.pt"], parts="all")

    def test_weights_of_another_modality_are_refused(self):
        with pytest.raises(InputError, match=r"tokenizers\.3d\.weight \(absent\)"):
            load_initial_weights(task_model("ct"), task_model("xray").state_dict())

    def test_names_may_start_afresh(self):
        """Fine-tuned 2D weights in a 3D task."""
        report = load_initial_weights(
            task_model("ct"), task_model("xray").state_dict(), allow_initialised=["image_embedding.tokenizers.3d."]
        )
        assert [name.rsplit(".", 1)[1] for name in report.initialised] == ["weight", "bias", "position", "temporal"]
