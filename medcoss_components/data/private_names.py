"""Finding identifiers of patients in paths and messages, so that none of them is written or printed.

Names of files often hold what their headers and tables hold: ``P-017/ct_20200131.nii.gz``. An identifier is searched as
a sequence of words and numbers, whatever stands between them, in upper or lower case, with or without leading zeros.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache, partial

from medcoss_components.data.identifiers import hash_identifier

LONG = 4
"""Letters and digits from which an identifier is searched everywhere; a shorter one only in its own patient's paths."""
_PARTS = re.compile(r"[^\W\d_]+|\d+")
Parts = tuple[str, ...]


def name_parts(text: str) -> Parts:
    """Words in lower case and numbers without leading zeros.

    >>> name_parts("P-017/Roe_CT3.png")
    ('p', '17', 'roe', 'ct', '3', 'png')
    """
    return tuple(_plain(match.group()) for match in _PARTS.finditer(text))


def _plain(part: str) -> str:
    return part.lstrip("0") or "0" if part[0].isdecimal() else part.casefold()


class KnownIdentifiers:
    """What a source calls its patients, and where that stands in a text.

    Args:
        salt: of the hashes that replace identifiers.

    >>> known = KnownIdentifiers("0123456789abcdef")
    >>> known.add("P-0017", ["Jane Roe"])
    >>> known.occurs("scans/JANE_ROE/ct.nii"), known.occurs("scans/p17.nii"), known.occurs("scans/p17.nii", "P-0017")
    (True, False, True)
    """

    def __init__(self, salt: str) -> None:
        self._owners: dict[Parts, set[str]] = defaultdict(set)
        self._lengths: dict[str, set[int]] = defaultdict(set)
        self._hash = cache(partial(hash_identifier, salt=salt))

    def add(self, patient: str, identifiers: Iterable[str] = ()) -> None:
        """Remember a patient, and what else points at them, such as a name or the number of a study."""
        owner = self._hash(patient)
        for parts in filter(None, map(name_parts, (patient, *identifiers))):
            self._owners[parts].add(owner)
            self._lengths[parts[0]].add(len(parts))

    def occurs(self, text: str, patient: str = "") -> bool:
        """Whether a text holds a known identifier; a short one counts when it belongs to ``patient``."""
        return next(self._hits(text, patient), None) is not None

    def masked(self, text: str, patient: str = "") -> str:
        """The text with the patient's hash, which is their group, in the place of each identifier."""
        pieces, end = [], 0
        for first, last, owner in self._hits(text, patient):
            pieces += [text[end:first], owner]
            end = last
        return "".join([*pieces, text[end:]])

    def _hits(self, text: str, patient: str) -> Iterator[tuple[int, int, str]]:
        """Start, end and owner's hash of each identifier in a text, from left to right, without overlap."""
        if not self._owners:
            return
        own = self._hash(patient) if patient else ""
        spans = [match.span() for match in _PARTS.finditer(text)]
        parts = [_plain(text[first:last]) for first, last in spans]
        place = 0
        while place < len(parts):
            length, owner = self._longest(parts, place, own)
            if length:
                yield spans[place][0], spans[place + length - 1][1], owner
            place += max(1, length)

    def _longest(self, parts: list[str], place: int, own: str) -> tuple[int, str]:
        """Number of parts and owner of the longest identifier that begins at a place; 0 where none does."""
        for length in sorted(self._lengths.get(parts[place], ()), reverse=True):
            owners = self._owners.get(candidate := tuple(parts[place : place + length]), ())
            if own in owners:
                return length, own
            if owners and sum(map(len, candidate)) >= LONG:
                return length, min(owners)
        return 0, ""
