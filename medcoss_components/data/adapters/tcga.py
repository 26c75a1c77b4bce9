"""TCGA (The Cancer Genome Atlas): folders of tiles, one per slide, or whole slides that are cut into tiles here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medcoss_components.data.adapters.beside import odd_files
from medcoss_components.data.adapters.checked_settings import text_list
from medcoss_components.data.adapters.converting import FileJob, made_name, make_files
from medcoss_components.data.adapters.findings import (
    DatasetSource,
    Findings,
    Found,
    LeftOut,
    bare_name,
    walk,
    walk_folders,
)
from medcoss_components.data.adapters.picture_headers import with_sizes
from medcoss_components.data.slides import Tiling, draw, require_openslide, write_tiles
from medcoss_components.errors import InputError

TILE_SUFFIXES = (".png", ".jpg", ".jpeg")
SLIDE_SUFFIX = ".svs"
UNKNOWN_PATIENTS = ("leave_out", "folder")
"""What becomes of slides without a barcode: left out, or a patient each."""
_PATIENT = re.compile(r"(?<![A-Z0-9])TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}(?![A-Z0-9])")
_SLIDE_TYPE = re.compile(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}-\d{2}[A-Z]-\d{2}-([A-Z]{2})")
_DOWNLOAD = re.compile(r"annotations\.txt|manifest\.txt|.*\.parcel|gdc_manifest.*\.txt", re.IGNORECASE)
"""Files of the download tool."""


def find(source: DatasetSource) -> Findings:
    """At most ``at_most`` tiles of every slide folder and of every whole slide.

    Raises:
        InputError: no such cohort, a setting outside its range, no tiles and no slides, or whole slides without
            OpenSlide.
    """
    rules = _Rules.of(source)
    tiles, slides, left = list[Found](), list[_Slide](), list[LeftOut]()
    for folder, names in _folders(source, rules):
        kept, whole, more = _look(source.root, folder, names, rules)
        tiles += kept
        slides += whole
        left += more
    if not tiles and not slides and not left:
        raise InputError(f"{source.root}: holds no folders of tiles and no {SLIDE_SUFFIX} files of TCGA.")
    tiles, more = with_sizes(tiles)
    left += more
    slides, more = _without_known(slides, tiles)
    cut, failed = _cut(source, slides, rules.tiling)
    return tiles + cut, left + more + failed


@dataclass(frozen=True)
class _Rules:
    """The settings, checked."""

    tiling: Tiling
    cohorts: tuple[str, ...]
    slide_types: tuple[str, ...]
    unknown_patients: str
    slides: bool

    @classmethod
    def of(cls, source: DatasetSource) -> _Rules:
        given: dict[str, Any] = dict(source.settings)
        own = {name: given.pop(name) for name in ("cohorts", "slide_types", "unknown_patients", "slides")}
        if own["unknown_patients"] not in UNKNOWN_PATIENTS:
            raise InputError(
                f"unknown_patients: must be one of {', '.join(UNKNOWN_PATIENTS)}, got {own['unknown_patients']!r}."
            )
        return cls(
            tiling=Tiling(**given),
            cohorts=_names("cohorts", own["cohorts"]),
            slide_types=tuple(name.upper() for name in _names("slide_types", own["slide_types"])),
            unknown_patients=own["unknown_patients"],
            slides=bool(own["slides"]),
        )


def _names(setting: str, value: Any) -> tuple[str, ...]:
    """Names of a list; a single one needs no list.

    >>> _names("cohorts", "TCGA-OV"), _names("cohorts", ["a", "b"]), _names("cohorts", None)
    (('TCGA-OV',), ('a', 'b'), ())
    """
    return () if value is None else tuple(text_list({setting: value}, setting))


@dataclass(frozen=True)
class _Slide:
    """A whole slide: its relative path without suffix, file and patient."""

    name: str
    path: Path
    patient: str


def _folders(source: DatasetSource, rules: _Rules) -> Iterator[tuple[Path, list[str]]]:
    """Every folder with the names of its files, in order, one at a time: there may be millions of files.

    Raises:
        InputError: no such folder or cohort.
    """
    if not source.root.is_dir():
        raise InputError(f"{source.root}: no such folder. Give the folder that holds the cohorts.")
    missing = [name for name in rules.cohorts if not (source.root / name).is_dir()]
    if missing:
        raise InputError(f"cohorts: {source.root} holds no folder {', '.join(missing)}.")
    for top in [source.root / name for name in rules.cohorts] or [source.root]:
        for folder, _, files in walk_folders(top, (source.files_dir,)):
            yield folder, [name for name in files if not source.is_output(folder / name)]


def _look(
    root: Path, folder: Path, names: Sequence[str], rules: _Rules
) -> tuple[list[Found], list[_Slide], list[LeftOut]]:
    """Tiles drawn from a folder, whole slides in it, and what is neither."""
    place = folder.relative_to(root).as_posix()
    tiles = [name for name in names if name.lower().endswith(TILE_SUFFIXES)]
    whole = [name for name in names if name.lower().endswith(SLIDE_SUFFIX)]
    others = {*names} - {*tiles} - {*whole}
    odd = [folder / name for name in others if not _DOWNLOAD.fullmatch(name)]
    left = odd_files(odd, root, f"neither a tile ({', '.join(TILE_SUFFIXES)}) nor a slide ({SLIDE_SUFFIX})")
    found, more = _tiles(folder, place, tiles, rules)
    slides, rest = _slides(folder, place, whole, rules)
    return found, slides, left + more + rest


def _join(place: str, name: str) -> str:
    return name if place == "." else f"{place}/{name}"


def _tiles(folder: Path, place: str, names: Sequence[str], rules: _Rules) -> Findings:
    if not names:
        return [], []
    where = f"{place} ({len(names)} tiles)"
    patient, problem = _patient(place, rules)
    if problem:
        return [], [LeftOut(where, problem)]
    at_most = rules.tiling.at_most
    kept = draw(names, at_most, seed=rules.tiling.seed)
    over = len(names) - len(kept)
    left = [LeftOut(where, f"{over} tiles above the {at_most} of a slide (at_most)")] if over else []
    return [
        Found(
            name=bare_name(_join(place, name)),
            keys={"file": _join(place, name)},
            path=folder / name,
            patient=patient,
            files=(folder / name,),
        )
        for name in kept
    ], left


def _slides(folder: Path, place: str, names: Sequence[str], rules: _Rules) -> tuple[list[_Slide], list[LeftOut]]:
    kept, left = list[_Slide](), list[LeftOut]()
    for name in names:
        where = _join(place, name)
        patient, problem = _patient(where, rules)
        if not rules.slides:
            problem = "a whole slide (--set slides=true cuts it)"
        if problem:
            left.append(LeftOut(where, problem))
        else:
            kept.append(_Slide(where[: -len(SLIDE_SUFFIX)], folder / name, patient))
    return kept, left


def _patient(where: str, rules: _Rules) -> tuple[str, str]:
    """Patient of a path and "", or "" and why it cannot be used."""
    upper = where.upper()
    types = set(_SLIDE_TYPE.findall(upper))
    if rules.slide_types and not types & set(rules.slide_types):
        return "", f"a slide of a type that was not asked for ({', '.join(rules.slide_types)})"
    patients = sorted(set(_PATIENT.findall(upper)))
    if len(patients) > 1:
        return "", "its path has the barcodes of several patients"
    if patients:
        return patients[0], ""
    if rules.unknown_patients == "folder":
        return f"folder {where}", ""
    return "", "no barcode of a patient in its path (--set unknown_patients=folder counts it as a patient)"


def _without_known(slides: Sequence[_Slide], tiles: Sequence[Found]) -> tuple[list[_Slide], list[LeftOut]]:
    """Slides without those whose tiles are there already, in a folder of the slide's name."""
    known = {item.name.rsplit("/", 2)[-2] for item in tiles if "/" in item.name}
    left = [
        LeftOut(f"{slide.name}{SLIDE_SUFFIX}", "a folder holds its tiles")
        for slide in slides
        if slide.path.stem in known
    ]
    return [slide for slide in slides if slide.path.stem not in known], left


def _cut(source: DatasetSource, slides: Sequence[_Slide], tiling: Tiling) -> Findings:
    """Tiles of whole slides, in a folder per slide that is made once."""
    if not slides:
        return [], []
    require_openslide()
    folders = {slide: source.files_dir / made_name(slide.name, [slide.path], settings=tiling.key) for slide in slides}
    jobs = [
        FileJob(target=target, function=write_tiles, arguments={"slide": slide.path, "tiling": tiling}, folder=True)
        for slide, target in folders.items()
    ]
    failed = make_files(jobs, workers=source.workers, description="cut slides")
    found, left = list[Found](), list[LeftOut]()
    for slide, folder in folders.items():
        if folder in failed:
            left.append(LeftOut(f"{slide.name}{SLIDE_SUFFIX}", failed[folder].removeprefix(f"{slide.path}: ")))
            continue
        size = (tiling.size, tiling.size)
        found += [
            Found(name=f"{slide.name}/{path.stem}", path=path, patient=slide.patient, size=size, files=(path,))
            for path in walk(folder)
        ]
    return found, left
