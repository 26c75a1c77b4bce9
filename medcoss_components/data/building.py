"""Preparing a store: many items, several processes, any number of interruptions, one result.

Finished parts stay in the work folder when a run is killed, and the next run goes on. When all parts are done they are
joined to shards.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from medcoss_components.data.build_frame import (
    BuildPlan,
    building,
    check_report,
    hopeless,
    require_good,
    require_room,
    useful_workers,
)
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
from medcoss_components.data.workers import available_cores, run_jobs
from medcoss_components.files import read_json, remove_partial, sha256_json, write_json
from medcoss_components.progress import progress as progress_bar
from medcoss_components.text.vocabulary import Vocabulary

STORE_FORMAT = 1
NOTES = "notes.json"
ENTRY_BYTES = 256  # generous size of a sample's line in items.json

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StorePlan(BuildPlan):
    """The plan of a store of samples."""

    vocabulary: Vocabulary | None

    @property
    def key(self) -> str:
        """SHA-256 over the manifest's content, the split, the modality entry, the settings and the vocabulary."""
        vocabulary = None if self.vocabulary is None else self.vocabulary.hash
        return sha256_json([STORE_FORMAT, self.manifest.hash, self.split, self.entry, dict(self.settings), vocabulary])

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
    with building(plan, lambda: _bytes_needed(plan)) as missing:
        if not missing:
            return
        if not (plan.work / "index.json").is_file():
            jobs = _jobs(plan)
            notes = _all_notes(plan, jobs, workers=workers, max_bad_share=max_bad_share, progress=progress)
            _write_store(plan, jobs, notes)
        _publish(plan)


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
        require_room(plan, _bytes_needed(plan))
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
    require_good(plan, _report(tried, notes), max_bad_share)
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
    useful = useful_workers(plan.modality, sum(len(job.items) for job in jobs))
    return min(available_cores(), useful, len(jobs))


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
