"""The X-rays of any number of manifests as one data set for contrastive pre-training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medcoss_components.data.manifest import Manifest, read_manifest
from medcoss_components.data.modalities import get_modality
from medcoss_components.data.store import Store
from medcoss_components.data.union import StoreUnion, union_of_stores
from medcoss_components.engines.setup import prepared_dataset
from medcoss_components.errors import InputError

ENTRY_KEYS = ("data_manifest", "name", "dataset_dir", "preparation", "max_bad_share")
"""Keys of a manifest's entry: the manifest, and what it has of its own."""


def xray_union(
    *,
    manifests: Sequence[str | Path | Mapping[str, Any]] | str | Path,
    store_dir: str | Path,
    modality: str | Mapping[str, Any] = "xray",
    input_shape: Sequence[int] | None = None,
    split: str = "training",
    preparation: Mapping[str, Any] | None = None,
    workers: int | None = None,
    max_bad_share: float = 0.01,
    optional: bool = False,
) -> StoreUnion | None:
    """Prepare one split of every manifest, where that was not done before, and join the stores.

    Args:
        manifests: paths, or entries with ``data_manifest`` and perhaps ``name``, ``dataset_dir``, ``preparation`` and
            ``max_bad_share`` of their own; one path stands for itself.
        store_dir: folder of all stores.
        modality: name or entry that all of them have.
        input_shape: (C, H, W) that the network reads; None: the modality's.
        split: training, validation or testing. A manifest without items of it is left out.
        preparation: settings for all, see :func:`~medcoss_components.data.preparation.default_preparation`.
        workers: processes of a preparation.
        max_bad_share: share of a manifest's items that may be bad.
        optional: None instead of an error when no manifest has items of the split (validation).

    Returns:
        The union; data sets bear the manifests' names, or those that the entries give.

    Raises:
        InputError: no manifest, one twice, two data sets of one name, no items at all, or what is wrong with a
            manifest, which the message names.
    """
    entry = get_modality(modality, input_shape=input_shape)
    shared: dict[str, Any] = {
        "modality": entry,
        "store_dir": store_dir,
        "split": split,
        "workers": workers,
        "optional": True,
    }
    shared |= {"preparation": preparation, "max_bad_share": max_bad_share}
    stores: list[Store] = []
    names: list[str] = []
    parts: list[str | None] = []
    seen: dict[str, Path] = {}
    for given in manifest_entries(manifests):
        manifest, store = _prepared(given, seen, shared)
        if store is not None:
            stores.append(store)
            names.append(str(given.get("name") or manifest.name))
            parts += _body_parts(manifest, split, store)
    if not stores and optional:
        return None
    if not stores:
        raise InputError(f"manifests: none of {len(seen)} has items in the split {split}; give one that has")
    return union_of_stores(stores, names, body_parts=parts)


def _prepared(
    given: Mapping[str, Any], seen: dict[str, Path], shared: Mapping[str, Any]
) -> tuple[Manifest, Store | None]:
    """A manifest and its store; None where the split has no items. ``seen`` receives the manifest."""
    path = Path(given["data_manifest"])
    own = {key: given[key] for key in ENTRY_KEYS[2:] if key in given}
    try:
        manifest = read_manifest(path, dataset_dir=own.get("dataset_dir"))
        _check_new(manifest, path, seen)
        return manifest, prepared_dataset(manifest=path, **{**shared, **own})
    except InputError as error:
        raise _named(error, path) from error


def manifest_entries(manifests: Sequence[str | Path | Mapping[str, Any]] | str | Path) -> list[dict[str, Any]]:
    """Entries of all manifests.

    Raises:
        InputError: none, one without a manifest, or an unknown key.
    """
    listed = [manifests] if isinstance(manifests, str | Path) else list(manifests)
    if not listed or not all(listed):
        raise InputError(
            "manifests: give the paths of one or more manifests (JSON), for example ['chest/manifest.json']"
        )
    entries = [dict(given) if isinstance(given, Mapping) else {"data_manifest": given} for given in listed]
    for number, entry in enumerate(entries):
        unknown = sorted(set(entry) - set(ENTRY_KEYS))
        if unknown or not entry.get("data_manifest"):
            problem = f"{unknown[0]!r} is no key" if unknown else "data_manifest is missing"
            raise InputError(f"manifests[{number}]: {problem}; the keys are {', '.join(ENTRY_KEYS)}")
    return entries


def _check_new(manifest: Manifest, path: Path, seen: dict[str, Path]) -> None:
    if manifest.hash in seen:
        raise InputError(f"{path}: the same data set as {seen[manifest.hash]}; name it once")
    seen[manifest.hash] = path


def _named(error: InputError, path: Path) -> InputError:
    text = str(error)
    return error if text.startswith(str(path)) else InputError(f"{path}: {text}")


def _body_parts(manifest: Manifest, split: str, store: Store) -> list[str | None]:
    """Body part of every sample; samples of one item are called ``<item id>#0``, ``#1``, ..."""
    known = {item.id: item.body_part for item in manifest.items(split) if item.body_part is not None}
    return [known.get(name, known.get(name.rsplit("#", 1)[0])) for name in store.ids] if known else [None] * len(store)
