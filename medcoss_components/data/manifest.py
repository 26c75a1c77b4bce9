"""The manifest: what a data set is, and which items belong to which split.

A manifest is a JSON file (``schemas/manifest.schema.json``) that MONAI's ``load_decathlon_datalist`` also reads:

    {"schema_version": 1, "name": "my-films", "version": "1", "modality": "xray", "licence": "...", "source": "...",
     "training": [{"id": "a1", "image": "films/a1.dcm", "label": 0, "group": "5f1c"}], "validation": [], "testing": []}

Paths, also those of masks in ``label``, are relative to the manifest's folder, or to ``dataset_dir`` where one is
given. Long lists sit in a Parquet file beside it (``items_file``); the lists in the JSON are then empty. Checks of the
files themselves: ``manifest_check.py``. Boxes as labels: ``boxes.py``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from glob import escape
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medcoss_components.data.boxes import canonical_label
from medcoss_components.data.item_table import (
    COLUMNS,
    SPLITS,
    Item,
    ItemTable,
    body_part_name,
    read_item_tables,
    relative_path,
    write_item_table,
)
from medcoss_components.data.masks import names_mask
from medcoss_components.data.modalities import BUILT_IN, Modality, get_modality
from medcoss_components.errors import InputError
from medcoss_components.files import read_json, write_json

if TYPE_CHECKING:
    from medcoss_components.data.manifest_check import Problem

SCHEMA_VERSION = 1
PARQUET_ABOVE = 5000
_TEXT_KEYS = ("name", "version", "licence", "source", "attribution", "intensity_unit", "description")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A data set: description and items by split.

    Args:
        name, version, licence, source: see the schema; change ``version`` when files change under the same names.
        modality: entry, or anything :func:`~medcoss_components.data.modalities.get_modality` takes.
        root: folder that paths are relative to; relative ``Item.image`` paths are joined to it.
        training, validation, testing: items of each split.
        attribution, intensity_unit, description: text for people.
        preparation: settings of the store that this data set needs.

    Raises:
        InputError: an item without id or group, or with content of the wrong kind for the modality.
    """

    name: str
    version: str
    modality: Modality
    licence: str
    source: str
    root: Path
    training: Sequence[Item] = ()
    validation: Sequence[Item] = ()
    testing: Sequence[Item] = ()
    attribution: str = ""
    intensity_unit: str = ""
    description: str = ""
    preparation: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "modality", get_modality(self.modality))
        object.__setattr__(self, "root", Path(os.path.abspath(self.root)))
        for split in SPLITS:
            object.__setattr__(self, split, self._completed(split, getattr(self, split)))

    def _completed(self, split: str, items: Sequence[Item]) -> Sequence[Item]:
        """Check all items of a split; of a table only those that look wrong are made."""
        if not isinstance(items, ItemTable):
            return tuple(self._complete(split, index, item) for index, item in enumerate(items))
        for index in items.doubtful(*self._content_keys):
            self._complete(split, index, items[index])
        return items

    @property
    def _content_keys(self) -> tuple[str, str]:
        """The field that holds an item's content, and the one that does not."""
        return ("text", "image") if self.modality.dimension == 1 else ("image", "text")

    def _complete(self, split: str, index: int, item: Item) -> Item:
        """Check one item and join its path to the root."""
        wanted, other = self._content_keys
        where = f"manifest {self.name}: {split}[{index}]"
        for key in ("id", "group"):
            if not isinstance(value := getattr(item, key), str) or not value:
                raise InputError(f"{where}: {key} must be a non-empty string, got {value!r}.")
        if getattr(item, wanted) is None or getattr(item, other) is not None:
            raise InputError(
                f"{where} ({item.id}): an item of the {self.modality.dimension}D modality {self.modality.name} has "
                f"{wanted!r} and no {other!r}."
            )
        if item.body_part is not None and not _is_body_part(item.body_part):  # not quoted: it may be free text
            raise InputError(
                f"{where} ({item.id}): body_part must be lower-case words such as 'left hand', or be left out."
            )
        if item.image is None or (isinstance(item.image, Path) and item.image.is_absolute()):
            return item
        return replace(item, image=self.root / item.image)

    def items(self, split: str = "training") -> Sequence[Item]:
        """Items of a split.

        Raises:
            InputError: no such split.
        """
        if split not in SPLITS:
            raise InputError(f"split must be one of {', '.join(SPLITS)}, got {split!r}.")
        return getattr(self, split)

    @property
    def counts(self) -> dict[str, int]:
        """Number of items per split."""
        return {split: len(self.items(split)) for split in SPLITS}

    @cached_property
    def hash(self) -> str:
        """SHA-256 of what decides the samples: name, version, modality name, unit, preparation and all items.

        Paths count relative to ``root``, so that a data set that moved as a whole keeps its hash. Licence, source and
        other texts for people do not count, nor do the bytes of the files: ``version`` says that those changed.
        """
        header = [self.name, self.version, self.modality.name, self.intensity_unit, self.preparation]
        digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
        for split in SPLITS:
            for row in _rows(self, split, self.root):
                # without a body part the row is that of manifests from before there were any
                known = row if row[-1] is not None else row[:-1]
                digest.update(json.dumps([split, *known]).encode() + b"\n")
        return digest.hexdigest()


def _rows(manifest: Manifest, split: str, base: Path) -> Iterator[tuple[Any, ...]]:
    """Items as JSON values in the order of COLUMNS, paths of images and masks relative to ``base``."""
    items = manifest.items(split)
    if isinstance(items, ItemTable) and base == manifest.root and (rows := items.rows(str(base))) is not None:
        yield from rows
        return
    for item in items:
        image = None if item.image is None else relative_path(str(item.image), str(base))
        label = canonical_label(item.label)
        if base != manifest.root and item.image is not None and names_mask(label, manifest.modality.dimension):
            label = relative_path(str(manifest.root / label), str(base))
        yield item.id, image, item.text, label, item.group, item.body_part


def _is_body_part(value: Any) -> bool:
    return isinstance(value, str) and value != "" and body_part_name(value) == value


@cache
def manifest_schema() -> dict[str, Any]:
    """The JSON schema of manifests (the same text as ``data_manifests/manifest.schema.json``)."""
    text = resources.files("medcoss_components.data").joinpath("schemas/manifest.schema.json").read_text("utf-8")
    return json.loads(text)


def read_manifest(path: str | Path, dataset_dir: str | Path | None = None) -> Manifest:
    """Read a manifest; files it lists are not touched.

    Args:
        path: the JSON file.
        dataset_dir: folder that paths are relative to; default: the manifest's folder.

    Raises:
        InputError: missing file, broken JSON or Parquet, a rule of the schema broken (place and rule are named), counts
            that do not fit the items, or dataset_dir that is no folder.
    """
    path = Path(path)
    content = read_json(path)
    _check_schema(content, path)
    if dataset_dir is not None and not Path(dataset_dir).is_dir():
        raise InputError(f"dataset_dir {dataset_dir}: no such folder. Give the folder that the paths start from.")
    texts: dict[str, Any] = {key: content.get(key, "") for key in _TEXT_KEYS}
    root = os.path.abspath(dataset_dir if dataset_dir is not None else path.parent)
    manifest = Manifest(
        modality=get_modality(content["modality"]),
        root=Path(root),
        preparation=content.get("preparation", {}),
        **(texts | _read_items(content, path, root)),
    )
    if (expected := content.get("counts")) is not None and {**dict.fromkeys(SPLITS, 0), **expected} != manifest.counts:
        raise InputError(f"{path}: counts say {expected}, the lists hold {manifest.counts}. Rebuild the manifest.")
    return manifest


def _check_schema(content: Any, path: Path) -> None:
    """Raise on the first broken rule. Values inside items are never shown: they may be text of patients."""
    from jsonschema import Draft202012Validator

    error = next(Draft202012Validator(manifest_schema()).iter_errors(content), None)
    if error is None:
        return
    inside_item = bool(error.path) and error.path[0] in SPLITS
    received = f"got {type(error.instance).__name__}" if inside_item else f"got {str(error.instance)[:80]!r}"
    detail = error.message if error.validator in ("required", "additionalProperties") and not inside_item else received
    if error.validator == "required" and inside_item:
        detail = error.message
    raise InputError(
        f"{path}: at {error.json_path}: breaks the rule {error.validator!r} = "
        f"{json.dumps(error.validator_value)[:200]} of manifest.schema.json ({detail})."
    )


def _read_items(content: Mapping[str, Any], path: Path, root: str) -> dict[str, Any]:
    inline = {split: tuple(_make_item(entry) for entry in content[split]) for split in SPLITS}
    if "items_file" not in content:
        return inline
    if any(inline.values()):
        raise InputError(f"{path}: has items_file and inline items; keep items in one place.")
    return read_item_tables(path.parent / content["items_file"], root)


def _make_item(entry: Mapping[str, Any]) -> Item:
    image = entry.get("image")
    return Item(
        id=entry["id"],
        image=None if image is None else Path(image),
        text=entry.get("text"),
        label=entry.get("label"),
        group=entry["group"],
        body_part=entry.get("body_part"),
    )


def write_manifest(
    manifest: Manifest, path: str | Path, *, dataset_dir: str | Path | None = None, parquet_above: int = PARQUET_ABOVE
) -> Path:
    """Write a manifest atomically; with more than ``parquet_above`` items the lists go to a Parquet file beside it.

    Args:
        manifest: what to write.
        path: the JSON file.
        dataset_dir: folder that written paths are relative to (give the same to :func:`read_manifest`); default: the
            folder of ``path``.
        parquet_above: number of items up to which they stay in the JSON.

    Returns:
        ``path`` as a ``Path``.

    Raises:
        InputError: labels of several kinds in a Parquet list.
    """
    path = Path(path)
    base = Path(os.path.abspath(dataset_dir if dataset_dir is not None else path.parent))
    header: dict[str, Any] = {"schema_version": SCHEMA_VERSION}
    header |= {key: getattr(manifest, key) for key in _TEXT_KEYS if getattr(manifest, key)}
    header["modality"] = _modality_reference(manifest.modality)
    header |= {"preparation": manifest.preparation} if manifest.preparation else {}
    header["counts"] = manifest.counts
    lists: dict[str, list] = {split: [] for split in SPLITS}
    if sum(manifest.counts.values()) > parquet_above:
        rows = (_entry(row, split=split) for split in SPLITS for row in _rows(manifest, split, base))
        header["items_file"] = write_item_table(path, rows, name=manifest.name).name
    else:
        lists = {split: [_drop_none(_entry(row)) for row in _rows(manifest, split, base)] for split in SPLITS}
    content = header | lists
    _check_schema(content, path)
    write_json(path, content)
    _remove_older_lists(path, header.get("items_file"))
    return path


def _modality_reference(modality: Modality) -> str | dict[str, Any]:
    """The name for an entry as shipped with the package, else the whole entry, so that a reader can register it."""
    return modality.name if BUILT_IN.get(modality.name) == modality else modality.to_dict()


def _drop_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _entry(row: Iterable[Any], **more: Any) -> dict[str, Any]:
    return {**more, **dict(zip(COLUMNS, row, strict=True))}


def _remove_older_lists(path: Path, kept: str | None) -> None:
    for old in path.parent.glob(f"{escape(path.stem)}.items-*.parquet"):
        if old.name != kept:
            old.unlink(missing_ok=True)


def check_manifest(
    manifest: Manifest | str | Path, *, open_files: bool = True, workers: int | None = None
) -> list[Problem]:
    """Check a manifest and its files; see :func:`medcoss_components.data.manifest_check.find_problems`."""
    from medcoss_components.data.manifest_check import find_problems

    if not isinstance(manifest, Manifest):
        manifest = read_manifest(manifest)
    return find_problems(manifest, open_files=open_files, workers=workers)
