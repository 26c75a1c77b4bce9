"""Every strategy through a second stage: what it leaves, and the same bits after an interruption."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from ignite.engine import Events

from medcoss_components.continual.buffer import read_buffer
from medcoss_components.continual.strategies import STRATEGIES, get_strategy
from medcoss_components.continual.strategies.ewc import EWC, IMPORTANCE_NAME, squared_gradients
from medcoss_components.engines import stage as stage_module
from medcoss_components.engines.setup import rehearsal_buffers
from medcoss_components.networks.pretraining import ENCODER_PREFIXES
from medcoss_components.weights import load_initial_weights, read_weights

CHAINED = sorted(set(STRATEGIES) - {"joint"})

pytestmark = pytest.mark.usefixtures("no_pictures")


class Crash(RuntimeError):
    """What a test throws."""


def result(folder):
    """The files that decide what comes after."""
    wanted = ("model.pt", "buffer.json", IMPORTANCE_NAME)
    return {name: (folder / name).read_bytes() for name in wanted if (folder / name).is_file()}


def kinds(folder):
    rows = json.loads((folder / "history.json").read_text())["rows"]
    return {(row[2], row[3]) for row in rows}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tmp_path_factory.mktemp("strategies")


@pytest.fixture
def first(folders, make_stage):
    """A first stage of texts, from scratch; with the importance of its weights."""
    folder = folders / "first"
    if not folder.exists():
        make_stage(folder, "report", validated=False, trainer={"strategy": "ewc", "max_epochs": 2}).run()
    return folder


@pytest.fixture
def second(first, make_stage, tiny_network):
    """``second(folder, strategy)``: a stage of X-rays from the weights and the buffer of the first."""

    def build(folder, strategy, **options):
        network = tiny_network(seed=8)
        load_initial_weights(network, first)
        trainer = {"network": network, "strategy": strategy, "init_weights": first, "max_epochs": 2}
        name = strategy if isinstance(strategy, str) else strategy.name
        buffers = rehearsal_buffers(buffers=[first], strategy=name)
        return make_stage(folder, "xray", buffers=buffers, validated=False, trainer=trainer, **options)

    return build


@pytest.mark.parametrize("strategy", CHAINED)
class TestEveryStrategy:
    def test_interrupted_it_ends_with_the_same_bytes(self, strategy, folders, second):
        """Stopped after four iterations of six or more and after the weights are written, against a run in one go."""
        whole = second(folders / strategy, strategy).run()
        folder = folders / f"{strategy} again"
        for crash in (crash_in_training, crash_at_the_end):
            stage = second(folder, strategy, checkpoint_seconds=0.0)
            with pytest.MonkeyPatch.context() as patch:
                crash(patch, stage)
                with pytest.raises(Crash):
                    stage.run()
        second(folder, strategy, checkpoint_seconds=0.0).run()
        assert result(folder) == result(whole) and "model.pt" in result(folder)
        assert not (folder / "checkpoint.pt").exists()

    def test_writes_a_model_that_the_next_stage_loads(self, strategy, folders, second, tiny_network):
        folder = folders / strategy
        if not folder.exists():
            second(folder, strategy).run()
        network = tiny_network(seed=9)
        network.load_state_dict(read_weights(folder))  # nothing more and nothing less than the network
        read_buffer(folder)


def crash_in_training(patch, stage):
    stage.trainer.add_event_handler(Events.ITERATION_STARTED(once=5), lambda: (_ for _ in ()).throw(Crash))


def crash_at_the_end(patch, stage):
    def fail(*arguments, **options):
        raise Crash

    patch.setattr(stage_module, "stage_metrics", fail)


class TestEWC:
    def test_first_stage_is_that_of_sequential(self, first, folders, make_stage):
        """It only writes how much each weight matters; a chain may branch from it with any strategy."""
        trainer = {"strategy": "sequential", "max_epochs": 2}
        plain = make_stage(folders / "plain", "report", validated=False, trainer=trainer).run()
        assert (plain / "model.pt").read_bytes() == (first / "model.pt").read_bytes()
        assert not (plain / IMPORTANCE_NAME).exists()

    def test_importance_is_of_what_is_carried_and_sums_to_one(self, first):
        importance = read_weights(first / IMPORTANCE_NAME)
        assert set(importance) == {name for name in read_weights(first) if name.startswith(ENCODER_PREFIXES)}
        total = sum(value.sum() for name, value in importance.items() if name.startswith("encoder."))
        assert float(total) == pytest.approx(1, rel=1e-5)
        assert importance["text_embedding.word.weight"].any() and not importance["image_embedding.norm.bias"].any()

    def test_stages_are_added_up(self, folders, first, second):
        folder = folders / "ewc"
        if not folder.exists():
            second(folder, "ewc").run()
        before, after = read_weights(first / IMPORTANCE_NAME), read_weights(folder / IMPORTANCE_NAME)
        total = sum(value.sum() for name, value in after.items() if name.startswith("encoder."))
        assert float(total) == pytest.approx(2, rel=1e-5)
        assert all(bool((after[name] >= before[name]).all()) for name in before)
        assert torch.equal(after["text_embedding.word.weight"], before["text_embedding.word.weight"])
        assert after["image_embedding.norm.bias"].any()
        assert {("xray", "pretext"), ("xray", "penalty")} == kinds(folder)

    def test_held_where_the_first_stage_ended(self, first, second, tmp_path):
        stage = second(tmp_path / "stage", "ewc")
        anchors = {entry.name: entry.anchor for entry in stage.strategy.held}
        stage.run()
        end = read_weights(first)
        assert anchors and all(torch.equal(value, end[name]) for name, value in anchors.items())

    def test_heavier_weight_keeps_nearer(self, first, second, tmp_path):
        start, moved = read_weights(first), []
        importance = read_weights(first / IMPORTANCE_NAME)
        for weight in (0.0, 1e4):
            end = read_weights(second(tmp_path / str(weight), EWC(ewc_weight=weight)).run())
            moved.append(sum(float((importance[n] * (end[n] - start[n]).square()).sum()) for n in importance))
        assert moved[1] < 0.5 * moved[0]

    def test_zero_weight_is_sequential(self, second, tmp_path):
        stages = {
            name: second(tmp_path / f"{name}", kind) for name, kind in (("a", EWC(ewc_weight=0.0)), ("b", "sequential"))
        }
        ends = [read_weights(stage.run()) for stage in stages.values()]
        assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())

    def test_at_most_so_many_samples_are_looked_at(self, second, tmp_path, monkeypatch):
        seen = []

        def counted(model, samples):
            samples = list(samples)
            seen.append([given.inputs.shape[0] for given in samples])
            return squared_gradients(model, samples)

        monkeypatch.setattr("medcoss_components.continual.strategies.ewc.squared_gradients", counted)
        second(tmp_path / "stage", EWC(samples=3)).run()
        assert seen == [[1, 1, 1]]

    def test_ranks_share_the_samples(self, second, tmp_path, monkeypatch):
        """Each of two ranks looks at half; their sums added are those of one process."""
        import ignite.distributed as idist

        from medcoss_components.continual.strategies import ewc

        stage = second(tmp_path / "stage", "ewc")
        whole = ewc._over_ranks(stage, 5)
        monkeypatch.setattr(idist, "get_world_size", lambda: 2)
        monkeypatch.setattr(idist, "all_reduce", lambda value: value)
        parts = []
        for rank in range(2):
            monkeypatch.setattr(idist, "get_rank", lambda rank=rank: rank)
            parts.append(ewc._over_ranks(stage, 5))
        for name, value in whole.items():
            torch.testing.assert_close(parts[0][name] + parts[1][name], value)

    def test_another_importance_refused_by_a_begun_stage(self, first, second, tmp_path):
        from medcoss_components.errors import InputError

        second(tmp_path / "stage", "ewc").run()
        stage = second(tmp_path / "stage", "ewc")
        stage.strategy.importance["text_embedding.norm.bias"] += 1
        with pytest.raises(InputError, match="begun with other settings .*importance"):
            stage.run()


class TestCaSSLe:
    def test_predictor_is_trained_and_not_kept(self, second, tmp_path):
        stage = second(tmp_path / "stage", "cassle")
        before = {name: value.clone() for name, value in stage.strategy.companion.state_dict().items()}
        folder = stage.run()
        after = stage.strategy.companion.state_dict()
        assert all(not torch.equal(after[name], before[name]) for name in before)
        assert not any("predictor" in name for name in read_weights(folder))
        assert kinds(folder) == {("xray", "pretext"), ("xray", "distillation")}

    def test_resume_checkpoint_holds_it(self, second, tmp_path):
        stage = second(tmp_path / "stage", "cassle", checkpoint_seconds=0.0)
        crash_in_training(None, stage)
        with pytest.raises(Crash):
            stage.run()
        content = torch.load(tmp_path / "stage" / "checkpoint.pt", weights_only=True)
        assert set(content["parts"]) == {"history", "companion"}
        assert not any("predictor" in name for name in content["model"])

    def test_loss_of_a_step_is_the_sum_of_its_parts(self, second, tmp_path):
        stage, outputs = second(tmp_path / "stage", "cassle"), []
        stage.trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: outputs.append(engine.state.output))
        stage.run()
        for output in outputs:
            assert set(output["parts"]) == {"pretext", "distillation"} and output["kind"] == "pretext"
            assert torch.equal(output["loss"], output["parts"]["pretext"] + output["parts"]["distillation"])


class TestVariants:
    @pytest.mark.parametrize(("strategy", "size"), [("medcoss_buffer_1", 1), ("medcoss_buffer_10", 1), ("medcoss", 3)])
    def test_size_of_the_buffer(self, strategy, size, second, tmp_path):
        """Of ten X-rays: 1 % and 10 % are one, the stage's own 30 % are three."""
        stage = second(tmp_path / "stage", strategy)
        ratio = get_strategy(strategy).buffer_ratio
        assert stage.exemplars == size and stage.buffer_ratio == (0.3 if ratio is None else ratio)

    def test_random_exemplars_enter_the_buffer(self, folders, second):
        for strategy in ("medcoss", "medcoss_random_exemplars"):
            if not (folders / strategy).exists():
                second(folders / strategy, strategy).run()
        usual, random = (folders / name for name in ("medcoss", "medcoss_random_exemplars"))
        assert (usual / "model.pt").read_bytes() == (random / "model.pt").read_bytes()
        assert set(read_buffer(random).clusters) == {0} and len(read_buffer(random).indices) == 3

    @pytest.mark.parametrize("strategy", ["medcoss_without_mixup", "medcoss_teacher_train"])
    def test_training_differs_from_medcoss(self, strategy, folders, second):
        for name in ("medcoss", strategy):
            if not (folders / name).exists():
                second(folders / name, name).run()
        assert (folders / "medcoss" / "model.pt").read_bytes() != (folders / strategy / "model.pt").read_bytes()

    def test_teacher_of_the_engine_has_the_mode(self, second, tmp_path):
        for strategy, training in (("medcoss", False), ("medcoss_teacher_train", True)):
            teacher = second(tmp_path / strategy, strategy).trainer.teacher
            assert teacher.training == teacher.eval().encoder.training == training


@pytest.mark.slow
class TestTwoRanks:
    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory):
        return tmp_path_factory.mktemp("ranks")

    @pytest.fixture
    def together(self, folder, tiny_sizes, monkeypatch, two_processes):
        """What two gloo processes under torchrun make of each strategy; run once."""
        monkeypatch.syspath_prepend(str(Path(__file__).parent))
        from strategy_ranks import write_start

        if not (folder / "sizes.json").exists():
            (folder / "sizes.json").write_text(json.dumps(tiny_sizes))
            write_start(folder, tiny_sizes)
            two_processes(Path(__file__).with_name("strategy_ranks.py"), folder)
        return folder

    @pytest.mark.parametrize("strategy", ["ewc", "cassle"])
    def test_give_what_one_process_gives(self, strategy, together, tiny_sizes):
        from strategy_ranks import train

        losses, state = train(together, tiny_sizes, strategy)
        both = json.loads((together / f"{strategy}.json").read_text())
        assert len(losses) == 6 and all(parts.keys() == other.keys() for parts, other in zip(losses, both, strict=True))
        # attention does not depend on the bias of the keys: its gradient is rounding, which Adam follows nevertheless
        for parts, other in zip(losses, both, strict=True):
            assert list(other.values()) == pytest.approx(list(parts.values()), rel=1e-3, abs=1e-6)
        weights = read_weights(together / f"{strategy}.safetensors")
        names = [name for name in state if not name.endswith("qkv.bias")]
        differences = {name: float((state[name] - weights[name]).abs().max()) for name in names}
        assert weights.keys() == state.keys() and max(differences.values()) < 1e-5, max(differences.items())

    def test_importance_is_that_of_one_process(self, together, tiny_sizes):
        from strategy_ranks import train

        train(together, tiny_sizes, "ewc")
        alone, both = (read_weights(together / f"ewc{ranks}" / IMPORTANCE_NAME) for ranks in (1, 2))
        for name, value in alone.items():
            torch.testing.assert_close(both[name], value, rtol=1e-3, atol=1e-6)
