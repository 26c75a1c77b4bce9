"""Pictures of an evaluation: that they are drawn for every kind of result, the same bytes twice, and what they hold."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from medcoss_components.evaluation.results import ClassificationResult, SegmentationResult, make_picture
from medcoss_components.evaluation.segmentation import case_metrics
from medcoss_components.tracking import figures
from medcoss_components.tracking import task_figures as draw


@pytest.fixture(autouse=True)
def coarse_pictures(monkeypatch):
    """Few pixels draw fast."""
    monkeypatch.setattr(figures, "DPI", 40)


def classification(count=40, classes=("well", "ill"), absent=0, seed=0):
    generator = np.random.default_rng(seed)
    targets = generator.integers(len(classes) - absent, size=count)
    scores = np.exp(generator.normal(size=(count, len(classes))) + np.eye(len(classes))[targets])
    return ClassificationResult(
        classes=classes,
        cases=[f"case-{number}" for number in range(count)],
        groups=[f"group-{number // 2}" for number in range(count)],
        probabilities=scores / scores.sum(axis=1, keepdims=True),
        targets=targets,
    )


def segmentation(count=6, regions=("liver", "tumour"), shape=(5, 12, 16), pictures=2):
    generator = np.random.default_rng(0)
    rows, shown = [], []
    for number in range(count):
        target = np.zeros((len(regions), *shape), dtype=bool)
        target[..., 3:9, 4:12] = True
        prediction = np.roll(target, number % 4, axis=-1)
        prediction[-1] &= number % 3 != 0
        rows.append(case_metrics(prediction, target, regions=regions, spacing=(1.0,) * len(shape)))
        image = generator.normal(size=(1, *shape))
        shown.append(
            make_picture(image, target, prediction, case=f"case-{number}", score=rows[-1]["dice/" + regions[0]])
        )
    return SegmentationResult(
        regions=regions,
        cases=[f"case-{number}" for number in range(count)],
        groups=[f"group-{number}" for number in range(count)],
        rows=rows,
        pictures=shown[:pictures],
    )


def drawn(path):
    """(H, W, 3) array of a picture that is not blank."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20
    return pixels


CLASSIFIERS = (draw.roc_curves, draw.confusion_picture, draw.calibration_picture)


class TestClassification:
    @pytest.mark.parametrize("make", CLASSIFIERS)
    def test_same_bytes(self, make, tmp_path):
        first, again = (make(classification(), tmp_path / f"{number}.png") for number in (1, 2))
        drawn(first)
        assert first.read_bytes() == again.read_bytes()

    @pytest.mark.parametrize("make", CLASSIFIERS)
    def test_many_classes_one_without_cases(self, make, tmp_path):
        names = tuple(f"colorectal_adenocarcinoma_epithelium_kind_{number}" for number in range(13))
        drawn(make(classification(classes=names, absent=1), tmp_path / "picture.png"))

    @pytest.mark.parametrize("make", CLASSIFIERS)
    def test_one_case(self, make, tmp_path):
        drawn(make(classification(count=1), tmp_path / "picture.png"))

    def test_confusion_counts(self):
        result = ClassificationResult(
            classes=("a", "b", "c"),
            cases=("1", "2", "3"),
            groups=("1", "2", "3"),
            probabilities=np.eye(3)[[0, 1, 1]],
            targets=[0, 0, 1],
        )
        assert draw.confusion_counts(result).tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]

    def test_styles_differ(self):
        styles = [tuple(draw.class_style(index).values()) for index in range(20)]
        assert len(set(styles)) == 20

    def test_wrapped_names(self):
        assert draw.wrapped("normal_colon_mucosa") == "normal colon\nmucosa"
        assert draw.wrapped("") == ""
        assert draw.wrapped("a rather long name of a class that goes on", 2).endswith(" …")


class TestSegmentation:
    @pytest.mark.parametrize("regions", (("lung",), ("liver", "tumour"), tuple("abcde")))
    def test_scores_and_case(self, regions, tmp_path):
        result = segmentation(regions=regions)
        drawn(draw.score_distribution(result, tmp_path / "dice.png"))
        first, again = (draw.case_picture(result.pictures[1], regions, tmp_path / f"{number}.png") for number in (1, 2))
        drawn(first)
        assert first.read_bytes() == again.read_bytes()

    def test_region_without_any_distance(self, tmp_path):
        rows = [{"dice/a": 0.0, "hd95/a": np.nan}]
        result = SegmentationResult(regions=("a",), cases=("1",), groups=("1",), rows=rows)
        drawn(draw.score_distribution(result, tmp_path / "dice.png"))

    def test_missed_is_blue_and_added_is_orange(self, tmp_path):
        target, prediction = np.zeros((2, 1, 40, 60), dtype=bool)
        target[:, 10:30, 5:25], prediction[:, 10:30, 35:55] = True, True
        image = np.full((1, 40, 60), 0.5)
        made = make_picture(image, target, prediction, case="c", score=0.0)
        pixels = drawn(draw.case_picture(made, ["r"], tmp_path / "case.png")).astype(int)
        half = pixels[: pixels.shape[0] * 3 // 4, pixels.shape[1] // 2 :]
        blue, orange = (np.argwhere(sign * (half[..., 2] - half[..., 0]) > 40)[:, 1].mean() for sign in (1, -1))
        assert blue < orange

    def test_colour_image(self, tmp_path):
        masks = np.zeros((1, 12, 16), dtype=bool)
        made = make_picture(np.random.default_rng(0).random((3, 12, 16)), masks, masks, case="c", score=1.0)
        drawn(draw.case_picture(made, ["gland"], tmp_path / "case.png"))
