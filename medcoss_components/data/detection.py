"""Labelled data of a detection task: prepared pictures with the boxes of one split.

Boxes of the manifest (``boxes.py``) count in pixels of the source picture; they go through the same resizing, cutting
and filling as the picture does (``plane_geometry.py``), and found ones come back by :meth:`DetectionDataset.restore`.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from medcoss_components.data.boxes import check_labels, resolve_categories
from medcoss_components.data.case_store import entry_for
from medcoss_components.data.grid_headers import read_image_grid
from medcoss_components.data.labelled import choose_split, main_process_first, manifest_content
from medcoss_components.data.manifest import Item, Manifest
from medcoss_components.data.modalities import Modality
from medcoss_components.data.plane_geometry import Boxes, PlaneGeometry, has_area, plane_geometry
from medcoss_components.data.store import Store, prepare_store
from medcoss_components.data.task_splits import SplitChoice, source_split
from medcoss_components.data.transforms import to_model_input
from medcoss_components.errors import InputError
from medcoss_components.files import read_json, sha256_json, write_json

SOURCES = "sources.json"
"""Of a store: sizes and spacings of the pictures that its samples were made of, in their order."""

logger = logging.getLogger(__name__)


class Targets(Sequence[dict[str, torch.Tensor]]):
    """Boxes and labels of many pictures in two arrays: a tensor for each would take more memory than the boxes do.

    Args:
        pictures: (N) of ``{"boxes": (n, 4), "labels": (n,)}`` tensors.
    """

    def __init__(self, pictures: Sequence[Mapping[str, torch.Tensor]]) -> None:
        self._ends = np.cumsum([0, *(len(picture["labels"]) for picture in pictures)])
        boxes = [picture["boxes"].numpy() for picture in pictures]
        labels = [picture["labels"].numpy() for picture in pictures]
        self._boxes = np.concatenate([np.empty((0, 4), np.float32), *boxes])
        self._labels = np.concatenate([np.empty(0, np.int64), *labels])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, row: Any) -> Any:
        """A copy of the target of a picture: ``{"boxes": (n, 4) float32, "labels": (n,) int64}``; of a slice a list."""
        if isinstance(row, slice):
            return [self[number] for number in range(len(self))[row]]
        row = range(len(self))[row]  # negative numbers, IndexError beyond the end
        part = slice(self._ends[row], self._ends[row + 1])
        return {
            "boxes": torch.from_numpy(self._boxes[part].copy()),
            "labels": torch.from_numpy(self._labels[part].copy()),
        }


class DetectionDataset(Dataset):
    """Pictures with boxes: chosen rows of a store of whole pictures.

    Args:
        store: prepared samples, one of each item.
        rows: (N,) rows of ``store``.
        labels: (N) lists of ``{"box", "category"}`` in pixels of the source.
        geometries: (N) of the pictures.
        categories: names in order.

    Attributes:
        targets: (N) of ``{"boxes": (n, 4) float32 in pixels of the prepared picture, "labels": (n,) int64}``.
        source_targets: the same in pixels of the source, also with boxes that the preparation cut away.
        ids, cases: of each item; ``groups``: of its patient.
        source_sizes: (N, 2) int64, height and width of the source in pixels.
        key: SHA-256 of the store's key, the rows and the categories.
        manifest_hash, modality, preparation_seconds: as of
            :class:`~medcoss_components.data.labelled.ClassificationDataset`.
    """

    def __init__(
        self,
        store: Store,
        *,
        rows: Sequence[int] | np.ndarray,
        labels: Sequence[Any],
        geometries: Sequence[PlaneGeometry],
        categories: Sequence[str],
    ) -> None:
        self.store, self.categories = store, resolve_categories(categories)
        self.rows = np.asarray(rows, dtype=np.int64)
        self.geometries = list(geometries)
        self.modality: Modality = store.modality
        self.ids: list[str] = [store.ids[row] for row in self.rows]
        self.cases = self.ids
        self.groups: list[str] = [store.groups[row] for row in self.rows]
        self.source_sizes = np.array([geometry.source_size for geometry in self.geometries], np.int64).reshape(-1, 2)
        pairs = list(zip(labels, self.geometries, strict=True))
        sources = [_source_target(label, self.categories, way.source_size) for label, way in pairs]
        self.source_targets = Targets(sources)
        self.targets = Targets([_prepared(*pair) for pair in zip(sources, self.geometries, strict=True)])
        self.key = sha256_json([store.key, self.rows.tolist(), list(self.categories)])
        self.manifest_hash: str = store.manifest_hash
        self.preparation_seconds: float = 0.0

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        boxes = sum(len(target["labels"]) for target in self.targets)
        return f"DetectionDataset({len(self)} pictures of {self.modality.name} with {boxes} boxes)"

    def gather(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Stored samples (n, *stored_shape) for positions 0 .. len - 1."""
        return self.store.gather(self.rows[np.asarray(rows, dtype=np.int64)])

    def geometry(self, row: int) -> PlaneGeometry:
        """How a prepared picture lies on its source."""
        return self.geometries[row]

    def restore(self, row: int, boxes: Boxes) -> Boxes:
        """Boxes (n, 4) in pixels of a prepared picture as pixels of its source file, cut at its edges."""
        return self.geometries[row].restore(boxes)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """``{"id": str, "image": tensor as the network reads it, "boxes": (n, 4) float32, "labels": (n,) int64}``."""
        row = range(len(self))[row]
        inputs = to_model_input(self.modality, torch.from_numpy(self.gather(np.array([row]))))
        return {"id": self.ids[row], "image": inputs[0], **self.targets[row]}


def _source_target(
    label: Sequence[Mapping[str, Any]], categories: Sequence[str], size: Sequence[int]
) -> dict[str, torch.Tensor]:
    """Boxes (n, 4) float32 in pixels of the source, cut at its edges, and numbers (n,) int64 of their categories."""
    height, width = size
    numbers = [categories.index(entry["category"]) for entry in label]
    boxes = torch.tensor([entry["box"] for entry in label], dtype=torch.float32).reshape(-1, 4).clamp(min=0)
    edges = torch.tensor([width, height, width, height], dtype=torch.float32)
    return {"boxes": boxes.minimum(edges), "labels": torch.tensor(numbers, dtype=torch.int64)}


def _prepared(target: Mapping[str, torch.Tensor], geometry: PlaneGeometry) -> dict[str, torch.Tensor]:
    """A target in pixels of the prepared picture; boxes of which nothing is left there are gone."""
    boxes = geometry.forward(target["boxes"])
    left = has_area(boxes)
    return {"boxes": boxes[left], "labels": target["labels"][left]}


def detection_layer(
    modality: Modality, stored: Mapping[str, Any], given: Mapping[str, Any] | None
) -> Mapping[str, Any] | None:
    """The caller's settings for detection: the whole picture with its proportions, unless somebody says ``fit``.

    Args:
        modality: its entry.
        stored: the manifest's settings.
        given: the caller's, which win.

    Raises:
        InputError: a modality that is not 2D, or settings that cut tiles.
    """
    if modality.dimension != 2:
        raise InputError(f"modality {modality.name}: boxes are of 2D pictures, this one has {modality.dimension} axes.")
    if (tile := {**stored, **(given or {})}.get("tile")) is not None:
        raise InputError(f"preparation: tile={tile}: boxes need the whole picture. Set tile to null.")
    if "fit" in {*stored, *(given or {})}:
        return given
    return {"fit": "pad", **(given or {})}


def detection_dataset(
    *,
    manifest: str | Path | Manifest,
    modality: str | Mapping[str, Any] | Modality | None = None,
    input_shape: Sequence[int] | None = None,
    categories: Sequence[str],
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
) -> DetectionDataset | None:
    """Pictures with boxes of a split for detection; prepared when there is no store yet (once, by rank 0).

    Args:
        manifest: path or content; labels are lists of boxes, [] where nothing is there.
        categories: names in the order of the outputs.
        preparation: settings over the manifest's; ``fit`` is "pad" unless one of them says otherwise.

    Other arguments as for :func:`~medcoss_components.data.labelled.classification_dataset`.

    Raises:
        InputError: labels that are no boxes of a known category within their picture, a category that no training item
            has, an empty split, or bad data.
    """
    content = manifest_content(manifest, dataset_dir)
    entry = entry_for(content, modality, input_shape)
    layer = detection_layer(entry, content.preparation, preparation)
    names, where = resolve_categories(categories), f"manifest {content.name}, split {split}"
    items = content.items(source_split(content, split))
    check_labels([item.label for item in items], ids=[item.id for item in items], where=where, categories=names)
    kinds = {item.id: _kind(item, names) for item in items}
    shares = {"validation_share": validation_share, "label_ratio": label_ratio, "seed": seed}
    choice = choose_split(content, split, targets=kinds, optional=optional, **shares)
    if choice is None:
        return None
    started = time.monotonic()
    with main_process_first():
        store = prepare_store(
            manifest=content,
            modality=entry,
            store_dir=store_dir,
            split=choice.source,
            preparation=layer,
            workers=workers,
            max_bad_share=max_bad_share,
        )
        sources = source_planes(store, content.items(choice.source))
    dataset = _chosen(store, choice, {item.id: item for item in items}, sources, names, where)
    dataset.preparation_seconds = round(time.monotonic() - started, 3)
    _check(dataset, split, where)
    return dataset


def _kind(item: Item, categories: Sequence[str]) -> int:
    """Number by which splits are drawn alike: 0 without a box, else 1 + the first category that it has."""
    return 1 + min((categories.index(entry["category"]) for entry in item.label), default=-1)


def source_planes(store: Store, items: Sequence[Item]) -> list[list[Any]]:
    """[height, width, spacing or None] of the source of each sample of a store, kept in it after the first time.

    Args:
        store: of whole pictures.
        items: the manifest's, of the store's split.

    Raises:
        InputError: a file whose header cannot be read.
    """
    path = store.path / SOURCES
    if path.is_file():
        return read_json(path)
    images = {item.id: item.image for item in items}
    grids = [read_image_grid(Path(str(images[name]))) for name in store.ids]
    rows = [[*grid.size[::-1], list(grid.spacing[::-1]) or None] for grid in grids]
    with suppress(OSError, InputError):  # a store that may not be written to is looked up every time
        write_json(path, rows)
    return rows


def _chosen(
    store: Store,
    choice: SplitChoice,
    items: Mapping[str, Item],
    sources: Sequence[Sequence[Any]],
    categories: Sequence[str],
    where: str,
) -> DetectionDataset:
    settings, size = store.index["preparation"], store.modality.stored_shape[1:]
    rows = [row for row, item in enumerate(store.ids) if item in choice.ids]
    labels = [items[store.ids[row]].label for row in rows]
    check_labels(labels, ids=[store.ids[row] for row in rows], where=where, sizes=[sources[row][:2] for row in rows])
    geometries = [plane_geometry(sources[row][:2], sources[row][2], size=size, settings=settings) for row in rows]
    return DetectionDataset(store, rows=rows, labels=labels, geometries=geometries, categories=categories)


def _check(dataset: DetectionDataset, split: str, where: str) -> None:
    """Training needs every category; boxes that the preparation cut away are told."""
    if len(dataset) == 0:
        raise InputError(f"{where}: every chosen item is bad. See {dataset.store.path / 'report.json'}.")
    counts = Counter(number for target in dataset.targets for number in target["labels"].tolist())
    missing = [name for number, name in enumerate(dataset.categories) if not counts[number]]
    if missing and split == "training":
        found = ", ".join(f"{name}: {counts[number]}" for number, name in enumerate(dataset.categories))
        raise InputError(
            f"{where}: no box of category {', '.join(missing)} ({found}). Add items, raise label_ratio, change the "
            "seed, or leave the category out of categories."
        )
    lost = sum(len(target["labels"]) for target in dataset.source_targets) - sum(counts.values())
    if lost:
        fit = dataset.store.index["preparation"]["fit"]
        logger.warning("%s: %d boxes lie outside the prepared pictures (fit=%s) and are left out.", where, lost, fit)
