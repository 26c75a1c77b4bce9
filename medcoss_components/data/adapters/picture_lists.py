"""Pictures of a data set by what their name says, and settings that choose some of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from medcoss_components.data.adapters.findings import LeftOut
from medcoss_components.errors import InputError

LISTED = 1000
"""Missing files that are named one by one; of more only the number is told."""
Key = TypeVar("Key", bound=Hashable)
Row = TypeVar("Row")


def by_key(
    files: Iterable[Path], root: Path, key: Callable[[Path], Key | None]
) -> tuple[dict[Key, Path], list[LeftOut], list[Path]]:
    """Files by a key that each has once.

    Args:
        files: in the order in which the first of equal keys wins.
        root: that the listed places count from.
        key: what a file is called by; None: it is something else.

    Returns:
        key -> file, those whose key another file has, and those that are something else.
    """
    found, left, others = dict[Key, Path](), list[LeftOut](), list[Path]()
    for path in files:
        name = key(path)
        if name is None:
            others.append(path)
        elif (first := found.setdefault(name, path)) != path:
            left.append(
                LeftOut(path.relative_to(root).as_posix(), f"{first.relative_to(root).as_posix()} is the same image")
            )
    return found, left, others


def chosen(settings: Mapping[str, Any], name: str, known: Collection[str]) -> tuple[str, ...] | None:
    """Some of the known names; a single text is one of them, None stands for all.

    >>> chosen({"views": "PA"}, "views", ["PA", "AP"]), chosen({"views": None}, "views", ["PA"])
    (('PA',), None)

    Raises:
        InputError: an empty list, something else, or a name that is not known.
    """
    value = settings.get(name)
    if value is None:
        return None
    names = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list | tuple) else ()
    if not names or not all(entry in known for entry in names):
        raise InputError(f"settings: {name} must be null or list some of {', '.join(sorted(known))}, got {value!r}.")
    return names


def only_chosen(
    rows: Sequence[Row], kind: Callable[[Row], str], wanted: Collection[str] | None, *, setting: str
) -> tuple[list[Row], list[LeftOut]]:
    """Rows of the wanted kinds; of each other kind, how many there are.

    Args:
        rows: all of them.
        kind: of a row.
        wanted: kinds that stay; None: all.
        setting: name of the setting that says so.
    """
    if wanted is None:
        return list(rows), []
    counts = Counter(map(kind, rows))
    why = f"{{}} images, as {setting} is set to {', '.join(wanted)}"
    left = [LeftOut(name, why.format(counts[name])) for name in sorted(set(counts) - set(wanted))]
    return [row for row in rows if kind(row) in wanted], left


def missing_files(places: Sequence[str], where: str, why: str) -> list[LeftOut]:
    """What is named but not there: one by one, or its number where much is missing, as after a download in part.

    Args:
        places: images, or rows that name them.
        where: what names them.
        why: the reason.
    """
    if len(places) > LISTED:
        return [LeftOut(where, f"{len(places)} images: {why}")]
    return [LeftOut(place, why) for place in places]
