"""Turning a nested configuration into MLflow parameters: names, values and their limits."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medcoss_components.files import sha256_json

MAX_KEY = 250  # mlflow: MAX_ENTITY_KEY_LENGTH
MAX_VALUE = 6000  # mlflow: MAX_PARAM_VAL_LENGTH
MAX_LIST = 32  # longer lists are summarised: they are data (sample ids, file names), not settings


def _summary(values: list[Any]) -> str:
    return f"{len(values)} values, sha256 {sha256_json([str(value) for value in values])[:12]}"


def value_text(value: Any) -> str:
    """The text that stands for one parameter value.

    Short lists become JSON; a list of more than ``MAX_LIST`` entries becomes its length and hash, so that no list of
    sample ids or file names can slip into the tracking database. Texts over ``MAX_VALUE`` characters are cut.
    """
    if isinstance(value, (list, tuple, set, frozenset)):
        entries = sorted(value, key=str) if isinstance(value, (set, frozenset)) else list(value)
        text = _summary(entries) if len(entries) > MAX_LIST else json.dumps(entries, default=str, ensure_ascii=False)
    elif isinstance(value, Path):
        text = value.as_posix()
    elif value is None or isinstance(value, bool):
        text = json.dumps(value)
    else:
        text = str(value)
    return text if len(text) <= MAX_VALUE else text[: MAX_VALUE - 1] + "…"


def clean_key(key: str) -> str:
    """Replace what MLflow does not allow in a parameter or metric name by ``_``.

    >>> clean_key("loss@xray (mean)")
    'loss_xray _mean_'
    """
    allowed = re.sub(r"[^/\w.\- ]", "_", key)[:MAX_KEY]
    return posixpath.normpath(allowed).lstrip("/.") or "_"


def _leaves(content: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, name)
        else:
            yield name, value


def flatten_parameters(parameters: Mapping[str, Any]) -> dict[str, str]:
    """Flatten a nested mapping to ``{"optimizer.lr": "0.0003"}``.

    Args:
        parameters: nested mapping of settings; keys of inner mappings are joined by a dot.

    Returns:
        Parameter name -> text, both within MLflow's limits.

    >>> flatten_parameters({"optimizer": {"lr": 3e-4, "betas": (0.9, 0.95)}, "amp": None})
    {'optimizer.lr': '0.0003', 'optimizer.betas': '[0.9, 0.95]', 'amp': 'null'}
    """
    return {clean_key(name): value_text(value) for name, value in _leaves(parameters, "")}
