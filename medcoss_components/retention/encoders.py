"""The encoders of a chain as columns of the matrix: the one that it starts from and that of each finished stage.

They are built again from the chain's folder alone, so that a finished chain can be scored later.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from medcoss_components.engines.setup import VOCABULARY_NAME, initialised_network
from medcoss_components.engines.stage import STEPS
from medcoss_components.errors import InputError
from medcoss_components.files import read_json
from medcoss_components.networks.pretraining import PretrainingModel
from medcoss_components.weights import hash_weights, load_initial_weights

START = "start"


@dataclass(frozen=True, kw_only=True)
class Column:
    """An encoder of a chain.

    Attributes:
        name: ``start``, or the stage's name.
        modality: what its stage is called after; None for the start.
        learned: names of the modalities that are learned there.
        folder: the stage's; for the start that of the first stage, which says how it was built.
        init_weights: what the start was read from; None: random.
        allow_initialised: names that these weights may lack.
    """

    name: str
    modality: str | None
    learned: tuple[str, ...]
    folder: Path
    init_weights: Path | None = None
    allow_initialised: tuple[str, ...] = field(default=())

    @property
    def is_start(self) -> bool:
        return self.name == START

    @property
    def state(self) -> str:
        """Changes when the stage is trained anew: the hash of the starting weights, or when training ended."""
        record = read_json(self.folder / "stage.json")
        return record["settings"]["initial_weights"] if self.is_start else record["steps"]["train"]["finished"]

    @property
    def precision(self) -> str:
        """The one that the stage was trained with."""
        return read_json(self.folder / "metrics.json")["precision"]

    @property
    def vocabulary(self) -> Path | None:
        """The vocabulary of the stage, None while the chain has no text."""
        path = self.folder / VOCABULARY_NAME
        return path if path.is_file() else None

    def network(self, device: torch.device | str = "cpu") -> PretrainingModel:
        """The network with this encoder, in eval mode; decoder and heads have their first values.

        Raises:
            InputError: the weights are gone, or the start cannot be built again as it was.
        """
        settings = read_json(self.folder / "stage.json")["settings"]
        model = PretrainingModel(
            text_attention=settings.get("text_attention", "bidirectional"),
            decoder_positions=settings.get("decoder_positions", "sincos"),
            **read_json(self.folder / "metrics.json")["network"],
        )
        if self.is_start:
            self._initialise(model, settings)
        else:
            load_initial_weights(model, self.folder)
        return model.to(device).eval()

    def _initialise(self, model: PretrainingModel, settings: Mapping[str, Any]) -> None:
        initialised_network(
            network=model,
            init_weights=self.init_weights,
            seed=settings["seed"],
            allow_initialised=self.allow_initialised,
        )
        if hash_weights(model.state_dict()) != settings["initial_weights"]:
            raise InputError(
                f"{self.init_weights or 'random weights'}: give other weights than those that {self.folder.name} "
                "started from; the file has changed since, or the network is another one"
            )


def named(modality: str | Mapping[str, Any]) -> str:
    """Name of a stage entry's modality, which need not be registered here."""
    return modality if isinstance(modality, str) else str(modality["name"])


def chain_columns(folder: Path, record: Mapping[str, Any]) -> list[Column]:
    """The start and the finished stages of a chain, in order; nothing before the first stage is finished.

    Args:
        folder: the chain's output folder.
        record: content of its chain.json.
    """
    stages = [stage for stage in record["stages"] if all(step in stage["steps"] for step in STEPS)]
    if not stages:
        return []
    settings = record["settings"]
    first = {**settings, **settings["stages"][0]}
    start = record.get("init_weights")
    columns = [
        Column(
            name=START,
            modality=None,
            learned=tuple(stage["modality"] for stage in record.get("earlier", ())),
            folder=folder / stages[0]["folder"],
            init_weights=None if start is None else Path(os.path.normpath(folder / start)),
            allow_initialised=tuple(first.get("allow_initialised") or ()),
        )
    ]
    for stage, entry in zip(stages, settings["stages"], strict=False):
        joint = [named(other["modality"]) for other in entry.get("joint", ())]
        learned = (stage["modality"], *joint)
        stage_folder = folder / stage["folder"]
        columns.append(Column(name=stage["name"], modality=stage["modality"], learned=learned, folder=stage_folder))
    return columns
