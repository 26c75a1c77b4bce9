"""A stage: what it writes, that it is done once, and that a crash in any step changes nothing in the end."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from ignite.engine import Events

from medcoss_components.continual.buffer import open_buffer_store, read_buffer
from medcoss_components.continual.exemplars import select_exemplars
from medcoss_components.engines import stage as stage_module
from medcoss_components.engines.embedding import embed_source
from medcoss_components.engines.setup import rehearsal_buffers
from medcoss_components.engines.stage import STEPS, PretrainingStage
from medcoss_components.errors import InputError
from medcoss_components.networks.pretraining import ENCODER_PREFIXES
from medcoss_components.weights import hash_weights, read_weights

FILES = {
    "model.pt",
    "encoder.safetensors",
    "buffer.json",
    "metrics.json",
    "history.json",
    "vocabulary.json",
    "stage.json",
    "previews",
}


class Crash(RuntimeError):
    """What a test throws."""


def names(folder):
    return {entry.name for entry in folder.iterdir()}


def result(folder):
    """The files that decide what comes after."""
    return {name: (folder / name).read_bytes() for name in ("model.pt", "buffer.json", "encoder.safetensors")}


def read(folder, name):
    return json.loads((folder / name).read_text())


class TestWholeStage:
    @pytest.fixture(scope="class")
    def folder(self, request, tmp_path_factory):
        """One stage with pictures and tracking off, shared by the tests that only look at it."""
        return tmp_path_factory.mktemp("whole") / "02_xray"

    @pytest.fixture(autouse=True)
    def run(self, folder, make_stage, make_store):
        if not folder.exists():
            first = make_stage(folder.parent / "01_report", "report", validated=False).run()
            make_stage(folder, "xray", buffers=rehearsal_buffers(buffers=[first]), materialise=True).run()

    def test_writes_every_artefact_and_leaves_nothing_else(self, folder):
        assert names(folder) == FILES | {"buffer"}
        assert names(folder / "previews") == {"reconstruction.png", "buffer_map.png", "exemplars.png", "loss.png"}
        assert all((folder / "previews" / name).stat().st_size > 1000 for name in names(folder / "previews"))

    def test_stage_without_materialised_buffer(self, folder):
        assert names(folder.parent / "01_report") == FILES
        assert read_buffer(folder.parent / "01_report").materialised is None

    def test_records_every_step(self, folder):
        record = read(folder, "stage.json")
        assert list(record["steps"]) == list(STEPS)
        assert record["settings"]["batch_size"] == 4 and len(record["settings"]["initial_weights"]) == 64

    def test_encoder_file_is_the_encoder_of_the_model(self, folder):
        model, encoder = read_weights(folder / "model.pt"), read_weights(folder / "encoder.safetensors")
        assert set(encoder) == {name for name in model if name.startswith(ENCODER_PREFIXES)}
        assert all(torch.equal(value, model[name]) for name, value in encoder.items())

    def test_buffer_is_the_selection_from_the_embeddings(self, folder, tiny_network, make_store):
        network, store = tiny_network(), make_store("xray")
        network.load_state_dict(read_weights(folder / "model.pt"))
        features = embed_source(network, store, device=torch.device("cpu"), precision="float32")
        chosen = select_exemplars(features, count=3, clusters=2, seed=0)
        buffer = read_buffer(folder)
        assert list(buffer.indices) == chosen.indices.tolist() and buffer.source_size == 10
        assert buffer.encoder_hash == hash_weights(network.state_dict())

    def test_materialised_buffer_holds_the_samples(self, folder, make_store):
        buffer = read_buffer(folder)
        view = open_buffer_store(buffer)
        assert view.path == folder / "buffer"
        expected = make_store("xray").gather(np.array(buffer.indices))
        assert np.array_equal(view.gather(np.arange(3)), expected)

    def test_metrics(self, folder):
        metrics = read(folder, "metrics.json")
        assert (metrics["stage"], metrics["modality"], metrics["strategy"]) == ("02_xray", "xray", "medcoss")
        assert (metrics["samples"], metrics["epochs"], metrics["iterations"], metrics["buffer_size"]) == (10, 1, 4, 3)
        assert metrics["rehearsal"]["report"]["kind"] == "distillation"
        assert metrics["rehearsal"]["report"]["buffer_size"] == 4
        assert set(metrics["seconds"]) == {"prepare", *STEPS} - {"artefacts"}
        assert all(metrics[name] > 0 for name in ("first_loss", "final_loss", "validation_loss", "samples_per_second"))

    def test_history_has_a_row_per_iteration(self, folder):
        history = read(folder, "history.json")
        assert [row[0] for row in history["rows"]] == [1, 2, 3, 4]
        assert sorted(row[2] for row in history["rows"]) == ["report", "xray", "xray", "xray"]

    def test_second_run_does_nothing(self, folder, make_stage, monkeypatch):
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != "stage.json"}
        report = rehearsal_buffers(buffers=[folder.parent / "01_report"])
        again = make_stage(folder, "xray", buffers=report, materialise=True)
        for step in STEPS:
            monkeypatch.setattr(again, f"_{step}", None)
        assert again.run() == folder
        assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != "stage.json"}

    def test_leftovers_of_a_killed_clean_up_go(self, folder, make_stage):
        for name in ("checkpoint.pt", "embeddings.npy", ".model.123.partial.pt"):
            (folder / name).touch()
        make_stage(folder, "xray", buffers=rehearsal_buffers(buffers=[folder.parent / "01_report"])).run()
        assert names(folder) == FILES | {"buffer"}

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"settings": {"batch_size": 8, "seed": 0}}, "batch_size: 4 -> 8"),
            ({"buffers": []}, r"buffers: \['[0-9a-f]{12}\.\.\.'\] -> \[\]"),
        ],
    )
    def test_other_settings_or_sources_refused(self, change, message, folder, make_stage):
        options = {"buffers": rehearsal_buffers(buffers=[folder.parent / "01_report"])} | change
        with pytest.raises(InputError, match=f"begun with other settings .*{message}"):
            make_stage(folder, "xray", **options).run()

    def test_other_first_weights_refused(self, folder, make_stage, tiny_network):
        buffers = rehearsal_buffers(buffers=[folder.parent / "01_report"])
        with pytest.raises(InputError, match="initial_weights"):
            make_stage(folder, "xray", buffers=buffers, trainer={"network": tiny_network(seed=8)}).run()


def crash_in_training(monkeypatch, stage):
    """After three iterations of four, with a checkpoint after each."""
    stage.trainer.add_event_handler(Events.ITERATION_STARTED(once=4), lambda: (_ for _ in ()).throw(Crash))


def crash_in(function):
    """Replace a function that the stage calls by one that throws."""

    def plant(monkeypatch, stage):
        def fail(*arguments, **options):
            raise Crash

        monkeypatch.setattr(stage_module, function, fail)

    return plant


def crash_after(step):
    """The work of a step is done, its record is not written."""

    def plant(monkeypatch, stage):
        work = getattr(stage, f"_{step}")

        def work_and_fail():
            work()
            raise Crash

        monkeypatch.setattr(stage, f"_{step}", work_and_fail)

    return plant


CRASHES = {
    "in the middle of training": crash_in_training,
    "before the weights are written": crash_in("save_weights"),
    "before embedding": crash_in("embed_into_file"),
    "before selection": crash_in("select_exemplars"),
    "before buffer.json": crash_in("write_buffer"),
    "before the pictures": crash_in("write_previews"),
    "before metrics.json": crash_in("stage_metrics"),
    **{f"after {step}": crash_after(step) for step in STEPS},
}


@pytest.mark.usefixtures("no_pictures")
class TestCrashes:
    @pytest.fixture(scope="class")
    def folders(self, tmp_path_factory):
        return tmp_path_factory.mktemp("crashes")

    def build(self, make_stage, folder):
        report = folder.parent / "report"
        if not report.exists():
            make_stage(report, "report", validated=False).run()
        buffers = rehearsal_buffers(buffers=[report])
        return make_stage(folder, "xray", buffers=buffers, checkpoint_seconds=0.0, materialise=True)

    @pytest.fixture
    def expected(self, folders, make_stage):
        if not (folders / "whole").exists():
            self.build(make_stage, folders / "whole").run()
        return result(folders / "whole")

    @pytest.mark.parametrize("moment", CRASHES)
    def test_same_command_again_ends_with_the_same_bytes(self, moment, folders, expected, make_stage, monkeypatch):
        folder = folders / moment.replace(" ", "_").replace(".", "_")
        with monkeypatch.context() as patch:
            stage = self.build(make_stage, folder)
            CRASHES[moment](patch, stage)
            with pytest.raises(Crash):
                stage.run()
        assert not list(folder.rglob("*.partial*"))
        self.build(make_stage, folder).run()
        assert result(folder) == expected
        assert names(folder) == FILES | {"buffer"}

    def test_training_goes_on_where_it_stopped(self, folders, make_stage, monkeypatch):
        folder, seen = folders / "resumed", []
        stage = self.build(make_stage, folder)
        crash_in_training(monkeypatch, stage)
        with pytest.raises(Crash):
            stage.run()
        again = self.build(make_stage, folder)
        again.trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: seen.append(engine.state.iteration))
        again.run()
        assert seen == [4]
        assert [row[0] for row in read(folder, "history.json")["rows"]] == [1, 2, 3, 4]

    def test_steps_done_are_not_repeated(self, folders, make_stage, monkeypatch):
        folder = folders / "repeated"
        stage = self.build(make_stage, folder)
        with monkeypatch.context() as patch:
            crash_in("select_exemplars")(patch, stage)
            with pytest.raises(Crash):
                stage.run()
        done = []
        again = self.build(make_stage, folder)
        for step in STEPS:
            work = getattr(again, f"_{step}")
            monkeypatch.setattr(again, f"_{step}", lambda step=step, work=work: done.append(step) or work())
        again.run()
        assert done == ["select", "artefacts"]

    def test_tells_who_asks_about_every_step(self, folders, make_stage):
        steps, stage = [], self.build(make_stage, folders / "told")
        stage.on_step = lambda finished, step: steps.append((finished is stage, step))
        stage.run()
        assert steps == [(True, step) for step in STEPS]


@pytest.mark.usefixtures("no_pictures")
class TestOtherRanks:
    def test_write_nothing_but_their_embeddings(self, tmp_path, make_stage, monkeypatch):
        monkeypatch.setattr("ignite.distributed.get_rank", lambda: 1)
        monkeypatch.setattr(stage_module, "embed_into_file", lambda *arguments, **options: None)
        stage = make_stage(tmp_path / "stage", validated=False)
        monkeypatch.setattr(stage.trainer, "run", lambda: None)
        stage.run()
        assert not any((tmp_path / "stage").iterdir())


@pytest.mark.usefixtures("no_pictures")
class TestTracking:
    def test_run_holds_settings_metrics_and_files(self, tmp_path, make_stage):
        from mlflow import MlflowClient

        stage = make_stage(tmp_path / "02_xray", tracking=True, tracking_dir=tmp_path, experiment="tests")
        stage.run()
        client = MlflowClient(f"sqlite:///{tmp_path}/mlruns.db")
        (run,) = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
        assert run.info.run_id == stage.record.values["run_id"]
        assert (run.info.run_name, run.info.status) == ("02_xray", "FINISHED")
        assert run.data.params["batch_size"] == "4" and run.data.tags["modality"] == "xray"
        assert run.data.tags["manifest_hash"] == stage.dataset.manifest_hash
        assert len(run.data.tags["parent_weights_hash"]) == 64
        losses = client.get_metric_history(run.info.run_id, "xray/pretext")
        assert [metric.step for metric in losses] == [1, 2, 3]
        validation = client.get_metric_history(run.info.run_id, "validation_loss")
        assert [metric.step for metric in validation] == [3]
        logged = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
        assert {"buffer.json", "metrics.json", "history.json"} <= logged

        client.update_run(run.info.run_id, status="RUNNING")  # as after kill -9 between the last step and closing
        make_stage(tmp_path / "02_xray", tracking=True, tracking_dir=tmp_path, experiment="tests").run()
        assert client.get_run(run.info.run_id).info.status == "FINISHED"

    def test_off_leaves_no_database(self, tmp_path, make_stage):
        make_stage(tmp_path / "stage", validated=False).run()
        assert names(tmp_path) == {"stage"}


@pytest.mark.usefixtures("no_pictures")
def test_stage_without_validation_has_no_validation_loss(tmp_path, make_stage):
    folder = make_stage(tmp_path / "stage", validated=False).run()
    assert read(folder, "stage.json")["values"]["validation_loss"] is None


@pytest.mark.usefixtures("no_pictures")
def test_image_stage_without_vocabulary_writes_none(tmp_path, make_stage):
    folder = make_stage(tmp_path / "stage", validated=False, trainer={"vocabulary": None}).run()
    assert not (folder / "vocabulary.json").exists()


def test_vocabulary_of_a_stage(tmp_path, make_stage, vocabulary):
    assert make_stage(tmp_path / "stage").vocabulary is vocabulary
    without = make_stage(tmp_path / "03_ct", "ct", validated=False, trainer={"vocabulary": None})
    with pytest.raises(InputError, match="stage 03_ct: has no vocabulary"):
        without.vocabulary  # noqa: B018


@pytest.mark.parametrize(("ratio", "size"), [(0.05, 1), (0.25, 2), (0.35, 4), (1.0, 10)])
def test_buffer_size_is_the_rounded_share(ratio, size, tmp_path, make_stage):
    """round(0.25 * 10) = 2: halves go to the even number."""
    stage = make_stage(tmp_path / "stage", buffer_ratio=ratio)
    assert stage.exemplars == size and isinstance(stage, PretrainingStage)


@pytest.mark.parametrize("ratio", [0.0, 1.5])
def test_buffer_ratio_outside_its_range_refused(ratio, tmp_path, make_stage):
    with pytest.raises(InputError, match=f"received {ratio}"):
        make_stage(tmp_path / "stage", buffer_ratio=ratio)
