"""Step 1 as a run: what it leaves, how it goes on, what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Events

from medcoss_components.engines.contrastive_run import ChosenRows
from medcoss_components.errors import InputError
from medcoss_components.files import read_json
from medcoss_components.weights import load_initial_weights, read_weights


@pytest.fixture(scope="module")
def parts():
    """The module that puts tiny runs together."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        import contrastive_parts

    return contrastive_parts


@pytest.fixture
def no_pictures(monkeypatch):
    """Leave the pictures out, where a test does not look at them."""
    from medcoss_components.engines import contrastive_run

    monkeypatch.setattr(contrastive_run, "write_previews", lambda run: (run.folder / "previews").mkdir(exist_ok=True))


def state(folder):
    return read_weights(folder / "model.pt")


class TestWholeRun:
    @pytest.fixture(scope="class")
    def folder(self, parts, tmp_path_factory):
        dataset = parts.Films()
        dataset.dataset_names, dataset.datasets = ["a", "b"], np.array([0] * 6 + [1] * 4)
        dataset.counts, dataset.body_parts = {"a": 6, "b": 4}, ["chest"] * 5 + [None] * 5
        return parts.make_run(tmp_path_factory.mktemp("step") / "run", parts.make_trainer(dataset), name="step 1").run()

    def test_leaves(self, folder):
        names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        pictures = {f"previews/{name}.png" for name in ("curves", "views", "datasets", "body_parts")}
        assert names == {"model.pt", "run.json", "history.json", "metrics.json"} | pictures
        assert {name.split(".")[0] for name in state(folder)} == {"backbone", "head"}

    def test_numbers(self, folder):
        metrics, history = read_json(folder / "metrics.json"), read_json(folder / "history.json")
        losses = [row[4] for row in history["rows"] if row[3] == "contrastive"]
        assert (metrics["first_loss"], metrics["final_loss"]) == (losses[0], losses[-1]) and len(losses) == 6
        assert {row[3] for row in history["rows"]} == {"contrastive", "accuracy", "spread"}
        expected = {"name": "step 1", "samples": 10, "epochs": 2, "iterations": 6, "queue_size": 6, "batch_size": 4}
        assert {key: metrics[key] for key in expected} == expected
        assert metrics["datasets"] == {"a": 6, "b": 4} and metrics["body_parts"] == {"chest": 5}
        assert set(metrics["validation"]) == {"top1", "spread"} and 0 < metrics["feature_spread"] <= 1
        assert set(metrics["seconds"]) == {"prepare", "train", "evaluate", "embed"}

    def test_backbone_starts_another_network(self, folder, parts):
        other = parts.make_network(dimension=5)
        report = load_initial_weights(other, folder)
        assert report.loaded and all(name.startswith("backbone.") for name in report.loaded)
        assert not report.unexpected and not report.initialised
        assert all(name.startswith("head.") for name in report.untouched)

    def test_finished_run_does_nothing(self, folder, parts):
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.p*")}
        dataset = parts.Films()
        parts.make_run(folder, parts.make_trainer(dataset), name="step 1").run()
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.p*")} == before


class TestGoesOn:
    def interrupted(self, parts, folder, iteration, **options):
        run = parts.make_run(folder, parts.make_trainer(**options), checkpoint_seconds=0.0)

        def stop(engine):
            raise ZeroDivisionError

        run.trainer.add_event_handler(Events.ITERATION_STARTED(once=iteration), stop)
        with pytest.raises(ZeroDivisionError):
            run.run()

    @pytest.mark.parametrize("options", [{}, {"accumulation_steps": 2}], ids=["plain", "accumulated"])
    @pytest.mark.parametrize("iteration", [2, 5])
    def test_same_bits_after_an_interruption(self, options, iteration, parts, tmp_path, no_pictures):
        whole = parts.make_run(tmp_path / "whole", parts.make_trainer(**options))
        whole.run()
        self.interrupted(parts, tmp_path / "broken", iteration, **options)
        resumed = parts.make_run(tmp_path / "broken", parts.make_trainer(**options))
        resumed.run()
        one, other = state(tmp_path / "whole"), state(tmp_path / "broken")
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
        contrasts = [run.trainer.contrast.state_dict() for run in (whole, resumed)]
        assert all(torch.equal(contrasts[0][name], contrasts[1][name]) for name in contrasts[0])
        rows = [read_json(tmp_path / name / "history.json")["rows"] for name in ("whole", "broken")]
        assert [row[:6] for row in rows[0]] == [row[:6] for row in rows[1]]
        metrics = [read_json(tmp_path / name / "metrics.json") for name in ("whole", "broken")]
        assert metrics[0]["validation"] == metrics[1]["validation"]
        assert metrics[0]["feature_spread"] == metrics[1]["feature_spread"]

    @pytest.mark.parametrize("step", ["evaluate", "embed", "artefacts"])
    def test_after_each_step(self, step, parts, tmp_path, no_pictures, monkeypatch):
        run = parts.make_run(tmp_path / "run")
        with monkeypatch.context() as patch:
            patch.setattr(run, f"_{step}", lambda: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                run.run()
        again = parts.make_run(tmp_path / "run")
        monkeypatch.setattr(again, "_train", lambda: 1 / 0)
        again.run()
        assert read_json(tmp_path / "run" / "metrics.json")["final_loss"] > 0
        assert not (tmp_path / "run" / "checkpoint.pt").exists()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"queue_size": 5}, "contrast: .*'queue_size': 6.* -> .*'queue_size': 5"),
            ({"network": {"dimension": 5}}, "initial_weights"),
            ({"views": {"degrees": 5.0}}, "views: "),
        ],
    )
    def test_other_settings_refused(self, options, message, parts, tmp_path):
        parts.make_run(tmp_path / "run")._open()
        if "network" in options:
            options = {"network": parts.make_network(**options["network"])}
        if "views" in options:
            options = {"preprocessing": parts.make_preprocessing(views=options["views"])}
        with pytest.raises(InputError, match=f"begun with other settings .*{message}"):
            parts.make_run(tmp_path / "run", parts.make_trainer(**options))._open()


class TestOtherRanks:
    def test_write_nothing(self, parts, tmp_path, monkeypatch):
        from medcoss_components.engines import contrastive_run, recorded_run

        trainer = parts.make_trainer()
        monkeypatch.setattr(recorded_run.idist, "get_rank", lambda: 1)
        monkeypatch.setattr(contrastive_run, "embed_into_file", lambda *arguments, **options: None)
        monkeypatch.setattr(contrastive_run.np, "load", lambda path: np.eye(3))
        run = parts.make_run(tmp_path / "run", trainer, evaluator=None)
        taken = {name: torch.zeros_like(value) for name, value in run.model.state_dict().items()}
        monkeypatch.setattr(contrastive_run, "read_weights", lambda path: taken)
        run.run()
        assert not any((tmp_path / "run").iterdir())
        assert not any(value.any() for value in run.model.state_dict().values())  # those of rank 0's file


class TestWithoutParts:
    def test_no_evaluator_no_body_parts(self, parts, tmp_path):
        folder = parts.make_run(tmp_path / "run", evaluator=None, embedding_samples=4).run()
        metrics = read_json(folder / "metrics.json")
        assert metrics["validation"] is None and metrics["datasets"] == {} and metrics["body_parts"] == {}
        assert not (folder / "previews" / "body_parts.png").exists()

    def test_few_embeddings_refused(self, parts, tmp_path):
        with pytest.raises(InputError, match="embedding_samples must be at least 2, received 1"):
            parts.make_run(tmp_path / "run", embedding_samples=1)

    def test_chosen_rows(self, parts):
        films = parts.Films()
        rows = ChosenRows(films, np.array([7, 2]))
        assert len(rows) == 2 and rows.ids == ["film-07", "film-02"]
        assert np.array_equal(rows.gather([1, 0]), films.samples[[2, 7]])


def test_tracked_inside_another_run(parts, tmp_path, no_pictures):
    import mlflow

    from medcoss_components.tracking.runs import open_tracking

    tracker = open_tracking(None, tmp_path)
    with tracker.start_run("muscle") as parent:
        options = {"tracking": True, "tracking_dir": tmp_path, "parent_run_id": parent.run_id}
        folder = parts.make_run(tmp_path / "run", **options).run()
    run_id = read_json(folder / "run.json")["values"]["run_id"]
    client = mlflow.MlflowClient(tracking_uri=tracker.uri)
    run = client.get_run(run_id)
    assert run.data.tags["mlflow.parentRunId"] == parent.run_id and run.info.status == "FINISHED"
    assert {"xray/contrastive", "xray/accuracy", "validation/top1", "feature_spread"} <= run.data.metrics.keys()
    assert {entry.path for entry in client.list_artifacts(run_id)} >= {"metrics.json", "run.json"}
