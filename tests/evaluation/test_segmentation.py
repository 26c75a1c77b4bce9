"""Scores of a case by hand, against brute force and MONAI's own functions, and their means."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice

from medcoss_components.errors import InputError
from medcoss_components.evaluation import segmentation
from medcoss_components.evaluation.segmentation import (
    case_metrics,
    foreground_box,
    score_columns,
    surface_distances,
    weighted_means,
)

SPACING = (3.0, 1.5, 0.5)


def box(shape, *ranges):
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(*part) for part in ranges)] = True
    return mask


def blobs(seed, shape=(5, 7, 9)):
    generator = np.random.default_rng(seed)
    mask = generator.random(shape) < 0.25
    mask[0], mask[:, :, -1] = False, False
    return mask


def edge_points(mask):
    """Voxels with a neighbour (or the border) outside the mask, by a loop."""
    points = []
    for place in product(*map(range, mask.shape)):
        neighbours = [
            tuple(np.add(place, step * np.eye(mask.ndim, dtype=int)[a])) for a in range(mask.ndim) for step in (-1, 1)
        ]
        inside = [all(0 <= i < n for i, n in zip(p, mask.shape, strict=True)) and mask[p] for p in neighbours]
        if mask[place] and not all(inside):
            points.append(place)
    return np.array(points, dtype=float)


def brute_force(first, second, spacing):
    a, b = edge_points(first) * spacing, edge_points(second) * spacing
    return np.array([np.sqrt(((b - point) ** 2).sum(axis=1)).min() for point in a])


class TestByHand:
    def test_shifted_square(self):
        # A 4 x 4 square moved by 1 of 4 columns: 12 of 16 pixels shared; its edge moved by 2 mm.
        target, prediction = box((9, 11), (2, 6), (3, 7)), box((9, 11), (2, 6), (4, 8))
        found = case_metrics(prediction[None], target[None], regions=["lung"], spacing=(1, 2), tolerance_mm=1)
        assert found["dice/lung"] == pytest.approx(24 / 32)
        assert found["hd95/lung"] == 2.0
        assert found["volume/lung"] == found["reference_volume/lung"] == 32
        near = [(brute_force(*pair, (1, 2)) <= 1).sum() for pair in ((prediction, target), (target, prediction))]
        assert found["surface_dice/lung"] == pytest.approx(sum(near) / 24)

    def test_volume_in_ml_and_voxels(self):
        mask = box((4, 6, 8), (1, 3), (1, 5), (2, 7))[None]
        assert case_metrics(mask, mask, regions=["r"], spacing=(5, 2, 2.5))["volume/r"] == pytest.approx(40 * 25 / 1000)
        assert case_metrics(mask, mask, regions=["r"], spacing=None)["volume/r"] == 40

    def test_tolerance(self):
        target, prediction = box((3, 12), (1, 2), (2, 3)), box((3, 12), (1, 2), (5, 6))
        for tolerance, expected in ((2.9, 0.0), (3.0, 1.0)):
            found = case_metrics(prediction[None], target[None], regions=["r"], spacing=None, tolerance_mm=tolerance)
            assert (found["hd95/r"], found["surface_dice/r"]) == (3.0, expected)

    def test_without_distances(self):
        mask = box((4, 6), (1, 3), (1, 5))[None]
        found = case_metrics(mask, mask, regions=["r"], spacing=None, distances=False)
        assert found == {
            "dice/r": 1.0,
            "iou/r": 1.0,
            "background_iou": 1.0,
            "volume/r": 8.0,
            "reference_volume/r": 8.0,
        }

    def test_intersection_over_union(self):
        # 12 of 16 + 16 pixels are shared, so 12 of 20; the background is 99 - 20 of 99 - 12.
        target, prediction = box((9, 11), (2, 6), (3, 7)), box((9, 11), (2, 6), (4, 8))
        found = case_metrics(prediction[None], target[None], regions=["lung"], spacing=None, distances=False)
        assert found["iou/lung"] == pytest.approx(12 / 20)
        assert found["background_iou"] == pytest.approx(79 / 87)
        columns = score_columns([found], ["lung"])
        assert list(columns)[:4] == ["dice", "dice/lung", "iou", "iou/lung"]
        assert columns["miou"][0] == pytest.approx((12 / 20 + 79 / 87) / 2)

    def test_no_background(self):
        full = np.ones((1, 3, 4), dtype=bool)
        assert case_metrics(full, full, regions=["r"], spacing=None, distances=False)["background_iou"] == 1.0


class TestEmpty:
    empty, full = np.zeros((1, 4, 5), dtype=bool), box((4, 5), (1, 3), (1, 4))[None]

    def test_both(self):
        found = case_metrics(self.empty, self.empty, regions=["r"], spacing=None)
        assert [found[f"{name}/r"] for name in ("dice", "hd95", "surface_dice", "volume")] == [1, 0, 1, 0]

    @pytest.mark.parametrize("pair", ((empty, full), (full, empty)))
    def test_one(self, pair):
        found = case_metrics(*pair, regions=["r"], spacing=None)
        assert (found["dice/r"], found["surface_dice/r"]) == (0, 0)
        assert np.isnan(found["hd95/r"])


class TestOracles:
    @pytest.mark.parametrize("shape", ((5, 7, 9), (8, 11)))
    def test_cropping_changes_nothing(self, shape):
        spacing = SPACING[-len(shape) :]
        pair = [np.pad(blobs(seed, shape) if len(shape) == 3 else blobs(seed)[2, :, :], 2) for seed in (0, 1)]
        found = case_metrics(pair[0][None], pair[1][None], regions=["r"], spacing=spacing)
        tensors = [torch.from_numpy(mask)[None, None] for mask in pair]
        distance = compute_hausdorff_distance(*tensors, include_background=True, percentile=95, spacing=spacing)
        surface = compute_surface_dice(*tensors, [2.0], include_background=True, spacing=spacing)
        assert found["hd95/r"] == pytest.approx(float(distance))
        assert found["surface_dice/r"] == pytest.approx(float(surface))
        assert found["dice/r"] == pytest.approx(2 * (pair[0] & pair[1]).sum() / (pair[0].sum() + pair[1].sum()))

    @pytest.mark.parametrize("dense_share", (0.0, 1.0))
    def test_tree_and_transform_give_the_brute_force_distances(self, dense_share, monkeypatch):
        monkeypatch.setattr(segmentation, "DENSE_SHARE", dense_share)
        first, second = blobs(3), blobs(4)
        there, back = surface_distances(first, second, SPACING)
        assert there == pytest.approx(brute_force(first, second, SPACING), rel=1e-5)
        assert back == pytest.approx(brute_force(second, first, SPACING), rel=1e-5)

    def test_box(self):
        first, second = box((6, 7, 8), (1, 2), (2, 3), (3, 5)), box((6, 7, 8), (3, 5), (2, 4), (4, 5))
        assert foreground_box(first, second) == (slice(1, 5), slice(2, 4), slice(3, 5))
        assert np.zeros((6, 7))[foreground_box(np.zeros((6, 7), bool), np.zeros((6, 7), bool))].size == 0

    def test_torch_and_numpy_agree(self):
        pair = [blobs(seed)[None] for seed in (5, 6)]
        tensors = [torch.from_numpy(mask).float() for mask in pair]
        found, expected = (case_metrics(*masks, regions=["r"], spacing=SPACING) for masks in (tensors, pair))
        assert found == expected
        assert all(type(value) is float for value in found.values())


class TestMeans:
    ROWS = (
        {"dice/a": 1.0, "dice/b": 0.5, "hd95/a": 2.0, "hd95/b": 4.0},
        {"dice/a": 0.6, "dice/b": 0.0, "hd95/a": 6.0, "hd95/b": np.nan},
    )

    def test_columns(self):
        columns = score_columns(self.ROWS, ("a", "b"))
        assert list(columns) == ["dice", "dice/a", "dice/b", "hd95", "hd95/a", "hd95/b"]
        assert columns["dice"].tolist() == [0.75, 0.3]
        assert columns["hd95"].tolist() == [3.0, 6.0]

    def test_weighted(self):
        means = weighted_means(score_columns(self.ROWS, ("a", "b")), np.array([[1.0, 1.0], [1.0, 3.0], [0.0, 2.0]]))
        assert means["dice"] == pytest.approx([0.525, 0.4125, 0.3])
        assert means["hd95/b"][:2].tolist() == [4.0, 4.0] and np.isnan(means["hd95/b"][2])


@pytest.mark.parametrize(
    ("shapes", "arguments", "message"),
    (
        (((1, 4, 5), (1, 5, 4)), {}, r"received \(1, 4, 5\) and \(1, 5, 4\)"),
        (((4, 5), (4, 5)), {}, r"received \(4, 5\)"),
        (((2, 4, 5), (2, 4, 5)), {}, r"\(1, H, W\).*received \(2, 4, 5\)"),
        (((1, 4, 5), (1, 4, 5)), {"spacing": (1, 1, 1)}, r"spacing must be 2 lengths.*\[1, 1, 1\]"),
        (((1, 4, 5), (1, 4, 5)), {"spacing": (1, 0)}, r"received \[1, 0\]"),
    ),
)
def test_rejected(shapes, arguments, message):
    masks = [np.zeros(shape, dtype=bool) for shape in shapes]
    with pytest.raises(InputError, match=message):
        case_metrics(*masks, **{"regions": ["r"], "spacing": None} | arguments)
