"""MURA v1.1: radiographs of the arm, ``<set>/XR_<part>/<patient>/study<n>_<positive or negative>/image<n>.png``.

Folders say body part, patient and class (of the whole study); the publisher's tables say which files belong to it.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medcoss_components.data.adapters.beside import odd_files
from medcoss_components.data.adapters.findings import DatasetSource, Findings, Found, LeftOut, bare_name
from medcoss_components.data.adapters.picture_headers import with_sizes
from medcoss_components.data.adapters.picture_lists import chosen, missing_files, only_chosen
from medcoss_components.data.readers_common import naming_file
from medcoss_components.errors import InputError

SETS = ("train", "valid")
ROLES = ("testing", "validation")
"""What the folder ``valid`` can be in the publisher's split; the publisher's own test images are not public."""
CLASSES = {"negative": "normal", "positive": "abnormal"}
BODY_PARTS = ("elbow", "finger", "forearm", "hand", "humerus", "shoulder", "wrist")
_IMAGE = re.compile(
    rf"({'|'.join(SETS)})/XR_({'|'.join(BODY_PARTS).upper()})/(patient\d+)/(study\d+)_({'|'.join(CLASSES)})/image\d+\.png"
)
_LISTS, _STUDIES = "{}_image_paths.csv", "{}_labeled_studies.csv"
_TABLES = {name.format(folder) for folder in SETS for name in (_LISTS, _STUDIES)}
_NUMBERS = {"0": "negative", "1": "positive"}


@dataclass(frozen=True)
class _Image:
    """An image by its place below the root; ``study`` is the place of its study without the class."""

    place: str = field(repr=False)
    folder: str
    part: str
    patient: str = field(repr=False)
    study: str = field(repr=False)
    label: str


def find(source: DatasetSource) -> Findings:
    """Images with the class of their study, their patient and their body part.

    Raises:
        InputError: another layout, a setting that breaks a rule, or a table that cannot be read.
    """
    role = source.settings.get("validation_as", ROLES[0])
    if role not in ROLES:
        raise InputError(f"settings: validation_as must be one of {', '.join(ROLES)}, got {role!r}.")
    parts = chosen(source.settings, "body_parts", BODY_PARTS)
    root = source.locate(*SETS)
    files = source.files(root)
    images, odd = _images(files, root)
    left = odd_files(odd, root, "not in a folder of a study, or not called image<n>.png")
    images, more = only_chosen(images, lambda image: image.part, parts, setting="body_parts")
    left += more
    defects = dict(_contradicted(root, images))
    for folder in SETS:
        unlisted, missing = _compared(root / _LISTS.format(folder), [i for i in images if i.folder == folder], parts)
        defects = unlisted | defects
        left += missing
    left += [LeftOut(place, why) for place, why in defects.items()]
    splits = {"train": "training", "valid": role}
    found, broken = with_sizes(
        [_found(image, root, splits[image.folder]) for image in images if image.place not in defects]
    )
    return found, left + broken


def _images(files: Sequence[Path], root: Path) -> tuple[list[_Image], list[Path]]:
    """Images of the publisher's layout, and other files."""
    images, odd = list[_Image](), list[Path]()
    for path in files:
        image = _image(path.relative_to(root).as_posix())
        if image is not None:
            images.append(image)
        elif path.name not in _TABLES or path.parent != root:
            odd.append(path)
    return images, odd


def _image(place: str) -> _Image | None:
    match = _IMAGE.fullmatch(place)
    if match is None:
        return None
    folder, part, patient, study, label = match.groups()
    return _Image(place, folder, part.lower(), patient, f"{folder}/XR_{part}/{patient}/{study}", label)


def _compared(
    path: Path, images: Sequence[_Image], parts: Sequence[str] | None
) -> tuple[dict[str, str], list[LeftOut]]:
    """Images that the list of a set does not name, with the reason, and what it names that is not there."""
    if not path.is_file():
        return {}, []
    listed = {place for place, *_ in _rows(path)}
    unlisted = {image.place: f"not named in {path.name}" for image in images if image.place not in listed}
    named = map(_image, sorted(listed - {image.place for image in images}))
    missing = [image.place for image in named if image is not None and (parts is None or image.part in parts)]
    return unlisted, missing_files(missing, path.name, f"named in {path.name}, but not there")


def _contradicted(root: Path, images: Sequence[_Image]) -> Iterator[tuple[str, str]]:
    """Images of studies that have two classes: two folders, or another one in the table of studies."""
    told = _studies(root)
    labels: dict[str, set[str]] = {}
    for image in images:
        labels.setdefault(image.study, set()).add(image.label)
    for image in images:
        if len(labels[image.study]) > 1:
            yield image.place, "its study has a folder of each class"
        elif told.get(image.study, image.label) != image.label:
            yield image.place, f"{_STUDIES.format(image.folder)} says the other class"


def _studies(root: Path) -> Mapping[str, str]:
    """Study -> "negative" or "positive" as the tables number it; studies that no table names are missing."""
    studies = dict[str, str]()
    for folder in SETS:
        path = root / _STUDIES.format(folder)
        for number, (place, *rest) in enumerate(_rows(path) if path.is_file() else (), start=1):
            if len(rest) != 1 or rest[0] not in _NUMBERS:
                raise InputError(f"{path}: row {number} has no class 0 or 1 in its second column. Restore the table.")
            studies[place.rstrip("/").rpartition("_")[0]] = _NUMBERS[rest[0]]
    return studies


def _rows(path: Path) -> Iterator[list[str]]:
    """Rows of a table without header; places as they are below the root: the tables begin with ``MURA-v1.1/``."""
    with naming_file(path, show_detail=False), open(path, newline="", encoding="utf-8-sig") as stream:
        for row in csv.reader(stream):
            if row and row[0].strip():
                place, *rest = (cell.strip() for cell in row)
                yield [
                    place if place.startswith(tuple(f"{name}/" for name in SETS)) else place.partition("/")[2],
                    *rest,
                ]


def _found(image: _Image, root: Path, split: str) -> Found:
    path = root / image.place
    return Found(
        name=bare_name(image.place),
        keys={"file": image.place},
        path=path,
        patient=image.patient,
        label=CLASSES[image.label],
        split=split,
        files=(path,),
        body_part=image.part,
    )
