"""Volumes that lie on the disk as one picture file per slice, held together by a small JSON file.

The descriptor ``<name>.slices.json`` stands in manifests in place of a volume file:

    {"format": "medcoss-slices-1", "slices": ["../Images_png/000001_01_01/103.png", "..."], "spacing": [5.0, 0.8, 0.8],
     "directions": "IPL", "subtract": 32768, "unit": "HU"}

``slices`` are paths from the descriptor's folder; ``spacing`` is (slice, row, column) in mm; ``directions`` says where
slice, row and column numbers grow to: S or I, A or P, L or R of the patient; ``subtract`` is taken from every pixel.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medcoss_components.data.readers_common import ARBITRARY, HOUNSFIELD, VolumeData, naming_file, rescale, to_canonical
from medcoss_components.data.readers_image import IMAGE_SUFFIXES, read_image_file
from medcoss_components.errors import InputError
from medcoss_components.files import read_json, write_json

SLICES_SUFFIX = ".slices.json"
FORMAT = "medcoss-slices-1"
DIRECTIONS = {
    "L": (1.0, 0.0, 0.0),
    "R": (-1.0, 0.0, 0.0),
    "P": (0.0, 1.0, 0.0),
    "A": (0.0, -1.0, 0.0),
    "S": (0.0, 0.0, 1.0),
    "I": (0.0, 0.0, -1.0),
}
"""Letter -> unit vector in LPS."""
UNITS = (HOUNSFIELD, ARBITRARY)
_KEYS = ("format", "slices", "spacing", "directions", "subtract", "unit")


@dataclass(frozen=True, kw_only=True)
class SliceStack:
    """The content of a descriptor.

    Args:
        slices: picture files in order.
        spacing: (slice, row, column) in mm.
        directions: three letters of :data:`DIRECTIONS`, one of each axis, for slice, row and column.
        subtract: whole number taken from every pixel.
        unit: "HU" or "a.u.".
    """

    slices: tuple[Path, ...]
    spacing: tuple[float, float, float]
    directions: str = "SPL"
    subtract: int = 0
    unit: str = ARBITRARY

    @property
    def affine(self) -> np.ndarray:
        """(4, 4) float64, index (column, row, slice, 1) -> LPS position in mm; the first voxel lies at the origin."""
        affine = np.eye(4)
        axes = zip(reversed(self.directions), reversed(self.spacing), strict=True)
        for axis, (letter, spacing) in enumerate(axes):
            affine[:3, axis] = spacing * np.array(DIRECTIONS[letter])
        return affine


def is_slice_stack(path: str | Path) -> bool:
    """Whether a path is named like a descriptor."""
    return str(path).lower().endswith(SLICES_SUFFIX)


def slice_stack_values(stack: SliceStack, folder: str | Path) -> dict[str, Any]:
    """The content of a descriptor that lies in ``folder``, as JSON values."""
    base = os.path.abspath(folder)
    slices = [os.path.relpath(os.path.abspath(file), base).replace(os.sep, "/") for file in stack.slices]
    values: tuple[Any, ...] = (FORMAT, slices, list(stack.spacing), stack.directions, stack.subtract, stack.unit)
    return dict(zip(_KEYS, values, strict=True))


def write_slice_stack(path: str | Path, stack: SliceStack) -> None:
    """Write a descriptor atomically; ``path`` ends in ``.slices.json``."""
    write_json(path, slice_stack_values(stack, Path(path).parent))


def read_slice_stack(path: str | Path) -> SliceStack:
    """Read and check a descriptor; the slices are not touched.

    Raises:
        InputError: missing file, no JSON, or a value that breaks its rule.
    """
    path = Path(path)
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT or set(content) != set(_KEYS):
        raise InputError(f"{path}: no descriptor of a volume made of slices: it needs the keys {', '.join(_KEYS)}.")
    for key, (fits, rule) in _RULES.items():
        if not fits(content[key]):
            raise InputError(f"{path}: {key} must be {rule}. Write the descriptor again.")
    return SliceStack(
        slices=tuple(Path(os.path.normpath(path.parent / name)) for name in content["slices"]),
        spacing=tuple(map(float, content["spacing"])),  # type: ignore[arg-type]
        directions=content["directions"],
        subtract=content["subtract"],
        unit=content["unit"],
    )


def _is_spacing(value: Any) -> bool:
    numbers = isinstance(value, list) and len(value) == 3 and all(type(number) in (int, float) for number in value)
    return numbers and all(math.isfinite(number) and number > 0 for number in value)


def _are_directions(value: Any) -> bool:
    if not isinstance(value, str) or len(value) != 3 or not set(value) <= set(DIRECTIONS):
        return False
    return bool(np.count_nonzero(np.sum([np.abs(DIRECTIONS[letter]) for letter in value], axis=0)) == 3)


def _are_pictures(value: Any) -> bool:
    named = isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)
    return named and all(name.lower().endswith(IMAGE_SUFFIXES) for name in value)


_RULES: dict[str, tuple[Any, str]] = {
    "slices": (_are_pictures, f"a list of one or more files that end in {', '.join(IMAGE_SUFFIXES)}"),
    "spacing": (_is_spacing, "three distances in mm above 0: slice, row, column"),
    "directions": (_are_directions, "three letters, one of S and I, one of A and P, one of L and R"),
    "subtract": (lambda value: type(value) is int, "a whole number"),
    "unit": (lambda value: value in UNITS, f"one of {', '.join(UNITS)}"),
}


def read_slices(path: Path) -> VolumeData:
    """Read the volume that a descriptor names.

    Raises:
        InputError: a broken descriptor; a missing, damaged or coloured slice, or slices of several sizes: the slice is
            named.
    """
    stack = read_slice_stack(path)
    planes = [_read_plane(file, stack.subtract) for file in stack.slices]
    for file, plane in zip(stack.slices, planes, strict=True):
        if plane.shape != planes[0].shape:
            raise InputError(
                f"{path}: slice sizes differ: {stack.slices[0].name} has {planes[0].shape}, {file.name} has "
                f"{plane.shape} (rows, columns)."
            )
    volume = np.stack(planes).transpose(2, 1, 0)
    return to_canonical(volume, stack.affine, stack.unit, path)


def _read_plane(file: Path, subtract: int) -> np.ndarray:
    """(rows, columns) int16 where the values fit, else float32."""
    plane = read_image_file(file).array
    if plane.ndim != 2:
        raise InputError(f"{file}: a slice of a volume has one value per pixel, this picture is in colour.")
    return rescale(plane, 1.0, -subtract)


def slices_size(path: Path) -> tuple[int, int, int]:
    """(columns, rows, slices) from the descriptor and the header of the first slice alone.

    Raises:
        InputError: a broken descriptor, or a first slice that is missing or damaged.
    """
    from PIL import Image

    stack = read_slice_stack(path)
    first = stack.slices[0]
    with naming_file(first, show_detail=False), Image.open(first) as picture:
        columns, rows = picture.size
    return columns, rows, len(stack.slices)


def content_files(path: Path) -> list[Path]:
    """The files that hold the voxels of an item: the slices of a descriptor, else the path itself."""
    return list(read_slice_stack(path).slices) if is_slice_stack(path) else [path]
