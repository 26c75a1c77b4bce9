"""Keeping what identifies patients out of manifests, records and messages about one's own files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from medcoss_components.data.adapters.findings import Found, LeftOut
from medcoss_components.data.adapters.own_data import LeftFile
from medcoss_components.data.linking import files_folder, link_items
from medcoss_components.data.private_names import KnownIdentifiers
from medcoss_components.errors import InputError

_COUNTS = re.compile(r" (row \d+|line \d+|\(series of \d+ files\))$")
_COPY_OF = re.compile(r"(?<=^a copy of )")


def told_identifiers(
    found: Iterable[Found], left: Iterable[LeftOut], headers: Mapping[str, Iterable[str]], salt: str
) -> KnownIdentifiers:
    """What the source says of its patients.

    Args:
        found: items with their patients, of headers, tables, columns or patterns.
        left: what was left out; some of it with a patient.
        headers: patient -> what else points at them, such as names and dates.
        salt: of the hashes.
    """
    known = KnownIdentifiers(salt)
    for patient, identifiers in headers.items():
        known.add(patient, identifiers)
    for patient in sorted({*(item.patient for item in found), *map(_patient, left)} - {""}):
        known.add(patient)
    return known


def _patient(entry: LeftOut) -> str:
    return entry.keys.get("patient", "") if isinstance(entry, LeftFile) else ""


def with_hashed_names(
    found: list[Found], known: KnownIdentifiers, path: Path, salt: str
) -> tuple[list[Found], list[LeftOut], list[str]]:
    """Items under hashed names where a path that the manifest ``path`` would name holds a known identifier.

    One such path is enough: all files get links, so that names say nothing about who has none.

    Returns:
        items, those that cannot be linked, notes for people.
    """
    base = os.path.abspath(path.parent)
    count = sum(_tells(item, known, base) for item in found)
    if not count:
        return found, [], []
    linked, left = link_items(found, files_folder(path), salt)
    note = (
        f"The names of {count} of {len(found)} files tell who the patient is: the manifest names links in "
        f"{files_folder(path).name} instead (--keep-names keeps names that are pseudonyms)."
    )
    return linked, left, [note]


def _tells(item: Found, known: KnownIdentifiers, base: str) -> bool:
    """Whether a path of the item, seen from the folder ``base``, holds an identifier."""
    written = [_seen_from(base, file) for file in (item.path, item.label) if isinstance(file, Path)]
    owners = {item.patient, item.keys.get("patient", "")} - {""} or {""}
    return any(known.occurs(name, owner) for name in written for owner in owners)


def _seen_from(base: str, file: Path) -> str:
    """The path that a manifest in ``base`` names; relative paths are slow to make, most files lie below."""
    path = os.path.abspath(file)
    return path[len(base) + 1 :] if path.startswith(base + os.sep) else os.path.relpath(path, base)


def masked_entries(left: Sequence[LeftOut], found: Iterable[Found], known: KnownIdentifiers) -> list[LeftOut]:
    """What was left out, with hashes in the place of identifiers; ``found``: items that ``left`` may name.

    Numbers of rows, lines, files and slices are no identifiers.
    """
    owners = {item.name: item.patient for item in found}
    masked = []
    for entry in left:
        owner = _patient(entry) or owners.get(entry.where, "")
        place, end = _split_off(_COUNTS, entry.where)
        start, rest = _split_off(_COPY_OF, entry.reason)
        masked.append(LeftOut(known.masked(place, owner) + end, start + known.masked(rest, owner) if rest else start))
    return masked


def _split_off(pattern: re.Pattern[str], text: str) -> tuple[str, str]:
    """A text up to and from the place where a pattern is found; whole and "" where it is not."""
    match = pattern.search(text)
    return (text[: match.start()], text[match.start() :]) if match else (text, "")


@contextmanager
def masked_errors(known: KnownIdentifiers) -> Iterator[None]:
    """Replace identifiers in the text of an ``InputError``."""
    try:
        yield
    except InputError as error:
        if (text := known.masked(str(error))) != str(error):
            raise InputError(text) from None
        raise
