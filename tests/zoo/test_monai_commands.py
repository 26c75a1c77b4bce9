"""MONAI's own commands on a pre-training and on a downstream bundle: verify_net_in_out and the three exports.

The lines are those of docs/monai-notes.md with a small network.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from monai.bundle import scripts, verify_net_in_out

from medcoss_components.networks.classification import ClassificationModel
from medcoss_components.networks.pretraining import PretrainingModel
from medcoss_components.weights import save_weights

BUNDLES = Path(__file__).parents[2] / "bundles"
NETWORKS = {
    "medcoss_ct_pretraining": lambda: PretrainingModel(preset="demo", modality="ct"),
    "chest_xray_classification": lambda: ClassificationModel(
        preset="demo", modality="xray", classes=["covid", "normal", "pneumonia"]
    ),
}
"""Bundle -> the network of its configs, with ``--preset demo``."""
INPUTS = {"medcoss_ct_pretraining": (1, 1, 16, 192, 192), "chest_xray_classification": (1, 3, 224, 224)}
each_bundle = pytest.mark.parametrize("name", list(NETWORKS))
pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::UserWarning")

Monai = Callable[..., None]


def files_of(name: str) -> dict[str, str]:
    configs = BUNDLES / name / "configs"
    return {"meta_file": str(configs / "metadata.json"), "config_file": str(configs / "inference.json")}


@pytest.fixture
def monai(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Monai:
    """``monai(command, bundle, **options)``: ``python -m monai.bundle <command>`` run here, in a scratch folder.

    The network is that of the bundle in the demo preset.
    """
    monkeypatch.chdir(tmp_path)

    def run(command: str, bundle: str, **options: object) -> None:
        given = {"net_id": "network_def", "preset": "demo", **files_of(bundle), **options}
        words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
        monkeypatch.setattr(sys, "argv", ["monai.bundle", command, *words])
        runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)

    return run


def saved_network(name: str, folder: Path) -> torch.nn.Module:
    """The bundle's network; its weights are written to ``folder / "model.pt"``."""
    torch.manual_seed(5)
    network = NETWORKS[name]().eval()
    save_weights(folder / "model.pt", network.state_dict())
    return network


def image(name: str) -> torch.Tensor:
    return torch.rand(INPUTS[name], generator=torch.Generator().manual_seed(3)) * 2 - 1


@pytest.mark.parametrize(("name", "channels"), [("medcoss_ct_pretraining", 145), ("chest_xray_classification", 3)])
def test_verify_net_in_out(name: str, channels: int, monai: Monai) -> None:
    monai("verify_net_in_out", name)
    wrong = {"preset": "demo", "_meta_#network_data_format#outputs#pred#num_channels": channels - 1}
    with pytest.raises(ValueError, match=f"output channel number `{channels}` doesn't match: `{channels - 1}`"):
        verify_net_in_out("network_def", **files_of(name), device="cpu", **wrong)


@each_bundle
def test_ckpt_export(name: str, monai: Monai, tmp_path: Path) -> None:
    network = saved_network(name, tmp_path)
    monai("ckpt_export", name, use_trace=True, ckpt_file=tmp_path / "model.pt", filepath=tmp_path / "model.ts")
    extra = {"metadata.json": "", "inference.json": ""}
    exported = torch.jit.load(tmp_path / "model.ts", _extra_files=extra)
    with torch.no_grad():
        torch.testing.assert_close(exported(image(name)), network(image(name)))
    assert b"network_data_format" in extra["metadata.json"]
    assert type(network).__name__.encode() in extra["inference.json"]


@each_bundle
def test_onnx_export(name: str, monai: Monai, tmp_path: Path) -> None:
    import onnxruntime

    network = saved_network(name, tmp_path)
    monai("onnx_export", name, ckpt_file=tmp_path / "model.pt", filepath=tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: image(name).numpy()})[0]
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), network(image(name)), rtol=1e-3, atol=1e-4)


@each_bundle
def test_trt_export_needs_no_key_of_the_config(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT needs a GPU; up to its converter everything is found in the files of the bundle."""
    network = saved_network(name, tmp_path)
    calls = []

    def convert(model, **options):
        calls.append((model, options))
        return torch.jit.trace(model.eval(), image(name))

    monkeypatch.setattr(scripts, "convert_to_trt", convert)
    scripts.trt_export(
        net_id="network_def",
        filepath=str(tmp_path / "model_trt.ts"),
        ckpt_file=str(tmp_path / "model.pt"),
        precision="fp16",
        use_trace=True,
        dynamic_batchsize=[1, 8, 64],
        preset="demo",
        **files_of(name),
    )
    ((model, options),) = calls
    assert options["input_shape"] == INPUTS[name] and options["dynamic_batchsize"] == [1, 8, 64]
    assert options["precision"] == "fp16" and options["use_trace"] is True
    state = network.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert (tmp_path / "model_trt.ts").is_file()
