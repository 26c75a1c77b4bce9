"""Whether fine-tuned weights are used as they were trained: the record of their run, where it lies beside them, tells.

Names of outputs, intensities and preparation are no parameters, so weights fit a network with others of the same
number; the results would be wrong without a sign of it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medcoss_components.errors import InputError
from medcoss_components.files import folder_of, read_json

logger = logging.getLogger(__name__)

RUN_RECORD, RUN_METRICS = "run.json", "metrics.json"
NAMES = ("classes", "regions", "categories")
"""Settings that name the outputs of a network."""
BOX_SETTINGS = ("anchor_scale", "score_threshold", "nms_threshold", "boxes_per_image")
"""Settings of a detector's head that no weights hold and that decide its boxes."""
_ATTRIBUTE = "trained_settings"


def trained_settings(weights: str | Path) -> dict[str, Any]:
    """Settings of the fine-tuning run whose folder, or whose file, the weights are; empty for other weights.

    ``prepared`` among them is the resolved preparation of the run's data.
    """
    folder = folder_of(weights)
    if not (folder / RUN_RECORD).is_file():
        return {}
    settings = dict(read_json(folder / RUN_RECORD).get("settings", {}))
    if (folder / RUN_METRICS).is_file():
        settings["prepared"] = read_json(folder / RUN_METRICS).get("preparation")
    return settings


def check_outputs(network: Any, weights: str | Path) -> None:
    """Compare what a network calls its outputs, and how it reads, with the run that its weights come from.

    The settings are kept with the network for :func:`check_inputs`.

    Raises:
        InputError: classes, names of regions, categories, modality, text attention or the input shape of a network that
            sees the whole image (classifier, detector), or the anchors of a detector differ.
    """
    settings = trained_settings(weights)
    network.__dict__[_ATTRIBUTE] = settings
    modality = getattr(network, "modality", None)
    own = {
        "classes": [*map(str, getattr(network, "classes", ()))],
        "regions": [*map(str, getattr(network, "regions", ()))],
        "categories": [*map(str, getattr(network, "categories", ()))],
        "modality": getattr(modality, "name", None),
        "text_attention": getattr(network, "text_attention", None),
        "backbone": getattr(network, "backbone_name", None),
        "anchor_scale": getattr(getattr(network, "head", None), "anchor_scale", None),  # boxes are decoded from anchors
    }
    if own["classes"] or own["categories"]:  # masks come from windows, whose size is free; these see the whole image
        own["input_shape"] = list(getattr(modality, "input_shape", ()))
    for name, given in own.items():
        trained = settings.get(name)
        if name in NAMES and trained is not None:
            trained = [str(entry) for entry in trained]
        if trained is not None and given and trained != given:
            raise InputError(f"{name}: {weights} was trained with {trained!r}, given {given!r}. {_advice(name)}")


def _advice(name: str) -> str:
    if name in NAMES:
        return f"Give the trained ones, in their order (--{name}): outputs are named by their place."
    return f"Give the trained one (--{name}), or use the bundle of the training."


def check_inputs(network: Any, *, intensity: Mapping[str, Any] | None, preparation: Mapping[str, Any] | None) -> None:
    """Compare how inputs are made with the training of the network's weights, where that is known.

    Args:
        network: with the settings that :func:`check_outputs` has left.
        intensity: of the inputs.
        preparation: resolved, of the data.

    Raises:
        InputError: another intensity. Another preparation is a warning: other data may need it.
    """
    settings = _known(network)
    trained = settings.get("intensity")
    if "intensity" in settings and _plain(trained) != _plain(intensity):
        raise InputError(
            f"intensity: the weights were trained with {trained!r}, given {intensity!r}. Give the trained one."
        )
    before, now = _plain(settings.get("prepared")), _plain(preparation)
    if before and now and before != now:
        changes = [f"{name} {before.get(name)} -> {now.get(name)}" for name in before | now
                   if before.get(name) != now.get(name)]  # fmt: skip
        logger.warning(
            "preparation differs from that of the training (%s); results may suffer. --preparation sets it.",
            ", ".join(changes),
        )


def check_put_aside(network: Any, dataset: Any, split: str) -> None:
    """Warn when validation cases come out of the training split and are not those that the training left out.

    Args:
        network: with the settings that :func:`check_outputs` has left.
        dataset: labelled data with ``key`` and ``store``.
        split: that it is evaluated as.
    """
    recorded = _known(network).get("data", {}).get("validation")
    if recorded and split == "validation" and dataset.store.index["split"] == "training" and dataset.key != recorded:
        logger.warning(
            "validation: these cases, put aside from the training split, are not those of the training run; the "
            "network may have been trained with some of them. Give the training's seed, validation_share and manifest."
        )


def _known(network: Any) -> dict[str, Any]:
    return getattr(getattr(network, "module", network), "__dict__", {}).get(_ATTRIBUTE) or {}


def _plain(value: Any) -> Any:
    """As JSON gives it back: lists for tuples."""
    return json.loads(json.dumps(value))
