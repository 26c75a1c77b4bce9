"""Finding items of equal content: copies that would count twice, or stand in training and in testing."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from medcoss_components.data.adapters.findings import Found, LeftOut
from medcoss_components.errors import InputError
from medcoss_components.files import sha256_file, sha256_json
from medcoss_components.progress import progress

DUPLICATES = ("refuse", "drop", "keep")
"""What can happen to items of equal content."""


def without_copies(
    found: list[Found], *, rule: str, by_label: bool = True
) -> tuple[list[Found], list[LeftOut], list[str]]:
    """Items without those that repeat the content of another one.

    Args:
        found: all items.
        rule: one of :data:`DUPLICATES`: "refuse" raises, "drop" leaves the first of equal ones, "keep" leaves all.
        by_label: equal contents with several labels are all dropped, as nobody knows which label is right.

    Returns:
        items that stay, items that were dropped, notes for people.

    Raises:
        InputError: equal contents under the rule "refuse"; the first are named.
    """
    copies = [group for group in _by_content(found) if len(group) > 1]
    if not copies:
        return found, [], []
    count = sum(map(len, copies))
    if rule == "keep":
        return found, [], [f"{count} items share their content with another one (--duplicates drop keeps one of each)."]
    if rule == "refuse":
        shown = "; ".join(" = ".join(item.name for item in group[:3]) for group in copies[:3])
        raise InputError(
            f"{count} items share their content with another one ({shown}). Remove the copies, or give "
            "--duplicates drop to keep one of each."
        )
    dropped = {id(item): why for group in copies for item, why in _dropped(group, by_label=by_label)}
    left = [LeftOut(item.name, dropped[id(item)]) for item in found if id(item) in dropped]
    return [item for item in found if id(item) not in dropped], left, []


def _dropped(group: Sequence[Found], *, by_label: bool) -> list[tuple[Found, str]]:
    if by_label and len({str(item.label) for item in group}) > 1:
        return [(item, "the same content stands with several labels") for item in group]
    return [(item, f"a copy of {group[0].name}") for item in group[1:]]


def _by_content(found: Sequence[Found]) -> list[list[Found]]:
    """Items by content, in order; files are read only where several have the same size."""
    sizes = Counter(_bytes(item) for item in found if item.files and not item.content)
    groups: dict[str, list[Found]] = defaultdict(list)
    for item in progress(found, description="look for copies", unit="item"):
        if item.text is not None:
            content = sha256_json(" ".join(item.text.split()))
        elif item.content or sizes[_bytes(item)] == 1:
            content = item.content or f"alone {item.path}"
        else:
            content = sha256_json([sha256_file(file) for file in item.files])
        groups[content].append(item)
    return list(groups.values())


def _bytes(item: Found) -> int:
    return sum(file.stat().st_size for file in item.files)
