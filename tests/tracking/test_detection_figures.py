"""Pictures and report of a detector: drawn for every kind of result, the same bytes twice, and what the page says."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from medcoss_components.evaluation.detection import DetectionResult, make_box_picture
from medcoss_components.evaluation.detection_metrics import Boxes
from medcoss_components.tracking import detection_figures as draw
from medcoss_components.tracking import figures
from medcoss_components.tracking.task_report import write_task_report
from medcoss_components.tracking.task_report_html import number_text

from .page import Page

CATEGORIES = ("active_tuberculosis", "nodule")


@pytest.fixture(autouse=True)
def coarse_pictures(monkeypatch):
    """Few pixels draw fast."""
    monkeypatch.setattr(figures, "DPI", 40)


def boxes(sides, labels, scores=None):
    sides = np.array(sides, float).reshape(-1, 4)
    values = {"boxes": sides, "labels": np.array(labels, int)}
    return Boxes.of(values if scores is None else values | {"scores": np.array(scores)})


def detection(count=6, categories=CATEGORIES, pictures=2):
    """Case n has n % 3 true boxes of the first category; every second one is found, case 5 has a false box as well."""
    targets, predictions = [], []
    for number in range(count):
        sides = [[10 * place, 5, 10 * place + 8, 15] for place in range(number % 3)]
        targets.append(boxes(sides, [0] * len(sides)))
        found = sides[number % 2 :] + [[40, 40, 50, 50]] * (number == 5)
        predictions.append(boxes(found, [0] * len(found), np.linspace(0.9, 0.4, len(found))))
    result = DetectionResult(
        categories=categories,
        cases=[f"case-{number}" for number in range(count)],
        groups=[f"group-{number}" for number in range(count)],
        targets=targets,
        predictions=predictions,
    )
    generator, scores = np.random.default_rng(0), {row["case"]: row["f1"] for row in result.table()}
    rows = sorted(range(count), key=lambda row: (scores[f"case-{row}"], row))[:pictures]
    shown = [
        make_box_picture(
            generator.random((3, 60, 50)),
            targets[row],
            predictions[row].at_least(0.5),
            case=f"case-{row}",
            score=scores[f"case-{row}"],
        )
        for row in rows
    ]
    return replace(result, pictures=shown)


def drawn(path):
    """(H, W, 3) array of a picture that is not blank."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20
    return pixels


CURVES = (draw.precision_recall, draw.froc_curves)


class TestCurves:
    @pytest.mark.parametrize("make", CURVES)
    def test_same_bytes(self, make, tmp_path):
        first, again = (make(detection(), tmp_path / f"{number}.png") for number in (1, 2))
        drawn(first)
        assert first.read_bytes() == again.read_bytes()

    @pytest.mark.parametrize("make", CURVES)
    def test_nothing_found(self, make, tmp_path):
        empty = boxes([], [], [])
        drawn(make(replace(detection(), predictions=[empty] * 6), tmp_path / "picture.png"))

    @pytest.mark.parametrize("make", CURVES)
    def test_nothing_there(self, make, tmp_path):
        drawn(make(replace(detection(), targets=[boxes([], [])] * 6), tmp_path / "picture.png"))


class TestCases:
    def test_missed_boxes(self):
        target = boxes([[0, 0, 10, 10], [20, 0, 30, 10], [0, 0, 10, 10]], [0, 0, 1])
        found = boxes([[21, 0, 31, 10]], [0], [0.8])
        assert draw.missed_boxes(target, found).tolist() == [True, False, True]
        assert draw.missed_boxes(boxes([], []), found).tolist() == []

    def test_colours_tell_true_from_found(self, tmp_path):
        picture = detection().pictures[0]
        plain = replace(picture, prediction=boxes([], [], []), target=boxes([], []))
        both, none = (
            drawn(draw.box_picture(entry, CATEGORIES, tmp_path / f"{number}.png")).astype(int)
            for number, entry in enumerate((picture, plain))
        )
        changed = np.abs(both - none).max(axis=2) > 60
        height, width = changed.shape
        assert changed[:, width // 2 :].any() and not changed[: height * 3 // 4, : width // 2 - 5].any()

    def test_many_boxes_are_not_all_labelled(self, tmp_path):
        many = boxes([[n, n, n + 5, n + 5] for n in range(45)], [0] * 45, [0.9] * 45)
        picture = replace(detection().pictures[0], prediction=many)
        drawn(draw.box_picture(picture, ("nodule",), tmp_path / "picture.png"))

    def test_overlay(self, tmp_path):
        picture = np.random.default_rng(0).integers(0, 255, (1, 30, 20), dtype=np.uint8)
        first, again = (
            draw.write_box_overlay(
                tmp_path / f"{number}.png",
                picture=picture,
                found=boxes([[1, 2, 9, 12]], [1], [0.7]),
                categories=CATEGORIES,
                caption="prepared",
            )
            for number in (1, 2)
        )
        drawn(first)
        assert first.read_bytes() == again.read_bytes()


class TestReport:
    OPTIONS = {"title": "Tuberculosis <X-ray>", "split": "testing", "repeats": 30}

    def test_files(self, tmp_path):
        result = detection()
        metrics = write_task_report(result, tmp_path, **self.OPTIONS)
        assert metrics == pytest.approx(result.metrics(), nan_ok=True)
        pictures = {"precision_recall.png", "froc.png", "worst_1.png", "worst_2.png"}
        tables = {"cases.csv", "boxes.csv", "metrics.json", "REPORT.html"}
        assert {path.name for path in tmp_path.iterdir()} == pictures | tables
        content = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=pytest.fail)
        assert (content["task"], content["categories"]) == ("detection", list(CATEGORIES))
        assert (content["score_threshold"], content["cases"], content["groups"]) == (0.5, 6, 6)
        assert "map/nodule" in content["undefined"] and content["metrics"]["map/nodule"] is None
        assert set(content["intervals"]["map"]) and "map/nodule" not in content["intervals"]

    def test_boxes(self, tmp_path):
        write_task_report(detection(), tmp_path, **self.OPTIONS)
        with open(tmp_path / "boxes.csv", newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        assert [row["kind"] for row in rows].count("true") == 6
        assert rows[0]["score"] == "" and rows[0]["category"] == "active_tuberculosis"

    def test_no_box_at_all_leaves_a_header(self, tmp_path):
        result = replace(detection(count=1), pictures=())
        write_task_report(result, tmp_path, **self.OPTIONS)
        assert (tmp_path / "boxes.csv").read_text() == "case,kind,category,score,left,top,right,bottom\n"

    def test_page(self, tmp_path):
        result = detection()
        write_task_report(result, tmp_path, **self.OPTIONS)
        page = Page(tmp_path / "REPORT.html")
        for part in (
            "categories: active_tuberculosis, nodule",
            "Score threshold 0.5. 2 cases without any true box",
            "Categories with fewer than 10 true boxes: active_tuberculosis (6), nodule (0).",
            "Not defined by these cases: map/nodule",
            "mAP",
            f"{result.metrics()['map']:.3f}",
            "Each category",
            "Cases with the lowest F1",
            "case-1: 0 hits, 1 missed, 0 false",
            "true and found boxes",
        ):
            assert part in page.text or any(part in image["alt"] for image in page.images), part
        assert len(page.images) == 4

    def test_single_cases_can_be_hidden(self, tmp_path):
        write_task_report(detection(), tmp_path, show_cases=False, **self.OPTIONS)
        assert "case-1" not in Page(tmp_path / "REPORT.html").text
        assert not list(tmp_path.glob("worst_*.png"))

    def test_another_evaluation_leaves_nothing_behind(self, tmp_path):
        write_task_report(detection(), tmp_path, **self.OPTIONS)
        write_task_report(replace(detection(), pictures=()), tmp_path, **self.OPTIONS)
        assert not list(tmp_path.glob("worst_*.png"))

    def test_false_boxes_are_no_share(self):
        assert number_text(1.234, "false_positives/nodule") == "1.23"
