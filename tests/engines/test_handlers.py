"""Schedule, guard, checkpoint, history and progress bar on a short run."""

from __future__ import annotations

import json
import math
import signal
from collections import deque
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Events

from medcoss_components.engines import handlers
from medcoss_components.engines.handlers import (
    LearningRateSchedule,
    LossHistory,
    NonFiniteGuard,
    NonFiniteLossError,
    ProgressBar,
    ResumeCheckpoint,
    memory_metrics,
)
from medcoss_components.errors import InputError


@pytest.fixture
def trainer(fake_source, make_trainer):
    """Two epochs of three X-ray batches and one CT buffer batch."""
    return make_trainer(fake_source("xray", 12), buffers=[fake_source("ct", 2)])


def output(loss, modality="ct", ids=("a", "b")):
    return {"loss": torch.tensor(loss), "kind": "pretext", "modality": modality, "ids": list(ids), "count": len(ids)}


class TestLearningRateSchedule:
    def test_every_iteration_by_hand(self, trainer):
        """8 iterations, 2 of warm-up: peak n/2, then half a cosine over 6."""
        rates = []
        LearningRateSchedule(peak=0.01, warmup_epochs=0.5).attach(trainer)
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED,
            lambda engine: rates.append([group["lr"] for group in engine.optimizer.param_groups]),
        )
        trainer.run()
        cosine = [0.5 * (1 + math.cos(math.pi * done / 6)) for done in range(7)]
        expected = [0.01 * factor for factor in [0.5, *cosine]]
        assert [first for first, _ in rates] == pytest.approx(expected, abs=1e-12)
        assert all(first == second for first, second in rates)

    def test_warmup_longer_than_the_stage_refused(self, trainer):
        with pytest.raises(InputError, match=r"warm-up \(12 iterations\)"):
            LearningRateSchedule(peak=0.01, warmup_epochs=3).attach(trainer)

    def test_needs_an_engine(self, trainer):
        with pytest.raises(RuntimeError, match="attach"):
            LearningRateSchedule(peak=0.01, warmup_epochs=0)(trainer)


class TestNonFiniteGuard:
    def seen(self, guard, *losses):
        guard.recent = deque((number, output(loss)) for number, loss in enumerate(losses, 1))
        return guard

    def test_finite_losses_pass_and_are_forgotten(self):
        guard = self.seen(NonFiniteGuard(), 1.0, 2.0)
        guard.check()
        assert not guard.recent
        guard.check()

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_first_bad_one_is_named(self, value):
        guard = self.seen(NonFiniteGuard(), 1.0, value, math.nan)
        with pytest.raises(NonFiniteLossError, match=rf"iteration 2: the pretext loss of modality ct is {value}.*a, b"):
            guard.check()

    def test_on_a_gpu_losses_wait_for_the_interval(self):
        guard = NonFiniteGuard(interval=3)
        engine = SimpleNamespace(state=SimpleNamespace(device=torch.device("cuda"), iteration=0, output=None))
        for iteration in range(1, 3):
            engine.state.iteration, engine.state.output = iteration, output(math.nan)
            guard(engine)
        engine.state.iteration = 3
        with pytest.raises(NonFiniteLossError, match="iteration 1"):
            guard(engine)


class TestResumeCheckpoint:
    def build(self, folder, seconds=0.0, **options):
        options = {"guard": NonFiniteGuard(), "parts": {}} | options
        return ResumeCheckpoint(path=folder / "checkpoint.pt", seconds=seconds, **options)

    def count(self, checkpoint, trainer, monkeypatch):
        saved = []
        monkeypatch.setattr(checkpoint, "save", lambda engine: saved.append(engine.state.iteration))
        checkpoint.attach(trainer)
        return saved

    def test_saves_when_time_is_up(self, tmp_path, trainer, monkeypatch):
        saved = self.count(self.build(tmp_path), trainer, monkeypatch)
        trainer.run()
        assert saved == list(range(1, 9))

    def test_saves_only_with_no_gradient_pending(self, tmp_path, fake_source, make_trainer, monkeypatch):
        trainer = make_trainer(fake_source("xray", 20), accumulation_steps=2, max_epochs=1)
        saved = self.count(self.build(tmp_path), trainer, monkeypatch)
        trainer.run()
        assert saved == [2, 4, 5]

    def test_does_not_save_before_the_time(self, tmp_path, trainer):
        self.build(tmp_path, seconds=1e6).attach(trainer)
        trainer.run()
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(("steps", "expected"), [(1, 3), (2, 4)])
    def test_interrupt_waits_for_the_end_of_the_step(self, steps, expected, tmp_path, fake_source, make_trainer):
        """Ctrl-C during iteration 3: with windows of two iterations the update comes at the end of the fourth."""
        trainer = make_trainer(fake_source("xray", 16), accumulation_steps=steps)
        checkpoint = self.build(tmp_path, seconds=1e6)
        checkpoint.attach(trainer)
        trainer.add_event_handler(Events.ITERATION_STARTED(once=3), lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            trainer.run()
        content = torch.load(checkpoint.path, weights_only=True)
        assert content["iteration"] == trainer.state.iteration == expected
        assert all(torch.equal(value, content["model"][name]) for name, value in trainer.model.state_dict().items())

    @pytest.fixture
    def usual_ctrl_c(self):
        """Python's own answer to Ctrl-C, whatever another test has left."""
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
        signal.signal(signal.SIGINT, before)

    def test_gives_ctrl_c_back_when_paused(self, tmp_path, trainer):
        """An engine that is interrupted by its own method neither completes nor raises."""
        before = signal.getsignal(signal.SIGINT)
        self.build(tmp_path, seconds=1e6).attach(trainer)
        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), trainer.interrupt)
        trainer.run()
        assert trainer.state.iteration == 2 and signal.getsignal(signal.SIGINT) is before
        trainer.run()  # to the end: the engine must not be left half way

    def test_second_interrupt_stops_at_once(self, tmp_path, trainer, usual_ctrl_c):
        self.build(tmp_path, seconds=1e6).attach(trainer)

        @trainer.on(Events.ITERATION_STARTED(once=3))
        def stop_twice():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            trainer.run()
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("fails", [False, True])
    def test_gives_ctrl_c_back_after_the_run(self, fails, tmp_path, trainer):
        before = signal.getsignal(signal.SIGINT)
        checkpoint = self.build(tmp_path, seconds=1e6)
        checkpoint.attach(trainer)
        during = []
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED, lambda: during.append(signal.getsignal(signal.SIGINT)) or 1 / (not fails)
        )
        with pytest.raises(ZeroDivisionError) if fails else nullcontext():
            trainer.run()
        assert set(during) == {checkpoint._on_interrupt} and signal.getsignal(signal.SIGINT) is before

    def test_other_errors_do_not_save(self, tmp_path, trainer):
        self.build(tmp_path, seconds=1e6).attach(trainer)

        @trainer.on(Events.ITERATION_COMPLETED(once=3))
        def stop():
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            trainer.run()
        assert not list(tmp_path.iterdir())

    def test_a_bad_loss_keeps_the_last_good_checkpoint(self, tmp_path, trainer):
        guard = NonFiniteGuard()
        checkpoint = self.build(tmp_path, guard=guard)
        checkpoint.save(trainer)
        before = checkpoint.path.read_bytes()
        guard.recent.append((7, output(math.nan)))
        with pytest.raises(NonFiniteLossError, match="iteration 7"):
            checkpoint.save(trainer)
        assert checkpoint.path.read_bytes() == before

    def test_other_ranks_do_not_write(self, tmp_path, trainer, monkeypatch):
        monkeypatch.setattr(handlers.idist, "get_rank", lambda: 1)
        self.build(tmp_path).save(trainer)
        assert not list(tmp_path.iterdir())

    def test_tells_when_it_saved_and_keeps_the_training_time(self, tmp_path, trainer):
        calls = []
        first = self.build(tmp_path, on_saved=lambda: calls.append(1))
        first.trained_seconds = 100.0
        first.save(trainer)
        second = self.build(tmp_path)
        assert second.load(trainer) and calls == [1]
        assert 100 <= second.training_seconds < 110

    def test_parts_round_trip(self, tmp_path, trainer):
        history = LossHistory(interval=1)
        history.rows = [[1, 1, "ct", "pretext", 0.5, 1e-3, 10.0]]
        history.pending = [output(2.0)]
        self.build(tmp_path, parts={"history": history}).save(trainer)
        other = LossHistory(interval=1)
        assert self.build(tmp_path, parts={"history": other}).load(trainer)
        assert other.rows == history.rows and other.pending[0]["loss"] == 2.0

    @pytest.mark.parametrize("content", [b"", b"no checkpoint at all", None])
    def test_damaged_file_refused(self, content, tmp_path, trainer):
        checkpoint = self.build(tmp_path)
        checkpoint.save(trainer)
        whole = checkpoint.path.read_bytes()
        checkpoint.path.write_bytes(whole[: len(whole) // 2] if content is None else content)
        with pytest.raises(InputError, match=r"checkpoint.pt: cannot resume"):
            checkpoint.load(trainer)

    def test_another_network_refused(self, tmp_path, trainer, fake_source, make_trainer, tiny_network):
        checkpoint = self.build(tmp_path)
        checkpoint.save(trainer)
        with pytest.raises(InputError, match="cannot resume"):
            checkpoint.load(make_trainer(fake_source("xray", 4), network=tiny_network(width=12)))


class TestLossHistory:
    def test_rows_are_means_over_the_interval(self, trainer):
        outputs = []
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: outputs.append(engine.state.output))
        history = LossHistory(interval=3)
        history.attach(trainer)
        trainer.run()
        assert sorted({row[0] for row in history.rows}) == [3, 6, 8]  # the last iteration is always recorded
        for end, start in ((3, 0), (6, 3), (8, 6)):
            for row in [row for row in history.rows if row[0] == end]:
                losses = [float(o["loss"]) for o in outputs[start:end] if o["modality"] == row[2]]
                assert row[4] == pytest.approx(sum(losses) / len(losses), rel=1e-6)
                assert row[1:4:2] == [-(-end // 4), "pretext" if row[2] == "xray" else "distillation"]
                assert row[6] > 0

    def test_losses_of_one_kind(self):
        history = LossHistory(interval=1)
        history.rows = [[1, 1, "ct", "pretext", 0.5, 0, 1], [1, 1, "ct", "replay", 0.7, 0, 1]]
        assert history.losses("ct", "pretext") == [0.5] and history.losses("mri", "pretext") == []

    def test_json(self):
        content = LossHistory(interval=1).to_json()
        assert content["columns"] == list(LossHistory.COLUMNS) and content["rows"] == []

    def test_sends_metrics_to_the_run(self, trainer):
        sent = []
        run = SimpleNamespace(log_metrics=lambda values, step: sent.append((step, values)))
        LossHistory(interval=4, run=run).attach(trainer)
        trainer.run()
        assert [step for step, _ in sent] == [4, 8]
        wanted = {"xray/pretext", "ct/distillation", "learning_rate", "samples_per_second", "peak_memory_mib"}
        assert all(set(values) == wanted for _, values in sent)

    @pytest.mark.parametrize("interval", [0, -1])
    def test_interval_below_one_refused(self, interval):
        with pytest.raises(InputError, match=f"log_interval.*received {interval}"):
            LossHistory(interval=interval)


class TestMemory:
    def test_cpu_counts_resident_memory(self):
        assert 50 < memory_metrics(torch.device("cpu"))["peak_memory_mib"] < 100_000

    def test_gpu_counts_its_own(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**20)
        assert memory_metrics(torch.device("cuda")) == {"peak_memory_mib": 3.0}


class TestProgressBar:
    def test_shows_losses_speed_and_what_is_done(self, trainer, monkeypatch, capsys):
        monkeypatch.setenv("MEDCOSS_PROGRESS", "1")
        history = LossHistory(interval=4)
        history.attach(trainer)
        ProgressBar(description="train 02_xray", history=history).attach(trainer)
        trainer.run()
        shown = capsys.readouterr().err
        assert "train 02_xray: 100%" in shown and "8/8" in shown
        assert "xray/pretext=" in shown and "samples/s=" in shown

    def test_resumed_run_starts_where_it_was(self, trainer, monkeypatch, capsys):
        monkeypatch.setenv("MEDCOSS_PROGRESS", "1")
        trainer.resume_at(6)
        ProgressBar(description="train", history=LossHistory(interval=4)).attach(trainer)
        trainer.run()
        assert "6/8" in capsys.readouterr().err

    def test_error_closes_the_bar_and_goes_on(self, trainer):
        bar = ProgressBar(description="train", history=LossHistory(interval=4))
        bar.attach(trainer)

        @trainer.on(Events.ITERATION_COMPLETED(once=2))
        def stop():
            raise ZeroDivisionError

        closed = []
        trainer.add_event_handler(Events.STARTED, lambda: setattr(bar.bar, "close", lambda: closed.append(1)))
        with pytest.raises(ZeroDivisionError):
            trainer.run()
        assert closed


def test_ctrl_c_on_one_rank_stops_all_after_the_same_step(tmp_path, tiny_sizes, two_processes):
    (tmp_path / "sizes.json").write_text(json.dumps(tiny_sizes))
    two_processes(Path(__file__).with_name("interrupt_ranks.py"), tmp_path)
    assert [(tmp_path / f"stopped{rank}").read_text() for rank in (0, 1)] == ["3", "3"]
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["iteration"] == 3
