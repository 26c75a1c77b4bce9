"""What the checks of ``medcoss bundles verify`` look at, and how they say what they found."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from medcoss_components.errors import InputError
from medcoss_components.files import read_json
from medcoss_components.zoo.inspection import workflow_configs

TRAINING_CONFIGS = ("train", "stage", "contrastive")
"""Configs that can train the network; train.json of a chain or of MUSCLE has none, that of its (first) step has."""
MAIN_CONFIGS = (*TRAINING_CONFIGS, "evaluate", "inference")
PARTLY_PUBLISHED = ("contrastive",)
"""Configs that train a network of which only the backbone is published."""


LONGEST = 400
"""Characters of a reason that are shown."""


class CheckFailed(Exception):
    """A bundle breaks a rule; the message says which and where."""


class NotRun(Exception):
    """A check could not be made here; the message says what is missing."""


@dataclass
class Subject:
    """One bundle under verification; a context manager that owns a scratch folder.

    Args:
        folder: the bundle.
        weights: weights given by the user, instead of the bundle's own.
    """

    folder: Path
    weights: Path | None = None
    _scratch: tempfile.TemporaryDirectory[str] | None = field(default=None, repr=False)

    def __enter__(self) -> Subject:
        self._scratch = tempfile.TemporaryDirectory(prefix="medcoss-verify-")
        return self

    def __exit__(self, *error: object) -> None:
        if self._scratch is not None:
            self._scratch.cleanup()

    @property
    def scratch(self) -> Path:
        """A folder for what the checks write."""
        if self._scratch is None:
            raise RuntimeError("use Subject in a with statement")
        return Path(self._scratch.name)

    @cached_property
    def configs(self) -> dict[str, dict[str, Any]]:
        """Every config as it runs, by name."""
        return workflow_configs(self.folder)

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """Content of configs/metadata.json."""
        return read_json(self.folder / "configs" / "metadata.json")

    @property
    def networks(self) -> dict[str, dict[str, Any]]:
        """Configs that define a network, the training config first.

        A modality that is null, as in stage.json, which the chain fills in, is that of inference.

        Raises:
            CheckFailed: when training or inference defines none.
        """
        found = {name: self.configs[name] for name in MAIN_CONFIGS if "network_def" in self.configs.get(name, {})}
        if not set(TRAINING_CONFIGS) & set(found) or "inference" not in found:
            raise CheckFailed(f"network_def is needed for training and inference, found in: {', '.join(found) or '-'}")
        modality = found["inference"].get("modality")
        return {
            name: {**config, "modality": config["modality"] or modality} if "modality" in config else config
            for name, config in found.items()
        }

    @property
    def published_networks(self) -> dict[str, dict[str, Any]]:
        """Those of :attr:`networks` that build the very network whose weights are published."""
        return {name: config for name, config in self.networks.items() if name not in PARTLY_PUBLISHED}

    @property
    def training(self) -> str:
        """Name of the config that trains the network: train, or that of a step."""
        return next(iter(self.networks))


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings, no log below errors: what is left for the user are the lines of the checks."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def root_cause(error: BaseException) -> str:
    """The error behind an exception that says most, as one line: a user's error, else the first cause."""
    causes = list(_causes(error))
    cause = next((found for found in causes if isinstance(found, InputError | CheckFailed)), causes[-1])
    text = " ".join(str(cause).split())
    text = text if len(text) <= LONGEST else text[:LONGEST] + " ..."
    return text if isinstance(cause, InputError | CheckFailed) else f"{type(cause).__name__}: {text}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Keys whose values differ, as "key: first, second"."""
    keys = [key for key in {**first, **second} if first.get(key) != second.get(key)]
    return [f"{key}: {first.get(key)!r}, {second.get(key)!r}" for key in keys]
