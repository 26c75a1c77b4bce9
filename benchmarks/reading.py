"""Samples read per second by one worker, in random order, up to the tensors that a model reads.

    python benchmarks/reading.py [--quick] [--record]

Ours reads a prepared store in a thread; the straightforward side reads the files in a process of torch's loader.
``read_ct`` gives it sub-volumes that were cut to the model's size before, its best case; ``read_ct_whole`` lets it cut
them from whole volumes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from harness import Options, Row, alternate, main
from inputs import grey_picture, smooth_volume
from straightforward.reading import CutVolumes, Radiographs, WholeVolumes
from torch.utils.data import DataLoader, Dataset, Subset

from medcoss_components.continual.store_view import StoreView
from medcoss_components.data.manifest import Item, Manifest
from medcoss_components.data.modalities import Modality, get_modality
from medcoss_components.data.sampler import PretrainingLoader
from medcoss_components.data.store import Store, prepare_store
from medcoss_components.data.transforms import to_model_input
from medcoss_components.data.writers import write_nifti

BATCH = 16


@dataclass(frozen=True)
class Data:
    """The same samples as files and as a store."""

    files: Dataset
    store: Store


def manifest_of(paths: Iterable[Path], entry: Modality, root: Path) -> Manifest:
    """A manifest whose training items are the files."""
    items = tuple(Item(id=path.name, image=path, group=path.name) for path in paths)
    texts = {"name": "made up", "version": "1", "licence": "CC0-1.0", "source": "made up"}
    return Manifest(modality=entry, root=root, training=items, **texts)


def cut_volumes(folder: Path, count: int, entry: Modality) -> Data:
    """Sub-volumes of the model's size, one .nii.gz each."""
    generator = np.random.default_rng(0)
    paths = [folder / f"{number:04d}.nii.gz" for number in range(count)]
    for path in paths:
        write_nifti(path, smooth_volume(entry.input_shape[1:], generator), (5.0, 1.0, 1.0))
    manifest = manifest_of(paths, entry, folder)
    store = prepare_store(manifest=manifest, modality=entry, store_dir=folder / "stores", workers=1, progress=False)
    return Data(CutVolumes(paths), store)


def whole_volumes(folder: Path, count: int, entry: Modality, side: int = 512, slices: int = 64) -> Data:
    """Volumes of ``slices`` square slices; every ``depth`` slices are a sample."""
    generator, depth = np.random.default_rng(0), entry.input_shape[1]
    paths = [folder / f"{number:04d}.nii.gz" for number in range(max(1, count * depth // slices))]
    for path in paths:
        write_nifti(path, smooth_volume((slices, side, side), generator), (2.0, 0.8, 0.8))
    manifest = manifest_of(paths, entry, folder)
    store = prepare_store(manifest=manifest, modality=entry, store_dir=folder / "stores", workers=1, progress=False)
    starts = [(number, first) for number in range(len(paths)) for first in range(0, slices, depth)]
    return Data(WholeVolumes(paths, starts, depth, entry.input_shape[2:]), store)


def radiographs(folder: Path, count: int, entry: Modality, side: int = 1024) -> Data:
    """JPEG pictures."""
    from PIL import Image

    generator = np.random.default_rng(0)
    paths = [folder / f"{number:04d}.jpg" for number in range(count)]
    for path in paths:
        Image.fromarray(grey_picture((side, side), generator)).save(path, quality=95)
    manifest = manifest_of(paths, entry, folder)
    store = prepare_store(manifest=manifest, modality=entry, store_dir=folder / "stores", workers=1, progress=False)
    return Data(Radiographs(paths, entry.input_shape[1:]), store)


def from_files(data: Data, batches: int, workers: int = 1) -> Callable[[], float]:
    """Side: seconds per sample of torch's loader over the files."""
    repeated = Subset(data.files, np.arange((batches + 2) * BATCH) % len(data.files))
    loader = DataLoader(repeated, batch_size=BATCH, shuffle=True, num_workers=workers)
    return lambda: seconds_per_sample(loader, batches)


def from_store(data: Data, batches: int, workers: int = 1) -> Callable[[], float]:
    """Side: seconds per sample of our loader over the store, converted to float as the training step does."""
    repeated = StoreView(data.store, np.arange((batches + 2) * BATCH) % len(data.store))
    loader = PretrainingLoader(repeated, batch_size=BATCH, num_workers=workers)
    entry = data.store.modality
    return lambda: seconds_per_sample((to_model_input(entry, batch["raw"]) for batch in loader), batches)


def seconds_per_sample(batches: Iterable[torch.Tensor], count: int) -> float:
    """Seconds per sample from the first batch to the ``count``-th after it; the start of the worker is left out."""
    iterator = iter(batches)
    next(iterator)
    started = time.perf_counter()
    for _ in range(count):
        next(iterator)
    return (time.perf_counter() - started) / (count * BATCH)


MAKERS = {"read_ct": cut_volumes, "read_ct_whole": whole_volumes, "read_xray": radiographs}
SETTINGS = {
    "read_ct": ("ct", "read CT sub-volumes cut beforehand (.nii.gz 16 x 192 x 192)", 10.0),
    "read_ct_whole": ("ct", "read CT sub-volumes of whole volumes (.nii.gz 64 x 512 x 512)", 10.0),
    "read_xray": ("xray", "read X-rays (JPEG 1024 x 1024)", 10.0),
}
"""Row -> (modality, what, target)."""


def reading_row(
    name: str, options: Options, *, entry: Modality | None = None, count: int = 0, workers: int = 1, **sizes: int
) -> Row:
    """Measure seconds per sample."""
    modality, what, target = SETTINGS[name]
    count = count or (64 if options.quick else 160)
    folder = options.folder / name
    folder.mkdir(parents=True)
    data = MAKERS[name](folder, count, entry or get_modality(modality), **sizes)
    few, many = (2, 50) if options.quick or name == "read_ct_whole" else (6, 100)
    sides = from_files(data, few, workers), from_store(data, many, workers)
    figures = alternate(*sides, pairs=options.pairs_of(), warmup=1)
    note = f"{len(data.store)} samples, batches of {BATCH}, files and store in the page cache."
    return Row(name, what, "s/sample", *figures, target=target, note=note)


ROWS = {name: partial(reading_row, name) for name in SETTINGS}

if __name__ == "__main__":
    sys.exit(main(ROWS))
