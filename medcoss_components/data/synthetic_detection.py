"""Seeded pictures with boxes: bright ellipses in a dim body, for tests and for trying a detection task.

Nothing here looks like a patient. Of three pictures the third is empty, the others hold one ellipse or two, in the left
and the right half. The category decides size and brightness. A box is the smallest one around its ellipse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medcoss_components.data.boxes import resolve_categories
from medcoss_components.data.modalities import Modality, get_modality
from medcoss_components.data.synthetic import LABELS, PICTURE_LEVELS, ellipse_mask
from medcoss_components.data.writers import write_picture
from medcoss_components.errors import InputError
from medcoss_components.files import write_json
from medcoss_components.randomness import numpy_generator_for

EMPTY_EVERY = 3
NOISE = 0.02
RADII = (0.06, 0.13)
"""Radii of the first and of the last category, as a share of the picture's sides."""
SIDES = (-0.18, 0.18)
"""Places of the left and the right ellipse beside the middle, as a share of the width."""


def synthetic_detection(
    folder: str | Path,
    modality: str | Modality | Mapping[str, Any] = "xray",
    *,
    count: int = 9,
    validation: int = 3,
    testing: int = 0,
    categories: Sequence[str] = LABELS,
    body_parts: Sequence[str] = (),
    seed: int = 0,
    shape: Sequence[int] = (96, 80),
    preparation: Mapping[str, Any] | None = None,
) -> Path:
    """Write pictures and ``manifest.json`` below ``folder``; equal arguments write equal content.

    Every item has a group of its own. The first ellipse of the non-empty items has the categories in turn.

    Args:
        modality: registered name, entry or its dictionary, 2D.
        count, validation, testing: items of each split.
        categories: names; later ones have larger and brighter ellipses.
        body_parts: names that the items have in turn; none by default.
        shape: (H, W) of the files.
        preparation: settings to carry in the manifest.

    Returns:
        path of ``manifest.json``.

    Raises:
        InputError: a modality that is not 2D, or categories that are no different names.
    """
    entry, names, folder = get_modality(modality), resolve_categories(categories), Path(folder)
    if entry.dimension != 2:
        raise InputError(f"modality {entry.name}: boxes are of 2D pictures, this one has {entry.dimension} axes.")
    (folder / "files").mkdir(parents=True, exist_ok=True)
    lists: dict[str, list[dict[str, Any]]] = {}
    for split, number in (("training", count), ("validation", validation), ("testing", testing)):
        lists[split] = []
        for index in range(number):
            identifier = f"{split}-{index:03d}"
            generator = numpy_generator_for(seed, "synthetic detection", entry.name, split, index)
            picture, label = _draw(index, names, tuple(shape), generator)
            path = folder / "files" / f"{identifier}.png"
            _write(path, picture, entry)
            item = {"id": identifier, "image": f"files/{path.name}", "label": label, "group": f"group-{identifier}"}
            lists[split].append(item | ({"body_part": body_parts[index % len(body_parts)]} if body_parts else {}))
    header = {
        "schema_version": 1,
        "name": f"synthetic-detection-{entry.name}",
        "version": f"{seed}",
        "modality": entry.name if isinstance(modality, str) else entry.to_dict(),
        "licence": "CC0-1.0",
        "source": "medcoss_components.data.synthetic_detection",
        "attribution": "Generated ellipses; no person's data.",
    }
    header |= {"preparation": dict(preparation)} if preparation else {}
    write_json(folder / "manifest.json", header | lists)
    return folder / "manifest.json"


def _draw(
    index: int, categories: Sequence[str], shape: tuple[int, ...], generator: np.random.Generator
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """A picture (H, W) float32 in [0, 1], and its label."""
    outside, body, bright = PICTURE_LEVELS
    picture: np.ndarray = np.full(shape, outside, np.float32)
    picture[ellipse_mask(shape, [(side - 1) / 2 for side in shape], [0.42 * side for side in shape])] = body
    label = []
    for side, number in _places(index, len(categories), generator):
        rank = number / max(1, len(categories) - 1)
        mask = _ellipse(shape, side, rank, generator)
        picture[mask] = body + (bright - body) * (0.5 + 0.5 * rank)
        label.append({"box": tight_box(mask), "category": categories[number]})
    noise = generator.standard_normal(shape, dtype=np.float32) * NOISE * (bright - outside)
    return np.clip(picture + noise, 0, 1), label


def _places(index: int, categories: int, generator: np.random.Generator) -> list[tuple[float, int]]:
    """Place beside the middle and number of the category of each ellipse."""
    if index % EMPTY_EVERY == EMPTY_EVERY - 1:
        return []
    filled = index - index // EMPTY_EVERY  # place among the items that are not empty
    numbers = [filled % categories, int(generator.integers(categories))]
    sides = generator.permutation(SIDES).tolist()
    return list(zip(sides, numbers, strict=True))[: 1 + filled // 2 % 2]


def _ellipse(shape: tuple[int, ...], side: float, rank: float, generator: np.random.Generator) -> np.ndarray:
    sizes = np.asarray(shape, dtype=float)
    radii = sizes * (RADII[0] + (RADII[1] - RADII[0]) * rank) * generator.uniform(0.9, 1.1, 2)
    moved = generator.uniform(-0.12, 0.12), side + generator.uniform(-0.03, 0.03)
    return ellipse_mask(shape, (sizes - 1) / 2 + sizes * moved, radii)


def tight_box(mask: np.ndarray) -> list[int]:
    """[left, top, right, bottom] around what is True in (H, W), right and bottom exclusive.

    >>> tight_box(np.array([[False, False, False], [False, True, True]]))
    [1, 1, 3, 2]
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


def _write(path: Path, picture: np.ndarray, entry: Modality) -> None:
    if entry.stored_channels == 1:
        write_picture(path, (picture * 65535).astype(np.uint16))
    else:
        write_picture(path, np.repeat((picture[..., None] * 255).astype(np.uint8), 3, axis=2))
