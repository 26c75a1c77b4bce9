"""Which stores a training would ask for, whether they are there, and what they would take. Nothing is prepared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medcoss_components.data.boxes import check_labels, resolve_categories
from medcoss_components.data.building import StorePlan
from medcoss_components.data.case_building import CasePlan
from medcoss_components.data.case_store import entry_for
from medcoss_components.data.cases import case_settings, resolve_case_preparation
from medcoss_components.data.detection import detection_layer
from medcoss_components.data.labels import class_targets, resolve_classes
from medcoss_components.data.manifest import SPLITS, Manifest
from medcoss_components.data.masks import names_mask
from medcoss_components.data.preparation import classification_layer, resolve_preparation
from medcoss_components.data.regions import resolve_regions
from medcoss_components.data.store_sizes import StoreEstimate, estimate_cases, estimate_samples
from medcoss_components.data.task_splits import source_split
from medcoss_components.zoo.bundle_stores import DATASETS, bundle_splits, resolved

CASES, CLASSES, BOXES = "segmentation_dataset", "classification_dataset", "detection_dataset"
_ARGUMENTS = ("modality", "input_shape", "preparation", "store_dir")


@dataclass(frozen=True)
class StoreNeed:
    """A store that a training reads.

    Args:
        split: of the manifest.
        plan: what would be built.
        there: whether it is prepared already; None for texts, whose stores also depend on the vocabulary.
        regions: name -> mask values, of a bundle's segmentation.
    """

    split: str
    plan: StorePlan | CasePlan
    there: bool | None
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def estimate(self) -> StoreEstimate:
        """What the store takes; prepares a few items in memory."""
        plan = self.plan
        measure = estimate_cases if isinstance(plan, CasePlan) else estimate_samples
        return measure(plan.manifest, self.split, modality=plan.modality, settings=plan.settings)


def bundle_needs(parser: Any, manifest: Manifest) -> list[StoreNeed]:
    """Stores of a bundle's training on a manifest, each once.

    Args:
        parser: of :func:`~medcoss_components.zoo.bundle_stores.bundle_parser`.
        manifest: the same manifest, read.

    Raises:
        InputError: the manifest does not fit the bundle: another modality, labels that are none of its classes, or a
            setting that it does not know.
    """
    needs: dict[str, StoreNeed] = {}
    for split in bundle_splits(parser):
        key = DATASETS[split]
        target = str(parser.get(key)["_target_"]).rpartition(".")[2]
        values = {name: resolved(parser, f"{key}#{name}") for name in _ARGUMENTS if name in parser.get(key)}
        source = source_split(manifest, split) if target in (CASES, CLASSES, BOXES) else split
        if target == CLASSES:
            _check_labels(manifest, source, resolved(parser, f"{key}#classes"))
        if target == BOXES:
            _check_boxes(manifest, source, resolved(parser, f"{key}#categories"))
        if target == CASES:
            values["regions"] = resolve_regions(resolved(parser, f"{key}#regions"))
        if manifest.items(source) and source not in needs:
            needs[source] = _need(manifest, source, target, values)
    return list(needs.values())


def _check_labels(manifest: Manifest, split: str, classes: Any) -> None:
    items = manifest.items(split)
    class_targets([item.label for item in items], classes=resolve_classes(classes), ids=[item.id for item in items])


def _check_boxes(manifest: Manifest, split: str, categories: Any) -> None:
    items, names = manifest.items(split), resolve_categories(categories)
    labels, ids = [item.label for item in items], [item.id for item in items]
    check_labels(labels, ids=ids, where=f"manifest {manifest.name}, split {split}", categories=names)


def manifest_needs(manifest: Manifest, store_dir: Path) -> list[StoreNeed]:
    """Stores of a manifest with its own settings and the modality's input: cases where labels are masks."""
    masks = [names_mask(item.label, manifest.modality.dimension) for split in SPLITS for item in manifest.items(split)]
    target = CASES if any(masks) and manifest.modality.dimension > 1 else ""
    values = {"store_dir": str(store_dir)}
    return [_need(manifest, split, target, values) for split in SPLITS if manifest.items(split)]


def _need(manifest: Manifest, split: str, target: str, values: Mapping[str, Any]) -> StoreNeed:
    entry = entry_for(manifest, values.get("modality"), values.get("input_shape"))
    given, folder = values.get("preparation"), Path(values["store_dir"])
    plan: StorePlan | CasePlan
    if target == CASES:
        settings = resolve_case_preparation(entry, case_settings(entry, manifest.preparation), given)
        plan = CasePlan(manifest=manifest, split=split, modality=entry, settings=settings, store_dir=folder)
        return StoreNeed(split, plan, plan.path.exists(), regions=values.get("regions", {}))
    layer = {CLASSES: classification_layer, BOXES: detection_layer}.get(target)
    given = layer(entry, manifest.preparation, given) if layer else given
    settings = resolve_preparation(entry, manifest.preparation, given)
    plan = StorePlan(
        manifest=manifest, split=split, modality=entry, settings=settings, vocabulary=None, store_dir=folder
    )
    return StoreNeed(split, plan, None if entry.dimension == 1 else plan.path.exists())
