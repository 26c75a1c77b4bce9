"""The report and the terminal table, for finished, unfinished and damaged chains."""

from __future__ import annotations

import re

import pytest

from medcoss_components.errors import InputError
from medcoss_components.files import write_json
from medcoss_components.tracking import report_data
from medcoss_components.tracking.report import summary_table, write_report
from medcoss_components.tracking.report_data import PICTURES, read_chain

from .page import Page

EMPTY = {"average_accuracy": None, "backward_transfer": None, "forgetting": None}
EMPTY_SUMMARY = {"k_nn": EMPTY, "logistic": EMPTY}
SCORES = {"average_accuracy": 0.9, "backward_transfer": -0.2, "forgetting": 0.2}
RETAINED = {
    "format": 1,
    "stages": [{"name": "start", "modality": None}, {"name": "01_report", "modality": "report"}],
    "probes": {
        "words": {
            "modality": "report",
            "own": 1,
            "k_nn": [None, 0.9],
            "logistic": [None, 0.8],
            "classes": 2,
            "majority": 0.6,
            "samples": {"training": 8, "validation": 2, "testing": 5},
            "k": 8,
            "left_out": {"start": "no text"},
        },
        "never": {"modality": "ct", "own": None, "samples": None, "left_out": {}},
    },
    "reference": {},
    "summary": {"k_nn": SCORES, "logistic": SCORES},
}


@pytest.fixture
def finished(make_chain):
    chain = make_chain("report", "xray", "ct")
    for modality in chain.planned:
        chain.add(modality, pictures=PICTURES)
    return chain


class TestFinished:
    def test_page_needs_nothing_else(self, finished):
        path = write_report(finished.folder)
        assert path == finished.folder / "REPORT.html"
        page = Page(path)
        assert all(address.startswith(("data:image/png;base64,", "#")) for address in page.addresses)
        content = re.sub(r"base64,[^\"]+", "", path.read_text(encoding="utf-8"))
        assert not re.search(r"https?:|<script|@import|url\(", content)

    def test_every_picture_has_a_text_and_a_way_to_read_it(self, finished):
        page = Page(write_report(finished.folder))
        assert len(page.images) == 3 * len(PICTURES) + 1
        assert all(len(image["alt"]) > 20 for image in page.images)
        assert page.text.count("How to read this.") == len(page.images)

    def test_links_reach_their_sections(self, finished):
        page = Page(write_report(finished.folder))
        assert {address[1:] for address in page.addresses if address.startswith("#")} == set(page.ids)

    def test_captions_follow_the_dimension(self, finished):
        text = Page(write_report(finished.folder)).text
        assert text.count("Hidden words and guesses") == 1
        assert text.count("Shown is the middle slice") == 1

    def test_numbers_with_units(self, finished):
        text = Page(write_report(finished.folder)).text
        for part in ("1,200", "1.00 → 0.250", "−75 %", "nats per hidden word", "3.0 GiB", "1 min 15 s", "3,456,789"):
            assert part in text
        assert "not complete" not in text

    def test_new_modality_takes_its_dimension_from_the_buffer(self, make_chain):
        chain = make_chain("oct")
        folder = chain.add("oct", pictures=("reconstruction",))
        write_json(folder / "buffer.json", {"modality": {"name": "oct", "dimension": 3}})
        assert "middle slice" in Page(write_report(chain.folder)).text

    def test_unknown_modality_is_shown_like_images(self, make_chain):
        chain = make_chain("ultrasound_of_tomorrow")
        chain.add("ultrasound_of_tomorrow", pictures=("reconstruction",))
        assert "Original, visible patches, reconstruction" in Page(write_report(chain.folder)).text

    def test_retention_picture_is_shown_when_there(self, finished):
        (finished.folder / "retention.png").write_bytes((finished.folder / "01_report/previews/loss.png").read_bytes())
        assert "Retention" in Page(write_report(finished.folder)).text

    def test_retention_matrix(self, finished):
        write_json(finished.folder / "retention.json", RETAINED)
        page = Page(write_report(finished.folder))
        assert "retention" in page.ids
        for part in ("Forgetting", "+20.0 points", "90.0 %", "8 / 2 / 5", "words after start: no text"):
            assert part in page.text or part.lower() in page.text

    def test_retention_without_probes(self, finished):
        write_json(finished.folder / "retention.json", RETAINED | {"probes": {}, "summary": EMPTY_SUMMARY})
        text = Page(write_report(finished.folder)).text
        assert "Left out" not in text and "Measure" not in text

    def test_damaged_retention_matrix_is_named(self, finished):
        (finished.folder / "retention.json").write_text("{broken")
        assert "retention.json: not a JSON file" in Page(write_report(finished.folder)).text

    def test_same_files_same_page(self, finished):
        first = write_report(finished.folder).read_bytes()
        assert write_report(finished.folder).read_bytes() == first

    def test_names_are_escaped(self, finished):
        finished.write(settings={"note": "<script>alert(1)</script>"})
        assert "<script" not in write_report(finished.folder).read_text(encoding="utf-8")

    def test_terminal_table(self, finished):
        lines = summary_table(finished.folder).splitlines()
        assert lines[0].split()[:4] == ["Stage", "Samples", "Epochs", "Iterations"]
        assert [line.split()[0] for line in lines[2:5]] == ["01_report", "02_xray", "03_ct"]
        assert "report, xray" in lines[4]
        assert lines[-1] == "Total time 3 min 45 s"
        assert len({line.index("1.00 →") for line in lines[2:5]}) == 1


class TestUnfinished:
    def test_says_what_is_missing_and_how_to_go_on(self, make_chain):
        chain = make_chain("report", "xray", "ct")
        chain.add("report", pictures=("loss",))
        chain.add("xray", finished=False)
        text = Page(write_report(chain.folder)).text
        assert "unfinished: 1 of 3 stages" in text
        assert "02_xray: stopped after prepare" in text
        assert "03_ct: not started" in text
        assert "finished steps are kept" in text
        assert "No picture yet of: hidden words and guesses, which samples are kept for rehearsal, exemplars." in text

    def test_command_is_quoted_when_recorded(self, make_chain):
        chain = make_chain("report")
        chain.write(settings={"command": "make demo", "stages": [{"modality": "report"}]})
        assert "start make demo again" in re.sub(r"\s+", " ", Page(write_report(chain.folder)).text)

    def test_nothing_begun(self, make_chain):
        chain = make_chain("report", "xray")
        chain.write()
        assert "01_report: not started" in Page(write_report(chain.folder)).text
        assert "02_xray" in summary_table(chain.folder)

    def test_numbers_go_on_from_an_earlier_chain(self, make_chain):
        chain = make_chain("oct")
        chain.write(earlier=[{"modality": "report"}, {"modality": "xray"}])
        assert read_chain(chain.folder).planned == ("03_oct",)

    def test_steps_of_the_stage_folder_when_the_chain_has_none(self, make_chain):
        chain = make_chain("report")
        folder = chain.add("report", finished=False)
        write_json(folder / "stage.json", {"steps": {"train": {"seconds": 30.0}}})
        chain.stages[0]["steps"] = {}
        chain.write()
        stage = read_chain(chain.folder).stages[0]
        assert stage.status == "stopped after train"
        assert report_data.stage_seconds(stage) == 30

    def test_history_alone_counts_as_begun(self, make_chain):
        chain = make_chain("report")
        folder = chain.add("report")
        (folder / "metrics.json").unlink()
        chain.stages[0]["steps"] = {}
        chain.write()
        assert read_chain(chain.folder).stages[0].status == "begun"

    @pytest.mark.parametrize("name", ["metrics.json", "history.json", "buffer.json"])
    def test_damaged_file_is_named_and_the_rest_is_shown(self, name, finished):
        (finished.folder / "02_xray" / name).write_text("{broken")
        text = Page(write_report(finished.folder)).text
        assert f"02_xray/{name}: not a JSON file" in text
        assert "03_ct" in text

    @pytest.mark.parametrize("content", [{"columns": ["loss"], "rows": []}, {"columns": None, "rows": 3}, ["list"]])
    def test_history_of_another_form(self, content, finished):
        write_json(finished.folder / "02_xray/history.json", content)
        assert Page(write_report(finished.folder)).text.count("history.json") == (0 if isinstance(content, list) else 1)

    def test_no_chain(self, tmp_path):
        for function in (write_report, summary_table):
            with pytest.raises(InputError, match="no chain.json here"):
                function(tmp_path)


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (report_data.count_text, 1234567, "1,234,567"),
        (report_data.count_text, None, "–"),
        (report_data.loss_text, 0.0, "0.00"),
        (report_data.loss_text, 123.4, "123"),
        (report_data.loss_text, 0.00012, "1.2e-4"),
        (report_data.loss_text, float("nan"), "nan"),
        (report_data.seconds_text, 59.96, "1 min 00 s"),
        (report_data.seconds_text, 3599.7, "1 h 00 min"),
        (report_data.seconds_text, None, "–"),
        (report_data.bytes_text, 0, "–"),
        (report_data.loss_unit, None, "pretext loss"),
        (report_data.loss_unit, 2, "squared error, normalised pixels"),
    ],
)
def test_numbers_as_text(function, value, text):
    assert function(value) == text


@pytest.mark.parametrize(("first", "last", "text"), [(2, 3, "+50 %"), (2, 2, "±0 %"), (0, 1, "–"), (1, None, "–")])
def test_change(first, last, text):
    assert report_data.change_text(first, last) == text
