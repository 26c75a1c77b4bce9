"""What a weights file holds, as text: nothing in it runs, and its numbers stay on the disk."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from medcoss_components.files import read_json, sha256_file
from medcoss_components.networks.backbone import TASK_PREFIXES
from medcoss_components.networks.pretraining import ENCODER_PREFIXES, PRETEXT_PREFIXES
from medcoss_components.networks.published import is_published
from medcoss_components.published_weights import FORMATS, RECORD, published_shapes
from medcoss_components.weights import BACKBONE, flat_state, read_content


def describe_weights(path: str | Path, *, names: bool = False) -> str:
    """Lines about a weights file: kind, size, hash, groups of tensors and what lies beside them.

    Args:
        path: what :func:`~medcoss_components.weights.read_weights` reads.
        names: whether every tensor's name, type and shape follows.

    Raises:
        InputError: when the file is missing, damaged or no weights file; the message names it.
    """
    file, content = read_content(path, mapped=True)
    state = flat_state(content, file)
    lines = [
        f"file       {file} ({file.stat().st_size:,} bytes)",
        f"sha256     {sha256_file(file)}",
        f"kind       {_kind(state)}",
        f"tensors    {len(state)}, {sum(value.numel() for value in state.values()):,} parameters, {_types(state)}",
        *_groups(state),
    ]
    if content.keys() != state.keys():
        lines += [f"beside     {key}: {_about(value)}" for key, value in content.items() if key != "model"]
    lines += _import_lines(file)
    if names:
        lines += [f"  {name}  {_type(value)} {tuple(value.shape)}" for name, value in state.items()]
    return "\n".join(lines)


def _kind(state: Mapping[str, Tensor]) -> str:
    if is_published(state):
        shapes = {name: tuple(value.shape) for name, value in state.items()}
        for format in FORMATS:
            if shapes == published_shapes(format=format):
                return f"published checkpoint, format {format}; `medcoss weights import` brings it under our names"
        return "published names, but not the names and shapes of a format that can be imported"
    if any(name.startswith(ENCODER_PREFIXES) for name in state):
        return f"weights of this package, {_contents(state)}"
    return "tensors under names that this package does not know"


def _contents(state: Mapping[str, Tensor]) -> str:
    """What stands behind the encoder."""
    if any(name.startswith(BACKBONE) for name in state):
        return _backbone_contents(state)
    if any(name.startswith(PRETEXT_PREFIXES) for name in state):
        return "encoder, decoder and text head"
    if any(name.startswith(TASK_PREFIXES) for name in state):
        return "fine-tuned: encoder and " + ("head" if "head.output.bias" in state else "mask decoder")
    return "encoder alone"


def _backbone_contents(state: Mapping[str, Tensor]) -> str:
    """The kind of backbone, and the tasks whose heads stand behind it."""
    kind = "MedCoSS encoder" if any(name.startswith(BACKBONE + "encoder.") for name in state) else "ResNet"
    tasks = sorted({name.split(".")[1] for name in state if name.startswith("heads.")})
    if tasks:
        return f"backbone ({kind}) and heads of {', '.join(tasks)}"
    return f"backbone ({kind})" + (" and head" if any(name.startswith("head.") for name in state) else " alone")


def _type(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _types(state: Mapping[str, Tensor]) -> str:
    return ", ".join(sorted({_type(value) for value in state.values()}))


def _groups(state: Mapping[str, Tensor]) -> list[str]:
    """One line for all tensors whose names begin with the same word."""
    groups: dict[str, list[Tensor]] = {}
    for name, value in state.items():
        groups.setdefault(name.split(".")[0], []).append(value)
    return [
        f"  {name:22} {len(values):4} tensors {sum(value.numel() for value in values):14,} parameters"
        for name, values in groups.items()
    ]


def _about(value: Any) -> str:
    """The kind of an extra; values are not shown, since they may hold paths and names."""
    if isinstance(value, argparse.Namespace):
        return f"Namespace with {len(vars(value))} settings"
    size = f" with {len(value)} entries" if isinstance(value, Mapping | list | tuple) else ""
    return f"{type(value).__name__}{size}"


def _import_lines(file: Path) -> list[str]:
    path = file.with_name(RECORD)
    if not path.is_file():
        return []
    source = read_json(path)["source"]
    return [f"imported   from {source['name']} ({source['format']}), sha256 {source['sha256']}"]
