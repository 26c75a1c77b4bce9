"""Which epoch is kept, and that a crash at any moment loses neither the best one nor its score."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from medcoss_components.engines.selection import EpochSelection, metric_names, selection_score
from medcoss_components.errors import InputError
from medcoss_components.weights import read_weights


class FakeEvaluator:
    """Gives the scores of a list, one after the other."""

    def __init__(self, scores):
        self.scores, self.state = list(scores), SimpleNamespace(metrics={})

    def run(self):
        self.state.metrics = {"dice": self.scores.pop(0), "dice/liver": 0.5}


def engine_at(epoch, last=4, length=3):
    """An engine after epoch ``epoch`` whose only weight is the epoch's number."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, float(epoch))
    state = SimpleNamespace(epoch=epoch, max_epochs=last, epoch_length=length, iteration=epoch * length)
    return SimpleNamespace(model=model, state=state)


def kept(folder):
    """Epochs whose weights are in the folder, each checked to hold the weights of its epoch."""
    files = {int(path.stem.split("-")[1]): path for path in folder.glob("best-*.pt")}
    assert all(read_weights(path)["weight"].item() == epoch for epoch, path in files.items())
    return sorted(files)


def build(folder, scores=(), **options):
    evaluator = FakeEvaluator(scores) if scores is not None else None
    return EpochSelection(folder=folder, evaluator=evaluator, **({"selection": "dice"} | options))


def run_epochs(selector, epochs):
    for epoch in epochs:
        selector(engine_at(epoch))


class TestScore:
    def test_sum_of_the_named(self):
        assert metric_names(" accuracy + auc") == ("accuracy", "auc")
        assert selection_score({"accuracy": 0.5, "auc": 0.25, "f1": 9.0}, "accuracy+auc") == 0.75

    @pytest.mark.parametrize("selection", ["", "dice+", "+"])
    def test_empty_name_refused(self, selection):
        with pytest.raises(InputError, match="selection: give names"):
            metric_names(selection)

    def test_unknown_name_refused_with_the_known_ones(self):
        with pytest.raises(InputError, match="'accuracy' is no metric of this task; choose from dice, hd95$"):
            selection_score({"dice": 1.0, "hd95": 2.0, "dice/liver": 1.0}, "dice+accuracy")

    def test_undefined_parts_are_left_out(self, caplog):
        assert selection_score({"accuracy": 0.5, "auc": math.nan}, "accuracy+auc") == 0.5
        assert "left out" in caplog.text
        assert selection_score({"auc": math.nan}, "auc") == -math.inf


class TestBestEpoch:
    def test_first_of_equals_is_kept(self, tmp_path):
        selector = build(tmp_path, [0.2, 0.7, 0.7, 0.6])
        run_epochs(selector, [1, 2, 3, 4])
        assert selector.best == (2, 0.7) and kept(tmp_path) == [2]
        assert [row["score"] for row in selector.rows] == [0.2, 0.7, 0.7, 0.6]
        assert selector.best_path == tmp_path / "best-2.pt"

    def test_undefined_score_is_better_than_nothing(self, tmp_path):
        selector = build(tmp_path, [math.nan])
        run_epochs(selector, [1])
        assert kept(tmp_path) == [1] and selector.to_json()["best_score"] is None

    def test_every_third_epoch_and_the_last(self, tmp_path):
        selector = build(tmp_path, [0.5, 0.25], every=3)
        run_epochs(selector, [1, 2, 3, 4])
        assert [row["epoch"] for row in selector.rows] == [3, 4] and kept(tmp_path) == [3]

    def test_without_evaluator_the_last_epoch(self, tmp_path):
        selector = build(tmp_path, None)
        run_epochs(selector, [1, 2, 3])
        assert kept(tmp_path) == []
        run_epochs(selector, [4])
        assert kept(tmp_path) == [4]
        assert selector.to_json() == {"selection": None, "best_epoch": 4, "best_score": None, "rows": []}

    def test_no_best_path_before_the_first_validation(self, tmp_path):
        with pytest.raises(InputError, match="no weights of a best epoch"):
            build(tmp_path).best_path  # noqa: B018

    def test_other_ranks_write_nothing(self, tmp_path):
        selector = build(tmp_path, [0.5], writes=False)
        run_epochs(selector, [1])
        selector.clean()
        assert selector.best == (1, 0.5) and kept(tmp_path) == []

    def test_clean_removes_the_weights(self, tmp_path):
        selector = build(tmp_path, [0.5])
        run_epochs(selector, [1])
        selector.clean()
        assert kept(tmp_path) == []

    def test_rows_and_calls(self, tmp_path):
        told = []
        selector = build(tmp_path, [0.5], on_validated=lambda iteration, metrics: told.append((iteration, metrics)))
        run_epochs(selector, [2])
        metrics = {"dice": 0.5, "dice/liver": 0.5}
        assert told == [(6, metrics | {"score": 0.5})]
        row = {"epoch": 2, "iteration": 6, "score": 0.5, "metrics": metrics}
        assert selector.to_json() == {"selection": "dice", "best_epoch": 2, "best_score": 0.5, "rows": [row]}

    def test_interval_below_one_refused(self, tmp_path):
        with pytest.raises(InputError, match="received 0"):
            build(tmp_path, every=0)


class TestCrash:
    def test_what_the_checkpoint_knows_stays_until_the_next(self, tmp_path):
        selector = build(tmp_path, [0.5, 0.6, 0.7])
        run_epochs(selector, [1])
        state = selector.state_dict()
        selector.checkpointed()
        run_epochs(selector, [2, 3])
        assert kept(tmp_path) == [1, 3]  # epoch 2 is neither in the checkpoint nor the best

        resumed = build(tmp_path, [0.4])  # this time epoch 2 is worse
        resumed.load_state_dict(state)
        assert resumed.best == (1, 0.5) and kept(tmp_path) == [1]
        run_epochs(resumed, [2])
        assert resumed.best == (1, 0.5) and len(resumed.rows) == 2

    def test_validation_missing_after_a_checkpoint_is_made_up_for(self, tmp_path):
        """A checkpoint of the last iteration of an epoch is written before that epoch is validated."""
        selector = build(tmp_path, [0.5])
        selector.catch_up(engine_at(2))
        assert selector.best == (2, 0.5)
        selector.catch_up(engine_at(2))
        assert len(selector.rows) == 1

    def test_nothing_to_make_up_for_in_the_middle_of_an_epoch(self, tmp_path):
        selector, engine = build(tmp_path, [0.5]), engine_at(2)
        engine.state.iteration += 1
        selector.catch_up(engine)
        selector.catch_up(engine_at(0))
        assert selector.best is None

    def test_last_epoch_is_made_up_for_without_an_evaluator(self, tmp_path):
        selector = build(tmp_path, None)
        selector.catch_up(engine_at(3))
        assert selector.best is None
        selector.catch_up(engine_at(4))
        assert kept(tmp_path) == [4]

    def test_start_again_forgets(self, tmp_path):
        run_epochs(build(tmp_path, [0.5]), [1])
        selector = build(tmp_path)
        selector.start_again()
        assert kept(tmp_path) == [] and selector.best is None

    def test_state_can_be_saved_safely(self, tmp_path):
        selector = build(tmp_path, [math.nan])
        run_epochs(selector, [1])
        torch.save(selector.state_dict(), tmp_path / "state.pt")
        other = build(tmp_path)
        other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert other.best == selector.best and len(other.rows) == 1
