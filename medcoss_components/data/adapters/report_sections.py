"""Findings and impression of a radiology report that is one piece of text with headings in capitals.

                                FINAL REPORT
INDICATION:  Cough.

FINDINGS:

The lungs are clear.

IMPRESSION:  No acute process.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from medcoss_components.errors import InputError

SECTIONS = ("findings", "impression")
LAST_PARAGRAPH = "last_paragraph"
_NAMED = r"(?i:findings?|impressions?|conclusions?)"
_LETTER = r"(?:[A-Z0-9_ ()/,&'.-]|(?<=\d):(?=\d))"  # the colon of a time, as in "AP CHEST, 8:30 A.M.:", is one
_HEADING = re.compile(rf"^[ \t]*({_NAMED}|[A-Z]{_LETTER}{{1,60}}):(?!\d)", re.MULTILINE)
_FINDINGS = re.compile(r"FINDINGS?\b|IMPRESSION ?(AND|/|&) ?FINDINGS?|REPORT$")
_IMPRESSION = re.compile(r"IMPRESSIONS?$|CONCLUSIONS?$")
_VIEWS = re.compile(r"\b(CHEST|VIEWS?|RADIOGRAPHS?)\b")
_ABOUT = re.compile(
    r"\b(EXAM\w*|STUDY|TYPE|TECHNIQUES?|COMPARISONS?|HISTORY|INDICATIONS?|REASON|CLINICAL|PROCEDURES?|REQUEST\w*|DATE|"
    r"TIME|ORDER\w*|READ|REFERENCES?|NOTIFICATIONS?|RECOMMENDATIONS?|ADDENDUM|DOSE|SIGN\w*|DICTATED|ATTENDING)\b"
)
_PARAGRAPHS = re.compile(r"\n[ \t\r]*\n")


def split_report(report: str) -> dict[str, str]:
    """Sections of a report, white space collapsed; one that is not there, or is empty, is missing.

    Of several sections of one kind the last counts. Headings that name the views of the chest ("PA AND LATERAL CHEST:")
    open the findings where no heading says so. Other headings within a section ("LUNGS:") are part of its text, unless
    they are about the report ("COMPARISON:"). Without any of the two, the last paragraph is given as
    :data:`LAST_PARAGRAPH`.

    >>> split_report("INDICATION: Cough.\\nFINDINGS: Clear\\n lungs.\\nIMPRESSION: Normal.")
    {'findings': 'Clear lungs.', 'impression': 'Normal.'}
    """
    parts: dict[str, str] = {}
    headings = _boundaries(report)
    ends = [*(start for _, start, _ in headings[1:]), len(report)]
    for (kind, _, start), end in zip(headings, ends, strict=False):  # a report without headings still has an end
        text = " ".join(report[start:end].split())
        if text and kind != "about":
            parts[kind] = text
    views = parts.pop("views", "")
    if views and "findings" not in parts:
        parts["findings"] = views
    if not parts:
        start = headings[-1][2] if headings else 0
        if last := " ".join(_PARAGRAPHS.split(report[start:].rstrip())[-1].split()):
            parts[LAST_PARAGRAPH] = last
    return {name: parts[name] for name in (*SECTIONS, LAST_PARAGRAPH) if name in parts}


def _boundaries(report: str) -> list[tuple[str, int, int]]:
    """Kind, start and end of each heading that opens a part of the report."""
    found: list[tuple[str, int, int]] = []
    for heading in _HEADING.finditer(report):
        kind = _kind(heading.group(1))
        within = bool(found) and found[-1][0] != "about" and kind in ("views", "other")
        if not within:
            found.append(("about" if kind == "other" else kind, heading.start(), heading.end()))
    return found


@lru_cache(maxsize=4096)
def _kind(heading: str) -> str:
    """What a heading opens: findings, impression, views (findings by another name), about (the report), other."""
    name = " ".join(heading.upper().split())
    if _FINDINGS.match(name):
        return "findings"
    if _IMPRESSION.match(name):
        return "impression"
    if _ABOUT.search(name):
        return "about"
    return "views" if _VIEWS.search(name) else "other"


@dataclass(frozen=True, kw_only=True)
class SectionRule:
    """Which parts of a report make its text.

    Args:
        sections: in this order, of :data:`SECTIONS`.
        last_paragraph: take the last paragraph of a report that has none of them.
        minimum_words: shorter texts are left out.

    Raises:
        InputError: a setting outside its range.
    """

    sections: Sequence[str] = SECTIONS
    last_paragraph: bool = False
    minimum_words: int = 1

    def __post_init__(self) -> None:
        given = [self.sections] if isinstance(self.sections, str) else self.sections
        names = tuple(name for name in SECTIONS if name in given) if isinstance(given, list | tuple) else ()
        if not names or len(names) < len(given):
            raise InputError(f"sections: must be some of {', '.join(SECTIONS)}, each once, got {self.sections!r}.")
        object.__setattr__(self, "sections", tuple(given))
        if not isinstance(self.last_paragraph, bool):
            raise InputError(f"last_paragraph: must be true or false, got {self.last_paragraph!r}.")
        if not isinstance(self.minimum_words, int) or self.minimum_words < 1:
            raise InputError(f"minimum_words: must be a whole number from 1, got {self.minimum_words!r}.")

    def choose(self, parts: Mapping[str, str]) -> tuple[str, str]:
        """The text of a report with these parts, and why it is left out: one of the two is "".

        >>> SectionRule().choose({"impression": "Normal.", "findings": "Clear lungs."})
        ('Clear lungs. Normal.', '')
        """
        text = " ".join(parts[name] for name in self.sections if parts.get(name))
        if not text and self.last_paragraph:
            text = parts.get(LAST_PARAGRAPH, "")
        if not text:
            return "", f"the report has no {' and no '.join(self.sections)}"
        if len(text.split()) < self.minimum_words:
            return "", f"fewer than {self.minimum_words} words"
        return text, ""
