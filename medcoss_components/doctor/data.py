"""A manifest, the bundle that will train on it, and the room for its store."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medcoss_components.data.manifest import SPLITS, Manifest, check_manifest, read_manifest
from medcoss_components.data.shards import SHARD_BYTES
from medcoss_components.data.store_sizes import StoreEstimate, size_text
from medcoss_components.doctor.findings import ERROR, OK, WARNING, Finding
from medcoss_components.doctor.places import check_folder, existing_parent
from medcoss_components.errors import InputError
from medcoss_components.zoo.bundle_needs import StoreNeed, bundle_needs, manifest_needs

SHOWN = 8  # remarks on a manifest that are shown; `medcoss manifest check` lists all


@dataclass(frozen=True)
class DataCase:
    """A manifest under examination.

    Args:
        path: the JSON file.
        dataset_dir: folder that its paths start from; None: its own.
        bundle: folder of the bundle that will train on it; None: none.
        store_dir: folder of all stores; None: the bundle's own.
        settings: keys of the bundle's training config.
        overlays: configs merged over train.json.
    """

    path: Path
    dataset_dir: Path | None = None
    bundle: Path | None = None
    store_dir: Path | None = None
    settings: tuple[tuple[str, Any], ...] = ()
    overlays: tuple[str, ...] = ()


def check_data(case: DataCase) -> Iterator[Finding]:
    """Everything about one manifest; nothing further when it cannot be read."""
    try:
        manifest = read_manifest(case.path, dataset_dir=case.dataset_dir)
    except InputError as error:
        yield Finding(ERROR, "manifest", str(error), "correct it, or build it again with `medcoss manifest build`")
        return
    counts = ", ".join(f"{len(manifest.items(split))} {split}" for split in SPLITS)
    groups = len({item.group for split in SPLITS for item in manifest.items(split)})
    yield Finding(OK, "manifest", f"{manifest.name} {manifest.version}, {manifest.modality.name}: {counts}")
    yield Finding(OK, "groups", f"{groups} (patients, or what else must not be split)")
    yield from _problems(manifest)
    yield from _stores(case, manifest)


def _problems(manifest: Manifest) -> Iterator[Finding]:
    """What the check of headers and lists finds, errors first; files are not opened."""
    problems = [found for found in check_manifest(manifest, open_files=False) if found.severity != "info"]
    for found in problems[:SHOWN]:
        status = ERROR if found.severity == "error" else WARNING
        yield Finding(status, found.rule, f"{found.where}: {found.message}")
    if rest := problems[SHOWN:]:
        status = ERROR if any(found.severity == "error" for found in rest) else WARNING
        yield Finding(status, "more remarks", f"{len(rest)} more", "`medcoss manifest check` lists all")
    if not problems:
        advice = "`medcoss manifest check` opens every file too"
        yield Finding(OK, "items", "all files are there, no group in two splits, no file twice", advice)


def _stores(case: DataCase, manifest: Manifest) -> Iterator[Finding]:
    """Whether the bundle takes the manifest, which stores are missing, and whether they fit on the disk."""
    try:
        needs = _needs(case, manifest)
    except InputError as error:
        yield Finding(ERROR, "bundle", str(error), "give the manifest and the settings that the training will get")
        return
    if case.bundle is not None:
        yield Finding(OK, "bundle", f"{case.bundle.resolve().name} takes this manifest")
    estimates = [None if need.there else need.estimate() for need in needs]
    yield from (_store(need, estimate) for need, estimate in zip(needs, estimates, strict=True))
    total = sum(estimate.bytes for estimate in estimates if estimate is not None)
    if total and (case.bundle or case.store_dir):
        folder = needs[0].plan.store_dir
        if case.store_dir is None:  # one that was named is looked at with the other folders
            yield from check_folder(folder, "store folder")
        yield _fits(folder, total)


def _needs(case: DataCase, manifest: Manifest) -> list[StoreNeed]:
    from medcoss_components.zoo.bundle_stores import bundle_parser

    if case.bundle is None:
        return manifest_needs(manifest, case.store_dir or Path())
    parser = bundle_parser(
        case.bundle,
        case.path,
        case.store_dir,
        dict(case.settings),
        overlays=case.overlays,
        dataset_dir=case.dataset_dir,
    )
    return bundle_needs(parser, manifest)


def _store(need: StoreNeed, estimate: StoreEstimate | None) -> Finding:
    """What there is of a store, or will be."""
    name = f"store of {need.split}"
    if estimate is None:
        return Finding(OK, name, f"is prepared: {need.plan.path}")
    value = f"{estimate.items} items, about {size_text(estimate.bytes)} to prepare"
    if not estimate.bad:
        return Finding(OK, name, value)
    value = f"{value}; {estimate.bad} of {estimate.tried} items that were tried cannot be prepared"
    status = ERROR if estimate.bad == estimate.tried else WARNING
    return Finding(status, name, value, "`medcoss manifest check` says what is wrong with them")


def _fits(store_dir: Path, total: int) -> Finding:
    needed = total + min(total, SHARD_BYTES)  # parts and the shard that they are joined to are there together
    free = shutil.disk_usage(existing_parent(store_dir)).free
    value = f"about {size_text(needed)} needed in {store_dir.resolve()}, {size_text(free)} free"
    if needed <= free:
        return Finding(OK, "room for stores", value)
    return Finding(ERROR, "room for stores", value, "free some room, or choose another folder with --store-dir")
