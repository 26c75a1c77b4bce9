"""What a chain is given and what it leaves: stage entries, chain.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medcoss_components.data.modalities import get_modality
from medcoss_components.engines.setup import JOINT_OPTIONS
from medcoss_components.errors import InputError
from medcoss_components.files import read_json

CHAIN_FILE = "chain.json"
DATA_KEYS = ("modality", "data_manifest", *JOINT_OPTIONS)
"""Keys of an entry that say what data it has; the others say how a stage is trained."""


def modality_name(entry: Mapping[str, Any]) -> str:
    """Name of the modality of a stage entry, which is a name or a registry entry."""
    return get_modality(entry["modality"]).name


def check_entries(stages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Stage entries as dicts.

    Raises:
        InputError: none at all, one without modality or manifest, an unknown modality, or one modality twice.
    """
    if not stages:
        raise InputError(
            "stages: give at least one entry, for example [{'modality': 'xray', 'data_manifest': 'xray/manifest.json'}]"
        )
    seen: set[str] = set()
    for number, entry in enumerate(stages):
        missing = [key for key in ("modality", "data_manifest") if not entry.get(key)]
        if missing:
            raise InputError(f"stages[{number}]: {' and '.join(missing)} is missing in {dict(entry)}")
        name = modality_name(entry)
        if name in seen:
            raise InputError(f"stages[{number}]: modality {name} stands twice; one stage each (merge the manifests)")
        seen.add(name)
    return [dict(entry) for entry in stages]


def read_chain(folder: str | Path) -> dict[str, Any]:
    """The record of a chain.

    Raises:
        InputError: when the folder holds none.
    """
    path = Path(folder) / CHAIN_FILE
    if not path.is_file():
        raise InputError(f"{folder}: holds no {CHAIN_FILE}; give the output folder of a chain")
    return read_json(path)
