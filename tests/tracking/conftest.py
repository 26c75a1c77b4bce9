"""A fresh tracking database a test (the schema is made once) and a small chain folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from medcoss_components.files import write_json
from medcoss_components.tracking.runs import DATABASE_NAME, open_tracking


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """A database with MLflow's tables and nothing else: making them takes seconds."""
    folder = tmp_path_factory.mktemp("tracking")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        open_tracking(None, folder)
    return folder / DATABASE_NAME


@pytest.fixture
def output_dir(tmp_path, empty_database, monkeypatch):
    """An output folder whose tracking database has its tables already."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "runs" / "demo"
    folder.mkdir(parents=True)
    shutil.copy(empty_database, folder / DATABASE_NAME)
    return folder


HISTORY_COLUMNS = ["iteration", "epoch", "modality", "kind", "loss", "learning_rate", "samples_per_second"]


def history(modality: str, earlier: tuple[str, ...] = (), count: int = 4) -> dict:
    """Losses 1, 1/2, 1/3 ... of the modality and 0.01 * iteration of each earlier one."""
    rows = []
    for step in range(1, count + 1):
        rows.append([step, 0, modality, "pretext", 1 / step, 1e-3, 50.0])
        rows += [[step, 0, name, "distillation", 0.01 * step, 1e-3, 50.0] for name in earlier]
    return {"columns": HISTORY_COLUMNS, "rows": rows}


def metrics(name: str, modality: str, earlier: tuple[str, ...] = ()) -> dict:
    return {
        "stage": name,
        "modality": modality,
        "samples": 1200,
        "epochs": 3,
        "iterations": 4,
        "buffer_size": 60,
        "parameters": 3_456_789,
        "device": "cpu",
        "precision": "fp32",
        "seconds": {"prepare": 10.0, "train": 60.0, "embed": 4.0, "select": 1.0},
        "samples_per_second": 321.7,
        "first_loss": 1.0,
        "final_loss": 0.25,
        "validation_loss": None,
        "rehearsal": {e: {"kind": "distillation", "first": 0.01, "final": 0.04, "buffer_size": 60} for e in earlier},
        "peak_memory_bytes": 3 * 2**30,
    }


class ChainFolder:
    """Writes the files of a chain, stage by stage."""

    def __init__(self, folder: Path, planned: tuple[str, ...]) -> None:
        self.folder, self.planned, self.stages = folder, planned, []

    def add(self, modality: str, *, finished: bool = True, pictures: tuple[str, ...] = ()) -> Path:
        earlier = tuple(stage["modality"] for stage in self.stages)
        name = f"{len(self.stages) + 1:02d}_{modality}"
        folder = self.folder / name
        (folder / "previews").mkdir(parents=True)
        steps = {"prepare": {"seconds": 10.0}}
        if finished:
            steps["train"] = {"finished": f"2026-01-31T12:0{len(self.stages)}:59+00:00", "seconds": 60.0}
            write_json(folder / "metrics.json", metrics(name, modality, earlier))
            write_json(folder / "history.json", history(modality, earlier))
        for kind in pictures:
            Image.new("L", (2, 2)).save(folder / "previews" / f"{kind}.png")
        self.stages.append({"name": name, "modality": modality, "folder": name, "run_id": "0" * 32, "steps": steps})
        self.write()
        return folder

    def write(self, **more) -> None:
        settings = {"strategy": "medcoss", "seed": 0, "stages": [{"modality": name} for name in self.planned]}
        record = {"format": 1, "run_id": "f" * 32, "experiment": "medcoss", "status": "running", "stages": self.stages}
        write_json(self.folder / "chain.json", record | {"settings": settings} | more)


@pytest.fixture
def make_chain(tmp_path):
    def make(*planned: str) -> ChainFolder:
        return ChainFolder(tmp_path / "chain", planned)

    return make
