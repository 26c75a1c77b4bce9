"""Chest radiographs of the U.S. National Library of Medicine: China-Set (Shenzhen) and Montgomery, with lung masks.

``CHNCXR_<number>_<class>.png`` and ``MCUCXR_<number>_<class>.png``, class 0 or 1, in folders of any name. Masks of the
lungs lie beside them: one for each lung (``leftMask``, ``rightMask``: Montgomery as published), or one for both in a
folder ``mask`` or ``masks``, some with ``_mask`` behind the name. The readings (``ClinicalReadings``), which hold sex,
age and free text, are never opened.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from medcoss_components.data.adapters.beside import odd_files
from medcoss_components.data.adapters.converting import FileJob, made_name, make_files
from medcoss_components.data.adapters.findings import DatasetSource, Findings, Found, LeftOut, bare_name
from medcoss_components.data.adapters.picture_headers import looked_at, with_sizes
from medcoss_components.data.adapters.picture_lists import by_key, chosen
from medcoss_components.data.masks import read_mask
from medcoss_components.data.writers import write_picture
from medcoss_components.errors import InputError

SETS = {"china_set": "CHNCXR", "montgomery": "MCUCXR"}
"""Name of a set in the settings -> beginning of its file names."""
LABELS = ("class", "lungs")
CLASSES = {"0": "normal", "1": "tuberculosis"}
RIGHT, LEFT = 1, 2
"""Values of a made mask."""
BODY_PART = "chest"
_NAME = re.compile(rf"({'|'.join(SETS.values())})_\d{{4}}_[01](_mask)?\.(png|txt)", re.IGNORECASE)
_HALVES = {"leftmask": "left", "rightmask": "right"}
_WHOLE = ("mask", "masks")


@dataclass
class _Files:
    """Files by what they are; masks by the name of their radiograph without suffix."""

    images: list[Path] = field(default_factory=list)
    whole: dict[str, Path] = field(default_factory=dict)
    halves: dict[str, dict[str, Path]] = field(default_factory=lambda: {"left": {}, "right": {}})
    odd: list[Path] = field(default_factory=list)


def find(source: DatasetSource) -> Findings:
    """Radiographs of the sets in the settings, with their class or the mask of the lungs.

    Raises:
        InputError: a setting that breaks a rule, or no radiograph of these sets.
    """
    if (labels := source.settings["labels"]) not in LABELS:
        raise InputError(f"settings: labels must be one of {', '.join(LABELS)}, got {labels!r}.")
    names = chosen(source.settings, "sets", tuple(SETS)) or tuple(SETS)
    files = _sorted_out(source.files(), [SETS[name] for name in names])
    images, left, _ = by_key(files.images, source.root, lambda path: path.stem.upper())
    if not images:
        patterns = ", ".join(f"{SETS[name]}_<number>_<class>.png" for name in names)
        raise InputError(f"{source.root}: holds no {patterns}. Give the folder of the data set.")
    left += odd_files(files.odd, source.root, "no radiograph of these sets and no mask of one")
    found, broken = with_sizes([_found(path, source.root) for path in images.values()])
    left += broken
    if labels == "lungs":
        found, more = _with_masks(found, files, source)
        left += [*more, *_without_image(files, images, source.root)]
    return found, left


def _sorted_out(paths: Sequence[Path], prefixes: Sequence[str]) -> _Files:
    """Every file by its name and folder; readings are in none of the lists."""
    files = _Files()
    for path in paths:
        match, folder = _NAME.fullmatch(path.name), path.parent.name.lower()
        if match is None or match.group(1).upper() not in prefixes:
            files.odd.append(path)
            continue
        stem = path.stem.upper().removesuffix("_MASK")
        if match.group(3).lower() == "txt":
            continue
        if folder in _HALVES:
            files.halves[_HALVES[folder]].setdefault(stem, path)
        elif match.group(2) or folder in _WHOLE:
            files.whole.setdefault(stem, path)
        else:
            files.images.append(path)
    return files


def _found(path: Path, root: Path) -> Found:
    patient, _, number = path.stem.upper().rpartition("_")
    place = path.relative_to(root).as_posix()
    return Found(
        name=bare_name(place),
        keys={"file": place},
        path=path,
        patient=patient,
        label=CLASSES[number],
        files=(path,),
        body_part=BODY_PART,
    )


def _with_masks(found: Sequence[Found], files: _Files, source: DatasetSource) -> Findings:
    """Radiographs with the mask of both lungs, made of two where the publisher gives one for each."""
    kept, left, jobs = list[Found](), list[LeftOut](), dict[Path, FileJob]()
    for item in found:
        mask, why = _mask(item, files, source, jobs)
        if mask is None:
            left.append(LeftOut(item.name, why))
        else:
            kept.append(replace(item, label=mask.absolute()))
    failed = make_files(list(jobs.values()), workers=source.workers, description="join the masks of both lungs")
    left += [LeftOut(item.name, _told(failed[item.label], jobs[item.label])) for item in kept if item.label in failed]
    return [item for item in kept if item.label not in failed], left


def _mask(item: Found, files: _Files, source: DatasetSource, jobs: dict[Path, FileJob]) -> tuple[Path | None, str]:
    """The mask of a radiograph, or None and why it has none; where it has to be made, the job is added to ``jobs``."""
    stem = Path(str(item.path)).stem.upper()
    halves = {side: paths[stem] for side, paths in files.halves.items() if stem in paths}
    whole = [files.whole[stem]] if stem in files.whole else []
    masks = list(halves.values()) if len(halves) == len(files.halves) else whole
    if not masks:
        return None, f"only its {next(iter(halves))} lung has a mask" if halves else "a radiograph without mask"
    for mask in masks:
        size, problem = looked_at(mask)
        if problem:
            return None, f"its mask {problem}"
        if size != item.size:
            return None, f"the radiograph has {item.size} pixels (width, height), its mask {size}"
    if len(masks) == 1:
        return masks[0], ""
    name = made_name(item.name, masks, settings=[RIGHT, LEFT, 1], suffix=".png")
    target = (source.files_dir / "masks" / name).absolute()
    jobs[target] = FileJob(target=target, function=join_lungs, arguments=halves)
    return target, ""


def join_lungs(partial: Path, *, left: Path, right: Path) -> None:
    """Write one mask of both lungs: :data:`RIGHT` and :data:`LEFT`; where they overlap, the left one.

    Raises:
        InputError: a mask that cannot be read, or two of different sizes.
    """
    sides = {RIGHT: read_mask(right, 2), LEFT: read_mask(left, 2)}
    joined = np.zeros_like(sides[LEFT])
    if sides[RIGHT].shape != joined.shape:
        raise InputError(f"{right}: has the shape {sides[RIGHT].shape}, the mask of the left lung {joined.shape}.")
    for value, mask in sides.items():
        joined[mask > 0] = value
    write_picture(partial, joined)


def _told(why: str, job: FileJob) -> str:
    """Why a mask was not made, without the folders that its files lie in."""
    for path in job.arguments.values():
        why = why.replace(str(path), path.name)
    return why


def _without_image(files: _Files, images: Mapping[str, Path], root: Path) -> list[LeftOut]:
    """Masks of radiographs that are not there."""
    return [
        LeftOut(path.relative_to(root).as_posix(), "a mask without radiograph")
        for paths in (files.whole, *files.halves.values())
        for stem, path in paths.items()
        if stem not in images
    ]
