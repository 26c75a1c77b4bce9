"""Checks of a manifest and of the files that it lists. Nothing is changed; findings come back as a list."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from medcoss_components.data.adapters.findings import Found
from medcoss_components.data.boxes import is_box_label, label_problem
from medcoss_components.data.copies import equal_contents
from medcoss_components.data.detached import voxel_files
from medcoss_components.data.manifest import SPLITS, Item, Manifest
from medcoss_components.data.masks import names_mask, read_mask_of
from medcoss_components.data.modalities import Modality
from medcoss_components.data.readers import read_image, read_volume
from medcoss_components.data.readers_slices import content_files, is_slice_stack
from medcoss_components.errors import InputError
from medcoss_components.files import sha256_json
from medcoss_components.progress import progress

SEVERITIES = ("error", "warning", "info")
MINIMUM_SIZE = 16
"""Smallest plausible side of an image, and of a volume in at least two directions."""
_SHOWN = 3


@dataclass(frozen=True)
class Problem:
    """One finding.

    Args:
        severity: "error" (training on it would be wrong or fail), "warning" or "info".
        rule: short name of the rule, for example "group-across-splits".
        where: split and item, group or file.
        message: what is wrong and what to do.
    """

    severity: str
    rule: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.rule}: {self.where}: {self.message}"


Place = tuple[str, Item]


def find_problems(manifest: Manifest, *, open_files: bool = True, workers: int | None = None) -> list[Problem]:
    """Apply every rule to a manifest.

    Rules: items present, ids unique, no group in two splits, no empty text, files exist, paths inside the data set's
    folder, files open with the right dimension, DICOM modality, channels and a plausible size and content, no content
    twice, masks exist, open and lie on their image's grid, boxes are four numbers in order within their picture,
    validation labels known from training; and the label counts (for masks: in how many items each value occurs; for
    boxes: of each category), and those of body parts, of each split as information.

    Args:
        manifest: what to check.
        open_files: read every file (slow for large sets); without it files only have to exist.
        workers: threads that read; default: number of processors, at most 8.

    Returns:
        Problems, errors first, otherwise in the order of the rules and of the items.
    """
    places = [(split, item) for split in SPLITS for item in manifest.items(split)]
    problems = [*_check_lists(places), *_check_groups(places), *_check_texts(places)]
    problems += [*_check_labels(places, manifest.modality.dimension), *_check_body_parts(places)]
    problems += _check_boxes(places)
    with_files = [place for place in places if place[1].image is not None]
    problems += _check_paths(with_files, manifest.root)
    present = [place for place in with_files if place[1].image is not None and place[1].image.exists()]
    problems += _check_duplicate_files(present)
    if open_files:
        problems += _open_all(present, manifest, workers)
    else:
        problems += _check_slices(present)
    return sorted(problems, key=lambda problem: SEVERITIES.index(problem.severity))


def _where(place: Place) -> str:
    return f"{place[0]} item {place[1].id}"


def _list(values: Iterable[Any]) -> str:
    shown = [str(value) for value in values]
    return ", ".join(shown[:_SHOWN]) + (f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else "")


def _check_lists(places: list[Place]) -> Iterator[Problem]:
    if not any(split == "training" for split, _ in places):
        yield Problem("error", "no-items", "training", "the split is empty. List at least one item.")
    for identifier, count in Counter(item.id for _, item in places).items():
        if count > 1:
            message = f"the id stands {count} times; ids are unique over all splits."
            yield Problem("error", "duplicate-id", f"item {identifier}", message)


def _check_groups(places: list[Place]) -> Iterator[Problem]:
    splits: dict[str, set[str]] = defaultdict(set)
    for split, item in places:
        splits[item.group].add(split)
    for group, found in splits.items():
        if len(found) > 1:
            names = ", ".join(split for split in SPLITS if split in found)
            message = f"the group has items in {names}; a patient belongs to one split. Move the items together."
            yield Problem("error", "group-across-splits", f"group {group}", message)


def _check_texts(places: list[Place]) -> Iterator[Problem]:
    seen: dict[str, list[Place]] = defaultdict(list)
    for place in places:
        if (text := place[1].text) is None:
            continue
        if not text.strip():
            yield Problem("error", "empty-text", _where(place), "the text is empty. Leave the item out.")
        else:
            seen[sha256_json(" ".join(text.split()))].append(place)
    repeated = [found for found in seen.values() if len(found) > 1]
    if repeated:
        message = f"{len(repeated)} texts stand more than once ({sum(map(len, repeated))} items). Keep one of each."
        yield Problem("warning", "duplicate-content", f"items {_list(found[0][1].id for found in repeated)}", message)


def _check_labels(places: list[Place], dimension: int) -> Iterator[Problem]:
    counts: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    for split, item in places:
        if isinstance(item.label, list):
            counts[split].update(_listed(item.label))
        elif not names_mask(item.label, dimension) and isinstance(item.label, (str, int, float, bool)):
            counts[split][str(item.label)] += 1
    for split in SPLITS:
        unknown = sorted(set(counts[split]) - set(counts["training"]))
        if unknown and counts["training"]:
            message = f"labels that no training item has: {_list(unknown)}. Check the split."
            yield Problem("warning", "label-unknown", split, message)
        if counts[split]:
            ranking = ", ".join(f"{label}: {count}" for label, count in counts[split].most_common(20))
            yield Problem("info", "label-counts", split, ranking)


def _listed(label: list[Any]) -> list[str]:
    """Category of each box of a list, or each class of it."""
    return [str(entry["category"] if isinstance(entry, dict) and "category" in entry else entry) for entry in label]


def _check_body_parts(places: list[Place]) -> Iterator[Problem]:
    for split in SPLITS:
        counts = Counter(item.body_part for place, item in places if place == split and item.body_part)
        if counts:
            ranking = ", ".join(f"{part}: {count}" for part, count in counts.most_common(20))
            yield Problem("info", "body-part-counts", split, ranking)


def _check_boxes(places: list[Place]) -> Iterator[Problem]:
    """Boxes that are no boxes; whether they lie in their pictures is told when those are opened."""
    for place in places:
        label = place[1].label
        has_boxes = isinstance(label, list) and any(isinstance(entry, dict) for entry in label)
        if has_boxes and (problem := label_problem(label)):
            yield Problem("error", "bad-box", _where(place), f"{problem}. Correct it or leave the item out.")


def _check_paths(places: list[Place], root: Path) -> Iterator[Problem]:
    for place in places:
        path = place[1].image
        if path is not None and not path.exists():
            message = f"{path} does not exist. Restore it, leave the item out, or give the right dataset_dir."
            yield Problem("error", "missing-file", _where(place), message)
        if (mask := mask_path(place[1], root)) is not None and not mask.is_file():
            message = f"the mask {mask} does not exist. Restore it, or leave the item out."
            yield Problem("error", "missing-mask", _where(place), message)
    outside = [item.id for _, item in places if any(_is_outside(path, root) for path in _named(item, root))]
    if outside:
        message = f"{len(outside)} files lie outside {root}; the data set cannot move as a whole."
        yield Problem("warning", "path-outside", f"items {_list(outside)}", message)


def _named(item: Item, root: Path) -> list[Path | None]:
    """Image, mask, and of a volume made of slices the first one."""
    named = [item.image, mask_path(item, root)]
    if item.image is not None and is_slice_stack(item.image):
        with suppress(InputError):  # a broken descriptor is told elsewhere
            named.append(content_files(item.image)[0])
    return named


def _check_slices(places: list[Place]) -> Iterator[Problem]:
    """Volumes made of slices whose descriptor is broken, or names files that are not there."""
    for place in places:
        path = Path(str(place[1].image))
        if not is_slice_stack(path):
            continue
        try:
            missing = [file for file in content_files(path) if not file.is_file()]
        except InputError as error:
            yield Problem("error", "unreadable-file", _where(place), str(error))
            continue
        if missing:
            message = f"slices that {path} names do not exist: {_list(missing)}. Restore them or leave the item out."
            yield Problem("error", "missing-file", _where(place), message)


def mask_path(item: Item, root: Path) -> Path | None:
    """The mask that an item's label names, None when the label is something else."""
    named = names_mask(item.label, 2) or names_mask(item.label, 3)
    return root / item.label if item.image is not None and named else None


def _is_outside(path: Path | None, root: Path) -> bool:
    return path is not None and root not in Path(os.path.normpath(str(path))).parents


def _check_duplicate_files(places: list[Place]) -> Iterator[Problem]:
    """Items of equal files: an error across splits, a warning within one. Unreadable files are told elsewhere."""
    items = [Found(name=str(number), files=tuple(_files(place))) for number, place in enumerate(places)]
    groups, _ = equal_contents(items)
    for group in groups:
        found = [places[int(item.name)] for item in group]
        across = len({split for split, _ in found}) > 1
        message = f"{len(found)} items have the same content{' in several splits' if across else ''}. Keep one of them."
        where = f"items {_list(item.id for _, item in found)}"
        yield Problem("error" if across else "warning", "duplicate-content", where, message)


def _files(place: Place) -> list[Path]:
    path = Path(str(place[1].image))
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.is_file())
    try:
        return [file for file in voxel_files(path) if file.is_file()] or [path]
    except InputError:
        return [path]  # a broken descriptor is told elsewhere


def _open_all(places: list[Place], manifest: Manifest, workers: int | None) -> list[Problem]:
    check = partial(_open_one, modality=manifest.modality, root=manifest.root)
    problems: list[Problem] = []
    values: dict[str, Counter[int]] = {split: Counter() for split in SPLITS}
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        findings = progress(pool.map(check, places), description="check files", total=len(places), unit="file")
        for place, (found, mask_values) in zip(places, findings, strict=True):
            problems += found
            values[place[0]].update(mask_values)
    return [*problems, *_mask_counts(values)]


def _open_one(place: Place, modality: Modality, root: Path) -> tuple[list[Problem], list[int]]:
    """Problems of an item's files, and the values in its mask."""
    reader: Callable[..., Any] = {2: read_image, 3: read_volume}[modality.dimension]
    try:
        source = reader(place[1].image, expected_modality=modality.dicom_modalities)
    except InputError as error:
        return [Problem("error", "unreadable-file", _where(place), str(error))], []
    found = [Problem("warning", rule, _where(place), text) for rule, text in _implausible(source.array, modality)]
    found += _boxes_outside(place, source.array.shape[:2])
    mask = mask_path(place[1], root)
    if mask is None or not mask.is_file():
        return found, []
    try:
        return found, np.unique(read_mask_of(source, mask)).tolist()
    except InputError as error:
        return [*found, Problem("error", "bad-mask", _where(place), str(error))], []


def _boxes_outside(place: Place, size: tuple[int, ...]) -> Iterator[Problem]:
    """Boxes that do not lie in their picture."""
    label = place[1].label
    if is_box_label(label) and not label_problem(label) and (problem := label_problem(label, size=size)):
        yield Problem("error", "bad-box", _where(place), f"{problem}. Correct it or leave the item out.")


def _mask_counts(values: dict[str, Counter[int]]) -> Iterator[Problem]:
    """In how many items of each split each mask value occurs; values that training has none of."""
    for split, counts in values.items():
        unknown = sorted(set(counts) - set(values["training"]))
        if unknown and values["training"]:
            advice = "Check the split, unless numbers tell objects apart."
            message = f"mask values that no training item has: {_list(unknown)}. {advice}"
            yield Problem("warning", "mask-value-unknown", split, message)
        if counts:
            listed = ", ".join(f"{value}: {counts[value]} items" for value in sorted(counts))
            yield Problem("info", "mask-values", split, listed)


def _implausible(array: np.ndarray, modality: Modality) -> Iterator[tuple[str, str]]:
    """Rule and message for each reason to doubt that ``array`` is a sample of ``modality``."""
    spatial = array.shape[:2] if modality.dimension == 2 else array.shape
    if sorted(spatial)[-2] < MINIMUM_SIZE or min(spatial[-2:]) < 2:
        yield (
            "shape",
            f"the size {spatial} is below {MINIMUM_SIZE} in two directions; is this a whole {modality.name} item?",
        )
    if array.min() == array.max():
        yield "constant", f"every value is {array.flat[0]}; the item carries no content."
    colour = array.ndim == 3 and modality.dimension == 2 and bool((array != array[..., :1]).any())
    if modality.dimension == 2 and colour != (modality.stored_channels == 3):
        yield "channels", f"the image is {'colour' if colour else 'grey'}; {modality.name} is stored otherwise."
    if modality.intensity == "hounsfield" and array.min() > -200:
        yield "intensity", f"the smallest value is {array.min()}; CT in Hounsfield units has air near -1000."
