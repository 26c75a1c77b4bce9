"""Which steps of a stage are done: a small JSON file, rewritten by a rename after every step."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from medcoss_components.errors import InputError
from medcoss_components.files import read_json, write_json

_HASH = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def changed_settings(recorded: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Settings that differ, as "name: recorded -> given" lines; of hashes the first 12 digits."""
    names = sorted({*recorded, *given})
    return [
        _HASH.sub(r"\1...", f"{name}: {recorded.get(name)!r} -> {given.get(name)!r}")
        for name in names
        if recorded.get(name) != given.get(name)
    ]


class StepRecord:
    """Finished steps of one stage, with the settings that they were run with.

    Args:
        path: the JSON file; read when it exists.
        settings: result-relevant settings as JSON values.
        writes: whether this process writes (rank 0).

    Raises:
        InputError: when the file was written with other settings; the message lists them.
    """

    def __init__(self, path: Path, *, settings: Mapping[str, Any], writes: bool = True) -> None:
        self.path, self.writes = Path(path), writes
        self.content: dict[str, Any] = {"format": 1, "settings": dict(settings), "steps": {}, "values": {}}
        if self.path.is_file():
            self.content = read_json(self.path)
            changes = changed_settings(self.content["settings"], settings)
            if changes:
                raise InputError(
                    f"{self.path}: this folder was begun with other settings ({'; '.join(changes)}). "
                    "Go on with the recorded ones or give another output_dir."
                )

    @property
    def steps(self) -> dict[str, dict[str, Any]]:
        """Step -> {"finished": ISO time, "seconds": float}."""
        return self.content["steps"]

    @property
    def values(self) -> dict[str, Any]:
        """What later steps need of earlier ones: run id, validation loss and the like."""
        return self.content["values"]

    def done(self, step: str) -> bool:
        return step in self.steps

    def save(self) -> None:
        if self.writes:
            write_json(self.path, self.content)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step and record it when it ends without an error."""
        started = time.monotonic()
        yield
        self.steps[name] = {"finished": _now(), "seconds": round(time.monotonic() - started, 3)}
        self.save()
