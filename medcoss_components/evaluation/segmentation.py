"""Numbers of a segmentation, case by case and over a data set.

A region that neither the reference nor the prediction holds is right: Dice 1, distance 0. A region that only one of
them holds is wrong: Dice and surface Dice 0, and its Hausdorff distance does not exist (NaN). Means leave NaN out and
``hd95_undefined`` says how many there were, because a model that finds nothing must not look precise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medcoss_components.errors import InputError

SCORES = ("dice", "iou", "miou", "hd95", "surface_dice")
WITHOUT_DISTANCES = ("dice", "iou", "miou")
"""Those that need no surface distances."""
TOLERANCE = 2.0  # mm, the surface Dice's usual tolerance for organs
DENSE_SHARE = 0.02  # of the box's voxels on the edge: beyond, a distance transform is faster than a tree
DENSE_LIMIT = 64_000_000  # voxels that a distance transform may have, 20 bytes each


def as_masks(values: Any) -> NDArray[np.bool_]:
    """bool NumPy array of a NumPy array or torch tensor of 0 and 1."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values).astype(bool)


def case_metrics(
    prediction: Any,
    target: Any,
    *,
    regions: Iterable[str],
    spacing: Sequence[float] | None,
    tolerance_mm: float = TOLERANCE,
    distances: bool = True,
) -> dict[str, float]:
    """Compare the prediction for one case with its reference.

    Args:
        prediction: (K, *S) bool, NumPy or torch, S = (H, W) or (Z, H, W).
        target: (K, *S) bool, the reference.
        regions: K names.
        spacing: size of a voxel in mm along each axis of S; None counts in voxels.
        tolerance_mm: surface Dice accepts surfaces this far apart, in mm (voxels without spacing).
        distances: False leaves ``hd95`` and ``surface_dice`` out, which takes a fraction of the time.

    Returns:
        For each region r ``dice/r`` in [0, 1]; ``iou/r``, intersection over union (dice / (2 - dice)); ``hd95/r``, the
        larger of the 95th percentiles of the distances of the prediction's edge to the reference's and back, in mm;
        ``surface_dice/r``, the share of both edges within the tolerance (Nikolov et al. 2018, edge voxels counted as
        MONAI does); ``volume/r`` and ``reference_volume/r`` in ml (areas in mm2 in 2D; voxels without spacing).
        ``background_iou``: of what belongs to no region.

    Raises:
        InputError: when shapes, number of regions or spacing do not fit.
    """
    prediction, target, names = as_masks(prediction), as_masks(target), list(regions)
    if prediction.shape != target.shape or prediction.ndim not in (3, 4) or len(names) != len(target):
        raise InputError(
            f"prediction and target must both be ({len(names)}, H, W) or ({len(names)}, Z, H, W), "
            f"received {prediction.shape} and {target.shape}."
        )
    if spacing is not None and (len(spacing) != target.ndim - 1 or min(spacing) <= 0):
        raise InputError(f"spacing must be {target.ndim - 1} lengths > 0 or None, received {list(spacing)}.")
    found: dict[str, float] = {"background_iou": _background_iou(prediction, target)}
    for name, predicted, reference in zip(names, prediction, target, strict=True):
        scores = _region_scores(predicted, reference, spacing, tolerance_mm, distances)
        scores["volume"] = _volume(predicted, spacing)
        scores["reference_volume"] = _volume(reference, spacing)
        found |= {f"{key}/{name}": value for key, value in scores.items()}
    return found


def _volume(mask: NDArray[np.bool_], spacing: Sequence[float] | None) -> float:
    if spacing is None:
        return float(np.count_nonzero(mask))
    return float(np.count_nonzero(mask) * np.prod(spacing)) / (1000 if mask.ndim == 3 else 1)


def _background_iou(prediction: NDArray[np.bool_], target: NDArray[np.bool_]) -> float:
    """Intersection over union of the voxels (K, *S) outside of all regions; 1 where neither leaves any."""
    predicted, true = prediction.any(axis=0), target.any(axis=0)
    union = true.size - np.count_nonzero(predicted & true)
    return float((true.size - np.count_nonzero(predicted | true)) / union) if union else 1.0


def _region_scores(
    prediction: NDArray[np.bool_],
    target: NDArray[np.bool_],
    spacing: Sequence[float] | None,
    tolerance: float,
    distances: bool,
) -> dict[str, float]:
    """Scores of one region; only the box around both masks is looked at, outside it both are empty."""
    import torch
    from monai.metrics import compute_dice

    box = foreground_box(prediction, target)
    prediction, target = np.ascontiguousarray(prediction[box]), np.ascontiguousarray(target[box])
    pair = [torch.from_numpy(mask)[None, None] for mask in (prediction, target)]
    dice = float(compute_dice(*pair, include_background=True, ignore_empty=False))
    scores = {"dice": dice, "iou": dice / (2 - dice)}
    if not distances:
        return scores
    if prediction.any() != target.any():
        return scores | {"hd95": np.nan, "surface_dice": 0.0}
    if not target.any():
        return scores | {"hd95": 0.0, "surface_dice": 1.0}
    there, back = surface_distances(prediction, target, spacing)
    within = np.count_nonzero(there <= tolerance) + np.count_nonzero(back <= tolerance)
    scores["hd95"] = float(max(np.percentile(there, 95), np.percentile(back, 95)))
    scores["surface_dice"] = float(within / (len(there) + len(back)))
    return scores


def foreground_box(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The smallest box that holds both masks; everything is empty outside it. No foreground: an empty box."""
    ranges = []
    for axis in range(first.ndim):
        others = tuple(other for other in range(first.ndim) if other != axis)
        filled = np.flatnonzero(first.any(axis=others) | second.any(axis=others))
        ranges.append(slice(int(filled[0]), int(filled[-1]) + 1) if len(filled) else slice(0, 0))
    return tuple(ranges)


def surface_distances(
    prediction: NDArray[np.bool_], target: NDArray[np.bool_], spacing: Sequence[float] | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Euclidean distance of every edge voxel to the nearest edge voxel of the other mask, in mm, both ways.

    Args:
        prediction, target: masks of one shape, neither empty.
        spacing: mm along each axis, None: voxels.
    """
    from monai.metrics.utils import get_mask_edges

    edges = [np.asarray(edge, dtype=bool) for edge in get_mask_edges(prediction, target, crop=False)]
    return _edge_distances(edges[0], edges[1], spacing), _edge_distances(edges[1], edges[0], spacing)


def _edge_distances(
    start: NDArray[np.bool_], end: NDArray[np.bool_], spacing: Sequence[float] | None
) -> NDArray[np.float32]:
    """MONAI's tree for thin edges; a distance transform for the thick clutter that an untrained network draws."""
    if DENSE_SHARE * start.size < np.count_nonzero(start) and start.size <= DENSE_LIMIT:
        from scipy.ndimage import distance_transform_edt

        return distance_transform_edt(~end, sampling=spacing)[start].astype(np.float32)
    from monai.metrics.utils import get_surface_distance

    return np.asarray(get_surface_distance(start, end, spacing=spacing), dtype=np.float32)


def score_columns(rows: Sequence[Mapping[str, float]], regions: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Scores of N cases as columns (N,): of every region, and their mean over the defined regions of each case.

    Args:
        rows: N results of :func:`case_metrics`.
        regions: K names.

    Returns:
        ``dice``, ``iou``, ``hd95``, ``surface_dice`` (each where it was computed), with ``dice/<region>`` and so on;
        and ``miou``, the mean over the regions and the background, which papers on semantic segmentation call mean IoU.
    """
    columns: dict[str, NDArray[np.float64]] = {}
    measured = [score for score in SCORES if f"{score}/{regions[0]}" in rows[0]]
    for score in measured:
        table = np.array([[row[f"{score}/{region}"] for region in regions] for row in rows], dtype=np.float64)
        known = np.isfinite(table)
        columns[score] = _ratio(np.where(known, table, 0).sum(axis=1), known.sum(axis=1))
        columns |= {f"{score}/{region}": table[:, index] for index, region in enumerate(regions)}
    if "iou" in columns and "background_iou" in rows[0]:
        background = np.array([row["background_iou"] for row in rows], dtype=np.float64)
        columns["miou"] = (columns["iou"] * len(regions) + background) / (len(regions) + 1)
    return {name: columns[name] for score in SCORES for name in columns if name.split("/")[0] == score}


def weighted_means(
    columns: Mapping[str, NDArray[np.float64]], weights: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """Weighted mean over the cases for which a score exists.

    Args:
        columns: name -> (N,), NaN where the case does not define the score.
        weights: (r, N) how often each case counts.

    Returns:
        name -> (r,), NaN where no case with weight defines the score.
    """
    means = {}
    for name, values in columns.items():
        known = np.isfinite(values)
        means[name] = _ratio(weights @ np.where(known, values, 0), weights @ known.astype(np.float64))
    return means


def _ratio(part: NDArray, whole: NDArray) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=np.asarray(whole) > 0)
