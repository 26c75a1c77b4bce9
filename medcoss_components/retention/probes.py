"""Probes: small labelled sets of any modality by which frozen features are scored.

A probe is a manifest with class labels. Its testing split is scored, its training split gives the neighbours and the
regression, its validation split (or groups held out of training) chooses the regularisation.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medcoss_components.data.labelled import ClassificationDataset, classification_dataset
from medcoss_components.data.labels import validation_groups
from medcoss_components.data.manifest import Item, Manifest, read_manifest
from medcoss_components.data.masks import names_mask
from medcoss_components.data.modalities import Modality, get_modality
from medcoss_components.errors import InputError
from medcoss_components.randomness import numpy_generator_for

if TYPE_CHECKING:
    from medcoss_components.text.vocabulary import Vocabulary

LIMIT = 1000
VALIDATION_SHARE = 0.2
SPLITS = ("training", "validation", "testing")
KEYS = ("name", "modality", "data_manifest", "dataset_dir", "limit", "preparation", "optional")

logger = logging.getLogger(__name__)
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A labelled set that was read and checked; files are not touched yet.

    Attributes:
        name: of the probe, unique in a chain.
        manifest: at most ``limit`` items in each split, labels are class names.
        classes: names, sorted.
        limit: samples a split.
        seed: of every choice.
        preparation: settings over the manifest's; None: the chain's for texts, the manifest's for images.
    """

    name: str
    manifest: Manifest
    classes: tuple[str, ...]
    limit: int = LIMIT
    seed: int = 0
    preparation: Mapping[str, Any] | None = None

    @property
    def modality(self) -> Modality:
        return self.manifest.modality

    def open(
        self,
        store_dir: str | Path,
        *,
        vocabulary: Vocabulary | None = None,
        preparation: Mapping[str, Any] | None = None,
        workers: int | None = None,
    ) -> dict[str, ClassificationDataset]:
        """Samples of each split; prepared when there is no store yet.

        Args:
            store_dir: folder of all stores.
            vocabulary: texts only, and needed there.
            preparation: used where the probe has none of its own.
            workers: processes.

        Raises:
            InputError: bad data, or a text probe without a vocabulary.
        """
        options: dict[str, Any] = {
            "manifest": self.manifest,
            "classes": self.classes,
            "store_dir": store_dir,
            "vocabulary": vocabulary,
            "preparation": self.preparation if self.preparation is not None else preparation,
            "workers": workers,
        }
        opened = {split: classification_dataset(split=split, **options) for split in SPLITS}
        return {split: self._within_limit(split, content) for split, content in opened.items() if content is not None}

    def _within_limit(self, split: str, content: ClassificationDataset) -> ClassificationDataset:
        """An item may give several samples (tiles, slabs); of these, too, ``limit`` are used."""
        if len(content) <= self.limit:
            return content
        kept = stratified(content.targets, self.limit, seed=self.seed, purpose=f"{self.name} {split} samples")
        return ClassificationDataset(
            content.store, rows=content.rows[kept], targets=content.targets[kept], classes=self.classes
        )


def read_probes(entries: Sequence[Mapping[str, Any]], *, seed: int = 0) -> list[Probe]:
    """Read and check probes before anything is computed; files that the manifests list are not touched.

    Args:
        entries: ``{"name", "data_manifest"}`` and, if wanted, ``modality`` (checked against the manifest),
            ``dataset_dir``, ``limit`` (samples a split, default :data:`LIMIT`), ``preparation``, ``optional`` (true:
            left out with a warning where the manifest does not exist).
        seed: of the choice of samples.

    Raises:
        InputError: an incomplete entry, a name twice, a manifest that is missing or of another modality, masks in place
            of classes, items without label, fewer than two classes, or no training or testing items.
    """
    probes = [_read(number, entry, seed) for number, entry in enumerate(entries) if not _absent(entry)]
    names = [probe.name for probe in probes]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(f"probes: the name {repeated[0]!r} stands twice; give each probe a name of its own.")
    return probes


def _absent(entry: Mapping[str, Any]) -> bool:
    """Whether an optional probe's manifest is not there."""
    gone = bool(entry.get("optional")) and not Path(entry.get("data_manifest", "")).is_file()
    if gone:
        logger.warning(
            "probe %s is left out: %s does not exist. `medcoss sample fetch --task all` makes the labelled samples.",
            entry.get("name"),
            entry.get("data_manifest"),
        )
    return gone


def _read(number: int, entry: Mapping[str, Any], seed: int) -> Probe:
    name, limit = _checked(number, entry)
    where = f"probe {name}"
    path = Path(entry["data_manifest"])
    if not path.is_file():
        raise InputError(f"{where}: data_manifest {path}: no such file. Give the path of a manifest with labels.")
    manifest = read_manifest(path, entry.get("dataset_dir"))
    wanted = entry.get("modality")
    if wanted is not None and get_modality(wanted).name != manifest.modality.name:
        raise InputError(
            f"{where}: modality {get_modality(wanted).name} is given, but {path} holds {manifest.modality.name}."
        )
    splits = _labelled_splits(manifest, where)
    classes = tuple(sorted({str(item.label) for item in splits["training"]}))
    if len(classes) < 2 or limit < len(classes):
        raise InputError(
            f"{where}: at least two classes in training and a limit of at least their number are needed, "
            f"received {len(classes)} classes and limit {limit}."
        )
    chosen: dict[str, Any] = {
        split: _chosen(items, limit, seed, f"{name} {split}") for split, items in _held_out(splits, seed).items()
    }
    preparation = entry.get("preparation")
    return Probe(
        name=name,
        manifest=replace(manifest, **chosen),
        classes=classes,
        limit=limit,
        seed=seed,
        preparation=None if preparation is None else dict(preparation),
    )


def _checked(number: int, entry: Mapping[str, Any]) -> tuple[str, int]:
    """Name and limit of an entry whose keys are right."""
    unknown = sorted(set(entry) - set(KEYS))
    missing = [key for key in ("name", "data_manifest") if not entry.get(key)]
    if unknown or missing:
        raise InputError(
            f"probes[{number}]: unknown keys {unknown}, missing keys {missing}; the keys are {', '.join(KEYS)}."
        )
    name, limit = str(entry["name"]), entry.get("limit")
    limit = LIMIT if limit is None else limit
    if not _NAME.fullmatch(name):
        raise InputError(f"probes[{number}]: name {name!r} must be 1 to 40 of a-z, 0-9, '_' and '-', no sign first.")
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 2:
        raise InputError(f"probe {name}: limit={limit!r} must be an integer of at least 2 (samples a split).")
    return name, limit


def _labelled_splits(manifest: Manifest, where: str) -> dict[str, list[Item]]:
    """Items of every split with their class names as labels.

    Raises:
        InputError: no training or testing items, an item without label, or masks.
    """
    splits = {split: list(manifest.items(split)) for split in SPLITS}
    empty = [split for split in ("training", "testing") if not splits[split]]
    if empty:
        raise InputError(f"{where}: {manifest.name} has no {' and no '.join(empty)} items; a probe needs both splits.")
    items = [item for content in splits.values() for item in content]
    bare = sum(item.label is None for item in items)
    if bare:
        raise InputError(f"{where}: {bare} of {len(items)} items of {manifest.name} have no label. Give each a class.")
    if any(isinstance(item.label, list) or names_mask(item.label, manifest.modality.dimension) for item in items):
        raise InputError(
            f"{where}: labels of {manifest.name} are masks or lists; a probe needs one class for each item."
        )
    return {split: [replace(item, label=str(item.label)) for item in content] for split, content in splits.items()}


def _held_out(splits: dict[str, list[Item]], seed: int) -> dict[str, list[Item]]:
    """The splits; without a validation split, some groups of training become one."""
    if splits["validation"]:
        return splits
    training = splits["training"]
    numbers = {name: number for number, name in enumerate(sorted({item.label for item in training}))}
    kinds = [numbers[item.label] for item in training]
    aside = validation_groups([item.group for item in training], kinds, share=VALIDATION_SHARE, seed=seed)
    return {
        "training": [item for item in training if item.group not in aside],
        "validation": [item for item in training if item.group in aside],
        "testing": splits["testing"],
    }


def _chosen(items: Sequence[Item], limit: int, seed: int, purpose: str) -> tuple[Item, ...]:
    kept = stratified([item.label for item in items], limit, seed=seed, purpose=purpose)
    return tuple(items[row] for row in kept)


def stratified(labels: Sequence[Any] | np.ndarray, limit: int, *, seed: int, purpose: str) -> np.ndarray:
    """Rows of at most ``limit`` samples in which every class keeps about its share, and at least one.

    A larger limit keeps what a smaller one does.

    Args:
        labels: (N,) class of each sample.
        limit: at least the number of classes.
        seed: of the choice.
        purpose: name of the choice; another one draws other samples.

    Returns:
        (min(N, limit),) int64, ascending.

    >>> stratified(["a"] * 6 + ["b"] * 2, 4, seed=0, purpose="doc").tolist()[-1] >= 6
    True
    """
    names = np.unique(np.asarray(labels), return_inverse=True)[1].reshape(-1)
    order = numpy_generator_for(seed, "probe", purpose).permutation(len(names))
    place: np.ndarray = np.empty(len(names))
    for number in range(names.max(initial=-1) + 1):
        rows = order[names[order] == number]
        place[rows] = np.arange(len(rows)) / len(rows)  # the first of every class comes before all second ones
    return np.sort(order[np.argsort(place[order], kind="stable")][:limit])
