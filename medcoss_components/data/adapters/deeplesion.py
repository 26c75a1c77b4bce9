"""DeepLesion: CT slices as 16-bit PNG, ``Images_png/<patient>_<study>_<series>/<slice>.png``, and ``DL_info.csv``.

The files of a series are parts of it around its key slices. Each run of consecutive slice numbers becomes a volume: a
descriptor (``readers_slices.py``) in the folder of made files names its slices and says the voxel size of the table.
Slice numbers grow towards the feet, rows to the back and columns to the patient's left, as in the publisher's own
conversion to NIfTI. Setting ``minimum_slices``: shorter runs are left out.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medcoss_components.data.adapters.beside import is_beside, odd_files
from medcoss_components.data.adapters.converting import made_name
from medcoss_components.data.adapters.findings import (
    DatasetSource,
    Findings,
    Found,
    LeftOut,
    is_hidden,
    reason,
    walk_folders,
)
from medcoss_components.data.readers_common import HOUNSFIELD, naming_file
from medcoss_components.data.readers_slices import SLICES_SUFFIX, SliceStack, slice_stack_values, slices_size
from medcoss_components.data.readers_text import table_reader
from medcoss_components.errors import InputError
from medcoss_components.files import PARTIAL_SUFFIX, atomic_path, remove_partial
from medcoss_components.progress import progress

TABLE = "DL_info.csv"
INDEX = "volumes.csv"
"""List of the descriptors and their volumes, in the folder of made files."""
OFFSET = 32768
"""Stored value less this is the value in Hounsfield units."""
SPLITS = {"1": "training", "2": "validation", "3": "testing"}
_SERIES = re.compile(r"\d{6}_\d{2}_\d{2}")
_SLICE = re.compile(r"(\d{1,4})\.png", re.IGNORECASE)
_COLUMNS = ("File_name", "Slice_range", "Spacing_mm_px_", "Train_Val_Test")


@dataclass(frozen=True)
class Row:
    """What the table says around one key slice: first and last slice, (x, y, z) spacing in mm, split."""

    first: int
    last: int
    spacing: tuple[float, float, float]
    split: str


def find(source: DatasetSource) -> Findings:
    """Runs of consecutive slices as volumes, with the patient, the publisher's split and the table's spacing.

    Raises:
        InputError: no table or no folder of a series, a table without a column that is needed, or a bad setting.
    """
    minimum = source.settings["minimum_slices"]
    if type(minimum) is not int or minimum < 1:
        raise InputError(f"settings: minimum_slices must be a whole number above 0, got {minimum!r}.")
    base = source.locate(TABLE)
    rows, left = read_table(base / TABLE)
    folders, odd = _series_folders(base, source)
    left += odd
    if not folders:
        raise InputError(
            f"{base}: holds no folder of a series. DeepLesion is expected as {TABLE} beside the unpacked "
            "Images_png/000001_01_01/103.png, ..."
        )
    left += [LeftOut(name, f"named in {TABLE}, but not there") for name in sorted(set(rows) - set(folders))]
    stacks: dict[str, tuple[SliceStack, str]] = {}
    for name, folder in progress(sorted(folders.items()), description="look at series", unit="series"):
        left += _add_runs(stacks, name, folder, rows.get(name, []), base=base, minimum=minimum)
    return _written(source, stacks, left)


def read_table(path: Path) -> tuple[dict[str, list[Row]], list[LeftOut]]:
    """Rows of ``DL_info.csv`` by series, and those that cannot be used.

    Raises:
        InputError: an unreadable table, or one without a column that is needed.
    """
    rows: dict[str, list[Row]] = defaultdict(list)
    left = []
    with naming_file(path, show_detail=False):
        for number, line in enumerate(table_reader(path), start=2):
            if missing := [name for name in _COLUMNS if name not in line]:
                raise InputError(f"{path}: no column {', '.join(missing)}. Take the table as the publisher ships it.")
            try:
                rows[_series_of(line["File_name"])].append(_row(line))
            except ValueError:
                left.append(LeftOut(f"{path.name} row {number}", "its name, slices, spacing or split are unusable"))
    return dict(rows), left


def _series_of(name: str) -> str:
    """``000001_01_01`` of ``000001_01_01_109.png``."""
    series = name.strip().rpartition("_")[0]
    if not _SERIES.fullmatch(series):
        raise ValueError(name)
    return series


def _row(line: Mapping[str, str]) -> Row:
    first, last = (int(float(number)) for number in line["Slice_range"].split(","))
    x, y, z = (float(number) for number in line["Spacing_mm_px_"].split(","))
    if not all(math.isfinite(size) and size > 0 for size in (x, y, z)) or first > last:
        raise ValueError
    split = SPLITS.get(line["Train_Val_Test"].strip())
    if split is None:
        raise ValueError
    return Row(first, last, (x, y, z), split)


def _series_folders(base: Path, source: DatasetSource) -> tuple[dict[str, Path], list[LeftOut]]:
    """Folders named like a series, wherever they lie, and what else lies there."""
    folders: dict[str, Path] = {}
    left, odd = [], []
    for here, names, files in walk_folders(base, (source.files_dir,)):
        for name in filter(_SERIES.fullmatch, names):
            if name in folders:
                where = folders[name].relative_to(base).as_posix()
                left.append(LeftOut((here / name).relative_to(base).as_posix(), f"{where} is the same series"))
            else:
                folders[name] = here / name
        names[:] = [name for name in names if not _SERIES.fullmatch(name)]
        odd += [here / name for name in files if (here, name) != (base, TABLE)]
    odd = [path for path in odd if not source.is_output(path)]
    return folders, left + odd_files(odd, base, "it lies in no folder of a series")


def _add_runs(
    stacks: dict[str, tuple[SliceStack, str]],
    series: str,
    folder: Path,
    rows: Sequence[Row],
    *,
    base: Path,
    minimum: int,
) -> list[LeftOut]:
    """Add the volumes of a series to ``stacks``; what was left out of it."""
    where = folder.relative_to(base).as_posix()
    if not rows:
        return [LeftOut(where, f"no usable row in {TABLE}, so its voxel size is not known")]
    slices, left = _slices(folder, base)
    missing = sorted({number for row in rows for number in range(row.first, row.last + 1)} - set(slices))
    if missing:
        listed = ", ".join(map(str, missing[:5])) + (" ..." if len(missing) > 5 else "")
        left.append(LeftOut(where, f"{len(missing)} slices that {TABLE} lists are missing: {listed}"))
    for run in runs(sorted(slices)):
        name = f"{series}_{run[0]:03d}-{run[-1]:03d}"
        if len(run) < minimum:
            left.append(LeftOut(name, f"{len(run)} slices, the minimum is {minimum}"))
        elif (row := _row_of(run, rows)) is None:
            left.append(LeftOut(name, f"the rows of {TABLE} disagree on its voxel size"))
        else:
            stacks[name] = _stack([slices[number] for number in run], row), row.split
    return left


def _slices(folder: Path, base: Path) -> tuple[dict[int, Path], list[LeftOut]]:
    """Slice files of a series by number; empty, doubled and other files are listed."""
    slices: dict[int, Path] = {}
    left = []
    for path in sorted(folder.iterdir()):
        if is_hidden(path.name) or is_beside(path):
            continue
        match = _SLICE.fullmatch(path.name)
        filled = path.is_file() and path.stat().st_size > 0
        if match and filled and int(match.group(1)) not in slices:
            slices[int(match.group(1))] = path
            continue
        why = "no slice, which are <number>.png"
        if match:
            empty = "the file is empty" if path.is_file() else "a link that leads nowhere"
            why = "another file has this slice number" if filled else empty
        left.append(LeftOut(path.relative_to(base).as_posix(), why))
    return slices, left


def runs(numbers: Sequence[int]) -> list[list[int]]:
    """Ascending numbers cut where one is missing.

    >>> runs([3, 4, 5, 8, 9])
    [[3, 4, 5], [8, 9]]
    """
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1].append(number)
        else:
            found.append([number])
    return found


def _row_of(run: Sequence[int], rows: Sequence[Row]) -> Row | None:
    """The row that says the spacing of a run: those that overlap it, else all of the series; None when they differ."""
    fitting = [row for row in rows if row.first <= run[-1] and row.last >= run[0]] or rows
    return fitting[0] if len({row.spacing for row in fitting}) == 1 else None


def _stack(slices: Sequence[Path], row: Row) -> SliceStack:
    x, y, z = row.spacing
    return SliceStack(slices=tuple(slices), spacing=(z, y, x), directions="IPL", subtract=OFFSET, unit=HOUNSFIELD)


def _written(source: DatasetSource, stacks: Mapping[str, tuple[SliceStack, str]], left: list[LeftOut]) -> Findings:
    """Write the descriptors; items of those whose first slice can be read."""
    targets = _write_descriptors(source.files_dir, {name: stack for name, (stack, _) in stacks.items()})
    found = []
    for name, (stack, split) in progress(stacks.items(), description="look at volumes", unit="volume"):
        try:
            size = tuple(slices_size(targets[name]))
        except InputError as error:
            left.append(LeftOut(name, f"{stack.slices[0].name}: {reason(error, stack.slices[0])}"))
            continue
        path = targets[name]
        found.append(Found(name=name, path=path, patient=name[:6], split=split, size=size, files=stack.slices))
    return found, left


def _write_descriptors(folder: Path, stacks: Mapping[str, SliceStack]) -> dict[str, Path]:
    """Write the descriptors that are not there yet, and a list of them; volume -> descriptor.

    Thousands of small files are not flushed to the disk one by one as ``make_files`` does: what is there is compared
    with what should be, so that a file which a power cut emptied is written again.
    """
    remove_partial(folder)
    targets = {}
    with atomic_path(folder / INDEX) as index:
        for name, stack in progress(stacks.items(), description="write descriptors", unit="file"):
            content = json.dumps(slice_stack_values(stack, folder), indent=1) + "\n"
            targets[name] = folder / made_name(name, (), settings=content, suffix=SLICES_SUFFIX)
            _write(targets[name], content)
        lines = (f"{path.name},{name}\n" for name, path in targets.items())
        index.write_text("descriptor,volume\n" + "".join(lines), encoding="utf-8")
    return targets


def _write(target: Path, content: str) -> None:
    if target.is_file() and target.read_text(encoding="utf-8") == content:
        return
    partial = target.with_name(f".{target.name}.{os.getpid()}{PARTIAL_SUFFIX}")
    partial.write_text(content, encoding="utf-8")
    os.replace(partial, target)
