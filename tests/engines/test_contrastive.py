"""Contrastive trainer and evaluator: order of the step, resuming, accumulation, ranks."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ignite.engine import Events

from medcoss_components.data.modalities import get_modality
from medcoss_components.data.sampler import PretrainingLoader
from medcoss_components.engines import contrastive
from medcoss_components.engines.contrastive import (
    contrastive_optimizer,
    keys_of_all_ranks,
    nearest_share,
    rows_of_all_ranks,
    write_contrastive_evaluation,
)
from medcoss_components.errors import InputError
from medcoss_components.networks.initialisation import initialise
from medcoss_components.networks.xray_backbones import xray_backbone
from medcoss_components.pretext.contrastive import ContrastiveModel, feature_spread
from medcoss_components.randomness import generator_for
from medcoss_components.weights import read_weights


@pytest.fixture
def parts(monkeypatch):
    """The module that puts tiny runs together."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import contrastive_parts

    return contrastive_parts


class TestOptimiser:
    def test_as_moco_cxr(self, parts):
        (group,) = contrastive_optimizer(network=parts.make_network()).param_groups
        assert (group["lr"], group["weight_decay"], group["betas"]) == (1e-4, 1e-4, (0.9, 0.999))
        assert len(group["params"]) == len(list(parts.make_network().parameters()))

    def test_nothing_to_train(self, parts):
        with pytest.raises(InputError, match="every parameter is frozen"):
            contrastive_optimizer(network=parts.make_network().requires_grad_(False))


class TestStep:
    def test_loss_by_its_parts(self, parts):
        """The loss is InfoNCE of queries and keys, each normalised in its groups; the queue is that of the start."""
        trainer, seen = parts.make_trainer(parts.Films(8), max_epochs=1), []
        start = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        queue = trainer.contrast.queue.clone()
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED(once=1), lambda engine: seen.append((engine.state.batch, engine.state.output))
        )
        trainer.run()
        (batch, output) = seen[0]
        other = parts.make_network()
        other.load_state_dict(start)
        with torch.no_grad():
            queries, keys = (other.train()(views, groups=2) for views in trainer.preprocessing.pair(batch, "cpu"))
        ordered = torch.empty_like(keys)
        ordered[batch["partners"]] = keys
        logits = torch.cat([(queries * ordered).sum(1, keepdim=True), queries @ queue.T], dim=1) / 0.07
        assert float(output["loss"]) == pytest.approx(float(-logits.log_softmax(1)[:, 0].mean()), rel=1e-5)
        assert float(output["parts"]["accuracy"]) == float((logits[:, 0] > logits[:, 1:].amax(1)).float().mean())
        assert output["parts"]["spread"] == pytest.approx(feature_spread(ordered).item(), rel=1e-5)
        assert list(output["parts"]) == ["contrastive", "accuracy", "spread"] and output["kind"] == "contrastive"

    def test_key_follows_after_the_optimiser_and_keys_enter_in_row_order(self, parts):
        trainer, keys = parts.make_trainer(parts.Films(12), max_epochs=1), []
        start = [parameter.detach().clone() for parameter in trainer.model.parameters()]
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: keys.append(engine.new_keys))
        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=1), trainer.interrupt)
        trainer.run()
        pairs = zip(start, trainer.model.parameters(), trainer.contrast.key.parameters(), strict=True)
        for before, query, key in pairs:
            torch.testing.assert_close(key, 0.9 * before + 0.1 * query)
            assert not torch.equal(query, before)
        assert torch.equal(trainer.contrast.queue[:4], keys[0]) and int(trainer.contrast.pointer) == 4
        trainer.run()  # the two batches that are left wrap around 6 places
        assert torch.equal(trainer.contrast.queue, torch.cat([keys[1][2:], keys[2]])) and len(keys) == 3

    def test_key_begins_as_the_weights_at_the_start(self, parts):
        """Weights put in after the construction count; what a run goes on with is left alone."""
        trainer = parts.make_trainer(momentum=1.0, max_epochs=1)
        with torch.no_grad():
            trainer.model.head[2].weight.fill_(0.25)
        keys = trainer.contrast.key.head[2].weight
        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=1), trainer.interrupt)
        trainer.run()
        assert torch.equal(keys, torch.full_like(keys, 0.25))
        trainer.run()
        assert trainer.state.iteration == 3 and torch.equal(keys, torch.full_like(keys, 0.25))

    def test_accumulation_moves_the_queue_with_every_batch_and_the_key_with_every_step(self, parts):
        trainer, seen = parts.make_trainer(parts.Films(12), accumulation_steps=2, max_epochs=1), []

        @trainer.on(Events.ITERATION_COMPLETED)
        def look(engine):
            key = next(engine.contrast.key.parameters()).detach().clone()
            seen.append((int(engine.contrast.pointer), key))

        trainer.run()
        assert [pointer for pointer, _ in seen] == [4, 2, 0]
        keys = [next(parts.make_network().parameters()), *(key for _, key in seen)]
        assert [torch.equal(*pair) for pair in zip(keys, keys[1:], strict=False)] == [True, False, False]

    def test_steps_in_the_backward_pass_are_those_after_it(self, parts, monkeypatch):
        """Updates layer by layer while gradients come: same losses, same key network."""
        from medcoss_components.engines import stepping

        trainer = parts.make_trainer()
        assert trainer.early_steps is not None
        losses = parts.losses_of(trainer)
        monkeypatch.setattr(stepping, "PORTION_BYTES", 1)
        early = parts.make_trainer()
        early.early_steps.portion = 1
        assert parts.losses_of(early) == losses
        for one, other in zip(trainer.contrast.parameters(), early.contrast.parameters(), strict=True):
            assert torch.equal(one, other)

    @pytest.mark.parametrize(
        ("groups", "own", "ranks", "expected"), [(4, 24, 1, 4), (4, 5, 1, 2), (4, 1, 1, 1), (4, 12, 2, 2), (2, 8, 4, 1)]
    )
    def test_groups_of_a_rank(self, groups, own, ranks, expected, parts, monkeypatch):
        trainer = parts.make_trainer(normalisation_groups=groups)
        monkeypatch.setattr(contrastive.idist, "get_world_size", lambda: ranks)
        assert trainer.groups(own) == expected

    def test_learns(self, parts):
        """Twelve films: the loss falls, and views find each other."""
        trainer = parts.make_trainer(parts.Films(12), batch_size=6, max_epochs=25, rate=5e-3)
        evaluator = parts.make_evaluator(trainer.model, parts.Films(12))
        before = evaluator.evaluate()["top1"]
        losses = [entry["contrastive"] for entry in parts.losses_of(trainer)]
        assert sum(losses[-6:]) < 0.8 * sum(losses[2:8]) and evaluator.evaluate()["top1"] > before

    def test_encoder_of_a_chain_in_the_place_of_the_resnet(self, parts):
        """It normalises each image on its own, so the groups are nothing to it."""
        shape, losses = (3, 32, 48), []
        films = parts.Films(8)
        films.modality = get_modality("xray", input_shape=shape)
        films.samples = films.samples[..., :1].repeat(48, axis=3)
        for groups in (1, 2):
            backbone = xray_backbone("demo", input_shape=shape, width=24, depth=2, heads=2)
            network = ContrastiveModel(backbone=backbone, dimension=6)
            initialise(network, generator_for(0, "initial weights"))
            options = {"preprocessing": parts.make_preprocessing(input_shape=shape, intensity=None), "max_epochs": 1}
            trainer = parts.make_trainer(films, network=network, normalisation_groups=groups, **options)
            losses.append(parts.losses_of(trainer))
        assert losses[0] == losses[1] and all(entry["contrastive"] > 0 for entry in losses[0])

    def test_bf16(self, parts):
        trainer = parts.make_trainer(precision="bf16", max_epochs=1)
        assert all(0 < entry["contrastive"] < 20 for entry in parts.losses_of(trainer))
        assert trainer.contrast.queue.dtype == torch.float32


class TestRefused:
    def test_loader_without_partners(self, parts, monkeypatch):
        monkeypatch.setattr(parts, "ContrastiveLoader", PretrainingLoader)
        with pytest.raises(InputError, match="must be a ContrastiveLoader, received PretrainingLoader"):
            parts.make_trainer()

    def test_no_groups(self, parts):
        with pytest.raises(InputError, match="normalisation_groups must be at least 1, received 0"):
            parts.make_trainer(normalisation_groups=0)

    def test_shapes_that_differ(self, parts):
        with pytest.raises(InputError, match=r"the network reads \(3, 32, 40\), the views have \(3, 64, 64\)"):
            parts.make_trainer(preprocessing=parts.make_preprocessing(input_shape=(3, 64, 64)))

    def test_long_queue_is_told(self, parts, caplog):
        with caplog.at_level(logging.WARNING):
            parts.make_trainer(queue_size=11)
        assert "queue_size 11 is more than the 10 samples" in caplog.text


class TestRows:
    def test_rows_come_together(self, monkeypatch):
        """Five rows on two ranks: 3 + 2; this is the second, which pads its own."""
        monkeypatch.setattr(contrastive.idist, "get_world_size", lambda: 2)
        first = torch.tensor([[1.0], [2.0], [3.0]])
        monkeypatch.setattr(contrastive.idist, "all_gather", lambda own: torch.cat([first, own]))
        found = rows_of_all_ranks(torch.tensor([[4.0], [5.0]]), 5)
        assert found[:, 0].tolist() == [1, 2, 3, 4, 5]

    def test_keys_are_put_back(self):
        batch = {"rows": torch.arange(3), "partners": torch.tensor([2, 0, 1]), "count": 3}
        assert keys_of_all_ranks(torch.tensor([[20.0], [0.0], [10.0]]), batch)[:, 0].tolist() == [0, 10, 20]


@pytest.mark.slow
class TestTwoRanks:
    @pytest.fixture(scope="class")
    def together(self, tmp_path_factory):
        """What two gloo processes under torchrun make of it."""
        folder = tmp_path_factory.mktemp("ranks")
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        done = subprocess.run(
            [*launcher, str(Path(__file__).with_name("contrastive_parts.py")), str(folder)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return folder

    def test_two_give_what_one_gives(self, together, parts):
        """With one normalisation group on each: losses, weights, key network, queue. The running statistics of batch
        normalisation are those of the first rank's images and no part of the training."""
        losses, state, _ = parts.train(2)
        both, metrics = json.loads((together / "losses.json").read_text())
        for one, other in zip(losses, both, strict=True):
            assert other == pytest.approx(one, rel=1e-3, abs=1e-5)
        weights = read_weights(together / "state.safetensors")
        assert weights.keys() == state.keys() and len(losses) == 6
        for name, value in state.items():
            if "running_" not in name and "num_batches" not in name:
                torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-4, msg=name)
        assert 0 <= metrics["top1"] <= 1

    def test_a_whole_run(self, together):
        names = {path.name for path in (together / "run").iterdir()}
        assert names == {"model.pt", "run.json", "history.json", "metrics.json", "previews"}


class TestEvaluator:
    def test_nearest_by_hand(self):
        """The second is nearer to the third's key, the third ties."""
        first = torch.eye(3)
        second = torch.tensor([[1.0, 0, 0], [0.0, 0.6, 0.8], [0.0, 0.6, 0.8]])
        assert float(nearest_share(first, second)) == pytest.approx(1 / 3)
        assert float(nearest_share(first, first)) == 1 and float(nearest_share(first[:1], first[:1])) == 1

    def test_parts_of_a_large_set(self, monkeypatch):
        torch.manual_seed(0)
        first = torch.nn.functional.normalize(torch.randn(50, 4), dim=1)
        second = torch.nn.functional.normalize(first + 0.3 * torch.randn(50, 4), dim=1)
        whole = nearest_share(first, second)
        monkeypatch.setattr(contrastive, "COMPARED", 7)
        assert (
            nearest_share(first, second) == whole == ((first @ second.T).argmax(1) == torch.arange(50)).float().mean()
        )

    def test_the_same_at_every_call_and_no_trace(self, parts):
        network = parts.make_network()
        before = {name: value.clone() for name, value in network.state_dict().items()}
        evaluator = parts.make_evaluator(network)
        metrics = evaluator.evaluate()
        assert evaluator.evaluate() == metrics and set(metrics) == {"top1", "spread"} and not network.training
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())

    def test_batches_do_not_matter(self, parts):
        """The draws belong to batches, so without any draw."""
        still = parts.make_preprocessing(views={"flip": 0, "degrees": 0})
        network = parts.make_network()
        one, other = (parts.make_evaluator(network, batch_size=size, preprocessing=still).evaluate() for size in (3, 7))
        assert one == pytest.approx(other, rel=1e-5) and one["top1"] == 1.0

    def test_written(self, parts, tmp_path, capsys):
        path = tmp_path / "evaluation.json"
        metrics = write_contrastive_evaluation(evaluator=parts.make_evaluator(parts.make_network()), path=path)
        assert json.loads(path.read_text()) == metrics and metrics["samples"] == 7
        assert "of 7 images" in capsys.readouterr().out

    def test_run_alone_gives_metrics(self, parts):
        """Clients call run() and read state.metrics."""
        evaluator = parts.make_evaluator(parts.make_network())
        evaluator.run()
        assert set(evaluator.state.metrics) >= {"top1", "spread"}
