"""Sorting a stage's history into curves and drawing them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from medcoss_components.errors import InputError
from medcoss_components.tracking.curves import (
    chain_curves,
    loss_curves,
    modality_colours,
    read_curves,
    smoothed,
)

COLUMNS = ["iteration", "epoch", "modality", "kind", "loss", "learning_rate", "samples_per_second"]


def make_history(count, *rehearsed):
    rows = []
    for step in range(1, count + 1):
        rows.append([step, 0, "ct", "pretext", 1 / step, 1e-3 * step, 10.0])
        rows += [[step, 0, name, "distillation", 1e-4 * step**3, 1e-3 * step, 10.0] for name in rehearsed]
    return {"columns": COLUMNS, "rows": rows}


class TestReadCurves:
    def test_pretext_and_rehearsal_apart(self):
        curves = read_curves(make_history(3, "report", "xray"))
        assert list(curves.pretext) == ["ct"]
        assert list(curves.rehearsal) == ["report", "xray"]
        np.testing.assert_allclose(curves.pretext["ct"], ([1, 2, 3], [1, 1 / 2, 1 / 3]))
        np.testing.assert_allclose(curves.learning_rate, ([1, 2, 3], [1e-3, 2e-3, 3e-3]))

    def test_columns_are_found_by_name(self):
        history = {
            "columns": ["loss", "kind", "modality", "learning_rate", "iteration"],
            "rows": [[2.5, "replay", "ct", 1, 9]],
        }
        np.testing.assert_allclose(read_curves(history).rehearsal["ct"], ([9], [2.5]))

    def test_steps_without_a_loss_are_left_out(self):
        history = make_history(2)
        history["rows"][0][4] = None
        np.testing.assert_allclose(read_curves(history).pretext["ct"], ([2], [0.5]))

    def test_missing_columns_are_named(self):
        with pytest.raises(InputError, match="columns iteration, learning_rate missing, received"):
            read_curves({"columns": ["modality", "kind", "loss"], "rows": []})


class TestSmoothed:
    def test_loop_oracle(self):
        values = np.random.default_rng(0).normal(size=11)
        expected = [np.mean(values[max(0, i - 2) : i + 3]) for i in range(11)]
        np.testing.assert_allclose(smoothed(values, 5), expected)

    def test_window_wider_than_the_curve(self):
        np.testing.assert_allclose(smoothed(np.array([1.0, 3.0]), 9), [2, 2])

    def test_nan_is_left_out(self):
        np.testing.assert_allclose(smoothed(np.array([1.0, np.nan, 3.0]), 3), [1, 2, 3])


def test_colours_do_not_depend_on_the_stage():
    assert modality_colours(["ct"])["ct"] == modality_colours(["report", "ct", "new"])["ct"]
    assert len(set(modality_colours(["report", "xray", "ct", "mri", "pathology"]).values())) >= 5


@pytest.mark.parametrize(
    "history", [make_history(0), make_history(1), make_history(3, "xray"), make_history(60, "a", "b")]
)
def test_loss_curves_draws_any_length(history, tmp_path):
    path = loss_curves(history, tmp_path / "previews" / "loss.png")
    assert path == tmp_path / "previews" / "loss.png"
    assert Image.open(path).size == (1100, 341)


def test_equal_histories_give_equal_files(tmp_path):
    first, second = (loss_curves(make_history(5, "xray"), tmp_path / name) for name in ("a.png", "b.png"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    "histories",
    [
        {"01_ct": make_history(4)},
        {"01_ct": make_history(30), "02_ct": make_history(25, "report", "xray")},
        {"01": make_history(0)},
    ],
)
def test_chain_curves(histories, tmp_path):
    assert Image.open(chain_curves(histories, tmp_path / "chain.png")).size == (1100, 506)


def test_no_pyplot_state(tmp_path):
    import sys

    before = "matplotlib.pyplot" in sys.modules
    loss_curves(make_history(2), tmp_path / "loss.png")
    assert ("matplotlib.pyplot" in sys.modules) == before
