"""Numbers of a detector: by hand, against MONAI and against cases that really are repeated, and the result object."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.apps.detection.metrics.coco import COCOMetric
from monai.data.box_utils import box_iou

from medcoss_components.errors import InputError
from medcoss_components.evaluation.bootstrap import bootstrap_intervals
from medcoss_components.evaluation.detection import DetectionResult, case_counts, make_box_picture
from medcoss_components.evaluation.detection_metrics import (
    BY_CATEGORY,
    OVERLAPS,
    Boxes,
    WeightedDetection,
    average_precision,
    detection_metrics,
    froc_score,
    match_boxes,
    operating_points,
)

SQUARE = [0, 0, 10, 10]
NOWHERE = [50, 50, 60, 60]


def boxes(*entries):
    """``boxes((sides, label), ...)`` true ones, ``boxes((sides, label, score), ...)`` found ones."""
    return Boxes.of(
        {
            "boxes": np.array([entry[0] for entry in entries], float).reshape(-1, 4),
            "labels": np.array([entry[1] for entry in entries], int),
            **({"scores": np.array([entry[2] for entry in entries])} if entries and len(entries[0]) > 2 else {}),
        }
    )


def metrics(targets, predictions, categories=("a",), threshold=0.5):
    return detection_metrics(match_boxes(targets, predictions), categories, threshold=threshold)


def random_cases(seed, cases=9, categories=2):
    """Cases with 0 to 3 true boxes and found ones near and far; scores tie between cases, never within one."""
    generator = np.random.default_rng(seed)
    targets, predictions = [], []
    for _ in range(cases):
        true, found = [], []
        for _ in range(generator.integers(4)):
            corner, label = generator.integers(0, 40, 2), int(generator.integers(categories))
            side = np.concatenate([corner, corner + generator.integers(8, 20, 2)])
            true.append((side, label))
            if generator.random() < 0.8:
                found.append((side + generator.integers(-3, 4, 4), label, round(generator.random(), 1)))
        for _ in range(generator.integers(3)):
            corner = generator.integers(0, 40, 2)
            found.append(([*corner, *(corner + 9)], int(generator.integers(categories)), round(generator.random(), 1)))
        targets.append(boxes(*true))
        predictions.append(
            boxes(*((side, label, score + place / 100) for place, (side, label, score) in enumerate(found)))
        )
    return targets, predictions


class TestByHand:
    def test_perfect(self):
        found = metrics([boxes((SQUARE, 0)), boxes()], [boxes((SQUARE, 0, 0.9)), boxes()])
        assert [found[name] for name in BY_CATEGORY if name != "false_positives"] == pytest.approx([1.0] * 8)
        assert found["false_positives"] == 0.0

    def test_half_found(self):
        # Recalls 0, 0.01 .. 0.5 are reached with precision 1: 51 of the 101.
        found = metrics([boxes((SQUARE, 0)), boxes((SQUARE, 0))], [boxes((SQUARE, 0, 0.9)), boxes()])
        assert found["map"] == found["map50"] == pytest.approx(51 / 101)
        assert found["ar1"] == found["ar100"] == found["froc"] == found["sensitivity"] == 0.5

    def test_a_false_box_before_the_hit(self):
        # In a case without any box: precision 1/2 at every recall; 1 false box for 2 cases.
        found = metrics([boxes((SQUARE, 0)), boxes()], [boxes((SQUARE, 0, 0.6)), boxes((SQUARE, 0, 0.9))])
        assert found["map"] == pytest.approx(0.5)
        assert (found["sensitivity"], found["false_positives"], found["ar1"]) == (1.0, 0.5, 1.0)
        assert found["froc"] == pytest.approx(5 / 7)  # rates from 1/2 on

    def test_overlap(self):
        # 10 x 10 against 10 x 7.2 inside: intersection over union 0.72, a hit at 0.5, 0.55, 0.6, 0.65 and 0.7.
        found = metrics([boxes((SQUARE, 0))], [boxes(([0, 0, 10, 7.2], 0, 0.9))])
        assert (found["map50"], found["map75"]) == pytest.approx((1.0, 0.0))
        assert found["map"] == pytest.approx(0.5)
        assert found["ar100"] == pytest.approx(0.5)

    def test_a_true_box_is_found_once(self):
        found = metrics([boxes((SQUARE, 0))], [boxes((SQUARE, 0, 0.9), (SQUARE, 0, 0.8))])
        assert (found["map"], found["false_positives"]) == pytest.approx((1.0, 1.0))

    def test_threshold(self):
        pair = [boxes((SQUARE, 0))], [boxes((SQUARE, 0, 0.4), (NOWHERE, 0, 0.3))]
        assert (metrics(*pair)["sensitivity"], metrics(*pair)["false_positives"]) == (0.0, 0.0)
        low = metrics(*pair, threshold=0.2)
        assert (low["sensitivity"], low["false_positives"], low["map"]) == pytest.approx((1.0, 1.0, 1.0))

    def test_most_found(self):
        # Two true boxes of one case: the surest box alone finds one of them.
        found = metrics([boxes((SQUARE, 0), (NOWHERE, 0))], [boxes((SQUARE, 0, 0.9), (NOWHERE, 0, 0.8))])
        assert (found["ar1"], found["ar10"]) == (0.5, 1.0)

    def test_categories_are_apart(self):
        found = metrics(
            [boxes((SQUARE, 0)), boxes((SQUARE, 1))], [boxes((SQUARE, 0, 0.9)), boxes((SQUARE, 0, 0.8))], ("a", "b")
        )
        assert (found["map/a"], found["map/b"], found["map"]) == pytest.approx((1.0, 0.0, 0.5))
        assert (found["false_positives/a"], found["false_positives/b"], found["false_positives"]) == (0.5, 0.0, 0.5)

    def test_a_category_without_true_boxes_has_no_number(self):
        found = metrics([boxes((SQUARE, 0))], [boxes((SQUARE, 0, 0.9), (NOWHERE, 1, 0.9))], ("a", "b"))
        assert (found["map"], found["froc"]) == pytest.approx((1.0, 1.0))
        assert np.isnan([found[f"{name}/b"] for name in BY_CATEGORY if name != "false_positives"]).all()
        assert found["false_positives/b"] == found["false_positives"] == 1.0

    def test_nothing_there_at_all(self):
        found = metrics([boxes()], [boxes((SQUARE, 0, 0.9))])
        assert np.isnan([found[name] for name in BY_CATEGORY if name != "false_positives"]).all()
        assert found["false_positives"] == 1.0

    def test_overlaps_are_those_of_coco(self):
        assert OVERLAPS.tolist() == pytest.approx([0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95])
        assert OVERLAPS[5] == 0.75

    def test_curves_alone(self):
        hits, drawn = np.array([[True, False, True]]), np.ones((1, 3))
        # Precision 1 up to recall 1/2, then 2/3.
        assert average_precision(hits, drawn, np.array([2.0]))[0, 0] == pytest.approx((51 + 50 * 2 / 3) / 101)
        assert np.isnan(average_precision(hits, drawn, np.array([0.0]))).all()
        scores = np.array([0.9, 0.5, 0.5])
        # The two of one score come together: 1 false box for 2 cases goes with both hits.
        assert froc_score(hits[0], scores, drawn, np.array([2.0]), np.array([2.0])) == pytest.approx(
            (2 * 0.5 + 5 * 1.0) / 7
        )

    def test_operating_points(self):
        matches = match_boxes([boxes((SQUARE, 0)), boxes()], [boxes((SQUARE, 0, 0.6)), boxes((SQUARE, 0, 0.9))])
        points = operating_points(matches, 0)
        assert points.scores.tolist() == [0.9, 0.6]
        assert (points.recall.tolist(), points.precision.tolist()) == ([0, 1], [0, 0.5])
        assert points.false_boxes.tolist() == [0.5, 0.5]
        assert operating_points(matches, 1) is None


def coco(matches, count):
    """MONAI's metric on its own, by the names that the project has."""
    metric = COCOMetric([str(n) for n in range(count)], (0.5, 0.75), (0.5, 0.95, 0.05), (1, 10, 100), verbose=False)
    values, _ = metric(matches)
    span = "IoU_0.50_0.95_0.05"
    names = {"map": f"mAP_{span}_MaxDet_100", "map50": "AP_IoU_0.50_MaxDet_100", "map75": "AP_IoU_0.75_MaxDet_100"}
    names |= {f"ar{limit}": f"mAR_{span}_MaxDet_{limit}" for limit in (1, 10, 100)}
    return {name: values[key] for name, key in names.items()}


class TestOracles:
    @pytest.mark.parametrize("seed", range(5))
    def test_weights_of_one_give_monais_numbers(self, seed):
        matches = match_boxes(*random_cases(seed))
        expected = coco(matches, 2)
        own = WeightedDetection(matches, ("a", "b"), 0.5).ones
        assert {name: own[name][0] for name in expected} == pytest.approx(expected, abs=1e-7)  # float32 there
        found = detection_metrics(matches, ("a", "b"), threshold=0.5)
        assert {name: found[name] for name in expected} == pytest.approx(expected)
        assert found["map"] == pytest.approx((found["map/a"] + found["map/b"]) / 2)
        assert {name: values[0] for name, values in own.items()} == pytest.approx(found, abs=1e-7, nan_ok=True)

    @pytest.mark.parametrize("seed", range(3))
    def test_a_weight_is_a_repeated_case(self, seed):
        targets, predictions = random_cases(seed)
        weights = np.random.default_rng(seed).integers(0, 4, size=(6, len(targets)))
        weighted = WeightedDetection(match_boxes(targets, predictions), ("a", "b"), 0.5)(weights.astype(float))
        for row, counts in enumerate(weights):
            rows = np.repeat(np.arange(len(targets)), counts)
            repeated = metrics([targets[r] for r in rows], [predictions[r] for r in rows], ("a", "b"))
            assert {name: values[row] for name, values in weighted.items()} == pytest.approx(
                repeated, abs=1e-6, nan_ok=True
            )

    def test_blocks_change_nothing(self, monkeypatch):
        weighted = WeightedDetection(match_boxes(*random_cases(1)), ("a", "b"), 0.5)
        weights = np.random.default_rng(0).integers(0, 3, size=(7, 9)).astype(float)
        whole = weighted(weights)
        monkeypatch.setattr("medcoss_components.evaluation.detection_metrics.CHUNK", 20)
        for name, values in weighted(weights).items():
            assert values == pytest.approx(whole[name], nan_ok=True)

    def test_overlap_of_monai_counts_open_edges(self):
        assert float(box_iou(np.array([[0.0, 0, 2, 1]]), np.array([[0.0, 0, 1, 1]]))[0, 0]) == 0.5


def result(**changes):
    targets, predictions = random_cases(3)
    names = [f"case-{number}" for number in range(len(targets))]
    parts = {"categories": ("a", "b"), "cases": names, "groups": [f"g{number // 2}" for number in range(len(targets))]}
    return DetectionResult(**(parts | {"targets": targets, "predictions": predictions} | changes))


class TestResult:
    def test_tensors_are_taken(self):
        target = {"boxes": torch.tensor([SQUARE]).float(), "labels": torch.tensor([0])}
        found = target | {"scores": torch.tensor([0.75])}
        made = DetectionResult(categories=["a"], cases=["1"], groups=["1"], targets=[target], predictions=[found])
        assert made.metrics()["map"] == pytest.approx(1.0)
        assert made.predictions[0].scores.tolist() == [0.75]
        assert made.task == "detection" and made.categories == ("a",)

    def test_intervals(self):
        made = result()
        intervals = made.intervals(repeats=40, seed=1)
        assert set(intervals) <= set(made.metrics())
        low, high = intervals["map"]
        assert 0 <= low <= made.metrics()["map"] <= high <= 1
        statistic = WeightedDetection(made.matches, made.categories, made.threshold)
        assert intervals == bootstrap_intervals(statistic, made.groups, repeats=40, seed=1)
        assert made.intervals(repeats=40, seed=1) == intervals

    def test_one_patient_has_none(self):
        assert result(groups=["same"] * 9).intervals(repeats=10) == {}

    def test_table(self):
        found = (boxes((SQUARE, 0, 0.9), (NOWHERE, 0, 0.6), (NOWHERE, 0, 0.1)), boxes())
        made = DetectionResult(
            categories=["a"],
            cases=["1", "2"],
            groups=["1", "2"],
            targets=[boxes((SQUARE, 0), ([20, 20, 30, 30], 0)), boxes()],
            predictions=found,
        )
        first, second = made.table()
        assert first == {
            "case": "1",
            "group": "1",
            "true_boxes": 2,
            "found_boxes": 2,
            "hits": 1,
            "missed": 1,
            "false_positives": 1,
            "f1": 0.5,
            "best_score": 0.9,
        }
        assert second["f1"] == 1.0 and np.isnan(second["best_score"])
        assert made.counts(0) == (2, 2)
        rows = made.box_table()
        assert [(row["kind"], row["left"]) for row in rows] == [
            ("true", 0), ("true", 20), ("found", 0), ("found", 50), ("found", 50)
        ]  # fmt: skip
        assert tuple(rows[0]) == made.BOX_COLUMNS and np.isnan(rows[0]["score"])

    def test_counts_of_a_case_by_category(self):
        matches = match_boxes([boxes((SQUARE, 0))], [boxes((SQUARE, 1, 0.9))])[0]
        assert case_counts(matches, 0.5)["hits"] == 0

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"categories": ()}, "one or more different names"),
            ({"categories": ("a", "a")}, "one or more different names"),
            ({"threshold": 1.0}, r"threshold=1\.0"),
            ({"cases": ["x"] * 9}, "'x' more than once"),
            ({"cases": ["x"]}, "received 1 cases"),
            ({"predictions": [boxes()]}, "received 1 and 9"),
            ({"categories": ("a",)}, r"labels must be in \[0, 1\), received 0 to 1"),
        ],
    )
    def test_wrong(self, changes, message):
        with pytest.raises(InputError, match=message):
            result(**changes)

    @pytest.mark.parametrize(
        ("found", "message"),
        [
            (boxes((SQUARE, 0, np.nan)), "predictions of case 1: a box or score is not finite"),
            (boxes(([0, 0, np.inf, 1], 0, 0.5)), "not finite"),
            (boxes((SQUARE, -1, 0.5)), "received -1 to -1"),
            (Boxes(boxes=np.zeros((1, 4)), labels=np.zeros(1, int), scores=np.zeros(2)), "received 1, 1 and 2"),
        ],
    )
    def test_wrong_boxes(self, found, message):
        with pytest.raises(InputError, match=message):
            DetectionResult(categories=["a"], cases=["1"], groups=["1"], targets=[boxes()], predictions=[found])


class TestPicture:
    def test_large_images_are_thinned_with_their_boxes(self):
        image = np.linspace(0, 1, 3 * 1000 * 800).reshape(3, 1000, 800)
        picture = make_box_picture(image, boxes(([10, 20, 30, 40], 0)), boxes(), case="1", score=0.5)
        assert picture.image.shape == (500, 400, 3)
        assert picture.target.boxes.tolist() == [[5, 10, 15, 20]]
        assert (picture.case, picture.score, len(picture.prediction)) == ("1", 0.5, 0)

    def test_grey(self):
        picture = make_box_picture(torch.randn(1, 20, 30), boxes(), boxes(), case="1", score=0)
        assert picture.image.shape == (20, 30)
        assert picture.image.min() >= 0 and picture.image.max() <= 1

    def test_the_surest_first(self):
        found = boxes((SQUARE, 0, 0.2), (SQUARE, 0, 0.9), (SQUARE, 1, 0.6)).at_least(0.5)
        assert found.scores.tolist() == [0.9, 0.6]
