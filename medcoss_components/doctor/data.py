"""Manifests, the bundle that will train on them, and the room for their stores."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from medcoss_components.data.case_building import CasePlan
from medcoss_components.data.manifest import SPLITS, Manifest, check_manifest, read_manifest
from medcoss_components.data.shards import SHARD_BYTES
from medcoss_components.data.store_sizes import StoreEstimate, folder_bytes, size_text
from medcoss_components.doctor.findings import ERROR, OK, WARNING, Finding
from medcoss_components.doctor.places import check_folder, existing_parent
from medcoss_components.doctor.run import DataCase
from medcoss_components.errors import InputError
from medcoss_components.zoo.bundle_needs import StoreNeed, bundle_needs, manifest_needs

SHOWN = 8  # remarks on a manifest that are shown; `medcoss manifest check` lists all


def check_data(case: DataCase, rooms: dict[Path, int]) -> Iterator[Finding]:
    """Everything about one manifest; nothing further when it cannot be read.

    Args:
        case: what to look at.
        rooms: folder of stores -> bytes that are needed there; what this manifest needs is added.
    """
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
    yield from _stores(case, manifest, rooms)


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
        texts = manifest.modality.dimension == 1
        advice = "" if texts else "`medcoss manifest check` opens every file too"
        fine = "no text is empty" if texts else "all files are there, none twice"
        yield Finding(OK, "items", f"{fine}, no group in two splits", advice)


def _stores(case: DataCase, manifest: Manifest, rooms: dict[Path, int]) -> Iterator[Finding]:
    """Whether the bundle takes the manifest, and which stores are missing; their bytes go to ``rooms``."""
    try:
        needs = _needs(case, manifest)
    except InputError as error:
        yield Finding(ERROR, "bundle", str(error), "give the manifest and the settings that the training will get")
        return
    if case.bundle is not None:
        yield Finding(OK, "bundle", f"{case.bundle.resolve().name} takes this manifest")
    estimates = [None if need.there else need.estimate() for need in needs]
    for need, estimate in zip(needs, estimates, strict=True):
        yield _store(need, estimate)
        if estimate is not None and need.split == "training":
            yield from _regions(need, estimate)
    total = sum(map(_missing, needs, estimates))
    if total and (case.bundle or case.store_dir):
        folder = Path(needs[0].plan.store_dir).resolve()
        if case.store_dir is None and folder not in rooms:  # one that was named is looked at with the other folders
            yield from check_folder(folder, "store folder")
        rooms[folder] = rooms.get(folder, 0) + total + max(map(_joining, needs, estimates))


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
    if need.there is None:
        value += ", if it is not there already"
    if not estimate.bad:
        return Finding(OK, name, value)
    value = f"{value}; {estimate.bad} of {estimate.tried} items that were tried cannot be prepared: {estimate.reason}"
    status = ERROR if estimate.bad == estimate.tried else WARNING
    return Finding(status, name, value, "repair or leave out such items; `medcoss manifest check` opens every file")


def _regions(need: StoreNeed, estimate: StoreEstimate) -> Iterator[Finding]:
    """Regions that none of the tried masks has: a training without a voxel of one stops, once all are prepared."""
    masks, held = estimate.tried - estimate.bad, set(estimate.values)
    missing = [name for name, values in need.regions.items() if not held.intersection(values)]
    if not masks or not missing:
        return
    value = f"no voxel of {', '.join(missing)} in {masks} of {estimate.items} masks; they hold {sorted(held)}"
    status = ERROR if masks == estimate.items else WARNING
    yield Finding(status, "regions", value, "compare the masks with the regions of the bundle (--set regions=...)")


def _missing(need: StoreNeed, estimate: StoreEstimate | None) -> int:
    """Bytes still to write; an interrupted preparation has some of them."""
    if estimate is None:
        return 0
    done = folder_bytes(need.plan.work) if need.plan.work.is_dir() else 0
    return max(0, estimate.bytes - done)


def _joining(need: StoreNeed, estimate: StoreEstimate | None) -> int:
    """Bytes that a store of samples takes twice for a while: parts and the shard that they are joined to."""
    if estimate is None or isinstance(need.plan, CasePlan):
        return 0
    return min(estimate.bytes, SHARD_BYTES)


def check_room(rooms: Mapping[Path, int]) -> Iterator[Finding]:
    """Whether the stores of all manifests fit on the disk together."""
    for folder, needed in rooms.items():
        free = shutil.disk_usage(existing_parent(folder)).free
        value = f"about {size_text(needed)} needed in {folder}, {size_text(free)} free"
        if needed <= free:
            yield Finding(OK, "stores", value)
        else:
            yield Finding(ERROR, "stores", value, "free some room, or choose another folder with --store-dir")
