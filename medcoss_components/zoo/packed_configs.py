"""Configs and metadata of a packed bundle: the bundle's own, set to the network that the weights belong to."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medcoss_components.data.modalities import BUILT_IN, Modality
from medcoss_components.files import read_json, write_json
from medcoss_components.zoo.build import BundleSource
from medcoss_components.zoo.packed_run import Run

ALIASES = {"inference.json": "infer.json"}
"""``monai.bundle.load(workflow_type="infer")`` reads ``configs/infer.json``."""
NETWORK_PARTS = frozenset({"network_def", "stage_settings"})
"""A config with one of these builds a network; an overlay has none."""
SPLIT_SETTINGS = ("validation_share", "seed")
"""Settings that say which training patients are validation patients when the manifest has no validation split."""
OWN_DATA = "dataset"
"""Folder of the packed bundle where manifests are looked for by default."""
INPUT_FORMATS: dict[str, dict[str, Any]] = {
    "tokens": {"format": "token_ids", "value_range": []},
    "unit_range": {"format": "magnitude", "value_range": [0, 1]},
    "hounsfield": {"format": "hounsfield", "value_range": [-1, 1]},
    "zscore": {"format": "magnitude", "value_range": [-10, 10]},
}
"""Intensity rule -> what metadata says about the input."""

_SAMPLE_PATH = re.compile(r"'/\.\./\.\./[^']*'")
_ABOUT_CHANGES = (
    (re.compile(r"--data_manifest \S+"), "--data_manifest data/manifest.json"),
    (re.compile(r" --weights \S+"), ""),
    (re.compile(r"--init_weights \S+"), "--init_weights {name}/models"),
)


def write_configs(folder: Path, *, source: BundleSource, run: Run) -> None:
    """Write the configs of ``source`` into ``folder / "configs"``, set to the network of ``run``."""
    (folder / "configs").mkdir(parents=True)
    for path in sorted((source.folder / "configs").iterdir()):
        if path.name == "metadata.json":
            write_json(folder / "configs" / path.name, packed_metadata(read_json(path), run, source.values))
        elif path.suffix == ".json":
            content = moved_config(read_json(path), source.name)
            for name in filter(None, (path.name, ALIASES.get(path.name))):
                write_json(folder / "configs" / name, packed_config(content, run))
        else:
            shutil.copyfile(path, folder / "configs" / path.name)


def moved_config(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The config as it stands outside this repository: no default leads out of the bundle, commands name its folder.

    >>> moved_config({"data_manifest": "$@bundle_root + '/../../sample_data/ct/manifest.json'"}, "x")
    {'data_manifest': "$@bundle_root + '/dataset/manifest.json'"}
    """
    moved = json.loads(json.dumps(config).replace(f"bundles/{name}/", f"{name}/"))
    moved = _map_strings(moved, lambda text: _SAMPLE_PATH.sub(_own_place, text))
    if "about" in moved:
        moved["about"] = _map_strings(moved["about"], lambda text: _about(text, name))
    return moved


def _own_place(match: re.Match[str]) -> str:
    return f"'/{OWN_DATA}/manifest.json'" if match[0].endswith("manifest.json'") else f"'/{OWN_DATA}'"


def _about(text: str, name: str) -> str:
    for pattern, replacement in _ABOUT_CHANGES:
        text = pattern.sub(replacement.format(name=name), text)
    return text


def _map_strings(content: Any, change: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _map_strings(value, change) for key, value in content.items()}
    if isinstance(content, list):
        return [_map_strings(value, change) for value in content]
    return change(content) if isinstance(content, str) else content


def packed_config(config: Mapping[str, Any], run: Run) -> dict[str, Any]:
    """The config with the defaults that the packed weights need; overlays, which build no network, stay as they are.

    >>> settings = {"modality": "ct", "preset": "demo", "text_attention": "causal", "decoder_positions": "sincos"}
    >>> run = Run(Path(), settings, {}, {"depth": 2}, {"vocabulary_size": 4000})
    >>> packed_config({"preset": "vit_base", "seed": 0, "network_def": {"_target_": "x"}}, run)
    {'preset': 'demo', 'seed': 0, 'network_def': {'_target_': 'x', 'depth': 2}}
    """
    if not NETWORK_PARTS & set(config):
        return dict(config)
    given = run.network_settings
    open_modality = config.get("modality", ...) is None  # the chain fills in that of its stage.json
    packed = {key: given.get(key, value) for key, value in config.items()}
    if open_modality:
        packed["modality"] = None
    if "weights" in packed:  # evaluation splits off the validation patients as the training did
        packed |= {name: run.settings[name] for name in SPLIT_SETTINGS if name in packed and name in run.settings}
    if "vocabulary_size" in packed and "vocabulary_size" in run.sizes:  # a ResNet has no words
        packed["vocabulary_size"] = min(packed["vocabulary_size"], run.sizes["vocabulary_size"])
    if "network_def" in packed:
        packed["network_def"] = {**packed["network_def"], **run.overrides}
    if "extra_modalities" in packed and not open_modality and "modality" in packed:
        packed["extra_modalities"] = _with_entry(packed["extra_modalities"], run.entry())
    return packed


def _with_entry(entries: list[Mapping[str, Any]], entry: Modality) -> list[Mapping[str, Any]]:
    """Registry entries of a config and that of the run, unless the package ships it."""
    if entry.name in BUILT_IN:
        return entries
    return [*(other for other in entries if other.get("name") != entry.name), entry.to_dict()]


# ---- metadata ----


def packed_metadata(metadata: Mapping[str, Any], run: Run, values: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata with the measured numbers and with the inputs and outputs of the packed network.

    Args:
        metadata: the bundle's.
        run: the training.
        values: of the bundle's source; what they say about modality, classes and regions is corrected to the run's.
    """
    packed = json.loads(json.dumps(metadata))
    packed["eval_metrics"] = measured(run) or packed["eval_metrics"]
    network, entry = packed["network_data_format"], run.entry()
    if values.get("modality") not in (None, entry.name):
        network["inputs"] = {entry.content_key: _input_entry(entry)}
        packed["image_classes"] = f"input of the modality {entry.name}: {entry.description or 'see the model card'}"
    for declared in network["inputs"].values():
        declared.update(_input_sizes(entry, run))
    if "pred" in network["outputs"]:
        network["outputs"]["pred"].update(_output_sizes(network["outputs"]["pred"], entry, run))
    packed.update(_class_texts(run, values))
    return packed


def measured(run: Run) -> dict[str, float]:
    """Finite numbers of the run's evaluation, with the split in front of the name; empty without one."""
    loss = run.metrics.get("validation_loss")
    found = {} if loss is None else {"validation_pretext_loss": loss}
    for split in ("validation", "testing"):
        numbers = run.metrics.get(split) or {}
        found |= {f"{split}_{name}": value for name, value in numbers.items() if _finite(value)}
    return found


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _input_entry(entry: Modality) -> dict[str, Any]:
    image = {"is_patch_data": True, "channel_def": {str(index): "intensity" for index in range(entry.input_shape[0])}}
    return {
        "type": "tensor",
        "modality": entry.name,
        "dtype": "int64" if entry.dimension == 1 else "float32",
        **INPUT_FORMATS[entry.intensity],
        **({} if entry.dimension == 1 else image),
    }


def _input_sizes(entry: Modality, run: Run) -> dict[str, Any]:
    channels, *spatial = entry.input_shape
    sizes: dict[str, Any] = {"num_channels": channels, "spatial_shape": spatial}
    if entry.dimension == 1:
        sizes["value_range"] = [0, run.sizes["vocabulary_size"] - 1]
    intensity = run.settings.get("intensity") or {}
    if "standardise" in intensity:
        sizes["value_range"] = []
    elif intensity.get("clip"):
        low, high = ((end - intensity.get("subtract", 0)) / intensity.get("divide", 1) for end in intensity["clip"])
        sizes["value_range"] = [round(low, 2), round(high, 2)]
    return sizes


def _output_sizes(declared: Mapping[str, Any], entry: Modality, run: Run) -> dict[str, Any]:
    """Sizes of the output by its declared format; others are left alone."""
    if declared.get("format") == "features":
        first = {"0": "first token" if entry.dimension == 1 else "class token"}
        return {"num_channels": tokens(entry, run), "spatial_shape": [run.sizes["width"]], "channel_def": first}
    if declared.get("format") == "embedding":
        return {"num_channels": run.sizes["width"]}
    if not (names := run.outputs):
        return {}
    if run.kind == "detection":
        from medcoss_components.networks.retinanet import anchor_count

        return {"num_channels": anchor_count(entry.input_shape[1:]), "spatial_shape": [4 + len(names)]}
    spatial = list(entry.input_shape[1:]) if run.kind == "segmentation" else []
    channels = {str(index): name for index, name in enumerate(names)}
    return {"num_channels": len(names), "spatial_shape": spatial, "channel_def": channels}


def tokens(entry: Modality, run: Run) -> int:
    """Tokens of one input: those of a text, or the class token and the patches of an image."""
    if entry.dimension == 1:
        return entry.input_shape[0]
    patch = run.sizes[f"patch_{entry.dimension}d"]
    return 1 + math.prod(size // step for size, step in zip(entry.input_shape[1:], patch, strict=True))


def _class_texts(run: Run, values: Mapping[str, Any]) -> dict[str, str]:
    """What metadata says about classes or regions, where the run's are not the bundle's own."""
    classes, regions, names = run.settings.get("classes"), run.settings.get("regions"), ", ".join(run.outputs)
    if run.settings.get("categories") != values.get("categories"):
        return {"label_classes": f"list of boxes, each [left, top, right, bottom] in pixels with its category: {names}"}
    if classes != values.get("classes"):
        numbered = ", ".join(f"{index} = {name}" for index, name in enumerate(run.outputs))
        return {
            "label_classes": f"class name or its number: {numbered}",
            "pred_classes": f"logit of each class, in this order: {names}",
        }
    if regions != values.get("regions"):
        return {
            "label_classes": f"mask; mask values of each region: {regions}",
            "pred_classes": f"logit of each region, in this order: {names}; above 0 is inside",
        }
    return {}
