"""Scoring tiny chains: while they run, after a kill, later, from other places."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from medcoss_components.engines.chain_inputs import read_chain
from medcoss_components.errors import InputError
from medcoss_components.files import read_json, write_json
from medcoss_components.retention import record as record_module
from medcoss_components.retention import scores
from medcoss_components.retention.probes import read_probes
from medcoss_components.retention.record import RetentionRecord, score_chain, text_preparation
from medcoss_components.tracking.runs import TrackedRun

STAGES = ["start", "01_tiny_picture", "02_tiny_text", "03_tiny_volume"]


class Crash(RuntimeError):
    """What a test throws."""


class Run(TrackedRun):
    """Keeps what is logged."""

    def __init__(self, run_id="run"):
        super().__init__("test")
        self.run_id, self.logged = run_id, []

    def log_metrics(self, values, step):
        self.logged.append((step, dict(values)))


@pytest.fixture
def copy(finished, tmp_path):
    """The finished chain in a folder of its own. Stores are where they were."""
    target = finished.parent / f"copy of {tmp_path.name}"
    shutil.copytree(finished, target)
    return target


@pytest.fixture
def no_embedding(monkeypatch):
    """Any embedding is an error."""

    def crash(*arguments, **options):
        raise Crash

    monkeypatch.setattr(record_module, "embed_source", crash)


def retention(folder):
    return read_json(folder / "retention.json")


class TestWholeChain:
    def test_matrix(self, finished):
        result = retention(finished)
        assert [stage["name"] for stage in result["stages"]] == STAGES
        assert [stage["modality"] for stage in result["stages"]] == [None, "tiny_picture", "tiny_text", "tiny_volume"]
        assert {name: probe["own"] for name, probe in result["probes"].items()} == {
            "probe_picture": 1,
            "probe_text": 2,
            "probe_volume": 3,
        }
        for probe in result["probes"].values():
            for kind in ("k_nn", "logistic"):
                assert len(probe[kind]) == 4 and all(0 <= value <= 1 for value in probe[kind])
            assert all(value in scores.STRENGTHS for value in probe["chosen_c"])
            assert probe["samples"] == {"training": 10, "validation": 4, "testing": 6}
            assert (probe["classes"], probe["majority"], probe["k"], probe["left_out"]) == (2, 0.5, 10, {})

    def test_label_free_part(self, finished):
        result = retention(finished)["reference"]
        assert {name: entry["own"] for name, entry in result.items()} == {
            "tiny_picture": 1,
            "tiny_text": 2,
            "tiny_volume": 3,
        }
        for entry in result.values():
            own = entry["own"]
            for key in ("cka", "overlap"):
                assert entry[key][:own] == [None] * own
                assert entry[key][own] == pytest.approx(1)
                assert all(0 <= value <= 1 for value in entry[key][own:])
        assert result["tiny_picture"]["cka"][3] < 1  # later stages have moved it

    def test_summary_follows_from_the_matrix(self, finished):
        result = retention(finished)
        for kind in ("k_nn", "logistic"):
            rows = [(probe[kind], probe["own"]) for probe in result["probes"].values()]
            summary = result["summary"][kind]
            assert summary["average_accuracy"] == pytest.approx(np.mean([row[-1] for row, _ in rows]))
            assert summary["backward_transfer"] == pytest.approx(
                np.mean([row[3] - row[own] for row, own in rows if own < 3])
            )
            assert summary["forgetting"] == pytest.approx(
                np.mean([max(row[own:3]) - row[3] for row, own in rows if own < 3])
            )

    def test_scores_are_those_of_the_stage_weights(self, finished, entries, store_dir):
        """Text after the last stage, with the model read in another way."""
        import torch

        from medcoss_components.engines.embedding import embed_source
        from medcoss_components.networks.pretraining import PretrainingModel
        from medcoss_components.text.vocabulary import load_vocabulary
        from medcoss_components.weights import load_initial_weights

        folder = finished / "03_tiny_volume"
        vocabulary = load_vocabulary(folder / "vocabulary.json")
        splits = read_probes([entries[1]])[0].open(store_dir, vocabulary=vocabulary, workers=1)
        model = PretrainingModel(preset="demo", **read_json(folder / "metrics.json")["network"])
        load_initial_weights(model, folder / "model.pt", parts="all")
        features = {
            split: embed_source(model, content, device=torch.device("cpu"), precision="float32", pad_id=0)
            for split, content in splits.items()
        }
        expected = scores.knn_accuracy(
            features["training"], splits["training"].targets, features["testing"], splits["testing"].targets, k=10
        )
        assert retention(finished)["probes"]["probe_text"]["k_nn"][3] == pytest.approx(expected)

    def test_picture(self, finished):
        with Image.open(finished / "retention.png") as image:
            assert image.width > 400 and image.height > 400

    def test_again_computes_nothing(self, copy, build, entries, no_embedding):
        before = (copy / "retention.json").read_bytes()
        build(copy, "tiny_picture", "tiny_text", "tiny_volume", probes=entries).run()
        assert (copy / "retention.json").read_bytes() == before

    def test_settings_are_recorded(self, finished, entries):
        settings = read_chain(finished)["settings"]
        assert settings["probes"] == entries and settings["reference_samples"] == 500


class TestResuming:
    def test_killed_between_two_probes(self, build, entries, finished, tmp_path, monkeypatch):
        """The fourth vote is that of the last probe of the first stage; what was scored before is kept."""
        original, calls = scores.knn_accuracy, []

        def vote(*arguments, **options):
            calls.append(1)
            if len(calls) == 4:
                raise Crash
            return original(*arguments, **options)

        monkeypatch.setattr(scores, "knn_accuracy", vote)
        chain = ("tiny_picture", "tiny_text", "tiny_volume")
        with pytest.raises(Crash):
            build(tmp_path / "run", *chain, probes=entries).run()
        assert list(read_json(tmp_path / "run/retention/01_tiny_picture.json")["probes"]) == [
            "probe_picture",
            "probe_text",
        ]
        build(tmp_path / "run", *chain, probes=entries).run()
        assert len(calls) == 4 + 9  # twelve cells, three of them before the kill
        assert retention(tmp_path / "run") == retention(finished)

    def test_probes_given_later(self, build, entries, finished, tmp_path):
        chain = ("tiny_picture", "tiny_text", "tiny_volume")
        build(tmp_path / "run", *chain).run()
        assert retention(tmp_path / "run")["probes"] == {}
        assert retention(tmp_path / "run")["summary"]["k_nn"]["forgetting"] is None
        build(tmp_path / "run", *chain, probes=entries).run()
        assert retention(tmp_path / "run") == retention(finished)

    def test_text_before_there_is_a_vocabulary(self, build, entries, tmp_path):
        build(tmp_path / "run", "tiny_picture", probes=entries).run()
        probe = retention(tmp_path / "run")["probes"]["probe_text"]
        assert probe["k_nn"] == [None, None] and probe["own"] is None
        assert probe["left_out"]["start"] == "no text was learned yet, so there is no vocabulary"
        build(tmp_path / "run", "tiny_picture", "tiny_text", probes=entries).run()
        probe = retention(tmp_path / "run")["probes"]["probe_text"]
        assert None not in probe["k_nn"] and probe["left_out"] == {}

    def test_another_sample_of_a_probe_is_scored_anew(self, copy, entries):
        before = retention(copy)["probes"]["probe_picture"]
        probes = read_probes([entries[0] | {"limit": 4}])
        after = score_chain(copy, read_chain(copy), probes=probes)["probes"]
        assert before["samples"]["testing"] == 6 and after["probe_picture"]["samples"]["testing"] == 4
        assert list(after) == ["probe_picture", "probe_text", "probe_volume"]

    def test_stage_that_was_trained_anew_is_scored_anew(self, copy, entries):
        path = copy / "03_tiny_volume/stage.json"
        content = read_json(path)
        content["steps"]["train"]["finished"] = "2030-01-01T00:00:00+00:00"
        write_json(path, content)
        assert "probe_text" in read_json(copy / "retention/03_tiny_volume.json")["probes"]
        score_chain(copy, read_chain(copy), probes=read_probes(entries[:1]))
        assert list(read_json(copy / "retention/03_tiny_volume.json")["probes"]) == ["probe_picture"]


class TestOtherChains:
    def test_continued_chain_knows_the_earlier_ones(self, build, entries, tmp_path):
        build(tmp_path / "first", "tiny_picture").run()
        folder = build(tmp_path / "second", "tiny_volume", continue_from=tmp_path / "first", probes=entries).run()
        result = retention(folder)
        assert [stage["name"] for stage in result["stages"]] == ["start", "02_tiny_volume"]
        assert {name: probe["own"] for name, probe in result["probes"].items()} == {
            "probe_picture": 0,
            "probe_text": None,
            "probe_volume": 1,
        }
        picture = result["reference"]["tiny_picture"]
        assert picture["own"] == 0 and picture["cka"][0] == pytest.approx(1) and picture["cka"][1] < 1
        earlier, later = (retention(tmp_path / name)["reference"]["tiny_picture"] for name in ("first", "second"))
        assert earlier["samples"] == later["samples"]

    def test_joint_stage_learns_all(self, build, entries, tmp_path):
        folder = build(tmp_path / "run", "tiny_picture", "tiny_text", strategy="joint", probes=entries).run()
        probes = retention(folder)["probes"]
        assert {name: probe["own"] for name, probe in probes.items()} == {
            "probe_picture": 1,
            "probe_text": 1,
            "probe_volume": None,
        }
        assert retention(folder)["summary"]["k_nn"]["forgetting"] is None

    @pytest.mark.parametrize("strategy", ["cassle", "ewc", "medcoss_reversed"])
    def test_strategies_with_parts_of_their_own(self, strategy, build, entries, tmp_path):
        """The start is built again as it was, and the own stage follows the order that the strategy gives."""
        folder = build(tmp_path / "run", "tiny_picture", "tiny_volume", strategy=strategy, probes=entries[:1]).run()
        result = retention(folder)
        probe = result["probes"]["probe_picture"]
        assert probe["left_out"] == {} and None not in probe["k_nn"]
        assert probe["own"] == (2 if strategy == "medcoss_reversed" else 1)
        assert result["reference"]["tiny_picture"]["own"] == probe["own"]

    def test_nothing_to_score(self, build, tmp_path):
        folder = build(tmp_path / "run", "tiny_picture", reference_samples=0).run()
        assert not (folder / "retention.json").exists() and not (folder / "retention").exists()
        with pytest.raises(InputError, match="nothing to score"):
            score_chain(folder, read_chain(folder), reference_samples=0)

    def test_chain_without_a_finished_stage(self, tmp_path):
        record = {"stages": [], "settings": {"stages": []}}
        assert RetentionRecord(tmp_path).update(record) is None

    @pytest.mark.parametrize("count", [-1, 1])
    def test_number_of_reference_samples(self, count, tmp_path):
        with pytest.raises(InputError, match=f"reference_samples={count} must be 0"):
            RetentionRecord(tmp_path, reference_samples=count)


class TestWhatIsGone:
    def test_weights_of_a_stage(self, copy, entries, caplog):
        for name in ("model.pt", "encoder.safetensors"):
            (copy / "02_tiny_text" / name).unlink()
        shutil.rmtree(copy / "retention")
        result = score_chain(copy, read_chain(copy), probes=read_probes(entries))
        reason = "the weights of this encoder are not there"
        assert result["probes"]["probe_text"]["left_out"] == {"02_tiny_text": reason}
        assert result["probes"]["probe_text"]["k_nn"][2] is None
        assert result["reference"]["tiny_text"]["left_out"] == {
            name: "its samples or the weights of its stage are gone" for name in STAGES[2:]
        }
        assert result["reference"]["tiny_picture"]["cka"][2] is None
        assert "02_tiny_text is left out" in caplog.text

    def test_start_that_cannot_be_built_again(self, copy, entries, caplog):
        path = copy / "01_tiny_picture/stage.json"
        content = read_json(path)
        content["settings"]["initial_weights"] = "0" * 64
        write_json(path, content)
        result = score_chain(copy, read_chain(copy), probes=read_probes(entries[:1]))
        assert "start" in result["probes"]["probe_picture"]["left_out"]
        assert "random weights: give other weights" in caplog.text

    def test_store_of_a_modality(self, copy, tmp_path, caplog):
        for name in STAGES[1:]:
            path = copy / name / "buffer.json"
            content = json.loads(path.read_text())
            content["store"] = "gone"
            write_json(path, content)
        shutil.rmtree(copy / "retention")
        result = score_chain(copy, read_chain(copy), store_dir=tmp_path)
        assert all(None in entry["cka"] for entry in result["reference"].values())
        assert "has no usable store" in caplog.text


class TestTracking:
    def test_metrics_of_each_stage_once(self, copy):
        record, run = read_chain(copy), Run()
        scorer = RetentionRecord(copy)
        scorer.update(record, run)
        assert [step for step, _ in run.logged] == [0, 1, 2, 3]
        assert {"retention/k_nn/probe_text", "retention/logistic/probe_text"} <= set(run.logged[0][1])
        assert {"retention/cka/tiny_picture", "retention/overlap/tiny_picture"} <= set(run.logged[3][1])
        assert "retention/cka/tiny_volume" not in run.logged[2][1]
        scorer.update(record, run)
        assert len(run.logged) == 4
        scorer.update(record, Run("another"))

    def test_run_that_records_nothing(self, copy):
        run = Run(None)
        RetentionRecord(copy).update(read_chain(copy), run)
        assert run.logged == []


def test_rehearsed_samples_are_no_reference_where_others_are_left(finished, monkeypatch):
    from medcoss_components.continual.buffer import read_buffer
    from medcoss_components.retention import reference
    from medcoss_components.retention.encoders import chain_columns

    entry = reference.references(chain_columns(finished, read_chain(finished)), {})[0]
    buffer = set(read_buffer(entry.column.folder).indices)
    assert len(entry.samples(500, seed=0)) == 10  # few are left: all count
    monkeypatch.setattr(reference, "FEWEST", 5)
    rows = entry.samples(500, seed=0).indices.tolist()
    assert set(rows) == set(range(10)) - buffer and len(buffer) == 3
    assert len(entry.samples(4, seed=0)) == 4
    assert entry.samples(4, seed=0).ids == entry.samples(4, seed=0).ids


def test_a_copy_of_the_buffer_does_not_stand_for_the_store(finished, monkeypatch, tmp_path):
    from medcoss_components.continual.buffer import materialise_buffer, open_buffer_store, read_buffer
    from medcoss_components.retention import reference
    from medcoss_components.retention.encoders import chain_columns

    entry = reference.references(chain_columns(finished, read_chain(finished)), {})[0]
    buffer = read_buffer(entry.column.folder)
    copied = materialise_buffer(buffer, open_buffer_store(buffer).store, tmp_path / "buffer")
    monkeypatch.setattr(reference, "read_buffer", lambda folder: copied)
    monkeypatch.setattr(reference, "FEWEST", 5)
    assert not set(entry.samples(500, seed=0).ids) & set(buffer.ids)
    lost = replace(copied, store=str(tmp_path / "gone"))
    monkeypatch.setattr(reference, "read_buffer", lambda folder: lost)
    assert set(entry.samples(500, seed=0).ids) == set(buffer.ids)


class TestTextPreparation:
    def test_that_of_the_stage(self, entries):
        picture, text, _ = read_probes(entries)
        stages = [
            {
                "modality": "tiny_picture",
                "joint": [{"modality": {"name": "tiny_text"}, "preparation": {"max_length": 5}}],
            }
        ]
        assert text_preparation(text, {"stages": stages}) == {"max_length": 5}
        assert text_preparation(picture, {"stages": stages}) is None

    def test_that_of_the_chain(self, entries):
        text = read_probes(entries)[1]
        assert text_preparation(text, {"stages": [], "preparation": {"max_length": 7}}) == {"max_length": 7}
        assert text_preparation(text, {"stages": [{"modality": "tiny_text"}]}) is None
