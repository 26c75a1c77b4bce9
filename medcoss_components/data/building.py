"""Preparing a store: many items, several processes, any number of interruptions, one result.

Work happens in a hidden folder ``.<name>.work`` beside the final one. Finished parts stay there when a run is killed,
and the next run goes on. When all parts are done they are joined to shards, and renaming the folder makes the
store appear. A lock on ``.<name>.lock`` keeps a second process waiting; the operating system frees it when its
holder dies.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medcoss_components.data.locking import locked
from medcoss_components.data.manifest import Manifest
from medcoss_components.data.modalities import Modality
from medcoss_components.data.preparation import gives_several
from medcoss_components.data.shards import (
    PartJob,
    file_blocks,
    finished_note,
    group_parts,
    prepare_part,
    sample_bytes,
    sample_id,
    samples_per_shard,
    shard_entry,
    shard_name,
    split_into_jobs,
    stored_dtype,
    write_shard,
)
from medcoss_components.data.store_sizes import size_text
from medcoss_components.data.workers import available_cores, run_jobs
from medcoss_components.errors import InputError
from medcoss_components.files import is_disk_full, read_json, remove_partial, sha256_json, write_json
from medcoss_components.progress import progress as progress_bar
from medcoss_components.text.vocabulary import Vocabulary

STORE_FORMAT = 1
NOTES = "notes.json"
STOP_EARLY = 100  # so many bad items over the limit end a run before all items were tried
REASONS_SHOWN = 3
ENTRY_BYTES = 256  # generous size of a sample's line in items.json
ITEMS_PER_WORKER = {2: 64, 3: 4}  # fewer than this do not pay for starting another process

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StorePlan:
    """Everything that decides the bytes of a store, and where it goes."""

    manifest: Manifest
    split: str
    modality: Modality
    settings: Mapping[str, Any]
    vocabulary: Vocabulary | None
    store_dir: Path

    @property
    def key(self) -> str:
        """SHA-256 over the manifest's content, the split, the modality entry, the settings and the vocabulary."""
        entry = {name: value for name, value in self.modality.to_dict().items() if name != "description"}
        vocabulary = None if self.vocabulary is None else self.vocabulary.hash
        return sha256_json([STORE_FORMAT, self.manifest.hash, self.split, entry, dict(self.settings), vocabulary])

    @property
    def name(self) -> str:
        return f"{self.modality.name}-{self.split}-{self.key[:12]}"

    @property
    def path(self) -> Path:
        return self.store_dir / self.name

    @property
    def work(self) -> Path:
        return self.store_dir / f".{self.name}.work"

    @property
    def failed_report(self) -> Path:
        """Where the report goes when no store comes of it."""
        return self.store_dir / f"{self.name}.report.json"

    @property
    def dtype(self) -> Any:
        return stored_dtype(self.modality, self.vocabulary)

    @property
    def sample_bytes(self) -> int:
        return sample_bytes(self.modality, self.dtype)


def build_store(plan: StorePlan, *, workers: int | None, max_bad_share: float, progress: bool) -> None:
    """Prepare the store of a plan unless it exists; safe to call from several processes and after any interruption.

    Args:
        plan: what to build.
        workers: processes; None takes one per available core where there is enough to do, 1 stays in this process.
        max_bad_share: bad items / items that is tolerated.
        progress: whether to show a bar.

    Raises:
        InputError: too many bad items, no sample at all, a full disk, or a worker that died.
    """
    make_store_dir(plan.store_dir)
    lock = locked(plan.store_dir / f".{plan.name}.lock", what=plan.name)
    with explain_failures(plan.store_dir, plan.name, lambda: _bytes_needed(plan)), lock:
        if plan.path.exists():
            return
        plan.work.mkdir(exist_ok=True)
        remove_partial(plan.work)
        if not (plan.work / "index.json").is_file():
            jobs = _jobs(plan)
            notes = _all_notes(plan, jobs, workers=workers, max_bad_share=max_bad_share, progress=progress)
            _write_store(plan, jobs, notes)
        _publish(plan)


def make_store_dir(folder: Path) -> None:
    """Make the folder of the stores; raise InputError where that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"store_dir {folder}: cannot be made ({error.strerror}). Choose a folder that you may write to."
        ) from error


@contextmanager
def explain_failures(store_dir: Path, name: str, needed: Callable[[], int]) -> Iterator[None]:
    """Turn a full disk and a dead worker into messages that say what to do.

    Args:
        store_dir: folder of the stores.
        name: of the store that is being prepared.
        needed: bytes still to write; called when the disk is full.
    """
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise no_room(store_dir, name, needed()) from error
    except BrokenProcessPool as error:
        raise InputError(
            f"{name}: a preparation process died, most likely for lack of memory. Run again with fewer workers; "
            "finished parts are kept."
        ) from error


def require_room(store_dir: Path, name: str, needed: int) -> None:
    """Raise InputError when less than ``needed`` bytes are free for the store ``name``."""
    if needed > shutil.disk_usage(store_dir).free:
        raise no_room(store_dir, name, needed)


def no_room(store_dir: Path, name: str, needed: int) -> InputError:
    """What to say when the disk is full, or will be; ``needed`` is a lower bound while little is finished."""
    free = shutil.disk_usage(store_dir).free
    more = f"about {size_text(needed)}" if needed > free else "more than that"
    return InputError(
        f"store_dir {store_dir}: the disk is full: {size_text(free)} are free, {name} needs {more}. Free some room or "
        "choose another store_dir; finished parts are kept and nothing unfinished is used. `medcoss doctor` with the "
        "manifest tells how much its stores take."
    )


def _bytes_needed(plan: StorePlan) -> int:
    """Bytes still to write: by the samples per item so far, at least one sample for each item that is left."""
    if (plan.work / NOTES).is_file():
        samples = sum(sum(note["counts"]) for note in read_json(plan.work / NOTES))
        joined = sum(path.stat().st_size for path in plan.work.glob("shard-*.npy"))
        return max(0, samples * plan.sample_bytes - joined) + samples * ENTRY_BYTES
    counts = [sum(note["counts"]) for note in _notes_on_disk(plan)]
    items_done = sum(len(note["counts"]) for note in _notes_on_disk(plan))
    per_item = max(1.0, sum(counts) / items_done) if items_done else 1.0
    left = len(plan.manifest.items(plan.split)) - items_done
    joining = min(sum(counts), samples_per_shard(plan.sample_bytes)) if left == 0 else 0
    return int((left * per_item + joining) * plan.sample_bytes)


def _notes_on_disk(plan: StorePlan) -> list[dict[str, Any]]:
    return [note for job in _jobs(plan) if (note := finished_note(job)) is not None]


def _jobs(plan: StorePlan) -> list[PartJob]:
    return split_into_jobs(
        plan.manifest.items(plan.split),
        modality=plan.modality,
        settings=plan.settings,
        folder=plan.work,
        root=plan.manifest.root,
        vocabulary=plan.vocabulary,
    )


def _all_notes(
    plan: StorePlan, jobs: list[PartJob], *, workers: int | None, max_bad_share: float, progress: bool
) -> list[dict[str, Any]]:
    """Notes of all parts in order, making the missing ones; written down once the share of bad items is fine."""
    if (plan.work / NOTES).is_file():
        notes = read_json(plan.work / NOTES)
        check_report(_report(jobs, notes), max_bad_share=max_bad_share, path=plan.failed_report)
        return notes
    done = {job.number: note for job in jobs if (note := finished_note(job, with_bad=False)) is not None}
    missing = [job for job in jobs if job.number not in done]
    if not done:
        require_room(plan.store_dir, plan.name, _bytes_needed(plan))
    started, total = sum(len(jobs[number].items) for number in done), len(plan.manifest.items(plan.split))
    results = run_jobs(prepare_part, missing, workers=_worker_count(plan, missing, workers))
    with closing(results), _bar(plan, initial=started, shown=progress) as advance:
        for job, note in results:
            done[job.number] = note
            advance(len(job.items))
            if hopeless(done.values(), items=total, max_bad_share=max_bad_share):
                break
    tried = [job for job in jobs if job.number in done]
    notes = [done[job.number] for job in tried]
    _require_good(plan, _report(tried, notes), max_bad_share)
    write_json(plan.work / NOTES, notes)
    return notes


@contextmanager
def _bar(plan: StorePlan, *, initial: int, shown: bool) -> Iterator[Any]:
    total = len(plan.manifest.items(plan.split))
    context = (
        progress_bar(description=f"prepare {plan.modality.name}", total=total, unit="item", initial=initial)
        if shown
        else nullcontext()
    )
    with context as bar:
        yield (lambda count: None) if bar is None else bar.update


def _worker_count(plan: StorePlan, jobs: list[PartJob], workers: int | None) -> int:
    if plan.modality.dimension == 1 or len(jobs) < 2:
        return 1  # the tokenizer has threads of its own
    if workers is not None:
        return min(workers, len(jobs))
    useful = -(-sum(len(job.items) for job in jobs) // ITEMS_PER_WORKER[plan.modality.dimension])
    return min(available_cores(), useful, len(jobs))


def hopeless(notes: Iterable[Mapping[str, Any]], *, items: int, max_bad_share: float) -> bool:
    """Whether so many items are bad already that trying the rest would waste time.

    Args:
        notes: of the parts (``bad``: reasons by item) or cases (``bad``: the reason) that are done.
        items: of the split.
        max_bad_share: tolerated share.
    """
    found = (note.get("bad") or () for note in notes)
    bad = sum(1 if isinstance(reasons, str) else len(reasons) for reasons in found)
    return bad >= STOP_EARLY and bad > max_bad_share * items


def _report(jobs: list[PartJob], notes: list[dict[str, Any]]) -> dict[str, Any]:
    """What was left out, for ``report.json``."""
    bad = [
        {"id": job.items[int(position)].id, "reason": reason}
        for job, note in zip(jobs, notes, strict=True)
        for position, reason in note["bad"].items()
    ]
    items = sum(len(job.items) for job in jobs)
    return {
        "items": items,
        "samples": sum(sum(note["counts"]) for note in notes),
        "bad_share": len(bad) / max(1, items),
        "constant_samples_left_out": sum(note["constant"] for note in notes),
        "bad_items": bad,
    }


def _require_good(plan: StorePlan, report: dict[str, Any], max_bad_share: float) -> None:
    """Check the report; when it fails, keep it beside the stores for the user to read."""
    try:
        check_report(report, max_bad_share=max_bad_share, path=plan.failed_report)
    except InputError:
        write_json(plan.failed_report, report)
        raise
    if report["bad_items"]:
        count, items = len(report["bad_items"]), report["items"]
        logger.warning("%d of %d items of %s are left out; see %s.", count, items, plan.name, plan.path / "report.json")


def check_report(report: Mapping[str, Any], *, max_bad_share: float, path: Path) -> None:
    """Raise InputError when more items are bad than tolerated, or none is good.

    Args:
        report: content of a ``report.json``.
        max_bad_share: tolerated share.
        path: where the user finds the report.
    """
    bad, items = report["bad_items"], report["items"]
    if items and len(bad) <= max_bad_share * items and report["samples"]:
        return
    if not bad:
        raise InputError(f"{path.name}: the split holds no item to prepare. Give a split with items.")
    first = "; ".join(f"{entry['id']}: {entry['reason'].rstrip('.')}" for entry in bad[:REASONS_SHOWN])
    raise InputError(
        f"{len(bad)} of {items} items are bad (share {len(bad) / items:.4g}), max_bad_share={max_bad_share:g}; "
        f"{report['samples']} samples are good. First: {first}. Full list: {path}. "
        "Repair or remove these items, or raise max_bad_share."
    )


def _write_store(plan: StorePlan, jobs: list[PartJob], notes: list[dict[str, Any]]) -> None:
    """Join the parts to shards and write what else a store holds; the index last."""
    counts = [sum(note["counts"]) for note in notes]
    entries = []
    for number, parts in enumerate(group_parts(counts, samples_per_shard(plan.sample_bytes))):
        path, paths = plan.work / shard_name(number), [jobs[part].data_path for part in parts]
        count = sum(counts[part] for part in parts)
        if not path.is_file():
            shape = tuple(plan.modality.stored_shape)
            write_shard(path, file_blocks(paths), count=count, shape=shape, dtype=plan.dtype)
        for done in paths:
            done.unlink(missing_ok=True)
        entries.append(shard_entry(path, count))
    write_json(plan.work / "items.json", _items(plan, jobs, notes))
    if plan.vocabulary is not None:
        plan.vocabulary.save(plan.work / "vocabulary.json")
    write_json(plan.work / "report.json", _report(jobs, notes))
    write_json(plan.work / "index.json", _index(plan, entries))


def _items(plan: StorePlan, jobs: list[PartJob], notes: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Ids, labels and groups of the samples in their order."""
    several = gives_several(plan.modality, plan.settings)
    pairs = [
        (item, number)
        for job, note in zip(jobs, notes, strict=True)
        for item, count in zip(job.items, note["counts"], strict=True)
        for number in range(count)
    ]
    return {
        "ids": [sample_id(item.id, number, several) for item, number in pairs],
        "labels": [item.label for item, _ in pairs],
        "groups": [item.group for item, _ in pairs],
    }


def _index(plan: StorePlan, shards: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "format": STORE_FORMAT,
        "name": plan.name,
        "key": plan.key,
        "count": sum(shard["count"] for shard in shards),
        "split": plan.split,
        "dtype": plan.dtype.name,
        "sample_shape": list(plan.modality.stored_shape),
        "modality": plan.modality.to_dict(),
        "manifest": {"name": plan.manifest.name, "version": plan.manifest.version, "hash": plan.manifest.hash},
        "preparation": dict(plan.settings),
        "vocabulary_hash": None if plan.vocabulary is None else plan.vocabulary.hash,
        "shards": shards,
    }


def _publish(plan: StorePlan) -> None:
    """Remove what only the preparation needed and let the store appear under its name."""
    for path in (*plan.work.glob("part-*"), plan.work / NOTES):
        path.unlink(missing_ok=True)
    remove_partial(plan.work)
    os.replace(plan.work, plan.path)
    plan.failed_report.unlink(missing_ok=True)
