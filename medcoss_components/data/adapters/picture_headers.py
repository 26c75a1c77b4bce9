"""Sizes of many pictures from their headers, several files at a time: the disk is what takes long."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from medcoss_components.data.adapters.findings import Findings, Found, LeftOut, header_size, reason
from medcoss_components.errors import InputError
from medcoss_components.progress import progress

THREADS = 8


def with_sizes(found: Sequence[Found]) -> Findings:
    """Items with the size that their file's header says; those without a readable header are left out.

    Args:
        found: items with a path to a picture.
    """
    kept, left = list[Found](), list[LeftOut]()
    if not found:
        return kept, left
    with ThreadPoolExecutor(THREADS) as pool:
        sizes = pool.map(looked_at, [item.path for item in found], chunksize=64)
        for item, (size, why) in progress(
            zip(found, sizes, strict=True), description="look at pictures", total=len(found), unit="file"
        ):
            if why:
                left.append(LeftOut(item.name, why))
            else:
                kept.append(replace(item, size=size))
    return kept, left


def looked_at(path: Path) -> tuple[tuple[int, ...], str]:
    """Pixels (width, height) of a picture's header and "", or () and why the header cannot be read."""
    try:
        return header_size(path), ""
    except InputError as error:
        return (), reason(error, path)
