"""Checks that run a bundle's workflows on synthetic data: MONAI's properties, two training steps, what follows them.

The network is the demo preset where the bundle has presets, with a small input where that can be set; everything is
written to a scratch folder.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from medcoss_components.files import read_json
from medcoss_components.zoo.verify_network import small_settings
from medcoss_components.zoo.verify_subject import CheckFailed, NotRun, Subject, quiet, root_cause

SAMPLES = 4
TASK_CLASSES = ("first", "second")
"""Classes of the one task that MUSCLE's second step is tried on."""
VOLUME = (16, 40, 32)
"""Size of synthetic volumes (z, y, x): little more than one small input, so that few windows cover them."""
BRIEF = {
    "batch_size": 2,
    "max_epochs": 1,
    "warmup_epochs": 0,
    "num_workers": 0,
    "preparation_workers": 1,
    "log_interval": 1,
    "vocabulary_size": 300,
    "iterations_per_epoch": 2,
    "overlap": 0.25,
    "mlflow": False,
}
"""Settings for a run of a few seconds; a config is given those that it has."""
OUTPUT_FILES = {"evaluate": "evaluation.json", "inference": "embeddings.parquet"}
"""Config -> the file that it writes where it has no output_dir."""
STEP_BRIEF = {"batch_size": 2, "max_epochs": 1}
"""The same for the steps of MUSCLE's pre-training."""
KINDS = {"train": "train", "stage": "train", "contrastive": "train", "evaluate": "eval", "inference": "infer"}


def check_properties(subject: Subject) -> str:
    """Training, evaluation and inference offer the properties that MONAI's clients ask for."""
    names = [subject.training, "evaluate", "inference"]
    for name in names:
        if name not in subject.configs:
            raise CheckFailed(f"configs/{name}.json is missing")
        after = {} if KINDS[name] == "train" else {"weights": str(_trained(subject))}
        try:
            with _workflow(subject, name, **after) as workflow:
                missing = workflow.check_properties()
        except Exception as error:  # building a property can raise anything; the config at fault is named
            raise CheckFailed(f"{name}: {root_cause(error)}") from error
        if missing:
            raise CheckFailed(f"{name}: properties are missing: {', '.join(missing)}")
    return ", ".join(names)


def check_training(subject: Subject) -> str:
    """Two or more training steps on synthetic data, every loss finite."""
    _trained(subject)
    files = sorted((subject.scratch / "run").rglob("history.json"))
    histories = [read_json(path) for path in files]
    rows = [dict(zip(history["columns"], row, strict=True)) for history in histories for row in history["rows"]]
    steps = {row["iteration"] for row in rows}
    if len(steps) < 2:
        raise CheckFailed(f"history.json shows {len(steps)} training steps, 2 are needed")
    wrong = [f"{row['kind']} {row['loss']} at step {row['iteration']}" for row in rows if not _finite(row["loss"])]
    if wrong:
        raise CheckFailed(f"losses that are not finite: {', '.join(wrong[:4])}")
    return f"{len(steps)} steps, loss {rows[0]['loss']:.3g} to {rows[-1]['loss']:.3g}"


def check_inference(subject: Subject) -> str:
    """Evaluation and inference run on the weights of that training and leave files."""
    weights = str(_trained(subject))
    written = []
    for name in ("evaluate", "inference"):
        place = subject.scratch / name
        try:
            with _workflow(subject, name, weights=weights) as workflow:
                workflow.run()
        except Exception as error:  # a run can raise anything; the config at fault is named
            raise CheckFailed(f"{name}: {root_cause(error)}") from error
        files = sorted(path.name for path in place.rglob("*") if path.is_file())
        if not files:
            raise CheckFailed(f"{name}: its run left no file")
        written.append(f"{name}: {len(files)} files")
    return ", ".join(written)


def _finite(loss: Any) -> bool:
    return isinstance(loss, int | float) and math.isfinite(loss)


def _trained(subject: Subject) -> Path:
    """Folder of the weights that a brief training left; it runs once for a bundle."""
    output = subject.scratch / "run"
    if not output.is_dir():
        with _workflow(subject, "train") as workflow:
            workflow.run()
    found = sorted(output.rglob("model.pt"))
    if not found:
        raise CheckFailed("training left no model.pt")
    return found[-1].parent


def _manifest(subject: Subject) -> tuple[str, str]:
    """Modality and manifest of synthetic data for a bundle, labelled as its task needs it."""
    from medcoss_components.data.modalities import get_modality
    from medcoss_components.data.synthetic import synthetic_manifest
    from medcoss_components.data.synthetic_detection import synthetic_detection
    from medcoss_components.engines.setup import register_modalities
    from medcoss_components.networks.classification import class_names
    from medcoss_components.networks.segmentation import region_values

    config = subject.networks[subject.training]
    modality = config.get("modality")
    if not modality:
        raise NotRun("no modality in the training config, so no synthetic data for it")
    register_modalities(config.get("extra_modalities") or ())
    folder = subject.scratch / "data"
    if not (folder / "manifest.json").is_file() and config.get("categories"):
        categories = config["categories"]
        synthetic_detection(folder, modality, count=SAMPLES, validation=2, testing=2, categories=categories)
    if not (folder / "manifest.json").is_file():
        names = config.get("classes") or (TASK_CLASSES if "tasks" in subject.configs["train"] else None)
        classes = class_names(names) if names else None
        regions = region_values(config["regions"]) if config.get("regions") else None
        task, each = bool(classes or regions), len(classes or ())
        synthetic_manifest(
            folder,
            modality,
            count=max(SAMPLES, each),
            validation=max(2, each),
            testing=max(2, each) if task else 0,
            classes=classes,
            regions=regions,
            shape=VOLUME if task and get_modality(modality).dimension == 3 else None,
        )
    return modality, str(folder / "manifest.json")


def _settings(subject: Subject, name: str) -> dict[str, Any]:
    modality, manifest = _manifest(subject)
    place = subject.scratch / ("run" if name == "train" else name)
    wanted = {
        **BRIEF,
        **small_settings(subject.configs[name]),
        "modality": modality,
        "data_manifest": manifest,
        "input": manifest,
        "stages": [{"modality": modality, "data_manifest": manifest}],
        "manifests": [manifest],
        "tasks": {"task": {"kind": "classification", "data_manifest": manifest, "classes": list(TASK_CLASSES)}},
        "contrastive": {**STEP_BRIEF, "queue_size": 8},
        "multitask": STEP_BRIEF,
        "store_dir": str(subject.scratch / "store"),
        "output_dir": str(place),
        "output_file": str(place / OUTPUT_FILES[name]) if name in OUTPUT_FILES else None,
    }
    return {key: value for key, value in wanted.items() if key in subject.configs[name]}


@contextmanager
def _workflow(subject: Subject, name: str, **settings: Any) -> Iterator[Any]:
    """A workflow of the bundle, brief and quiet; finished in the end."""
    from monai.bundle import create_workflow

    with quiet(), redirect_stdout(StringIO()):
        workflow = create_workflow(
            config_file=str(subject.folder / "configs" / f"{name}.json"),
            workflow_type=KINDS[name],
            logging_file=False,
            **{**_settings(subject, name), **settings},
        )
        yield workflow
        workflow.finalize()
