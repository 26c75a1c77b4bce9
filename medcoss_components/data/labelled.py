"""Labelled data of a task: prepared samples with class numbers, or prepared cases with masks, of one split.

Which items of a manifest belong to a split: ``task_splits.py``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from medcoss_components.data.case_store import Case, CaseStore, entry_for, prepare_cases
from medcoss_components.data.labels import (
    class_targets,
    require_every_class,
    resolve_classes,
)
from medcoss_components.data.manifest import Item, Manifest, read_manifest
from medcoss_components.data.modalities import Modality
from medcoss_components.data.preparation import classification_layer, gives_several
from medcoss_components.data.regions import region_masks, resolve_regions
from medcoss_components.data.store import Store, prepare_store
from medcoss_components.data.task_splits import SplitChoice, choose_items, source_split
from medcoss_components.data.transforms import scale_to_input, to_model_input
from medcoss_components.errors import InputError
from medcoss_components.files import sha256_json

if TYPE_CHECKING:
    from medcoss_components.text.vocabulary import Vocabulary

logger = logging.getLogger(__name__)


class ClassificationDataset(Dataset):
    """Samples with class numbers: chosen rows of a store.

    Args:
        store: prepared samples.
        rows: (N,) rows of ``store``.
        targets: (N,) class numbers.
        classes: names in order.

    Attributes:
        ids: of each sample; ``cases``: of the item that each comes from; ``groups``: of its patient.
        key: SHA-256 of the store's key, the rows and the classes.
        manifest_hash, modality, vocabulary_path: of the store.
        preparation_seconds: time that preparing or opening the store took.
    """

    def __init__(
        self, store: Store, *, rows: Sequence[int] | np.ndarray, targets: np.ndarray, classes: Sequence[str]
    ) -> None:
        self.store, self.classes = store, resolve_classes(classes)
        self.rows = np.asarray(rows, dtype=np.int64)
        self.targets = np.asarray(targets, dtype=np.int64)
        self.modality: Modality = store.modality
        items = store_items(store)
        self.ids: list[str] = [store.ids[row] for row in self.rows]
        self.cases: list[str] = [items[row] for row in self.rows]
        self.groups: list[str] = [store.groups[row] for row in self.rows]
        self.key = sha256_json([store.key, self.rows.tolist(), list(self.classes)])
        self.manifest_hash: str = store.manifest_hash
        self.vocabulary_path: Path | None = store.vocabulary_path
        self.preparation_seconds: float = 0.0

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"ClassificationDataset({len(self)} samples of {self.modality.name}, {len(self.classes)} classes)"

    def gather(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Stored samples (n, *stored_shape) for positions 0 .. len - 1."""
        return self.store.gather(self.rows[np.asarray(rows, dtype=np.int64)])

    def __getitem__(self, row: int) -> dict[str, Any]:
        """``{"id": str, "image" or "text": tensor as the network reads it, "label": class number}``."""
        row = range(len(self))[row]
        inputs = to_model_input(self.modality, torch.from_numpy(self.gather(np.array([row]))))
        return {"id": self.ids[row], self.modality.content_key: inputs[0], "label": int(self.targets[row])}


class SegmentationDataset(Dataset):
    """Cases with masks: chosen rows of a case store.

    Args:
        store: prepared cases.
        rows: (N,) rows of ``store``.
        regions: name -> mask values, see :func:`~medcoss_components.data.regions.resolve_regions`.

    Attributes:
        ids: of each case, also as ``cases``; ``groups``: of its patient.
        key, manifest_hash, modality, preparation_seconds: as :class:`ClassificationDataset`.
    """

    def __init__(self, store: CaseStore, *, rows: Sequence[int] | np.ndarray, regions: Mapping[str, Any]) -> None:
        self.store, self.regions = store, resolve_regions(regions)
        self.rows = np.asarray(rows, dtype=np.int64)
        self.modality: Modality = store.modality
        self.ids: list[str] = [store.ids[row] for row in self.rows]
        self.cases = self.ids
        self.groups: list[str] = [store.groups[row] for row in self.rows]
        listed = {name: list(values) for name, values in self.regions.items()}
        self.key = sha256_json([store.key, self.rows.tolist(), listed])
        self.manifest_hash: str = store.manifest_hash
        self.preparation_seconds: float = 0.0

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"SegmentationDataset({len(self)} cases of {self.modality.name}, regions {', '.join(self.regions)})"

    def case(self, row: int) -> Case:
        """The whole case, memory-mapped."""
        return self.store.case(int(self.rows[row]))

    def shape(self, row: int) -> tuple[int, ...]:
        """Spatial shape of a prepared case."""
        return self.store.geometry(int(self.rows[row])).shape

    def values(self, row: int) -> dict[int, int]:
        """Voxels of each mask value but 0."""
        return self.store.values(int(self.rows[row]))

    def window(self, row: int, start: Sequence[int], size: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Copy a window: image (C, *size) in stored dtype, mask (*size) uint8; filled where it sticks out."""
        return self.store.window(int(self.rows[row]), start, size)

    def foreground(self, row: int) -> dict[str, np.ndarray]:
        """Some positions (P, D) int32 of each region that the case has."""
        listed = self.store.positions(int(self.rows[row]))
        found = {name: listed[np.isin(listed[:, 0], values), 1:] for name, values in self.regions.items()}
        return {name: positions for name, positions in found.items() if len(positions)}

    def __getitem__(self, row: int) -> dict[str, Any]:
        """``{"id": str, "image": (C, *S) float32 as the network reads it, "label": (K, *S) float32}``."""
        case = self.case(range(len(self))[row])
        masks = region_masks(case.mask, self.regions, dimension=self.modality.dimension)
        image = scale_to_input(self.modality, torch.from_numpy(np.array(case.image))[None])[0]
        return {"id": case.id, "image": image, "label": torch.from_numpy(masks).float()}


def store_items(store: Store) -> list[str]:
    """Manifest id of the item that each sample of a store comes from."""
    if not gives_several(store.modality, store.index["preparation"]):
        return list(store.ids)
    return [identifier.rpartition("#")[0] for identifier in store.ids]


def classification_dataset(
    *,
    manifest: str | Path | Manifest,
    modality: str | Mapping[str, Any] | Modality | None = None,
    input_shape: Sequence[int] | None = None,
    classes: Sequence[str],
    split: str = "training",
    store_dir: str | Path,
    vocabulary: str | Path | Vocabulary | None = None,
    validation_share: float = 0.2,
    label_ratio: float = 1.0,
    seed: int = 0,
    preparation: Mapping[str, Any] | None = None,
    dataset_dir: str | Path | None = None,
    workers: int | None = None,
    max_bad_share: float = 0.01,
    optional: bool = False,
) -> ClassificationDataset | None:
    """Labelled samples of a split for classification; prepared when there is no store yet (once, by rank 0).

    Args:
        manifest: path or content; labels are class names or numbers.
        modality: name or entry; None: the manifest's.
        input_shape: what the network reads; None: the modality's.
        classes: names in the order of the outputs.
        split: training, validation or testing; see :func:`~medcoss_components.data.task_splits.choose_items`.
        store_dir: folder of all stores.
        vocabulary: text only, and needed there.
        validation_share, label_ratio, seed: see there.
        preparation: settings over the manifest's; volumes are taken whole unless one of them says otherwise.
        dataset_dir, workers, max_bad_share: see :func:`~medcoss_components.data.store.prepare_store`.
        optional: None instead of an error when the split has no items.

    Raises:
        InputError: labels that name no class, a class without training item, an empty split, or bad data.
    """
    content = manifest_content(manifest, dataset_dir)
    entry = entry_for(content, modality, input_shape)
    names = resolve_classes(classes)
    numbers = _item_targets(content.items(source_split(content, split)), names)
    shares = {"validation_share": validation_share, "label_ratio": label_ratio, "seed": seed}
    choice = choose_split(content, split, targets=numbers, optional=optional, **shares)
    if choice is None:
        return None
    started = time.monotonic()
    with main_process_first():
        store = prepare_store(
            manifest=content,
            modality=entry,
            store_dir=store_dir,
            split=choice.source,
            vocabulary=vocabulary,
            preparation=classification_layer(entry, content.preparation, preparation),
            workers=workers,
            max_bad_share=max_bad_share,
        )
    dataset = _chosen_samples(store, choice, numbers, names)
    dataset.preparation_seconds = round(time.monotonic() - started, 3)
    _check_classes(dataset, split, content)
    return dataset


def segmentation_dataset(
    *,
    manifest: str | Path | Manifest,
    modality: str | Mapping[str, Any] | Modality | None = None,
    input_shape: Sequence[int] | None = None,
    regions: Mapping[str, Any],
    split: str = "training",
    store_dir: str | Path,
    validation_share: float = 0.2,
    label_ratio: float = 1.0,
    seed: int = 0,
    preparation: Mapping[str, Any] | None = None,
    dataset_dir: str | Path | None = None,
    workers: int | None = None,
    max_bad_share: float = 0.01,
    optional: bool = False,
) -> SegmentationDataset | None:
    """Cases with masks of a split; prepared when there is no store yet (once, by rank 0).

    Args:
        regions: name -> mask values or "any".

    Other arguments as for :func:`classification_dataset`; ``preparation`` as
    :func:`~medcoss_components.data.cases.default_case_preparation` lists it.

    Raises:
        InputError: a region that no training mask has, an empty split, or bad data.
    """
    content = manifest_content(manifest, dataset_dir)
    entry = entry_for(content, modality, input_shape)
    resolve_regions(regions)
    shares = {"validation_share": validation_share, "label_ratio": label_ratio, "seed": seed}
    choice = choose_split(content, split, optional=optional, **shares)
    if choice is None:
        return None
    started = time.monotonic()
    with main_process_first():
        store = prepare_cases(
            manifest=content,
            modality=entry,
            store_dir=store_dir,
            split=choice.source,
            preparation=preparation,
            workers=workers,
            max_bad_share=max_bad_share,
        )
    rows = [row for row, item in enumerate(store.ids) if item in choice.ids]
    dataset = SegmentationDataset(store, rows=rows, regions=regions)
    dataset.preparation_seconds = round(time.monotonic() - started, 3)
    _check_regions(dataset, split, content)
    return dataset


def manifest_content(manifest: str | Path | Manifest | None, dataset_dir: str | Path | None) -> Manifest:
    if not manifest:
        raise InputError(
            "data_manifest: give the path of a manifest (JSON), for example --data_manifest data/manifest.json"
        )
    return manifest if isinstance(manifest, Manifest) else read_manifest(manifest, dataset_dir)


def main_process_first() -> Any:
    from medcoss_components.engines.setup import main_process_first as one_after_the_other

    return one_after_the_other()


def _item_targets(items: Sequence[Item], classes: Sequence[str]) -> dict[str, int]:
    ids = [item.id for item in items]
    numbers = class_targets([item.label for item in items], classes=classes, ids=ids)
    return dict(zip(ids, numbers.tolist(), strict=True))


def _chosen_samples(
    store: Store, choice: SplitChoice, numbers: Mapping[str, int], classes: Sequence[str]
) -> ClassificationDataset:
    items = store_items(store)
    rows = [row for row, item in enumerate(items) if item in choice.ids]
    targets = np.array([numbers[items[row]] for row in rows], dtype=np.int64)
    return ClassificationDataset(store, rows=rows, targets=targets, classes=classes)


def choose_split(manifest: Manifest, split: str, *, optional: bool, **options: Any) -> SplitChoice | None:
    """The items of a split, None when there are none and they are optional."""
    choice = choose_items(manifest, split, **options)
    if choice.ids:
        _warn_of_shared_groups(manifest, split)
        return choice
    if optional:
        return None
    advice = "Give the manifest items there" + (
        ", or a validation_share above 0." if split == "validation" else " or another split."
    )
    raise InputError(f"manifest {manifest.name}: the split {split} has no items. {advice}")


def _warn_of_shared_groups(manifest: Manifest, split: str) -> None:
    if split == "training":
        return
    known = {item.group for item in manifest.training}
    shared = {item.group for item in manifest.items(split) if item.group in known}
    if shared:
        logger.warning(
            "manifest %s: %d groups of %s are in training as well; its numbers will look better than they are.",
            manifest.name,
            len(shared),
            split,
        )


def _check_classes(dataset: ClassificationDataset, split: str, manifest: Manifest) -> None:
    where = f"manifest {manifest.name}, split {split}"
    if len(dataset) == 0:
        raise InputError(f"{where}: every chosen item is bad. See {dataset.store.path / 'report.json'}.")
    if split == "training":
        require_every_class(dataset.targets, classes=dataset.classes, where=where)


def _check_regions(dataset: SegmentationDataset, split: str, manifest: Manifest) -> None:
    """Training needs every region; mask values that no region has are told."""
    where = f"manifest {manifest.name}, split {split}"
    if len(dataset) == 0:
        raise InputError(f"{where}: every chosen item is bad. See {dataset.store.path / 'report.json'}.")
    found = {value for row in range(len(dataset)) for value in dataset.values(row)}
    missing = [name for name, values in dataset.regions.items() if not found.intersection(values)]
    if missing and split == "training":
        raise InputError(
            f"{where}: no mask has a voxel of {', '.join(missing)}; the masks hold the values {sorted(found)}, regions "
            f"say { ({name: list(dataset.regions[name])[:3] for name in missing}) }. Correct regions, or add cases."
        )
    unused = sorted(found - {value for values in dataset.regions.values() for value in values})
    if unused:
        logger.warning("%s: mask values %s belong to no region and count as background.", where, unused)
