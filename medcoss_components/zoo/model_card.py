"""The model card of a packed bundle: what Hugging Face reads, and what a person must know before use.

Numbers are those that the run measured (``metrics.json``); nothing else is claimed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from medcoss_components.errors import InputError
from medcoss_components.zoo.build import BundleSource
from medcoss_components.zoo.model_card_numbers import backbone_tables, hub_results, pretraining_table, task_tables
from medcoss_components.zoo.packed_run import BACKBONE_KINDS, PRETRAINING

if TYPE_CHECKING:
    from medcoss_components.zoo.packed_run import Run

TEMPLATES = Path(__file__).parent / "templates"
LICENCE_OTHER = "other"
LICENCE_FILE = "LICENSE.md"
"""Terms of weights whose licence has no name of its own; Hugging Face links to a file of this name and to no other."""
HUB_TASKS = {
    PRETRAINING: {1: "feature-extraction", 2: "image-feature-extraction", 3: "feature-extraction"},
    "classification": {1: "text-classification", 2: "image-classification", 3: "image-classification"},
    "segmentation": {2: "image-segmentation", 3: "image-segmentation"},
    "detection": {2: "object-detection"},
    "multitask": {2: "image-feature-extraction"},
    "contrastive": {2: "image-feature-extraction"},
}
"""Kind of run -> dimension of the input -> Hugging Face's name of the task."""
HUB_TAGS = {PRETRAINING: ("self-supervised", "masked-modelling")}
"""Kind of run -> tags; a task's name is its tag."""
CARDS: dict[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
    PRETRAINING: ("model_card.md", pretraining_table),
    **{kind: ("model_card_backbone.md", backbone_tables) for kind in BACKBONE_KINDS},
}
TASK_CARD = ("model_card_task.md", task_tables)
"""Template of the card and its table of numbers, by kind of run; TASK_CARD for all others."""
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True, kw_only=True)
class CardOptions:
    """What the publisher says about the weights.

    Attributes:
        licence: licence of the weights, as Hugging Face spells it (``cc-by-nc-4.0``); "other" sends the reader to the
            card: the terms of the data and of the weights that training started from.
        data: names of the data sets, as on Hugging Face where they are there.
        base_model: what training started from, for example the published checkpoint; as on Hugging Face where it is
            there.
    """

    licence: str = LICENCE_OTHER
    data: tuple[str, ...] = ()
    base_model: str | None = None

    def __post_init__(self) -> None:
        texts = (self.licence, *self.data, self.base_model or "")
        if any("\n" in text for text in texts) or not self.licence.strip():
            raise InputError(f"licence, data and base_model must be one line each, received {texts}")


def model_card(
    *, source: BundleSource, metadata: Mapping[str, Any], run: Run, options: CardOptions, with_buffer: bool = False
) -> str:
    """Front matter and text of the card, Markdown."""
    front = yaml.safe_dump(front_matter(source, metadata, run, options), sort_keys=False, allow_unicode=True)
    name, tables = CARDS.get(run.kind, TASK_CARD)
    values = {
        "name": source.name,
        "title": metadata["name"],
        "version": metadata["version"],
        "summary": source.values.get("summary", metadata["description"]),
        "intended_use": metadata["intended_use"],
        "limits": source.values.get("limits", ""),
        "measured": tables(run.metrics),
        "network": _network(run),
        "outputs": f"{metadata['pred_classes']}.",
        "data": _data(options, metadata),
        "licence": _licence(options),
        "references": " ".join(f"{text.rstrip('.')}." for text in metadata["references"]),
        "more_files": _more_files(run, with_buffer),
        "changelog": "\n".join(f"- {version}: {text}" for version, text in metadata["changelog"].items()),
    }
    text = (TEMPLATES / name).read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace("${" + key + "}", str(value).strip())
    return f"---\n{front}---\n\n{text}"


def licence_text(options: CardOptions) -> str:
    """Content of :data:`LICENCE_FILE`, Markdown."""
    return f"# Licence\n\nCode and configs: Apache-2.0, see LICENSE.\n\n{_licence(options)}\n"


def front_matter(source: BundleSource, metadata: Mapping[str, Any], run: Run, options: CardOptions) -> dict[str, Any]:
    """What stands between the ``---`` lines; empty entries are left out."""
    entry = run.entry()
    task = HUB_TASKS[run.kind][entry.dimension]
    licence = {"license": options.licence}
    if options.licence == LICENCE_OTHER:
        licence |= {"license_name": "terms-of-data-and-starting-weights", "license_link": LICENCE_FILE}
    return {
        **licence,
        "library_name": "monai",
        "pipeline_tag": task,
        "tags": ["monai", "medical", "medcoss", *HUB_TAGS.get(run.kind, (run.kind,)), entry.name],
        **_names("datasets", options.data),
        **_names("base_model", filter(None, [options.base_model])),
        **hub_results(source.name, task, metadata["task"], run.metrics),
    }


def _names(key: str, names: Iterable[str]) -> dict[str, list[str]]:
    """Names that can be one of Hugging Face's; others stand in the text alone, where its check does not refuse them."""
    known = [name for name in names if HUB_NAME.fullmatch(name)]
    return {key: known} if known else {}


def _network(run: Run) -> str:
    given = run.network_settings.items()
    shown = {name: value for name, value in given if name not in ("modality", "preset") and value is not None}
    text = ", ".join([f"Preset `{run.settings['preset']}`", *(f"{_words(name)} {shown[name]}" for name in shown)])
    text += f", width {run.sizes['width']}"
    other = ", ".join(f"{name} {value}" for name, value in run.overrides.items())
    return f"{text}; {f'differs from the preset in: {other}' if other else 'all sizes as in the preset'}."


def _words(name: str) -> str:
    return name.replace("_", " ")


def _data(options: CardOptions, metadata: Mapping[str, Any]) -> str:
    if options.data:
        return f"Trained on: {', '.join(options.data)}."
    return (
        "The publisher of these weights did not name the data that they were trained on. The bundle is made for: "
        f"{metadata['data_source']}."
    )


def _licence(options: CardOptions) -> str:
    start = f" Training started from {options.base_model}." if options.base_model else ""
    if options.licence == LICENCE_OTHER:
        return (
            "Weights: the terms of the data that they were trained on, and of the weights that training started from, "
            f"hold for them; a non-commercial starting checkpoint makes them non-commercial.{start}"
        )
    return f"Weights: {options.licence}.{start}"


def _more_files(run: Run, with_buffer: bool) -> str:
    lines = {
        "| `models/vocabulary.json` | word pieces that the text part was trained with |": (
            run.folder / "vocabulary.json"
        ).is_file(),
        "| `models/buffer.json`, `models/buffer_store/` | training samples to rehearse, with their ids |": with_buffer,
    }
    return "\n".join(line for line, there in lines.items() if there)
