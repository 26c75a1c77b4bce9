"""The matrix as JSON, table, picture and page, of numbers that are given."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from medcoss_components.errors import InputError
from medcoss_components.files import write_json
from medcoss_components.retention.encoders import Column
from medcoss_components.retention.results import (
    change_text,
    column_metrics,
    measure_rows,
    read_retention,
    retention_result,
    retention_table,
    score_text,
    summary_metrics,
)
from medcoss_components.tracking.retention_map import retention_map


def cell(modality, k_nn, logistic, **more):
    facts = {"classes": 2, "majority": 0.6, "samples": {"training": 8, "validation": 2, "testing": 5}, "k": 8}
    return {"modality": modality, "identity": "x", "k_nn": k_nn, "logistic": logistic, "chosen_c": 0.1, **facts, **more}


@pytest.fixture
def columns(tmp_path):
    """Report, then X-ray; the text probe cannot be scored at the start."""
    names = [("start", None, ()), ("01_report", "report", ("report",)), ("02_xray", "xray", ("xray",))]
    columns = [Column(name=name, modality=kind, learned=learned, folder=tmp_path) for name, kind, learned in names]
    contents = [
        {"probes": {"words": {"modality": "report", "reason": "no text"}, "films": cell("xray", 0.5, 0.6)}},
        {"probes": {"words": cell("report", 0.9, 0.95), "films": cell("xray", 0.4, 0.5)}},
        {"probes": {"words": cell("report", 0.7, 0.9), "films": cell("xray", 0.8, 0.9)}},
    ]
    likeness = [
        {},
        {"report": {"cka": 1.0, "overlap": 1.0, "samples": 50, "k": 10}},
        {"report": {"cka": 0.6, "overlap": 0.3, "samples": 50, "k": 10}},
    ]
    return [
        (column, content | {"reference": part})
        for column, content, part in zip(columns, contents, likeness, strict=True)
    ]


@pytest.fixture
def result(columns):
    return retention_result(columns, {"report": 1})


class TestResult:
    def test_lists_have_one_entry_a_column(self, result):
        assert result["stages"] == [
            {"name": "start", "modality": None},
            {"name": "01_report", "modality": "report"},
            {"name": "02_xray", "modality": "xray"},
        ]
        words = result["probes"]["words"]
        assert (words["own"], words["k_nn"], words["logistic"]) == (1, [None, 0.9, 0.7], [None, 0.95, 0.9])
        assert words["chosen_c"] == [None, 0.1, 0.1] and words["left_out"] == {"start": "no text"}
        assert (words["classes"], words["majority"], words["k"]) == (2, 0.6, 8)
        assert result["reference"]["report"] == {
            "own": 1,
            "cka": [None, 1.0, 0.6],
            "overlap": [None, 1.0, 0.3],
            "samples": 50,
            "k": 10,
            "left_out": {},
        }

    def test_summary(self, result):
        assert result["summary"]["k_nn"] == {
            "average_accuracy": pytest.approx(0.75),
            "backward_transfer": pytest.approx(-0.2),
            "forgetting": pytest.approx(0.2),
        }
        assert result["summary"]["logistic"]["forgetting"] == pytest.approx(0.05)

    def test_metrics(self, columns, result):
        assert column_metrics(columns[2][1]) == {
            "retention/k_nn/words": 0.7,
            "retention/k_nn/films": 0.8,
            "retention/logistic/words": 0.9,
            "retention/logistic/films": 0.9,
            "retention/cka/report": 0.6,
            "retention/overlap/report": 0.3,
        }
        assert summary_metrics(result)["retention/forgetting/k_nn"] == pytest.approx(0.2)
        assert len(summary_metrics(result)) == 6

    def test_without_probes(self, columns):
        result = retention_result([(column, content | {"probes": {}}) for column, content in columns], {"report": 1})
        assert result["probes"] == {} and measure_rows(result) == [] and summary_metrics(result) == {}
        assert "k-NN" not in retention_table(result)


class TestTable:
    def test_lines(self, result):
        lines = retention_table(result).splitlines()
        assert lines[0].split() == ["k-NN", "accuracy", "start", "01_report", "02_xray"]
        assert lines[1].split() == ["words", "–", "90.0", "%*", "70.0", "%"]
        assert lines[2].split() == ["films", "50.0", "%", "40.0", "%", "80.0", "%*"]
        assert "report           –    100.0 %*   60.0 %" in "\n".join(lines) or "100.0 %*" in "\n".join(lines)
        assert "forgetting         +20.0 points  +5.0 points" in lines
        assert lines[-1] == "words after start: left out, no text"

    @pytest.mark.parametrize(
        ("function", "value", "text"),
        [
            (score_text, 0.5, "50.0 %"),
            (change_text, 0.051, "+5.1 points"),
            (change_text, -0.0001, "±0.0 points"),
            (change_text, None, "–"),
        ],
    )
    def test_numbers(self, function, value, text):
        assert function(value) == text


class TestMap:
    def test_a_larger_value_is_darker_also_in_grey(self, result, tmp_path):
        for probe in result["probes"].values():
            probe["k_nn"] = [0.1, 0.5, 0.9]
        path = retention_map(result, tmp_path / "map.png")
        with Image.open(path) as image:
            grey = np.asarray(image.convert("L"))
        assert grey.shape[0] > 300 and grey.min() < 60
        first = retention_map(result, tmp_path / "again.png").read_bytes()
        assert first == path.read_bytes()

    def test_nothing_to_draw(self, result, tmp_path):
        assert retention_map(result | {"probes": {}, "reference": {}}, tmp_path / "map.png") is None
        assert not list(tmp_path.glob("*.png"))


class TestReading:
    def test_absent(self, tmp_path):
        assert read_retention(tmp_path) is None

    def test_round_trip(self, result, tmp_path):
        write_json(tmp_path / "retention.json", result)
        assert read_retention(tmp_path)["probes"]["words"]["k_nn"] == [None, 0.9, 0.7]

    @pytest.mark.parametrize("content", [[], {"format": 2}])
    def test_another_form(self, content, tmp_path):
        write_json(tmp_path / "retention.json", content)
        with pytest.raises(InputError, match="retention.json: not a retention matrix of format 1"):
            read_retention(tmp_path)
