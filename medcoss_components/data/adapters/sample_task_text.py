"""Sample task: the section of a sentence in a structured PubMed abstract (the task of PubMed-RCT).

Sentences, their identifiers and what is left out are those of the report sample (``sample_report.py``). The first
``testing_percent`` of the abstracts' hashes are for testing; the report sample keeps the same first ones out of its
training part, so that an encoder pre-trained on it has not read the testing sentences.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medcoss_components.data.adapters import sample_report
from medcoss_components.data.adapters.recipe import Conversion
from medcoss_components.data.manifest import SPLITS


def convert(*, sources: Mapping[str, Path], folder: Path, settings: Mapping[str, Any]) -> Conversion:
    """Labelled sentences by split; ``folder`` stays empty, text lives in the manifest.

    Args:
        sources: one PubMed XML file, gzipped.
        folder: not used.
        settings: "testing_percent" and "validation_percent" of the abstracts, "minimum_words" of a sentence.
    """
    everything = {"validation_percent": 0, "minimum_words": settings["minimum_words"]}
    sentences = sample_report.convert(sources=sources, folder=folder, settings=everything)["training"]
    items: Conversion = {split: [] for split in SPLITS}
    for item in sentences:
        if item.label is not None:
            items[split_of(item.group, settings["testing_percent"], settings["validation_percent"])].append(item)
    return items


def split_of(group: str, testing_percent: int, validation_percent: int) -> str:
    """The split of an abstract from its hash: testing first, then validation, the rest is training.

    >>> [split_of(f"{number:x}", 5, 10) for number in (4, 105, 214, 15)]
    ['testing', 'validation', 'validation', 'training']
    """
    place = int(group, 16) % 100
    if place < testing_percent:
        return "testing"
    return "validation" if place < testing_percent + validation_percent else "training"
