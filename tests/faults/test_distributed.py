"""A stage bundle under ``torchrun`` with two gloo processes gives what one process gives with the same global batch."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from medcoss_components.weights import hash_weights, read_weights

pytestmark = pytest.mark.slow
LOSS_TOLERANCE = 1e-4
WEIGHT_TOLERANCE = 1e-4


def read_lines(path: Path) -> list[list]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_data, write_stage, environment, kill_server, two_processes) -> SimpleNamespace:
    """Folders of the X-ray stage by one process and by two, both with the report buffer of one first stage."""
    folder = tmp_path_factory.mktemp("ranks")
    log = folder / "log.txt"
    first = write_stage(folder, "report", tiny_data["report"], folder / "report")
    assert kill_server(first, log=log) == 0, log.read_text()[-3000:]

    def arguments(name: str, *overlays: str) -> list[str]:
        handlers = {"+train": {"handlers": [*SCHEDULE, {"_target_": "rank_recorder.RankRecorder", "folder": name}]}}
        settings = {"init_weights": str(folder / "report"), "buffers": [str(folder / "report")], "batch_size": 5}
        # 10 X-rays: 2 batches of 5 (3 and 2 rows a rank); 7 reports: one of 5, one of 2 (1 row a rank)
        return write_stage(
            folder, "xray", tiny_data["xray"], Path(name), *overlays, **settings | handlers | {"log_interval": 1}
        )

    one, two = folder / "one", folder / "two"
    python_path = {"PYTHONPATH": str(Path(__file__).parent)}
    output = two_processes(
        "-m", "monai.bundle", *arguments(str(two), "multi_gpu_train.json"), environment={**environment, **python_path}
    )
    assert kill_server(arguments(str(one)), log=log) == 0, log.read_text()[-3000:]
    return SimpleNamespace(one=one, two=two, output=output)


SCHEDULE = [
    {
        "_target_": "medcoss_components.LearningRateSchedule",
        "peak": "@train#learning_rate",
        "warmup_epochs": "@warmup_epochs",
    }
]


def test_same_losses(runs) -> None:
    alone, together = (json.loads((folder / "history.json").read_text())["rows"] for folder in (runs.one, runs.two))
    assert len(alone) == 8 and {(row[2], row[3]) for row in alone} == {("xray", "pretext"), ("report", "distillation")}
    assert [row[:4] for row in together] == [row[:4] for row in alone]
    assert [row[4] for row in together] == pytest.approx([row[4] for row in alone], abs=LOSS_TOLERANCE)
    validation = [
        json.loads((folder / "metrics.json").read_text())["validation_loss"] for folder in (runs.one, runs.two)
    ]
    assert validation[1] == pytest.approx(validation[0], abs=LOSS_TOLERANCE)


def test_same_weights(runs) -> None:
    alone, together = read_weights(runs.one), read_weights(runs.two)
    start = read_weights(runs.one.parent / "report")
    assert list(alone) == list(together)
    differences = {name: float((alone[name] - together[name]).abs().max()) for name in alone}
    assert max(differences.values()) < WEIGHT_TOLERANCE, sorted(differences.items(), key=lambda pair: -pair[1])[:3]
    moved = max(float((alone[name] - start[name]).abs().max()) for name in alone if name.startswith("encoder."))
    assert moved > 10 * WEIGHT_TOLERANCE


def test_every_rank_works_on_the_same_modality_at_a_step(runs) -> None:
    ranks = [read_lines(runs.two / f"rank{rank}of2.jsonl") for rank in range(2)]
    alone = read_lines(runs.one / "rank0of1.jsonl")
    assert [row[:3] for row in ranks[0]] == [row[:3] for row in ranks[1]] == [row[:3] for row in alone]
    for first, second, whole in zip(*ranks, alone, strict=True):
        assert first[3] and second[3] and first[3] + second[3] == whole[3]  # each its own rows of one global batch
        assert first[4] == second[4]  # the loss of the global batch, known to both
    assert {row[1] for row in alone} == {"report", "xray"}


def test_one_buffer_the_same_choice(runs) -> None:
    alone, together = (json.loads((folder / "buffer.json").read_text()) for folder in (runs.one, runs.two))
    for buffer in (alone, together):
        distances = [row.pop("distance") for row in buffer["exemplars"]]
        assert torch.isfinite(torch.tensor(distances)).all()
    assert together["encoder_hash"] == hash_weights(read_weights(runs.two))
    alone.pop("encoder_hash"), together.pop("encoder_hash")
    assert together == alone
    assert len(list(runs.two.rglob("buffer*.json"))) == 1
    assert not [path.name for path in runs.two.iterdir() if path.name.startswith(".")]


def test_stores_are_prepared_once_and_reused(runs) -> None:
    stores = [path.name for path in (runs.two.parent / "store").iterdir() if not path.name.startswith(".")]
    assert sorted(name.rsplit("-", 1)[0] for name in stores if not name.startswith("vocabulary")) == [
        "report-training",
        "report-validation",
        "xray-training",
        "xray-validation",
    ]
