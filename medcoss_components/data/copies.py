"""Finding items of equal content: copies that would count twice, or stand in training and in testing.

Nothing is read where sizes differ. Of files of one size the first 64 KiB are compared, and only of those that agree in
them the whole: a data set of 500 GB without copies costs a few gigabytes of reading.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from medcoss_components.data.adapters.findings import Found, LeftOut
from medcoss_components.data.workers import available_cores
from medcoss_components.errors import InputError
from medcoss_components.files import sha256_file
from medcoss_components.progress import progress

DUPLICATES = ("refuse", "drop", "keep")
"""What can happen to items of equal content."""
STAYING = ("testing", "validation", "training", "")
"""Of copies, or of a patient's items, in several splits those in the first of these stay: a testing list keeps its
published length."""
PREFIX_BYTES = 1 << 16
_THREADS = 16  # waiting for a disk or a network share needs no core
_PORTION = 4096
_SHOWN = 3


def without_copies(
    found: list[Found], *, rule: str, by_label: bool = True
) -> tuple[list[Found], list[LeftOut], list[str]]:
    """Items without those that repeat the content of another one.

    Args:
        found: all items.
        rule: one of :data:`DUPLICATES`: "refuse" raises, "drop" leaves one of equal ones, "keep" leaves all. The one
            that stays is the first of those in testing, else in validation, else in training.
        by_label: equal contents with several labels are all dropped, as nobody knows which label is right.

    Returns:
        items that stay, items that were dropped, notes for people.

    Raises:
        InputError: equal contents under the rule "refuse"; the first are named.
    """
    copies, broken = equal_contents(found)
    left = [LeftOut(item.name, why) for item, why in broken]
    gone = {id(item) for item, _ in broken}
    if copies and rule == "refuse":
        raise _refused(copies)
    notes = []
    if copies and rule == "keep":
        count = sum(map(len, copies))
        notes = [f"{count} items share their content with another one; all are kept."]
    elif copies:
        dropped = {id(item): why for group in copies for item, why in _dropped(group, by_label=by_label)}
        left += [LeftOut(item.name, dropped[id(item)]) for item in found if id(item) in dropped]
        gone |= set(dropped)
    return [item for item in found if id(item) not in gone], left, notes


def _refused(copies: Sequence[Sequence[Found]]) -> InputError:
    shown = "; ".join(" = ".join(item.name for item in group[:_SHOWN]) for group in copies[:_SHOWN])
    return InputError(
        f"{sum(map(len, copies))} items share their content with another one ({shown}). Remove the copies, or give "
        "--duplicates drop to keep one of each."
    )


def _dropped(group: Sequence[Found], *, by_label: bool) -> list[tuple[Found, str]]:
    if by_label and len({str(item.label) for item in group}) > 1:
        return [(item, "the same content stands with several labels") for item in group]
    kept = min(group, key=lambda item: STAYING.index(item.split) if item.split in STAYING else len(STAYING))
    where = f" in {kept.split}" if len({item.split for item in group}) > 1 and kept.split else ""
    return [(item, f"a copy of {kept.name}{where}") for item in group if item is not kept]


def equal_contents(found: Sequence[Found]) -> tuple[list[list[Found]], list[tuple[Found, str]]]:
    """Items of equal content; the order and the names of an item's files do not count.

    Returns:
        groups of at least two items, in order; items whose files cannot be read, with the reason.
    """
    known = [item for item in found if item.text is not None or item.content]
    to_read = [item for item in found if item.text is None and not item.content and item.files]
    groups = _repeated(zip(known, map(_told_content, known), strict=True))
    places = {id(item): number for number, item in enumerate(found)}
    broken: list[tuple[Found, str]] = []
    candidates = [to_read]
    with ThreadPoolExecutor(min(_THREADS, 4 * available_cores())) as pool:
        for step, key in (("compare sizes", _sizes), ("compare beginnings", _beginnings), ("compare files", _digests)):
            rest: list[list[Found]] = []
            for same, failed in _narrowed(pool, candidates, key, f"look for copies: {step}"):
                rest += same
                broken += failed
            candidates = rest
    groups += candidates
    return sorted(groups, key=lambda group: places[id(group[0])]), broken


def _told_content(item: Found) -> Hashable:
    """Content that needs no file: a digest from the source, or the words of a text."""
    if item.text is None:
        return item.content
    return hashlib.sha256(" ".join(item.text.split()).encode()).digest()


def _repeated(pairs: Iterable[tuple[Found, Hashable]]) -> list[list[Found]]:
    by_key: dict[Hashable, list[Found]] = defaultdict(list)
    for item, key in pairs:
        by_key[key].append(item)
    return [group for group in by_key.values() if len(group) > 1]


def _narrowed(
    pool: ThreadPoolExecutor, candidates: Sequence[list[Found]], key: Callable[[Found], Any], description: str
) -> Iterable[tuple[list[list[Found]], list[tuple[Found, str]]]]:
    """Each group of candidates cut into those of equal key; items without a key come with the reason."""
    items = [item for group in candidates for item in group]
    if not items:
        return
    keys = iter(
        progress(_mapped(pool, partial(_tried, key), items), description=description, total=len(items), delay=1)
    )
    for group in candidates:
        found = [(item, *next(keys)) for item in group]
        yield (
            _repeated((item, value) for item, value, why in found if not why),
            [(item, why) for item, _, why in found if why],
        )
    next(keys, None)  # there is none; the bar comes to its end


def _mapped(pool: ThreadPoolExecutor, function: Callable[[Found], Any], items: Sequence[Found]) -> Iterator[Any]:
    """Results in order; jobs are handed out in portions, as a job waiting in a pool takes some kilobytes."""
    for start in range(0, len(items), _PORTION):
        yield from pool.map(function, items[start : start + _PORTION])


def _tried(key: Callable[[Found], Any], item: Found) -> tuple[Any, str]:
    try:
        return key(item), ""
    except OSError as error:
        return None, f"cannot be read ({error.strerror or type(error).__name__})"


def _sizes(item: Found) -> tuple[int, ...]:
    return tuple(sorted(file.stat().st_size for file in item.files))


def _beginnings(item: Found) -> tuple[bytes, ...]:
    return tuple(sorted(_beginning(file) for file in item.files))


def _beginning(file: Path) -> bytes:
    with open(file, "rb") as stream:
        return hashlib.sha256(stream.read(PREFIX_BYTES)).digest()


def _digests(item: Found) -> tuple[str, ...]:
    return tuple(sorted(sha256_file(file) for file in item.files))
