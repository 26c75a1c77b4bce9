"""The evaluation report of a fine-tuned model: table of the cases, numbers, pictures and one HTML page.

metrics = write_task_report(result, "runs/liver/evaluation/testing", title="Liver CT segmentation", split="testing")
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medcoss_components._version import __version__
from medcoss_components.evaluation.bootstrap import LEVEL, REPEATS
from medcoss_components.evaluation.detection import DetectionResult
from medcoss_components.evaluation.results import ClassificationResult, SegmentationResult, json_numbers
from medcoss_components.files import atomic_path, write_json, write_text
from medcoss_components.tracking import detection_figures as draw_boxes
from medcoss_components.tracking import task_captions as captions
from medcoss_components.tracking import task_figures as draw
from medcoss_components.tracking import task_report_html as html
from medcoss_components.tracking.report_captions import Caption
from medcoss_components.tracking.report_html import page
from medcoss_components.tracking.task_report_html import Evaluation, TaskResult

REPORT_NAME = "REPORT.html"
METRICS_NAME = "metrics.json"
CASES_NAME = "cases.csv"
BOXES_NAME = "boxes.csv"
CLASSIFICATION_PICTURES = {
    "roc.png": (draw.roc_curves, captions.ROC),
    "confusion.png": (draw.confusion_picture, captions.CONFUSION),
    "calibration.png": (draw.calibration_picture, captions.CALIBRATION),
}
SEGMENTATION_PICTURES = {"dice.png": (draw.score_distribution, captions.SCORES)}
DETECTION_PICTURES = {
    "precision_recall.png": (draw_boxes.precision_recall, captions.PRECISION),
    "froc.png": (draw_boxes.froc_curves, captions.FROC),
}


def write_task_report(
    result: TaskResult,
    folder: str | Path,
    *,
    title: str,
    split: str,
    settings: Mapping[str, Any] | None = None,
    show_cases: bool = True,
    repeats: int = REPEATS,
    seed: int = 0,
) -> dict[str, float]:
    """Write the evaluation of one split.

    ``cases.csv`` one row a case; ``metrics.json`` numbers, 95 % intervals, undefined numbers (null) and notes;
    classification: ``roc.png``, ``confusion.png``, ``calibration.png``; segmentation: ``dice.png``, ``worst_<n>.png``;
    detection: ``boxes.csv`` (every true and found box in pixels of the file), ``precision_recall.png``, ``froc.png``,
    ``worst_<n>.png``; ``REPORT.html``, which holds its pictures itself and asks nothing from the network. Files of an
    earlier evaluation in the folder are replaced; ``metrics.json`` is written last. The same result gives the same
    bytes.

    Args:
        result: of the evaluation.
        folder: made when it is missing.
        title: of the page, for example the name of the bundle.
        split: which cases these are, for example "testing".
        settings: of the run, shown folded away.
        show_cases: False leaves pictures and lists of single cases out of page and folder; ``cases.csv`` stays.
        repeats, seed: of the bootstrap.

    Returns:
        ``result.metrics()``.
    """
    folder = Path(folder)
    metrics = result.metrics()
    intervals = result.intervals(repeats, seed)
    evaluation = Evaluation(result, title, split, metrics, intervals, settings or {}, show_cases)
    _remove_former(folder)
    write_cases(result, folder / CASES_NAME)
    if isinstance(result, DetectionResult):
        write_rows(result.box_table(), folder / BOXES_NAME, columns=result.BOX_COLUMNS)
    drawn = _pictures(result, folder)
    worst = _worst(evaluation, folder)
    write_text(folder / REPORT_NAME, _page(evaluation, drawn, worst))
    write_json(folder / METRICS_NAME, _summary(evaluation, repeats, seed))
    return metrics


def _remove_former(folder: Path) -> None:
    """A report that is half new must not look finished, and pictures of an earlier one must not stay."""
    pictures = (*CLASSIFICATION_PICTURES, *SEGMENTATION_PICTURES, *DETECTION_PICTURES)
    names = [METRICS_NAME, REPORT_NAME, CASES_NAME, BOXES_NAME, *pictures]
    for path in [*(folder / name for name in names), *folder.glob("worst_*.png")]:
        path.unlink(missing_ok=True)


def write_cases(result: TaskResult, path: str | Path) -> Path:
    """Table of the cases as CSV with a header line; an undefined number is an empty cell."""
    rows = result.table()
    return write_rows(rows, path, columns=list(rows[0]))


def write_rows(rows: Sequence[Mapping[str, Any]], path: str | Path, *, columns: Sequence[str]) -> Path:
    """Rows as CSV with a header line; an undefined number is an empty cell."""
    path = Path(path)
    with atomic_path(path) as partial, open(partial, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return path


def _cell(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return f"{value:.9g}" if math.isfinite(value) else ""


def _pictures(result: TaskResult, folder: Path) -> list[tuple[Path, Caption]]:
    if isinstance(result, ClassificationResult):
        return [(make(result, folder / name), caption) for name, (make, caption) in CLASSIFICATION_PICTURES.items()]
    if isinstance(result, DetectionResult):
        return [(plot(result, folder / name), caption) for name, (plot, caption) in DETECTION_PICTURES.items()]
    return [(make(result, folder / name), caption) for name, (make, caption) in SEGMENTATION_PICTURES.items()]


def _worst(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Numbered, because a file name must not hold an id."""
    result = evaluation.result
    if isinstance(result, ClassificationResult) or not evaluation.show_cases:
        return []
    if isinstance(result, DetectionResult):
        return [
            draw_boxes.box_picture(entry, result.categories, folder / f"worst_{number}.png")
            for number, entry in enumerate(result.pictures, 1)
        ]
    return [
        draw.case_picture(entry, result.regions, folder / f"worst_{number}.png")
        for number, entry in enumerate(result.pictures, 1)
    ]


def _summary(evaluation: Evaluation, repeats: int, seed: int) -> dict[str, Any]:
    result, metrics = evaluation.result, evaluation.metrics
    own: dict[str, Any] = {}
    if isinstance(result, SegmentationResult):
        own = {"distance_unit": result.spacing_unit}
    elif isinstance(result, DetectionResult):
        own = {"score_threshold": result.threshold}
    return {
        "title": evaluation.title,
        "split": evaluation.split,
        "task": result.task,
        html.PARTS[result.task]: list(html.part_names(result)),
        **own,
        "cases": len(result.cases),
        "groups": html.group_count(result),
        "metrics": json_numbers(metrics),
        "intervals": {name: list(values) for name, values in evaluation.intervals.items()},
        "bootstrap": {"level": LEVEL, "repeats": repeats, "seed": seed, "unit": "group"},
        "undefined": [name for name, value in metrics.items() if not math.isfinite(value)],
        "notes": html.notes(evaluation),
        "version": __version__,
    }


def _page(evaluation: Evaluation, drawn: Sequence[tuple[Path, Caption]], worst: Sequence[Path]) -> str:
    sections = [
        html.numbers(evaluation),
        html.figures(evaluation, drawn),
        html.cases(evaluation, worst),
        html.settings(evaluation),
    ]
    handling = "Handle this file as you handle the data: it describes single cases."
    return page(f"{evaluation.title}: {evaluation.split}", html.header(evaluation), sections, handling)
