"""What a check found, and how a list of findings is shown."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from medcoss_components.errors import InputError

OK, WARNING, ERROR = "ok", "warning", "error"
WIDTH = 118  # characters of a line, at most; fewer in a narrower terminal
NARROWEST = 50


@dataclass(frozen=True)
class Finding:
    """One line of the doctor.

    Args:
        status: "ok", "warning" (a run may be slow, or fail later) or "error" (a run will fail or be wrong).
        what: short name of what was looked at.
        value: what was found.
        advice: what to do; "" where nothing is to do.
        fold: good findings with the same name are shown on one line together; "" for a line of its own.
    """

    status: str
    what: str
    value: str
    advice: str = ""
    fold: str = ""


@dataclass(frozen=True)
class Section:
    """Findings under one heading."""

    title: str
    findings: tuple[Finding, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        rows = [{key: value for key, value in asdict(found).items() if key != "fold"} for found in self.findings]
        return {"title": self.title, "findings": rows}


def gathered(title: str, checks: Iterable[Callable[[], Iterable[Finding]]]) -> Section:
    """Run checks one after the other; one that fails is a finding itself and does not stop the others.

    Args:
        title: of the section.
        checks: functions without arguments; the name of a failing one is shown.
    """
    return Section(title, tuple(found for check in checks for found in _caught(check)))


def _caught(check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except Exception as error:  # a broken installation can fail with anything; that is what the doctor is for
        name = getattr(getattr(check, "func", check), "__name__", "check").strip("_").replace("_", " ")
        # other errors than ours may quote what a file holds
        detail = str(error) if isinstance(error, InputError) else f"failed with {type(error).__name__}"
        yield Finding(ERROR, name, detail, "MEDCOSS_DEBUG=1 and the command at fault show the traceback")


def count(sections: Iterable[Section], status: str) -> int:
    """Number of findings of a status."""
    return sum(found.status == status for section in sections for found in section.findings)


def describe_section(section: Section) -> list[str]:
    """A section for the terminal: heading, then aligned lines ``status  what  value``, advice below."""
    findings = list(_folded(section.findings))
    width = max((len(found.what) for found in findings), default=0)
    lines = [section.title]
    for found in findings:
        head = f"  {found.status:<7}  {found.what:<{width}}  "
        indent = " " * len(head)
        lines += _wrapped(found.value, head, indent) or [head.rstrip()]
        if found.advice:
            lines += _wrapped(found.advice, f"{indent}-> ", f"{indent}   ")
    return lines


def _wrapped(text: str, first: str, others: str) -> list[str]:
    """Lines that fit the terminal; paths and commands stay whole, so that they can be copied."""
    width = min(WIDTH, max(NARROWEST, shutil.get_terminal_size((WIDTH, 24)).columns))
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=others, break_long_words=False, break_on_hyphens=False
    )


def _folded(findings: Sequence[Finding]) -> Iterator[Finding]:
    """Good findings of one fold as one, in the place of the first; the others as they are."""
    joined: dict[str, list[Finding]] = {}
    for found in findings:
        if found.fold and found.status == OK:
            joined.setdefault(found.fold, []).append(found)
    for found in findings:
        if not (found.fold and found.status == OK):
            yield found
        elif parts := joined.pop(found.fold, None):
            values = ", ".join(f"{part.what} {part.value}".strip() for part in parts)
            yield Finding(OK, found.fold, values)


def summary_line(sections: Sequence[Section]) -> str:
    """The last line: how many checks were good, and whether a run can start."""
    good, warnings, errors = (count(sections, status) for status in (OK, WARNING, ERROR))
    verdict = "not ready: see the errors" if errors else "ready, with remarks" if warnings else "ready"
    return f"{good} ok, {warnings} {_plural('warning', warnings)}, {errors} {_plural('error', errors)}: {verdict}"


def _plural(word: str, number: int) -> str:
    return word if number == 1 else f"{word}s"
