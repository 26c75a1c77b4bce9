"""Chains of two and three stages on synthetic data, through the chain bundle's stage config."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path

import pytest
import torch

from medcoss_components.continual.buffer import read_buffer
from medcoss_components.data.synthetic import synthetic_manifest
from medcoss_components.engines import chain as chain_module
from medcoss_components.engines.chain import PretrainingChain, check_entries, read_chain
from medcoss_components.engines.stage import STEPS
from medcoss_components.errors import InputError
from medcoss_components.weights import read_weights

STAGE_CONFIG = Path(__file__).parents[2] / "bundles" / "medcoss_continual_pretraining" / "configs" / "stage.json"
ENTRIES = {
    "tiny_text": {"dimension": 1, "input_shape": [14], "intensity": "tokens"},
    "tiny_picture": {"dimension": 2, "input_shape": [3, 8, 18], "intensity": "unit_range", "stored_channels": 1},
    "tiny_volume": {"dimension": 3, "input_shape": [1, 6, 8, 12], "intensity": "hounsfield"},
}
MODALITIES = [{"name": name, **entry} for name, entry in ENTRIES.items()]
COUNTS = {"tiny_text": 12, "tiny_picture": 10, "tiny_volume": 5}
SAMPLES = {"tiny_text": 12, "tiny_picture": 10, "tiny_volume": 10}  # two sub-volumes a volume


class Crash(RuntimeError):
    """What a test throws."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Modality -> manifest."""
    folder = tmp_path_factory.mktemp("data")
    shapes = {"tiny_text": None, "tiny_picture": (16, 36), "tiny_volume": (12, 16, 24)}
    return {
        entry["name"]: synthetic_manifest(
            folder / entry["name"],
            entry,
            count=COUNTS[entry["name"]],
            validation=0 if entry["name"] == "tiny_picture" else 2,
            shape=shapes[entry["name"]],
        )
        for entry in MODALITIES
    }


@pytest.fixture(scope="module")
def store_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("stores")


@pytest.fixture
def settings(store_dir, tiny_sizes):
    """What makes a stage tiny."""
    sizes = {key: list(value) if isinstance(value, tuple) else value for key, value in tiny_sizes.items()}
    return {
        "store_dir": str(store_dir),
        "preparation_workers": 1,
        "preset": "demo",
        "network_def": sizes,
        "vocabulary_size": 110,
        "batch_size": 4,
        "max_epochs": 1,
        "warmup_epochs": 0,
        "base_learning_rate": 0.1,
        "precision": "float32",
        "num_workers": 0,
        "log_interval": 1,
        "buffer_ratio": 0.3,
        "cluster_ratio": 0.2,
    }


@pytest.fixture
def build(data, settings):
    """``build(output_dir, *modalities, **options)``: a chain; a modality may be an entry of its own."""

    def make(output_dir, *names, changes=None, **options):
        stages = [
            {"modality": name, "data_manifest": str(data[name])} if isinstance(name, str) else name for name in names
        ]
        options = {"tracking": False, "extra_modalities": MODALITIES} | options
        return PretrainingChain(
            stage_config=STAGE_CONFIG,
            stages=stages,
            output_dir=output_dir,
            stage_settings=settings | (changes or {}),
            **options,
        )

    return make


@pytest.fixture
def quick(monkeypatch):
    """No pictures and no reports, where a test does not look at them."""
    from medcoss_components.engines import stage

    monkeypatch.setattr(stage, "write_previews", lambda stage: (stage.folder / "previews").mkdir(exist_ok=True))
    monkeypatch.setattr(chain_module, "write_report", lambda folder: folder / "REPORT.html")
    monkeypatch.setattr(chain_module, "summary_table", lambda folder: "table")


def metrics(folder, stage):
    return json.loads((folder / stage / "metrics.json").read_text())


def kinds(folder, stage):
    rows = json.loads((folder / stage / "history.json").read_text())["rows"]
    return {(row[2], row[3]) for row in rows}


class TestWholeChain:
    """Text, pictures and volumes with MLflow, pictures and the report; run once."""

    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory):
        return tmp_path_factory.mktemp("chain") / "run"

    @pytest.fixture(autouse=True)
    def run(self, folder, build):
        if not folder.exists():
            assert build(folder, *ENTRIES, tracking=True).run() == folder

    def test_record(self, folder):
        record = read_chain(folder)
        assert record["status"] == "finished" and record["format"] == 1 and record["experiment"] == "medcoss"
        assert [stage["folder"] for stage in record["stages"]] == ["01_tiny_text", "02_tiny_picture", "03_tiny_volume"]
        assert [stage["modality"] for stage in record["stages"]] == list(ENTRIES)
        assert all(list(stage["steps"]) == ["prepare", *STEPS] for stage in record["stages"])

    def test_every_earlier_modality_is_rehearsed(self, folder):
        assert kinds(folder, "01_tiny_text") == {("tiny_text", "pretext")}
        assert kinds(folder, "03_tiny_volume") == {
            ("tiny_volume", "pretext"),
            ("tiny_text", "distillation"),
            ("tiny_picture", "distillation"),
        }

    def test_buffers_have_the_rounded_share(self, folder):
        for stage in read_chain(folder)["stages"]:
            assert len(read_buffer(folder / stage["folder"])) == round(0.3 * SAMPLES[stage["modality"]])

    def test_each_stage_starts_from_the_one_before(self, folder, tiny_network):
        """A tokenizer that a stage does not use and no optimiser step reaches keeps the weights of the stage before."""
        first = read_weights(folder / "01_tiny_text")
        second = read_weights(folder / "02_tiny_picture")
        name = "image_embedding.tokenizers.3d.position"
        assert torch.equal(first[name], second[name])
        assert not torch.equal(
            first["encoder.blocks.0.attention.qkv.weight"], second["encoder.blocks.0.attention.qkv.weight"]
        )

    def test_vocabulary_is_carried_to_every_stage(self, folder):
        texts = {(folder / stage["folder"] / "vocabulary.json").read_bytes() for stage in read_chain(folder)["stages"]}
        assert len(texts) == 1

    def test_validation_where_there_is_some(self, folder):
        losses = {
            stage["modality"]: metrics(folder, stage["folder"])["validation_loss"]
            for stage in read_chain(folder)["stages"]
        }
        assert losses["tiny_picture"] is None and losses["tiny_text"] > 0 and losses["tiny_volume"] > 0

    def test_report_and_one_run_per_stage_below_one_parent(self, folder):
        from mlflow import MlflowClient

        assert "03_tiny_volume" in (folder / "REPORT.html").read_text()
        client = MlflowClient(f"sqlite:///{folder}/mlruns.db")
        runs = client.search_runs([client.get_experiment_by_name("medcoss").experiment_id])
        record = read_chain(folder)
        parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
        assert [run.info.run_id for run in parents] == [record["run_id"]] and len(runs) == 4
        children = {run.info.run_id: run for run in runs if run.data.tags.get("mlflow.parentRunId") == record["run_id"]}
        assert set(children) == {stage["run_id"] for stage in record["stages"]}
        assert {run.info.status for run in runs} == {"FINISHED"}
        last = children[record["stages"][-1]["run_id"]].data.metrics
        assert {"tiny_volume/pretext", "tiny_text/distillation", "tiny_picture/distillation"} <= set(last)

    def test_retention_is_scored_after_every_stage(self, folder):
        from mlflow import MlflowClient

        result = json.loads((folder / "retention.json").read_text())
        assert [stage["name"] for stage in result["stages"]] == [
            "start",
            *(f"0{n}_{m}" for n, m in enumerate(ENTRIES, 1)),
        ]
        assert 'id="retention"' in (folder / "REPORT.html").read_text()
        client, run_id = MlflowClient(f"sqlite:///{folder}/mlruns.db"), read_chain(folder)["run_id"]
        history = client.get_metric_history(run_id, "retention/cka/tiny_text")
        assert [metric.step for metric in history] == [1, 2, 3]
        assert history[0].value == pytest.approx(1)
        assert {"retention.json", "retention.png"} <= {entry.path for entry in client.list_artifacts(run_id)}

    def test_again_does_nothing(self, folder, build, monkeypatch, capsys):
        monkeypatch.setattr(PretrainingChain, "_stage_parser", None)
        before = {path: path.read_bytes() for path in folder.glob("0*/*.*")}
        build(folder, *ENTRIES).run()
        assert before == {path: path.read_bytes() for path in folder.glob("0*/*.*")}
        assert read_chain(folder)["status"] == "finished"
        assert "tiny_volume" in capsys.readouterr().out  # the table is shown again

    @pytest.mark.usefixtures("quick")
    def test_run_that_a_kill_left_open_is_closed(self, folder, build):
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{folder}/mlruns.db")
        run_id = read_chain(folder)["stages"][-1]["run_id"]
        client.update_run(run_id, status="RUNNING")
        build(folder, *ENTRIES, tracking=True).run()
        assert client.get_run(run_id).info.status == "FINISHED"

    def test_finished_stages_refuse_other_settings(self, folder, build):
        with pytest.raises(
            InputError, match=r"01_tiny_text was finished with other settings \(max_epochs: 1 -> 2; seed: 0 -> 3\)"
        ):
            build(folder, *ENTRIES, changes={"max_epochs": 2, "seed": 3}).run()

    def test_another_strategy_refused(self, folder, build):
        with pytest.raises(InputError, match="strategy: 'medcoss' -> 'sequential'"):
            build(folder, *ENTRIES, strategy="sequential").run()

    @pytest.mark.usefixtures("quick")
    def test_free_settings_may_change(self, folder, build):
        build(folder, *ENTRIES, changes={"log_interval": 5, "show_text": True}).run()

    @pytest.mark.parametrize("names", [["tiny_picture", "tiny_text"], ["tiny_text", "tiny_picture"]])
    def test_other_stages_refused(self, names, folder, build):
        with pytest.raises(InputError, match=r"begun with the stages \['tiny_text', 'tiny_picture', 'tiny_volume'\]"):
            build(folder, *names).run()

    @pytest.mark.usefixtures("quick")
    def test_continued_with_a_new_modality_from_another_folder(self, folder, build, data, tmp_path):
        new = {"name": "sixth", "dimension": 2, "input_shape": [3, 8, 18], "intensity": "unit_range"}
        manifest = synthetic_manifest(tmp_path / "data", new, count=6, validation=0, shape=(16, 36))
        entry = {"modality": "sixth", "data_manifest": str(manifest)}
        output = tmp_path / "more"
        chain = build(output, entry, continue_from=folder, extra_modalities=[new])
        assert chain.stage_names() == ["04_sixth"]
        chain.run()
        assert kinds(output, "04_sixth") == {("sixth", "pretext")} | {(name, "distillation") for name in ENTRIES}
        record = read_chain(output)
        assert [stage["modality"] for stage in record["earlier"]] == list(ENTRIES) and len(record["buffers"]) == 3
        words = [path / "vocabulary.json" for path in (folder / "01_tiny_text", output / "04_sixth")]
        assert words[0].read_bytes() == words[1].read_bytes()
        moved = tmp_path / "archive"  # both chains move together
        shutil.copytree(folder, moved / folder.relative_to(folder.anchor))
        shutil.copytree(output, moved / output.relative_to(output.anchor))
        again = build(
            tmp_path / "still_more",
            entry | {"modality": "tiny_new"},
            continue_from=moved / output.relative_to(output.anchor),
            extra_modalities=[new | {"name": "tiny_new"}],
        )
        assert again.stage_names() == ["05_tiny_new"] and len(again.buffers) == 4
        assert all(Path(path).is_file() and Path(path).is_relative_to(moved) for path in again.buffers)

    def test_continuing_with_a_learned_modality_refused(self, folder, build, tmp_path):
        with pytest.raises(InputError, match="tiny_picture was learned in"):
            build(tmp_path / "more", "tiny_picture", continue_from=folder)


@pytest.mark.usefixtures("quick")
class TestStrategies:
    @pytest.mark.parametrize(
        ("strategy", "second"),
        [
            ("medcoss", {("tiny_volume", "pretext"), ("tiny_picture", "distillation")}),
            ("experience_replay", {("tiny_volume", "pretext"), ("tiny_picture", "replay")}),
            ("sequential", {("tiny_volume", "pretext")}),
        ],
    )
    def test_two_stages(self, strategy, second, build, tmp_path):
        folder = build(tmp_path / "run", "tiny_picture", "tiny_volume", strategy=strategy).run()
        assert kinds(folder, "02_tiny_volume") == second
        assert metrics(folder, "02_tiny_volume")["strategy"] == strategy

    def test_no_network_outlives_its_stage(self, build, tmp_path, monkeypatch):
        def alive():
            gc.collect()
            return sum(type(found) is torch.nn.Parameter for found in gc.get_objects())

        counts, before = [], alive()
        monkeypatch.setattr(chain_module, "write_report", lambda folder: counts.append(alive()))
        build(tmp_path / "run", "tiny_picture", "tiny_volume").run()
        assert len(counts) >= 2 and max(counts) <= before

    def test_joint_is_one_stage_of_all(self, build, tmp_path):
        folder = build(tmp_path / "run", *ENTRIES, strategy="joint").run()
        assert [stage["folder"] for stage in read_chain(folder)["stages"]] == ["01_joint"]
        assert kinds(folder, "01_joint") == {(name, "pretext") for name in ENTRIES}
        with pytest.raises(InputError, match="trained all modalities at once"):
            build(tmp_path / "more", "tiny_volume", continue_from=folder)

    def test_joint_with_the_text_named_last(self, build, data, tmp_path, caplog):
        """The vocabulary is trained on the text; settings of single entries are said to be unused."""
        entries = [
            {"modality": name, "data_manifest": str(data[name]), "max_epochs": 7}
            for name in ("tiny_picture", "tiny_text")
        ]
        folder = build(tmp_path / "run", *entries, strategy="joint").run()
        assert kinds(folder, "01_joint") == {("tiny_picture", "pretext"), ("tiny_text", "pretext")}
        assert metrics(folder, "01_joint")["epochs"] == 1 and "['max_epochs'] of entries are not used" in caplog.text

    def test_strategy_that_reverses_the_order(self, build, tmp_path, monkeypatch):
        from medcoss_components.continual.strategies import get_strategy

        strategy = get_strategy("sequential")
        monkeypatch.setattr(type(strategy), "reverses_stages", True, raising=False)
        chain = build(tmp_path / "run", *ENTRIES, strategy=strategy)
        assert chain.stage_names() == ["01_tiny_volume", "02_tiny_picture", "03_tiny_text"]

    def test_materialised_buffers_need_no_earlier_store(self, build, tmp_path):
        import shutil

        stores = {"store_dir": str(tmp_path / "stores"), "materialise": True}
        folder = build(tmp_path / "run", "tiny_picture", changes=stores).run()
        shutil.rmtree(tmp_path / "stores")
        build(tmp_path / "more", "tiny_volume", changes=stores, continue_from=folder).run()
        assert ("tiny_picture", "distillation") in kinds(tmp_path / "more", "02_tiny_volume")

    def test_weights_buffers_and_vocabulary_may_be_given(self, build, tmp_path):
        first = build(tmp_path / "first", "tiny_text").run() / "01_tiny_text"
        given = {"init_weights": first / "model.pt", "buffers": [first], "vocabulary": first / "vocabulary.json"}
        folder = build(tmp_path / "second", "tiny_picture", **given).run()
        assert kinds(folder, "01_tiny_picture") == {("tiny_picture", "pretext"), ("tiny_text", "distillation")}

    def test_keys_of_one_stage(self, build, data, tmp_path):
        entry = {"modality": "tiny_picture", "data_manifest": str(data["tiny_picture"]), "max_epochs": 3}
        chain = build(tmp_path / "run", entry, changes={"betas": [0.9, 0.99], "max_gradient_norm": 1.0})
        folder = chain.run()
        assert metrics(folder, "01_tiny_picture")["epochs"] == 3
        recorded = json.loads((folder / "01_tiny_picture" / "stage.json").read_text())["settings"]
        assert recorded["betas"] == [0.9, 0.99] and recorded["max_gradient_norm"] == 1.0

    def test_registry_entry_instead_of_a_name(self, build, data, tmp_path):
        entry = {
            "modality": {"name": "tiny_picture", **ENTRIES["tiny_picture"]},
            "data_manifest": str(data["tiny_picture"]),
        }
        folder = build(tmp_path / "run", entry, extra_modalities=()).run()
        assert [stage["folder"] for stage in read_chain(folder)["stages"]] == ["01_tiny_picture"]

    def test_more_stages_may_follow(self, build, tmp_path):
        build(tmp_path / "run", "tiny_picture").run()
        folder = build(tmp_path / "run", "tiny_picture", "tiny_volume").run()
        assert [stage["modality"] for stage in read_chain(folder)["stages"]] == ["tiny_picture", "tiny_volume"]


@pytest.mark.usefixtures("quick")
class TestCrash:
    def test_same_command_again_ends_with_the_same_bytes(self, build, tmp_path, monkeypatch):
        whole = build(tmp_path / "whole", "tiny_text", "tiny_picture").run()
        from medcoss_components.engines import stage

        def crash(*arguments, **options):
            raise Crash

        done = []
        for place in ("select_exemplars", "embed_into_file", "write_previews", "stage_metrics"):
            with monkeypatch.context() as patch:
                patch.setattr(stage, place, crash)
                with pytest.raises(Crash):
                    build(tmp_path / "killed", "tiny_text", "tiny_picture").run()
            assert read_chain(tmp_path / "killed")["status"] == "running"
            done.append([list(entry["steps"])[-1] for entry in read_chain(tmp_path / "killed")["stages"]])
        last = "artefacts"
        assert done == [["embed"], [last, "evaluate"], [last, "select"], [last, "select"]]
        killed = build(tmp_path / "killed", "tiny_text", "tiny_picture").run()
        for name in ("01_tiny_text", "02_tiny_picture"):
            for file in ("model.pt", "buffer.json", "vocabulary.json"):
                assert (whole / name / file).read_bytes() == (killed / name / file).read_bytes(), (name, file)

    def test_unfinished_chain_is_not_continued(self, build, tmp_path, monkeypatch):
        monkeypatch.setattr(PretrainingChain, "_run_stage", lambda *arguments: (_ for _ in ()).throw(Crash))
        with pytest.raises(Crash):
            build(tmp_path / "run", "tiny_picture").run()
        with pytest.raises(InputError, match="this chain is running; finish it first"):
            build(tmp_path / "more", "tiny_volume", continue_from=tmp_path / "run")


class TestRefusals:
    def test_no_stage(self, build, tmp_path):
        with pytest.raises(InputError, match="stages: give at least one"):
            build(tmp_path / "run")

    @pytest.mark.parametrize("missing", ["modality", "data_manifest"])
    def test_incomplete_entry(self, missing):
        entry = {"modality": "xray", "data_manifest": "a.json"}
        entry.pop(missing)
        with pytest.raises(InputError, match=rf"stages\[1\]: {missing} is missing"):
            check_entries([{"modality": "ct", "data_manifest": "b.json"}, entry])

    def test_same_modality_twice(self, build, tmp_path):
        with pytest.raises(InputError, match=r"stages\[2\]: modality tiny_text stands twice"):
            build(tmp_path / "run", "tiny_text", "tiny_picture", "tiny_text")

    def test_unknown_modality(self):
        with pytest.raises(InputError, match="sonar"):
            check_entries([{"modality": "sonar", "data_manifest": "a.json"}])

    def test_unknown_strategy(self, build, tmp_path):
        with pytest.raises(InputError, match="received 'rewind'"):
            build(tmp_path / "run", "tiny_text", strategy="rewind")

    @pytest.mark.parametrize("where", ["changes", "entry"])
    def test_unknown_key(self, where, build, data, tmp_path):
        entry = {"modality": "tiny_picture", "data_manifest": str(data["tiny_picture"])}
        wrong = {"max_epoch": 3}
        chain = (
            build(tmp_path / "run", entry, changes=wrong)
            if where == "changes"
            else build(tmp_path / "run", entry | wrong)
        )
        with pytest.raises(InputError, match="stage 01_tiny_picture: max_epoch is no key of .*max_epochs"):
            chain.run()

    def test_missing_manifest(self, build, tmp_path):
        chain = build(tmp_path / "run", {"modality": "tiny_picture", "data_manifest": str(tmp_path / "gone.json")})
        with pytest.raises(InputError, match="stage 01_tiny_picture: data_manifest .*gone.json: no such file"):
            chain.run()

    def test_probes_are_looked_at_before_the_first_stage_runs(self, build, data, tmp_path):
        for probe, match in (
            (
                {"name": "a", "data_manifest": str(tmp_path / "gone.json")},
                "probe a: data_manifest .*gone.json: no such",
            ),
            ({"name": "a", "data_manifest": str(data["tiny_text"])}, "probe a: .* has no testing items"),
        ):
            with pytest.raises(InputError, match=match):
                build(tmp_path / "run", "tiny_picture", probes=[probe]).run()
        assert not list((tmp_path / "run").iterdir())

    def test_bad_images_of_a_later_stage_are_found_before_the_first_trains(self, build, tmp_path):
        entry = ENTRIES["tiny_volume"] | {"name": "tiny_volume"}
        broken = synthetic_manifest(tmp_path / "data", entry, count=4, shape=(12, 16, 24), defects=["truncated"])
        chain = build(tmp_path / "run", "tiny_text", {"modality": "tiny_volume", "data_manifest": str(broken)})
        with pytest.raises(RuntimeError) as caught:
            chain.run()
        assert "1 of 4 items are bad" in str(caught.value.__cause__ or caught.value)
        assert not (tmp_path / "run" / "01_tiny_text").exists()

    def test_later_stages_are_looked_at_before_the_first_runs(self, build, tmp_path):
        last = {"modality": "tiny_picture", "data_manifest": str(tmp_path / "gone.json")}
        for names, strategy in ((["tiny_text", "tiny_volume", last], "medcoss"), (["tiny_text", last], "joint")):
            with pytest.raises(InputError, match="gone.json: no such file"):
                build(tmp_path / "run", *names, strategy=strategy).run()
        assert not list((tmp_path / "run").iterdir())

    def test_folder_without_a_chain(self, build, tmp_path):
        with pytest.raises(InputError, match="holds no chain.json"):
            build(tmp_path / "run", "tiny_text", continue_from=tmp_path)
