"""Bins, reliability and the expected calibration error, against sums done by hand and by loops."""

from __future__ import annotations

import numpy as np
import pytest

from medcoss_components.evaluation.calibration import confidence_bins, reliability


def test_bins_hold_their_upper_edge():
    confidence = np.array([0.0, 0.25, 0.2500001, 0.5, 0.75, 0.99, 1.0])
    assert confidence_bins(confidence, bins=4).tolist() == [0, 0, 1, 1, 2, 3, 3]


def test_by_hand():
    # Confidences 0.6 (right), 0.6 (wrong), 0.9 (right), 0.9 (right): gaps |1 - 1.2| and |2 - 1.8|, over 4 cases.
    probabilities = [[0.6, 0.4], [0.4, 0.6], [0.9, 0.1], [0.1, 0.9]]
    found = reliability(probabilities, [0, 0, 0, 1], bins=5)
    assert found.counts.tolist() == [0, 0, 2, 0, 2]
    assert found.error == pytest.approx((0.2 + 0.2) / 4)
    assert found.accuracy[[2, 4]].tolist() == [0.5, 1.0]
    assert found.confidence[[2, 4]] == pytest.approx([0.6, 0.9])
    assert np.isnan(found.accuracy[[0, 1, 3]]).all()


def test_perfectly_calibrated_and_sure():
    assert reliability(np.eye(3), [0, 1, 2]).error == 0
    assert reliability(np.eye(3), [1, 2, 0]).error == 1


def test_against_a_loop():
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.ones(4), size=200)
    targets = generator.integers(4, size=200)
    total = 0.0
    for index in range(15):
        members = [
            (row.max(), row.argmax() == target)
            for row, target in zip(probabilities, targets, strict=True)
            if index / 15 < row.max() <= (index + 1) / 15
        ]
        if members:
            confidence, right = np.mean([m[0] for m in members]), np.mean([m[1] for m in members])
            total += len(members) / 200 * abs(right - confidence)
    assert reliability(probabilities, targets).error == pytest.approx(total)
