"""``kill -9`` at many moments of a chain, then the same command: the result is that of an uninterrupted run, bit for
bit."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from medcoss_components.data.store import open_store
from medcoss_components.engines.stage import WORK_FILES

STAGES = ("01_report", "02_xray", "03_ct")
SAME = ("model.pt", "encoder.safetensors", "buffer.json", "vocabulary.json")
STEP = "medcoss_components.engines.pretrainer:Pretrainer._iteration"
ROUND = "medcoss_components.continual.kmeans:_updated_centres"
LAST_RECORD = 6  # chain.json is written at the start and after each of the five steps
RUNS = "select run_uuid, name, status from runs"
POINTS = "select key, step from metrics where run_uuid = ? and (key like '%/pretext' or key like '%/distillation')"
MOMENTS = (
    ("first chain.json", {"rename": "chain.json", "count": 1, "when": "half"}),
    # the stores of all images come first
    ("a part of the X-ray store", {"rename": "part-000003.bin", "count": 1, "when": "half"}),
    ("index of the second store", {"rename": "index.json", "count": 2, "when": "half"}),
    # stage 1: 24 reports in 6 batches an epoch, 2 epochs
    ("vocabulary", {"rename": "vocabulary.json", "count": 1, "when": "half"}),
    ("a shard of the report store", {"rename": "shard-0000.npy", "count": 1, "when": "half"}),
    ("training, in the first epoch", {"call": STEP, "count": 5}),
    ("checkpoint after step 6, the end of the epoch", {"rename": "checkpoint.pt", "count": 2, "when": "half"}),
    ("training, in the second epoch", {"call": STEP, "count": 4}),
    ("k-means", {"call": ROUND, "count": 1}),
    ("between buffer.json and its record", {"rename": "buffer.json", "count": 1, "when": "after"}),
    ("cleaning up after the last step", {"unlink": "embeddings.npy", "count": 1}),
    # stage 2: 10 X-rays in 3 batches and the report buffer in 2, 2 epochs
    ("training with a buffer, first checkpoint", {"rename": "checkpoint.pt", "count": 1, "when": "before"}),
    ("training with a buffer, in the first epoch", {"call": STEP, "count": 4}),
    ("weights written, step not recorded", {"rename": "model.pt", "count": 1, "when": "after"}),
    ("chain.json between two steps", {"rename": "chain.json", "count": 3, "when": "half"}),
    # stage 3: 8 sub-volumes of CT and two buffers
    ("training with two buffers, in the second epoch", {"call": STEP, "count": 8}),
    ("metrics.json", {"rename": "metrics.json", "count": 1, "when": "half"}),
    ("the last chain.json", {"rename": "chain.json", "count": LAST_RECORD, "when": "before"}),
)


def check_nothing_half_written(folder: Path) -> None:
    """Whatever stands under its final name is whole."""
    for path in folder.rglob("*.json"):
        if ".partial" not in path.name:
            json.loads(path.read_text(encoding="utf-8"))
    for path in (folder / "store").glob("[!.]*"):
        if path.is_dir() and not path.name.startswith("vocabulary"):
            open_store(path).verify()


@pytest.mark.slow
def test_a_chain_killed_again_and_again_ends_like_an_uninterrupted_one(
    tmp_path: Path, tiny_data, write_chain, environment, kill_server
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = [sys.executable, "-m", "monai.bundle"]
    reference = subprocess.Popen(
        [*command, *write_chain(whole, tiny_data)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    arguments, log = write_chain(killed, tiny_data), killed / "log.txt"
    for name, moment in MOMENTS:
        code = kill_server(arguments, log=log, moment=moment)
        assert code == -9, f"{name}: ended with {code}\n{log.read_text()[-3000:]}"
        check_nothing_half_written(killed)
    last = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=300)
    assert last.returncode == 0, last.stderr[-3000:]
    assert reference.wait(timeout=300) == 0
    for stage in STAGES:
        for file in SAME:
            assert (killed / "chain" / stage / file).read_bytes() == (whole / "chain" / stage / file).read_bytes(), (
                f"{stage}/{file}"
            )
        assert losses(killed / "chain" / stage) == losses(whole / "chain" / stage)
    assert steps(killed / "chain") == steps(whole / "chain")
    assert not list((killed / "chain").rglob("*.partial*")) and not list((killed / "store").glob(".*.work"))
    assert not [path for name in WORK_FILES for path in killed.rglob(name)]


@pytest.mark.slow
def test_a_killed_chain_keeps_its_tracked_runs(tmp_path: Path, tiny_data, write_chain, kill_server) -> None:
    """One parent and one nested run a stage, whatever happened; all of them ended."""
    manifests = {name: tiny_data[name] for name in ("report", "xray")}
    arguments, log = write_chain(tmp_path, manifests, mlflow=True, max_epochs=1, log_interval=1), tmp_path / "log.txt"
    for moment in (
        {"rename": "shard-0000.npy", "count": 1, "when": "before"},
        {"call": STEP, "count": 4},
        {"rename": "chain.json", "count": LAST_RECORD, "when": "after"},
        {"call": STEP, "count": 3},
    ):
        assert kill_server(arguments, log=log, moment=moment) == -9, log.read_text()[-3000:]
    assert kill_server(arguments, log=log) == 0, log.read_text()[-3000:]
    with closing(sqlite3.connect(tmp_path / "chain" / "mlruns.db")) as database:
        rows = database.execute(RUNS).fetchall()
        runs = {name: (uuid, status) for uuid, name, status in rows}
        parents = dict(database.execute("select run_uuid, value from tags where key = 'mlflow.parentRunId'"))
        points = database.execute(POINTS, (runs["02_xray"][0],)).fetchall()
    assert sorted(row[1:] for row in rows) == [(name, "FINISHED") for name in ("01_report", "02_xray", "chain chain")]
    assert parents == {runs[name][0]: runs["chain chain"][0] for name in ("01_report", "02_xray")}
    assert {key for key, _ in points} == {"xray/pretext", "report/distillation"}
    assert {step for _, step in points} == {1, 2, 3, 4, 5}
    record = json.loads((tmp_path / "chain" / "chain.json").read_text())
    assert [stage["run_id"] for stage in record["stages"]] == [runs[name][0] for name in ("01_report", "02_xray")]
    assert record["run_id"] == runs["chain chain"][0]
    assert not [path for name in WORK_FILES for path in tmp_path.rglob(name)]


def losses(stage: Path) -> list[list]:
    """history.json without the speeds."""
    return [row[:-1] for row in json.loads((stage / "history.json").read_text())["rows"]]


def steps(chain: Path) -> list[tuple]:
    record = json.loads((chain / "chain.json").read_text())
    return [record["status"], *((stage["folder"], sorted(stage["steps"])) for stage in record["stages"])]
