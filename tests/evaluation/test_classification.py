"""Classification metrics: small cases by hand, undefined numbers, and the weighted form against resampled arrays."""

from __future__ import annotations

import numpy as np
import pytest

from medcoss_components.errors import InputError
from medcoss_components.evaluation.classification import WeightedClassification, classification_metrics

#: Three of "ill" (class 1) and two of "well": one ill is missed, one well is called ill.
TWO = np.array([[0.9, 0.1], [0.3, 0.7], [0.6, 0.4], [0.2, 0.8], [0.4, 0.6]])
TWO_TARGETS = np.array([0, 0, 1, 1, 1])


@pytest.fixture
def drawn():
    """Predictions on 60 cases of 3 classes, scores with ties."""
    generator = np.random.default_rng(1)
    targets = generator.integers(3, size=60)
    scores = np.round(generator.normal(size=(60, 3)) + np.eye(3)[targets], 0)
    values = np.exp(scores)
    return values / values.sum(axis=1, keepdims=True), targets


class TestByHand:
    def test_two_classes(self):
        found = classification_metrics(TWO, TWO_TARGETS, ("well", "ill"))
        # Pairs (ill, well) in the right order: 0.4 > 0.1; 0.8 > 0.1, 0.7; 0.6 > 0.1 = 4 of 6.
        expected = {
            "accuracy": 3 / 5,
            "balanced_accuracy": (1 / 2 + 2 / 3) / 2,
            "auc": 4 / 6,
            "f1": (2 / 4 + 4 / 6) / 2,
            "sensitivity": 2 / 3,
            "specificity": 1 / 2,
            "sensitivity/well": 1 / 2,
            "sensitivity/ill": 2 / 3,
            "specificity/well": 2 / 3,
            "specificity/ill": 1 / 2,
            "auc/well": 4 / 6,
            "auc/ill": 4 / 6,
            "f1/well": 2 / 4,
            "f1/ill": 4 / 6,
        }
        assert {name: found[name] for name in expected} == pytest.approx(expected)
        assert set(found) == {*expected, "ece"}
        assert all(type(value) is float for value in found.values())

    def test_three_classes_are_averaged(self):
        probabilities = np.eye(3)[[0, 0, 1, 2]]
        found = classification_metrics(probabilities, [0, 1, 1, 2], ("a", "b", "c"))
        assert found["sensitivity"] == pytest.approx((1 + 1 / 2 + 1) / 3)
        assert found["specificity"] == pytest.approx((2 / 3 + 1 + 1) / 3)
        assert found["f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
        assert found["balanced_accuracy"] == found["sensitivity"]

    def test_perfect(self):
        found = classification_metrics(np.eye(3), [0, 1, 2], ("a", "b", "c"))
        assert found.pop("ece") == 0
        assert set(found.values()) == {1.0}

    def test_first_of_equals_is_predicted(self):
        assert classification_metrics([[0.5, 0.5]] * 2, [0, 1], ("a", "b"))["sensitivity/a"] == 1


class TestUndefined:
    def test_class_without_cases_is_left_out_of_means(self):
        probabilities = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.2, 0.7]])
        found = classification_metrics(probabilities, [0, 1, 1], ("a", "b", "absent"))
        assert np.isnan(found["auc/absent"]) and np.isnan(found["sensitivity/absent"])
        assert found["f1/absent"] == 0
        assert found["auc"] == pytest.approx((found["auc/a"] + found["auc/b"]) / 2)
        assert found["f1"] == pytest.approx((1 + 2 / 3) / 2)

    def test_one_class_alone_has_no_auc(self):
        found = classification_metrics(TWO[2:], [1, 1, 1], ("well", "ill"))
        assert np.isnan([found["auc"], found["specificity"], found["sensitivity/well"]]).all()
        assert found["sensitivity"] == pytest.approx(2 / 3)


class TestWeighted:
    def test_weights_of_one_are_the_plain_metrics(self, drawn):
        classes = ("a", "b", "c")
        weighted = WeightedClassification(*drawn, classes)(np.ones((1, 60)))
        plain = classification_metrics(*drawn, classes)
        assert list(weighted) == list(plain)
        assert {name: values[0] for name, values in weighted.items()} == pytest.approx(plain)

    @pytest.mark.parametrize("count", (2, 3))
    def test_weights_are_repeated_cases(self, drawn, count):
        probabilities, targets = drawn[0][:, :count], drawn[1] % count
        probabilities = probabilities / probabilities.sum(axis=1, keepdims=True)
        classes = ("a", "b", "c")[:count]
        weights = np.random.default_rng(2).integers(0, 3, size=(4, 60)).astype(float)
        found = WeightedClassification(probabilities, targets, classes)(weights)
        for row, counts in enumerate(weights.astype(int)):
            repeated = np.repeat(np.arange(60), counts)
            expected = classification_metrics(probabilities[repeated], targets[repeated], classes)
            assert {name: values[row] for name, values in found.items()} == pytest.approx(expected)

    def test_undefined_where_a_resample_lacks_a_class(self):
        weights = np.array([[1, 1, 0, 0, 0], [0, 0, 0, 0, 0.0]])
        found = WeightedClassification(TWO, TWO_TARGETS, ("well", "ill"))(weights)
        assert np.isnan(found["auc"]).all()
        assert found["accuracy"][0] == 0.5 and np.isnan(found["accuracy"][1])


@pytest.mark.parametrize(
    ("change", "message"),
    (
        ({"classes": ("a",)}, r"two or more.*\['a'\]"),
        ({"classes": ("a", "a")}, r"\['a', 'a'\]"),
        ({"targets": [0, 1]}, r"\(5, 2\) and \(2,\)"),
        ({"targets": [], "probabilities": np.zeros((0, 2))}, r"N > 0, received \(0, 2\)"),
        ({"probabilities": TWO * 2}, r"5 of 5 cases.*\[1.8, 0.2\].*softmax"),
        ({"probabilities": np.where(TWO == 0.7, np.nan, TWO)}, "1 of 5 cases"),
        ({"targets": [0, 0, 1, 1, 2]}, r"\[0, 2\), received int64 with values from 0 to 2"),
        ({"targets": TWO_TARGETS * 1.0}, "received float64"),
    ),
)
def test_rejected(change, message):
    arguments = {"probabilities": TWO, "targets": TWO_TARGETS, "classes": ("well", "ill")} | change
    with pytest.raises(InputError, match=message):
        classification_metrics(**arguments)
