"""MLflow runs: nesting, buffering, resume, faults, and the twin that records nothing."""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import sys

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from medcoss_components.errors import InputError
from medcoss_components.tracking import mlflow_runs, runs
from medcoss_components.tracking.runs import KEY_TAG, PARENT_TAG, Tracker, open_tracking


@pytest.fixture
def tracker(output_dir):
    return open_tracking(None, output_dir)


@pytest.fixture
def client(tracker):
    return MlflowClient(tracker.uri)


def all_runs(client):
    return client.search_runs([entry.experiment_id for entry in client.search_experiments()])


def steps(client, run, key):
    return [(metric.step, metric.value) for metric in client.get_metric_history(run.run_id, key)]


class TestOpening:
    def test_default_database_lies_in_the_output_folder(self, output_dir, tracker):
        assert tracker.uri == f"sqlite:///{output_dir}/mlruns.db"
        assert tracker.enabled

    def test_environment_variable_is_honoured(self, output_dir, monkeypatch):
        uri = f"sqlite:///{output_dir}/mlruns.db"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert open_tracking(None, output_dir.parent / "other").uri == uri

    def test_argument_wins_over_the_environment(self, output_dir, monkeypatch):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        uri = f"sqlite:///{output_dir}/mlruns.db"
        assert open_tracking(uri, output_dir).uri == uri

    def test_telemetry_is_off(self, tracker):
        assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"

    @pytest.mark.parametrize("uri", ["file:///tmp/x", "runs/demo"])
    def test_folder_addresses_are_refused(self, uri, tmp_path):
        with pytest.raises(InputError, match=f"tracking uri '{uri}'.*sqlite"):
            open_tracking(uri, tmp_path)

    @pytest.mark.parametrize("name", ["50%", "why?"])
    def test_path_that_an_address_cannot_carry(self, name, tmp_path, monkeypatch):
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        with pytest.raises(InputError, match="cannot lie in a path with '%' or '\\?'"):
            open_tracking(None, tmp_path / name)

    def test_file_that_is_no_database(self, tmp_path):
        (tmp_path / "notes.db").write_text("these are notes, not a database\n" * 100)
        with pytest.raises(InputError, match="notes.db: cannot be written .*not a database"):
            open_tracking(f"sqlite:///{tmp_path}/notes.db", tmp_path)

    def test_folder_that_cannot_be_made(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match="mlruns.db: cannot be written"):
            open_tracking(f"sqlite:///{tmp_path}/file/mlruns.db", tmp_path)

    def test_probe_leaves_an_existing_database_as_it_was(self, tmp_path):
        runs.check_database(f"sqlite:///{tmp_path}/x.db")
        with sqlite3.connect(tmp_path / "x.db") as database:
            assert database.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)

    def test_password_is_not_shown(self, tmp_path, monkeypatch):
        def refuse(*args, **kwargs):
            raise MlflowException("no route to http://me:secret@server")

        monkeypatch.setattr(mlflow_runs.MlflowClient, "search_experiments", refuse)
        with pytest.raises(InputError, match=r"'http://\*\*\*@server' cannot be used: no route") as caught:
            open_tracking("http://me:secret@server", tmp_path)
        assert "secret" not in str(caught.value)

    def test_missing_mlflow_says_what_to_do(self, output_dir, monkeypatch):
        monkeypatch.setitem(sys.modules, "medcoss_components.tracking.mlflow_runs", None)
        with pytest.raises(InputError, match="needs mlflow"):
            open_tracking(None, output_dir)

    def test_module_does_not_import_mlflow(self):
        code = "import sys, medcoss_components.tracking.runs; sys.exit('mlflow' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

    def test_migration_messages_are_silenced_and_levels_restored(self):
        entry = logging.getLogger("alembic")
        before = entry.level
        with runs.quiet_database():
            assert not logging.getLogger("alembic.runtime.migration").isEnabledFor(logging.INFO)
        assert entry.level == before


class TestRuns:
    def test_nested_runs_with_names_parameters_and_tags(self, tracker, client):
        with tracker.start_run("chain", parameters={"optimizer": {"lr": 3e-4}}) as parent:
            for name in ("01_report", "02_xray"):
                with tracker.start_run(name, parent_run_id=parent.run_id, tags={"modality": name[3:]}):
                    pass
        found = {run.info.run_name: run for run in all_runs(client)}
        assert set(found) == {"chain", "01_report", "02_xray"}
        assert found["chain"].data.params == {"optimizer.lr": "0.0003"}
        assert PARENT_TAG not in found["chain"].data.tags
        assert found["02_xray"].data.tags[PARENT_TAG] == parent.run_id
        assert found["02_xray"].data.tags["modality"] == "xray"
        assert {run.info.status for run in found.values()} == {"FINISHED"}

    def test_two_runs_of_one_name_in_one_process_stay_apart(self, tracker, client):
        first, second = tracker.start_run("a"), tracker.start_run("a")
        assert first.run_id != second.run_id
        first.log_metrics({"loss": 1}, 0)
        second.log_metrics({"loss": 2}, 0)
        first.close()
        second.close()
        assert steps(client, first, "loss") == [(0, 1.0)]
        assert steps(client, second, "loss") == [(0, 2.0)]

    def test_experiment_is_created_once_and_found_again(self, tracker, client, output_dir):
        tracker.start_run("a", experiment="study").close()
        tracker.start_run("b", experiment="study").close()
        experiment = client.get_experiment_by_name("study")
        assert len(client.search_runs([experiment.experiment_id])) == 2
        assert experiment.artifact_location == str(output_dir / "mlruns")

    def test_artefacts_lie_beside_the_database(self, tracker, output_dir, tmp_path):
        (tmp_path / "pictures").mkdir()
        for name in ("a.png", "b.png"):
            (tmp_path / "pictures" / name).write_bytes(b"x")
        run = tracker.start_run("a")
        run.log_artifact(tmp_path / "pictures" / "a.png")
        run.log_artifacts(tmp_path / "pictures", "previews")
        root = output_dir / "mlruns" / run.run_id / "artifacts"
        assert sorted(str(path.relative_to(root)) for path in root.rglob("*.png")) == [
            "a.png",
            "previews/a.png",
            "previews/b.png",
        ]

    @pytest.mark.parametrize(
        ("error", "status"),
        [(None, "FINISHED"), (ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")],
    )
    def test_status_after_the_block(self, tracker, client, error, status):
        try:
            with tracker.start_run("a") as run:
                run.log_metrics({"loss": 1}, 3)
                if error:
                    raise error
        except BaseException as caught:
            assert error is type(caught)
        assert client.get_run(run.run_id).info.status == status
        assert steps(client, run, "loss") == [(3, 1.0)]

    def test_first_status_stays(self, tracker, client):
        with tracker.start_run("a") as run:
            run.close("FAILED")
        assert client.get_run(run.run_id).info.status == "FAILED"

    def test_unknown_status(self, tracker):
        with pytest.raises(InputError, match="received 'DONE'"):
            tracker.start_run("a").close("DONE")

    def test_end_run_closes_what_was_left_open_and_nothing_else(self, tracker, client):
        left, failed = tracker.start_run("left"), tracker.start_run("failed")
        failed.close("FAILED")
        for run in (left, failed):
            tracker.end_run(run.run_id)
        tracker.end_run("0" * 32)
        assert client.get_run(left.run_id).info.status == "FINISHED"
        assert client.get_run(failed.run_id).info.status == "FAILED"


class TestMetrics:
    def test_numbers_arrays_and_nan(self, tracker, client):
        run = tracker.start_run("a")
        run.log_metrics({"xray/pretext": np.float32(0.5), "count": np.array(3), "odd": float("nan")}, 7)
        run.flush()
        data = client.get_run(run.run_id).data.metrics
        assert data["xray/pretext"] == 0.5
        assert data["count"] == 3
        assert np.isnan(data["odd"])

    def test_metrics_wait_for_the_flush(self, tracker, client):
        run = tracker.start_run("a")
        run.log_metrics({"loss": 1}, 0)
        assert client.get_run(run.run_id).data.metrics == {}
        run.flush()
        assert client.get_run(run.run_id).data.metrics == {"loss": 1}

    def test_full_buffer_flushes(self, tracker, client, monkeypatch):
        monkeypatch.setattr(mlflow_runs, "FLUSH_METRICS", 4)
        run = tracker.start_run("a")
        for step in range(5):
            run.log_metrics({"loss": step}, step)
        assert steps(client, run, "loss") == [(step, step) for step in range(4)]

    def test_time_flushes(self, tracker, client, monkeypatch):
        clock = [100.0]
        monkeypatch.setattr(mlflow_runs.time, "monotonic", lambda: clock[0])
        run = tracker.start_run("a")
        run.log_metrics({"loss": 0}, 0)
        clock[0] += mlflow_runs.FLUSH_SECONDS
        run.log_metrics({"loss": 1}, 1)
        assert len(steps(client, run, "loss")) == 2

    def test_more_than_one_call_takes(self, tracker, client, monkeypatch):
        monkeypatch.setattr(mlflow_runs, "FLUSH_METRICS", 10_000)
        run = tracker.start_run("a")
        for step in range(1100):
            run.log_metrics({"a": step, "b": -step}, step)
        run.flush()
        assert steps(client, run, "b") == [(step, -step) for step in range(1100)]


class TestParameters:
    def test_more_than_one_call_takes(self, tracker, client):
        run = tracker.start_run("a", parameters={f"p{i}": i for i in range(230)})
        run.set_tags({f"t{i}": i for i in range(230)})
        found = client.get_run(run.run_id).data
        assert found.params["p229"] == "229"
        assert found.tags["t229"] == "229"

    def test_equal_value_again_is_quiet_and_other_value_becomes_a_tag(self, tracker, client, caplog):
        run = tracker.start_run("a", parameters={"seed": 0, "workers": 2})
        run.log_parameters({"seed": 0, "workers": 4, "amp": True})
        found = client.get_run(run.run_id).data
        assert found.params == {"seed": "0", "workers": "2", "amp": "true"}
        assert found.tags["changed.workers"] == "4"
        assert "other settings: workers" in caplog.text


class TestResume:
    def test_reopening_goes_on_with_the_same_run(self, output_dir, tracker, client):
        run = tracker.start_run("01_report", parameters={"seed": 0})
        run.log_metrics({"loss": 5.0}, 1)
        run.close("FAILED")
        again = open_tracking(None, output_dir).start_run("01_report", run_id=run.run_id, parameters={"seed": 0})
        assert client.get_run(run.run_id).info.status == "RUNNING"
        again.log_metrics({"loss": 4.0}, 2)
        again.close()
        assert again.run_id == run.run_id
        assert steps(client, run, "loss") == [(1, 5.0), (2, 4.0)]
        assert client.get_run(run.run_id).info.status == "FINISHED"

    def test_steps_repeated_after_a_crash_are_recorded_once(self, output_dir, tracker, client):
        run = tracker.start_run("a")
        for step in (1, 2, 3):
            run.log_metrics({"loss": step}, step)
        run.flush()
        again = open_tracking(None, output_dir).start_run("a", run_id=run.run_id)
        for step in (2, 3, 4):
            again.log_metrics({"loss": step, "new": step}, step)
        again.close()
        assert steps(client, run, "loss") == [(1, 1), (2, 2), (3, 3), (4, 4)]
        assert steps(client, run, "new") == [(2, 2), (3, 3), (4, 4)]

    def test_killed_before_the_run_id_was_stored(self, output_dir, tracker, client):
        """kill -9 after the run was created: the same name and parent is found again, nothing else is."""
        parent = tracker.start_run("chain")
        child = tracker.start_run("01_report", parent_run_id=parent.run_id)
        later = open_tracking(None, output_dir)
        assert later.start_run("chain").run_id == parent.run_id
        assert later.start_run("01_report").run_id != child.run_id
        assert later.start_run("01_report", parent_run_id=parent.run_id).run_id == child.run_id
        assert later.start_run("02_xray", parent_run_id=parent.run_id).run_id not in (parent.run_id, child.run_id)

    def test_ended_runs_are_not_taken_up_again(self, output_dir, tracker):
        run = tracker.start_run("a")
        run.close()
        assert open_tracking(None, output_dir).start_run("a").run_id != run.run_id

    def test_other_output_folders_of_a_shared_server_are_left_alone(self, output_dir, tracker, client):
        run = tracker.start_run("chain")
        other = open_tracking(tracker.uri, output_dir.parent / "other")
        second = other.start_run("chain")
        assert second.run_id != run.run_id
        keys = {client.get_run(entry.run_id).data.tags[KEY_TAG] for entry in (run, second)}
        assert len(keys) == 2

    def test_run_that_the_database_does_not_know(self, tracker, caplog):
        run = tracker.start_run("a", run_id="0" * 32)
        assert run.run_id not in (None, "0" * 32)
        assert "is not in sqlite" in caplog.text


class TestFaults:
    @pytest.fixture
    def broken(self, tracker, monkeypatch):
        run = tracker.start_run("a")
        calls = []

        def refuse(*args, **kwargs):
            calls.append(kwargs)
            raise MlflowException("database is locked\nlong trace")

        with monkeypatch.context() as patch:
            patch.setattr(mlflow_runs.MlflowClient, "log_batch", refuse)
            yield run, calls, patch

    def test_training_goes_on_and_metrics_are_kept(self, broken, client, caplog):
        run, _, patch = broken
        run.log_metrics({"loss": 1}, 1)
        run.flush()
        assert "metrics not recorded (database is locked)" in caplog.text
        assert "long trace" not in caplog.text
        patch.undo()
        run.close()
        assert steps(client, run, "loss") == [(1, 1)]

    def test_tries_become_rarer_and_old_metrics_go(self, broken, monkeypatch):
        run, calls, _ = broken
        clock = [0.0]
        monkeypatch.setattr(mlflow_runs.time, "monotonic", lambda: clock[0])
        monkeypatch.setattr(mlflow_runs, "FLUSH_METRICS", 1)
        monkeypatch.setattr(mlflow_runs, "MAX_BUFFERED", 30)
        for step in range(100):
            clock[0] += 1
            run.log_metrics({"loss": step}, step)
        assert [len(call["metrics"]) for call in calls] == [1, 21, 61]  # at 1 s, 20 s later, 40 s later
        assert len(run._metrics) < 100

    def test_close_says_how_much_was_lost(self, broken, caplog):
        run, _, _ = broken
        run.log_metrics({"loss": 1, "rate": 2}, 1)
        run.close()
        assert "2 metrics could not be written" in caplog.text

    def test_missing_artefact_is_a_warning(self, tracker, tmp_path, caplog):
        tracker.start_run("a").log_artifact(tmp_path / "nothing.png")
        assert "artefact not recorded" in caplog.text

    def test_experiment_made_by_another_process_meanwhile(self, tracker, client, monkeypatch):
        find = client.get_experiment_by_name
        answers = iter([lambda name: None, find])
        monkeypatch.setattr(mlflow_runs.MlflowClient, "get_experiment_by_name", lambda self, name: next(answers)(name))
        client.create_experiment("study")
        assert tracker._experiment_id("study") == find("study").experiment_id

    def test_experiment_that_was_deleted(self, tracker, client):
        client.delete_experiment(client.create_experiment("old"))
        with pytest.raises(InputError, match="experiment 'old' was deleted .* restore"):
            tracker.start_run("a", experiment="old")


class TestDisabled:
    def test_same_interface_and_no_files(self, tmp_path):
        tracker = open_tracking(None, tmp_path / "none", enabled=False)
        with tracker.start_run("a", parent_run_id="x", parameters={"a": 1}, tags={"b": 2}) as run:
            run.log_metrics({"loss": 1}, 1)
            run.log_parameters({})
            run.log_artifact("nothing")
            run.log_artifacts("nothing")
            run.set_tags({})
            run.flush()
        tracker.end_run("x")
        assert run.run_id is None
        assert not tracker.enabled
        assert not (tmp_path / "none").exists()

    def test_twin_has_every_method(self):
        for recording, silent in ((mlflow_runs.MlflowTracker, Tracker), (mlflow_runs.MlflowRun, runs.TrackedRun)):
            public = {name for name in vars(recording) if not name.startswith("_")}
            assert public <= {name for name in dir(silent) if not name.startswith("_")}

    def test_unknown_status(self):
        with pytest.raises(InputError, match="received 'OK'"):
            runs.TrackedRun("a").close("OK")
