"""Preparing the labelled cases of a split: several processes, any number of interruptions, one result.

Every case is a pair of ``.npy`` files and one with foreground positions, in a hidden folder beside the final one. A
note says that a case is whole; the next run goes on with the cases that have none. Renaming the folder makes the
store appear.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medcoss_components.data.build_frame import (
    BuildPlan,
    building,
    hopeless,
    require_good,
    require_room,
    useful_workers,
)
from medcoss_components.data.cases import PreparedCase, prepare_case
from medcoss_components.data.grids import value_counts
from medcoss_components.data.manifest import Item
from medcoss_components.data.masks import names_mask, read_labelled
from medcoss_components.data.modalities import Modality
from medcoss_components.data.workers import available_cores, run_jobs
from medcoss_components.errors import InputError
from medcoss_components.files import atomic_path, is_disk_full, read_json, remove_partial, sha256_json, write_json
from medcoss_components.progress import progress as progress_bar
from medcoss_components.randomness import numpy_generator_for

CASE_FORMAT = 1
POSITIONS = 10_000  # foreground positions kept per case


@dataclass(frozen=True, kw_only=True)
class CasePlan(BuildPlan):
    """The plan of a store of cases."""

    kind = "cases-"

    @property
    def key(self) -> str:
        """SHA-256 over the manifest's content, the split, the modality entry and the settings."""
        return sha256_json(["cases", CASE_FORMAT, self.manifest.hash, self.split, self.entry, dict(self.settings)])


@dataclass(frozen=True, kw_only=True)
class CaseJob:
    """What one worker does at a time: one case."""

    number: int
    item: Item
    root: Path
    modality: Modality
    settings: Mapping[str, Any]
    folder: Path

    def file(self, kind: str) -> Path:
        """Path of ``case-<number>.<kind>.npy``; kinds are image, mask and positions."""
        return self.folder / f"case-{self.number:06d}.{kind}.npy"

    @property
    def note_path(self) -> Path:
        return self.folder / f"case-{self.number:06d}.json"


def build_cases(plan: CasePlan, *, workers: int | None, max_bad_share: float, progress: bool) -> None:
    """Prepare the cases of a plan unless they exist; safe to call from several processes and after an interruption.

    Raises:
        InputError: too many bad cases, no good one, a full disk, or a worker that died.
    """
    with building(plan, lambda: _bytes_needed(plan)) as missing:
        if not missing:
            return
        jobs = _jobs(plan)
        notes = _all_notes(plan, jobs, workers=workers, max_bad_share=max_bad_share, progress=progress)
        tried = [job for job in jobs if job.number in notes]
        ordered = [notes[job.number] for job in tried]
        report = _report(tried, ordered)
        require_good(plan, report, max_bad_share)
        _publish(plan, tried, ordered, report)


def _bytes_needed(plan: CasePlan) -> int:
    """Bytes still to write: as much for each case that is left as a finished one took, at least the model's input."""
    done = [sum(note["bytes"].values()) for job in _jobs(plan) if (note := _finished(job)) is not None]
    shape = plan.modality.stored_shape
    smallest = math.prod(shape) * np.dtype(plan.modality.stored_dtype).itemsize + math.prod(shape[1:])
    each = max(smallest, sum(done) // len(done)) if done else smallest
    return (len(plan.manifest.items(plan.split)) - len(done)) * each


def _jobs(plan: CasePlan) -> list[CaseJob]:
    return [
        CaseJob(
            number=number,
            item=item,
            root=plan.manifest.root,
            modality=plan.modality,
            settings=plan.settings,
            folder=plan.work,
        )
        for number, item in enumerate(plan.manifest.items(plan.split))
    ]


def _all_notes(
    plan: CasePlan, jobs: list[CaseJob], *, workers: int | None, max_bad_share: float, progress: bool
) -> dict[int, dict[str, Any]]:
    """Notes by case, making the missing ones; cases that were bad are tried again. A hopeless run stops early."""
    notes = {job.number: note for job in jobs if (note := _finished(job)) is not None}
    missing = [job for job in jobs if job.number not in notes]
    require_room(plan, _bytes_needed(plan))
    results = run_jobs(store_case, missing, workers=_worker_count(plan, len(missing), workers))
    description = f"prepare {plan.modality.name} cases"
    bar = (
        progress_bar(description=description, total=len(jobs), initial=len(notes), unit="case")
        if progress
        else nullcontext()
    )
    with closing(results), bar as shown:
        for job, note in results:
            notes[job.number] = note
            if shown is not None:
                shown.update(1)
            if hopeless(notes.values(), items=len(jobs), max_bad_share=max_bad_share):
                break
    return notes


def _finished(job: CaseJob) -> dict[str, Any] | None:
    if not job.note_path.is_file():
        return None
    note = read_json(job.note_path)
    whole = "bad" not in note and all(_size(job.file(kind)) == size for kind, size in note["bytes"].items())
    return note if whole else None


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _worker_count(plan: CasePlan, count: int, workers: int | None) -> int:
    useful = useful_workers(plan.modality, count)
    return min(workers or min(available_cores(), useful), max(1, count))


def store_case(job: CaseJob) -> dict[str, Any]:
    """Prepare one case, write its files and return its note.

    Returns:
        ``geometry``, ``fill``, ``values`` (voxels of each mask value but 0) and ``bytes`` of each file; or ``bad``, the
        reason why there is no case.

    Raises:
        OSError: when the disk is full. Anything wrong with the case is noted as a reason instead.
    """
    try:
        case = _prepared(job)
    except Exception as error:
        if isinstance(error, MemoryError) or is_disk_full(error):
            raise
        note: dict[str, Any] = {"bad": _reason(error, job.root)}
    else:
        note = _write_case(job, case)
    write_json(job.note_path, note)
    return note


def _prepared(job: CaseJob) -> PreparedCase:
    item = job.item
    if item.image is None or not item.image.exists():
        raise InputError(f"{item.image}: no such file")
    if not names_mask(item.label, job.modality.dimension):
        raise InputError("the item's label is no path of a mask file")
    array, spacing, mask = read_labelled(item.image, job.root / item.label, modality=job.modality)
    return prepare_case(array, spacing, mask=mask, modality=job.modality, settings=job.settings)


def _write_case(job: CaseJob, case: PreparedCase) -> dict[str, Any]:
    mask = case.mask if case.mask is not None else np.zeros(case.image.shape[1:], np.uint8)
    positions = foreground_positions(mask, seed=job.number)
    for kind, array in {"image": case.image, "mask": mask, "positions": positions}.items():
        with atomic_path(job.file(kind)) as partial, open(partial, "wb") as stream:
            np.save(stream, array)
    return {
        "geometry": case.geometry.to_dict(),
        "fill": case.fill,
        "values": {str(value): count for value, count in value_counts(mask).items() if value},
        "bytes": {kind: _size(job.file(kind)) for kind in ("image", "mask", "positions")},
    }


def foreground_positions(mask: np.ndarray, *, seed: int, limit: int = POSITIONS) -> np.ndarray:
    """Positions where a mask is not 0, at most ``limit``, an equal part for every value that has enough.

    Args:
        mask: (*S) uint8, D axes.
        seed: of the choice where there are more.

    Returns:
        (P, 1 + D) int32: the value, then the index along each axis; ordered by value.
    """
    flat = np.flatnonzero(mask)
    values = mask.reshape(-1)[flat]
    present = np.unique(values)
    chosen = []
    for value in present:
        places = flat[values == value]
        if len(places) > limit // len(present):
            generator = numpy_generator_for(seed, "foreground", int(value))
            places = np.sort(generator.choice(places, limit // len(present), replace=False))
        chosen.append(places)
    places = np.concatenate(chosen) if chosen else flat
    index = np.stack([mask.reshape(-1)[places], *np.unravel_index(places, mask.shape)], axis=1)
    return index.astype(np.int32)


def _reason(error: Exception, root: Path) -> str:
    """Why a case is bad. Other errors than ours may quote headers, which can identify a patient: only their kind."""
    if not isinstance(error, InputError):
        return f"a file could not be read ({type(error).__name__})"
    return str(error).replace(f"{root}{os.sep}", "")


def _report(jobs: list[CaseJob], notes: list[dict[str, Any]]) -> dict[str, Any]:
    bad = [{"id": job.item.id, "reason": note["bad"]} for job, note in zip(jobs, notes, strict=True) if "bad" in note]
    good = len(jobs) - len(bad)
    return {"items": len(jobs), "samples": good, "bad_share": len(bad) / max(1, len(jobs)), "bad_items": bad}


def _publish(plan: CasePlan, jobs: list[CaseJob], notes: list[dict[str, Any]], report: dict[str, Any]) -> None:
    """Write index and report, remove the notes and let the store appear under its name."""
    cases = [
        {
            "id": job.item.id,
            "group": job.item.group,
            "file": f"case-{job.number:06d}",
            "image": _relative(str(job.item.image), plan.manifest.root),
            "mask": job.item.label,
            **note,
        }
        for job, note in zip(jobs, notes, strict=True)
        if "bad" not in note
    ]
    write_json(plan.work / "report.json", report)
    write_json(plan.work / "index.json", _index(plan, cases))
    for job in jobs:
        job.note_path.unlink(missing_ok=True)
    remove_partial(plan.work)
    os.replace(plan.work, plan.path)
    plan.failed_report.unlink(missing_ok=True)


def _index(plan: CasePlan, cases: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "format": CASE_FORMAT,
        "name": plan.name,
        "key": plan.key,
        "split": plan.split,
        "modality": plan.modality.to_dict(),
        "manifest": {"name": plan.manifest.name, "version": plan.manifest.version, "hash": plan.manifest.hash},
        "preparation": dict(plan.settings),
        "cases": cases,
    }


def _relative(path: str, root: Path) -> str:
    return os.path.relpath(path, root).replace(os.sep, "/")
