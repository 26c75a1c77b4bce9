"""Sample of medical text: sentences of English PubMed abstracts without a copyright statement.

A sentence of a structured abstract has its section as label (the PubMed-RCT task); other sentences have none.
The split is by abstract, from the hash of its public PubMed number, so that it never depends on order.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medcoss_components.data.adapters.recipe import Conversion
from medcoss_components.data.identifiers import hash_identifier
from medcoss_components.data.manifest import Item
from medcoss_components.data.readers_text import PubmedRecord, read_pubmed
from medcoss_components.progress import progress

SALT = "medcoss-public-sample"
"""PubMed numbers are public: a public salt makes the same manifest, hence the same store, on every machine."""
LABELS = ("BACKGROUND", "OBJECTIVE", "METHODS", "RESULTS", "CONCLUSIONS")
ABBREVIATIONS = (
    *("e.g", "i.e", "w.r.t", "vs", "cf", "ca", "al", "Fig", "Figs", "No", "Nos", "Dr", "Prof", "St", "approx", "resp"),
    *("spp", "sp", "var", "Eq", "Ref", "Jan", "Feb", "Mar", "Apr", "Aug", "Sept", "Oct", "Nov", "Dec"),
)
NO_BREAK = re.compile(rf"\b(?:{'|'.join(map(re.escape, ABBREVIATIONS))}|[A-Z])\.$")
BREAK = re.compile(
    r"(?:\b(?:e\.g|i\.e|vs|cf|ca|al|Fig|Figs|No|Nos|Dr|Prof|St|approx|resp|spp|sp|var|Eq|Ref|w\.r\.t|Jan|Feb|Mar|Apr|Aug|Sept|Oct|Nov|Dec|[A-Z])\.)$"
)
BREAK = re.compile(r"(?<=[.!?])\s+(?=[\"'(\[]?[A-Z0-9])|(?<=[a-z)\]%][.!?])(?=[A-Z][a-z])")
BOILERPLATE = re.compile(r"©|\(c\) ?\d{4}|copyright|all rights reserved|@|\bdoi\b|https?://|www\.", re.IGNORECASE)


def convert(*, sources: Mapping[str, Path], folder: Path, settings: Mapping[str, Any]) -> Conversion:
    """Items of all abstracts; ``folder`` stays empty, text lives in the manifest.

    Args:
        sources: one PubMed XML file, gzipped.
        settings: "validation_percent" of abstracts, "minimum_words" of a sentence.
    """
    (path,) = sources.values()
    items: Conversion = {"training": [], "validation": []}
    seen: set[bytes] = set()
    for record in progress(read_pubmed(path), description="sample: report", unit="article"):
        sections = usable_sections(record)
        group = hash_identifier(record.pmid, SALT)
        split = "validation" if int(group, 16) % 100 < settings["validation_percent"] else "training"
        items[split] += _sentence_items(group, sections, settings["minimum_words"], seen)
    return items


def _sentence_items(group: str, sections: list[tuple[str, str]], minimum: int, seen: set[bytes]) -> list[Item]:
    """Items of one abstract; a sentence that occurred before anywhere is left out, so splits share none."""
    items: list[Item] = []
    for text, label in sections:
        for sentence in split_sentences(text):
            key = hashlib.sha1(sentence.lower().encode(), usedforsecurity=False).digest()
            if len(sentence.split()) < minimum or BOILERPLATE.search(sentence) or key in seen:
                continue
            seen.add(key)
            items.append(Item(f"{group}-{len(items):02d}", text=sentence, label=label or None, group=group))
    return items


def usable_sections(record: PubmedRecord) -> list[tuple[str, str]]:
    """(text, label or "") of an abstract's sections; none when it is not English alone or has a copyright statement."""
    if record.language != "eng" or record.copyrighted:
        return []
    return [(part.text, part.category if part.category in LABELS else "") for part in record.sections]


def split_sentences(text: str) -> list[str]:
    """Split at ., ! or ? before a capital or digit, not after abbreviations.

    >>> split_sentences("Of 12 patients, e.g. A. Smith, 3 died. No cause was found (Fig. 2).Follow-up was short.")
    ['Of 12 patients, e.g. A. Smith, 3 died.', 'No cause was found (Fig. 2).', 'Follow-up was short.']
    """
    sentences: list[str] = []
    for piece in BREAK.split(text):
        if sentences and NO_BREAK.search(sentences[-1]):
            sentences[-1] += f" {piece}"
        elif piece:
            sentences.append(piece)
    return sentences
