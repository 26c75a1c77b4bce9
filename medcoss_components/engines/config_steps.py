"""A step of a longer run is a config of the bundle with some keys set: read it, check the keys, set them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from medcoss_components.errors import InputError


def read_step_config(path: str | Path) -> ConfigParser:
    """The config of a step, nothing of it built.

    Raises:
        InputError: when there is no such file.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file. Give a JSON config of the bundle.")
    parser = ConfigParser()
    parser.read_config(str(path))
    return parser


def check_keys(names: Iterable[str], config: str | Path, *, where: str) -> None:
    """Refuse keys that a config does not have; of a nested key (``a#b``) its first part counts.

    Args:
        names: keys that are to be set.
        config: path of the config.
        where: what gives the keys, for the message.

    Raises:
        InputError: an unknown key; the message lists the known ones.
    """
    known = read_step_config(config).config.keys() - {"_meta_"}  # MONAI's own
    unknown = sorted(name for name in names if name.split("#")[0] not in known)
    if unknown:
        raise InputError(
            f"{where}: {', '.join(unknown)} is no key of {config}; its keys are {', '.join(sorted(known))}"
        )


def set_keys(parser: ConfigParser, values: Mapping[str, Any], prefix: str = "") -> None:
    """Set keys of a config; a mapping for a part of the config sets the part's keys one by one."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and isinstance(parser.get(name), dict):
            set_keys(parser, value, f"{name}#")
        else:
            parser[name] = value
