"""A fine-tuning run: what it writes, which epoch it keeps, and that a crash at any moment changes nothing."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from ignite.engine import Events

from medcoss_components.engines import finetuning_run
from medcoss_components.engines.finetuning_artefacts import summary_line, write_mistakes
from medcoss_components.engines.finetuning_run import STEPS, evaluate_task
from medcoss_components.errors import InputError
from medcoss_components.tracking import task_report
from medcoss_components.weights import read_weights

FILES = {"model.pt", "metrics.json", "history.json", "validation.json", "run.json", "evaluation"}
TIMES = ("training_seconds", "peak_memory_bytes", "name")


class Crash(RuntimeError):
    """What a test throws."""


def names(folder):
    return {entry.name for entry in folder.iterdir()}


def read(folder, name):
    return json.loads((folder / name).read_text())


def read_lines(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def result(folder):
    """What decides the worth of a run, without times."""
    metrics = {key: value for key, value in read(folder, "metrics.json").items() if key not in TIMES}
    losses = [row[:6] for row in read(folder, "history.json")["rows"]]
    return (folder / "model.pt").read_bytes(), read(folder, "validation.json"), metrics, losses


@pytest.fixture
def make_run(make_task):
    """``make_run(folder, task, modality, parts={...}, **options of FineTuning)``."""

    def build(folder, task="classification", name="report", *, parts=None, **options):
        made = make_task(task, name, **(parts or {}))
        from task_parts import build_run

        return build_run(made, folder, **options)

    return build


@pytest.fixture
def no_pictures(monkeypatch):
    """Leave the report out, where a test does not look at it."""

    def write(result, folder, **options):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").write_text("{}")

    monkeypatch.setattr(task_report, "write_task_report", write)


class TestWholeRun:
    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory):
        """One run with its report, shared by the tests that only look at it."""
        return tmp_path_factory.mktemp("whole") / "pubmed"

    @pytest.fixture(autouse=True)
    def run(self, folder, make_run):
        if not folder.exists():
            make_run(folder, parts={"max_epochs": 3}).run()

    def test_writes_every_artefact_and_leaves_nothing_else(self, folder):
        assert names(folder) == FILES | {"vocabulary.json"}
        for split in ("validation", "testing"):
            assert {"cases.csv", "metrics.json", "REPORT.html", "roc.png"} <= names(folder / "evaluation" / split)

    def test_validation_has_a_row_per_epoch_and_the_best_one(self, folder):
        validation = read(folder, "validation.json")
        assert [(row["epoch"], row["iteration"]) for row in validation["rows"]] == [(1, 3), (2, 6), (3, 9)]
        scores = [row["score"] for row in validation["rows"]]
        assert validation["best_score"] == max(scores)
        assert validation["best_epoch"] == 1 + scores.index(max(scores))
        for row in validation["rows"]:
            assert row["score"] == pytest.approx(sum(row["metrics"][name] for name in ("accuracy", "auc", "f1")))

    def test_metrics(self, folder):
        metrics = read(folder, "metrics.json")
        assert (metrics["name"], metrics["task"], metrics["modality"]) == ("pubmed", "classification", "report")
        counts = [metrics[name] for name in ("samples", "validation_samples", "testing_samples")]
        assert counts == [8, 3, 3] and (metrics["epochs"], metrics["iterations"]) == (3, 9)
        assert metrics["parameters"] == metrics["trainable_parameters"] > 10_000
        assert metrics["network"]["width"] == 24 and metrics["init"] is None
        score = sum(metrics["validation"][name] for name in ("accuracy", "auc", "f1"))
        assert score == pytest.approx(metrics["best_score"])
        low, high = metrics["intervals"]["testing"]["accuracy"]
        assert low <= metrics["testing"]["accuracy"] <= high
        assert all(metrics[name] > 0 for name in ("first_loss", "final_loss", "training_seconds"))

    def test_report_and_metrics_agree(self, folder):
        for split in ("validation", "testing"):
            report = read(folder / "evaluation" / split, "metrics.json")
            assert report["metrics"] == read(folder, "metrics.json")[split]
            assert report["intervals"] == read(folder, "metrics.json")["intervals"][split]

    def test_weights_are_those_of_the_best_epoch(self, folder, make_task):
        parts = make_task("classification", "report")
        parts.network.load_state_dict(read_weights(folder))
        found = parts.validator.evaluate().metrics()
        assert found["ece"] == pytest.approx(read(folder, "metrics.json")["validation"]["ece"])

    def test_second_run_does_nothing(self, folder, make_run, monkeypatch):
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != "run.json"}
        (folder / "checkpoint.pt").touch()  # leftovers of a killed clean-up
        (folder / "best-7.pt").touch()
        again = make_run(folder, parts={"max_epochs": 3})
        monkeypatch.setattr(again.trainer, "run", lambda: pytest.fail("trained again"))
        assert again.run() == folder
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != "run.json"} == before

    def test_other_settings_refused(self, folder, make_run):
        with pytest.raises(InputError, match="begun with other settings .*seed: 0 -> 1"):
            make_run(folder, parts={"max_epochs": 3}, settings={"seed": 1}).run()

    def test_other_data_or_weights_refused(self, folder, make_run):
        with pytest.raises(InputError, match="begun with other settings .*initial_weights"):
            make_run(folder, parts={"seed": 3}).run()
        with pytest.raises(InputError, match="begun with other settings .*data: .*testing"):
            make_run(folder, tester=None).run()


@pytest.mark.parametrize(
    ("task", "name"), [("classification", "xray"), ("classification", "ct"), ("segmentation", "xray")]
)
def test_every_kind_of_task(task, name, tmp_path, make_run, no_pictures):
    folder = make_run(tmp_path / "run", task, name).run()
    metrics = read(folder, "metrics.json")
    assert names(folder) == FILES and metrics["modality"] == name
    assert metrics["testing"]["dice" if task == "segmentation" else "auc"] is not None


def test_volumes_are_segmented_and_reported(tmp_path, make_run):
    folder = make_run(tmp_path / "liver", "segmentation", "ct", parts={"source_geometry": True}).run()
    rows = read(folder, "validation.json")["rows"]
    assert all("hd95" not in row["metrics"] for row in rows)  # left out while dice selects
    assert {"dice", "dice/core", "hd95", "surface_dice"} <= set(read(folder, "metrics.json")["testing"])
    assert {"dice.png", "worst_1.png", "REPORT.html"} <= names(folder / "evaluation" / "testing")


@pytest.mark.usefixtures("no_pictures")
class TestVariants:
    def test_without_validation_the_last_epoch_is_kept(self, tmp_path, make_run):
        run = make_run(tmp_path / "run", evaluator=None)
        metrics = read(run.run(), "metrics.json")
        assert (metrics["best_epoch"], metrics["best_score"], metrics["selection"]) == (2, None, "last epoch")
        assert metrics["validation"] is None and metrics["validation_samples"] == 0
        assert names(tmp_path / "run" / "evaluation") == {"testing"}
        assert all(torch.equal(value, run.model.state_dict()[key]) for key, value in read_weights(run.folder).items())

    def test_without_any_labelled_data_but_training(self, tmp_path, make_run):
        folder = make_run(tmp_path / "run", evaluator=None, tester=None).run()
        assert names(folder) == FILES - {"evaluation"} | {"vocabulary.json"}
        assert read(folder, "metrics.json")["intervals"] == {}

    def test_distances_are_computed_when_they_select(self, tmp_path, make_run):
        folder = make_run(tmp_path / "run", "segmentation", "xray", selection="dice+surface_dice").run()
        assert all("surface_dice" in row["metrics"] for row in read(folder, "validation.json")["rows"])

    def test_unknown_selection_refused(self, tmp_path, make_run):
        with pytest.raises(InputError, match="'jaccard' is no metric of this task; choose from accuracy"):
            make_run(tmp_path / "run", selection="jaccard").run()

    def test_frozen_encoder_is_counted(self, tmp_path, make_run):
        run = make_run(tmp_path / "run", parts={"frozen": True})
        run.model.__dict__["load_report"] = "12 parameters loaded"
        metrics = read(run.run(), "metrics.json")
        head = sum(parameter.numel() for parameter in run.model.head.parameters())
        assert metrics["trainable_parameters"] == head < metrics["parameters"]
        assert metrics["init"] == "12 parameters loaded"

    def test_mistakes_are_shown_on_demand(self, tmp_path, make_run):
        run = make_run(tmp_path / "run", show_text=True)
        folder = run.run()
        lines = read_lines(folder / "evaluation" / "testing" / "mistakes.csv")
        wrong = round(3 * (1 - read(folder, "metrics.json")["testing"]["accuracy"]))
        assert len(lines) == wrong

    def test_a_mistake_has_its_text(self, tmp_path, make_task, vocabulary):
        evaluator = make_task("classification", "report").validator
        found = evaluator.evaluate()
        object.__setattr__(found, "targets", 1 - found.predicted)  # all wrong
        write_mistakes(found, evaluator.dataset, vocabulary, tmp_path / "mistakes.csv")
        lines = read_lines(tmp_path / "mistakes.csv")
        assert [float(line["confidence"]) for line in lines] == sorted(
            (round(float(value), 4) for value in found.probabilities.max(axis=1)), reverse=True
        )
        row = evaluator.dataset.ids.index(lines[0]["case"])
        assert lines[0]["text"] == vocabulary.decode(evaluator.dataset.gather([row])[0].tolist())

    def test_other_ranks_write_nothing(self, tmp_path, make_task, monkeypatch):
        parts = make_task("classification", "xray")
        from task_parts import build_run

        monkeypatch.setattr(finetuning_run.idist, "get_rank", lambda: 1)
        run = build_run(parts, tmp_path / "run")
        monkeypatch.setattr(finetuning_run, "read_weights", lambda path: run.model.state_dict())
        run.run()
        assert not any((tmp_path / "run").iterdir())


def crash_at_iteration(number):
    def plant(monkeypatch, run):
        run.trainer.add_event_handler(Events.ITERATION_STARTED(once=number), lambda: (_ for _ in ()).throw(Crash))

    return plant


def crash_before_validation(monkeypatch, run):
    """The checkpoint of the epoch's last iteration is there, its validation is not."""
    run.trainer.add_event_handler(Events.EPOCH_STARTED(once=1), lambda: None)
    monkeypatch.setattr(run.evaluator, "run", lambda: (_ for _ in ()).throw(Crash))


def crash_after_validation(monkeypatch, run):
    """The best weights are there, no checkpoint knows of them."""

    def fail(iteration, metrics):
        raise Crash

    run.selector.on_validated = fail


def crash_in(function):
    def plant(monkeypatch, run):
        monkeypatch.setattr(finetuning_run, function, lambda *arguments, **options: (_ for _ in ()).throw(Crash))

    return plant


def crash_after(step):
    """The work of a step is done, its record is not written."""

    def plant(monkeypatch, run):
        work = getattr(run, f"_{step}")
        monkeypatch.setattr(run, f"_{step}", lambda: (work(), (_ for _ in ()).throw(Crash)))

    return plant


CRASHES = {
    **{f"before iteration {number}": crash_at_iteration(number) for number in (1, 2, 4, 6)},
    "before the validation": crash_before_validation,
    "after the validation": crash_after_validation,
    "before the report": crash_in("report_result"),
    "before model_pt": crash_in("save_weights"),
    "before metrics_json": crash_in("run_metrics"),
    **{f"after {step}": crash_after(step) for step in STEPS},
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

    @pytest.mark.parametrize("seconds", [0.0, 1e9])
    @pytest.mark.parametrize("moment", CRASHES)
    def test_same_command_again_ends_with_the_same_result(
        self, moment, seconds, tmp_path, expected, make_run, monkeypatch
    ):
        folder = tmp_path / "run"
        with monkeypatch.context() as patch:
            run = make_run(folder, checkpoint_seconds=seconds)
            CRASHES[moment](patch, run)
            with pytest.raises(Crash):
                run.run()
        make_run(folder, checkpoint_seconds=seconds).run()
        assert result(folder) == expected
        assert names(folder) == FILES | {"vocabulary.json"}

    def test_training_goes_on_in_the_middle_of_an_epoch(self, tmp_path, make_run):
        run, seen = make_run(tmp_path / "run", checkpoint_seconds=0.0), []
        crash_at_iteration(5)(None, run)
        with pytest.raises(Crash):
            run.run()
        again = make_run(tmp_path / "run", checkpoint_seconds=0.0)
        again.trainer.add_event_handler(Events.ITERATION_STARTED, lambda engine: seen.append(engine.state.iteration))
        again.run()
        assert seen == [5, 6]

    def test_steps_done_are_not_repeated(self, tmp_path, make_run, monkeypatch):
        with monkeypatch.context() as patch:
            run = make_run(tmp_path / "run")
            crash_in("run_metrics")(patch, run)
            with pytest.raises(Crash):
                run.run()
        done, again = [], make_run(tmp_path / "run")
        for step in STEPS:
            work = getattr(again, f"_{step}")
            monkeypatch.setattr(again, f"_{step}", lambda step=step, work=work: done.append(step) or work())
        again.run()
        assert done == ["artefacts"]

    def test_interrupted_during_validation(self, tmp_path, expected, make_run):
        """Ctrl-C lets the validation end, writes a checkpoint and stops."""
        run = make_run(tmp_path / "run", checkpoint_seconds=1e9)
        handle = run.evaluator.add_event_handler(
            Events.ITERATION_COMPLETED(once=1), lambda: os.kill(os.getpid(), signal.SIGINT)
        )
        with pytest.raises(KeyboardInterrupt):
            run.run()
        handle.remove()
        assert names(tmp_path / "run") == {"run.json", "checkpoint.pt", "best-1.pt"}
        again, seen = make_run(tmp_path / "run"), []
        again.trainer.add_event_handler(Events.ITERATION_STARTED, lambda engine: seen.append(engine.state.iteration))
        again.run()
        assert seen == [4, 5, 6] and result(tmp_path / "run") == expected


@pytest.mark.usefixtures("no_pictures")
class TestTracking:
    def test_run_holds_settings_metrics_and_files(self, tmp_path, make_run):
        from mlflow import MlflowClient

        options = {"tracking": True, "tracking_dir": tmp_path, "experiment": "tests", "settings": {"batch_size": 3}}
        run = make_run(tmp_path / "pubmed", **options)
        run.run()
        client = MlflowClient(f"sqlite:///{tmp_path}/mlruns.db")
        (tracked,) = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
        assert (tracked.info.run_name, tracked.info.status) == ("pubmed", "FINISHED")
        assert tracked.data.params["batch_size"] == "3"
        assert (tracked.data.tags["task"], tracked.data.tags["modality"]) == ("classification", "report")
        assert tracked.data.tags["manifest_hash"] == run.dataset.manifest_hash
        steps = {
            name: [entry.step for entry in client.get_metric_history(tracked.info.run_id, name)]
            for name in ("report/classification", "validation/accuracy", "validation/score", "final_testing/auc")
        }
        assert list(steps.values()) == [[1, 2, 3, 4, 5, 6], [3, 6], [3, 6], [6]]
        rates = [entry.value for entry in client.get_metric_history(tracked.info.run_id, "learning_rate")]
        assert rates == pytest.approx([1e-3] * 3 + [1e-3 * 0.5**0.9] * 3)
        logged = {artifact.path for artifact in client.list_artifacts(tracked.info.run_id)}
        assert {"run.json", "metrics.json", "history.json", "validation.json", "evaluation"} <= logged

        client.update_run(tracked.info.run_id, status="RUNNING")  # as after kill -9 between the last step and closing
        make_run(tmp_path / "pubmed", **options).run()
        assert client.get_run(tracked.info.run_id).info.status == "FINISHED"


class TestEvaluateTask:
    def test_report_line_and_metrics(self, tmp_path, make_task, capsys):
        from mlflow import MlflowClient

        evaluator = make_task("classification", "report").tester
        metrics = evaluate_task(evaluator=evaluator, output_dir=tmp_path, split="testing", title="Sentences")
        assert {"cases.csv", "metrics.json", "REPORT.html"} <= names(tmp_path / "testing")
        assert metrics["accuracy"] == evaluator.result().metrics()["accuracy"]
        line = capsys.readouterr().out
        assert line.startswith("testing, 3 cases: accuracy") and line.count("\n") == 1
        client = MlflowClient(f"sqlite:///{tmp_path}/mlruns.db")
        (tracked,) = client.search_runs([client.get_experiment_by_name("medcoss").experiment_id])
        assert (tracked.info.run_name, tracked.info.status) == ("Sentences (testing)", "FINISHED")
        assert tracked.data.metrics["testing/accuracy"] == metrics["accuracy"]

    def test_line_without_intervals(self):
        found = {"metrics": {"accuracy": 0.75, "auc": None}, "intervals": {}, "cases": 1}
        assert summary_line(found, "testing", Path("out")) == "testing, 1 cases: accuracy 0.750 -> out"


TWO_RANKS = {
    ("classification", "xray"): [3, 8, 18],
    ("classification", "ct"): [1, 6, 8, 12],
    ("segmentation", "ct"): [1, 6, 8, 12],
}


@pytest.mark.slow
class TestTwoRanks:
    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory):
        return tmp_path_factory.mktemp("ranks")

    @pytest.fixture
    def together(self, folder, task_manifests, store_dir, tiny_sizes, two_processes):
        """Folders of both tasks, run once by two gloo processes under torchrun."""
        if (folder / "tasks.json").exists():
            return folder
        tasks = [
            {
                "task": task,
                "manifest": str(task_manifests[task, name]),
                "modality": {"name": name, "input_shape": shape},
                "store_dir": str(store_dir),
                "sizes": tiny_sizes,
            }
            for (task, name), shape in TWO_RANKS.items()
        ]
        (folder / "tasks.json").write_text(json.dumps(tasks))
        two_processes(Path(__file__).with_name("task_parts.py"), folder / "tasks.json", folder)
        return folder

    @pytest.mark.parametrize(("task", "name"), TWO_RANKS)
    def test_give_what_one_process_gives(self, task, name, together, tmp_path, make_run):
        """Batches of 3 and of 2: rows 2 + 1 and 1 + 1; three cases: the second rank repeats one."""
        folders = (make_run(tmp_path / task, task, name).run(), together / f"{task}_{name}")
        losses = [[row[4] for row in read(folder, "history.json")["rows"]] for folder in folders]
        assert losses[1] == pytest.approx(losses[0], abs=1e-5)
        rows = [read(folder, "validation.json")["rows"] for folder in folders]
        assert [row["score"] for row in rows[1]] == pytest.approx([row["score"] for row in rows[0]], abs=1e-4)
        first, second = (read_weights(folder) for folder in folders)
        for weights in (first, second):  # attention does not depend on the bias of the keys: its gradient is rounding
            for key in weights:
                if key.endswith("qkv.bias"):
                    weights[key] = torch.cat([weights[key].chunk(3)[0], weights[key].chunk(3)[2]])
        differences = {key: float((first[key] - second[key]).abs().max()) for key in first}
        assert max(differences.values()) < 1e-5, sorted(differences.items(), key=lambda pair: -pair[1])[:3]
        assert names(folders[1]) == names(folders[0])
        assert read(folders[1], "metrics.json")["testing_samples"] == 3
