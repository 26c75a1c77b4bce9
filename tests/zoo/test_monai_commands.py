"""MONAI's own commands on a stage bundle: verify_net_in_out, ckpt_export, onnx_export, trt_export.

The lines are those of docs/monai-notes.md with a small network.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from monai.bundle import scripts, verify_net_in_out

from medcoss_components.networks.pretraining import PretrainingModel
from medcoss_components.weights import save_weights
from medcoss_components.zoo.verify_network import EXPORT_PACKAGES

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "bundles" / "medcoss_ct_pretraining" / "configs"
FILES = {"meta_file": CONFIGS / "metadata.json", "config_file": CONFIGS / "inference.json"}
INSTALLED = all(find_spec(name) for name in EXPORT_PACKAGES)


def monai(command: str, folder: Path, **options: object) -> subprocess.CompletedProcess[str]:
    """Run ``python -m monai.bundle <command>`` on the CT bundle's network in the demo preset."""
    given = {"net_id": "network_def", "preset": "demo", **FILES, **options}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    line = [sys.executable, "-m", "monai.bundle", command, *words]
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture
def network(tmp_path: Path) -> PretrainingModel:
    """The network whose weights are in ``tmp_path / "model.pt"``."""
    torch.manual_seed(5)
    network = PretrainingModel(preset="demo", modality="ct").eval()
    save_weights(tmp_path / "model.pt", network.state_dict())
    return network


def volume() -> torch.Tensor:
    return torch.rand(1, 1, 16, 192, 192, generator=torch.Generator().manual_seed(3)) * 2 - 1


def test_verify_net_in_out(tmp_path: Path) -> None:
    done = monai("verify_net_in_out", tmp_path)
    assert done.returncode == 0, done.stderr
    wrong = {"preset": "demo", "_meta_#network_data_format#outputs#pred#num_channels": 144}
    with pytest.raises(ValueError, match="output channel number `145` doesn't match: `144`"):
        verify_net_in_out("network_def", **{name: str(path) for name, path in FILES.items()}, device="cpu", **wrong)


def test_ckpt_export(tmp_path: Path, network: PretrainingModel) -> None:
    files = {"ckpt_file": tmp_path / "model.pt", "filepath": tmp_path / "model.ts"}
    done = monai("ckpt_export", tmp_path, use_trace=True, **files)
    assert done.returncode == 0, done.stderr
    extra = {"metadata.json": "", "inference.json": ""}
    exported = torch.jit.load(tmp_path / "model.ts", _extra_files=extra)
    with torch.no_grad():
        torch.testing.assert_close(exported(volume()), network(volume()))
    assert b"CT pre-training" in extra["metadata.json"] and b"PretrainingModel" in extra["inference.json"]


@pytest.mark.skipif(not INSTALLED, reason="the export extra is not installed")
def test_onnx_export(tmp_path: Path, network: PretrainingModel) -> None:
    import onnxruntime

    files = {"ckpt_file": tmp_path / "model.pt", "filepath": tmp_path / "model.onnx"}
    done = monai("onnx_export", tmp_path, **files)
    assert done.returncode == 0, done.stderr
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: volume().numpy()})[0]
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), network(volume()), rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_trt_export_needs_no_key_of_the_config(tmp_path, network, monkeypatch) -> None:
    """TensorRT needs a GPU; up to its converter everything is found in the files of the bundle."""
    calls = []

    def convert(model, **options):
        calls.append((model, options))
        return torch.jit.trace(model.eval(), volume())

    monkeypatch.setattr(scripts, "convert_to_trt", convert)
    scripts.trt_export(
        net_id="network_def",
        filepath=str(tmp_path / "model_trt.ts"),
        ckpt_file=str(tmp_path / "model.pt"),
        precision="fp16",
        use_trace=True,
        dynamic_batchsize=[1, 8, 64],
        preset="demo",
        **{name: str(path) for name, path in FILES.items()},
    )
    ((model, options),) = calls
    assert options["input_shape"] == (1, 1, 16, 192, 192) and options["dynamic_batchsize"] == [1, 8, 64]
    assert options["precision"] == "fp16" and options["use_trace"] is True
    state = network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert (tmp_path / "model_trt.ts").is_file()
