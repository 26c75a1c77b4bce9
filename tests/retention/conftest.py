"""Labelled sets of three tiny modalities, and a finished chain over them that was scored while it ran."""

from __future__ import annotations

from pathlib import Path

import pytest

from medcoss_components.data.synthetic import synthetic_manifest
from medcoss_components.engines import chain as chain_module
from medcoss_components.engines import stage as stage_module
from medcoss_components.engines.chain import PretrainingChain

STAGE_CONFIG = Path(__file__).parents[2] / "bundles" / "medcoss_continual_pretraining" / "configs" / "stage.json"
ENTRIES = {
    "tiny_picture": {"dimension": 2, "input_shape": [3, 8, 18], "intensity": "unit_range", "stored_channels": 1},
    "tiny_text": {"dimension": 1, "input_shape": [14], "intensity": "tokens"},
    "tiny_volume": {"dimension": 3, "input_shape": [1, 6, 8, 12], "intensity": "hounsfield"},
}
MODALITIES = [{"name": name, **entry} for name, entry in ENTRIES.items()]
SHAPES = {"tiny_text": None, "tiny_picture": (16, 36), "tiny_volume": (12, 16, 24)}
CLASSES = ("small", "large")
NETWORK = {
    "width": 24,
    "depth": 2,
    "heads": 2,
    "decoder_width": 16,
    "decoder_depth": 1,
    "decoder_heads": 2,
    "vocabulary_size": 160,
    "text_positions": 16,
    "patch_2d": [4, 6],
    "grid_2d": [2, 3],
    "patch_3d": [2, 4, 6],
    "grid_3d": [3, 2, 2],
}


@pytest.fixture(scope="session")
def manifests(tmp_path_factory):
    """Modality -> manifest of unlabelled use (labels are there and are not read)."""
    folder = tmp_path_factory.mktemp("data")
    counts = {"tiny_text": 12, "tiny_picture": 10, "tiny_volume": 5}
    return {
        entry["name"]: synthetic_manifest(
            folder / entry["name"], entry, count=counts[entry["name"]], validation=0, shape=SHAPES[entry["name"]]
        )
        for entry in MODALITIES
    }


@pytest.fixture(scope="session")
def labelled(tmp_path_factory):
    """Modality -> manifest with classes: 10 training, 4 validation and 6 testing items."""
    folder = tmp_path_factory.mktemp("labelled")
    return {
        entry["name"]: synthetic_manifest(
            folder / entry["name"],
            entry,
            count=10,
            validation=4,
            testing=6,
            classes=CLASSES,
            seed=3,
            shape=SHAPES[entry["name"]],
        )
        for entry in MODALITIES
    }


@pytest.fixture(scope="session")
def entries(labelled):
    """One probe a modality."""
    return [{"name": name.replace("tiny", "probe"), "data_manifest": str(path)} for name, path in labelled.items()]


@pytest.fixture(scope="session")
def store_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("stores")


@pytest.fixture(scope="session")
def quick_session():
    """No pictures and no reports of stages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage_module, "write_previews", lambda stage: (stage.folder / "previews").mkdir(exist_ok=True))
        patch.setattr(chain_module, "write_report", lambda folder: folder / "REPORT.html")
        patch.setattr(chain_module, "summary_table", lambda folder: "table")
        yield


@pytest.fixture(scope="session")
def build(manifests, store_dir, quick_session):
    """``build(output_dir, *modalities, **options)``: a chain of tiny stages."""
    settings = {
        "store_dir": str(store_dir),
        "preparation_workers": 1,
        "preset": "demo",
        "network_def": NETWORK,
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

    def make(output_dir, *names, changes=None, **options):
        stages = [{"modality": name, "data_manifest": str(manifests[name])} for name in names]
        return PretrainingChain(
            stage_config=STAGE_CONFIG,
            stages=stages,
            output_dir=output_dir,
            stage_settings=settings | (changes or {}),
            **({"tracking": False, "extra_modalities": MODALITIES} | options),
        )

    return make


@pytest.fixture(scope="session")
def finished(build, entries, tmp_path_factory):
    """Pictures, then texts, then volumes, with three probes. Do not change it: copy it."""
    return build(tmp_path_factory.mktemp("chain") / "run", *ENTRIES, probes=entries).run()
