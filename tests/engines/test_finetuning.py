"""Fine-tuning engine: learning rates of the layers, the step, learning, and bit-exact resume."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Events

from medcoss_components.engines.finetuning import without_padding
from medcoss_components.engines.handlers import LossHistory, NonFiniteGuard, PolynomialDecay, ResumeCheckpoint
from medcoss_components.engines.optimisation import block_distances, finetuning_optimizer, polynomial_decay
from medcoss_components.errors import InputError

TASKS = [
    ("classification", "report"),
    ("classification", "xray"),
    ("classification", "ct"),
    ("segmentation", "xray"),
    ("segmentation", "ct"),
]


def record_outputs(trainer):
    """A list that receives the output of every iteration."""
    outputs = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: outputs.append(engine.state.output))
    return outputs


def values(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


class TestOptimizer:
    @pytest.fixture
    def network(self, make_task):
        return make_task("classification", "xray").network

    def rates(self, optimizer, network):
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        return {name: rates.get(id(parameter)) for name, parameter in network.named_parameters()}

    def test_one_rate_without_layer_decay(self, network):
        optimizer = finetuning_optimizer(network=network, learning_rate=0.5)
        assert set(self.rates(optimizer, network).values()) == {0.5}
        assert optimizer.defaults["betas"] == (0.9, 0.999)
        decays = {(p.ndim > 1, group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
        assert decays == {(True, 1e-4), (False, 0.0)}

    def test_rates_shrink_towards_the_input(self, network):
        """Two blocks, decay 1/2: head 1, block 1 1/2, block 0 1/4, tokenizer 1/8."""
        rates = self.rates(finetuning_optimizer(network=network, learning_rate=1.0, layer_decay=0.5), network)
        expected = {"head.": 1.0, "encoder.blocks.1.": 0.5, "encoder.blocks.0.": 0.25, "image_embedding.": 0.125}
        for prefix, rate in expected.items():
            found = {value for name, value in rates.items() if name.startswith(prefix)}
            assert found == {rate}, prefix
        assert sum(name.startswith(tuple(expected)) for name in rates) == len(rates)

    def test_first_group_is_the_heads(self, network):
        """Its learning rate is the one that is recorded."""
        optimizer = finetuning_optimizer(network=network, learning_rate=1.0, layer_decay=0.5)
        assert optimizer.param_groups[0]["lr"] == 1.0

    def test_frozen_parameters_are_left_out(self, network):
        network.freeze_encoder()
        rates = self.rates(finetuning_optimizer(network=network, learning_rate=1.0), network)
        assert {name.split(".")[0] for name, rate in rates.items() if rate is not None} == {"head"}

    def test_nothing_left_refused(self, network):
        with pytest.raises(InputError, match="every parameter is frozen"):
            finetuning_optimizer(network=network.requires_grad_(False), learning_rate=1.0)

    @pytest.mark.parametrize("decay", [0.0, 1.5])
    def test_layer_decay_out_of_range_refused(self, decay, network):
        with pytest.raises(InputError, match=f"received {decay}"):
            finetuning_optimizer(network=network, learning_rate=1.0, layer_decay=decay)

    def test_a_network_without_blocks_is_all_head(self):
        assert set(block_distances(torch.nn.Linear(2, 2)).values()) == {0}


class TestPolynomialDecay:
    def test_values(self):
        assert [round(polynomial_decay(epoch, 4, power=1.0), 6) for epoch in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]
        assert polynomial_decay(1, 4) == pytest.approx(0.75**0.9)

    def test_every_group_follows_by_epoch(self, make_task):
        trainer = make_task("classification", "xray", handlers=[], max_epochs=2, batch_size=4).trainer
        trainer.optimizer.param_groups[1]["lr"] = 0.5
        PolynomialDecay(power=1.0).attach(trainer)
        rates = []
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED, lambda engine: rates.append([g["lr"] for g in engine.optimizer.param_groups])
        )
        trainer.run()
        assert rates == [[1e-3, 0.5]] * 2 + [[5e-4, 0.25]] * 2

    def test_past_the_planned_epochs_refused(self, make_task):
        """As in a second federated round, which lengthens the run."""
        trainer = make_task("classification", "xray", max_epochs=1).trainer
        trainer.run()
        trainer.state.max_epochs = 2
        with pytest.raises(InputError, match=r"epoch 2 is past the 1 .* set train#handlers to \[\]"):
            trainer.run()

    def test_negative_power_refused(self):
        with pytest.raises(InputError, match="received -1"):
            PolynomialDecay(power=-1)


class TestStep:
    @pytest.mark.parametrize(("task", "name"), TASKS)
    def test_output(self, task, name, make_task):
        parts = make_task(task, name, max_epochs=1)
        outputs = record_outputs(parts.trainer)
        parts.trainer.run()
        assert sorted(output["count"] for output in outputs) == [2, 3, 3]
        assert {(output["kind"], output["modality"]) for output in outputs} == {(task, name)}
        assert sorted(name for output in outputs for name in output["ids"]) == sorted(parts.training.ids)
        assert all(output["loss"].dtype is torch.float32 and torch.isfinite(output["loss"]) for output in outputs)

    def test_a_loss_of_torch_gives_the_same(self, make_task):
        losses = []
        for loss in (None, torch.nn.CrossEntropyLoss()):
            trainer = make_task("classification", "xray", loss=loss).trainer
            outputs = record_outputs(trainer)
            trainer.run()
            assert {output["kind"] for output in outputs} == {"classification"}
            losses.append([float(output["loss"]) for output in outputs])
        assert losses[0] == pytest.approx(losses[1], abs=1e-6)

    def test_bf16_gives_float32_losses_near_the_exact_ones(self, make_task):
        losses = []
        for precision in ("float32", "bf16"):
            trainer = make_task("segmentation", "ct", precision=precision, max_epochs=1).trainer
            outputs = record_outputs(trainer)
            trainer.run()
            losses.append(outputs[0]["loss"])
        assert losses[1].dtype is torch.float32 and abs(losses[0] - losses[1]) < 0.1

    def test_depth_noise_is_this_ranks_rows_of_the_global_draw(self, make_task):
        trainer = make_task("classification", "xray").trainer
        batch = {"epoch": 1, "step": 2, "count": 5, "rows": torch.arange(5), "own": 5}
        whole = trainer.depth_noise(batch)
        assert whole.shape == (5, 4)
        rows = torch.tensor([3, 4])
        assert torch.equal(trainer.depth_noise(batch | {"rows": rows, "own": 2}), whole[3:])
        assert not torch.equal(trainer.depth_noise(batch | {"step": 3}), whole)

    def test_a_network_without_stochastic_depth(self, make_task):
        class Plain(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = torch.nn.Linear(3 * 8 * 18, 2)

            def forward(self, inputs):
                return self.layer(inputs.flatten(1))

        trainer = make_task("classification", "xray", network=Plain(), max_epochs=1).trainer
        outputs = record_outputs(trainer)
        trainer.run()
        assert len(outputs) == 3

    def test_columns_behind_the_longest_text_are_cut(self, make_task):
        network = make_task("classification", "report").network.eval()
        ids = torch.tensor([[5, 6, 0, 0], [5, 0, 7, 0]])
        cut = without_padding(ids, network)
        assert cut.tolist() == [[5, 6, 0], [5, 0, 7]]
        torch.testing.assert_close(network(cut), network(ids))
        images = torch.zeros(1, 3, 8, 18)
        assert without_padding(images, network) is images

    def test_frozen_encoder_keeps_its_weights(self, make_task):
        parts = make_task("classification", "report", frozen=True, learning_rate=0.1)
        before = values(parts.network)
        parts.trainer.run()
        changed = {name.split(".")[0] for name, value in values(parts.network).items() if (value != before[name]).any()}
        assert changed == {"head"}

    def test_nan_stops_and_names_the_samples(self, make_task):
        parts = make_task("classification", "ct")
        NonFiniteGuard().attach(parts.trainer)
        with torch.no_grad():
            parts.network.head.output.bias.fill_(float("nan"))
        with pytest.raises(RuntimeError, match=r"classification loss of modality ct is nan.*training-00"):
            parts.trainer.run()


class TestLearning:
    @pytest.mark.parametrize(("task", "name"), TASKS)
    def test_loss_falls(self, task, name, make_task, tiny_sizes):
        sizes = tiny_sizes | {"stochastic_depth": 0.0}
        parts = make_task(
            task, name, sizes=sizes, max_epochs=12, batch_size=8, learning_rate=2e-2, augmentation="none", handlers=[]
        )
        outputs = record_outputs(parts.trainer)
        parts.trainer.run()
        losses = [float(output["loss"]) for output in outputs]
        assert sum(losses[-3:]) < 0.9 * sum(losses[:3])

    def test_two_halves_equal_one_batch(self, make_task, tiny_sizes):
        sizes = tiny_sizes | {"stochastic_depth": 0.0}
        gradients = []
        for batch_size, steps in ((8, 1), (4, 2)):
            parts = make_task(
                "classification",
                "xray",
                sizes=sizes,
                batch_size=batch_size,
                accumulation_steps=steps,
                max_epochs=1,
                max_gradient_norm=1e9,  # clips nothing, and keeps the gradients for us to see
                augmentation="none",
            )
            parts.trainer.run()
            gradients.append({name: parameter.grad for name, parameter in parts.network.named_parameters()})
        for name, value in gradients[0].items():
            assert torch.allclose(gradients[1][name], value, atol=1e-6, rtol=0), name

    def test_gradient_norm_is_clipped_to_12_by_default(self, make_task):
        assert make_task("classification", "xray").trainer.max_gradient_norm == 12.0


@pytest.mark.parametrize(("task", "name"), [("classification", "report"), ("segmentation", "ct")])
def test_resumed_from_every_iteration_ends_with_the_same_bits(task, name, tmp_path, make_task):
    def build(folder):
        parts = make_task(task, name)
        history = LossHistory(interval=2)
        checkpoint = ResumeCheckpoint(
            path=folder / "checkpoint.pt", seconds=1e9, guard=NonFiniteGuard(), parts={"history": history}
        )
        history.attach(parts.trainer)
        return parts.trainer, history, checkpoint

    whole, expected, checkpoint = build(tmp_path)

    def save(engine):
        checkpoint.path = tmp_path / str(engine.state.iteration) / "checkpoint.pt"
        checkpoint.save(engine)

    whole.add_event_handler(Events.ITERATION_COMPLETED, save)
    whole.run()
    assert whole.total_iterations == 6
    for iteration in range(1, 7):
        resumed, history, loaded = build(tmp_path / str(iteration))
        assert loaded.load(resumed)
        resumed.run()
        assert [row[:6] for row in history.rows] == [row[:6] for row in expected.rows]
        final = values(whole.model)
        assert all(torch.equal(value, final[key]) for key, value in values(resumed.model).items())
