"""What one machine holds: long manifests, large stores, many embeddings; and what a step costs as they grow.

    python benchmarks/scale.py [--quick] [--only manifest] [--record]

Metadata, stores and embeddings are made up. ``--quick`` uses a tenth or less of everything.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from harness import Options, Row, alternate, main
from inputs import embeddings, fabricated_store

from medcoss_components.continual.exemplars import select_exemplars
from medcoss_components.continual.store_view import StoreView
from medcoss_components.data.modalities import Modality
from medcoss_components.data.sampler import PretrainingLoader

SMALL = Modality(name="small_picture", dimension=2, input_shape=(3, 32, 32), stored_channels=1, intensity="unit_range")
"""A modality of small samples: 1 KiB each in the store."""
NETWORK = {"width": 64, "depth": 2, "heads": 4, "decoder_width": 32, "decoder_depth": 1, "vocabulary_size": 200}
NETWORK |= {"patch_2d": (8, 8), "grid_2d": (4, 4)}
OPENING = """
import json, sys, time
from pathlib import Path
def status(key):
    return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").open() if line.startswith(key))
started = time.perf_counter()
from medcoss_components.data.manifest import read_manifest
imported, before = time.perf_counter(), status("VmRSS")
manifest = read_manifest(sys.argv[1])
seconds = time.perf_counter() - imported
print(json.dumps({"seconds": seconds, "bytes": status("VmHWM"), "growth": status("VmHWM") - before,
                  "count": sum(manifest.counts.values())}))
"""


def long_manifest(folder: Path, count: int) -> Path:
    """A manifest of ``count`` radiographs; the files that it names do not exist."""
    import pyarrow
    import pyarrow.parquet

    numbers, testing = range(count), count // 10
    table = {
        "split": ["testing" if number < testing else "training" for number in numbers],
        "id": [f"p{number // 4:07d}-s{number:08d}" for number in numbers],
        "image": [f"files/p{number % 100:02d}/p{number // 4:07d}/s{number:08d}.jpg" for number in numbers],
        "text": pyarrow.nulls(count, pyarrow.string()),
        "label": [number % 14 for number in numbers],
        "group": [f"{number // 4:016x}" for number in numbers],
    }
    folder.mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.table(table), folder / "items.parquet", compression="zstd")
    texts = {"name": "made-up", "version": "1", "licence": "CC0-1.0", "source": "made up", "modality": "xray"}
    lists: dict[str, Any] = {"training": [], "validation": [], "testing": [], "items_file": "items.parquet"}
    counts = {"training": count - testing, "validation": 0, "testing": testing}
    path = folder / "manifest.json"
    path.write_text(json.dumps({"schema_version": 1, **texts, **lists, "counts": counts}))
    return path


def open_apart(path: Path) -> dict[str, float]:
    """Open a manifest in a fresh process: seconds, peak memory of the process, its growth, number of items."""
    command = [sys.executable, "-c", OPENING, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def manifest_rows(what: str, options: Options) -> Row:
    """Seconds or bytes of opening a manifest of 1,000,000 items."""
    count = 100_000 if options.quick else 1_000_000
    folder = options.folder / "manifest"
    path = folder / "manifest.json" if folder.exists() else long_manifest(folder, count)
    opened = [open_apart(path) for _ in range(options.pairs_of())]
    figures = tuple(found[what] for found in opened)
    unit, target = {"seconds": ("s", 3.0), "bytes": ("B", 1e9)}[what]
    name = {"seconds": "manifest_time", "bytes": "manifest_memory"}[what]
    text = {"seconds": "open a manifest of", "bytes": "peak memory of the process that opens"}[what]
    note = f"of that, {max(found['growth'] for found in opened) / 1e6:.0f} MB came with the manifest."
    return Row(name, f"{text} {count:,} items", unit, (), figures, target=target, kind="limit", note=note)


def family_bytes() -> int:
    """Memory of this process and its children that no file backs; pages that they share count once."""
    total = 0
    for pid in [os.getpid(), *children()]:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        values = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in text.splitlines()[1:]}
        total += values.get("Pss_Anon", values.get("Pss", 0))
    return total


def children() -> list[int]:
    """Process numbers of this process's children."""
    text = "".join(path.read_text() for path in Path("/proc/self/task").glob("*/children"))
    return [int(number) for number in text.split()]


def growth_row(options: Options, *, count: int = 0, workers: int = 1) -> Row:
    """How much memory grows from the second twentieth of an epoch to its end."""
    count = count or (100_000 if options.quick else 1_000_000)
    store = fabricated_store(options.folder / "growth", SMALL, count)
    loader = PretrainingLoader(store, batch_size=256, num_workers=workers)
    marks, seen, started = [], 0, time.monotonic()
    for number, batch in enumerate(loader):
        seen += batch["count"]
        if number % max(1, len(loader) // 20) == 0:
            marks.append(family_bytes())
    seconds = time.monotonic() - started
    grown = max(marks[2:]) - marks[1]
    what = f"growth of memory over an epoch of {count:,} small samples"
    near, end = marks[1] / 1e6, marks[-1] / 1e6
    note = f"{seen:,} samples in {seconds:.0f} s; {near:.0f} MB near the start, {end:.0f} MB at the end."
    return Row("epoch_growth", what, "B", (), (float(max(0, grown)),), target=50e6, kind="limit", note=note)


def selection_row(options: Options, *, count: int = 0, width: int = 768) -> Row:
    """Seconds of choosing exemplars among 400,000 embeddings with 4,000 clusters; measured once."""
    count = count or (20_000 if options.quick else 400_000)
    clusters = max(1, count // 100)
    features = embeddings(count, width, np.random.default_rng(0))
    started = time.perf_counter()
    select_exemplars(features, count=5 * clusters, clusters=clusters, seed=0)
    seconds = time.perf_counter() - started
    what = f"exemplars of {count:,} x {width}, {clusters:,} clusters"
    return Row("selection_large", what, "s", (), (seconds,), target=1200.0, kind="limit")


def stepper(store: Any, buffers: list[Any], steps: int) -> Callable[[], float]:
    """Side: seconds per step, read and trained, of a small network over a store and its buffers."""
    import torch
    from sides import Setting, trainer_over

    from medcoss_components.networks.pretraining import PretrainingModel

    torch.manual_seed(0)
    setting = Setting(SMALL, batch=16, precision="float32")
    loader = PretrainingLoader(store, buffers=buffers, batch_size=16)
    trainer = trainer_over(loader, setting, PretrainingModel(preset="demo", **NETWORK), None)
    turn = _endless(loader)
    next(turn)

    def side() -> float:
        started = time.perf_counter()
        for batch in islice(turn, steps):
            trainer.state.iteration += 1
            trainer._iteration(trainer, batch)
        return (time.perf_counter() - started) / steps

    return side


def _endless(loader: PretrainingLoader) -> Iterator[dict[str, Any]]:
    while True:
        yield from loader


def items_row(options: Options, *, small: int = 10_000, large: int = 0) -> Row:
    """Time per step over a large store against a small one."""
    large = large or (100_000 if options.quick else 1_000_000)
    stores = [fabricated_store(options.folder / f"items-{count}", SMALL, count) for count in (small, large)]
    sides = [stepper(store, [], 100 if options.quick else 300) for store in stores]
    figures = alternate(*sides, pairs=options.pairs_of(full=9))
    what = f"a step over {large:,} items, against {small:,}"
    return Row("step_by_items", what, "s/step", *figures, target=1.1, kind="share", note="columns: small, large.")


def buffers_row(options: Options, *, small: int = 1_000, large: int = 0) -> Row:
    """Time per step with large buffers against small ones; equal stores, so that buffers have their own share."""
    large = large or (10_000 if options.quick else 100_000)
    store = fabricated_store(options.folder / "buffers", SMALL, 2 * large)
    sides = []
    for count in (small, large):
        current, buffer = StoreView(store, range(count)), StoreView(store, range(large, large + count))
        sides.append(stepper(current, [buffer], 100 if options.quick else 300))
    figures = alternate(*sides, pairs=options.pairs_of(full=9))
    what = f"a step with {large:,} items and a buffer of as many, against {small:,}"
    return Row("step_by_buffers", what, "s/step", *figures, target=1.1, kind="share", note="half the steps rehearse.")


ROWS = {
    "manifest_time": partial(manifest_rows, "seconds"),
    "manifest_memory": partial(manifest_rows, "bytes"),
    "epoch_growth": growth_row,
    "selection_large": selection_row,
    "step_by_items": items_row,
    "step_by_buffers": buffers_row,
}

if __name__ == "__main__":
    sys.exit(main(ROWS, name="scale"))
