"""The page and the terminal table of MUSCLE's pre-training, finished and not."""

from __future__ import annotations

import re

import pytest

from medcoss_components.errors import InputError
from medcoss_components.files import write_json
from medcoss_components.tracking.figures import new_figure, save_figure
from medcoss_components.tracking.muscle_captions import CAPTIONS
from medcoss_components.tracking.muscle_report import muscle_table, write_muscle_report

from .page import Page

SHARED = {"parameters": 342_480, "device": "cpu", "precision": "bf16", "peak_memory_bytes": 2**30, "iterations": 390}
CONTRAST = SHARED | {
    "samples": 622,
    "datasets": {"films": 244, "drr & more": 378},
    "body_parts": {"chest": 118},
    "epochs": 10,
    "first_loss": 3.4787,
    "final_loss": 1.4425,
    "validation": {"top1": 0.7381, "spread": 0.87},
    "feature_spread": 0.5065,
    "samples_per_second": 282.8,
}
TASKS = SHARED | {
    "tasks": {
        "bones": {
            "kind": "classification",
            "samples": 264,
            "validation": {"auc": 0.9256},
            "testing": {"auc": 0.8893},
            "intervals": {"validation": {"auc": [0.9131, 0.953]}, "testing": {}},
        },
        "lungs": {
            "kind": "segmentation",
            "samples": 114,
            "validation": {"dice": None},
            "testing": None,
            "intervals": {},
        },
    },
    "rounds": 5,
    "kept_round": 4,
    "keep": "best",
    "mean_headline": 0.626,
    "retention": {"average_accuracy": 0.626, "backward_transfer": 0.0552, "forgetting": -0.0005},
}
ROUNDS = {"headlines": {"bones": "auc", "lungs": "dice"}}
SECONDS = {
    "contrastive": {"train": {"seconds": 70.0}, "embed": {"seconds": 5.0}},
    "multitask": {"train": {"seconds": 20.0}},
}


@pytest.fixture
def folder(tmp_path):
    """A finished pipeline with all pictures and two pages of a task."""
    steps = []
    for number, name in enumerate(SECONDS, 1):
        step = tmp_path / f"{number:02d}_{name}"
        steps.append({"name": name, "folder": step.name, "run_id": None, "steps": {}})
        settings = {"batch_size": 16, "note": "<script>alert(1)</script>"}
        write_json(
            step / "run.json", {"settings": settings, "steps": SECONDS[name], "values": {"run_id": f"id {name}"}}
        )
        for picture in CAPTIONS[name]:
            (step / "previews").mkdir(exist_ok=True)
            save_figure(new_figure(1, 1), step / "previews" / f"{picture}.png")
    write_json(tmp_path / "01_contrastive" / "metrics.json", CONTRAST)
    write_json(tmp_path / "02_multitask" / "metrics.json", TASKS)
    write_json(tmp_path / "02_multitask" / "rounds.json", ROUNDS)
    for split in ("validation", "testing"):
        page = tmp_path / "02_multitask" / "evaluation" / "bones" / split / "REPORT.html"
        page.parent.mkdir(parents=True)
        page.write_text("a page")
    write_json(tmp_path / "muscle.json", {"run_id": "id parent", "steps": steps})
    return tmp_path


class TestFinished:
    def test_every_picture_is_inside_with_its_texts(self, folder):
        page = Page(write_muscle_report(folder))
        assert len(page.images) == sum(map(len, CAPTIONS.values())) == page.text.count("How to read this.")
        assert all(image["src"].startswith("data:image/png") and len(image["alt"]) > 20 for image in page.images)
        assert "not complete" not in page.text

    def test_links_lead_to_sections_and_pages_that_are_there(self, folder):
        page = Page(write_muscle_report(folder))
        links = [address for address in page.addresses if not address.startswith("data:")]
        assert {link[1:] for link in links if link.startswith("#")} == {"contrastive", "multitask"} <= set(page.ids)
        files = [link for link in links if not link.startswith("#")]
        assert len(files) == 2 and all((folder / file).is_file() for file in files)

    @pytest.mark.parametrize(
        "part",
        [
            "2 steps · 1 min 35 s",
            "3.48 → 1.44",
            "73.8 %",
            "1.0 GiB",
            "drr & more",
            "378",
            "0.926 (0.913 to 0.953)",
            "round 4",
            "the best one",
            "+5.5 points",
            "2 settings of contrastive",
            "id multitask",
        ],
    )
    def test_numbers(self, folder, part):
        assert part in Page(write_muscle_report(folder)).text

    def test_names_are_escaped_and_nothing_is_asked_from_the_network(self, folder):
        content = re.sub(r"base64,[^\"]+", "", write_muscle_report(folder).read_text(encoding="utf-8"))
        assert not re.search(r"https?:|<script|@import|url\(", content)

    def test_same_files_same_page(self, folder):
        first = write_muscle_report(folder).read_bytes()
        assert write_muscle_report(folder).read_bytes() == first

    def test_terminal_table(self, folder):
        lines = muscle_table(folder).splitlines()
        assert [line.split() for line in lines[1:3]] == [
            ["01_contrastive", "finished", "1", "min", "15", "s"],
            ["02_multitask", "finished", "20.0", "s"],
        ]
        assert lines[-2].split()[:4] == ["bones", "classification", "264", "auc"] and lines[-2].endswith("0.889")
        assert lines[-1].split() == ["lungs", "segmentation", "114", "dice", "–", "–"]

    def test_the_command(self, folder, medcoss):
        status, shown, _ = medcoss("report", folder)
        assert status == 0 and muscle_table(folder) in shown and str(folder / "REPORT.html") in shown


class TestUnfinished:
    def test_says_what_is_missing(self, folder):
        (folder / "02_multitask" / "metrics.json").unlink()
        text = Page(write_muscle_report(folder)).text
        for part in ("unfinished: 1 of 2 steps", "multitask: stopped after train", "written when it ends"):
            assert part in text
        assert "bones" not in muscle_table(folder)

    def test_nothing_begun(self, folder):
        for path in folder.glob("0*/*.json"):
            path.unlink()
        text = Page(write_muscle_report(folder)).text
        assert "contrastive: not started" in text and "unfinished: 0 of 2 steps" in text

    def test_a_damaged_file_is_named(self, folder):
        (folder / "02_multitask" / "rounds.json").write_text("{broken")
        text = Page(write_muscle_report(folder)).text
        assert "rounds.json: not a JSON file" in text

    def test_other_folder(self, tmp_path):
        with pytest.raises(InputError, match=r"no muscle.json here. Give the output_dir"):
            write_muscle_report(tmp_path)
