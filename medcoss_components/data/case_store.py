"""Labelled cases of one modality and split, prepared once and memory-mapped.

    <store_dir>/<modality>-cases-<split>-<key>/   index.json  report.json  case-000000.{image,mask,positions}.npy ...

``index.json`` says how they were made, ``report.json`` what was left out and why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from medcoss_components.data.building import check_report
from medcoss_components.data.case_building import CASE_FORMAT, CasePlan, build_cases
from medcoss_components.data.cases import CaseGeometry, case_settings, resolve_case_preparation
from medcoss_components.data.manifest import Manifest, read_manifest
from medcoss_components.data.modalities import Modality, get_modality
from medcoss_components.errors import InputError
from medcoss_components.files import read_json


@dataclass(frozen=True, kw_only=True)
class Case:
    """One prepared case.

    Args:
        id, group: of the manifest's item.
        image: (C, *S) in stored dtype, a read-only memory map.
        mask: (*S) uint8, a read-only memory map.
        geometry: the way back to the source's grid.
        image_path, mask_path: of the source.
    """

    id: str
    group: str
    image: np.ndarray
    mask: np.ndarray
    geometry: CaseGeometry
    image_path: Path
    mask_path: Path


class CaseStore(Dataset):
    """Prepared cases, memory-mapped; made by :func:`prepare_cases`.

    It pickles as its path, so data loader workers open it anew.

    Args:
        path: its folder.
        root: folder that the paths of the sources start from.

    Attributes:
        modality, key, manifest_hash: see :class:`~medcoss_components.data.store.Store`.
        ids, groups: of each case.

    Raises:
        InputError: when the folder holds no complete store or a file of it is damaged.
    """

    def __init__(self, path: str | Path, root: str | Path) -> None:
        self.path, self.root = Path(path), Path(root)
        self.index = _read_index(self.path)
        self.modality: Modality = get_modality(self.index["modality"])
        self.key: str = self.index["key"]
        self.manifest_hash: str = self.index["manifest"]["hash"]
        self._cases: list[dict[str, Any]] = self.index["cases"]
        self.ids: list[str] = [case["id"] for case in self._cases]
        self.groups: list[str] = [case["group"] for case in self._cases]

    def __reduce__(self) -> tuple[Any, ...]:
        return CaseStore, (self.path, self.root)

    def __repr__(self) -> str:
        return f"CaseStore({str(self.path)!r}, {len(self)} cases of {self.modality.name})"

    def __len__(self) -> int:
        return len(self._cases)

    def __getitem__(self, row: int) -> Case:
        return self.case(range(len(self))[row])

    def case(self, row: int) -> Case:
        """The whole case, not copied."""
        entry = self._entry(row)
        return Case(
            id=entry["id"],
            group=entry["group"],
            image=self._load(row, "image"),
            mask=self._load(row, "mask"),
            geometry=self.geometry(row),
            image_path=self.root / entry["image"],
            mask_path=self.root / entry["mask"],
        )

    def geometry(self, row: int) -> CaseGeometry:
        """Geometry of a case, without opening its files."""
        return CaseGeometry.from_dict(self._entry(row)["geometry"])

    def values(self, row: int) -> dict[int, int]:
        """Voxels of each mask value but 0."""
        return {int(value): count for value, count in self._entry(row)["values"].items()}

    def positions(self, row: int) -> np.ndarray:
        """(P, 1 + D) int32 foreground positions: mask value, then the index along each axis; at most 10,000."""
        return self._load(row, "positions")

    def window(self, row: int, start: Sequence[int], size: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Copy a window; where it sticks out, the image is filled as padding is and the mask with 0.

        Args:
            row: number of the case.
            start: first index along each axis; may be negative.
            size: of the window along each axis.

        Returns:
            image (C, *size) in stored dtype, mask (*size) uint8.
        """
        image, mask = self._load(row, "image"), self._load(row, "mask")
        fill = self._entry(row)["fill"]
        return cut_window(image, start, size, fill=fill), cut_window(mask, start, size, fill=0)

    @property
    def report(self) -> dict[str, Any]:
        """What was left out: items, samples, bad_share, bad_items with id and reason."""
        return read_json(self.path / "report.json")

    def _entry(self, row: int) -> dict[str, Any]:
        if not 0 <= row < len(self):
            raise InputError(f"row: must be in 0 .. {len(self) - 1} for {self.path.name}, got {row}.")
        return self._cases[row]

    def _load(self, row: int, kind: str) -> np.ndarray:
        return np.load(self.path / f"{self._entry(row)['file']}.{kind}.npy", mmap_mode="r")


def cut_window(array: np.ndarray, start: Sequence[int], size: Sequence[int], *, fill: float) -> np.ndarray:
    """A copy of ``array`` (..., *S) from ``start`` of ``size`` along the last axes, ``fill`` outside of it."""
    spatial = array.shape[array.ndim - len(size) :]
    output: np.ndarray = np.full((*array.shape[: array.ndim - len(size)], *size), fill, array.dtype)
    source, target = [], []
    for first, length, available in zip(start, size, spatial, strict=True):
        low, high = max(0, first), max(0, min(available, first + length))
        source.append(slice(low, max(low, high)))
        target.append(slice(low - first, max(low, high) - first))
    inside, outside = (..., *source), (..., *target)
    output[outside] = array[inside]
    return output


def prepare_cases(
    *,
    manifest: str | Path | Manifest,
    modality: str | Mapping[str, Any] | Modality | None = None,
    input_shape: Sequence[int] | None = None,
    store_dir: str | Path,
    split: str = "training",
    preparation: Mapping[str, Any] | None = None,
    dataset_dir: str | Path | None = None,
    workers: int | None = None,
    max_bad_share: float = 0.01,
    progress: bool = True,
) -> CaseStore:
    """Prepare images and masks of a split, or open what was prepared from the same content before.

    One pass over the files in parallel; a killed run goes on where it was.

    Args:
        manifest: path, or a manifest that was read. Each item's label is the path of its mask, relative to the
            manifest's root.
        modality: name or entry; None takes the manifest's.
        input_shape: what the network reads; cases are at least as large.
        store_dir: folder of all stores.
        split: training, validation or testing.
        preparation: settings over those of the manifest and the modality, see
            :func:`~medcoss_components.data.cases.default_case_preparation`.
        dataset_dir: folder that the manifest's paths start from; None: the manifest's own.
        workers: processes; None: one per core where it pays; 1: this process.
        max_bad_share: share of cases that may be bad; those are left out and listed in ``report.json``.
        progress: show a progress bar with the time left.

    Raises:
        InputError: a wrong argument, more bad cases than allowed (no store is left then), or a full disk.
    """
    _check_arguments(workers, max_bad_share)
    if not isinstance(manifest, Manifest):
        manifest = read_manifest(manifest, dataset_dir)
    manifest.items(split)  # refuses a split that does not exist
    entry = entry_for(manifest, modality, input_shape)
    plan = CasePlan(
        manifest=manifest,
        split=split,
        modality=entry,
        settings=resolve_case_preparation(entry, case_settings(entry, manifest.preparation), preparation),
        store_dir=Path(store_dir),
    )
    if not plan.path.exists():
        build_cases(plan, workers=workers, max_bad_share=max_bad_share, progress=progress)
    store = CaseStore(plan.path, manifest.root)
    check_report(store.report, max_bad_share=max_bad_share, path=plan.path / "report.json")
    return store


def _check_arguments(workers: int | None, max_bad_share: float) -> None:
    if not 0 <= max_bad_share <= 1:
        raise InputError(f"max_bad_share={max_bad_share}: a share must be in 0 .. 1.")
    if workers is not None and workers < 1:
        raise InputError(f"workers={workers}: must be at least 1, or None to choose.")


def entry_for(
    manifest: Manifest, modality: str | Mapping[str, Any] | Modality | None, input_shape: Sequence[int] | None
) -> Modality:
    """The modality entry of a run on a manifest.

    Raises:
        InputError: when the manifest holds another modality.
    """
    entry = get_modality(manifest.modality if modality is None else modality, input_shape=input_shape)
    if entry.name != manifest.modality.name:
        raise InputError(
            f"modality: manifest {manifest.name} holds {manifest.modality.name}, got {entry.name}. "
            f"Give a manifest of {entry.name}, or a bundle or modality of {manifest.modality.name}."
        )
    return entry


def _read_index(path: Path) -> dict[str, Any]:
    """Read and check ``index.json`` and the sizes of the files."""
    if not (path / "index.json").is_file():
        raise InputError(f"{path}: no complete case store (index.json is missing). Prepare it with prepare_cases.")
    index = read_json(path / "index.json")
    if index.get("format") != CASE_FORMAT:
        raise InputError(f"{path}: case format {index.get('format')}, this version reads {CASE_FORMAT}. Prepare again.")
    for case in index["cases"]:
        for kind, size in case["bytes"].items():
            file = path / f"{case['file']}.{kind}.npy"
            found = file.stat().st_size if file.is_file() else None
            if found != size:
                raise InputError(f"{file}: {size} bytes expected, found {found}. Delete the store, prepare it again.")
    return index
