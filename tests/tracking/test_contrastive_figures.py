"""Pictures of contrastive pre-training."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from medcoss_components.errors import InputError
from medcoss_components.tracking import contrastive_figures
from medcoss_components.tracking.contrastive_figures import contrastive_curves, embedding_map, view_pairs

COLUMNS = ["iteration", "epoch", "modality", "kind", "loss", "learning_rate", "samples_per_second"]


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, to look at what they hold."""
    figures = []
    save = contrastive_figures.save_figure
    monkeypatch.setattr(
        contrastive_figures, "save_figure", lambda figure, path: figures.append(figure) or save(figure, path)
    )
    return figures


def history(count):
    kinds = {"contrastive": 1.0, "accuracy": 0.5, "spread": 0.9}
    return {
        "columns": COLUMNS,
        "rows": [
            [step, 0, "xray", kind, value / step, 1e-4, 10.0]
            for step in range(1, count + 1)
            for kind, value in kinds.items()
        ],
    }


class TestCurves:
    def test_a_panel_a_kind(self, drawn, tmp_path):
        path = contrastive_curves(history(3), tmp_path / "curves.png")
        assert Image.open(path).size[0] > 1000
        loss, accuracy, spread, rate = drawn[0].axes
        assert loss.lines[0].get_ydata().tolist() == [1, 1 / 2, 1 / 3]
        assert accuracy.lines[0].get_ydata()[0] == 0.5 and spread.lines[0].get_ydata()[0] == 0.9
        assert rate.lines[0].get_ydata().tolist() == [1e-4] * 3

    def test_long_lines_have_a_running_mean(self, drawn, tmp_path):
        contrastive_curves(history(30), tmp_path / "curves.png")
        assert [len(axes.lines) for axes in drawn[0].axes] == [2, 2, 2, 1]

    def test_nothing_recorded_yet(self, tmp_path):
        assert contrastive_curves({"columns": COLUMNS, "rows": []}, tmp_path / "curves.png").is_file()

    def test_column_missing(self, tmp_path):
        with pytest.raises(InputError, match="columns kind missing"):
            contrastive_curves({"columns": ["iteration", "loss", "learning_rate"]}, tmp_path / "curves.png")


class TestMap:
    points = np.random.default_rng(0).normal(size=(40, 2))

    def legend(self, figure):
        return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]

    def test_a_colour_a_category(self, drawn, tmp_path):
        names = ["chest"] * 25 + [None] * 5 + ["hand"] * 10
        assert embedding_map(self.points, names, tmp_path / "map.png").is_file()
        assert self.legend(drawn[0]) == ["chest (25)", "hand (10)", "not recorded (5)"]
        colours = [tuple(points.get_facecolor()[0][:3]) for points in drawn[0].axes[0].collections]
        assert len(set(colours)) == 3

    def test_nine_and_more_are_told_apart_by_shape(self, drawn, tmp_path):
        embedding_map(self.points, [f"set {number % 10}" for number in range(40)], tmp_path / "map.png")
        shapes = [points.get_paths()[0].vertices.shape for points in drawn[0].axes[0].collections]
        assert len(shapes) == 10 and shapes[0] == shapes[7] != shapes[8]

    def test_too_many_are_drawn_as_one(self, drawn, tmp_path):
        embedding_map(self.points, [f"set {number}" for number in range(40)], tmp_path / "map.png")
        assert len(self.legend(drawn[0])) == 32 and self.legend(drawn[0])[0] == "others (9)"

    @pytest.mark.parametrize("points", [np.zeros((3, 3)), np.zeros((2, 2)), np.zeros((0, 2))])
    def test_shapes_are_checked(self, points, tmp_path):
        with pytest.raises(InputError, match=r"points2d must be \(N, 2\)"):
            embedding_map(points, ["a"] * 3 if len(points) else [], tmp_path / "map.png")


def test_view_pairs(tmp_path):
    images = np.random.default_rng(0).normal(size=(2, 3, 16, 20))
    assert Image.open(view_pairs(images, images, images, tmp_path / "views.png")).size[0] > 500
    with pytest.raises(InputError, match="one shape"):
        view_pairs(images, images, images[:1], tmp_path / "views.png")
