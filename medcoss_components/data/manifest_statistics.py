"""What the items of a manifest are like: sizes, spacing, intensities, lengths of texts. Some items stand for all.

A file that cannot be read is counted and passed over; ``medcoss manifest check`` says what is wrong with it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from medcoss_components.data.grid_headers import read_image_grid, read_volume_grid
from medcoss_components.data.manifest import SPLITS, Item, Manifest
from medcoss_components.data.readers import read_image, read_volume
from medcoss_components.data.readers_common import ARBITRARY
from medcoss_components.errors import InputError
from medcoss_components.even_spread import evenly_spread
from medcoss_components.progress import progress
from medcoss_components.randomness import numpy_generator_for
from medcoss_components.text_table import text_lines

HEADERS = 1000
"""Items of a split whose header is read, spread evenly over the list."""
SERIES = 50
"""The same for DICOM series, of which the header of every slice is read."""
READ = 32
"""Items of a split that are read as a whole for intensities, drawn from the seed."""
PIXELS = 1 << 16
"""Pixels drawn of each of them, for percentiles; the extremes are those of all pixels."""
THREADS = 8
AXES = ("width", "height", "depth")
_PERCENTILES = {"low": 1, "median": 50, "high": 99}

Result = TypeVar("Result")


def statistics(
    manifest: Manifest, *, headers: int = HEADERS, read: int = READ, seed: int = 0, workers: int | None = None
) -> dict[str, Any]:
    """Sizes, spacing and intensities of images and volumes, or lengths of texts, of each split that has items.

    Args:
        manifest: its files are only read.
        headers: items of a split whose size is looked at; 0: none. Of DICOM series at most :data:`SERIES`.
        read: items of a split that are read as a whole; 0: none.
        seed: of the choice of these.
        workers: threads; None: one per core, at most :data:`THREADS`. As many items are in memory at a time.

    Returns:
        JSON values. Images and volumes: "sizes" and "intensities"; texts: "texts"; each by split. Volumes are measured
        in the orientation that they are read in: width is left-right, height front-back, depth feet-head.

        sizes: {"items", "bad", "axes": {axis: {"min", "median", "max"}}, "spacing": the same in mm, for files that
        tell it}. intensities: {"items", "bad", "unit", "types": [NumPy dtypes], "min", "low" (1 %), "median", "high"
        (99 %), "max"}. texts: {"items", "characters": {"min", "median", "max"}, "words": the same}. "items" could be
        read, "bad" could not.
    """
    filled = [split for split in SPLITS if manifest.items(split)]
    if manifest.modality.dimension == 1:
        return {"texts": {split: _lengths(manifest.items(split)) for split in filled}}
    threads = workers or min(THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        sizes = {split: _sizes(pool, manifest, split, headers) for split in filled if headers}
        intensities = {split: _intensities(pool, manifest, split, read, seed) for split in filled if read}
    return {"sizes": sizes, "intensities": intensities}


def _lengths(items: Sequence[Item]) -> dict[str, Any]:
    texts = [item.text or "" for item in progress(items, description="measure texts", unit="text")]
    lengths = {"characters": map(len, texts), "words": (len(text.split()) for text in texts)}
    return {"items": len(texts)} | {name: _spread(list(values)) for name, values in lengths.items()}


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Least, median and greatest of some numbers; whole ones stay whole."""
    spread = {"min": min(values), "median": float(np.median(values)), "max": max(values)}
    return {name: _rounded(value) for name, value in spread.items()}


def _rounded(value: float) -> float:
    """Six digits, whole numbers in full and as integers."""
    return int(value) if float(value).is_integer() else float(f"{value:.6g}")


def _tried(function: Callable[[Item], Result], item: Item) -> Result | None:
    """The function's result, None for an item whose file cannot be read."""
    try:
        return function(item)
    except (InputError, OSError):
        return None


def _results(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Sequence[Item], description: str
) -> tuple[list[Result], int]:
    """Results of the items that could be read, and the number of those that could not."""
    found = pool.map(lambda item: _tried(function, item), items)
    results = list(progress(found, description=description, total=len(items), unit="item"))
    good = [result for result in results if result is not None]
    return good, len(results) - len(good)


def _sizes(pool: ThreadPoolExecutor, manifest: Manifest, split: str, count: int) -> dict[str, Any]:
    items = manifest.items(split)
    if items[0].image is not None and items[0].image.is_dir():
        count = min(count, SERIES)
    look = read_image_grid if manifest.modality.dimension == 2 else read_volume_grid
    chosen = [items[place] for place in evenly_spread(len(items), count)]
    grids, bad = _results(pool, lambda item: look(Path(str(item.image))), chosen, f"{split}: look at sizes")
    content: dict[str, Any] = {"items": len(grids), "bad": bad}
    if grids:
        content["axes"] = _by_axis(grid.size for grid in grids)
    if spacings := [grid.spacing for grid in grids if grid.spacing]:
        content["spacing"] = _by_axis(spacings)
    return content


def _by_axis(rows: Iterable[Sequence[float]]) -> dict[str, dict[str, float]]:
    return {axis: _spread(values) for axis, values in zip(AXES, zip(*rows, strict=True), strict=False)}


@dataclass(frozen=True)
class _Values:
    """Drawn values of an item as float64 (n,), its extremes, unit and dtype."""

    drawn: np.ndarray
    extremes: tuple[float, float]
    unit: str
    dtype: str


def _intensities(pool: ThreadPoolExecutor, manifest: Manifest, split: str, count: int, seed: int) -> dict[str, Any]:
    items = manifest.items(split)
    order = numpy_generator_for(seed, "statistics", split).permutation(len(items))[:count]
    chosen = [items[place] for place in sorted(order)]
    results, bad = _results(pool, lambda item: _values(item, manifest, seed), chosen, f"{split}: read intensities")
    content: dict[str, Any] = {"items": len(results), "bad": bad}
    if not results:
        return content
    units = {result.unit for result in results}
    content["unit"] = (manifest.intensity_unit or ARBITRARY) if units == {ARBITRARY} else ", ".join(sorted(units))
    content["types"] = sorted({result.dtype for result in results})
    drawn = np.percentile(np.concatenate([result.drawn for result in results]), list(_PERCENTILES.values()))
    numbers = {"min": min(result.extremes[0] for result in results)}
    numbers |= dict(zip(_PERCENTILES, drawn.tolist(), strict=True))
    numbers["max"] = max(result.extremes[1] for result in results)
    return content | {name: _rounded(value) for name, value in numbers.items()}


def _values(item: Item, manifest: Manifest, seed: int) -> _Values:
    reader: Callable[..., Any] = read_image if manifest.modality.dimension == 2 else read_volume
    data = reader(Path(str(item.image)), expected_modality=manifest.modality.dicom_modalities)
    values = data.array.reshape(-1)
    if not values.size:
        raise InputError(f"{item.image}: holds no pixel. Leave it out.")
    drawn = values
    if values.size > PIXELS:
        drawn = values[numpy_generator_for(seed, "statistics", item.id).integers(values.size, size=PIXELS)]
    extremes = (float(values.min()), float(values.max()))
    return _Values(drawn.astype(np.float64), extremes, data.unit, str(data.array.dtype))


def describe_statistics(content: Mapping[str, Any]) -> str:
    """What :func:`statistics` returned as aligned tables for the terminal; "" for a manifest without items."""
    tables = [
        _text_rows(content.get("texts", {})),
        _size_rows(content.get("sizes", {}), "axes", "size"),
        _size_rows(content.get("sizes", {}), "spacing", "spacing (mm)"),
        _intensity_rows(content.get("intensities", {})),
    ]
    return "\n".join(line for rows in tables if len(rows) > 1 for line in text_lines(rows))


def _text_rows(texts: Mapping[str, Any]) -> list[list[str]]:
    rows = [["text length", "looked at", "min", "median", "max"]]
    for split, found in texts.items():
        for unit in ("characters", "words"):
            rows.append([f"{split}, {unit}", str(found["items"]), *(_number(value) for value in found[unit].values())])
    return rows


def _size_rows(sizes: Mapping[str, Any], key: str, heading: str) -> list[list[str]]:
    rows = [[heading, "looked at", "min", "median", "max"]]
    for split, found in sizes.items():
        if key in found:
            axes = found[key].values()
            cells = [" x ".join(_number(axis[name]) for axis in axes) for name in ("min", "median", "max")]
            rows.append([split, _looked_at(found), *cells])
        elif key == "axes":
            rows.append([split, _looked_at(found), "-", "-", "-"])
    return rows


def _intensity_rows(intensities: Mapping[str, Any]) -> list[list[str]]:
    names = ("min", *_PERCENTILES, "max")
    rows = [["intensity", "read", "min", "1 %", "median", "99 %", "max", "unit", "stored as"]]
    for split, found in intensities.items():
        cells = [_number(found[name]) if name in found else "-" for name in names]
        rows.append([split, _looked_at(found), *cells, found.get("unit", "-"), ", ".join(found.get("types", "-"))])
    return rows


def _looked_at(found: Mapping[str, Any]) -> str:
    return f"{found['items']} ({found['bad']} unreadable)" if found["bad"] else str(found["items"])


def _number(value: float) -> str:
    """Up to four digits, whole numbers in full.

    >>> _number(512), _number(0.97656), _number(-1024.0)
    ('512', '0.9766', '-1024')
    """
    return str(int(value)) if float(value).is_integer() else f"{value:.4g}"
