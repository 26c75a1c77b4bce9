"""What an evaluation found: checked, frozen records from which metrics, intervals and tables follow.

result = ClassificationResult(classes=("normal", "pneumonia"), cases=ids, groups=patients, probabilities=p, targets=y)
result.metrics()["auc"], result.intervals()["auc"], result.table()[0]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from medcoss_components.errors import InputError
from medcoss_components.evaluation.bootstrap import REPEATS, Statistic, bootstrap_intervals
from medcoss_components.evaluation.classification import (
    WeightedClassification,
    checked_predictions,
    classification_metrics,
)
from medcoss_components.evaluation.segmentation import SCORES, as_masks, score_columns, weighted_means

Intervals = dict[str, tuple[float, float]]
PICTURE_SIDE = 768  # pixels; larger images are thinned
WORST = 6
UNITS = ("mm", "voxel", "pixel")
WINDOW_MARGIN = 1.5  # of the range of grey values inside the regions, shown on either side of it


def json_numbers(values: Mapping[str, float]) -> dict[str, float | None]:
    """The same numbers with null for what is undefined, because JSON knows no NaN."""
    return {name: float(value) if math.isfinite(value) else None for name, value in values.items()}


def check_cases(cases: Sequence[str], groups: Sequence[str], count: int) -> None:
    """Raise InputError unless different cases and their groups are as many as the results."""
    if count == 0 or len(cases) != count or len(groups) != count:
        raise InputError(
            f"cases and groups must name each of the {count} results (at least one), "
            f"received {len(cases)} cases and {len(groups)} groups."
        )
    if len(set(cases)) != count:
        repeated = next(case for case in cases if list(cases).count(case) > 1)
        raise InputError(f"cases must differ, received {repeated!r} more than once. Average rows of one case first.")


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassificationResult:
    """Predictions of a classifier on N cases.

    Args:
        classes: K names, in the order of the probabilities.
        cases: N different ids (manifest ids, never names of patients).
        groups: N group (patient) hashes; cases of one group are resampled together.
        probabilities: (N, K) float64, rows sum to 1.
        targets: (N,) int64 true class in [0, K).

    Raises:
        InputError: when the parts do not fit each other.
    """

    task: ClassVar[str] = "classification"

    classes: tuple[str, ...]
    cases: tuple[str, ...]
    groups: tuple[str, ...]
    probabilities: NDArray[np.float64]
    targets: NDArray[np.int64]
    _intervals: dict[tuple[int, int], Intervals] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        probabilities, targets = checked_predictions(self.probabilities, self.targets, self.classes)
        check_cases(self.cases, self.groups, len(targets))
        fixed = {"probabilities": probabilities, "targets": targets}
        fixed |= {name: tuple(map(str, getattr(self, name))) for name in ("classes", "cases", "groups")}
        for name, value in fixed.items():
            object.__setattr__(self, name, value)

    @property
    def predicted(self) -> NDArray[np.int64]:
        """(N,) most probable class, the first of equals."""
        return self.probabilities.argmax(axis=1)

    def metrics(self) -> dict[str, float]:
        """See :func:`~medcoss_components.evaluation.classification.classification_metrics`."""
        return classification_metrics(self.probabilities, self.targets, self.classes)

    def intervals(self, repeats: int = REPEATS, seed: int = 0) -> Intervals:
        """95 % bootstrap interval of every metric; empty with fewer than two groups."""
        return remembered_intervals(
            self, WeightedClassification(self.probabilities, self.targets, self.classes), repeats, seed
        )

    def table(self) -> list[dict[str, Any]]:
        """One row a case: case, group, target, predicted, correct, confidence, prob_<class> of every class."""
        names, predicted = self.classes, self.predicted
        return [
            {
                "case": case,
                "group": group,
                "target": names[self.targets[row]],
                "predicted": names[predicted[row]],
                "correct": int(self.targets[row] == predicted[row]),
                "confidence": float(self.probabilities[row].max()),
                **{f"prob_{name}": float(value) for name, value in zip(names, self.probabilities[row], strict=True)},
            }
            for row, (case, group) in enumerate(zip(self.cases, self.groups, strict=True))
        ]


@dataclass(frozen=True, kw_only=True, eq=False)
class CasePicture:
    """One slice of a case for the report.

    ``image`` (H, W) or (H, W, 3) float in [0, 1]; ``target`` and ``prediction`` (K, H, W) bool; ``score`` the case's
    mean Dice in [0, 1]; ``note`` which slice it is.
    """

    case: str
    image: NDArray[np.float32]
    target: NDArray[np.bool_]
    prediction: NDArray[np.bool_]
    score: float
    note: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class SegmentationResult:
    """Scores of a segmentation model on N cases.

    Args:
        regions: K names, in the order of the network's outputs.
        cases: N different ids (manifest ids, never names of patients).
        groups: N group (patient) hashes; cases of one group are resampled together.
        rows: N results of :func:`~medcoss_components.evaluation.segmentation.case_metrics`.
        pictures: of the worst cases, worst first.
        spacing_unit: "mm" when distances were measured with spacing, else "voxel" or "pixel".

    Raises:
        InputError: when the parts do not fit each other.
    """

    task: ClassVar[str] = "segmentation"

    regions: tuple[str, ...]
    cases: tuple[str, ...]
    groups: tuple[str, ...]
    rows: tuple[Mapping[str, float], ...]
    pictures: tuple[CasePicture, ...] = ()
    spacing_unit: str = "mm"
    _intervals: dict[tuple[int, int], Intervals] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        fixed = {name: tuple(map(str, getattr(self, name))) for name in ("regions", "cases", "groups")}
        for name, value in (fixed | {"rows": tuple(self.rows), "pictures": tuple(self.pictures)}).items():
            object.__setattr__(self, name, value)
        check_cases(self.cases, self.groups, len(self.rows))
        if self.spacing_unit not in UNITS:
            raise InputError(f"spacing_unit must be one of {', '.join(UNITS)}, received {self.spacing_unit!r}.")
        missing = [name for row in self.rows for name in map("dice/{}".format, self.regions) if name not in row]
        if missing or not self.regions:
            raise InputError(f"rows must hold dice/<region> of {list(self.regions)}, missing: {sorted(set(missing))}.")

    def columns(self) -> dict[str, NDArray[np.float64]]:
        """See :func:`~medcoss_components.evaluation.segmentation.score_columns`."""
        return score_columns(self.rows, self.regions)

    def metrics(self) -> dict[str, float]:
        """Means over the cases.

        Returns:
            ``dice`` (mean over the cases of the mean over the regions), ``iou``, ``hd95``, ``surface_dice``, the same
            of every region (``dice/<region>`` ...); ``miou``, which counts the background as one more region; and
            ``hd95_undefined``: how many pairs of case and region have no distance.
        """
        columns = self.columns()
        means = weighted_means(columns, np.ones((1, len(self.rows))))
        found = {name: float(values[0]) for name, values in means.items()}
        if "hd95" in columns:
            found["hd95_undefined"] = float(sum(np.isnan(columns[f"hd95/{name}"]).sum() for name in self.regions))
        return found

    def intervals(self, repeats: int = REPEATS, seed: int = 0) -> Intervals:
        """95 % bootstrap interval of every mean; empty with fewer than two groups."""
        return remembered_intervals(self, partial(weighted_means, self.columns()), repeats, seed)

    def table(self) -> list[dict[str, Any]]:
        """One row a case: case, group, dice_mean, iou_mean, miou_mean, hd95_mean, surface_dice_mean (where there are
        such numbers), then the numbers of every region."""
        columns = self.columns()
        means = [name for name in SCORES if name in columns]
        return [
            {
                "case": case,
                "group": group,
                **{f"{name}_mean": float(columns[name][index]) for name in means},
                **{name: float(value) for name, value in self.rows[index].items()},
            }
            for index, (case, group) in enumerate(zip(self.cases, self.groups, strict=True))
        ]


def remembered_intervals(result: Any, statistic: Statistic, repeats: int, seed: int) -> Intervals:
    """Intervals of a result object, computed once: the report and the run's metrics both ask for them."""
    if (repeats, seed) not in result._intervals:
        result._intervals[repeats, seed] = bootstrap_intervals(statistic, result.groups, repeats=repeats, seed=seed)
    return dict(result._intervals[repeats, seed])


class ScoredPicture(Protocol):
    """What the worst cases are chosen by."""

    @property
    def case(self) -> str: ...

    @property
    def score(self) -> float: ...


Picture = TypeVar("Picture", bound=ScoredPicture)


class WorstCases(Generic[Picture]):
    """Keeps the pictures of the cases with the lowest scores; equal scores are ordered by case.

    Args:
        limit: how many at most.
    """

    def __init__(self, limit: int = WORST) -> None:
        if limit < 0:
            raise InputError(f"limit must be 0 or more, received {limit}.")
        self.limit = limit
        self._kept: list[Picture] = []

    def offer(self, *, case: str, score: float, make: Callable[[], Picture]) -> None:
        """Call ``make`` only when the case is among the worst so far."""
        order = (score, case)
        if self.limit and (len(self._kept) < self.limit or order < self._order(self._kept[-1])):
            self.add(make())

    def add(self, picture: Picture) -> None:
        """Offer a picture that exists, for example from another rank; a case is kept once."""
        kept = {known.case: known for known in (*self._kept, picture)}
        self._kept = sorted(kept.values(), key=self._order)[: self.limit]

    @staticmethod
    def _order(picture: ScoredPicture) -> tuple[float, str]:
        return picture.score, picture.case

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """Worst first."""
        return tuple(self._kept)


def make_picture(
    image: Any,
    target: Any,
    prediction: Any,
    *,
    case: str,
    score: float,
    window: tuple[float, float] | None = None,
) -> CasePicture:
    """The slice that shows a case's mistakes best.

    Of a volume the slice with most wrong voxels over all regions; without mistakes the one with most foreground, and
    without foreground the middle one. Sides beyond 768 pixels are thinned.

    Args:
        image: (C, H, W) or (1, Z, H, W), C 1 or 3, any unit.
        target, prediction: (K, H, W) or (K, Z, H, W) bool.
        case, score: see :class:`CasePicture`.
        window: values shown as black and white; None shows values in [0, 1] as they are, and others in the range of the
            grey values inside the regions and 1.5 times that on either side, as a soft-tissue window does.

    Raises:
        InputError: when the shapes do not fit.
    """
    from medcoss_components.tracking.figures import as_array, displayed

    pixels, masks, guesses = as_array(image), as_masks(target), as_masks(prediction)
    if masks.shape != guesses.shape or pixels.shape[1:] != masks.shape[1:] or pixels.shape[0] not in (1, 3):
        raise InputError(
            "image must be (1|3, *S), target and prediction (K, *S) of the same S, "
            f"received {pixels.shape}, {masks.shape} and {guesses.shape}."
        )
    note = ""
    if pixels.ndim == 4:
        index = _telling_slice(masks, guesses)
        note = f"slice {index + 1} of {masks.shape[1]}"
        pixels, masks, guesses = pixels[:, index], masks[:, index], guesses[:, index]
    step = -(-max(masks.shape[1:]) // PICTURE_SIDE)
    pixels, masks, guesses = (array[:, ::step, ::step] for array in (pixels, masks, guesses))
    shown = np.moveaxis(pixels, 0, -1)
    colours = displayed(shown, window or _window(shown, masks | guesses)).astype(np.float32)
    picture = colours[..., 0] if len(pixels) == 1 else colours
    return CasePicture(
        case=case, image=picture, target=masks.copy(), prediction=guesses.copy(), score=float(score), note=note
    )


def _window(image: NDArray[np.float32], masks: NDArray[np.bool_]) -> tuple[float, float]:
    """Grey window of (H, W, C) values from what lies inside the regions; see :func:`make_picture`."""
    from medcoss_components.tracking.figures import grey_window

    low, high = grey_window(image)
    inside = image[masks.any(axis=0)]
    if not inside.size or (low, high) == (0.0, 1.0):
        return low, high
    bottom, top = (float(value) for value in np.nanpercentile(inside, (1, 99)))
    margin = max(WINDOW_MARGIN * (top - bottom), 1e-6)
    return max(low, bottom - margin), min(high, top + margin)


def _telling_slice(target: NDArray[np.bool_], prediction: NDArray[np.bool_]) -> int:
    wrong = np.count_nonzero(target ^ prediction, axis=(0, 2, 3))
    filled = np.count_nonzero(target, axis=(0, 2, 3))
    if wrong.any():
        return int(wrong.argmax())
    return int(filled.argmax()) if filled.any() else target.shape[1] // 2
