"""The retention experiment on made-up sentences and pictures: every run works, resumes, and is counted right."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import retention
import retention_data
import retention_plan
import retention_report
import retention_run
import retention_scores
import retention_summary
from retention_plan import FIRST, STRATEGIES, Scale, Unit, epochs_for, expected_seconds, units, with_needed

from medcoss_components.continual.buffer import read_buffer
from medcoss_components.continual.strategies import get_strategy
from medcoss_components.data.synthetic import LABELS, synthetic_manifest
from medcoss_components.engines import chain as chain_module
from medcoss_components.engines import stage as stage_module
from medcoss_components.errors import InputError
from medcoss_components.files import read_json, write_json

MODALITIES = [
    {"name": "tiny_text", "dimension": 1, "input_shape": [14], "intensity": "tokens"},
    {
        "name": "tiny_picture",
        "dimension": 2,
        "input_shape": [3, 8, 18],
        "intensity": "unit_range",
        "stored_channels": 1,
    },
]
TEXT, PICTURE = (entry["name"] for entry in MODALITIES)
SIZES = {"width": 24, "depth": 2, "heads": 2, "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
SIZES |= {"vocabulary_size": 160, "text_positions": 16, "patch_2d": [4, 6], "grid_2d": [2, 3]}
RUNS = ("sequential", "medcoss", "joint", "medcoss_random_exemplars", "medcoss_reversed")


def manifests(folder):
    """Modality -> manifest with labels and all three splits."""
    shapes = {TEXT: None, PICTURE: (16, 36)}
    return {
        entry["name"]: str(
            synthetic_manifest(
                folder / entry["name"],
                entry,
                count=24,
                validation=8,
                testing=6,
                classes=LABELS,
                shape=shapes[entry["name"]],
            )
        )
        for entry in MODALITIES
    }


def tiny_scale(folder):
    """Two stages, two probes, a network of some thousand weights."""
    standard = retention_plan.standard_scale("sample_data")
    found = manifests(folder)
    stage = {"updates": 4, "batch_size": 6, "learning_rate": 1e-3}
    return Scale(
        stages=[{**stage, "modality": name, "manifest": path} for name, path in found.items()],
        probes=[{"name": f"{name}_probe", "modality": name, "k": 3, "manifest": path} for name, path in found.items()],
        few_labels={"8": 1},
        stage_config=standard.stage_config,
        task_config=standard.task_config,
        network={"preset": "demo"} | SIZES,
        vocabulary_size=110,
        precision="float32",
        buffer_ratio=0.3,
        cluster_ratio=0.2,
        reference_samples=6,
        few_labels_batch=4,
        extra_modalities=MODALITIES,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Root folder, data and results of some runs of seed 0; pictures and reports of the chains are left out."""
    root = tmp_path_factory.mktemp("retention")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage_module, "write_previews", lambda stage: (stage.folder / "previews").mkdir(exist_ok=True))
        patch.setattr(chain_module, "write_report", lambda folder: folder / "REPORT.html")
        patch.setattr(chain_module, "summary_table", lambda folder: "table")
        data = retention_data.Data(tiny_scale(root / "data"), root / "runs")
        data.prepare()
        results = {name: retention_run.run_unit(Unit(0, name), data) for name in (FIRST, *RUNS)}
    return data, results


class TestPlan:
    def test_all_strategies_exist_and_the_standard_order_completes_a_seed_first(self):
        assert {get_strategy(name).name for name in STRATEGIES} == set(STRATEGIES)
        order = units([0, 1])
        assert [str(unit) for unit in order[:4]] == ["0:first", "0:sequential", "0:medcoss", "0:experience_replay"]
        assert [unit.seed for unit in order] == [0] * 13 + [1] * 13

    def test_what_branches_needs_stage_1_of_its_seed(self):
        assert Unit(2, "medcoss").needs == Unit(2, FIRST)
        assert Unit(2, "joint").needs is None and Unit(2, "medcoss_reversed").needs is None
        assert with_needed([Unit(1, "ewc"), Unit(1, "medcoss")]) == [Unit(1, FIRST), Unit(1, "ewc"), Unit(1, "medcoss")]

    @pytest.mark.parametrize("text", ["medcoss", "x:medcoss", "0:packnet"])
    def test_a_run_is_named_by_seed_and_strategy(self, text):
        with pytest.raises(InputError, match=text):
            Unit.parse(text)

    def test_unknown_strategies_are_refused(self):
        with pytest.raises(InputError, match="packnet"):
            units([0], ["packnet"])

    @pytest.mark.parametrize(("samples", "batch"), [(244, 16), (105, 16), (45441, 64), (5, 16)])
    def test_updates_are_the_same_with_and_without_rehearsal(self, samples, batch):
        batches = -(-samples // batch)
        with_buffers = 2 * batches * epochs_for(400, samples, batch, rehearsal=True)
        assert with_buffers == batches * epochs_for(400, samples, batch, rehearsal=False)

    def test_the_first_call_needs_the_sample_data(self, tmp_path):
        with pytest.raises(InputError, match="medcoss sample fetch"):
            retention_plan.open_scale(tmp_path, tmp_path / "none")

    def test_settings_stay_with_the_folder(self, tmp_path):
        write_sample(tmp_path / "sample")
        scale = retention_plan.open_scale(tmp_path / "root", tmp_path / "sample")
        assert retention_plan.open_scale(tmp_path / "root", None) == scale
        assert [stage["modality"] for stage in scale.stages] == ["report", "xray", "ct", "mri", "pathology"]

    def test_minutes_come_from_finished_runs_where_there_are_some(self, tmp_path):
        scale = retention_plan.standard_scale("sample_data")
        guess = expected_seconds(Unit(0, "medcoss"), scale, tmp_path)
        assert 0 < guess < expected_seconds(Unit(0, "sequential"), scale, tmp_path)
        write_json(tmp_path / "seed0" / "medcoss" / "result.json", {"seconds": {"total": 12.0}})
        assert expected_seconds(Unit(1, "medcoss"), scale, tmp_path) == 12.0


class TestRuns:
    def test_every_strategy_makes_the_same_updates_in_the_same_stages(self, finished):
        _, results = finished
        assert [row["updates"] for row in results[FIRST]["stages"]] == [0, 8]
        for name in ("sequential", "medcoss", "medcoss_random_exemplars"):
            assert [row["updates"] for row in results[name]["stages"]] == [8], name
        assert results["joint"]["updates"] == results["medcoss_reversed"]["updates"] == 16

    def test_reversed_ends_with_the_text(self, finished):
        _, results = finished
        assert [row["modality"] for row in results["medcoss_reversed"]["stages"]] == [PICTURE, TEXT]
        assert list(results["medcoss_reversed"]["stages"][0]["probes"]) == [f"{PICTURE}_probe"]

    def test_branches_start_from_stage_1_and_are_compared_with_it(self, finished):
        data, results = finished
        record = read_json(Unit(0, "medcoss").folder(data.root) / f"01_{PICTURE}" / "stage.json")
        assert record["values"] and "initial_weights" in record["settings"]
        assert set(results["medcoss"]["stages"][0]["cka"]) == {TEXT}
        assert 0 <= results["sequential"]["stages"][0]["cka"][TEXT] <= 1

    def test_only_the_untrained_the_first_and_the_last_encoder_are_fine_tuned(self, finished):
        _, results = finished
        assert [sorted(row["few_labels"]) for row in results[FIRST]["stages"]] == [["8"], ["8"]]
        assert [sorted(row["few_labels"]) for row in results["medcoss_reversed"]["stages"]] == [[], ["8"]]

    def test_a_variant_chooses_the_first_buffer_anew(self, finished):
        data, _ = finished
        own = read_buffer(retention_run.first_stage(Unit(0, "medcoss"), data))
        other = read_buffer(Unit(0, "medcoss_random_exemplars").folder(data.root) / "first_buffer")
        assert len(own) == len(other) == 7 and own.indices != other.indices
        assert own.store_key == other.store_key
        assert retention_run.first_buffer(Unit(0, "medcoss"), data).parent.name == f"01_{TEXT}"

    def test_a_finished_run_is_not_run_again(self, finished, monkeypatch):
        data, results = finished
        monkeypatch.setattr(retention_run, "build_chain", None)
        assert retention_run.run_unit(Unit(0, "medcoss"), data) == results["medcoss"]

    def test_scores_that_are_there_are_read(self, finished, tmp_path):
        data, _ = finished
        write_json(tmp_path / "scores.json", {"probes": {}})
        options = {"weights": None, "seed": 0, "learned": ()}
        assert retention_scores.score_encoder(data, path=tmp_path / "scores.json", **options) == {"probes": {}}

    def test_an_interrupted_run_keeps_its_seconds(self, finished, monkeypatch):
        data, _ = finished

        def broken(unit, given):
            raise InputError("stop here")

        monkeypatch.setattr(retention_run, "build_chain", broken)
        folder = Unit(7, "joint").folder(data.root)
        write_json(folder / "seconds.json", {"total": 100.0})
        with pytest.raises(InputError, match="stop here"):
            retention_run.run_unit(Unit(7, "joint"), data)
        assert read_json(folder / "seconds.json")["total"] >= 100.0


class TestSummary:
    def test_interval_by_hand(self):
        found = retention_summary.interval([1.0, 2.0, 3.0])
        assert found["mean"] == 2.0
        assert found["high"] == pytest.approx(2 + 4.302653 / np.sqrt(3), abs=1e-5)
        assert retention_summary.interval([1.0])["low"] is None
        assert retention_summary.interval([])["mean"] is None

    def test_kept_and_paired_by_hand(self, tmp_path):
        values = {0: (0.6, {"sequential": 0.5, "medcoss": 0.59}), 1: (0.7, {"sequential": 0.5, "medcoss": 0.68})}
        for seed, (own, finals) in values.items():
            write_json(
                tmp_path / f"seed{seed}" / FIRST / "result.json", result(seed, FIRST, [(None, 0.4), (TEXT, own)])
            )
            for name, final in finals.items():
                write_json(tmp_path / f"seed{seed}" / name / "result.json", result(seed, name, [(PICTURE, final)]))
        summary = retention_summary.Summary(summary_scale(), tmp_path)
        table = summary.kept(TEXT, retention_summary._probe("text", "k_nn"))
        assert table["sequential"]["after_own_stage"] == [0.6, 0.7]
        assert table["sequential"]["forgetting"] == pytest.approx([0.1, 0.2])
        (pair,) = summary.paired(table)
        assert (pair["first"], pair["second"]) == ("sequential", "medcoss")
        assert pair["differences"] == pytest.approx([0.09, 0.18])
        assert summary.curves()["medcoss"] == [[0.6, 0.59], [0.7, 0.68]]

    def test_forgetting_since_the_best_stage_and_what_it_cost(self, tmp_path):
        for name, last in (("sequential", 0.4), ("medcoss", 0.5)):
            run = result(0, name, [(PICTURE, 0.7), ("ct", last)])
            run["stages"][0]["validation_loss"] = last
            write_json(tmp_path / "seed0" / name / "result.json", run)
        write_json(tmp_path / "seed0" / FIRST / "result.json", result(0, FIRST, [(None, 0.3), ("report", 0.6)]))
        summary = retention_summary.Summary(summary_scale(), tmp_path)
        table = summary.kept("report", retention_summary._probe("text", "k_nn"))
        assert table["medcoss"]["forgetting"] == pytest.approx([0.1])
        assert table["medcoss"]["forgetting_from_best"] == pytest.approx([0.2])
        (pair,) = summary.paired(table, "forgetting_from_best")
        assert pair["differences"] == pytest.approx([0.1])
        assert summary.paired_plasticity() == {"medcoss": {PICTURE: pytest.approx([0.1])}}

    def test_a_branch_without_stage_1_does_not_count(self, tmp_path):
        write_json(tmp_path / "seed0" / "medcoss" / "result.json", result(0, "medcoss", [(PICTURE, 0.5)]))
        assert retention_summary.Summary(summary_scale(), tmp_path).strategies == []

    def test_report_of_the_finished_runs(self, finished, tmp_path):
        data, _ = finished
        paths = retention_report.write_report(data.scale, data.root, tmp_path)
        content = json.loads(paths["json"].read_text())
        assert set(content["text_probe"]) == set(RUNS)
        columns = {"after_own_stage", "final", "forgetting", "forgetting_from_best"}
        assert set(content["text_probe"]["medcoss"]) == columns
        assert content["text_probe"]["joint"]["forgetting"] == [0.0]
        assert content["updates"]["medcoss"] == [8, 8]
        assert str(data.root.parent) not in paths["json"].read_text()
        text = paths["md"].read_text()
        assert text.count("| sequential - medcoss |") == 4 and "fine-tuned on 8 labels" in text
        assert content["paired_plasticity"].keys() >= {"medcoss"} and "above 0 is learned worse" in text
        assert paths["png"].stat().st_size > 1000

    def test_a_report_before_any_run(self, finished, tmp_path):
        data, _ = finished
        paths = retention_report.write_report(data.scale, tmp_path / "nothing", tmp_path)
        assert json.loads(paths["json"].read_text())["text_probe"] == {}


def write_sample(folder):
    """Empty manifests where those of the sample data are."""
    scale = retention_plan.standard_scale(folder)
    for entry in (*scale.stages, *scale.probes):
        write_json(Path(entry["manifest"]), {})


def result(seed, name, rows):
    """What a run writes, with the text probe alone."""
    stages = [
        {"stage": "x", "modality": modality, "updates": 1, "validation_loss": None, "cka": {}, "overlap": {}}
        | {"few_labels": {}, "probes": {"text": {"k_nn": value}}}
        for modality, value in rows
    ]
    return {"seed": seed, "name": name, "stages": stages, "updates": 1, "seconds": {"total": 1.0}}


def summary_scale():
    stages = [{"modality": name, "manifest": "a/b/c"} for name in (TEXT, PICTURE)]
    probes = [{"name": "text", "modality": TEXT, "manifest": "a/b/c", "k": 1}]
    return Scale(stages=stages, probes=probes, few_labels={}, stage_config="", task_config="", network={})


class TestQueue:
    """The queue starts small scripts in place of runs."""

    @staticmethod
    def queue(root, chosen, script, **options):
        def start(unit):
            folder = unit.folder(root)
            folder.mkdir(parents=True, exist_ok=True)
            assert unit.needs is None or unit.needs.done(root)
            # a shell makes its background processes ignore Ctrl-C, and they hand that down
            heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
            return subprocess.Popen([sys.executable, "-c", script, str(folder / "result.json")], preexec_fn=heard)

        return retention.Queue(chosen=chosen, root=root, start=start, **options)

    @pytest.fixture(autouse=True)
    def fast(self, monkeypatch):
        monkeypatch.setattr(retention, "POLL_SECONDS", 0.01)

    def test_runs_wait_for_what_they_need(self, tmp_path, capsys):
        writes = "import sys, time; time.sleep(0.1); open(sys.argv[1], 'w').write('{}')"
        assert self.queue(tmp_path, [Unit(0, FIRST), Unit(0, "medcoss"), Unit(0, "ewc")], writes, jobs=2).run()
        said = capsys.readouterr().out
        assert all(said.count(f"done  {name}") == 1 for name in ("0:first", "0:medcoss", "0:ewc"))

    def test_a_failed_run_is_told_and_not_repeated(self, tmp_path, capsys):
        queue = self.queue(tmp_path, [Unit(0, FIRST), Unit(0, "medcoss")], "raise SystemExit(1)")
        assert not queue.run() and queue.failed == [Unit(0, FIRST)]
        assert capsys.readouterr().out.count("ended without a result: 0:first") == 1

    def test_time_is_up(self, tmp_path, capsys):
        sleeps = "import time; time.sleep(60)"
        queue = self.queue(tmp_path, [Unit(0, FIRST)], sleeps, deadline=time.monotonic() + 0.3)
        assert not queue.run() and not queue.failed and not queue.running
        assert "stopped 0:first" in capsys.readouterr().out

    def test_one_that_does_not_stop_is_killed(self, tmp_path, monkeypatch):
        monkeypatch.setattr(retention, "GRACE_SECONDS", 0.1)
        deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
        queue = self.queue(tmp_path, [Unit(0, FIRST)], deaf, deadline=time.monotonic() + 1.0)
        assert not queue.run() and not queue.running


class TestCommandLine:
    @pytest.fixture(autouse=True)
    def same_signals(self):
        kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        yield
        for number, handler in kept.items():
            signal.signal(number, handler)

    @pytest.fixture
    def root(self, tmp_path):
        write_sample(tmp_path / "sample")
        retention_plan.open_scale(tmp_path / "root", tmp_path / "sample")
        return tmp_path / "root"

    def test_list(self, root, capsys):
        write_json(root / "seed0" / FIRST / "result.json", {"seconds": {"total": 60.0}})
        assert retention.main(["--root", str(root), "--list", "--only", "0:medcoss", "--jobs", "2"]) == 0
        said = capsys.readouterr().out
        assert "done   0:first" in said and "left   0:medcoss" in said and "1 of 2 done" in said

    def test_wrong_input_ends_with_1(self, tmp_path, capsys):
        assert retention.main(["--root", str(tmp_path), "--sample-dir", str(tmp_path), "--list"]) == 1
        assert "manifest.json is not there; run `medcoss sample fetch DIR`" in capsys.readouterr().err
        assert retention.main(["--root", str(tmp_path), "--list"]) == 1
        assert "--sample-dir: is needed at the first call" in capsys.readouterr().err

    def test_all_then_report(self, root, monkeypatch, capsys):
        monkeypatch.setattr(retention_data.Data, "prepare", lambda data: None)
        monkeypatch.setattr(retention.Queue, "run", lambda queue: True)
        monkeypatch.setattr(retention, "report", lambda scale, folder, record: print("reported", folder.name))
        assert retention.main(["--root", str(root), "--limit-minutes", "1"]) == 0
        assert "reported root" in capsys.readouterr().out

    def test_time_was_up(self, root, monkeypatch, capsys):
        monkeypatch.setattr(retention_data.Data, "prepare", lambda data: None)
        monkeypatch.setattr(retention.Queue, "run", lambda queue: False)
        assert retention.main(["--root", str(root), "--only", "0:joint"]) == 3
        assert "0 of 1 done" in capsys.readouterr().out

    def test_only_the_report(self, root, monkeypatch, capsys, tmp_path):
        monkeypatch.setattr(retention_report, "write_report", lambda scale, folder, results: {"json": results})
        assert retention.main(["--root", str(root), "--report"]) == 0
        assert capsys.readouterr().out == f"{root.resolve() / 'report'}\n"
        assert retention.main(["--root", str(root), "--report", "--record"]) == 0
        assert capsys.readouterr().out == f"{retention.RESULTS}\n"

    def test_interrupted_by_hand(self, root, monkeypatch):
        def interrupted(*arguments):
            raise KeyboardInterrupt

        monkeypatch.setattr(retention, "run_all", interrupted)
        assert retention.main(["--root", str(root)]) == 130

    def test_a_run_in_this_process(self, root, monkeypatch):
        seen = []
        monkeypatch.setattr(retention_run, "run_unit", lambda unit, data: seen.append((str(unit), data.root)))
        assert retention.main(["--root", str(root), "--in-process", "1:ewc"]) == 0
        assert seen == [("1:ewc", root.resolve())]

    def test_a_process_gets_one_thread_and_a_log(self, root, monkeypatch):
        seen = {}
        monkeypatch.setattr(subprocess, "Popen", lambda command, **options: seen.update(options, command=command))
        retention.start_process(Unit(0, "ewc"), root, jobs=2)
        assert seen["env"]["OMP_NUM_THREADS"] == "1" and seen["command"][-2:] == ["--in-process", "0:ewc"]
        assert (root / "seed0" / "ewc.log").is_file()
