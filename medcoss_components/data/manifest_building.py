"""A manifest of one's own files: find, label, group, look for copies, split by patient, write, list what was left out.

files + labels.csv or masks --(medcoss manifest build)--> manifest.json, manifest.build.json --(manifest check)-->
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from glob import escape
from pathlib import Path
from typing import Any

from medcoss_components.data.adapters.findings import Findings, Found, LeftOut
from medcoss_components.data.adapters.own_data import find_images, find_texts, find_volumes, left_item
from medcoss_components.data.adapters.own_dicom import MINIMUM_SLICES, RULES, index_dicom, series_note
from medcoss_components.data.box_labels import UNITS as BOX_UNITS
from medcoss_components.data.box_labels import box_form
from medcoss_components.data.copies import DUPLICATES, without_copies
from medcoss_components.data.identifiers import identifier_salt
from medcoss_components.data.linking import files_folder, remove_other_links
from medcoss_components.data.manifest import SPLITS
from medcoss_components.data.manifest_assembly import (
    Built,
    groups_in_several,
    hashed_groups,
    record_path,
    require_items,
    splits_by_shares,
    write_built,
)
from medcoss_components.data.modalities import Modality, get_modality
from medcoss_components.data.own_labels import find_masks, with_boxes, with_labels, with_masks
from medcoss_components.data.own_names import masked_entries, masked_errors, told_identifiers, with_hashed_names
from medcoss_components.data.private_names import KnownIdentifiers
from medcoss_components.errors import InputError

DIMENSIONS = {"images": (2,), "volumes": (3,), "dicom": (2, 3), "texts": (1,)}
"""Kind of source -> dimensions of the modalities that it can serve."""
ALIASES = {"nifti": "volumes", "csv": "texts"}
UNITS = {"hounsfield": "HU", "tokens": "text"}
_NAME = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, kw_only=True)
class OwnData:
    """What to make a manifest of, and how.

    Args:
        root: folder of the files; of texts also a single file.
        kind: "images" (PNG, JPEG, BMP, TIFF), "volumes" (NIfTI, NRRD, MetaImage), "dicom" or "texts" (CSV, TSV, JSON
            lines, PubMed XML).
        modality: registered name or entry.
        labels: table of labels, see :func:`~medcoss_components.data.label_table.read_label_table`; or boxes of
            pictures, see :func:`~medcoss_components.data.box_labels.read_boxes`.
        masks: folder of mask files named like the images.
        mask_suffix: what the masks' names have behind the image's, such as ``_mask``.
        key_column, label_column, group_column, split_column: columns of the table; of texts, of the file itself.
        text_column, id_column: of texts.
        group_pattern: regular expression whose first group, searched in the relative path, is the patient.
        split: shares of training, validation and testing.
        seed: of the split.
        duplicates: what happens to items of equal content: "refuse", "drop" (the first stays) or "keep"; None refuses
            files and keeps texts.
        unlabelled: keep what has no label, for pre-training.
        series, minimum_slices: of DICOM volumes, see
            :func:`~medcoss_components.data.adapters.own_dicom.index_dicom`.
        sort_into: folder for links to the series that lie among other DICOM files; None: ``<manifest>.files``.
        keep_names: name files as they are though identifiers of patients stand in their names: these are pseudonyms.
        exclude: files and folders below ``root`` that are none of it.
        name, version, licence, source: header of the manifest.

    Raises:
        InputError: a kind that does not fit the modality, labels and masks at once, or a setting outside its range.
    """

    root: Path
    kind: str
    modality: str | Mapping[str, Any] | Modality
    labels: Path | None = None
    masks: Path | None = None
    mask_suffix: str = ""
    key_column: str | None = None
    label_column: str = "label"
    group_column: str | None = None
    split_column: str | None = None
    text_column: str = "text"
    id_column: str = "id"
    group_pattern: str | None = None
    split: tuple[float, float, float] = (70, 10, 20)
    seed: int = 0
    duplicates: str | None = None
    unlabelled: bool = False
    series: str = RULES[0]
    minimum_slices: int = MINIMUM_SLICES
    sort_into: Path | None = None
    keep_names: bool = False
    exclude: tuple[Path, ...] = ()
    name: str = ""
    version: str = "1"
    licence: str = "not stated"
    source: str = "own data"

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", ALIASES.get(self.kind, self.kind))
        object.__setattr__(self, "modality", get_modality(self.modality))
        if self.kind not in DIMENSIONS:
            raise InputError(f"from: must be one of {', '.join((*DIMENSIONS, *ALIASES))}, got {self.kind!r}.")
        if self.entry.dimension not in DIMENSIONS[self.kind]:
            fitting = ", ".join(kind for kind, sizes in DIMENSIONS.items() if self.entry.dimension in sizes)
            raise InputError(
                f"from: {self.kind!r} does not fit the {self.entry.dimension}D {self.entry.name}; use {fitting}."
            )
        if self.labels is not None and self.masks is not None:
            raise InputError("labels, masks: give one of both; a task is a classification or a segmentation.")
        if self.masks is not None and self.kind == "texts":
            raise InputError("masks: texts have none. Give labels.")
        if self.masks is not None and not self.mask_suffix and self.masks.absolute() == self.root.absolute():
            raise InputError(f"masks: {self.masks} is the folder of the images; tell them apart with --mask-suffix.")
        self._check_numbers()

    def _check_numbers(self) -> None:
        if len(self.split) != len(SPLITS) or min(self.split) < 0 or self.split[0] <= 0:
            raise InputError(
                f"split: must be shares of training, validation and testing such as 70/10/20, got {self.split}."
            )
        if self.duplicates not in (None, *DUPLICATES):
            raise InputError(f"duplicates: must be one of {', '.join(DUPLICATES)}, got {self.duplicates!r}.")
        if self.group_pattern is not None and _pattern(self.group_pattern).groups < 1:
            raise InputError(f"group_pattern: must have a group in brackets, got {self.group_pattern!r}.")

    @property
    def entry(self) -> Modality:
        """The modality's entry."""
        return get_modality(self.modality)


@dataclass(frozen=True)
class _Sighted:
    """What was seen in the source: items, what was left out, and what is told of it."""

    found: list[Found]
    left: list[LeftOut]
    notes: list[str] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)
    identifiers: Mapping[str, Iterable[str]] = field(default_factory=dict, repr=False)


def build_manifest(data: OwnData, path: str | Path) -> Built:
    """Write a manifest of one's own files, and ``<name>.build.json`` beside it: counts and what was left out.

    Where names of files would tell who a patient is, the manifest names links in ``<name>.files/`` beside it.

    Args:
        data: what to read.
        path: the JSON file; paths in it count from its folder.

    Raises:
        InputError: nothing to put into the manifest, a patient in two splits of the table, equal contents (unless they
            are dropped or kept), or fewer patients than splits.
    """
    path, salt = Path(path), identifier_salt()
    folder = files_folder(path.absolute())
    written = (path, record_path(path), folder, *path.parent.glob(f"{escape(path.stem)}.items-*.parquet"))
    data = replace(data, exclude=(*data.exclude, *written), sort_into=data.sort_into or folder)
    seen = _labelled(data)
    known = KnownIdentifiers(salt)
    if not data.keep_names:
        known = told_identifiers(seen.found, seen.left, seen.identifiers, salt)
    with masked_errors(known):
        found, left, notes = _kept(data, seen)
        found, more, named = with_hashed_names(found, known, path.absolute(), salt)
        require_items(found, [*left, *more], data.root)
        groups = hashed_groups(found)
        splits = _splits(data, found, groups)
    built = write_built(
        path,
        header=_header(data, known.masked(_default_name(path.absolute()))),
        found=found,
        groups=groups,
        splits=splits,
        left_out=masked_entries([*left, *more], seen.found, known),
        notes=[*notes, *named, *_group_notes(found)],
        record={"kind": data.kind, "split": list(data.split), "seed": data.seed, **seen.record},
    )
    remove_other_links(folder, [file for item in found for file in (item.path, item.label) if isinstance(file, Path)])
    return built


def _kept(data: OwnData, seen: _Sighted) -> tuple[list[Found], list[LeftOut], list[str]]:
    """Items that go into the manifest, everything that was left out, notes."""
    rule = data.duplicates or ("keep" if data.kind == "texts" else "refuse")
    found, copies, notes = without_copies(seen.found, rule=rule, by_label=data.masks is None)
    return found, [*seen.left, *copies], [*seen.notes, *notes]


def _sight_dicom(data: OwnData) -> _Sighted:
    index = index_dicom(
        data.root,
        modality=data.entry,
        series=data.series,
        minimum_slices=data.minimum_slices,
        sort_into=data.sort_into,
        exclude=_beside(data),
    )
    notes = [series_note(index)] if index.studies else []
    if index.sorted_out and data.sort_into:
        into = data.sort_into.name
        notes.append(f"{index.sorted_out} series lay among other DICOM files; links to each stand in {into}.")
    record = {"series": [study.record() for study in index.studies]} if index.studies else {}
    return _Sighted(index.found, index.left, notes, record, index.identifiers)


def _sight_texts(data: OwnData) -> _Sighted:
    columns = {"id": data.id_column, "text": data.text_column}
    if data.labels is None:
        columns |= {"label": data.label_column} | ({"group": data.group_column} if data.group_column else {})
    return _Sighted(*find_texts(data.root, columns=columns, exclude=_beside(data)))


SIGHTS: dict[str, Callable[[OwnData], _Sighted]] = {
    "images": lambda data: _Sighted(*find_images(data.root, exclude=_beside(data))),
    "volumes": lambda data: _Sighted(*find_volumes(data.root, exclude=_beside(data))),
    "dicom": _sight_dicom,
    "texts": _sight_texts,
}


def _beside(data: OwnData) -> list[Path]:
    """What may lie below the root and is no data: the table, masks in a folder of their own, what we wrote."""
    masks = [data.masks] if data.masks and data.masks.absolute() != data.root.absolute() else []
    return [*masks, *data.exclude, *filter(None, (data.labels,))]


def _labelled(data: OwnData) -> _Sighted:
    """What is in the source, with labels or masks and with patients."""
    masks = {}
    if data.masks is not None:
        masks = find_masks(data.masks, suffix=data.mask_suffix, dimension=data.entry.dimension)
        data = replace(data, exclude=(*data.exclude, *masks.values()))
    seen = SIGHTS[data.kind](data)
    if masks:
        found, more = with_masks(seen.found, masks, suffix=data.mask_suffix, keep=data.unlabelled, left=seen.left)
    elif data.labels is not None:
        columns = {"key_column": data.key_column, "label_column": data.label_column, "group_column": data.group_column}
        form = box_form(data.labels)
        if form and data.entry.dimension != 2:
            raise InputError(f"labels: {data.labels} holds boxes, which are of pictures; {data.entry.name} has none.")
        found, more = (with_boxes if form else with_labels)(
            seen.found,
            data.labels,
            left=seen.left,
            keep=data.unlabelled,
            split_column=data.split_column,
            **columns,  # type: ignore[arg-type]
        )
        told = [f"Boxes are read as {form}: {BOX_UNITS[form]}."] if form else []
        seen = replace(seen, notes=[*seen.notes, *told])
    else:
        found, more = _own_labels(data, seen.found)
    found, without_patient = _grouped(data, found)
    return replace(seen, found=found, left=[*seen.left, *more, *without_patient])


def _own_labels(data: OwnData, found: list[Found]) -> Findings:
    """Texts without a label are left out where others have one."""
    unlabelled = [] if data.unlabelled or data.kind != "texts" else [item for item in found if item.label is None]
    if unlabelled and len(unlabelled) < len(found):
        return [item for item in found if item.label is not None], [left_item(item, "no label") for item in unlabelled]
    return found, []


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise InputError(f"group_pattern: {text!r} is no regular expression ({error}).") from error


def _grouped(data: OwnData, found: list[Found]) -> Findings:
    """Patients from the path, where a pattern says how."""
    if data.group_pattern is None:
        return found, []
    pattern, kept, left = _pattern(data.group_pattern), list[Found](), list[LeftOut]()
    for item in found:
        match = pattern.search(item.keys.get("file", item.name))
        if match and match.group(1):
            kept.append(replace(item, patient=match.group(1)))
        else:
            left.append(left_item(item, "the group pattern finds no patient in its path"))
    return kept, left


def _group_notes(found: Sequence[Found]) -> list[str]:
    """What to know about the patients: items without one, and those whom headers and table tell apart differently."""
    notes = []
    if alone := sum(not item.patient for item in found):
        notes.append(
            f"{alone} of {len(found)} items have no patient and count as a patient each. If patients have several, say "
            "so (--group-column or --group-pattern), or the scores will be too good."
        )
    named: dict[str, set[str]] = defaultdict(set)
    for item in found:
        named[item.keys.get("patient", "")].add(item.patient)
    if several := sum(len(patients) > 1 for header, patients in named.items() if header):
        notes.append(
            f"{several} patients of the headers are several ones in the table (an empty cell takes the header's). The "
            "table counts; where it is wrong, a patient may stand in training and in testing."
        )
    return notes


def _splits(data: OwnData, found: Sequence[Found], groups: Sequence[str]) -> list[str]:
    """Split of every item: from the table, where it says so for all, else by shares."""
    fixed = [item.split for item in found]
    if any(fixed):
        if not all(fixed):
            raise InputError(f"{data.labels}: the split of {fixed.count('')} items is empty. Fill the column.")
        _check_leakage(data, groups, fixed)
        return fixed
    return splits_by_shares(found, groups, data.split, seed=data.seed, by_label=data.masks is None)


def _check_leakage(data: OwnData, groups: Sequence[str], splits: Sequence[str]) -> None:
    if cut := groups_in_several(groups, splits):
        raise InputError(
            f"{data.labels}: {len(cut)} patients stand in several splits (hashed: {', '.join(cut[:3])}). A patient "
            "belongs to one split: correct the column, or leave it out and give --split."
        )


def _header(data: OwnData, name: str) -> dict[str, Any]:
    """What the manifest says of the data set; ``name`` where none was given."""
    return {
        "name": data.name or name,
        "version": data.version,
        "modality": data.entry,
        "licence": data.licence,
        "source": data.source,
        "intensity_unit": UNITS.get(data.entry.intensity, "a.u."),
    }


def _default_name(path: Path) -> str:
    """Name of the file, or of its folder where the file is just called manifest."""
    return _NAME.sub("-", path.parent.name if path.stem == "manifest" else path.stem).strip("-._") or "own"
