"""A multi-task run: what it writes, that it remembers, and that a crash at any moment changes nothing."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from ignite.engine import Events

from medcoss_components.engines import multitask_run
from medcoss_components.engines.multitask_run import STEPS, evaluate_tasks, without_places
from medcoss_components.engines.setup import task_network
from medcoss_components.errors import InputError
from medcoss_components.networks.xray_tasks import XrayClassificationModel
from medcoss_components.tracking import task_report
from medcoss_components.weights import read_weights

FILES = {
    "model.pt",
    "metrics.json",
    "history.json",
    "rounds.json",
    "run.json",
    "features",
    "previews",
    "evaluation",
}
TIMES = ("training_seconds", "peak_memory_bytes", "name")


class Crash(RuntimeError):
    """What a test throws."""


def names(folder):
    return {entry.name for entry in folder.iterdir()}


def read(folder, name):
    return json.loads((folder / name).read_text())


def result(folder):
    """What decides the worth of a run, without times."""
    metrics = {key: value for key, value in read(folder, "metrics.json").items() if key not in TIMES}
    losses = [row[:6] for row in read(folder, "history.json")["rows"]]
    return (folder / "model.pt").read_bytes(), read(folder, "rounds.json"), metrics, losses


@pytest.fixture
def make_run(multitask):
    """``make_run(folder, parts={...}, **options of MultiTaskTraining)``; the features lie in the folder."""

    def build(folder, *, parts=None, **options):
        made = multitask(output_dir=folder, **(parts or {}))
        from multitask_parts import build_run

        return build_run(made, folder, **options)

    return build


@pytest.fixture
def no_pictures(monkeypatch):
    """Leave reports and pictures out, where a test does not look at them."""

    def write(result, folder, **options):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").write_text("{}")

    def draw(run):
        (run.folder / "previews").mkdir(exist_ok=True)
        return run.folder / "previews"

    monkeypatch.setattr(task_report, "write_task_report", write)
    monkeypatch.setattr(multitask_run, "write_pictures", draw)


class TestWholeRun:
    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory):
        """One run with its reports, shared by the tests that only look at it."""
        return tmp_path_factory.mktemp("whole") / "muscle"

    @pytest.fixture(autouse=True)
    def run(self, folder, make_run):
        if not folder.exists():
            make_run(folder, tester=None).run()

    def test_writes_every_artefact_and_leaves_nothing_else(self, folder):
        assert names(folder) == FILES
        assert names(folder / "previews") == {"rounds.png", "losses.png"}
        assert names(folder / "evaluation") == {"size", "organs", "spots"}
        for task in ("size", "organs", "spots"):
            assert {"cases.csv", "metrics.json", "REPORT.html"} <= names(folder / "evaluation" / task / "validation")

    def test_a_row_for_every_round(self, folder):
        rounds = read(folder, "rounds.json")
        assert rounds["headlines"] == {"size": "auc", "organs": "dice", "spots": "map"} and rounds["keep"] == "last"
        assert [(row["round"], row["iteration"]) for row in rounds["rounds"]] == [(1, 7), (2, 14)]
        for row in rounds["rounds"]:
            assert sorted(row["order"]) == ["organs", "size", "spots"]
            for task, metric in rounds["headlines"].items():
                assert row["headline"][task] == row["metrics"][task][metric]
            assert row["mean"] == pytest.approx(sum(row["headline"].values()) / 3)
        first, last = (row["headline"] for row in rounds["rounds"])
        transfer = sum(last[task] - first[task] for task in first) / 3
        assert rounds["retention"]["backward_transfer"] == pytest.approx(transfer)
        assert rounds["retention"]["average_accuracy"] == pytest.approx(rounds["rounds"][1]["mean"])

    def test_metrics(self, folder):
        metrics, rounds = read(folder, "metrics.json"), read(folder, "rounds.json")
        assert (metrics["task"], metrics["rounds"], metrics["kept_round"], metrics["iterations"]) == (
            "multitask",
            2,
            2,
            14,
        )
        assert (metrics["feature_weight"], metrics["anchor_weight"], metrics["cyclic"]) == (0.1, 0.1, True)
        assert metrics["mean_headline"] == pytest.approx(rounds["rounds"][1]["mean"])
        tasks = metrics["tasks"]
        assert [entry["kind"] for entry in tasks.values()] == ["classification", "segmentation", "detection"]
        assert [entry["samples"] for entry in tasks.values()] == [8, 5, 6]
        assert set(tasks["spots"]["first_losses"]) == {"detection", "boxes", "feature", "anchor"}
        for task, headline in rounds["rounds"][1]["headline"].items():
            assert tasks[task]["validation"][rounds["headlines"][task]] == pytest.approx(headline)
        assert tasks["size"]["validation_samples"] == 2 and tasks["size"]["testing_samples"] == 0
        assert metrics["retention"] == rounds["retention"]

    def test_weights_are_backbone_and_heads(self, folder):
        state = read_weights(folder)
        assert {".".join(name.split(".")[:1]) for name in state} == {"backbone", "heads"}
        assert {name.split(".")[1] for name in state if name.startswith("heads.")} == {"size", "organs", "spots"}

    def test_fine_tuning_takes_the_backbone(self, folder):
        from multitask_parts import BACKBONE, MODALITY

        network = XrayClassificationModel(classes=["a", "b", "c"], input_shape=MODALITY["input_shape"], **BACKBONE)
        task_network(network=network, init_weights=folder)
        state = read_weights(folder)
        assert all(
            torch.equal(value, state[f"backbone.{name}"]) for name, value in network.backbone.state_dict().items()
        )

    def test_second_run_does_nothing(self, folder, make_run, monkeypatch):
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != "run.json"}
        (folder / "checkpoint.pt").touch()  # leftovers of a killed clean-up
        again = make_run(folder, tester=None)
        monkeypatch.setattr(again.trainer, "run", lambda: pytest.fail("trained again"))
        assert again.run() == folder
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != "run.json"} == before

    def test_other_settings_data_or_weights_refused(self, folder, make_run):
        for options, message in (
            ({"settings": {"seed": 1}}, "seed: 0 -> 1"),
            ({"parts": {"seed": 3}}, "initial_weights"),
            ({"evaluator": None}, "data: "),
        ):
            with pytest.raises(InputError, match=f"begun with other settings .*{message}"):
                make_run(folder, **({"tester": None} | options)).run()


@pytest.mark.usefixtures("no_pictures")
class TestVariants:
    def test_cached_features_stay_fixed(self, tmp_path, make_run):
        run, seen = make_run(tmp_path / "run", tester=None), []

        def look(engine):
            files = sorted((tmp_path / "run" / "features").iterdir())
            seen.append([(path.name, path.stat().st_mtime_ns, path.read_bytes()) for path in files])

        run.trainer.add_event_handler(Events.ITERATION_COMPLETED, look)
        run.run()
        look(None)
        assert len(seen) == 15 and len(seen[0]) == 3 and all(entry == seen[0] for entry in seen)

    def test_muscle_without_memory_and_schedule(self, tmp_path, make_run):
        parts = {"memory": False, "schedule": {"cyclic": False, "reshuffled": False}}
        run, seen = make_run(tmp_path / "run", parts=parts, tester=None), []
        run.trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: seen.append(engine.state.output))
        folder = run.run()
        assert [output["modality"] for output in seen] == ["size"] * 6 + ["organs"] * 4 + ["spots"] * 4
        assert all(
            output["parts"].keys() <= {"classification", "segmentation", "detection", "boxes"} for output in seen
        )
        assert names(folder) == FILES - {"features"}
        metrics = read(folder, "metrics.json")
        assert (metrics["feature_weight"], metrics["anchor_weight"], metrics["cyclic"]) == (0, 0, False)
        rows = read(folder, "rounds.json")["rounds"]
        forgotten = rows[0]["headline"]["size"] - rows[1]["headline"]["size"]  # the others end with the last round
        assert read(folder, "rounds.json")["retention"]["forgetting"] == pytest.approx(forgotten)

    def test_without_validation_the_last_round_is_kept(self, tmp_path, make_run):
        run = make_run(tmp_path / "run", evaluator=None, tester=None)
        folder = run.run()
        assert names(folder) == FILES - {"evaluation"}
        assert read(folder, "rounds.json") == {
            "tasks": [],
            "headlines": {},
            "keep": "last",
            "rounds": [],
            "retention": None,
        }
        assert read(folder, "metrics.json")["kept_round"] == 2

    def test_best_round(self, tmp_path, make_run, monkeypatch):
        run = make_run(tmp_path / "run", keep="best", tester=None)
        scores, found = iter([0.9, 0.1]), run.evaluator._finish

        def finish(engine):
            found(engine)
            engine.state.metrics["mean"] = next(scores)

        monkeypatch.setattr(run.evaluator, "_finish", finish)
        run.evaluator.add_event_handler(Events.EPOCH_COMPLETED, finish)
        run.run()
        metrics = read(tmp_path / "run", "metrics.json")
        assert (metrics["kept_round"], metrics["mean_headline"]) == (1, 0.9)

    def test_testing_data_are_evaluated_once(self, tmp_path, make_run):
        folder = make_run(tmp_path / "run", validate_every=2).run()
        tasks = read(folder, "metrics.json")["tasks"]
        assert all(entry["testing"] and entry["testing_samples"] == 2 for entry in tasks.values())
        assert [row["round"] for row in read(folder, "rounds.json")["rounds"]] == [2]

    def test_other_ranks_write_nothing(self, tmp_path, make_run, monkeypatch):
        run = make_run(tmp_path / "run", parts={"memory": False}, tester=None)
        run.main = run.selector.writes = False
        monkeypatch.setattr(multitask_run, "read_weights", lambda path: run.model.state_dict())
        monkeypatch.setattr(
            multitask_run, "report_result", lambda *a, **k: {"metrics": {}, "intervals": {}, "cases": 2}
        )
        run.run()
        assert not any((tmp_path / "run").iterdir())


def crash_at_iteration(number):
    def plant(monkeypatch, run):
        run.trainer.add_event_handler(Events.ITERATION_STARTED(once=number), lambda: (_ for _ in ()).throw(Crash))

    return plant


def crash_before_validation(monkeypatch, run):
    monkeypatch.setattr(run.evaluator, "run", lambda: (_ for _ in ()).throw(Crash))


def crash_in(function):
    def plant(monkeypatch, run):
        monkeypatch.setattr(multitask_run, function, lambda *arguments, **options: (_ for _ in ()).throw(Crash))

    return plant


def crash_after(step):
    """The work of a step is done, its record is not written."""

    def plant(monkeypatch, run):
        work = getattr(run, f"_{step}")
        monkeypatch.setattr(run, f"_{step}", lambda: (work(), (_ for _ in ()).throw(Crash)))

    return plant


CRASHES = {
    "before the first iteration of a round": crash_at_iteration(6),
    "before the validation": crash_before_validation,
    "before metrics_json": crash_in("run_metrics"),
    **{f"after {step}": crash_after(step) for step in STEPS[:-1]},
}


@pytest.mark.usefixtures("no_pictures")
class TestCrashes:
    @pytest.fixture(scope="class")
    def whole(self, tmp_path_factory):
        return tmp_path_factory.mktemp("crashes") / "whole"

    @pytest.fixture
    def expected(self, whole, make_run):
        if not whole.exists():
            make_run(whole).run()
        return result(whole)

    @pytest.fixture
    def make_run(self, make_run, multitask_tasks):
        """Two of the tasks: 3 + 2 iterations a round."""
        tasks = {name: multitask_tasks[name] for name in ("size", "organs")}
        return lambda folder, **options: make_run(folder, parts={"tasks": tasks}, tester=None, **options)

    @pytest.mark.parametrize("moment", CRASHES)
    def test_same_command_again_ends_with_the_same_result(self, moment, tmp_path, expected, make_run, monkeypatch):
        folder, options = tmp_path / "run", {"checkpoint_seconds": 0.0}
        with monkeypatch.context() as patch:
            run = make_run(folder, **options)
            CRASHES[moment](patch, run)
            with pytest.raises(Crash):
                run.run()
        make_run(folder, **options).run()
        assert result(folder) == expected
        assert names(folder) == FILES

    def test_goes_on_in_the_middle_of_a_visit(self, tmp_path, expected, make_run):
        """The anchor of the visit is that of its beginning, not of the resume; cached features come back."""
        folder = tmp_path / "run"
        run, seen = make_run(folder, checkpoint_seconds=0.0), []
        visits = [run.trainer.data_loader.place(number).place for number in range(10)]
        inside = next(number for number in range(5, 10) if visits[number] == 1)
        crash_at_iteration(inside + 1)(None, run)
        with pytest.raises(Crash):
            run.run()
        for path in (folder / "features").iterdir():
            path.unlink()
        again = make_run(folder, checkpoint_seconds=0.0)
        again.trainer.add_event_handler(Events.ITERATION_STARTED, lambda engine: seen.append(engine.state.iteration))
        again.run()
        assert seen[0] == inside + 1 and result(folder) == expected

    def test_interrupted_during_validation(self, tmp_path, expected, make_run):
        """Ctrl-C lets the validation end, writes a checkpoint and stops."""
        run = make_run(tmp_path / "run", checkpoint_seconds=1e9)
        run.evaluator.add_event_handler(Events.ITERATION_COMPLETED(once=1), lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            run.run()
        assert {"run.json", "checkpoint.pt", "best-1.pt"} <= names(tmp_path / "run")
        make_run(tmp_path / "run").run()
        assert result(tmp_path / "run") == expected


@pytest.mark.usefixtures("no_pictures")
def test_where_the_data_lie_is_no_setting():
    """The same data may be mounted elsewhere tomorrow."""
    tasks = {"size": {"kind": "classification", "data_manifest": "/a/m.json", "dataset_dir": "/a", "headline": "auc"}}
    assert without_places({"seed": 1, "tasks": tasks}) == {
        "seed": 1,
        "tasks": {"size": {"kind": "classification", "headline": "auc"}},
    }
    assert without_places({"seed": 1}) == {"seed": 1}


def test_tracking_has_one_metric_for_each_task_and_is_nested(tmp_path, make_run):
    from mlflow import MlflowClient

    from medcoss_components.tracking.runs import open_tracking

    with open_tracking(None, tmp_path).start_run("muscle", experiment="tests") as parent:
        options = {"tracking": True, "tracking_dir": tmp_path, "experiment": "tests", "parent_run_id": parent.run_id}
        make_run(tmp_path / "02_multitask", tester=None, **options).run()
    client = MlflowClient(f"sqlite:///{tmp_path}/mlruns.db")
    runs = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    tracked = next(run for run in runs if run.info.run_name == "02_multitask")
    assert tracked.info.status == "FINISHED" and tracked.data.tags["mlflow.parentRunId"] == parent.run_id
    assert (tracked.data.tags["task"], tracked.data.tags["tasks"]) == ("multitask", "size, organs, spots")
    steps = {
        name: [entry.step for entry in client.get_metric_history(tracked.info.run_id, name)]
        for name in ("round/size", "round/organs", "round/spots", "round/mean", "final_validation/organs/dice")
    }
    assert list(steps.values()) == [[7, 14]] * 4 + [[14]]
    logged = {artifact.path for artifact in client.list_artifacts(tracked.info.run_id)}
    assert {"run.json", "metrics.json", "history.json", "rounds.json", "evaluation"} <= logged
    assert {"size/classification", "organs/segmentation", "spots/boxes", "size/feature"} <= set(tracked.data.metrics)


def test_every_task_of_a_split_is_evaluated(tmp_path, multitask, multitask_tasks, no_pictures):
    tasks = {name: multitask_tasks[name] for name in ("size", "organs")}
    evaluator = multitask(tasks=tasks).tester
    options = {"output_dir": tmp_path, "split": "testing", "title": "MUSCLE", "tracking": False}
    found = evaluate_tasks(evaluator=evaluator, **options)
    assert names(tmp_path) == {"size", "organs"} and names(tmp_path / "organs") == {"testing"}
    assert found["organs"]["dice"] == evaluator.evaluators["organs"].result().metrics()["dice"]


@pytest.mark.slow
def test_two_ranks_give_what_one_process_gives(tmp_path, multitask_tasks, make_run, no_pictures, two_processes):
    """Classification and detection; the batch norm of a segmentation head has statistics of each rank's own rows."""
    tasks = {name: multitask_tasks[name] for name in ("size", "spots")}
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    two_processes(Path(__file__).with_name("multitask_parts.py"), tmp_path)
    alone = make_run(tmp_path / "alone", parts={"tasks": tasks}, tester=None).run()
    both = tmp_path / "run2"
    one, two = (read_weights(folder) for folder in (alone, both))
    assert one.keys() == two.keys()
    differences = {name: float((one[name] - two[name]).abs().max()) for name in one if one[name].is_floating_point()}
    assert max(differences.values()) < 1e-4, max(differences.items(), key=lambda entry: entry[1])
    losses = [[row[4] for row in read(folder, "history.json")["rows"]] for folder in (alone, both)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2, abs=1e-6)
    features = [sorted((folder / "features").iterdir()) for folder in (alone, both)]
    assert [path.name for path in features[0]] == [path.name for path in features[1]]
    assert torch.equal(*(torch.tensor(len(group)) for group in features))
