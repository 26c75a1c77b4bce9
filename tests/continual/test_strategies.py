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
    with pytest.raises(InputError, match="cassle, ewc, experience_replay, joint, medcoss, .*, received 'packnet'"):
        get_strategy("packnet")


class TestOptions:
    def test_given_to_the_strategy_that_has_them(self):
        assert get_strategy("ewc", {"ewc_weight": 3.0}).weight == 3.0
        assert get_strategy("sequential", {"ewc_weight": 3.0}).name == "sequential"

    def test_none_leaves_the_strategys_own_value(self):
        assert get_strategy("ewc", {"ewc_weight": None}).weight == get_strategy("ewc").weight

    def test_unknown_one_refused(self):
        with pytest.raises(InputError, match="no strategy has ewc_wieght; use ewc_weight"):
            get_strategy("medcoss", {"ewc_wieght": 1})


class TestVariants:
    """Each deviates from MedCoSS in one attribute."""

    CHANGES = {
        "medcoss_without_mixup": ("mixup", False),
        "medcoss_random_exemplars": ("exemplars", "random"),
        "medcoss_buffer_1": ("buffer_ratio", 0.01),
        "medcoss_buffer_10": ("buffer_ratio", 0.1),
        "medcoss_teacher_train": ("teacher_mode", "train"),
        "medcoss_reversed": ("reverses_stages", True),
    }

    def test_all_are_known(self):
        assert {name for name in STRATEGIES if name.startswith("medcoss_")} == set(self.CHANGES)

    @pytest.mark.parametrize("name", sorted(CHANGES))
    def test_one_thing_differs(self, name):
        attributes = ("uses_buffers", "needs_teacher", "single_stage", *{key for key, _ in self.CHANGES.values()})
        usual, variant = get_strategy("medcoss"), get_strategy(name)
        differences = {key: getattr(variant, key) for key in attributes if getattr(variant, key) != getattr(usual, key)}
        assert differences == dict([self.CHANGES[name]])

    @pytest.mark.parametrize("modality", MODALITIES)
    def test_without_mixup_both_see_the_samples_themselves(self, modality, tiny_network, prepared):
        network, batch = tiny_network().eval(), prepared(modality)
        student, teacher = Recorder(network), Recorder(frozen_teacher(network))
        get_strategy("medcoss_without_mixup").rehearsal_loss(student, teacher, batch)
        (inputs, _), (teacher_inputs, _) = student.calls[0], teacher.calls[0]
        own = batch.loaded[:5, : inputs.shape[1]] if modality == "report" else batch.loaded[:5]
        assert torch.equal(inputs, own) and torch.equal(teacher_inputs, own)
        assert not torch.equal(batch.mixed().inputs, batch.mixed(mixup=False).inputs)

    @pytest.mark.parametrize("modality", MODALITIES)
    def test_mixup_leaves_the_other_draws_alone(self, modality, prepared):
        batch = prepared(modality)
        mixed, plain = batch.mixed().arguments, batch.mixed(mixup=False).arguments
        assert torch.equal(mixed["depth_noise"], plain["depth_noise"]) and mixed.keys() == plain.keys()
        assert modality == "report" or torch.equal(mixed["noise"], plain["noise"])

    def test_teacher_in_training_mode_has_draws_of_its_own(self, tiny_network, prepared):
        """Only the teacher's branches differ: the student's call is the one of MedCoSS."""
        network = tiny_network(stochastic_depth=0.5).train()
        calls = {}
        for name in ("medcoss", "medcoss_teacher_train"):
            mode = get_strategy(name).teacher_mode
            student, teacher = Recorder(network), Recorder(frozen_teacher(network, mode=mode))
            term = get_strategy(name).rehearsal_loss(student, teacher, prepared("xray"))
            calls[name] = (student.calls[0], teacher.calls[0], term.total)
        usual, variant = calls.values()
        assert torch.equal(usual[0][1]["depth_noise"], variant[0][1]["depth_noise"])
        assert not torch.equal(variant[0][1]["depth_noise"], variant[1][1]["depth_noise"])
        assert torch.equal(variant[0][1]["noise"], variant[1][1]["noise"])
        assert torch.equal(usual[0][0], variant[1][0]) and not torch.equal(usual[2], variant[2])

    def test_teacher_in_training_mode_without_branches_to_drop_is_the_usual_one(self, tiny_network, prepared):
        network = tiny_network(stochastic_depth=0.0).train()
        totals = [
            get_strategy(name)
            .rehearsal_loss(network, frozen_teacher(network, mode=get_strategy(name).teacher_mode), prepared("ct"))
            .total
            for name in ("medcoss", "medcoss_teacher_train")
        ]
        assert torch.equal(*totals)


def test_only_joint_trains_in_one_stage():
    assert [name for name, kind in STRATEGIES.items() if kind.single_stage] == ["joint"]
