"""What the adapters of radiograph data sets share: a look at the header of an image."""

from __future__ import annotations

from pathlib import Path

from medcoss_components.data.adapters.findings import header_size, reason
from medcoss_components.errors import InputError


def looked_at(path: Path) -> tuple[tuple[int, ...], str]:
    """Pixels (width, height) of an image's header and "", or () and why the header cannot be read."""
    try:
        return header_size(path), ""
    except InputError as error:
        return (), reason(error, path)
