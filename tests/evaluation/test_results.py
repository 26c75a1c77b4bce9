"""Results of an evaluation: checks, tables, the worst cases and the slice that shows them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from medcoss_components.errors import InputError
from medcoss_components.evaluation import results
from medcoss_components.evaluation.results import (
    CasePicture,
    ClassificationResult,
    SegmentationResult,
    WorstCases,
    json_numbers,
    make_picture,
)


def classification(**change):
    arguments = {
        "classes": ["well", "ill"],
        "cases": ["c1", "c2", "c3"],
        "groups": ["p1", "p1", "p2"],
        "probabilities": [[0.75, 0.25], [0.25, 0.75], [0.75, 0.25]],
        "targets": [0, 1, 1],
    }
    return ClassificationResult(**arguments | change)


def segmentation(**change):
    rows = [
        {"dice/a": 1.0, "dice/b": 0.5, "hd95/a": 2.0, "hd95/b": 4.0, "surface_dice/a": 1.0, "surface_dice/b": 0.5},
        {"dice/a": 0.6, "dice/b": 0.0, "hd95/a": 6.0, "hd95/b": np.nan, "surface_dice/a": 0.5, "surface_dice/b": 0.0},
    ]
    return SegmentationResult(
        **{"regions": ["a", "b"], "cases": ["c1", "c2"], "groups": ["p", "q"], "rows": rows} | change
    )


def picture(case, score):
    empty = np.zeros((1, 2, 2), dtype=bool)
    return CasePicture(case=case, image=np.zeros((2, 2)), target=empty, prediction=empty, score=score)


class TestClassification:
    def test_parts(self):
        result = classification()
        assert result.task == "classification"
        assert result.probabilities.dtype == np.float64 and result.targets.dtype == np.int64
        assert result.predicted.tolist() == [0, 1, 0]
        assert result.metrics()["accuracy"] == pytest.approx(2 / 3)

    def test_table(self):
        assert classification().table()[2] == {
            "case": "c3",
            "group": "p2",
            "target": "ill",
            "predicted": "well",
            "correct": 0,
            "confidence": 0.75,
            "prob_well": 0.75,
            "prob_ill": 0.25,
        }

    def test_intervals_are_computed_once(self, monkeypatch):
        result = classification()
        first = result.intervals(20, seed=1)
        assert 0 <= first["accuracy"][0] <= first["accuracy"][1] <= 1
        monkeypatch.setattr(results, "bootstrap_intervals", None)
        first.clear()
        assert result.intervals(20, seed=1)

    @pytest.mark.parametrize(
        ("change", "message"),
        (
            ({"cases": ["c1", "c2", "c1"]}, "received 'c1' more than once"),
            ({"groups": ["p1"]}, "each of the 3 results.*3 cases and 1 groups"),
            ({"targets": [0, 1, 2]}, "values from 0 to 2"),
        ),
    )
    def test_rejected(self, change, message):
        with pytest.raises(InputError, match=message):
            classification(**change)


class TestSegmentation:
    def test_metrics(self):
        found = segmentation().metrics()
        assert found["dice"] == pytest.approx((0.75 + 0.3) / 2)
        assert found["dice/b"] == 0.25
        assert found["hd95"] == pytest.approx((3 + 6) / 2)
        assert (found["hd95/b"], found["hd95_undefined"]) == (4.0, 1.0)
        assert segmentation().task == "segmentation"

    def test_without_distances(self):
        result = segmentation(rows=[{"dice/a": 1.0, "dice/b": 0.0}] * 2)
        assert set(result.metrics()) == {"dice", "dice/a", "dice/b"}

    def test_table(self):
        row = segmentation().table()[1]
        assert list(row)[:5] == ["case", "group", "dice_mean", "hd95_mean", "surface_dice_mean"]
        assert (row["dice_mean"], row["hd95_mean"], row["dice/a"]) == (0.3, 6.0, 0.6)

    def test_intervals(self):
        found = segmentation().intervals(200)
        assert found["dice"] == pytest.approx((0.3, 0.75))
        assert "hd95_undefined" not in found
        assert segmentation(groups=["p", "p"]).intervals() == {}

    @pytest.mark.parametrize(
        ("change", "message"),
        (
            ({"cases": []}, "received 0 cases"),
            ({"rows": [], "cases": [], "groups": []}, "at least one"),
            ({"spacing_unit": "cm"}, "one of mm, voxel, pixel, received 'cm'"),
            ({"regions": ["a", "c"]}, r"missing: \['dice/c'\]"),
            ({"regions": []}, "dice/<region>"),
        ),
    )
    def test_rejected(self, change, message):
        with pytest.raises(InputError, match=message):
            segmentation(**change)


class TestWorst:
    def test_keeps_the_lowest_and_makes_no_more_than_it_must(self):
        worst, made = WorstCases(limit=2), []
        for case, score in (("a", 0.5), ("b", 0.9), ("c", 0.95), ("d", 0.1), ("e", 0.5)):
            worst.offer(
                case=case, score=score, make=lambda case=case, score=score: made.append(case) or picture(case, score)
            )
        assert [entry.case for entry in worst.pictures] == ["d", "a"]
        assert made == ["a", "b", "d"]

    def test_order_of_offers_does_not_matter(self):
        cases = [(f"c{number}", 0.5) for number in range(5)]
        for order in (cases, cases[::-1]):
            worst = WorstCases(limit=3)
            for case, score in order:
                worst.add(picture(case, score))
            assert [entry.case for entry in worst.pictures] == ["c0", "c1", "c2"]

    def test_a_case_is_kept_once(self):
        worst = WorstCases()
        worst.add(picture("a", 0.5))
        worst.add(picture("a", 0.5))
        assert len(worst.pictures) == 1

    def test_none(self):
        worst = WorstCases(limit=0)
        worst.offer(case="a", score=0.0, make=lambda: picture("a", 0.0))
        assert worst.pictures == ()
        with pytest.raises(InputError, match="received -1"):
            WorstCases(limit=-1)


class TestPicture:
    image = np.random.default_rng(0).normal(size=(1, 5, 6, 8)).astype(np.float32)
    target = np.zeros((2, 5, 6, 8), dtype=bool)

    def masks(self):
        return self.target.copy(), self.target.copy()

    def test_slice_with_most_errors(self):
        target, prediction = self.masks()
        target[0, 1] = prediction[0, 1] = True
        prediction[1, 3, :2, :2] = True
        target[0, 4, 0, 0] = True
        made = make_picture(self.image, target, torch.from_numpy(prediction), case="c", score=0.25)
        assert (made.note, made.case, made.score) == ("slice 4 of 5", "c", 0.25)
        assert made.image.shape == (6, 8) and made.prediction.sum() == 4
        assert made.image.min() >= 0 and made.image.max() <= 1

    def test_without_errors_the_fullest_slice_or_the_middle(self):
        target, _ = self.masks()
        assert make_picture(self.image, target, target, case="c", score=1).note == "slice 3 of 5"
        target[0, 4, 0, 0] = True
        assert make_picture(self.image, target, target, case="c", score=1).note == "slice 5 of 5"

    def test_grey_window_follows_the_regions(self):
        image = np.full((1, 6, 8), -1000.0, dtype=np.float32)
        image[:, 1:5, 1:7] = 40
        image[:, 2:4, 2:6] = np.linspace(80, 120, 8).reshape(2, 4)
        mask = np.zeros((1, 6, 8), dtype=bool)
        mask[:, 2:4, 2:6] = True
        made = make_picture(image, mask, mask, case="c", score=1)
        assert made.image[0, 0] == 0 and 0.1 < made.image[1, 1] < 0.4 < made.image[2, 2]
        assert made.image[0, 0] < made.image[1, 1] < made.image[2, 2] < made.image[3, 5] <= 1
        fixed = make_picture(image, mask, mask, case="c", score=1, window=(-1000, 1080))
        assert fixed.image[1, 1] == pytest.approx(0.5)

    def test_colours_and_thinning(self):
        image = np.random.default_rng(0).random((3, 900, 100)).astype(np.float32)
        mask = np.zeros((1, 900, 100), dtype=bool)
        made = make_picture(image, mask, mask, case="c", score=1)
        assert made.image.shape == (450, 50, 3) and made.target.shape == (1, 450, 50)
        assert made.image[10, 20] == pytest.approx(image[:, 20, 40])
        assert made.note == ""

    @pytest.mark.parametrize("shapes", (((2, 6, 8), (1, 6, 8), (1, 6, 8)), ((1, 6, 8), (1, 8, 6), (1, 8, 6))))
    def test_rejected(self, shapes):
        with pytest.raises(InputError, match="of the same S"):
            make_picture(*(np.zeros(shape) for shape in shapes), case="c", score=1)


def test_json_numbers_knows_no_nan():
    text = json.dumps(json_numbers({"auc": float("nan"), "f1": np.float64(0.5)}), allow_nan=False)
    assert json.loads(text) == {"auc": None, "f1": 0.5}
