"""The evaluation report: its files, its page, what it says about few patients, what it hides."""

from __future__ import annotations

import csv
import json
import re

import numpy as np
import pytest

from medcoss_components.evaluation.results import ClassificationResult, SegmentationResult
from medcoss_components.tracking import figures, task_report_html
from medcoss_components.tracking.task_report import write_cases, write_task_report

from .page import Page
from .test_task_figures import classification, segmentation

OPTIONS = {"title": "Liver & tumour <CT>", "split": "testing", "repeats": 50}


@pytest.fixture(autouse=True, scope="module")
def coarse_pictures():
    """Few pixels draw fast."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "DPI", 40)
        yield


@pytest.fixture(scope="module", params=("classification", "segmentation"))
def written(request, tmp_path_factory):
    """Result, folder and returned metrics of one report of either kind."""
    result = {"classification": classification, "segmentation": segmentation}[request.param]()
    folder = tmp_path_factory.mktemp("evaluation") / "testing"
    return result, folder, write_task_report(result, folder, settings={"network": {"preset": "demo"}}, **OPTIONS)


class TestFiles:
    def test_names(self, written):
        result, folder, _ = written
        pictures = {
            "classification": {"roc.png", "confusion.png", "calibration.png"},
            "segmentation": {"dice.png", "worst_1.png", "worst_2.png"},
        }[result.task]
        assert {path.name for path in folder.iterdir()} == pictures | {"cases.csv", "metrics.json", "REPORT.html"}

    def test_metrics(self, written):
        result, folder, metrics = written
        content = json.loads((folder / "metrics.json").read_text(), parse_constant=pytest.fail)
        assert metrics == result.metrics()
        assert content["metrics"] == pytest.approx(metrics)
        assert content["intervals"]["accuracy" if result.task == "classification" else "dice"] == pytest.approx(
            result.intervals(50)["accuracy" if result.task == "classification" else "dice"]
        )
        assert (content["cases"], content["groups"]) == (len(result.cases), len(set(result.groups)))
        assert (content["split"], content["task"]) == ("testing", result.task)
        assert content["bootstrap"] == {"level": 0.95, "repeats": 50, "seed": 0, "unit": "group"}

    def test_table(self, written):
        result, folder, _ = written
        with open(folder / "cases.csv", newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        assert [row["case"] for row in rows] == list(result.cases)
        for row, expected in zip(rows, result.table(), strict=True):
            numbers = {name: value for name, value in expected.items() if isinstance(value, float)}
            assert {name: float(row[name] or "nan") for name in numbers} == pytest.approx(numbers, nan_ok=True)

    def test_same_bytes_and_no_leftovers(self, written, tmp_path):
        result, before = written[0], {path.name: path.read_bytes() for path in written[1].iterdir()}
        folder = tmp_path
        (folder / "worst_9.png").write_bytes(b"of an earlier evaluation")
        (folder / "notes.txt").write_text("mine")
        write_task_report(result, folder, settings={"network": {"preset": "demo"}}, **OPTIONS)
        after = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert after.pop("notes.txt") == b"mine"
        assert after == before

    def test_ids_are_in_no_file_name(self, written):
        result, folder, _ = written
        assert not any(case in path.name for case in (*result.cases, *result.groups) for path in folder.iterdir())


class TestPage:
    def test_needs_nothing_else(self, written):
        page = Page(written[1] / "REPORT.html")
        assert page.addresses and all(address.startswith("data:image/png;base64,") for address in page.addresses)
        content = re.sub(r"base64,[^\"]+", "", (written[1] / "REPORT.html").read_text(encoding="utf-8"))
        assert not re.search(r"https?:|<script|@import|url\(", content)

    def test_pictures_have_texts(self, written):
        page = Page(written[1] / "REPORT.html")
        assert len(page.images) == 3
        assert all(len(image["alt"]) > 20 for image in page.images)

    def test_says_what_it_is(self, written):
        text = Page(written[1] / "REPORT.html").text
        for part in (
            "Liver & tumour <CT>",
            "testing",
            "not a clinical result",
            "How to read",
            "network.preset",
            "95 %",
        ):
            assert part in text
        assert f"{len(written[0].cases)} cases of {len(set(written[0].groups))} patients" in text

    def test_classification(self, tmp_path):
        result = classification()
        write_task_report(result, tmp_path, **OPTIONS)
        text = Page(tmp_path / "REPORT.html").text
        wrong = [row for row in result.table() if not row["correct"]]
        surest = max(wrong, key=lambda row: row["confidence"])
        assert f"{len(wrong)} of 40 cases were called wrong" in text
        assert surest["case"] in text and f"{surest['confidence']:.3f}" in text
        assert f"{result.metrics()['auc']:.3f}" in text
        assert "Settings" not in text

    def test_no_mistakes(self, tmp_path):
        result = ClassificationResult(
            classes=("a", "b"), cases=("1", "2"), groups=("1", "2"), probabilities=np.eye(2), targets=[0, 1]
        )
        write_task_report(result, tmp_path, **OPTIONS)
        assert "None of these cases was called wrong." in Page(tmp_path / "REPORT.html").text

    def test_segmentation(self, tmp_path):
        result = segmentation()
        write_task_report(result, tmp_path, **OPTIONS)
        text = Page(tmp_path / "REPORT.html").text
        assert f"{result.metrics()['hd95']:.2f} mm" in text
        assert "HD95 does not exist for 2 of 12 pairs" in text
        assert "case-0: Dice liver 1.000, tumour 0.000" in text

    def test_dice_alone(self, tmp_path):
        rows = [{"dice/a": 0.5}, {"dice/a": 0.25}]
        result = SegmentationResult(regions=("a",), cases=("1", "2"), groups=("1", "2"), rows=rows)
        assert write_task_report(result, tmp_path, **OPTIONS) == {"dice": 0.375, "dice/a": 0.375}
        text = Page(tmp_path / "REPORT.html").text
        assert "HD95 of" not in text and "In reference" not in text


class TestHonest:
    def test_one_patient(self, tmp_path):
        result = classification()
        one = ClassificationResult(
            classes=result.classes,
            cases=result.cases,
            groups=["p"] * 40,
            probabilities=result.probabilities,
            targets=result.targets,
        )
        write_task_report(one, tmp_path, **OPTIONS)
        content = json.loads((tmp_path / "metrics.json").read_text())
        assert content["intervals"] == {} and content["groups"] == 1
        assert "All cases come from one patient" in content["notes"][0]
        text = Page(tmp_path / "REPORT.html").text
        assert content["notes"][0] in text and "no interval" in text

    def test_few_patients_and_rare_classes(self, tmp_path):
        result = classification(classes=("a", "b", "gone"), absent=1)
        write_task_report(result, tmp_path, **OPTIONS)
        content = json.loads((tmp_path / "metrics.json").read_text())
        assert content["undefined"] == ["sensitivity/gone", "auc/gone"]
        assert content["metrics"]["auc/gone"] is None
        notes = "\n".join(content["notes"])
        assert "Only 20 patients" in notes and "gone (0)" in notes and "auc/gone" in notes

    def test_many_patients_need_no_note(self):
        result = classification(count=400)
        evaluation = task_report_html.Evaluation(result, "t", "s", result.metrics(), {}, {}, True)
        assert task_report_html.notes(evaluation) == []

    def test_hidden_cases(self, written, tmp_path):
        result, folder = written[0], tmp_path
        write_task_report(result, folder, show_cases=False, **OPTIONS)
        text = Page(folder / "REPORT.html").text
        assert not any(re.search(rf"\b{case}\b", text) for case in result.cases)
        assert not list(folder.glob("worst_*.png"))
        assert (folder / "cases.csv").is_file()


def test_number_text():
    texts = [task_report_html.number_text(*pair) for pair in ((0.98765, "dice/a"), (9.876, "hd95"), (98.76, "hd95/a"))]
    assert texts == ["0.988", "9.88", "98.8"]
    assert task_report_html.number_text(float("inf"), "auc") == "–"


def test_table_alone(tmp_path):
    path = write_cases(classification(count=2), tmp_path / "cases.csv")
    assert path.read_text().splitlines()[0] == "case,group,target,predicted,correct,confidence,prob_well,prob_ill"
