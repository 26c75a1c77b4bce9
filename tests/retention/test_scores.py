"""Scores of features whose numbers can be derived by hand."""

from __future__ import annotations

import numpy as np
import pytest

from medcoss_components.errors import InputError
from medcoss_components.retention import scores
from medcoss_components.retention.scores import knn_accuracy, linear_cka, logistic_accuracy, neighbour_overlap

AXES = np.array([[1.0, 0.0], [3.0, 0.3], [0.0, 2.0], [0.1, 1.0]])


def clouds(seed, count=30):
    """Two classes around (4, 0) and (0, 4)."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    centres = np.array([[4.0, 0.0], [0.0, 4.0]])
    return centres[labels] + generator.normal(size=(count, 2)) * 0.5, labels


class TestNearestNeighbours:
    def test_direction_counts_and_length_does_not(self):
        tested = np.array([[100.0, 1.0], [0.01, 0.02]])
        assert knn_accuracy(AXES, ["a", "a", "b", "b"], tested, ["a", "b"], k=2) == 1
        assert knn_accuracy(AXES, ["a", "a", "b", "b"], tested, ["a", "a"], k=1) == 0.5

    def test_majority_wins_over_the_nearest(self):
        known = np.array([[1.0, 0.0], [1.0, 0.5], [1.0, -0.5]])
        assert knn_accuracy(known, [0, 1, 1], [[1.0, 0.0]], [1], k=3) == 1

    def test_tie_goes_to_the_larger_sum_of_similarities(self):
        """Cosines to (1, 0): class 0 has 1 and 0, class 1 twice 0.8: 1.6 beats 1."""
        known = np.array([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6], [0.8, -0.6]])
        assert knn_accuracy(known, [0, 0, 1, 1], [[1.0, 0.0]], [1], k=4) == 1
        assert knn_accuracy(known, [0, 1, 1, 0], [[1.0, 0.0]], [0], k=4) == 1  # 1.8 against 0.8

    def test_whole_tie_goes_to_the_class_that_sorts_first(self):
        known = np.array([[1.0, 0.0], [1.0, 0.0]])
        assert knn_accuracy(known, ["b", "a"], [[1.0, 0.0]], ["a"], k=2) == 1

    def test_in_blocks_as_in_one(self, monkeypatch):
        known, labels = clouds(0)
        tested, wanted = clouds(1)
        whole = knn_accuracy(known, labels, tested, 1 - wanted, k=5)
        monkeypatch.setattr(scores, "CELLS", 31)
        assert knn_accuracy(known, labels, tested, 1 - wanted, k=5) == whole == 0

    def test_row_of_zeros_is_allowed(self):
        assert knn_accuracy(AXES, [0, 0, 1, 1], [[0.0, 0.0]], [0], k=4) == 1

    def test_against_loops(self):
        generator = np.random.default_rng(3)
        known, tested = generator.normal(size=(40, 6)), generator.normal(size=(15, 6))
        labels, wanted = generator.integers(3, size=40), generator.integers(3, size=15)
        right = 0
        for row, label in zip(tested, wanted, strict=True):
            cosines = [row @ other / np.linalg.norm(row) / np.linalg.norm(other) for other in known]
            votes = {}
            for place in sorted(range(40), key=lambda place: -cosines[place])[:7]:
                count, total = votes.get(labels[place], (0, 0.0))
                votes[labels[place]] = (count + 1, total + cosines[place])
            right += max(votes, key=votes.get) == label
        assert knn_accuracy(known, labels, tested, wanted, k=7) == pytest.approx(right / 15)

    @pytest.mark.parametrize("k", [0, 5])
    def test_too_few_samples(self, k):
        with pytest.raises(InputError, match=rf"k={k}: .* 1 .. 4"):
            knn_accuracy(AXES, [0, 0, 1, 1], AXES, [0, 0, 1, 1], k=k)

    def test_one_class(self):
        with pytest.raises(InputError, match="labels: at least two classes are needed, all 4 samples"):
            knn_accuracy(AXES, [1] * 4, AXES, [1] * 4, k=1)


class TestLogisticRegression:
    def test_separable_classes(self):
        score = logistic_accuracy(clouds(0), clouds(1), clouds(2))
        assert score.accuracy == 1
        assert score.chosen_c == scores.STRENGTHS[0]  # all strengths are right on validation: the strongest is kept

    def test_validation_chooses(self):
        """50 noisy features of 60 samples: a large C learns the noise by heart, and validation tells."""
        generator = np.random.default_rng(0)
        labels = np.arange(60) % 2
        features = generator.normal(size=(60, 50)) + 0.4 * labels[:, None]
        check, wanted = generator.normal(size=(400, 50)), np.arange(400) % 2
        check += 0.4 * wanted[:, None]
        score = logistic_accuracy((features, labels), (check, wanted), (check, wanted), strengths=[1e-3, 1e3])
        assert score.chosen_c == 1e-3 and score.accuracy > 0.8

    def test_scale_and_offset_of_a_feature_do_not_count(self):
        training, validation, testing = clouds(0), clouds(1), clouds(2)
        moved = [(features * [1e4, 1e-4] + [7, -3], labels) for features, labels in (training, validation, testing)]
        assert logistic_accuracy(*moved) == logistic_accuracy(training, validation, testing)

    def test_constant_feature(self):
        wide = [(np.c_[features, np.full(len(features), 5.0)], labels) for features, labels in map(clouds, range(3))]
        assert logistic_accuracy(*wide).accuracy == 1

    def test_class_that_training_lacks_is_wrong(self):
        features, labels = clouds(2)
        assert logistic_accuracy(clouds(0), clouds(1), (features, labels + 5)).accuracy == 0

    @pytest.mark.parametrize("strengths", [[], [0.0], [-1, 1]])
    def test_strengths(self, strengths):
        with pytest.raises(InputError, match="strengths=.* all above 0"):
            logistic_accuracy(clouds(0), clouds(1), clouds(2), strengths=strengths)

    def test_one_class(self):
        features, labels = clouds(0)
        with pytest.raises(InputError, match="training labels: at least two classes"):
            logistic_accuracy((features, labels * 0), clouds(1), clouds(2))

    def test_widths(self):
        with pytest.raises(InputError, match="training and testing: .* received 2 and 3"):
            logistic_accuracy(clouds(0), clouds(1), (np.ones((4, 3)), np.arange(4)))


class TestLinearCKA:
    @pytest.mark.parametrize("shape", [(50, 4), (4, 50)])
    def test_rotation_scale_and_offset_do_not_count(self, shape):
        generator = np.random.default_rng(0)
        features = generator.normal(size=shape)
        turned = features @ np.linalg.qr(generator.normal(size=(shape[1], shape[1])))[0]
        assert linear_cka(features, 3 * turned + 7) == pytest.approx(1)

    def test_by_hand(self):
        """a = (1, -1), b = the sum and the difference of it and an orthogonal column of the same length."""
        a = np.array([[1.0], [-1.0], [1.0], [-1.0]])
        b = np.array([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
        assert linear_cka(a, b) == pytest.approx(1 / np.sqrt(2))  # 16 / (4 * sqrt(16 + 16))

    def test_orthogonal_features(self):
        assert linear_cka([[1], [-1], [1], [-1]], [[1], [1], [-1], [-1]]) == 0

    def test_both_ways_give_the_same(self, monkeypatch):
        generator = np.random.default_rng(1)
        a, b = generator.normal(size=(9, 8)), generator.normal(size=(9, 3))
        small = linear_cka(a, b)
        grams = [(part - part.mean(0)) @ (part - part.mean(0)).T for part in (a, b)]
        assert small == pytest.approx(
            np.vdot(*grams) / np.sqrt(np.vdot(grams[0], grams[0]) * np.vdot(grams[1], grams[1]))
        )

    def test_collapsed_features_are_unlike_all(self):
        assert linear_cka(np.ones((5, 3)), np.random.default_rng(0).normal(size=(5, 3))) == 0

    def test_too_few(self):
        with pytest.raises(InputError, match="at least 2 samples are needed, received 1"):
            linear_cka([[1.0]], [[1.0]])


class TestNeighbourOverlap:
    def test_same_features(self):
        features, _ = clouds(0)
        assert neighbour_overlap(features, 5 * features, 3) == 1

    def test_by_hand(self):
        """Angles 0, 10, 30, 100: nearest are 10, 0, 10, 30; after the last two swap places: 10, 0, 30 -> others."""
        before = np.deg2rad([0, 10, 30, 100])
        after = np.deg2rad([0, 10, 100, 30])  # nearest: 10, 0, 30 (the last), 10
        a, b = (np.c_[np.cos(angle), np.sin(angle)] for angle in (before, after))
        assert neighbour_overlap(a, b, 1) == 0.5

    def test_in_blocks_as_in_one(self, monkeypatch):
        generator = np.random.default_rng(0)
        a, b = generator.normal(size=(30, 4)), generator.normal(size=(30, 4))
        whole = neighbour_overlap(a, b, 5)
        monkeypatch.setattr(scores, "CELLS", 70)
        assert neighbour_overlap(a, b, 5) == whole
        assert 0 < whole < 0.5  # by chance 5 of 29

    def test_all_others_are_always_shared(self):
        generator = np.random.default_rng(0)
        assert neighbour_overlap(generator.normal(size=(6, 3)), generator.normal(size=(6, 2)), 5) == 1

    @pytest.mark.parametrize(("k", "match"), [(0, "k=0"), (4, "at least 5 samples are needed, received 4")])
    def test_k(self, k, match):
        with pytest.raises(InputError, match=match):
            neighbour_overlap(AXES, AXES, k)


@pytest.mark.parametrize(
    ("features", "labels", "match"),
    [
        (np.zeros((0, 2)), [], r"features: features must be \(N, D\) .* shape \(0, 2\)"),
        (np.zeros(3), [0, 1, 2], r"shape \(3,\)"),
        ([[1, np.nan], [1, 1]], [0, 1], "features: 1 values are NaN or infinite"),
        (AXES, [0, 1], r"4 rows need labels of shape \(4,\), received \(2,\)"),
        (np.ones((4, 3)), [0, 0, 1, 1], "features and test_features: .* received 3 and 2"),
    ],
)
def test_shapes(features, labels, match):
    with pytest.raises(InputError, match=match):
        knn_accuracy(features, labels, AXES, [0, 0, 1, 1], k=1)


@pytest.mark.parametrize("function", [linear_cka, neighbour_overlap])
def test_pairs_of_other_lengths(function):
    with pytest.raises(InputError, match="same samples, received 4 and 3"):
        function(AXES, AXES[:3])
