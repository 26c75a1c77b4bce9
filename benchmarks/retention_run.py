"""One run of the retention experiment: train its stages, then score the encoder after each of them.

A run that was killed goes on where it stopped: the chain in the middle of an epoch, the scores behind the last stage
that has some.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from retention_data import Data
from retention_plan import (
    FIRST,
    FIRST_STRATEGY,
    REHEARSAL_SHARE,
    RESULT,
    Unit,
    epochs_for,
    rehearses,
)
from retention_scores import score_encoder

from medcoss_components.continual.buffer import make_buffer, write_buffer
from medcoss_components.continual.exemplars import cluster_count, exemplar_count, select_exemplars
from medcoss_components.continual.strategies import get_strategy
from medcoss_components.engines.chain import PretrainingChain, read_chain
from medcoss_components.files import atomic_path, read_json, write_json
from medcoss_components.weights import hash_weights

EMBEDDINGS = "embeddings.npy"
UNTRAINED = "untrained"


def run_unit(unit: Unit, data: Data) -> dict[str, Any]:
    """Train and score one run; return its result, which a finished run only reads.

    Raises:
        InputError: stage 1 of the seed is not finished, or the folder was begun with other settings.
    """
    folder = unit.folder(data.root)
    if unit.done(data.root):
        return read_json(folder / RESULT)
    started = time.monotonic()
    former = _seconds_before(folder)
    try:
        chain = build_chain(unit, data)
        chain.run()
        stages = score_stages(unit, data)
    finally:
        write_json(folder / "seconds.json", {"total": round(former + time.monotonic() - started, 3)})
    result = {
        "seed": unit.seed,
        "name": unit.name,
        "stages": stages,
        "updates": sum(stage["updates"] for stage in stages if stage["updates"]),
        "seconds": read_json(folder / "seconds.json"),
    }
    write_json(folder / RESULT, result)
    return result


def _seconds_before(folder: Path) -> float:
    """Seconds that earlier starts of a run took."""
    path = folder / "seconds.json"
    return float(read_json(path)["total"]) if path.is_file() else 0.0


def build_chain(unit: Unit, data: Data) -> PretrainingChain:
    """The chain of a run: stage 1, or the later stages from stage 1's weights, or all of them."""
    scale, strategy = data.scale, FIRST_STRATEGY if unit.name == FIRST else unit.name
    chosen = scale.stages[:1] if unit.name == FIRST else scale.stages[1:] if unit.branches else scale.stages
    # every stage of a chain that trains all from scratch rehearses, except its first
    learned_first = (chosen[-1] if get_strategy(strategy).reverses_stages else chosen[0]) if not unit.branches else None
    entries = [
        stage_entry(entry, data, rehearsal=rehearses(strategy) and entry is not learned_first) for entry in chosen
    ]
    options: dict[str, Any] = {}
    if unit.branches:
        options = {"init_weights": first_stage(unit, data), "buffers": [first_buffer(unit, data)]}
    settings = stage_settings(unit, data)
    if get_strategy(strategy).single_stage:
        settings |= joint_settings(data)
    return PretrainingChain(
        stage_config=scale.stage_config,
        stages=entries,
        output_dir=unit.folder(data.root),
        stage_settings=settings,
        strategy=strategy,
        vocabulary=data.vocabulary_path,
        extra_modalities=scale.extra_modalities,
        reference_samples=0,  # scored by retention_scores.py, against stage 1 and with fine-tuning
        tracking=False,
        **options,
    )


def stage_settings(unit: Unit, data: Data) -> dict[str, Any]:
    """What all stages of a run share."""
    scale = data.scale
    network = {key: value for key, value in scale.network.items() if key != "preset"}
    return {
        "store_dir": str(data.store_dir),
        "preset": scale.network["preset"],
        **({"network_def": network} if network else {}),
        "seed": unit.seed,
        "precision": scale.precision,
        "buffer_ratio": scale.buffer_ratio,
        "cluster_ratio": scale.cluster_ratio,
        "rehearsal_share": REHEARSAL_SHARE,
        "num_workers": 0,
        "log_interval": 20,
        "checkpoint_seconds": 60,
    }


def stage_entry(entry: Mapping[str, Any], data: Data, *, rehearsal: bool) -> dict[str, Any]:
    """A stage as the chain takes it, with as many epochs as make its updates."""
    batch = int(entry["batch_size"])
    epochs = epochs_for(entry["updates"], len(data.training(entry)), batch, rehearsal=rehearsal)
    return {
        "modality": entry["modality"],
        "data_manifest": entry["manifest"],
        **({"preparation": dict(entry["preparation"])} if entry.get("preparation") else {}),
        "batch_size": batch,
        "base_learning_rate": entry["learning_rate"] * 256 / batch,
        "max_epochs": epochs,
        "warmup_epochs": epochs * data.scale.warmup_share,
    }


def joint_settings(data: Data) -> dict[str, Any]:
    """Settings of the one stage of joint training: the batch of the text stage, the updates of all stages together."""
    text, stages = data.scale.stages[0], data.scale.stages
    batch = int(text["batch_size"])
    sizes = {entry["modality"]: len(data.training(entry)) for entry in stages}
    updates = sum(
        epochs_for(entry["updates"], sizes[entry["modality"]], int(entry["batch_size"]), rehearsal=False)
        * -(-sizes[entry["modality"]] // int(entry["batch_size"]))
        for entry in stages
    )
    epochs = max(1, round(updates / sum(-(-size // batch) for size in sizes.values())))
    return {
        "batch_size": batch,
        "base_learning_rate": text["learning_rate"] * 256 / batch,
        "max_epochs": epochs,
        "warmup_epochs": epochs * data.scale.warmup_share,
    }


def stage_folders(folder: Path) -> list[tuple[str, str, Path]]:
    """(name, modality, folder) of the stages of a run, in the order in which they were trained."""
    return [(stage["name"], stage["modality"], folder / stage["folder"]) for stage in read_chain(folder)["stages"]]


def first_stage(unit: Unit, data: Data) -> Path:
    """Folder of stage 1 of the unit's seed."""
    return stage_folders(Unit(unit.seed, FIRST).folder(data.root))[0][2]


def first_buffer(unit: Unit, data: Data) -> Path:
    """Stage 1's buffer as this strategy chooses it: stage 1's own, or chosen anew from the same weights."""
    strategy, start = get_strategy(unit.name), first_stage(unit, data)
    ratio = strategy.buffer_ratio or data.scale.buffer_ratio
    if strategy.exemplars == "kmeans" and ratio == data.scale.buffer_ratio:
        return start / "buffer.json"
    path = unit.folder(data.root) / "first_buffer" / "buffer.json"
    if path.is_file():
        return path
    store = data.training(data.scale.stages[0])
    features = stage_embeddings(unit, data, start)
    chosen = select_exemplars(
        features,
        count=exemplar_count(len(features), ratio),
        clusters=cluster_count(len(features), data.scale.cluster_ratio),
        seed=unit.seed,
        rule=strategy.exemplars,
    )
    encoder_hash = hash_weights(data.network(start, unit.seed).state_dict())
    write_buffer(
        make_buffer(store=store, exemplars=chosen, encoder_hash=encoder_hash, ratio=ratio, seed=unit.seed), path
    )
    return path


def stage_embeddings(unit: Unit, data: Data, start: Path) -> np.ndarray:
    """(N, D) embeddings of all training texts by stage 1; computed once per seed."""
    path = start.parent / EMBEDDINGS
    if not path.is_file():
        features = data.features(data.network(start, unit.seed), data.training(data.scale.stages[0]))
        with atomic_path(path) as partial:
            np.save(partial, features)
    return np.load(path)


def score_stages(unit: Unit, data: Data) -> list[dict[str, Any]]:
    """Scores of the untrained encoder (stage 1 only) and of the encoder after every stage of a run."""
    folder, rows = unit.folder(data.root), []
    scores = folder / "scores"
    if unit.name == FIRST:
        path = scores / f"{UNTRAINED}.json"
        found = score_encoder(data, weights=None, path=path, seed=unit.seed, learned=(), few_labels=True)
        rows.append({"stage": UNTRAINED, "modality": None, "updates": 0, "validation_loss": None, **found})
    text = data.scale.stages[0]["modality"]
    places = {text: Unit(unit.seed, FIRST).folder(data.root) / "scores" / f"{text}.npy"} if unit.branches else {}
    trained = stage_folders(folder)
    for number, (name, modality, place) in enumerate(trained):
        own = [entry["modality"] for entry in data.scale.stages] if len(trained) == 1 and joint(unit) else [modality]
        learned = [*places, *own]
        found = score_encoder(
            data,
            weights=place,
            path=scores / f"{name}.json",
            seed=unit.seed,
            learned=learned,
            own=own,
            references=dict(places),
            few_labels=number == len(trained) - 1,
        )
        places |= {other: scores / f"{other}.npy" for other in own}
        metrics = read_json(place / "metrics.json")
        facts = {"updates": metrics["iterations"], "validation_loss": metrics["validation_loss"]}
        facts["training_seconds"] = metrics["seconds"]["train"]
        rows.append({"stage": name, "modality": modality, **facts, **found})
    return rows


def joint(unit: Unit) -> bool:
    return unit.name != FIRST and get_strategy(unit.name).single_stage
