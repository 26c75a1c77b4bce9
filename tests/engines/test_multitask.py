"""The multi-task trainer: what a step minimises, what it leaves alone, and when the anchor moves."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ignite.engine import Events

from medcoss_components.engines.multitask import TaskView, plain_samples
from medcoss_components.errors import InputError
from medcoss_components.weights import hash_weights

GIVEN_ORDER = {"schedule": {"reshuffled": False}}


def first_batches(trainer):
    """The first batch of every task."""
    trainer.data_loader.set_position(0, 0)
    found = {}
    for batch in trainer.data_loader:
        found.setdefault(batch["task"], batch)
    return found


def added(trainer, batch):
    """Kind -> mean of the memorization terms of a batch."""
    term = trainer.loss_term(batch)
    return {part.kind: part.total / part.count for part in term.added if part.kind in ("feature", "anchor")}


def state_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


class TestEquation:
    def test_features_at_the_start_are_the_cached_ones(self, multitask):
        """Frozen batch norm: f(x; w0) = f_cached(x) in training mode, too, and the anchor lies at w0."""
        trainer = multitask(augmentation="none").trainer
        trainer.fill_memory()
        trainer.network.train()
        for batch in first_batches(trainer).values():
            terms = added(trainer, batch)
            assert terms["feature"].item() == pytest.approx(0, abs=1e-10) and terms["anchor"].item() == 0

    def test_step_is_the_sum_of_the_three_terms(self, multitask):
        trainer, seen = multitask(**GIVEN_ORDER).trainer, []
        trainer.fill_memory()
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: seen.append(engine.state.output))
        trainer.run()
        own = {"size": {"classification"}, "organs": {"segmentation"}, "spots": {"detection", "boxes"}}
        for output in seen:
            assert output["parts"].keys() == own[output["modality"]] | {"feature", "anchor"}
            total = sum(float(value) for value in output["parts"].values())
            assert float(output["loss"]) == pytest.approx(total, rel=1e-5)
        moved = [float(output["parts"]["anchor"]) for output in seen]
        assert [value == 0 for value in moved[:7]] == [True, False, False, True, False, True, False]

    @pytest.mark.parametrize("task", ["size", "organs", "spots"])
    def test_regularisers_pull_as_the_equation_says(self, multitask, task):
        """Derivative along a direction of lam_f mean ||f - f_cached||^2 + lam_w ||w - w_previous||^2, through the
        backbone: by backward, and by central differences."""
        trainer = multitask(feature_weight=3.0, anchor_weight=0.5).trainer
        trainer.fill_memory()
        batch, torch_seed = first_batches(trainer)[task], 5
        trainer.anchor.enter(batch["visit"])
        trained = [value for value in trainer.model.backbone.parameters() if value.requires_grad]
        torch.manual_seed(torch_seed)
        with torch.no_grad():
            for value in trained:  # a step away, where both terms have a slope
                value += 0.05 * torch.randn_like(value)

        def penalty():
            return sum(added(trainer, batch).values())

        gradients = torch.autograd.grad(penalty(), trained)
        length = torch.stack([entry.square().sum() for entry in gradients]).sum().sqrt()

        def moved(step):
            with torch.no_grad():
                for value, gradient in zip(trained, gradients, strict=True):
                    value += step * gradient / length
                found = float(penalty())
                for value, gradient in zip(trained, gradients, strict=True):
                    value -= step * gradient / length
            return found

        slope = (moved(1e-3) - moved(-1e-3)) / 2e-3
        assert slope == pytest.approx(float(length), rel=0.02)

    def test_anchor_by_hand(self, multitask):
        trainer = multitask(anchor_weight=0.5).trainer
        trainer.fill_memory()
        batch = first_batches(trainer)["size"]
        added(trainer, batch)
        kernel = trainer.model.backbone.conv1.weight
        with torch.no_grad():
            kernel += 0.1
        assert added(trainer, batch)["anchor"].item() == pytest.approx(0.5 * 0.01 * kernel.numel(), rel=1e-4)

    @pytest.mark.parametrize(
        ("options", "kinds"),
        [
            ({"memory": False}, set()),
            ({"feature_weight": 0}, {"anchor"}),
            ({"anchor_weight": 0}, {"feature"}),
        ],
    )
    def test_terms_can_be_switched_off(self, multitask, options, kinds):
        trainer = multitask(**options).trainer
        trainer.fill_memory()
        assert added(trainer, first_batches(trainer)["size"]).keys() == kinds

    def test_loss_of_torch_is_taken_as_a_mean(self, multitask):
        trainer = multitask(memory=False).trainer
        trainer.losses["size"] = torch.nn.CrossEntropyLoss()
        batch = first_batches(trainer)["size"]
        term = trainer.loss_term(batch)
        assert (term.kind, float(term.count)) == ("classification", batch["own"])


class TestTraining:
    def test_other_heads_and_frozen_batch_norm_stay(self, multitask):
        parts = multitask(**GIVEN_ORDER)
        trainer, before, after = parts.trainer, state_of(parts.network), {}
        trainer.fill_memory()
        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda: after.update(state_of(parts.network)))
        trainer.run()
        changed = {name.split(".")[0:2][-1] for name in before if not torch.equal(before[name], after[name])}
        assert "size" in changed and not changed & {"organs", "spots"}  # the first visit has three steps
        norms = [name for name in before if name.startswith("backbone.") and ("bn" in name or "running" in name)]
        assert norms and all(torch.equal(before[name], parts.network.state_dict()[name]) for name in norms)

    def test_frozen_batch_norm_without_statistics_is_told(self, multitask, caplog):
        multitask()
        assert "hold no statistics" in caplog.text
        caplog.clear()
        multitask(freeze_batch_norm=False)
        assert "hold no statistics" not in caplog.text

    def test_batch_norm_may_be_trained(self, multitask):
        parts = multitask(freeze_batch_norm=False)
        before = parts.network.backbone.bn1.running_mean.clone()
        parts.trainer.fill_memory()
        parts.trainer.run()
        assert not torch.equal(before, parts.network.backbone.bn1.running_mean)

    def test_every_round_visits_each_task_once(self, multitask):
        trainer, seen = multitask(rounds=3).trainer, []
        trainer.fill_memory()
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED,
            lambda engine: seen.append((engine.state.epoch, engine.state.output["modality"])),
        )
        trainer.run()
        for number in (1, 2, 3):
            names = [task for epoch, task in seen if epoch == number]
            assert tuple(dict.fromkeys(names)) == trainer.data_loader.order(number - 1)
            assert sorted(names) == ["organs"] * 2 + ["size"] * 3 + ["spots"] * 2

    def test_anchor_is_where_the_visit_before_ended_and_windows_end_with_visits(self, multitask, monkeypatch):
        """Three, two and two batches in windows of two: two, one and one optimiser steps a round."""
        trainer = multitask(accumulation_steps=2, **GIVEN_ORDER).trainer
        trainer.fill_memory()
        backbone, places, weights, steps = trainer.model.backbone, [], {}, []
        step = trainer.optimizer.step
        monkeypatch.setattr(trainer.optimizer, "step", lambda *a, **k: steps.append(trainer.state.iteration) or step())

        def look(engine):
            places.append(engine.window_closed)
            weights[engine.state.iteration] = hash_weights(dict(backbone.named_parameters()))

        def compare(engine):
            if engine.state.batch["step"] > 0 or engine.state.iteration == 1:
                return
            held = hash_weights(engine.anchor.values | _frozen(backbone))
            engine.anchor.enter(engine.state.batch["visit"])
            assert hash_weights(engine.anchor.values | _frozen(backbone)) == weights[engine.state.iteration - 1] != held

        trainer.add_event_handler(Events.ITERATION_STARTED, compare)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, look)
        trainer.run()
        assert steps == [2, 3, 5, 7, 9, 10, 12, 14]
        assert places == [number + 1 in steps for number in range(14)]

    def test_mixed_precision(self, multitask, multitask_tasks):
        """Without detection: bf16 on a CPU gives a random gradient where its pyramid comes down to one pixel."""
        tasks = {name: multitask_tasks[name] for name in ("size", "organs")}
        trainer, seen = multitask(tasks=tasks, rounds=1, precision="bf16").trainer, []
        trainer.fill_memory()
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: seen.append(engine.state.output["loss"]))
        trainer.run()
        assert torch.isfinite(torch.stack(seen)).all()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"feature_weight": -1.0}, "feature_weight must be a finite number of at least 0, received -1.0"),
            ({"anchor_weight": float("nan")}, "anchor_weight must be .* received nan"),
            ({"losses": {}}, "losses: nothing for task 'size', only for none"),
            ({"preprocessing": {"size": None}}, "preprocessing: nothing for task 'organs', only for size"),
        ],
    )
    def test_refused(self, multitask, options, message):
        with pytest.raises(InputError, match=message):
            multitask(**options)


def _frozen(backbone):
    return {name: value for name, value in backbone.named_parameters() if not value.requires_grad}


class TestMemory:
    def test_key_tells_weights_and_reading(self, multitask, tmp_path):
        def keys(**options):
            trainer = multitask(output_dir=tmp_path, **options).trainer
            trainer.fill_memory()
            return {path.name for path in (tmp_path / "features").iterdir()}

        first = keys()
        assert len(first) == 3 and keys() == first
        assert len(keys(seed=1)) == 6  # other weights
        assert len(keys(precision="bf16")) == 9

    def test_cached_features_are_those_of_the_plain_images(self, multitask):
        trainer = multitask().trainer
        trainer.fill_memory(batch_size=2)
        for task, dataset in trainer.data_loader.datasets.items():
            rows = np.arange(len(dataset))[::-1].copy()
            expected = trainer.plain_features(task, rows)
            assert torch.allclose(trainer.memory.rows(task, rows), expected, atol=1e-6)
            assert expected.shape == (len(dataset), trainer.model.backbone.width)
        assert trainer.model.training

    def test_filled_when_training_starts(self, multitask):
        trainer = multitask(rounds=1).trainer
        start = {task: trainer.plain_features(task, np.arange(5)) for task in trainer.data_loader.tasks}
        trainer.run()
        assert all(torch.allclose(trainer.memory.rows(task, np.arange(5)), start[task], atol=1e-6) for task in start)

    def test_window_in_the_middle_of_larger_cases(self):
        image = np.arange(30).reshape(1, 5, 6)

        def window(row, start, size):
            top, left = start
            return image[:, top : top + size[0], left : left + size[1]], None

        dataset = SimpleNamespace(
            modality=SimpleNamespace(input_shape=(3, 3, 2)), shape=lambda row: (5, 6), window=window
        )
        assert plain_samples(dataset, np.array([0])).tolist() == [[[[8, 9], [14, 15], [20, 21]]]]


class TestTaskView:
    def test_gives_what_the_task_gives(self, multitask):
        network = multitask().network.eval()
        images = torch.rand(2, 3, 32, 48)
        view = TaskView(network, "organs").eval()
        assert torch.equal(view(images), network(images, task="organs")[0])
        assert view.modality is network.modality and network.heads["organs"] is view.model.heads["organs"]

    def test_asks_the_head_for_everything_else(self, multitask):
        network = multitask().network
        assert TaskView(network, "spots").detections == network.heads["spots"].detections
        with pytest.raises(AttributeError, match="detections"):
            TaskView(network, "size").detections  # noqa: B018
        with pytest.raises(AttributeError):
            TaskView.__new__(TaskView).model  # noqa: B018
