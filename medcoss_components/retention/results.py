"""The matrix as a JSON value, as metrics and as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from medcoss_components.errors import InputError
from medcoss_components.files import read_json
from medcoss_components.retention.measures import measures
from medcoss_components.text_table import text_lines

if TYPE_CHECKING:
    from medcoss_components.retention.encoders import Column

FORMAT = 1
FOLDER = "retention"
RESULT_NAME = "retention.json"
KINDS = {"k_nn": "k-NN accuracy", "logistic": "logistic regression accuracy"}
LIKENESS = {"cka": "linear CKA", "overlap": "neighbours kept"}
MEASURES = {
    "average_accuracy": "average accuracy",
    "backward_transfer": "backward transfer",
    "forgetting": "forgetting",
}
PROBE_FACTS = ("classes", "majority", "samples", "k")

Columns: TypeAlias = "Sequence[tuple[Column, Mapping[str, Any]]]"
"""Each encoder with the content of its file."""


def retention_result(columns: Columns, own_of_reference: Mapping[str, int]) -> dict[str, Any]:
    """The content of retention.json.

    Lists of a probe have one entry for each of ``stages`` (the first is the start); null where a probe could not be
    scored, for the reason that stands in its ``left_out``. ``own`` is the place of the stage that learned its
    modality, null for a modality that the chain has not learned.

    Args:
        columns: encoders and their scores, in order.
        own_of_reference: modality -> place of its own stage.
    """
    learned = {name: number for number, (column, _) in enumerate(columns) for name in column.learned}
    probes = {name: _probe(name, columns, learned) for name in _names("probes", columns)}
    own = [probe["own"] for probe in probes.values()]
    return {
        "format": FORMAT,
        "stages": [{"name": column.name, "modality": column.modality} for column, _ in columns],
        "probes": probes,
        "reference": {
            name: {"own": own_of_reference.get(name), **_reference(name, columns)}
            for name in _names("reference", columns)
        },
        "summary": {kind: _summary(kind, probes, own) for kind in KINDS},
    }


def _names(part: str, columns: Columns) -> list[str]:
    return list(dict.fromkeys(name for _, content in columns for name in content[part]))


def _probe(name: str, columns: Columns, learned: Mapping[str, int]) -> dict[str, Any]:
    cells = [content["probes"].get(name, {}) for _, content in columns]
    facts: Mapping[str, Any] = next((cell for cell in reversed(cells) if "k_nn" in cell), {})
    modality = next(cell["modality"] for cell in cells if cell)
    return {
        "modality": modality,
        "own": learned.get(modality),
        **{key: [cell.get(key) for cell in cells] for key in (*KINDS, "chosen_c")},
        **{key: facts.get(key) for key in PROBE_FACTS},
        "left_out": _left_out(columns, cells),
    }


def _reference(name: str, columns: Columns) -> dict[str, Any]:
    cells = [content["reference"].get(name, {}) for _, content in columns]
    facts: Mapping[str, Any] = next((cell for cell in reversed(cells) if "cka" in cell), {})
    return {
        **{key: [cell.get(key) for cell in cells] for key in LIKENESS},
        "samples": facts.get("samples"),
        "k": facts.get("k"),
        "left_out": _left_out(columns, cells),
    }


def _left_out(columns: Columns, cells: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Column -> why it has no number."""
    return {column.name: cell["reason"] for (column, _), cell in zip(columns, cells, strict=True) if "reason" in cell}


def _summary(kind: str, probes: Mapping[str, Any], own: Sequence[int | None]) -> dict[str, float | None]:
    if not probes:
        return dict.fromkeys(MEASURES)
    return measures(as_matrix([probe[kind] for probe in probes.values()]).T, own)


def as_matrix(rows: Sequence[Sequence[float | None]]) -> np.ndarray:
    """(rows, columns) float64, NaN for None."""
    return np.array([[np.nan if value is None else value for value in row] for row in rows], dtype=np.float64)


def column_metrics(content: Mapping[str, Any]) -> dict[str, float]:
    """MLflow metrics of one column: ``retention/k_nn/<probe>``, ``retention/cka/<modality>`` and the like."""
    return {
        f"retention/{kind}/{name}": cell[kind]
        for part, kinds in (("probes", KINDS), ("reference", LIKENESS))
        for name, cell in content[part].items()
        for kind in kinds
        if kind in cell
    }


def summary_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """MLflow metrics of the whole matrix: ``retention/forgetting/k_nn`` and the like."""
    return {
        f"retention/{name}/{kind}": value
        for kind, values in result["summary"].items()
        for name, value in values.items()
        if value is not None
    }


def read_retention(folder: str | Path) -> dict[str, Any] | None:
    """The matrix of a chain; None where there is none.

    Raises:
        InputError: a file that is no such matrix.
    """
    path = Path(folder) / RESULT_NAME
    if not path.is_file():
        return None
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(
            f"{path}: not a retention matrix of format {FORMAT}. Score the chain again: medcoss retention."
        )
    return content


def score_text(value: float | None) -> str:
    """A fraction as percent.

    >>> score_text(0.1234), score_text(None)
    ('12.3 %', '–')
    """
    return "–" if value is None else f"{100 * value:.1f} %"


def change_text(value: float | None) -> str:
    """A difference of fractions in percentage points, with its sign.

    >>> change_text(-0.0512), change_text(0.0)
    ('−5.1 points', '±0.0 points')
    """
    if value is None:
        return "–"
    points = round(100 * value, 1)
    return f"{'+' if points > 0 else '−' if points < 0 else '±'}{abs(points):.1f} points"


def measure_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Name, k-NN, logistic regression of each measure, as text; empty where no probe is learned."""
    rows = []
    for name, label in MEASURES.items():
        text = score_text if name == "average_accuracy" else change_text
        values = [result["summary"][kind][name] for kind in KINDS]
        if any(value is not None for value in values):
            rows.append((label, *(text(value) for value in values)))
    return rows


def left_out(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Row, stage and reason of every number that is missing."""
    return [
        (name, stage, reason)
        for part in ("probes", "reference")
        for name, entry in result[part].items()
        for stage, reason in entry["left_out"].items()
    ]


def retention_table(result: Mapping[str, Any]) -> str:
    """The matrix as plain text for a terminal: k-NN, logistic regression, CKA, neighbours kept, and the measures."""
    stages = [stage["name"] for stage in result["stages"]]
    blocks = [_block(title, key, result["probes"], stages) for key, title in KINDS.items()]
    blocks += [_block(title, key, result["reference"], stages) for key, title in LIKENESS.items()]
    rows = measure_rows(result)
    if rows:
        blocks.append("\n".join(text_lines([("measure", "k-NN", "logistic"), *rows])))
    reasons = [f"{name} after {stage}: left out, {reason}" for name, stage, reason in left_out(result)]
    return "\n\n".join([block for block in blocks if block] + (["\n".join(reasons)] if reasons else []))


def _block(title: str, key: str, entries: Mapping[str, Any], stages: Sequence[str]) -> str:
    if not entries:
        return ""
    rows = [(name, *(_cell(entry, key, place) for place in range(len(stages)))) for name, entry in entries.items()]
    return "\n".join(text_lines([(title, *stages), *rows]))


def _cell(entry: Mapping[str, Any], key: str, place: int) -> str:
    """A number; the one after the own stage has a star."""
    return score_text(entry[key][place]) + ("*" if entry["own"] == place else " ")
