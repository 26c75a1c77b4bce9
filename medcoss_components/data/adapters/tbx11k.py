"""TBX11K: chest radiographs ``imgs/{health,sick,tb}`` with boxes of tuberculosis in COCO files ``annotations/json``.

The boxes of these files count in pixels of the published pictures (512 x 512); those of ``annotations/xml`` count in
pixels of the originals, which are not published, and are not read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medcoss_components.data.adapters.beside import odd_files
from medcoss_components.data.adapters.findings import DatasetSource, Findings, Found, LeftOut, bare_name
from medcoss_components.data.adapters.picture_headers import with_sizes
from medcoss_components.data.adapters.picture_lists import chosen, missing_files, only_chosen
from medcoss_components.data.boxes import label_problem
from medcoss_components.data.readers_common import naming_file
from medcoss_components.data.readers_image import IMAGE_SUFFIXES
from medcoss_components.errors import InputError
from medcoss_components.files import read_json

IMAGES, ANNOTATIONS, LISTS = "imgs", "annotations/json", "lists"
FOLDERS = ("health", "sick", "tb")
WITH_BOXES = "tb"
TOGETHER = "tuberculosis"
CATEGORIES = {
    "ActiveTuberculosis": "active_tuberculosis",
    "ObsoletePulmonaryTuberculosis": "latent_tuberculosis",
    "PulmonaryTuberculosis": "uncertain_tuberculosis",
}
"""Category of the publisher -> name where kinds are kept apart. The third one has no box in the published files."""
KINDS = ("together", "apart")
ROLES = ("testing", "validation")
"""What the list ``val`` can be in the publisher's split; the boxes of its test images are not public."""
BODY_PART = "chest"


@dataclass(frozen=True)
class _Annotated:
    """What the annotation files say of a picture: (width, height) or () where they do not tell, and boxes."""

    size: tuple[int, ...]
    boxes: tuple[tuple[str, tuple[float, ...]], ...]


def find(source: DatasetSource) -> Findings:
    """Pictures of the folders in the settings with their boxes; those of ``health`` and ``sick`` have none.

    Raises:
        InputError: another layout, a setting that breaks a rule, or an annotation file that cannot be read.
    """
    kinds, role = _one_of(source.settings, "kinds", KINDS), _one_of(source.settings, "validation_as", ROLES)
    folders = chosen(source.settings, "folders", FOLDERS)
    root = source.locate(IMAGES, ANNOTATIONS.partition("/")[0])
    annotated, contradicted = _annotations(root)
    splits = _splits(root, role)
    pictures, left = _pictures(source, root)
    pictures, more = only_chosen(pictures, lambda path: path.parent.name, folders, setting="folders")
    left += more
    left += _missing(annotated, pictures, folders or FOLDERS)
    found, broken = with_sizes([_found(path, root, splits.get(path.name, "")) for path in pictures])
    left += broken
    kept = list[Found]()
    for item in found:
        label, why = _label(item, annotated.get(Path(str(item.path)).name), kinds, contradicted)
        if why:
            left.append(LeftOut(item.name, why))
        else:
            kept.append(replace(item, label=label))
    return kept, left


def _one_of(settings: Mapping[str, Any], name: str, choices: Sequence[str]) -> str:
    if (value := settings[name]) not in choices:
        raise InputError(f"settings: {name} must be one of {', '.join(choices)}, got {value!r}.")
    return value


def _pictures(source: DatasetSource, root: Path) -> tuple[list[Path], list[LeftOut]]:
    """Pictures of the three folders, and what else lies below ``imgs``."""
    pictures, others = list[Path](), list[Path]()
    for path in source.files(root / IMAGES):
        parts = path.relative_to(root / IMAGES).parts
        is_picture = len(parts) == 2 and parts[0] in FOLDERS and path.name.lower().endswith(IMAGE_SUFFIXES)
        (pictures if is_picture else others).append(path)
    return pictures, odd_files(others, root, f"no picture in {', '.join(FOLDERS)}: its boxes are not published")


def _annotations(root: Path) -> tuple[dict[str, _Annotated], set[str]]:
    """What all annotation files say by the name of the picture, and the pictures that they contradict each other on.

    Raises:
        InputError: no such file, or one that is none of COCO's form.
    """
    paths = sorted((root / ANNOTATIONS).glob("*.json"))
    if not paths:
        raise InputError(f"{root / ANNOTATIONS}: holds no annotation file (*.json). Unpack the whole data set.")
    told, contradicted = dict[str, _Annotated](), set[str]()
    for path in paths:
        for name, entry in _read(path):
            if told.setdefault(name, entry) != entry:
                contradicted.add(name)
    return told, contradicted


def _read(path: Path) -> Iterator[tuple[str, _Annotated]]:
    """Name of every picture of a COCO file, and what it says of it.

    Raises:
        InputError: a file of another form, or an unknown category.
    """
    content = read_json(path)
    try:
        names = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
        boxes: dict[Any, list[tuple[str, tuple[float, ...]]]] = {entry["id"]: [] for entry in content["images"]}
        for entry in content["annotations"]:
            left, top, width, height = map(float, entry["bbox"])
            boxes[entry["image_id"]].append((names[entry["category_id"]], (left, top, left + width, top + height)))
        pictures = [(Path(entry["file_name"]).name, _size(entry), entry["id"]) for entry in content["images"]]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: is no annotation file of COCO's form ({type(error).__name__}: {error}). Restore the file."
        ) from error
    if unknown := sorted({kind for entries in boxes.values() for kind, _ in entries} - set(CATEGORIES)):
        raise InputError(f"{path}: category must be one of {', '.join(CATEGORIES)}, got {unknown[0]!r}.")
    for name, size, identifier in pictures:
        yield name, _Annotated(size, tuple(sorted(boxes[identifier])))


def _size(entry: Mapping[str, Any]) -> tuple[int, ...]:
    return (int(entry["width"]), int(entry["height"])) if "width" in entry and "height" in entry else ()


def _splits(root: Path, role: str) -> dict[str, str]:
    """Name of a picture -> split of the publisher; empty where the lists are not there."""
    splits = dict[str, str]()
    for name, split in (("train", "training"), ("val", role)):
        path = root / LISTS / f"TBX11K_{name}.txt"
        if path.is_file():
            with naming_file(path, show_detail=False):
                lines = path.read_text(encoding="utf-8-sig").splitlines()
            splits |= {Path(line.strip()).name: split for line in lines if line.strip()}
    return splits


def _missing(annotated: Mapping[str, _Annotated], pictures: Sequence[Path], folders: Sequence[str]) -> list[LeftOut]:
    """Pictures with boxes that are not there."""
    if WITH_BOXES not in folders:
        return []
    absent = {name for name, entry in annotated.items() if entry.boxes} - {path.name for path in pictures}
    places = [f"{IMAGES}/{WITH_BOXES}/{name}" for name in sorted(absent)]
    return missing_files(places, ANNOTATIONS, "has boxes, but is not there")


def _found(path: Path, root: Path, split: str) -> Found:
    place = path.relative_to(root).as_posix()
    return Found(
        name=bare_name(place), keys={"file": place}, path=path, split=split, files=(path,), body_part=BODY_PART
    )


def _label(
    item: Found, entry: _Annotated | None, kinds: str, contradicted: set[str]
) -> tuple[list[dict[str, Any]], str]:
    """The boxes of a picture, and why it cannot be used, or ""."""
    path = Path(str(item.path))
    boxes = entry.boxes if entry is not None else ()
    if path.name in contradicted:
        return [], "the annotation files contradict each other on it"
    if bool(boxes) != (path.parent.name == WITH_BOXES):
        return (
            [],
            "no box, though it shows tuberculosis" if not boxes else f"boxes, though it lies in {path.parent.name}",
        )
    if entry is not None and entry.size and entry.size != item.size:
        return [], f"the file has {item.size} pixels (width, height), its annotation is for {entry.size}"
    names = dict.fromkeys(CATEGORIES, TOGETHER) if kinds == "together" else CATEGORIES
    label = [{"box": list(box), "category": names[kind]} for kind, box in boxes]
    return label, label_problem(label, size=item.size[::-1])
