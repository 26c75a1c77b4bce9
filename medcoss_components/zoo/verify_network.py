"""Checks of a bundle's network: what goes in and out, weights, TorchScript and ONNX export."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medcoss_components.files import check_archive
from medcoss_components.weights import read_weights
from medcoss_components.zoo.verify_subject import CheckFailed, NotRun, Subject, differences, quiet

SMALL_PRESETS = {"resnet": "resnet_demo"}
"""Beginning of a preset's name -> the small one of its kind; "demo" for all others."""
SMALL_IDS = 999
"""Largest id given to a small network: its vocabulary is shorter than the declared one."""
SMALL_LENGTH = 48
SMALL_SPATIAL = {2: (64, 64), 3: (16, 32, 32)}
"""Number of axes -> size of a small input; multiples of every patch."""
EXPORT_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = {"rtol": 1e-3, "atol": 1e-4}


@dataclass(frozen=True)
class TensorFormat:
    """One entry of metadata's network_data_format.

    Attributes:
        shape: with a batch of one; text such as "16*n" stands for any size.
        dtype: of the tensor.
        value_range: lowest and highest value, or empty.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: torch.dtype
    value_range: tuple[float, ...] = ()

    @classmethod
    def read(cls, name: str, entry: Mapping[str, Any]) -> TensorFormat:
        """Read an entry of ``inputs`` or ``outputs``."""
        dtype = getattr(torch, str(entry.get("dtype")), None)
        if not isinstance(dtype, torch.dtype):
            raise CheckFailed(f"network_data_format: dtype {entry.get('dtype')!r} of {name} is no torch dtype")
        shape = (1, entry["num_channels"], *entry.get("spatial_shape", ()))
        return cls(name, shape, dtype, tuple(entry.get("value_range", ())))

    def resized(self, shape: Sequence[int] | None) -> TensorFormat:
        """This format for an input of ``shape``, (L,) or (C, ...); None changes nothing."""
        return self if shape is None else replace(self, shape=(1, *shape))

    def draw(self, generator: torch.Generator, highest: int | None = None) -> Tensor:
        """A random tensor of this format; ids reach both ends of the range."""
        from monai.bundle.scripts import _get_fake_spatial_shape

        shape = (1, self.shape[1], *_get_fake_spatial_shape(self.shape[2:], p=4, n=1, any=64))
        low, high = self.value_range if len(self.value_range) == 2 else (0, 1)
        if self.dtype.is_floating_point:
            return torch.rand(shape, generator=generator).mul(high - low).add(low).to(self.dtype)
        high = int(high) if highest is None else min(int(high), highest)
        ids = torch.randint(int(low), high + 1, shape, generator=generator, dtype=self.dtype)
        ids.view(-1)[0], ids.view(-1)[-1] = int(low), high
        return ids

    def check(self, output: Tensor) -> None:
        """Raise CheckFailed unless ``output`` has this shape and type."""
        fits = len(self.shape) == output.ndim and all(
            isinstance(wanted, str) or wanted == size for wanted, size in zip(self.shape, output.shape, strict=True)
        )
        if not fits or output.dtype != self.dtype:
            raise CheckFailed(
                f"{self.name} is {tuple(output.shape)} {output.dtype}, metadata says {self.shape} {self.dtype}"
            )


def declared(subject: Subject, kind: str) -> list[TensorFormat]:
    """Formats of the network's ``inputs`` or ``outputs`` in the order of the metadata."""
    entries = subject.metadata.get("network_data_format", {}).get(kind, {})
    if not entries:
        raise CheckFailed(f"metadata: network_data_format#{kind} is missing")
    return [TensorFormat.read(name, entry) for name, entry in entries.items()]


def build_network(config: Mapping[str, Any], **settings: Any) -> nn.Module:
    """``network_def`` of a config in evaluation mode, with some settings of the config replaced."""
    from monai.bundle import ConfigParser

    network = ConfigParser({**config, **settings}).get_parsed_content("network_def")
    if not isinstance(network, nn.Module):
        raise CheckFailed(f"network_def is {type(network).__name__}, not a torch module")
    return network.eval()


def network_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``network_def`` with their references resolved; nothing is built."""
    from monai.bundle import ConfigParser

    item = ConfigParser(dict(config)).get_parsed_content("network_def", instantiate=False)
    return dict(item.get_config())


def small_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that make a config's network small: the demo preset, and a small input where its size can be set."""
    settings: dict[str, Any] = {"preset": small_preset(config["preset"])} if "preset" in config else {}
    if config.get("input_shape"):
        channels, *spatial = config["input_shape"]
        small = SMALL_SPATIAL.get(len(spatial))
        settings["input_shape"] = [channels, *small] if small else [min(channels, SMALL_LENGTH)]
    return settings


def small_preset(name: str) -> str:
    """The smallest preset of the kind that ``name`` is of.

    >>> small_preset("vit_base"), small_preset("resnet50")
    ('demo', 'resnet_demo')
    """
    return next((small for start, small in SMALL_PRESETS.items() if name.startswith(start)), "demo")


def exportable(network: nn.Module) -> nn.Module:
    """What is exported and declared in the metadata: the network, or what it offers in its place (one tensor out)."""
    return network.export_module().eval() if hasattr(network, "export_module") else network


def small_network(subject: Subject) -> nn.Module:
    """The bundle's network, as small as its config allows, from a fixed seed."""
    config = next(iter(subject.published_networks.values()))
    torch.manual_seed(0)
    return exportable(build_network(config, **small_settings(config)))


def check_network(subject: Subject) -> str:
    """The shipped networks agree, and give what the metadata declares for what it declares."""
    networks = subject.published_networks
    first, *others = networks
    settings = {name: network_settings(config) for name, config in networks.items()}
    for name in others:
        if different := differences(settings[first], settings[name]):
            raise CheckFailed(f"network_def of {first} and {name} differ: {'; '.join(different)}")
    inputs = [entry.draw(torch.Generator().manual_seed(1)) for entry in declared(subject, "inputs")]
    (expected, *_) = declared(subject, "outputs")
    network = build_network(networks[first])
    with torch.no_grad():
        output = exportable(network)(*inputs)
        expected.check(output)
        _compare_twin(subject, first, network)
    shapes = ", ".join(str(tuple(value.shape)) for value in inputs)
    return f"{shapes} -> {tuple(output.shape)}"


def _compare_twin(subject: Subject, first: str, network: nn.Module) -> None:
    """The inference network gives the outputs of the training network, from the same weights."""
    twin = _twin(subject.networks["inference"], network)
    inputs = _small_inputs(subject, network, 1)
    expected, found = exportable(network)(*inputs), exportable(twin)(*inputs)
    if expected.shape != found.shape or not torch.equal(expected, found):
        raise CheckFailed(f"networks of {first} and inference give different outputs from the same weights")


def _twin(config: Mapping[str, Any], network: nn.Module) -> nn.Module:
    """The network of another config with the weights of ``network``; it shares their memory where it can."""
    with torch.device("meta"):
        twin = build_network(config)
    load_strictly(twin, network.state_dict(), assign=True)
    if any(value.is_meta for value in chain(twin.parameters(), twin.buffers())):
        twin = build_network(config)
        load_strictly(twin, network.state_dict())
    return twin


def load_strictly(network: nn.Module, state: Mapping[str, Tensor], *, assign: bool = False) -> None:
    """Load weights; every name and shape must fit.

    Raises:
        CheckFailed: naming the first few that do not.
    """
    problems = misfits(network.state_dict(), state)
    if problems:
        raise CheckFailed(f"{len(problems)} tensors do not fit: {'; '.join(problems[:4])}")
    network.load_state_dict(state, strict=True, assign=assign)


def misfits(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Tensors of ``state`` that are missing, unknown or of another shape than in ``wanted``, one line each."""
    problems = [f"{name} is missing" for name in wanted if name not in state]
    problems += [f"{name} is unknown" for name in state if name not in wanted]
    return problems + [
        f"{name} has {tuple(state[name].shape)}, the network {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    ]


def check_weights(subject: Subject) -> str:
    """The weights are a flat state dict and fit the shipped network, name by name."""
    path = subject.weights or subject.folder / "models" / "model.pt"
    if subject.weights is None and not path.is_file():
        raise NotRun("no models/model.pt and no --weights")
    state = flat_state(path)
    with torch.device("meta"):
        network = build_network(subject.networks["inference"])
    load_strictly(network, state, assign=True)
    return f"{len(state)} tensors of {path.name}"


def flat_state(path: Path) -> Mapping[str, Tensor]:
    """Names and tensors of a .safetensors file or of a flat .pt file; pickled objects are refused, never executed.

    Raises:
        CheckFailed: when the file holds anything else.
    """
    if path.suffix == ".safetensors":
        return read_weights(path)
    check_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = f"not a flat state dict; not executed ({_first_line(error)})"
        raise CheckFailed(f"{path.name} holds pickled objects, {reason}") from None
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckFailed(f"{path.name} is not a flat state dict of names and tensors")
    return content


def check_torchscript(subject: Subject) -> str:
    """``torch.jit.script``, else ``torch.jit.trace``, gives the outputs of the network on inputs it has not seen."""
    network = small_network(subject)
    seen, fresh = (_small_inputs(subject, network, seed) for seed in (1, 2))
    with quiet(), torch.no_grad():
        try:
            module, how = torch.jit.script(network), "scripted"
        except Exception as error:  # torch raises a dozen kinds for what its compiler does not know
            module, how = torch.jit.trace(network, seen), f"traced, cannot be scripted: {_first_line(error)}"
        torch.jit.save(module, subject.scratch / "model.ts")
        _compare(torch.jit.load(subject.scratch / "model.ts")(*fresh), network(*fresh), "TorchScript")
    return how


def check_onnx(subject: Subject) -> str:
    """ONNX Runtime gives the outputs of the network on inputs that the export has not seen."""
    missing = [name for name in EXPORT_PACKAGES if find_spec(name) is None]
    if missing:
        raise NotRun(f"{', '.join(missing)} not installed; pip install 'medcoss-components[export]'")
    import onnxruntime

    network = small_network(subject)
    path = subject.scratch / "model.onnx"
    with quiet():
        torch.onnx.export(network, _small_inputs(subject, network, 1), str(path), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    fresh = _small_inputs(subject, network, 2)
    names = [entry.name for entry in session.get_inputs()]
    found = session.run(None, {name: value.numpy() for name, value in zip(names, fresh, strict=True)})[0]
    with torch.no_grad():
        return _compare(torch.from_numpy(found), network(*fresh), "ONNX")


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0].rstrip(":")


def _small_inputs(subject: Subject, network: nn.Module, seed: int) -> tuple[Tensor, ...]:
    """Random inputs of a small network; ids are those that its word table has."""
    shape = small_settings(subject.networks[subject.training]).get("input_shape")
    generator = torch.Generator().manual_seed(seed)
    words = getattr(getattr(network, "sizes", None), "vocabulary_size", SMALL_IDS + 1)
    formats = [entry.resized(shape) for entry in declared(subject, "inputs")]
    return tuple(entry.draw(generator, highest=min(SMALL_IDS, words - 1)) for entry in formats)


def _compare(found: Tensor, expected: Tensor, what: str) -> str:
    """Raise CheckFailed unless two outputs agree; else say how well."""
    if found.shape != expected.shape:
        raise CheckFailed(f"{what} gives {tuple(found.shape)}, PyTorch {tuple(expected.shape)}")
    difference = (found - expected).abs().max().item()
    if not torch.allclose(found, expected, **TOLERANCE):
        raise CheckFailed(f"{what} and PyTorch differ by {difference:.2g}")
    return f"largest difference {difference:.1g}"
