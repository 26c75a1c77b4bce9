"""Turning the result of an evaluation into the parts of one HTML page without outside references."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medcoss_components.evaluation.detection import DetectionResult
from medcoss_components.evaluation.results import ClassificationResult, Intervals, SegmentationResult
from medcoss_components.tracking import task_captions as captions
from medcoss_components.tracking.parameters import flatten_parameters
from medcoss_components.tracking.report_captions import Caption
from medcoss_components.tracking.report_html import badge, picture, table

TaskResult = ClassificationResult | SegmentationResult | DetectionResult
NOTHING = "–"
PARTS = {"classification": "classes", "segmentation": "regions", "detection": "categories"}
"""Task -> what its result calls the parts that are named one by one."""
HEADS = {"classification": "Class", "segmentation": "Region", "detection": "Category"}
FEW_GROUPS = 30
FEW_CASES = 10
COUNTED = ("true_boxes", "found_boxes", "hits", "missed", "false_positives")
LISTED = 10


class Evaluation(NamedTuple):
    """Everything the page shows."""

    result: TaskResult
    title: str
    split: str
    metrics: Mapping[str, float]
    intervals: Intervals
    settings: Mapping[str, Any]
    show_cases: bool


def number_text(value: float, metric: str) -> str:
    """Three digits after the point for shares, two or (from 10) one for distances and counts; – for what is undefined.

    >>> number_text(0.91234, "dice"), number_text(12.345, "hd95"), number_text(float("nan"), "auc")
    ('0.912', '12.3', '–')
    """
    if not math.isfinite(value):
        return NOTHING
    if metric.split("/")[0] not in ("hd95", "false_positives"):
        return f"{value:.3f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def interval_text(metric: str, intervals: Intervals) -> str:
    """ "0.81 to 0.95" or –."""
    if metric not in intervals:
        return NOTHING
    return " to ".join(number_text(value, metric) for value in intervals[metric])


def part_names(result: TaskResult) -> tuple[str, ...]:
    """Names of the classes, regions or categories."""
    return getattr(result, PARTS[result.task])


def group_count(result: TaskResult) -> int:
    """How many different groups (patients) the cases come from."""
    return len(set(result.groups))


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def notes(evaluation: Evaluation) -> list[str]:
    """What a reader must know before trusting the numbers."""
    result, metrics = evaluation.result, evaluation.metrics
    groups = group_count(result)
    found = []
    if groups == 1:
        found.append(
            "All cases come from one patient (group). The numbers show that the program runs; they say nothing about "
            "other patients, and no confidence interval can be given."
        )
    elif groups < FEW_GROUPS:
        found.append(f"Only {groups} patients (groups): the numbers and their intervals are rough.")
    if isinstance(result, ClassificationResult):
        counts = np.bincount(result.targets, minlength=len(result.classes))
        rare = [f"{name} ({count})" for name, count in zip(result.classes, counts, strict=True) if count < FEW_CASES]
        if rare:
            found.append(f"Classes with fewer than {FEW_CASES} cases: {', '.join(rare)}.")
    if isinstance(result, DetectionResult):
        found += _box_notes(result)
    undefined = [name for name, value in metrics.items() if not math.isfinite(value)]
    if undefined:
        found.append(f"Not defined by these cases: {', '.join(undefined)}.")
    if metrics.get("hd95_undefined"):
        pairs = len(result.cases) * len(result.regions) if isinstance(result, SegmentationResult) else 0
        found.append(
            f"HD95 does not exist for {metrics['hd95_undefined']:.0f} of {pairs} pairs of case and region, because the "
            "region is in the reference or in the prediction alone. They are not in its mean."
        )
    return found


def _box_notes(result: DetectionResult) -> list[str]:
    """The score threshold, cases where nothing is there, and categories with few true boxes."""
    empty = sum(len(target) == 0 for target in result.targets)
    counts = {name: result.counts(number)[0] for number, name in enumerate(result.categories)}
    rare = [f"{name} ({count})" for name, count in counts.items() if count < FEW_CASES]
    found = [
        f"Score threshold {result.threshold:g}. {_counted(empty, 'case')} without any true box: what is found there is "
        "false."
    ]
    return [*found, f"Categories with fewer than {FEW_CASES} true boxes: {', '.join(rare)}."] if rare else found


def header(evaluation: Evaluation) -> str:
    """Title, split, how many cases, and the reminder."""
    result = evaluation.result
    facts = [
        f"{result.task}",
        f"{_counted(len(result.cases), 'case')} of {_counted(group_count(result), 'patient')} (groups)",
        f"{PARTS[result.task]}: {', '.join(part_names(result))}",
    ]
    items = "".join(f"<li>{escape(note)}</li>" for note in notes(evaluation))
    return (
        f"<header class=page><h1>{escape(evaluation.title)}</h1><p class=lead>{badge(evaluation.split)} &nbsp; "
        f"{escape(' · '.join(facts))}</p><div class=notice role=note><b>A measurement on the cases named here, not a "
        f"clinical result.</b>{f'<ul>{items}</ul>' if items else ''}</div></header>"
    )


def headline(evaluation: Evaluation) -> str:
    """The main numbers as tiles with their intervals."""
    unit = _unit(evaluation.result)
    cells = []
    for metric, (name, meaning) in captions.NAMES.items():
        if metric not in evaluation.metrics:
            continue
        value = number_text(evaluation.metrics[metric], metric)
        value += f" {unit}" if metric == "hd95" and value != NOTHING else ""
        interval = interval_text(metric, evaluation.intervals)
        small = f"95 %: {interval}" if interval != NOTHING else "no interval"
        cells.append(
            f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(small)}</small>"
            f"<small>{escape(meaning)}</small></dd></div>"
        )
    return f"<dl class=facts>{''.join(cells)}</dl>"


def parts_table(evaluation: Evaluation) -> str:
    """One row a class or region with all its numbers and intervals."""
    result = evaluation.result
    names = part_names(result)
    kinds = [kind for kind in captions.NAMES if f"{kind}/{names[0]}" in evaluation.metrics]
    head = [HEADS[result.task], *_count_heads(result)]
    head += [captions.NAMES[kind][0] + (f" ({_unit(result)})" if kind == "hd95" else "") for kind in kinds]
    rows = [
        [name, *_counts(result, index), *(_with_interval(f"{kind}/{name}", evaluation) for kind in kinds)]
        for index, name in enumerate(names)
    ]
    return table(head, rows, wrap=(0,))


def _unit(result: TaskResult) -> str:
    """Unit of distances: mm, voxels or pixels; none where nothing is measured."""
    if not isinstance(result, SegmentationResult):
        return ""
    return "mm" if result.spacing_unit == "mm" else f"{result.spacing_unit}s"


def _count_heads(result: TaskResult) -> list[str]:
    if isinstance(result, ClassificationResult):
        return ["Cases", "Called so"]
    if isinstance(result, DetectionResult):
        return ["True boxes", "Found boxes"]
    return ["In reference", "In prediction"] if f"volume/{result.regions[0]}" in result.rows[0] else []


def _counts(result: TaskResult, index: int) -> list[str]:
    """Cases of a class and predictions of it, cases whose reference or prediction holds a region, or boxes."""
    if isinstance(result, ClassificationResult):
        return [f"{(values == index).sum():,}" for values in (result.targets, result.predicted)]
    if isinstance(result, DetectionResult):
        return [f"{count:,}" for count in result.counts(index)]
    if not _count_heads(result):
        return []
    name = result.regions[index]
    return [f"{sum(row[f'{key}/{name}'] > 0 for row in result.rows):,}" for key in ("reference_volume", "volume")]


def _with_interval(metric: str, evaluation: Evaluation) -> str:
    value = number_text(evaluation.metrics[metric], metric)
    interval = interval_text(metric, evaluation.intervals)
    return value if interval == NOTHING else f"{value} ({interval})"


def numbers(evaluation: Evaluation) -> str:
    """Section with the numbers and what they mean."""
    reading, heading = {
        "classification": (captions.CLASSIFICATION, "Each class against the rest"),
        "segmentation": (captions.SEGMENTATION, "Each region"),
        "detection": (captions.DETECTION, "Each category"),
    }[evaluation.result.task]
    return (
        f"<section><h2>Numbers</h2>{headline(evaluation)}<h3>{heading}</h3>{parts_table(evaluation)}"
        f"<p class='small muted'>{escape(reading)}</p></section>"
    )


def figures(evaluation: Evaluation, drawn: Sequence[tuple[Path, Caption]]) -> str:
    """Section with the pictures of all cases."""
    beside = not isinstance(evaluation.result, SegmentationResult)
    parts = [picture(path, caption, evaluation.title, beside=beside) for path, caption in drawn]
    return f"<section><h2>Pictures</h2>{''.join(parts)}</section>"


def cases(evaluation: Evaluation, drawn: Sequence[Path]) -> str:
    """The cases to look at first: surest mistakes, or lowest scores with a picture each."""
    if not evaluation.show_cases:
        return ""
    if isinstance(evaluation.result, ClassificationResult):
        return _mistakes(evaluation.result)
    if isinstance(evaluation.result, DetectionResult):
        return _worst_boxes(evaluation.result, drawn)
    return _lowest(evaluation.result, drawn)


def _mistakes(result: ClassificationResult) -> str:
    rows = [row for row in result.table() if not row["correct"]]
    rows.sort(key=lambda row: (-row["confidence"], row["case"]))
    if not rows:
        return "<section><h2>Mistakes</h2><p>None of these cases was called wrong.</p></section>"
    shown = [
        (
            row["case"],
            row["target"],
            row["predicted"],
            f"{row['confidence']:.3f}",
            f"{row['prob_' + row['target']]:.3f}",
        )
        for row in rows[:LISTED]
    ]
    head = ("Case", "True class", "Called", "Probability of the call", "Of the true class")
    return (
        f"<section><h2>Surest mistakes</h2><p>{len(rows):,} of {len(result.cases):,} cases were called wrong. These "
        "are the ones of which the model was surest: look here for wrong labels, unusual cases and shortcuts.</p>"
        f"{table(head, shown, wrap=(0, 1, 2))}</section>"
    )


def _lowest(result: SegmentationResult, drawn: Sequence[Path]) -> str:
    table_rows = {row["case"]: row for row in result.table()}
    rows = sorted(table_rows.values(), key=lambda row: (row["dice_mean"], row["case"]))[:LISTED]
    single = {f"dice/{result.regions[0]}"} if len(result.regions) == 1 else set()  # would repeat the mean
    names = [name for name in rows[0] if name.split("/")[0] in ("dice", "hd95") and name not in single]
    shown = [
        (row["case"], number_text(row["dice_mean"], "dice"), *(number_text(row[name], name) for name in names))
        for row in rows
    ]
    head = ("Case", "Dice", *(f"{captions.NAMES[name.split('/')[0]][0]} {name.split('/', 1)[1]}" for name in names))
    parts = ["<section><h2>Cases with the lowest Dice</h2>", table(head, shown, wrap=(0,))]
    if drawn:
        parts.append(f"<p class=small><b>How to read the pictures.</b> {escape(captions.WORST.reading)}</p>")
    for path, entry in zip(drawn, result.pictures, strict=True) if drawn else ():
        scores = [
            f"{region} {number_text(table_rows[entry.case][f'dice/{region}'], 'dice')}" for region in result.regions
        ]
        parts.append(_case_figure(path, f"{entry.case}: Dice {', '.join(scores)}"))
    return "".join(parts) + "</section>"


def _worst_boxes(result: DetectionResult, drawn: Sequence[Path]) -> str:
    rows = {row["case"]: row for row in result.table()}
    shown = [
        (row["case"], *(str(row[name]) for name in COUNTED), number_text(row["f1"], "f1"))
        for row in sorted(rows.values(), key=lambda row: (row["f1"], row["case"]))[:LISTED]
    ]
    head = ("Case", "True boxes", "Found", "Hits", "Missed", "False", "F1")
    parts = ["<section><h2>Cases with the lowest F1</h2>", table(head, shown, wrap=(0,))]
    if drawn:
        parts.append(f"<p class=small><b>How to read the pictures.</b> {escape(captions.WORST_BOXES.reading)}</p>")
    for path, entry in zip(drawn, result.pictures, strict=True) if drawn else ():
        row = rows[entry.case]
        text = f"{entry.case}: {row['hits']} hits, {row['missed']} missed, {row['false_positives']} false"
        parts.append(_case_figure(path, text, captions.WORST_BOXES))
    return "".join(parts) + "</section>"


def _case_figure(path: Path, text: str, caption: Caption = captions.WORST) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    alternative = escape(f"{caption.alternative}, {text}")
    image = f'<img src="data:image/png;base64,{data}" alt="{alternative}">'
    return f"<figure>{image}<figcaption>{escape(text)}</figcaption></figure>"


def settings(evaluation: Evaluation) -> str:
    """Settings of the evaluation, folded away; empty without any."""
    rows = sorted(flatten_parameters(dict(evaluation.settings)).items())
    if not rows:
        return ""
    listed = table(("Setting", "Value"), rows, wrap=(1,))
    return f"<section><h2>Settings</h2><details><summary>{len(rows)} settings</summary>{listed}</details></section>"
