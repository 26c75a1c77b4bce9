"""The training engine: losses, accumulation, clipping and bit-exact resume."""

from __future__ import annotations

import gc
import weakref
from functools import partial

import pytest
import torch
from ignite.engine import Events

from medcoss_components.engines import batches
from medcoss_components.engines import trainer as trainer_module
from medcoss_components.engines.handlers import LearningRateSchedule, LossHistory, NonFiniteGuard, ResumeCheckpoint
from medcoss_components.engines.stepping import StepInBackward
from medcoss_components.errors import InputError
from medcoss_components.networks.pretraining import encoder_state
from medcoss_components.weights import save_weights


def gradients(network):
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def same_weights(first, second):
    return all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def record_outputs(trainer):
    """A list that receives the output of every iteration."""
    outputs = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: outputs.append(engine.state.output))
    return outputs


class TestIteration:
    def test_output_of_every_kind_of_batch(self, fake_source, make_trainer):
        trainer = make_trainer(
            fake_source("xray", 6), buffers=[fake_source("report", 2), fake_source("ct", 4)], max_epochs=1
        )
        outputs = record_outputs(trainer)
        trainer.run()
        kinds = {(output["modality"], output["kind"]) for output in outputs}
        assert kinds == {("xray", "pretext"), ("report", "distillation"), ("ct", "distillation")}
        assert all(output["loss"].shape == () and not output["loss"].requires_grad for output in outputs)
        counted = sum(output["count"] for output in outputs if output["modality"] == "xray")
        assert counted == 6 and all(len(output["ids"]) == output["count"] for output in outputs)

    @pytest.mark.parametrize("strategy", ["experience_replay", "medcoss"])
    def test_kind_is_the_strategys(self, strategy, fake_source, make_trainer):
        trainer = make_trainer(fake_source("xray", 4), buffers=[fake_source("ct", 4)], strategy=strategy, max_epochs=1)
        outputs = record_outputs(trainer)
        trainer.run()
        kind = {"experience_replay": "replay", "medcoss": "distillation"}[strategy]
        assert {output["kind"] for output in outputs if output["modality"] == "ct"} == {kind}
        assert (trainer.teacher is None) == (strategy == "experience_replay")

    def test_joint_trains_the_pretext_task_on_all(self, fake_source, make_trainer):
        trainer = make_trainer(fake_source("xray", 4), joint=[fake_source("ct", 4)], strategy="joint", max_epochs=1)
        outputs = record_outputs(trainer)
        trainer.run()
        assert {(output["modality"], output["kind"]) for output in outputs} == {("xray", "pretext"), ("ct", "pretext")}

    def test_no_teacher_without_buffers(self, fake_source, make_trainer):
        assert make_trainer(fake_source("xray", 4)).teacher is None

    def test_teacher_keeps_the_first_weights(self, fake_source, make_trainer, tiny_network):
        trainer = make_trainer(fake_source("xray", 8), buffers=[fake_source("ct", 4)])
        trainer.run()
        assert same_weights(trainer.teacher, tiny_network())
        assert not same_weights(trainer.teacher, trainer.model) and not trainer.teacher.training

    def test_network_trains_in_training_mode(self, fake_source, make_trainer):
        trainer = make_trainer(fake_source("xray", 4), max_epochs=1)
        trainer.model.eval()
        trainer.run()
        assert trainer.model.training

    def test_bf16_gives_float32_losses_near_the_exact_ones(self, fake_source, make_trainer):
        losses = []
        for precision in ("float32", "bf16"):
            trainer = make_trainer(fake_source("ct", 4), precision=precision, max_epochs=1)
            outputs = record_outputs(trainer)
            trainer.run()
            losses.append(outputs[0]["loss"])
        assert losses[1].dtype == torch.float32 and abs(losses[0] - losses[1]) < 0.05

    def test_unknown_precision_refused(self, fake_source, make_trainer):
        with pytest.raises(InputError, match="received 'fp8'"):
            make_trainer(fake_source("xray", 4), precision="fp8")

    def test_vocabulary_larger_than_the_table_refused(self, fake_source, make_trainer, tiny_network):
        with pytest.raises(InputError, match="network has rows for 60"):
            make_trainer(fake_source("report", 4), network=tiny_network(vocabulary_size=60))


class TestCompanion:
    """A module that a strategy trains beside the network (CaSSLe's predictor)."""

    def trainer(self, fake_source, make_trainer, tmp_path, **options):
        options = {"strategy": "cassle", "init_weights": tmp_path, "max_epochs": 1} | options
        return make_trainer(fake_source("xray", 8), **options)

    def test_the_optimiser_trains_it_with_decay_of_matrices_alone(self, fake_source, make_trainer, tmp_path):
        trainer = self.trainer(fake_source, make_trainer, tmp_path)
        matrices, others = trainer.optimizer.param_groups[2:]
        own = list(trainer.strategy.companion.parameters())
        assert len(own) == len(matrices["params"]) + len(others["params"]) == 6
        assert all(parameter.ndim == 2 for parameter in matrices["params"])
        assert (matrices["weight_decay"], others["weight_decay"]) == (0.05, 0.0)

    def test_it_is_called_with_the_network_and_kept_apart(self, fake_source, make_trainer, tmp_path, tiny_network):
        trainer = self.trainer(fake_source, make_trainer, tmp_path)
        assert trainer.network.predictor is trainer.strategy.companion and trainer.network.model is trainer.model
        assert trainer.model.state_dict().keys() == tiny_network().state_dict().keys()

    def test_the_schedule_moves_it_too(self, fake_source, make_trainer, tmp_path):
        trainer = self.trainer(fake_source, make_trainer, tmp_path)
        LearningRateSchedule(peak=1e-2, warmup_epochs=0).attach(trainer)
        trainer.run()
        assert len({group["lr"] for group in trainer.optimizer.param_groups}) == 1

    def test_its_gradient_is_clipped_with_the_networks(self, fake_source, make_trainer, tmp_path):
        trainer = self.trainer(fake_source, make_trainer, tmp_path, max_gradient_norm=0.01)
        trainer.run()
        values = gradients(trainer.network).values()
        assert len(gradients(trainer.strategy.companion)) == 6
        norm = torch.stack([value.square().sum() for value in values]).sum().sqrt().item()
        assert norm == pytest.approx(0.01, rel=1e-3)


class TestLearning:
    @pytest.mark.parametrize("name", ["report", "xray", "ct"])
    def test_loss_falls_on_a_tiny_problem(self, name, fake_source, make_trainer, tiny_network):
        trainer = make_trainer(
            fake_source(name, 8),
            network=tiny_network(stochastic_depth=0.0),
            max_epochs=40,
            batch_size=8,
            learning_rate=1e-2,
            augment=False,
            mask_ratio=0.5,
        )
        history = LossHistory(interval=1)
        history.attach(trainer)
        trainer.run()
        losses = history.losses(name, "pretext")
        assert len(losses) == 40
        assert sum(losses[-5:]) / 5 < 0.9 * sum(losses[:5]) / 5

    def test_distillation_keeps_old_features_nearer_than_sequential(self, fake_source, make_trainer, tiny_network):
        old, drift = fake_source("ct", 8, seed=3), {}
        inputs = torch.from_numpy(old.samples) / 1024
        for strategy in ("medcoss", "sequential"):
            buffers = [old] if strategy == "medcoss" else []
            trainer = make_trainer(
                fake_source("xray", 8), buffers=buffers, strategy=strategy, max_epochs=15, learning_rate=3e-3
            )
            trainer.run()
            with torch.no_grad():
                after = trainer.model.eval().features("ct", inputs)
                drift[strategy] = float((after - tiny_network().eval().features("ct", inputs)).square().mean())
        assert drift["medcoss"] < 0.7 * drift["sequential"]


class TestAccumulation:
    @pytest.fixture
    def same_masks(self, monkeypatch):
        """Every sample gets the same noise, whichever batch it is in."""
        noise = torch.rand(64, generator=torch.Generator().manual_seed(3))
        monkeypatch.setattr(batches, "draw_patch_noise", lambda count, tokens, _: noise[:tokens].repeat(count, 1))

    def train(self, fake_source, make_trainer, tiny_network, *, batch_size, steps):
        trainer = make_trainer(
            fake_source("ct", 8),
            network=tiny_network(stochastic_depth=0.0),
            batch_size=batch_size,
            accumulation_steps=steps,
            augment=False,
            max_epochs=1,
            max_gradient_norm=1e9,  # clips nothing, and keeps the gradients for us to see
        )
        trainer.run()
        return trainer

    def test_two_halves_equal_one_batch(self, fake_source, make_trainer, tiny_network, same_masks):
        """Same gradient after one optimiser step, so 8 = 2 x 4 (all patches of all samples count alike)."""
        whole = self.train(fake_source, make_trainer, tiny_network, batch_size=8, steps=1)
        halves = self.train(fake_source, make_trainer, tiny_network, batch_size=4, steps=2)
        expected, received = gradients(whole.model), gradients(halves.model)
        assert expected.keys() == received.keys()
        for name, value in expected.items():
            assert torch.allclose(received[name], value, atol=1e-6, rtol=0), name
        steps = [trainer.optimizer.state[trainer.model.decoder.mask_token]["step"] for trainer in (whole, halves)]
        assert steps == [1, 1]

    @pytest.mark.parametrize(
        ("steps", "expected"),
        [
            (1, [(True, True, 1)] * 3),
            (2, [(True, False, 2), (False, True, 2), (True, True, 1)]),
            (3, [(True, False, 3), (False, False, 3), (False, True, 3)]),
            (5, [(True, False, 3), (False, False, 3), (False, True, 3)]),
        ],
    )
    def test_windows_end_with_the_epoch(self, steps, expected, fake_source, make_trainer):
        trainer = make_trainer(fake_source("xray", 12), accumulation_steps=steps)
        places = []
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED, lambda engine: places.append(engine._accumulation_place())
        )
        trainer.run()
        assert places == expected * 2
        assert trainer.window_closed


class TestClipping:
    def norm(self, fake_source, make_trainer, limit):
        trainer = make_trainer(fake_source("xray", 4), max_epochs=1, max_gradient_norm=limit)
        trainer.run()
        return torch.stack([value.square().sum() for value in gradients(trainer.model).values()]).sum().sqrt().item()

    def test_norm_is_cut_to_the_limit(self, fake_source, make_trainer):
        free = self.norm(fake_source, make_trainer, 1e9)
        assert free > 0.02
        assert self.norm(fake_source, make_trainer, 0.01) == pytest.approx(0.01, rel=1e-3)
        assert self.norm(fake_source, make_trainer, 1000.0) == pytest.approx(free, rel=1e-6)


class TestSteppingInBackward:
    def trained(self, fake_source, make_trainer, tiny_network, **options):
        trainer = make_trainer(fake_source("xray", 8), network=tiny_network(), max_epochs=2, **options)
        trainer.run()
        return trainer

    def test_same_bits_as_one_step_at_the_end(self, fake_source, make_trainer, tiny_network, monkeypatch):
        """Every parameter on its own against all at once (the norm of 1e9 clips nothing)."""
        monkeypatch.setattr(trainer_module, "StepInBackward", partial(StepInBackward, portion=1))
        early = self.trained(fake_source, make_trainer, tiny_network)
        late = self.trained(fake_source, make_trainer, tiny_network, max_gradient_norm=1e9)
        assert early.early_steps is not None and late.early_steps is None
        for (name, one), other in zip(early.model.named_parameters(), late.model.parameters(), strict=True):
            assert torch.equal(one, other), name
        one, other = (trainer.optimizer.state_dict()["state"] for trainer in (early, late))
        assert one.keys() == other.keys()
        for number, state in one.items():
            assert all(torch.equal(value, other[number][key]) for key, value in state.items())

    def test_no_gradient_is_left(self, fake_source, make_trainer, tiny_network):
        trainer = self.trained(fake_source, make_trainer, tiny_network)
        assert gradients(trainer.model) == {} and trainer.early_steps.pending == 0

    def test_same_bits_with_a_penalty_on_the_weights(
        self, fake_source, make_trainer, tiny_network, tmp_path, monkeypatch
    ):
        """A parameter's gradient has two parts then; both must be there before it moves."""
        monkeypatch.setattr(trainer_module, "StepInBackward", partial(StepInBackward, portion=1))
        importance = {name: torch.ones_like(value) for name, value in encoder_state(tiny_network()).items()}
        save_weights(tmp_path / "importance.safetensors", importance)
        ends = [
            self.trained(
                fake_source, make_trainer, tiny_network, strategy="ewc", init_weights=tmp_path, max_gradient_norm=norm
            ).model
            for norm in (None, 1e9)
        ]
        assert same_weights(*ends)

    def test_nothing_outlives_the_trainer(self, fake_source, make_trainer, tiny_network):
        """Autograd holds hooks out of the collector's sight: a chain would keep the networks of all its stages."""
        trainer = self.trained(fake_source, make_trainer, tiny_network)
        left = [weakref.ref(parameter) for parameter in (*trainer.model.parameters(), *trainer.optimizer.state)]
        left.append(weakref.ref(trainer))
        del trainer
        gc.collect()
        assert [reference for reference in left if reference() is not None] == []

    def test_a_second_trainer_of_the_network_steps_alone(self, fake_source, make_trainer, tiny_network):
        ends = []
        for first in (False, True):
            network = tiny_network()
            other = make_trainer(fake_source("xray", 8), network=network) if first else None
            trainer = make_trainer(fake_source("xray", 8), network=network)
            trainer.run()
            ends.append(network)
            assert other is None or not other.optimizer.state
        assert same_weights(*ends)

    @pytest.mark.parametrize("options", [{"max_gradient_norm": 1.0}, {"accumulation_steps": 2}])
    def test_not_with_what_needs_all_gradients(self, options, fake_source, make_trainer, tiny_network):
        assert self.trained(fake_source, make_trainer, tiny_network, **options).early_steps is None


class TestNotFinite:
    def test_nan_stops_and_names_the_samples(self, fake_source, make_trainer):
        source = fake_source("mri", 12)
        source.samples[5] = float("nan")
        trainer = make_trainer(source, max_epochs=3)
        NonFiniteGuard().attach(trainer)
        with pytest.raises(RuntimeError, match=r"pretext loss of modality mri is nan.*mri-005"):
            trainer.run()
        assert trainer.state.iteration <= 3


class TestResume:
    EPOCHS = 2

    def build(self, folder, fake_source, make_trainer, accumulation_steps=1):
        trainer = make_trainer(
            fake_source("xray", 8),
            buffers=[fake_source("report", 3), fake_source("ct", 2)],
            max_epochs=self.EPOCHS,
            accumulation_steps=accumulation_steps,
            max_gradient_norm=1.0,
        )
        history = LossHistory(interval=3)
        guard = NonFiniteGuard()
        checkpoint = ResumeCheckpoint(
            path=folder / "checkpoint.pt", seconds=1e9, guard=guard, parts={"history": history}
        )
        for handler in (LearningRateSchedule(peak=1e-2, warmup_epochs=0.5), guard, history, checkpoint):
            handler.attach(trainer)
        return trainer, history, checkpoint

    @pytest.mark.parametrize("accumulation_steps", [1, 2])
    def test_from_every_iteration_ends_with_the_same_bits(
        self, accumulation_steps, tmp_path, fake_source, make_trainer
    ):
        """Saved after each iteration of an uninterrupted run, then resumed from each of them by a new trainer."""
        whole, expected, checkpoint = self.build(tmp_path, fake_source, make_trainer, accumulation_steps)
        saved = []

        def save(engine):
            if engine.window_closed:
                checkpoint.path = tmp_path / str(engine.state.iteration) / "checkpoint.pt"
                checkpoint.save(engine)
                saved.append(engine.state.iteration)

        whole.add_event_handler(Events.ITERATION_COMPLETED, save)
        whole.run()
        assert whole.total_iterations == 8 and len(saved) == 8 // accumulation_steps
        for iteration in saved:
            folder = tmp_path / str(iteration)
            resumed, history, checkpoint = self.build(folder, fake_source, make_trainer, accumulation_steps)
            assert checkpoint.load(resumed)
            assert resumed.state.iteration == iteration
            resumed.run()
            assert resumed.state.iteration == 8
            assert same_weights(resumed.model, whole.model), iteration
            assert [row[:6] for row in history.rows] == [row[:6] for row in expected.rows]

    def test_without_checkpoint_starts_at_the_beginning(self, tmp_path, fake_source, make_trainer):
        trainer, _, checkpoint = self.build(tmp_path, fake_source, make_trainer)
        assert not checkpoint.load(trainer) and trainer.state.iteration == 0

    def test_finished_run_does_nothing(self, fake_source, make_trainer):
        trainer = make_trainer(fake_source("xray", 4))
        trainer.resume_at(trainer.total_iterations)
        outputs = record_outputs(trainer)
        trainer.run()
        assert outputs == []

    @pytest.mark.parametrize("iteration", [-1, 3])
    def test_iteration_outside_the_stage_refused(self, iteration, fake_source, make_trainer):
        trainer = make_trainer(fake_source("xray", 4))
        with pytest.raises(InputError, match=f"iteration {iteration}, the stage has 2"):
            trainer.resume_at(iteration)

    def test_repeated_runs_are_equal(self, fake_source, make_trainer):
        first, second = (make_trainer(fake_source("ct", 6), buffers=[fake_source("xray", 2)]) for _ in range(2))
        first.run(), second.run()
        assert same_weights(first.model, second.model)
