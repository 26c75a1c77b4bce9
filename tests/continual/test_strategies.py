"""One contract for every rehearsal strategy, then what is special about each."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from medcoss_components.continual.distillation import frozen_teacher
from medcoss_components.continual.strategies import STRATEGIES, Strategy, get_strategy
from medcoss_components.data.sampler import BatchPlan, BatchReader
from medcoss_components.engines.batches import StepSettings, step_batch
from medcoss_components.errors import InputError

MODALITIES = ("report", "xray", "ct")


@dataclass
class Recorder:
    """Calls a network and keeps what it was called with."""

    network: torch.nn.Module
    calls: list = field(default_factory=list)

    def __call__(self, inputs, **arguments):
        self.calls.append((inputs, arguments))
        return self.network(inputs, **arguments)


@pytest.fixture
def prepared(fake_source, vocabulary, tiny_sizes):
    """``prepared(modality, rehearsal)``: a batch of five samples, ready for the network."""

    def build(name, rehearsal=True):
        source = fake_source(name, 8)
        plan = BatchPlan(source=int(rehearsal), epoch=1, step=2, indices=torch.tensor([3, 0, 7, 1, 5]).numpy())
        batch = BatchReader([source, source], current=1, seed=0)[plan]
        settings = StepSettings(
            vocabulary=vocabulary, depth=2, patch_2d=tiny_sizes["patch_2d"], patch_3d=tiny_sizes["patch_3d"]
        )
        return step_batch(batch, modality=source.modality, settings=settings, device=torch.device("cpu"))

    return build


@pytest.mark.parametrize("name", sorted(STRATEGIES))
class TestContract:
    """What the engine expects of a strategy."""

    def strategy_and_teacher(self, name, network):
        strategy = get_strategy(name)
        return strategy, frozen_teacher(network) if strategy.needs_teacher else None

    def test_is_registered_under_its_name(self, name):
        strategy = get_strategy(name)
        assert isinstance(strategy, Strategy) and strategy.name == name
        assert get_strategy(strategy) is strategy

    def test_only_one_that_uses_buffers_needs_a_teacher(self, name):
        strategy = get_strategy(name)
        assert strategy.uses_buffers or not strategy.needs_teacher
        assert not (strategy.single_stage and strategy.uses_buffers)

    @pytest.mark.parametrize("modality", MODALITIES)
    def test_current_loss_is_the_pretext_loss(self, name, modality, tiny_network, prepared):
        network, batch = tiny_network(), prepared(modality, rehearsal=False)
        term = get_strategy(name).current_loss(network, batch)
        inputs = batch.pretext()
        mean = network(inputs.inputs, **inputs.arguments)
        assert term.kind == "pretext" and term.count > 0
        assert torch.allclose(term.total / term.count, mean, atol=1e-6)

    @pytest.mark.parametrize("modality", MODALITIES)
    def test_rehearsal_loss(self, name, modality, tiny_network, prepared):
        network = tiny_network().train()
        strategy, teacher = self.strategy_and_teacher(name, network)
        if not strategy.uses_buffers:
            with pytest.raises(NotImplementedError):
                strategy.rehearsal_loss(network, teacher, prepared(modality))
            return
        term = strategy.rehearsal_loss(network, teacher, prepared(modality))
        assert term.kind in ("distillation", "replay")
        assert term.total.shape == term.count.shape == () and term.total.dtype == torch.float32
        assert torch.isfinite(term.total) and term.total >= 0 and term.count > 0
        term.total.backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in network.encoder.parameters())

    @pytest.mark.parametrize("modality", MODALITIES)
    def test_same_batch_same_loss(self, name, modality, tiny_network, prepared):
        network = tiny_network().train()
        strategy, teacher = self.strategy_and_teacher(name, network)
        losses = [strategy.current_loss(network, prepared(modality, rehearsal=False)).total for _ in range(2)]
        if strategy.uses_buffers:
            losses += [strategy.rehearsal_loss(network, teacher, prepared(modality)).total for _ in range(2)]
        assert torch.equal(losses[0], losses[1]) and torch.equal(losses[-2], losses[-1])


class TestMedCoSS:
    @pytest.mark.parametrize("modality", MODALITIES)
    def test_teacher_and_student_see_the_same(self, modality, tiny_network, prepared):
        network = tiny_network()
        student, teacher = Recorder(network), Recorder(frozen_teacher(network))
        get_strategy("medcoss").rehearsal_loss(student, teacher, prepared(modality))
        (inputs, arguments), (teacher_inputs, teacher_arguments) = student.calls[0], teacher.calls[0]
        assert torch.equal(inputs, teacher_inputs)
        assert arguments.keys() == teacher_arguments.keys() and arguments["task"] == "features"
        for name, value in arguments.items():
            same = torch.equal(value, teacher_arguments[name]) if torch.is_tensor(value) else True
            assert same and ("noise" in arguments) == (modality != "report")

    @pytest.mark.parametrize("modality", MODALITIES)
    def test_zero_while_the_student_equals_the_teacher(self, modality, tiny_network, prepared):
        network = tiny_network().eval()
        term = get_strategy("medcoss").rehearsal_loss(network, frozen_teacher(network), prepared(modality))
        assert term.total == 0

    def test_teacher_has_no_stochastic_depth(self, tiny_network, prepared):
        network = tiny_network(stochastic_depth=0.5).train()
        term = get_strategy("medcoss").rehearsal_loss(network, frozen_teacher(network), prepared("ct"))
        assert term.total > 0  # the student drops branches, the teacher does not

    def test_counts_visible_tokens_and_the_class_token(self, tiny_network, prepared):
        network = tiny_network()
        term = get_strategy("medcoss").rehearsal_loss(network, frozen_teacher(network), prepared("ct"))
        assert term.count == 5 * (1 + 3)  # 12 patches, a quarter stays

    def test_loss_by_loops(self, tiny_network, prepared):
        student, teacher = tiny_network(seed=1).eval(), frozen_teacher(tiny_network(seed=2))
        batch = prepared("report")
        term = get_strategy("medcoss").rehearsal_loss(student, teacher, batch)
        mixed = batch.mixed()
        ours, theirs = student(mixed.inputs, **mixed.arguments), teacher(mixed.inputs, **mixed.arguments)
        total, count = 0.0, 0
        for row, position in mixed.arguments["padding_mask"].nonzero().tolist():
            total += ((ours[row, position] - theirs[row, position]) ** 2).mean().item()
            count += 1
        assert term.count == count and term.total.item() == pytest.approx(total, rel=1e-5)

    def test_without_teacher_refused(self, tiny_network, prepared):
        with pytest.raises(InputError, match="medcoss needs a teacher"):
            get_strategy("medcoss").rehearsal_loss(tiny_network(), None, prepared("xray"))


def test_experience_replay_repeats_the_pretext_task(tiny_network, prepared):
    network, batch, strategy = tiny_network(), prepared("xray"), get_strategy("experience_replay")
    replay, pretext = strategy.rehearsal_loss(network, None, batch), strategy.current_loss(network, batch)
    assert replay.kind == "replay" and torch.equal(replay.total, pretext.total)


def test_unknown_name_refused_with_the_known_ones():
    with pytest.raises(InputError, match="experience_replay, joint, medcoss, sequential, received 'ewc'"):
        get_strategy("ewc")


def test_only_joint_trains_in_one_stage():
    assert [name for name, kind in STRATEGIES.items() if kind.single_stage] == ["joint"]
