"""Texts from PubMed XML, CSV and JSON lines, read as a stream."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from medcoss_components.data.readers_common import TextRecord, naming_file, require_file
from medcoss_components.errors import InputError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

COLUMNS = ("id", "text", "label", "group")
FIELD_LIMIT = 1 << 27


@dataclass(frozen=True)
class PubmedSection:
    """One part of an abstract: its printed label, its NlmCategory (both "" when absent) and its text."""

    label: str
    category: str
    text: str


@dataclass(frozen=True)
class PubmedRecord:
    """One article of a PubMed file.

    Args:
        pmid: PubMed identifier.
        title: article title.
        sections: parts of the abstract in order; empty when there is none.
        language: codes joined by "+", for example "eng".
        copyrighted: the abstract has a CopyrightInformation element.
    """

    pmid: str
    title: str
    sections: tuple[PubmedSection, ...]
    language: str
    copyrighted: bool


@contextmanager
def _open_bytes(path: Path) -> Iterator[IO[bytes]]:
    opener = cast(Callable[..., IO[bytes]], gzip.open if path.suffix.lower() == ".gz" else open)
    with opener(path, "rb") as stream:
        yield stream


def read_pubmed(path: str | Path) -> Iterator[PubmedRecord]:
    """Read the articles of a PubMed XML file (``.xml`` or ``.xml.gz``) one by one, in little memory.

    Raises:
        InputError: missing, truncated or malformed file, or one without PubMed articles.
    """
    from xml.etree.ElementTree import iterparse

    path = require_file(path)
    count = 0
    with naming_file(path, show_detail=False), _open_bytes(path) as stream:
        events = iterparse(stream, events=("start", "end"))
        _, root = next(events)
        for event, element in events:
            if event == "end" and element.tag == "PubmedArticle":
                record = _pubmed_record(element)
                root.clear()
                count += 1
                yield record
    if count == 0:
        raise InputError(f"{path}: holds no PubmedArticle element. Give a PubMed XML file.")


def _pubmed_record(element: Element) -> PubmedRecord:
    article = element.find("MedlineCitation/Article")
    abstract = None if article is None else article.find("Abstract")
    parts = [] if abstract is None else abstract.findall("AbstractText")
    sections = (PubmedSection(part.get("Label", ""), part.get("NlmCategory", ""), _plain_text(part)) for part in parts)
    languages = [] if article is None else article.findall("Language")
    return PubmedRecord(
        pmid=(element.findtext("MedlineCitation/PMID") or "").strip(),
        title=_plain_text(None if article is None else article.find("ArticleTitle")),
        sections=tuple(section for section in sections if section.text),
        language="+".join((language.text or "").strip() for language in languages),
        copyrighted=abstract is not None and abstract.find("CopyrightInformation") is not None,
    )


def _plain_text(element: Element | None) -> str:
    """Text of an element without inline markup (italics, sub- and superscripts), space collapsed."""
    return "" if element is None else " ".join("".join(element.itertext()).split())


def read_pubmed_sections(path: str | Path) -> Iterator[TextRecord]:
    """Abstract sections as text records: id ``<pmid>-<k>``, label = NlmCategory or None, group = PMID. No titles."""
    for record in read_pubmed(path):
        for number, section in enumerate(record.sections):
            yield TextRecord(
                id=f"{record.pmid}-{number}",
                text=section.text,
                label=section.category or None,
                group=record.pmid,
                language=record.language,
                copyrighted=record.copyrighted,
            )


def read_csv(path: str | Path, **columns: str) -> Iterator[TextRecord]:
    """Rows of a CSV or TSV file (see :func:`table_reader`) as text records; see :func:`..readers.read_texts`."""
    path = require_file(path)
    names = _column_names(columns)
    for number, row in enumerate(_numbered(path, table_reader(path)), start=1):
        if number == 1:
            _require_text_column(row, names, path)
        yield _record(row, names, number)


def read_json_lines(path: str | Path, **columns: str) -> Iterator[TextRecord]:
    """One JSON object per line as text records; blank lines are skipped; see :func:`..readers.read_texts`."""
    path = require_file(path)
    names = _column_names(columns)
    for number, line in enumerate(_numbered(path, _lines(path)), start=1):
        if line.strip():
            row = _parse_object(line, path, number)
            _require_text_column(row, names, path)
            yield _record(row, names, number)


def table_reader(path: Path) -> csv.DictReader:
    """Rows of a UTF-8 table with a header line: tabs in a TSV, else commas or semicolons, as the header line has."""
    csv.field_size_limit(FIELD_LIMIT)
    return csv.DictReader(_lines(path), delimiter=_delimiter(path), restval="")


def _delimiter(path: Path) -> str:
    if path.name.lower().removesuffix(".gz").endswith(".tsv"):
        return "\t"
    with naming_file(path, show_detail=False):
        header = next(_lines(path), "")
    return ";" if header.count(";") > header.count(",") else ","


def _lines(path: Path) -> Iterator[str]:
    """Lines of a UTF-8 file, plain or ``.gz``, with or without byte order mark.

    Raises:
        InputError: another encoding; the line is named.
    """
    with _open_bytes(path) as stream:
        for number, line in enumerate(stream, start=1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path}: line {number} is not UTF-8 (at byte {error.start}). "
                    "Save the file in UTF-8 (in a spreadsheet: CSV UTF-8)."
                ) from None


def _numbered(path: Path, rows: Iterator[Any]) -> Iterator[Any]:
    """Pass rows on; a decoder's error becomes one that names the file, an unreadable CSV row included."""
    while True:
        with naming_file(path, show_detail=False):
            try:
                row = next(rows)
            except StopIteration:
                return
        yield row


def _parse_object(line: str, path: Path, number: int) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: line {number} is not JSON ({error.msg} at column {error.colno}).") from None
    if not isinstance(row, dict):
        raise InputError(f"{path}: line {number} must be a JSON object, got {type(row).__name__}.")
    return row


def _column_names(columns: Mapping[str, str]) -> dict[str, str]:
    if unknown := sorted(set(columns) - set(COLUMNS)):
        raise InputError(f"read_texts: unknown columns {unknown}; settable are {', '.join(COLUMNS)}.")
    return {key: columns.get(key, key) for key in COLUMNS}


def _require_text_column(row: Mapping[str, Any], names: Mapping[str, str], path: Path) -> None:
    if names["text"] not in row:
        found = ", ".join(repr(key) for key in row if key is not None)
        raise InputError(f"{path}: no column {names['text']!r}; found {found}. Name it with text=<column>.")


def _record(row: Mapping[str, Any], names: Mapping[str, str], number: int) -> TextRecord:
    values = {key: row.get(name) for key, name in names.items()}
    identifier = f"row-{number}" if values["id"] in (None, "") else str(values["id"])
    group = identifier if values["group"] in (None, "") else str(values["group"])
    label = None if values["label"] == "" else values["label"]
    return TextRecord(id=identifier, text=str(values["text"] or "").strip(), label=label, group=group)
