"""Settings of an adapter as ``--set`` gives them, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medcoss_components.errors import InputError


def text_list(settings: Mapping[str, Any], name: str) -> list[str]:
    """A list of texts; a single text is one of them.

    >>> text_list({"names": "TV"}, "names"), text_list({"names": ["TV", 7]}, "names")
    (['TV'], ['TV', '7'])

    Raises:
        InputError: something else.
    """
    value = settings[name]
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list | tuple) or not all(isinstance(entry, str | int | float) for entry in value):
        raise InputError(f"{name}: must be a list of texts such as [a, b], got {value!r}.")
    return [str(entry) for entry in value]


def whole_number(settings: Mapping[str, Any], name: str) -> int:
    """A whole number of at least 0.

    Raises:
        InputError: something else.
    """
    value = settings[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InputError(f"{name}: must be a whole number of at least 0, got {value!r}.")
    return value


def length(settings: Mapping[str, Any], name: str) -> float | None:
    """A positive length, or None.

    Raises:
        InputError: something else.
    """
    value = settings[name]
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise InputError(f"{name}: must be a positive number or null, got {value!r}.")
    return float(value)
