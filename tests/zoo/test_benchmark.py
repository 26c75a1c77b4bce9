"""Benchmarks: what is run, what is not repeated, what is refused; numbers that can be derived by hand."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
import torch
import typer

from medcoss_components import cli_benchmark
from medcoss_components.errors import InputError
from medcoss_components.evaluation.classification import classification_metrics
from medcoss_components.evaluation.results import ClassificationResult, SegmentationResult
from medcoss_components.files import read_json, write_json
from medcoss_components.tracking.task_report import write_cases
from medcoss_components.zoo import benchmark as module
from medcoss_components.zoo.benchmark import (
    Benchmark,
    Initialisation,
    parse_initialisations,
    parse_seeds,
    parse_settings,
    run_benchmark,
)
from medcoss_components.zoo.benchmark_cases import CaseTable, compare_cases, read_cases
from medcoss_components.zoo.benchmark_results import (
    scores,
    seed_comparison,
    spread,
    write_results,
)

RUNNER = """
import json, os, pathlib, sys
given = dict(text[2:].split("=", 1) for text in sys.argv[1:])
output, seed = pathlib.Path(given["output_dir"]), int(given["seed"])
init = given["init_weights"]
with open(pathlib.Path(__file__).with_name("calls.jsonl"), "a") as stream:
    stream.write(json.dumps(given) + chr(10))
if given.get("fail") == given["seed"] and init != "$None":
    print("working"); print("error: the loss is NaN"); print("(MEDCOSS_DEBUG=1 shows the traceback)"); sys.exit(1)
score = 0.5 + seed / 100 + (0 if init == "$None" else 0.1 + seed / 1000)
cases = output / "evaluation" / "testing"
cases.mkdir(parents=True)
right = 2 if init == "$None" else 3
says_a = [(n < right) == (n % 2 == 0) for n in range(4)]
rows = [f"c{n},g{n // 2},{'ab'[n % 2]},{int(a)},{int(not a)}" for n, a in enumerate(says_a)]
(cases / "cases.csv").write_text("case,group,target,prob_a,prob_b" + chr(10) + chr(10).join(rows))
metrics = {"testing": {"accuracy": score, "auc/a": 1.0}, "validation": {"accuracy": 0.9}, "best_epoch": 2, "samples": 7}
if given.get("silent") != given["seed"]:
    (output / "metrics.json").write_text(json.dumps(metrics))
"""


@pytest.fixture
def root(tmp_path):
    """A folder with one bundle that has what every task's bundle has, a manifest and weights."""
    keys = dict.fromkeys((*module.OWN_KEYS, "tracking_dir", "fail", "silent", "learning_rate"))
    write_json(tmp_path / "bundles" / "task_one" / "configs" / "train.json", keys)
    write_json(tmp_path / "bundles" / "task_one" / "configs" / "demo.json", {"preset": "demo"})
    write_json(tmp_path / "bundles" / "chain" / "configs" / "train.json", {"seed": 0})
    write_json(tmp_path / "manifest.json", {"any": "content"})
    (tmp_path / "chain").mkdir()
    torch.save({"weight": torch.zeros(2)}, tmp_path / "chain" / "model.pt")
    (tmp_path / "runner.py").write_text(RUNNER)
    return tmp_path


@pytest.fixture
def launcher(root, monkeypatch):
    """A program that writes results at once instead of training."""
    monkeypatch.setattr(module, "LAUNCHER", (sys.executable, str(root / "runner.py")))
    return (sys.executable, str(root / "runner.py"))


@pytest.fixture
def plan(root):
    """``plan(**changes)``: two initialisations, two seeds."""

    def build(**changes):
        given = {
            "bundle": root / "bundles" / "task_one",
            "data_manifest": root / "manifest.json",
            "folder": root / "out",
            "initialisations": (Initialisation("scratch"), Initialisation("chain", root / "chain")),
            "seeds": (0, 10),
        }
        return Benchmark(**(given | changes))

    return build


def calls(root):
    path = root / "calls.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


class TestParsing:
    def test_initialisations(self, tmp_path):
        found = parse_initialisations(["scratch,chain=runs/demo/05_pathology", "weights/other.pt"])
        assert [(entry.name, str(entry.source)) for entry in found] == [
            ("scratch", "None"),
            ("chain", "runs/demo/05_pathology"),
            ("other", "weights/other.pt"),
        ]

    @pytest.mark.parametrize(("values", "shown"), [([","], "','"), (["a b=x"], "'a b=x'"), (["logs=x"], "'logs=x'")])
    def test_bad_initialisations(self, values, shown):
        with pytest.raises(InputError, match=shown):
            parse_initialisations(values)

    def test_seeds(self):
        assert parse_seeds("0, 10,100") == (0, 10, 100)
        with pytest.raises(InputError, match="'-1' in '0,-1'"):
            parse_seeds("0,-1")

    def test_settings(self):
        assert parse_settings(["max_epochs=3", "--network_def#depth=2", "a=b=c"]) == {
            "max_epochs": "3",
            "network_def#depth": "2",
            "a": "b=c",
        }
        for wrong in (["max_epochs"], ["a=1", "a=2"], ["=1"]):
            with pytest.raises(InputError, match=f"got '{wrong[-1]}'"):
                parse_settings(wrong)


class TestPlan:
    def test_command(self, plan, root):
        made = plan(overlays=("demo",), settings={"learning_rate": "1e-3"})
        run = made.runs()[1]
        configs = [str(root / "bundles" / "task_one" / "configs" / name) for name in ("train.json", "demo.json")]
        assert run.key == "chain/seed_0"
        assert made.command(run) == [
            f"--config_file={configs}",
            f"--data_manifest={root / 'manifest.json'}",
            f"--init_weights={root / 'chain'}",
            "--seed=0",
            f"--output_dir={root / 'out' / 'chain' / 'seed_0'}",
            f"--tracking_dir={root / 'out'}",
            "--learning_rate=1e-3",
        ]
        assert "--init_weights=$None" in made.command(made.runs()[0])

    @pytest.mark.parametrize(
        ("changes", "shown"),
        [
            ({"seeds": (1, 1)}, r"\[1, 1\]"),
            ({"seeds": ()}, r"\[\]"),
            ({"initialisations": (Initialisation("a"), Initialisation("a"))}, r"\['a', 'a'\]"),
            ({"settings": {"seed": "3"}}, "seed is given"),
            ({"overlays": ("gone",)}, "gone.json: no such config; there are: demo, train"),
        ],
    )
    def test_refused(self, plan, changes, shown):
        with pytest.raises(InputError, match=shown):
            plan(**changes)

    def test_needs_a_manifest_and_a_task(self, plan, root):
        with pytest.raises(InputError, match="gone.json: no such file"):
            plan(data_manifest=root / "gone.json")
        with pytest.raises(InputError, match="lack data_manifest, init_weights, output_dir"):
            plan(bundle=root / "bundles" / "chain")


class TestRun:
    def test_results(self, plan, launcher, root):
        results = run_benchmark(plan(), launcher=launcher)
        assert results == read_json(root / "out" / "results.json")
        assert results["split"] == "testing" and results["failed"] == [] and results["seeds"] == [0, 10]
        assert results["summary"]["scratch"]["accuracy"] == pytest.approx({"mean": 0.55, "sd": 0.1 / 2**0.5, "n": 2})
        assert results["summary"]["chain"]["accuracy"]["mean"] == pytest.approx(0.655)
        row = results["over_seeds"][0]
        assert (row["first"], row["second"], row["metric"], row["n"]) == ("scratch", "chain", "accuracy", 2)
        assert row["differences"] == pytest.approx([0.1, 0.11]) and row["mean"] == pytest.approx(0.105)
        cases = results["over_cases"][0]
        assert (cases["metric"], cases["cases"], cases["groups"], cases["seeds"]) == ("accuracy", 4, 2, 2)
        assert cases["difference"] == 0.25 and cases["interval"] == [0.0, 0.5]
        text = (root / "out" / "table.md").read_text()
        assert "| scratch | 2 | 0.55 ± 0.071 |" in text and "auc/a" not in text
        assert "| chain - scratch | accuracy | 4 | 2 | 2 | +0.25 |" in text

    def test_finished_runs_are_not_repeated_and_seeds_can_be_added(self, plan, launcher, root):
        run_benchmark(plan(seeds=(0,)), launcher=launcher)
        assert len(calls(root)) == 2
        results = run_benchmark(plan(), launcher=launcher)
        assert [(call["seed"]) for call in calls(root)] == ["0", "0", "10", "10"] and results["seeds"] == [0, 10]

    def test_a_failing_run_is_listed_and_done_again(self, plan, launcher, root):
        results = run_benchmark(plan(settings={"fail": "0"}), launcher=launcher)
        (failed,) = results["failed"]
        assert failed["run"] == "chain/seed_0" and failed["reason"].startswith("exit status 1: error: the loss is NaN")
        assert len(results["runs"]) == 3 and "- chain/seed_0: exit status 1" in (root / "out" / "table.md").read_text()
        assert results["over_seeds"][0]["seeds"] == [10] and results["over_seeds"][0]["p"] is None
        run_benchmark(plan(settings={"fail": "0"}), launcher=launcher)
        assert len(calls(root)) == 5

    def test_no_metrics_is_a_failure(self, plan, launcher, root):
        results = run_benchmark(plan(settings={"silent": "0"}, seeds=(0,)), launcher=launcher)
        assert [entry["status"] for entry in results["failed"]] == ["failed", "failed"] and results["runs"] == []
        assert "metrics.json: no such file" in results["failed"][0]["reason"]
        text = (root / "out" / "table.md").read_text()
        assert text.startswith("# task_one: no run finished\n\n## Failed runs")

    def test_other_settings_weights_or_data_are_refused(self, plan, launcher, root):
        run_benchmark(plan(seeds=(0,)), launcher=launcher)
        with pytest.raises(InputError, match="settings: {}, now {'learning_rate': '1'}"):
            run_benchmark(plan(settings={"learning_rate": "1"}), launcher=launcher)
        torch.save({"weight": torch.ones(2)}, root / "chain" / "model.pt")
        write_json(root / "manifest.json", {})
        with pytest.raises(InputError, match="initialisation chain has other weights; the manifest has another"):
            run_benchmark(plan(), launcher=launcher)
        write_json(root / "bundles" / "task_one" / "configs" / "train.json", dict.fromkeys(module.OWN_KEYS, 1))
        with pytest.raises(InputError, match="configs: other content"):
            run_benchmark(plan(), launcher=launcher)

    def test_missing_weights_are_found_before_anything_runs(self, plan, launcher, root):
        with pytest.raises(InputError, match="gone: no such file or folder"):
            run_benchmark(plan(initialisations=(Initialisation("x", root / "gone"),)), launcher=launcher)
        assert calls(root) == []

    def test_an_interruption_ends_the_run_too(self, plan, root, monkeypatch):
        program = "import pathlib, sys, time; print('step 3 of 9', flush=True); time.sleep(60)"
        monkeypatch.setattr(module, "POLL_SECONDS", 0.2)
        monkeypatch.setattr(module, "GRACE_SECONDS", 0.1)
        shown = []

        class Bar:
            def set_postfix_str(self, text, refresh):
                shown.append(text)
                if text:
                    raise KeyboardInterrupt

            def update(self, count):
                pass

        log = root / "run.log"
        with pytest.raises(KeyboardInterrupt):
            module._wait([sys.executable, "-c", program], log, Bar())
        assert shown[-1] == "step 3 of 9"


class TestNumbers:
    def test_scores_prefer_testing_and_leave_undefined_ones_out(self):
        both = {"testing": {"auc": math.nan, "f1": 1, "hd95": None}, "validation": {"f1": 0.5}}
        assert scores(both) == {"f1": 1.0} and scores(both, "validation") == {"f1": 0.5}
        with pytest.raises(InputError, match="no scores of testing or validation"):
            scores({"testing": None})

    def test_one_value_has_no_deviation(self):
        assert spread([2.0]) == {"mean": 2.0, "sd": None, "n": 1}

    def test_t_test_by_hand(self):
        row = seed_comparison({0: 1.0, 1: 1.0, 2: 1.0, 3: 9.0}, {0: 2.0, 1: 3.0, 2: 4.0, 5: 0.0})
        assert row["seeds"] == [0, 1, 2] and row["mean"] == 2.0 and row["sd"] == 1.0
        assert row["t"] == pytest.approx(2 * 3**0.5) and row["p"] == pytest.approx(0.0742, abs=1e-4)
        assert row["interval"] == pytest.approx([2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5], abs=1e-4)

    def test_equal_differences_have_no_t(self):
        row = seed_comparison({0: 1.0, 1: 2.0}, {0: 1.5, 1: 2.5})
        assert row["mean"] == 0.5 and row["t"] is None and row["interval"] is None
        assert seed_comparison({0: 1.0}, {1: 1.0}) is None

    def test_validation_is_used_when_a_run_has_no_testing(self, tmp_path):
        runs = {f"a/seed_{n}": {"status": "finished", "initialisation": "a", "seed": n} for n in (0, 1)}
        write_json(tmp_path / "benchmark.json", {"task": "t", "initialisations": {"a": None, "b": None}, "runs": runs})
        write_json(tmp_path / "a/seed_0/metrics.json", {"testing": {"f1": 1.0}, "validation": {"f1": 0.2, "auc": 0.5}})
        write_json(tmp_path / "a/seed_1/metrics.json", {"testing": None, "validation": {"f1": 0.4}})
        results = write_results(tmp_path)
        assert results["split"] == "validation" and results["summary"]["a"]["f1"]["mean"] == pytest.approx(0.3)
        text = (tmp_path / "table.md").read_text()
        assert "The same split chose the best epoch" in text and "| 0.5 (n = 1) |" in text


class TestCases:
    def classification(self, tmp_path, name, right, groups="aaab"):
        """A table of four cases of the classes x and y; ``right[n]``: probability of the true class of case n."""
        rows = [
            (f"c{n}", groups[n], "xy"[n % 2], p if n % 2 == 0 else 1 - p, 1 - p if n % 2 == 0 else p)
            for n, p in enumerate(right)
        ]
        lines = ["case,group,target,prob_x,prob_y", *(",".join(map(str, row)) for row in rows)]
        (tmp_path / name).write_text("\n".join(lines))
        return read_cases(tmp_path / name)

    def segmentation(self, tmp_path, name, dice, hd95):
        rows = [f"c{n},g{n},{a},{a},{b}" for n, (a, b) in enumerate(zip(dice, hd95, strict=True))]
        (tmp_path / name).write_text("\n".join(["case,group,dice_mean,dice/liver,hd95/liver", *rows]))
        return read_cases(tmp_path / name)

    def test_whole_groups_are_redrawn(self, tmp_path):
        """The second is better on the three cases of patient a alone: accuracy +0, +0.75 or +1 by who is drawn."""
        first = self.classification(tmp_path, "1", (0.2, 0.2, 0.2, 0.2))
        second = self.classification(tmp_path, "2", (0.9, 0.9, 0.9, 0.2))
        row = compare_cases([(first, second)], repeats=200)[0]
        assert row == {
            "metric": "accuracy",
            "cases": 4,
            "groups": 2,
            "seeds": 1,
            "difference": 0.75,
            "interval": [0, 1],
        }

    def test_every_metric_as_the_evaluation_has_it(self, tmp_path):
        one, two = (0.9, 0.4, 0.7, 0.6), (0.8, 0.9, 0.3, 0.6)
        rows = compare_cases([(self.classification(tmp_path, "1", one), self.classification(tmp_path, "2", two))])
        p = [np.array([[v, 1 - v] if n % 2 == 0 else [1 - v, v] for n, v in enumerate(side)]) for side in (one, two)]
        before, after = (classification_metrics(side, np.array([0, 1, 0, 1]), ("x", "y")) for side in p)
        found = {row["metric"]: row["difference"] for row in rows}
        assert found == pytest.approx({name: after[name] - before[name] for name in before})

    def test_seeds_are_averaged_and_may_have_other_cases(self, tmp_path):
        """Seed 1: four cases, +1 on each; seed 2: two of them, no difference."""
        bad, good = (self.classification(tmp_path, name, [p] * 4, "abcd") for name, p in (("1", 0.2), ("2", 0.9)))
        few = CaseTable(bad.columns, {case: bad.rows[case] for case in ("c0", "c1")})
        row = compare_cases([(bad, good), (few, few)])[0]
        assert (row["difference"], row["cases"], row["groups"], row["seeds"]) == (0.5, 4, 4, 2)
        none = CaseTable(bad.columns, {})
        assert compare_cases([(bad, none)]) == [] and compare_cases([]) == []

    def test_one_patient_has_no_interval(self, tmp_path):
        table = self.classification(tmp_path, "1", (0.9, 0.4, 0.7, 0.6), "aaaa")
        assert {row["interval"] for row in compare_cases([(table, table)])} == {None}

    def test_distances_count_where_both_have_one(self, tmp_path):
        first = self.segmentation(tmp_path, "1", (0.5, 0.5, 0.5), (4, "", 9))
        second = self.segmentation(tmp_path, "2", (0.6, 0.7, 0.8), (2, 100, ""))
        found = {row["metric"]: row["difference"] for row in compare_cases([(first, second)])}
        assert found == pytest.approx({"dice": 0.2, "dice/liver": 0.2, "hd95": -2, "hd95/liver": -2})

    def test_bootstrap_agrees_with_the_standard_error(self, tmp_path):
        values = np.random.default_rng(0).normal(size=400)
        first = self.segmentation(tmp_path, "1", [0] * 400, [1] * 400)
        second = self.segmentation(tmp_path, "2", values, [1] * 400)
        row = compare_cases([(first, second)])[0]
        wanted = values.mean() + np.array([-1.96, 1.96]) * values.std(ddof=1) / 20
        assert row["interval"] == pytest.approx(wanted, abs=0.03)

    def test_another_table(self, tmp_path):
        (tmp_path / "x.csv").write_text("file,label\na,b\n")
        with pytest.raises(InputError, match="no table of an evaluation, its columns are file, label"):
            read_cases(tmp_path / "x.csv")

    def test_reads_what_the_report_writes(self, tmp_path):
        result = ClassificationResult(
            classes=("x", "y"), cases=("c0", "c1"), groups=("a", "b"),
            probabilities=np.array([[0.25, 0.75], [0.5, 0.5]]), targets=np.array([1, 0]),
        )  # fmt: skip
        table = read_cases(write_cases(result, tmp_path / "cases.csv"))
        assert table.named("prob_") == ("x", "y") and table.group("c1") == "b"
        rows = ({"dice/r": 0.5, "hd95/r": math.nan, "volume/r": 2.0},) * 2
        result = SegmentationResult(regions=("r",), cases=("c0", "c1"), groups=("a", "b"), rows=rows)
        table = read_cases(write_cases(result, tmp_path / "cases.csv"))
        assert [row["metric"] for row in compare_cases([(table, table)])] == ["dice", "dice/r"]


class TestCommand:
    def call(self, medcoss, root, *more):
        return medcoss(
            "benchmark", "run", "--task", "task_one", "--data-manifest", root / "manifest.json", "--root",
            root / "bundles", "--to", root / "out", "--init", f"scratch,chain={root / 'chain'}", "--seeds", "0", *more,
        )  # fmt: skip

    def test_run_and_show(self, medcoss, root, launcher):
        status, out, err = self.call(medcoss, root)
        assert status == 0 and "| scratch | 1 | 0.5 |" in out, err
        assert out.splitlines()[-1] == f"2 runs finished, 0 failed: {root / 'out' / 'table.md'}"
        status, shown, _ = medcoss("benchmark", "show", root / "out")
        assert status == 0 and shown.strip() in out

    def test_a_failure_tells(self, medcoss, root, launcher):
        status, out, _ = self.call(medcoss, root, "--set", "fail=0", "--overlay", "demo")
        assert status == 1 and out.splitlines()[-1].startswith("1 runs finished, 1 failed")

    def test_errors_on_one_line(self, medcoss, root):
        status, _, err = self.call(medcoss, root, "--set", "seed=4")
        assert status == 1 and err.startswith("error: settings: seed") and len(err.splitlines()) == 1
        assert medcoss("benchmark", "show", root / "gone")[0] == 1

    def test_attach_once(self):
        app = typer.Typer()
        cli_benchmark.attach(app)
        assert [group.name for group in app.registered_groups] == ["benchmark"]
