"""What one encoder still represents: probes, likeness to earlier features, fine-tuning on few labels.

Each stage of a run is scored once into ``scores/<stage>.json``; features that later stages are compared with lie beside
it as ``<modality>.npy``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.bundle import ConfigParser
from retention_data import Data

from medcoss_components.continual.store_view import StoreView
from medcoss_components.data.modalities import get_modality
from medcoss_components.engines.config_steps import set_keys
from medcoss_components.files import atomic_path, read_json, write_json
from medcoss_components.networks.pretraining import PretrainingModel
from medcoss_components.randomness import numpy_generator_for
from medcoss_components.retention.probes import SPLITS
from medcoss_components.retention.scores import (
    OVERLAP_NEIGHBOURS,
    knn_accuracy,
    linear_cka,
    logistic_accuracy,
    neighbour_overlap,
)

FEWEST = 16  # samples below which likeness to earlier features is not measured


def score_encoder(
    data: Data,
    *,
    weights: Path | None,
    path: Path,
    seed: int,
    learned: Sequence[str],
    own: Sequence[str] = (),
    references: Mapping[str, Path] | None = None,
    few_labels: bool = False,
) -> dict[str, Any]:
    """Score an encoder, or read the scores when ``path`` exists.

    Args:
        data: stores and networks.
        weights: stage folder; None: the untrained encoder of the seed.
        path: JSON file to write.
        seed: of the run.
        learned: modalities learned so far; text is scored when it is one of them, or nothing is (the untrained one).
        own: modalities that were learned in this very stage: their features become the reference of later stages.
        references: modality -> features at the end of its own stage, of those learned earlier.
        few_labels: whether to fine-tune on few labels as well.

    Returns:
        ``{"probes": {name: {"k_nn", "k_nn_validation", "logistic", "chosen_c"}}, "cka": {modality: ...},
        "overlap": {modality: ...}, "few_labels": {labels: accuracy}, "seconds": ...}``
    """
    if path.is_file():
        return read_json(path)
    started = time.monotonic()
    model = data.network(weights, seed)
    result: dict[str, Any] = {"probes": {}, "cka": {}, "overlap": {}, "few_labels": {}}
    for probe in data.scale.probes:
        is_text = get_modality(probe["modality"]).dimension == 1
        if not is_text or not learned or probe["modality"] in learned:
            result["probes"][probe["name"]] = score_probe(data, model, probe)
    for modality in own:
        keep_features(data, model, modality, path.with_name(f"{modality}.npy"))
    for modality, file in (references or {}).items():
        if file.is_file():
            former, now = np.load(file), reference_features(data, model, modality)
            result["cka"][modality] = linear_cka(former, now)
            result["overlap"][modality] = neighbour_overlap(former, now, k=min(OVERLAP_NEIGHBOURS, len(now) - 1))
    if few_labels:
        result["few_labels"] = fine_tune(data, weights, seed)
    result["seconds"] = round(time.monotonic() - started, 3)
    write_json(path, result)
    return result


def score_probe(data: Data, model: PretrainingModel, probe: Mapping[str, Any]) -> dict[str, float | None]:
    """Accuracies of frozen features, as fractions of the testing samples.

    ``k_nn_validation`` scores the neighbours on the validation samples: more samples, which no choice is made on, but
    whose texts, without labels, are part of the training.
    """
    sets = {}
    for split in SPLITS:
        store = data.store(probe, split)
        if store is not None and len(store):
            sets[split] = (data.features(model, store), np.asarray([str(label) for label in store.labels]))
    training, testing = sets["training"], sets["testing"]
    k_nn = knn_accuracy(*training, *testing, k=min(int(probe["k"]), len(training[0])))
    validation = sets.get("validation", training)
    more = knn_accuracy(*training, *validation, k=min(int(probe["k"]), len(training[0])))
    logistic = logistic_accuracy(training, validation, testing)
    return {"k_nn": k_nn, "k_nn_validation": more, "logistic": logistic.accuracy, "chosen_c": logistic.chosen_c}


def reference_samples(data: Data, modality: str) -> Any:
    """Samples of a modality that no run trains on or rehearses: validation images, testing sentences of the probe."""
    entry = next(stage for stage in data.scale.stages if stage["modality"] == modality)
    if entry is data.scale.stages[0]:
        return data.store(data.scale.probes[0], "testing")
    return data.store(entry, "validation")


def reference_features(data: Data, model: PretrainingModel, modality: str) -> np.ndarray:
    """(n, D) features of the reference samples; of many, a choice that is the same in all runs."""
    store = reference_samples(data, modality)
    if store is None:
        return np.empty((0, 0), np.float32)
    rows = np.arange(len(store))
    if modality != data.scale.stages[0]["modality"] and len(rows) > data.scale.reference_samples:
        generator = numpy_generator_for(0, "retention reference", modality)
        rows = np.sort(generator.permutation(rows)[: data.scale.reference_samples])
    return data.features(model, StoreView(store, rows))


def keep_features(data: Data, model: PretrainingModel, modality: str, path: Path) -> None:
    """Write the reference features at the end of a modality's own stage; nothing where there are too few samples."""
    features = reference_features(data, model, modality)
    if len(features) >= min(FEWEST, data.scale.reference_samples):
        with atomic_path(path) as partial:
            np.save(partial, features)


def fine_tune(data: Data, weights: Path | None, seed: int) -> dict[str, float]:
    """Accuracy on the testing sentences after fine-tuning the whole encoder on few labels, for each number of labels.

    The engines of the classification bundle without its reports. The labels are the same for every encoder of a seed;
    no epoch is chosen on validation: the last one counts.
    """
    probe, accuracies = data.scale.probes[0], {}
    count = len(data.training(probe))
    for labels, epochs in data.scale.few_labels.items():
        keys = {"label_ratio": min(1.0, int(labels) / count), "max_epochs": epochs, "seed": seed}
        start = None if weights is None else str(weights)
        parser = task_parser(data, probe, {**keys, "init_weights": start})
        parser.get_parsed_content("train#trainer").run()
        result = parser.get_parsed_content("test#evaluator").evaluate()
        accuracies[labels] = float(np.mean(result.predicted == result.targets))
    return accuracies


def task_parser(data: Data, probe: Mapping[str, Any], keys: Mapping[str, Any]) -> ConfigParser:
    """The classification bundle's training config for the text probe."""
    scale, store = data.scale, data.training(probe)
    parser = ConfigParser()
    parser.read_config(scale.task_config)
    labels = sorted({str(label) for label in store.labels})
    network = {key: value for key, value in scale.network.items() if key != "preset"}
    settings = {
        "bundle_root": str(Path(scale.task_config).resolve().parent.parent),
        "modality": probe["modality"],
        "extra_modalities": list(scale.extra_modalities),
        "input_shape": list(store.index["sample_shape"]),
        "classes": labels,
        "data_manifest": probe["manifest"],
        "store_dir": str(data.store_dir),
        "preparation": probe.get("preparation"),
        "vocabulary": str(data.vocabulary_path),
        "preset": scale.network["preset"],
        "network_def": network,
        "precision": scale.precision,
        "batch_size": scale.few_labels_batch,
        "learning_rate": scale.few_labels_learning_rate,
        "num_workers": 0,
        "mlflow": False,
    }
    set_keys(parser, settings | dict(keys))
    return parser
