"""What preparing samples and preparing cases share: the plan, the frame around the work, and what to say of bad items.

Work happens in a hidden folder ``.<name>.work`` beside the final one; renaming it makes the store appear. A lock on
``.<name>.lock`` keeps a second process waiting; the operating system frees it when its holder dies.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from medcoss_components.data.locking import locked
from medcoss_components.data.manifest import Manifest
from medcoss_components.data.modalities import Modality
from medcoss_components.data.store_sizes import size_text
from medcoss_components.errors import InputError
from medcoss_components.files import is_disk_full, remove_partial, write_json

STOP_EARLY = 100  # so many bad items over the limit end a run before all items were tried
REASONS_SHOWN = 3
ITEMS_PER_WORKER = {2: 64, 3: 4}  # fewer than this do not pay for starting another process

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BuildPlan:
    """Everything that decides the bytes of a store, and where it goes."""

    manifest: Manifest
    split: str
    modality: Modality
    settings: Mapping[str, Any]
    store_dir: Path

    kind: ClassVar[str] = ""
    """Part of the name, ends in "-"."""

    @property
    def key(self) -> str:
        """SHA-256 over all that decides the bytes."""
        raise NotImplementedError

    @property
    def entry(self) -> dict[str, Any]:
        """The modality's entry without its description, which changes nothing."""
        return {name: value for name, value in self.modality.to_dict().items() if name != "description"}

    @property
    def name(self) -> str:
        return f"{self.modality.name}-{self.kind}{self.split}-{self.key[:12]}"

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


@contextmanager
def building(plan: BuildPlan, needed: Callable[[], int]) -> Iterator[bool]:
    """Hold the lock of a plan; gives whether there is anything to do, with a clean work folder if so.

    A full disk and a dead worker become messages that say what to do.

    Args:
        plan: what to build.
        needed: bytes still to write; called when the disk is full.

    Raises:
        InputError: a folder that cannot be made, a full disk, or a worker that died.
    """
    try:
        plan.store_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"store_dir {plan.store_dir}: cannot be made ({error.strerror}). Choose a folder that you may write to."
        ) from error
    try:
        with locked(plan.store_dir / f".{plan.name}.lock", what=plan.name):
            missing = not plan.path.exists()
            if missing:
                plan.work.mkdir(exist_ok=True)
                remove_partial(plan.work)
            yield missing
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise no_room(plan, needed()) from error
    except BrokenProcessPool as error:
        raise InputError(
            f"{plan.name}: a preparation process died, most likely for lack of memory. Run again with fewer workers; "
            "finished parts are kept."
        ) from error


def require_room(plan: BuildPlan, needed: int) -> None:
    """Raise InputError when less than ``needed`` bytes are free for the store."""
    if needed > shutil.disk_usage(plan.store_dir).free:
        raise no_room(plan, needed)


def no_room(plan: BuildPlan, needed: int) -> InputError:
    """What to say when the disk is full, or will be; ``needed`` is a lower bound while little is finished."""
    free = shutil.disk_usage(plan.store_dir).free
    more = f"about {size_text(needed)}" if needed > free else "more than that"
    return InputError(
        f"store_dir {plan.store_dir}: the disk is full: {size_text(free)} are free, {plan.name} needs {more}. Free "
        "some room or choose another store_dir; finished parts are kept and nothing unfinished is used. `medcoss "
        "doctor` with the manifest tells how much its stores take."
    )


def useful_workers(modality: Modality, items: int) -> int:
    """Processes that pay for their start with so many items."""
    return -(-items // ITEMS_PER_WORKER[modality.dimension])


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


def require_good(plan: BuildPlan, report: dict[str, Any], max_bad_share: float) -> None:
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
