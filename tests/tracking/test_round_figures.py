"""Pictures of multi-task training: they are drawn, and show what the numbers say."""

from __future__ import annotations

import numpy as np
import pytest

from medcoss_components.tracking import round_figures
from medcoss_components.tracking.figures import PALETTE
from medcoss_components.tracking.round_figures import multitask_curves, rounds_map

COLUMNS = ("iteration", "epoch", "modality", "kind", "loss", "learning_rate", "samples_per_second")


def rounds(count):
    rows = [{"round": number + 1, "headline": {"chest": number / count, "lungs": None}} for number in range(count)]
    return {"tasks": ["chest", "lungs"], "headlines": {"chest": "auc", "lungs": "dice"}, "rounds": rows}


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved, instead of files."""
    saved = []
    monkeypatch.setattr(round_figures, "save_figure", lambda figure, path: saved.append(figure) or path)
    return saved


class TestRoundsMap:
    def test_numbers_in_percent_and_a_dash_for_undefined(self, figures):
        rounds_map(rounds(4), "rounds.png")
        (axes,) = figures[0].axes
        assert [text.get_text() for text in axes.texts] == ["0", "25", "50", "75", "–", "–", "–", "–"]
        assert [label.get_text() for label in axes.get_yticklabels()] == ["chest (auc)", "lungs (dice)"]
        assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "3", "4"]

    def test_many_rounds_without_numbers(self, figures):
        rounds_map(rounds(100), "rounds.png")
        (axes,) = figures[0].axes
        assert not axes.texts and len(axes.get_xticklabels()) == 24

    def test_writes_a_file(self, tmp_path):
        assert rounds_map(rounds(2), tmp_path / "rounds.png").read_bytes()[:4] == b"\x89PNG"

    def test_nothing_without_a_round(self, tmp_path):
        assert rounds_map(rounds(0), tmp_path / "rounds.png") is None and not any(tmp_path.iterdir())


def history(rows):
    return {"columns": list(COLUMNS), "rows": [[step, 1, *row, 1e-3, 1.0] for step, *row in rows]}


class TestCurves:
    def test_parts_of_a_task_are_summed_and_turns_are_apart(self, figures):
        rows = [
            (1, "spots", "detection", 1.0),
            (1, "spots", "boxes", 0.5),
            (2, "spots", "detection", 2.0),
            (2, "spots", "boxes", 0.5),
            (3, "lungs", "segmentation", 1.0),
            (4, "spots", "detection", 4.0),
        ]
        multitask_curves(history(rows), ["lungs", "spots"], "losses.png")
        (axes,) = figures[0].axes
        lines = [(line.get_xdata().tolist(), line.get_ydata().tolist(), line.get_color()) for line in axes.lines]
        assert lines == [
            ([3.0], [1.0], PALETTE[0]),
            ([1.0, 2.0], [1.5, 2.5], PALETTE[1]),
            ([4.0], [4.0], PALETTE[1]),
        ]
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["lungs", "spots"]

    def test_a_panel_for_each_term_of_memorization(self, figures, tmp_path):
        rows = [(1, "lungs", kind, 1.0) for kind in ("segmentation", "feature", "anchor")]
        multitask_curves(history(rows), ["lungs"], tmp_path / "losses.png")
        assert [axes.get_title(loc="left").split(":")[0] for axes in figures[0].axes] == [
            "Loss of the task",
            "feature",
            "anchor",
        ]

    def test_without_iterations(self, figures):
        multitask_curves(history([]), ["lungs"], "losses.png")
        assert not figures[0].axes[0].lines and figures[0].axes[0].get_legend() is None

    def test_writes_a_file(self, tmp_path):
        rows = [(step, "lungs", "segmentation", float(np.cos(step))) for step in range(1, 60)]
        assert multitask_curves(history(rows), ["lungs"], tmp_path / "losses.png").is_file()
