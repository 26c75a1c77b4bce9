"""Prepared tiny stores, and stages and chains over them."""

from __future__ import annotations

from pathlib import Path

import pytest

from medcoss_components.data.modalities import get_modality
from medcoss_components.data.sampler import PretrainingLoader
from medcoss_components.data.synthetic import synthetic_manifest
from medcoss_components.engines.evaluation import PretextEvaluator
from medcoss_components.engines.setup import prepared_dataset
from medcoss_components.engines.stage import PretrainingStage

SHAPES = {"report": (14,), "xray": (3, 8, 18), "ct": (1, 6, 8, 12)}
COUNTS = {"report": 12, "xray": 10, "ct": 5}
CLASSES = ("small", "large")
REGIONS = {"organ": [1, 2], "core": [2]}
FILES = {"report": None, "xray": (16, 36), "ct": (12, 16, 24)}


@pytest.fixture(scope="session")
def manifests(tmp_path_factory) -> dict[str, Path]:
    """Modality -> manifest of a few synthetic items with tiny inputs; two are for validation."""
    folder = tmp_path_factory.mktemp("manifests")
    return {
        name: synthetic_manifest(
            folder / name,
            get_modality(name, input_shape=shape),
            count=COUNTS[name],
            validation=2,
            seed=1,
            shape=FILES[name],
        )
        for name, shape in SHAPES.items()
    }


@pytest.fixture(scope="session")
def store_dir(tmp_path_factory) -> Path:
    """Folder of the stores, shared by all tests."""
    return tmp_path_factory.mktemp("stores")


@pytest.fixture
def make_store(manifests, store_dir, vocabulary):
    """``make_store(name, split="training")``: prepared once."""

    def build(name, split="training"):
        entry = {"name": name, "input_shape": list(SHAPES[name])}
        words = vocabulary if name == "report" else None
        return prepared_dataset(
            manifest=manifests[name], modality=entry, store_dir=store_dir, split=split, vocabulary=words, workers=1
        )

    return build


@pytest.fixture
def make_stage(make_store, make_trainer, vocabulary):
    """``make_stage(output_dir, name, buffers=..., **options)``: a stage of one epoch over a prepared store."""

    def build(output_dir, name="xray", *, buffers=(), validated=True, trainer=None, **options):
        dataset = make_store(name)
        trainer = make_trainer(dataset, buffers=buffers, **({"max_epochs": 1} | (trainer or {})))
        evaluator = None
        if validated:
            loader = PretrainingLoader(make_store(name, "validation"), batch_size=4, shuffle=False)
            evaluator = PretextEvaluator(
                device="cpu",
                val_data_loader=loader,
                network=trainer.model,
                vocabulary=vocabulary,
                precision="float32",
            )
        options = {"tracking": False, "buffer_ratio": 0.3, "cluster_ratio": 0.2, "log_interval": 1} | options
        return PretrainingStage(
            trainer=trainer,
            dataset=dataset,
            output_dir=output_dir,
            evaluator=evaluator,
            **({"settings": {"batch_size": 4, "seed": 0}} | options),
        )

    return build


@pytest.fixture
def no_pictures(monkeypatch):
    """Leave the pictures out, where a test does not look at them."""
    from medcoss_components.engines import stage

    monkeypatch.setattr(stage, "write_previews", lambda stage: (stage.folder / "previews").mkdir(exist_ok=True))


@pytest.fixture(scope="session")
def task_manifests(tmp_path_factory) -> dict[tuple[str, str], Path]:
    """(task, modality) -> manifest with labels: 8 training, 3 validation and 3 testing items."""
    folder = tmp_path_factory.mktemp("tasks")
    labels = {"classification": {"classes": CLASSES}, "segmentation": {"regions": REGIONS}}
    wanted = [("classification", name) for name in SHAPES] + [("segmentation", name) for name in ("xray", "ct")]
    counts = {"count": 8, "validation": 3, "testing": 3, "seed": 1}
    return {
        (task, name): synthetic_manifest(
            folder / f"{task}_{name}",
            get_modality(name, input_shape=SHAPES[name]),
            shape=FILES[name],
            **counts,
            **labels[task],
        )
        for task, name in wanted
    }


@pytest.fixture
def make_task(task_manifests, store_dir, vocabulary, tiny_sizes, monkeypatch):
    """``make_task(task, modality, **options)``: the parts of a tiny task, see ``task_parts.py``."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    from task_parts import build_task

    def build(task, name, **options):
        return build_task(
            task=task,
            manifest=task_manifests[task, name],
            modality={"name": name, "input_shape": list(SHAPES[name])},
            store_dir=store_dir,
            vocabulary=vocabulary if name == "report" else None,
            **({"sizes": tiny_sizes} | options),
        )

    return build


@pytest.fixture(scope="session")
def multitask_tasks(tmp_path_factory) -> dict[str, dict]:
    """Three tiny X-ray tasks with their manifests, see ``multitask_parts.py``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        from multitask_parts import write_manifests
    return write_manifests(tmp_path_factory.mktemp("multitask"))


@pytest.fixture
def multitask(multitask_tasks, store_dir, tmp_path):
    """``multitask(tasks=..., **options)``: trainer and evaluators over three tiny X-ray tasks."""
    from multitask_parts import build_parts

    def build(*, tasks=multitask_tasks, output_dir=tmp_path / "run", **options):
        return build_parts(tasks=tasks, store_dir=store_dir, output_dir=output_dir, **options)

    return build
