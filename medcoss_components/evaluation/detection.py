"""What an evaluation of a detector found: a checked, frozen record from which metrics, intervals and tables follow.

result = DetectionResult(categories=("nodule",), cases=ids, groups=patients, targets=true, predictions=found)
result.metrics()["map"], result.intervals()["map"], result.table()[0]
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from medcoss_components.data.boxes import resolve_categories
from medcoss_components.errors import InputError
from medcoss_components.evaluation.bootstrap import REPEATS
from medcoss_components.evaluation.detection_metrics import (
    AT_HALF,
    Boxes,
    Matches,
    WeightedDetection,
    detection_metrics,
    match_boxes,
)
from medcoss_components.evaluation.results import PICTURE_SIDE, Intervals, check_cases, remembered_intervals

THRESHOLD = 0.5


@dataclass(frozen=True, kw_only=True, eq=False)
class BoxPicture:
    """One case for the report.

    ``image`` (H, W) or (H, W, 3) float in [0, 1]; ``target`` and ``prediction`` boxes in its pixels, found ones from
    the threshold on; ``score`` of :func:`case_counts`; ``note`` what it shows.
    """

    case: str
    image: NDArray[np.float32]
    target: Boxes
    prediction: Boxes
    score: float
    note: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class DetectionResult:
    """Boxes that a detector found on N cases.

    Args:
        categories: K names; their places are the category numbers of the boxes.
        cases: N different ids (manifest ids, never names of patients).
        groups: N group (patient) hashes; cases of one group are resampled together.
        targets: N sets of true boxes (mappings or :class:`Boxes`), empty where nothing is there.
        predictions: N sets of found boxes with scores, on the same grid as the true ones.
        threshold: score in (0, 1) from which a found box counts in tables, pictures, ``sensitivity`` and
            ``false_positives``; average precision and recall look at boxes of every score.
        pictures: of the worst cases, worst first.

    Raises:
        InputError: when the parts do not fit each other, or a box or score is not finite.
    """

    task: ClassVar[str] = "detection"

    categories: tuple[str, ...]
    cases: tuple[str, ...]
    groups: tuple[str, ...]
    targets: tuple[Boxes, ...]
    predictions: tuple[Boxes, ...]
    threshold: float = THRESHOLD
    pictures: tuple[BoxPicture, ...] = ()
    _intervals: dict[tuple[int, int], Intervals] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        fixed: dict[str, Any] = {
            name: tuple(map(str, getattr(self, name))) for name in ("categories", "cases", "groups")
        }
        fixed |= {name: tuple(map(Boxes.of, getattr(self, name))) for name in ("targets", "predictions")}
        for name, value in (fixed | {"pictures": tuple(self.pictures)}).items():
            object.__setattr__(self, name, value)
        check_threshold(self.threshold)
        resolve_categories(self.categories)
        check_cases(self.cases, self.groups, len(self.targets))
        if len(self.predictions) != len(self.targets):
            raise InputError(
                f"predictions must be as many as targets, received {len(self.predictions)} and {len(self.targets)}."
            )
        for name in ("targets", "predictions"):
            for case, boxes in zip(self.cases, getattr(self, name), strict=True):
                _check_boxes(boxes, f"{name} of case {case}", len(self.categories))

    @cached_property
    def matches(self) -> Matches:
        """Which found boxes are hits, see :func:`~medcoss_components.evaluation.detection_metrics.match_boxes`."""
        return match_boxes(self.targets, self.predictions)

    @cached_property
    def _metrics(self) -> dict[str, float]:
        return detection_metrics(self.matches, self.categories, threshold=self.threshold)

    def metrics(self) -> dict[str, float]:
        """See :func:`~medcoss_components.evaluation.detection_metrics.detection_metrics`."""
        return dict(self._metrics)

    def intervals(self, repeats: int = REPEATS, seed: int = 0) -> Intervals:
        """95 % bootstrap interval of every metric; empty with fewer than two groups."""
        return remembered_intervals(
            self, WeightedDetection(self.matches, self.categories, self.threshold), repeats, seed
        )

    def table(self) -> list[dict[str, Any]]:
        """One row a case: case, group, then the numbers of :func:`case_counts` and ``best_score`` (NaN: none found)."""
        return [
            {
                "case": case,
                "group": group,
                **case_counts(self.matches[row], self.threshold),
                "best_score": float(self.predictions[row].scores.max(initial=-math.inf))
                if len(self.predictions[row])
                else math.nan,
            }
            for row, (case, group) in enumerate(zip(self.cases, self.groups, strict=True))
        ]

    BOX_COLUMNS: ClassVar[tuple[str, ...]] = ("case", "kind", "category", "score", "left", "top", "right", "bottom")

    def box_table(self) -> list[dict[str, Any]]:
        """One row a box, in pixels of the file: ``BOX_COLUMNS``; ``kind`` is "true" (without score) or "found"."""
        rows = []
        for case, *pair in zip(self.cases, self.targets, self.predictions, strict=True):
            for kind, boxes in zip(("true", "found"), pair, strict=True):
                for box, label, score in zip(boxes.boxes, boxes.labels, boxes.scores, strict=True):
                    sides = dict(zip(self.BOX_COLUMNS[4:], (round(float(side), 2) for side in box), strict=True))
                    value = math.nan if kind == "true" else round(float(score), 6)
                    rows.append(
                        {"case": case, "kind": kind, "category": self.categories[label], "score": value} | sides
                    )
        return rows

    def counts(self, number: int) -> tuple[int, int]:
        """True boxes of a category, and found ones from the threshold on."""
        found = sum(
            int(((boxes.labels == number) & (boxes.scores >= self.threshold)).sum()) for boxes in self.predictions
        )
        return sum(int((boxes.labels == number).sum()) for boxes in self.targets), found


def case_counts(matches: Mapping[int, Mapping[str, NDArray[Any]]], threshold: float) -> dict[str, int | float]:
    """What of one case is right, overlap 0.5, score from the threshold on.

    Args:
        matches: of one case, see :func:`~medcoss_components.evaluation.detection_metrics.match_boxes`.
        threshold: score from which a found box counts.

    Returns:
        ``true_boxes``, ``found_boxes``, ``hits``, ``missed``, ``false_positives``, and ``f1`` = 2 hits / (true_boxes +
        found_boxes), 1 for a case where nothing is there and nothing found.
    """
    true = sum(entry["gtMatches"].shape[1] for entry in matches.values())
    sure = {number: entry["dtScores"] >= threshold for number, entry in matches.items()}
    found = sum(int(chosen.sum()) for chosen in sure.values())
    hits = sum(int(entry["dtMatches"][AT_HALF][sure[number]].sum()) for number, entry in matches.items())
    return {
        "true_boxes": true,
        "found_boxes": found,
        "hits": hits,
        "missed": true - hits,
        "false_positives": found - hits,
        "f1": 2 * hits / (true + found) if true + found else 1.0,
    }


def make_box_picture(image: Any, target: Boxes, prediction: Boxes, *, case: str, score: float) -> BoxPicture:
    """The picture of a case; sides beyond 768 pixels are thinned, boxes with them.

    Args:
        image: (C, H, W), C 1 or 3, any unit; the range from the 0.5 to the 99.5 percentile is shown.
        target, prediction: boxes in its pixels.
        case, score: see :class:`BoxPicture`.

    Raises:
        InputError: for another number of axes or channels.
    """
    from medcoss_components.tracking.figures import displayed, grey_window, plane

    pixels = plane(image)
    step = -(-max(pixels.shape[:2]) // PICTURE_SIDE)
    pixels = pixels[::step, ::step]
    colours = displayed(pixels, grey_window(pixels)).astype(np.float32)
    return BoxPicture(
        case=case,
        image=colours[..., 0] if pixels.shape[2] == 1 else colours,
        target=_smaller(target, step),
        prediction=_smaller(prediction, step),
        score=float(score),
    )


def _smaller(boxes: Boxes, step: int) -> Boxes:
    return boxes.moved(boxes.boxes / step)


def check_threshold(threshold: float) -> None:
    """Raise InputError unless a score threshold lies between 0 and 1."""
    if not 0 < threshold < 1:
        raise InputError(f"threshold={threshold}: must be above 0 and below 1.")


def _check_boxes(boxes: Boxes, where: str, categories: int) -> None:
    if not len(boxes.boxes) == len(boxes.labels) == len(boxes.scores):
        raise InputError(
            f"{where}: boxes, labels and scores must be as many, received {len(boxes.boxes)}, {len(boxes.labels)} and "
            f"{len(boxes.scores)}."
        )
    if not (np.isfinite(boxes.boxes).all() and np.isfinite(boxes.scores).all()):
        raise InputError(f"{where}: a box or score is not finite; check the weights, or try precision float32.")
    if len(boxes) and not (boxes.labels.min() >= 0 and boxes.labels.max() < categories):
        raise InputError(
            f"{where}: labels must be in [0, {categories}), received {boxes.labels.min()} to {boxes.labels.max()}."
        )
