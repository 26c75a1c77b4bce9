"""Numbers and pictures of a stage."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from medcoss_components.engines import artefacts
from medcoss_components.engines.artefacts import stage_metrics
from medcoss_components.engines.records import StepRecord
from medcoss_components.even_spread import evenly_spread


@pytest.fixture
def captured(monkeypatch):
    """What the picture functions receive, by their name."""
    calls = {}
    for name in ("reconstruction_panel", "text_panel", "contact_sheet"):
        recorder = lambda *arguments, name=name, **options: calls.update({name: (arguments, options)})  # noqa: E731
        monkeypatch.setattr(artefacts.previews, name, recorder)
    return calls


@pytest.fixture
def stage(make_stage, tmp_path):
    return lambda name, **options: make_stage(tmp_path / name, name, **options)


class TestReconstruction:
    @pytest.mark.parametrize(("name", "shape"), [("xray", (3, 8, 18)), ("ct", (1, 6, 8, 12))])
    def test_visible_patches_stay_and_removed_ones_are_missing(self, name, shape, stage, captured, tmp_path):
        built = stage(name)
        artefacts._image_panel(built, built.dataset, tmp_path / "panel.png")
        original, masked, rebuilt, path = captured["reconstruction_panel"][0]
        assert original.shape == masked.shape == rebuilt.shape == (6, *shape) and path.name == "panel.png"
        removed = np.isnan(masked)
        assert removed.reshape(6, -1).mean(axis=1) == pytest.approx(5 / 6 if name == "xray" else 9 / 12)
        assert np.array_equal(original[~removed], rebuilt[~removed]) and np.isfinite(rebuilt).all()

    def test_shows_samples_without_augmentation(self, stage, captured, tmp_path):
        built = stage("xray")
        artefacts._image_panel(built, built.dataset, tmp_path / "panel.png")
        rows = evenly_spread(len(built.dataset), 6)
        expected = torch.stack([built.dataset[row]["image"] for row in rows]).numpy()
        assert np.allclose(captured["reconstruction_panel"][0][0], expected)


class TestTexts:
    def test_words_marks_and_guesses(self, stage, captured, vocabulary, tmp_path):
        built = stage("report", show_text=True)
        artefacts._text_panel(built, built.dataset, tmp_path / "panel.png")
        (rows, _), options = captured["text_panel"]
        assert len(rows) == 6 and options == {"show_text": True}
        for (words, chosen, guesses), row in zip(rows, evenly_spread(len(built.dataset), 6), strict=True):
            ids = [number for number in built.dataset[row]["text"].tolist() if number != vocabulary.pad_id]
            assert words == [vocabulary.token(number) for number in ids]  # the true words, not the masked ones
            assert len(words) == len(chosen) == len(guesses) and any(chosen)
            assert [bool(guess) for guess in guesses] == chosen

    def test_exemplars_are_decoded(self, stage, captured, tmp_path):
        built = stage("report")
        artefacts._exemplar_sheet(built, np.array([0, 3]), tmp_path / "sheet.png")
        (texts, _), options = captured["contact_sheet"]
        assert len(texts) == 2 and all("[" not in text and text for text in texts)
        assert options["show_text"] is False


def test_image_exemplars_at_most_a_sheet(stage, captured, tmp_path, monkeypatch):
    monkeypatch.setattr(artefacts, "SHEET_SAMPLES", 4)
    artefacts._exemplar_sheet(stage("ct"), np.arange(10), tmp_path / "sheet.png")
    assert captured["contact_sheet"][0][0].shape == (4, 1, 6, 8, 12)


class TestMetrics:
    @pytest.fixture
    def finished(self, stage, fake_source, tmp_path):
        """A stage as it stands after training, with losses made up."""
        built = stage("xray", buffers=[fake_source("ct", 3)], validated=False)
        built.record = StepRecord(tmp_path / "stage.json", settings={})
        built.record.values.update(preparation_seconds=1.5, training_seconds=2.0, validation_loss=0.25)
        built.record.steps.update(train={"finished": "", "seconds": 9.0}, embed={"finished": "", "seconds": 0.5})
        rows = [[1, 1, "xray", "pretext", 1.0, 0, 1], [2, 1, "ct", "distillation", 0.5, 0, 1]]
        rows += [[3, 1, "xray", "pretext", 0.75, 0, 1], [4, 1, "ct", "distillation", 0.25, 0, 1]]
        losses = lambda modality, kind: [row[4] for row in rows if row[2:4] == [modality, kind]]  # noqa: E731
        built.history = SimpleNamespace(rows=rows, losses=losses)
        return built

    def test_by_hand(self, finished):
        metrics = stage_metrics(finished)
        assert (metrics["first_loss"], metrics["final_loss"], metrics["validation_loss"]) == (1.0, 0.75, 0.25)
        assert metrics["rehearsal"] == {"ct": {"kind": "distillation", "first": 0.5, "final": 0.25, "buffer_size": 3}}
        assert metrics["seconds"] == {"prepare": 1.5, "train": 2.0, "embed": 0.5}
        assert metrics["samples_per_second"] == (10 + 4) / 2.0  # the short buffer is repeated up to a batch of 4
        assert metrics["parameters"] == sum(parameter.numel() for parameter in finished.model.parameters())
        assert metrics["peak_memory_bytes"] > 2**20

    def test_without_losses(self, finished):
        finished.history.rows.clear()
        metrics = stage_metrics(finished)
        assert metrics["first_loss"] is None and metrics["final_loss"] is None and metrics["rehearsal"] == {}
