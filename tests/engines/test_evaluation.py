"""Pretext loss on held-out data: the exact mean, and the same at every call."""

from __future__ import annotations

import json

import pytest
import torch

from medcoss_components.data.sampler import PretrainingLoader
from medcoss_components.engines.batches import step_batch
from medcoss_components.engines.evaluation import PretextEvaluator, write_evaluation


@pytest.fixture
def evaluator(fake_source, tiny_network, vocabulary):
    """``evaluator(name, count, batch_size, **options)``."""

    def build(name, count=7, batch_size=3, network=None, **options):
        loader = PretrainingLoader(fake_source(name, count), batch_size=batch_size, shuffle=False)
        options = {"precision": "float32", "vocabulary": vocabulary} | options
        return PretextEvaluator(
            device="cpu", val_data_loader=loader, network=network or tiny_network(stochastic_depth=0.5), **options
        )

    return build


class TestPretextEvaluator:
    @pytest.mark.parametrize("name", ["report", "xray", "ct"])
    def test_mean_over_units_not_over_batches(self, name, evaluator):
        """7 samples in batches of 3, 3 and 1: every removed patch or chosen token weighs the same."""
        engine = evaluator(name)
        total = count = 0.0
        for batch in PretrainingLoader(engine.data_loader.dataset, batch_size=3, shuffle=False):
            modality = engine.modalities[name]
            inputs = step_batch(
                batch, modality=modality, settings=engine.settings, device=torch.device("cpu")
            ).pretext()
            with torch.no_grad():
                part, units = engine.network.eval()(inputs.inputs, reduction="sum", **inputs.arguments)
            total, count = total + float(part), count + float(units)
        assert engine.evaluate() == {"pretext_loss": pytest.approx(total / count, rel=1e-6)}

    def test_every_call_gives_the_same(self, evaluator):
        engine = evaluator("xray")
        assert engine.evaluate() == engine.evaluate()

    def test_leaves_no_gradient_and_no_augmentation(self, evaluator):
        engine = evaluator("ct")
        engine.evaluate()
        assert not engine.settings.augment and not engine.network.training
        assert all(parameter.grad is None for parameter in engine.network.parameters())

    def test_settings_matter(self, evaluator):
        values = {evaluator("ct", mask_ratio=ratio).evaluate()["pretext_loss"] for ratio in (0.5, 0.75)}
        values.add(evaluator("ct", seed=1).evaluate()["pretext_loss"])
        assert len(values) == 3

    def test_ranks_are_added_up(self, evaluator, monkeypatch):
        """The other rank reports as many units and a total of 0: the mean over both is half of this one's."""
        engine = evaluator("ct")
        alone = engine.evaluate()["pretext_loss"]
        monkeypatch.setattr("ignite.distributed.get_world_size", lambda: 2)
        monkeypatch.setattr("ignite.distributed.all_reduce", lambda sums: sums * torch.tensor([1.0, 2.0]))
        assert engine.evaluate()["pretext_loss"] == pytest.approx(alone / 2)


class TestWriteEvaluation:
    def test_writes_metrics_and_says_so(self, evaluator, tmp_path, capsys):
        engine, path = evaluator("xray"), tmp_path / "evaluation.json"
        metrics = write_evaluation(evaluator=engine, path=path)
        assert json.loads(path.read_text()) == metrics and metrics["samples"] == 7
        assert f"pretext loss {metrics['pretext_loss']:.4f} over 7 samples" in capsys.readouterr().out

    def test_other_ranks_write_nothing(self, evaluator, tmp_path, monkeypatch):
        engine = evaluator("xray")
        monkeypatch.setattr("ignite.distributed.get_rank", lambda: 1)
        write_evaluation(evaluator=engine, path=tmp_path / "evaluation.json")
        assert not list(tmp_path.iterdir())
