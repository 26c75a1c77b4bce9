"""The part of REPORT.html on how well earlier modalities are kept."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from medcoss_components.retention.results import KINDS, left_out, measure_rows, score_text
from medcoss_components.tracking.report_captions import MEASURES, RETENTION
from medcoss_components.tracking.report_data import NOTHING, ChainResult, count_text
from medcoss_components.tracking.report_html import picture, table
from medcoss_components.tracking.retention_map import PICTURE_NAME


def retention_section(chain: ChainResult) -> str:
    """Heat map, measures, what the probes are and what was left out; empty where nothing was scored."""
    path, result = chain.folder / PICTURE_NAME, chain.retention
    parts = [picture(path, RETENTION, "Whole chain")] if path.is_file() else []
    if result:
        parts += [_measures(result), _probes(result["probes"]), _left_out(result)]
    if not any(parts):
        return ""
    return f'<section id="retention"><h2>Retention</h2>{"".join(parts)}</section>'


def _measures(result: Mapping[str, Any]) -> str:
    rows = measure_rows(result)
    if not rows:
        return ""
    head = ("Measure", *(name.capitalize() if name != "k-NN accuracy" else name for name in KINDS.values()))
    return f"<div class=compact>{table(head, rows)}</div><p class='small muted'>{escape(MEASURES)}</p>"


def _probes(probes: Mapping[str, Any]) -> str:
    """What the accuracies stand on, and the accuracy of always naming the commonest class."""
    rows = [
        (
            name,
            probe["modality"],
            count_text(probe["classes"]),
            score_text(probe["majority"]),
            " / ".join(count_text(count) for count in probe["samples"].values()),
            NOTHING if probe["k"] is None else str(probe["k"]),
        )
        for name, probe in probes.items()
        if probe["samples"]
    ]
    head = ("Probe", "Modality", "Classes", "Commonest class", "Training / validation / test samples", "Neighbours")
    return f"<div class=compact>{table(head, rows, wrap=(1,))}</div>" if rows else ""


def _left_out(result: Mapping[str, Any]) -> str:
    lines = [f"{name} after {stage}: {reason}" for name, stage, reason in left_out(result)]
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<p class=small>Left out:</p><ul class=small>{items}</ul>" if lines else ""
