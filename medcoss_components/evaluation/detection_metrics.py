"""Numbers of a detector: MONAI's COCO metric for the data set, the same formulas over weights for the bootstrap.

A found box is a hit when it has the category of a true box that no surer found box has taken and overlaps it enough;
found boxes of a case without true boxes are false positives, as in every evaluation of the field (Lin et al. 2014,
COCO). A category without any true box has no number (NaN, never 0 or 1), and means over categories leave it out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medcoss_components.evaluation.bootstrap import CHUNK

OVERLAPS = np.linspace(0.5, 0.95, 10)
"""Intersection over union from which a found box is a hit; ``map`` is the mean over them."""
AT_HALF, AT_THREE_QUARTERS = 0, 5  # their places for 0.5 and 0.75
RECALLS = np.linspace(0.0, 1.0, 101)
MOST_FOUND = (1, 10, 100)
"""Boxes of a case and category that average recall looks at, the surest ones; nothing looks at more than the last."""
FALSE_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives per case at which ``froc`` reads the sensitivity (van Ginneken et al. 2010, LUNA16)."""
BY_CATEGORY = ("map", "map50", "map75", "ar1", "ar10", "ar100", "froc", "sensitivity", "false_positives")


@dataclass(frozen=True, kw_only=True, eq=False)
class Boxes:
    """Boxes of one case.

    ``boxes`` (n, 4) float64 left, top, right, bottom in pixels, right and bottom exclusive; ``labels`` (n,) int64
    category numbers; ``scores`` (n,) float64 of found boxes, ones for true boxes.
    """

    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    scores: NDArray[np.float64]

    @classmethod
    def of(cls, values: Mapping[str, Any] | Boxes) -> Boxes:
        """From a mapping with ``boxes`` (n, 4), ``labels`` (n,) and perhaps ``scores`` (n,), NumPy or torch."""
        if isinstance(values, Boxes):
            return values
        boxes = _array(values["boxes"]).reshape(-1, 4).astype(np.float64)
        scores = _array(values["scores"]) if "scores" in values else np.ones(len(boxes))
        return cls(
            boxes=boxes, labels=_array(values["labels"]).reshape(-1).astype(np.int64), scores=scores.astype(np.float64)
        )

    def __len__(self) -> int:
        return len(self.boxes)

    def chosen(self, which: NDArray[Any]) -> Boxes:
        """Some of them: (n,) bool or row numbers."""
        return Boxes(boxes=self.boxes[which], labels=self.labels[which], scores=self.scores[which])

    def moved(self, boxes: NDArray[Any]) -> Boxes:
        """The same ones at other places: (n, 4)."""
        return Boxes(boxes=np.asarray(boxes, np.float64), labels=self.labels, scores=self.scores)

    def at_least(self, score: float) -> Boxes:
        """Those of at least this score, the surest first."""
        kept = self.chosen(self.scores >= score)
        return kept.chosen(np.argsort(-kept.scores, kind="stable"))


def _array(values: Any) -> NDArray[Any]:
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


Matches = Sequence[Mapping[int, Mapping[str, NDArray[Any]]]]
"""Per case: category number -> what MONAI's ``matching_batch`` says of it."""


def match_boxes(targets: Sequence[Boxes], predictions: Sequence[Boxes]) -> Matches:
    """Match the found boxes of N cases with the true ones, at every overlap of :data:`OVERLAPS` (MONAI).

    Returns:
        For each case and category number ``dtScores`` (D,), the surest first, ``dtMatches`` (10, D), 1 for a hit, and
        ``gtMatches`` (10, G).
    """
    from monai.apps.detection.metrics.matching import matching_batch
    from monai.data.box_utils import box_iou

    return matching_batch(
        iou_fn=box_iou,
        iou_thresholds=OVERLAPS.tolist(),
        pred_boxes=[found.boxes for found in predictions],
        pred_classes=[found.labels for found in predictions],
        pred_scores=[found.scores for found in predictions],
        gt_boxes=[true.boxes for true in targets],
        gt_classes=[true.labels for true in targets],
        max_detections=MOST_FOUND[-1],
    )


def detection_metrics(matches: Matches, categories: Sequence[str], *, threshold: float) -> dict[str, float]:
    """Metrics of found boxes over N cases.

    Args:
        matches: of :func:`match_boxes`.
        categories: K names; their places are the category numbers.
        threshold: score from which a box counts in ``sensitivity`` and ``false_positives``.

    Returns:
        ``map`` (average precision, mean over the overlaps 0.5, 0.55 .. 0.95), ``map50`` and ``map75`` (at one overlap);
        ``ar1``, ``ar10``, ``ar100`` (share of the true boxes among the 1, 10, 100 surest boxes of each case, mean over
        the overlaps); ``froc`` (mean sensitivity at 1/8, 1/4, 1/2, 1, 2, 4, 8 false positives per case and category,
        overlap 0.5); ``sensitivity`` and ``false_positives`` (share of true boxes that is found, wrong boxes per case,
        both at the threshold and overlap 0.5); each also as ``<metric>/<category>``. A metric is the mean over the
        categories with true boxes, but ``false_positives`` the sum over all categories.
    """
    found = {name: float(values[0]) for name, values in WeightedDetection(matches, categories, threshold).ones.items()}
    return found | _coco_metrics(matches, categories)


def _coco_metrics(matches: Matches, categories: Sequence[str]) -> dict[str, float]:
    """Average precisions and recalls as MONAI's COCOMetric computes them, over the categories with true boxes.

    The metric's own means would count -1 for a category without true boxes, so it is not shown those.
    """
    from monai.apps.detection.metrics.coco import COCOMetric

    present = [number for number in range(len(categories)) if _true_boxes(matches, number).any()]
    if not present:
        return {}
    metric = COCOMetric(
        classes=[str(number) for number in present],
        iou_list=(0.5, 0.75),
        iou_range=(0.5, 0.95, 0.05),
        max_detection=MOST_FOUND,
        verbose=False,
    )
    values, _ = metric([{place: case[n] for place, n in enumerate(present) if n in case} for case in matches])
    span, most = "IoU_0.50_0.95_0.05", f"MaxDet_{MOST_FOUND[-1]}"
    keys = {"map": f"mAP_{span}_{most}", "map50": f"AP_IoU_0.50_{most}", "map75": f"AP_IoU_0.75_{most}"}
    keys |= {f"ar{limit}": f"mAR_{span}_MaxDet_{limit}" for limit in MOST_FOUND}
    found = {name: float(values[key]) for name, key in keys.items()}
    for number in present:
        found |= {f"{name}/{categories[number]}": float(values[f"{number}_{key}"]) for name, key in keys.items()}
    return found


def _true_boxes(matches: Matches, number: int) -> NDArray[np.float64]:
    """(N,) true boxes of a category in each case."""
    return np.array([case[number]["gtMatches"].shape[1] if number in case else 0 for case in matches], np.float64)


class _Category:
    """The found boxes of one category over all cases, the surest first (ties in the order of the cases, as in COCO).

    ``case`` (D,) where each box is; ``scores`` (D,); ``hits`` (10, D) bool; ``true`` (N,) true boxes of each case;
    ``early`` {limit: (10, N) hits among the surest boxes of each case}.
    """

    def __init__(self, matches: Matches, number: int) -> None:
        none = {"dtScores": np.zeros(0), "dtMatches": np.zeros((len(OVERLAPS), 0))}
        rows = [case.get(number, none) for case in matches]
        scores = np.concatenate([row["dtScores"] for row in rows])
        order = np.argsort(-scores, kind="stable")
        self.true = _true_boxes(matches, number)
        self.scores = scores[order]
        self.case = np.repeat(np.arange(len(rows)), [len(row["dtScores"]) for row in rows])[order]
        self.hits = np.concatenate([row["dtMatches"] for row in rows], axis=1).astype(bool)[:, order]
        self.early = {
            limit: np.stack([row["dtMatches"][:, :limit].sum(axis=1) for row in rows], axis=1) for limit in MOST_FOUND
        }


class OperatingPoints(NamedTuple):
    """What each score threshold gives, the highest threshold first; overlap 0.5, all (P,).

    ``scores``, ``recall`` (share of the true boxes), ``precision`` (share of the found boxes), ``false_boxes`` (for
    each case).
    """

    scores: NDArray[np.float64]
    recall: NDArray[np.float64]
    precision: NDArray[np.float64]
    false_boxes: NDArray[np.float64]


def operating_points(matches: Matches, number: int) -> OperatingPoints | None:
    """The curve of one category, None for one without true boxes; ``matches`` as of :func:`match_boxes`."""
    part = _Category(matches, number)
    if not part.true.any():
        return None
    ends = np.flatnonzero(np.diff(part.scores, append=-np.inf))
    right = part.hits[AT_HALF].cumsum()[ends]
    return OperatingPoints(
        part.scores[ends], right / part.true.sum(), right / (ends + 1.0), (ends + 1.0 - right) / len(matches)
    )


class WeightedDetection:
    """The metrics of :func:`detection_metrics` for many weightings of the same cases at once.

    Calling it with weights (r, N), how often each case counts, gives each metric as (r,). Weights of 1 give the numbers
    of :func:`detection_metrics`.
    """

    def __init__(self, matches: Matches, categories: Sequence[str], threshold: float) -> None:
        self.categories, self.threshold, self.count = tuple(categories), threshold, len(matches)
        self.parts = [_Category(matches, number) for number in range(len(self.categories))]

    @property
    def ones(self) -> dict[str, NDArray[np.float64]]:
        """Every metric (1,) with each case counted once."""
        return self(np.ones((1, self.count)))

    def __call__(self, weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        most = max([1, *(len(part.scores) for part in self.parts)])
        blocks = [self._block(block) for block in np.split(weights, range(0, len(weights), max(1, CHUNK // most))[1:])]
        return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}

    def _block(self, weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        parts = [self._category(part, weights) for part in self.parts]
        found = {name: _nan_mean(np.stack([part[name] for part in parts])) for name in BY_CATEGORY}
        found["false_positives"] = np.sum([part["false_positives"] for part in parts], axis=0)
        names = zip(self.categories, parts, strict=True)
        return found | {f"{name}/{category}": part[name] for category, part in names for name in BY_CATEGORY}

    def _category(self, part: _Category, weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        true, drawn = weights @ part.true, weights[:, part.case]
        precision = average_precision(part.hits, drawn, true)
        sure = part.scores >= self.threshold
        right = drawn[:, sure] * part.hits[AT_HALF, sure]
        return {
            "map": precision.mean(axis=0),
            "map50": precision[AT_HALF],
            "map75": precision[AT_THREE_QUARTERS],
            **{f"ar{k}": _ratio((weights @ hits.T).mean(axis=1), true) for k, hits in part.early.items()},
            "froc": froc_score(part.hits[AT_HALF], part.scores, drawn, true, weights.sum(axis=1)),
            "sensitivity": _ratio(right.sum(axis=1), true),
            "false_positives": _ratio((drawn[:, sure] - right).sum(axis=1), weights.sum(axis=1)),
        }


def average_precision(
    hits: NDArray[np.bool_], drawn: NDArray[np.float64], true: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Area under the precision-recall curve as COCO reads it: at 101 recalls, the largest precision from there on.

    Only at hits does the recall grow and can the precision be largest, so the curve is followed there alone.

    Args:
        hits: (T, D) whether each found box is a hit at each overlap, the surest box first.
        drawn: (r, D) how often the case of each box counts.
        true: (r,) true boxes.

    Returns:
        (T, r) in [0, 1]; NaN where no true box is drawn.
    """
    total = drawn.cumsum(axis=1)
    areas = np.zeros((len(hits), len(drawn)))
    for row, places in enumerate(map(np.flatnonzero, hits)):
        if len(places) == 0:
            continue
        right = drawn[:, places].cumsum(axis=1).astype(np.float32)  # counts in float32 as MONAI has them
        recall = _ratio32(right, true[:, None])
        precision = right / (total[:, places].astype(np.float32) + np.spacing(1.0))
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        reached = np.searchsorted(RECALLS, recall, side="right")  # recalls read up to each hit
        areas[row] = (best * np.diff(reached, axis=1, prepend=0)).sum(axis=1) / len(RECALLS)
    return np.where(true > 0, areas, np.nan)


def froc_score(
    hits: NDArray[np.bool_],
    scores: NDArray[np.float64],
    drawn: NDArray[np.float64],
    true: NDArray[np.float64],
    cases: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Mean sensitivity at the rates of :data:`FALSE_RATES`.

    At each rate the largest sensitivity is taken that some score threshold reaches with no more false positives per
    case. (MONAI's FROC interpolates between thresholds and leaves the lowest one out, so that a single right box would
    count for nothing.)

    Args:
        hits: (D,) whether each found box is a hit, the surest box first.
        scores: (D,) of the boxes, falling.
        drawn: (r, D) how often the case of each box counts.
        true, cases: (r,) true boxes and cases.

    Returns:
        (r,) in [0, 1]; NaN where no true box is drawn.
    """
    ends = np.flatnonzero(np.diff(scores, append=-np.inf))  # boxes of one score come together
    right = (drawn * hits).cumsum(axis=1)[:, ends]
    wrong = drawn.cumsum(axis=1)[:, ends] - right
    reached = np.concatenate([np.zeros((len(drawn), 1)), right], axis=1)  # before the first box nothing is found
    sums = np.zeros(len(drawn))
    for rate in FALSE_RATES:
        allowed = (wrong <= rate * cases[:, None]).sum(axis=1, keepdims=True)
        sums += np.take_along_axis(reached, allowed, axis=1)[:, 0]
    return _ratio(sums / len(FALSE_RATES), true)


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """part / whole, NaN where whole is 0."""
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=np.asarray(whole) > 0)


def _ratio32(part: NDArray[np.float32], whole: NDArray[np.float64]) -> NDArray[np.float32]:
    """part / whole in float32; 0 where whole is 0."""
    divisor = np.broadcast_to(whole.astype(np.float32), part.shape)
    return np.divide(part, divisor, out=np.zeros_like(part), where=divisor > 0)


def _nan_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the first axis without NaN; NaN where nothing is left."""
    known = np.isfinite(values)
    return _ratio(np.where(known, values, 0.0).sum(axis=0), known.sum(axis=0).astype(np.float64))
