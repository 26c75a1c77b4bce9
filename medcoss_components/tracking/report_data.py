"""Reading a chain's folder for the report: what is there, what is missing, numbers as text with units."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medcoss_components.errors import InputError
from medcoss_components.files import read_json
from medcoss_components.retention.results import read_retention
from medcoss_components.tracking.curves import COLUMNS, read_curves

#: Kinds of pictures, in the order of the report; file ``<stage>/previews/<kind>.png``.
PICTURES = ("reconstruction", "loss", "buffer_map", "exemplars")
NOTHING = "–"


@dataclass(frozen=True)
class StageResult:
    """What one stage has written so far. Absent files give empty mappings; ``problems`` names unreadable ones."""

    name: str
    modality: str
    folder: Path
    run_id: str | None
    steps: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    history: Mapping[str, Any] = field(default_factory=dict)
    dimension: int | None = None
    problems: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether the stage has written its numbers, which it does last."""
        return bool(self.metrics)

    @property
    def started(self) -> bool:
        return self.finished or bool(self.steps) or bool(self.history)

    @property
    def status(self) -> str:
        """One word or two for tables: finished, stopped after a step, not started."""
        return status_text(self.steps, finished=self.finished, begun=self.started)

    def picture(self, kind: str) -> Path | None:
        """Path of a picture, or None when it was not drawn."""
        path = self.folder / "previews" / f"{kind}.png"
        return path if path.is_file() else None


@dataclass(frozen=True)
class ChainResult:
    """What a chain has written so far."""

    folder: Path
    experiment: str
    run_id: str | None
    settings: Mapping[str, Any]
    stages: tuple[StageResult, ...]
    planned: tuple[str, ...]
    retention: Mapping[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        return not self.planned and all(stage.finished for stage in self.stages)

    @property
    def seconds(self) -> float:
        return sum(stage_seconds(stage) for stage in self.stages)

    @property
    def ended(self) -> str | None:
        """Time at which the last recorded step ended, as "2026-01-31 12:00 UTC"."""
        times = [step.get("finished", "") for stage in self.stages for step in stage.steps.values()]
        return f"{max(times)[:16].replace('T', ' ')} UTC" if any(times) else None


def status_text(parts: Iterable[str], *, finished: bool, begun: bool) -> str:
    """How far something is that has ended ``parts`` so far.

    >>> status_text(["prepare", "train"], finished=False, begun=True), status_text((), finished=False, begun=False)
    ('stopped after train', 'not started')
    """
    if finished:
        return "finished"
    ended = list(parts)
    return f"stopped after {ended[-1]}" if ended else "begun" if begun else "not started"


def optional_json(path: Path, problems: list[str]) -> dict[str, Any]:
    """Content of a file, empty where there is none; one that cannot be read is told in ``problems``."""
    if not path.is_file():
        return {}
    try:
        content = read_json(path)
    except InputError as error:
        problems.append(str(error))
        return {}
    return content if isinstance(content, dict) else {}


def _dimension(modality: str, buffer: Mapping[str, Any]) -> int | None:
    entry = buffer.get("modality")
    if isinstance(entry, Mapping) and "dimension" in entry:
        return int(entry["dimension"])
    from medcoss_components.data.modalities import get_modality

    try:
        return get_modality(modality).dimension
    except InputError:
        return None


def _history(path: Path, problems: list[str]) -> dict[str, Any]:
    history = optional_json(path, problems)
    try:
        read_curves(history or {"columns": COLUMNS})
    except (InputError, ValueError, TypeError) as error:
        problems.append(f"{path}: {error}")
        return {}
    return history


def read_stage(output_dir: Path, record: Mapping[str, Any]) -> StageResult:
    """Collect the files of one stage from its record in ``chain.json``."""
    folder = output_dir / record.get("folder", record["name"])
    problems: list[str] = []
    modality = str(record.get("modality") or record["name"])
    return StageResult(
        name=record["name"],
        modality=modality,
        folder=folder,
        run_id=record.get("run_id"),
        steps=record.get("steps") or optional_json(folder / "stage.json", problems).get("steps") or {},
        metrics=optional_json(folder / "metrics.json", problems),
        history=_history(folder / "history.json", problems),
        dimension=_dimension(modality, optional_json(folder / "buffer.json", problems)),
        problems=tuple(problems),
    )


def read_chain(output_dir: str | Path) -> ChainResult:
    """Collect what a chain has written, finished or not.

    Raises:
        InputError: when ``output_dir`` holds no readable ``chain.json``.
    """
    folder = Path(output_dir)
    if not (folder / "chain.json").is_file():
        raise InputError(f"{folder}: no chain.json here. Give the output_dir of a chain that has begun.")
    record = read_json(folder / "chain.json")
    stages = tuple(read_stage(folder, entry) for entry in record.get("stages", []))
    settings = record.get("settings") or {}
    problems: list[str] = []
    return ChainResult(
        folder=folder,
        experiment=str(record.get("experiment") or ""),
        run_id=record.get("run_id"),
        settings=settings,
        stages=stages,
        planned=_planned(record, len(stages)),
        retention=_retention(folder, problems),
        problems=tuple(problems),
    )


def _retention(folder: Path, problems: list[str]) -> Mapping[str, Any]:
    """The matrix of retention.json, empty where there is none."""
    try:
        return read_retention(folder) or {}
    except InputError as error:
        problems.append(str(error))
        return {}


def _planned(record: Mapping[str, Any], begun: int) -> tuple[str, ...]:
    """Names of the stages that the settings ask for and that have not begun."""
    entries = (record.get("settings") or {}).get("stages") or []
    earlier = len(record.get("earlier") or [])
    names = [str(entry.get("name") or entry.get("modality")) for entry in entries]
    return tuple(f"{earlier + number:02d}_{name}" for number, name in enumerate(names, 1) if number > begun)


# ----------------------------------------------------------------------------------------------------------- numbers


def count_text(value: float | None) -> str:
    """1234 -> "1,234"."""
    return NOTHING if value is None else f"{int(value):,}"


def loss_text(value: float | None) -> str:
    """Three significant digits.

    >>> loss_text(0.01234), loss_text(6.2), loss_text(0.00021), loss_text(None)
    ('0.0123', '6.20', '2.1e-4', '–')
    """
    if value is None:
        return NOTHING
    if 0 < abs(value) < 1e-3:
        return f"{value:.1e}".replace("e-0", "e-")
    return f"{value:#.3g}".rstrip(".")


def change_text(first: float | None, last: float | None) -> str:
    """Relative change.

    >>> change_text(4.0, 3.0)
    '−25 %'
    """
    if not first or last is None:
        return NOTHING
    percent = round(100 * (last - first) / first)
    return f"{'+' if percent > 0 else '−' if percent < 0 else '±'}{abs(percent)} %"


def seconds_text(value: float | None) -> str:
    """Seconds as text with a unit.

    >>> seconds_text(4.21), seconds_text(75), seconds_text(7260)
    ('4.2 s', '1 min 15 s', '2 h 01 min')
    """
    if value is None:
        return NOTHING
    if value < 59.95:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    return f"{minutes} min {seconds:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def bytes_text(value: float | None) -> str:
    """Bytes as text.

    >>> bytes_text(3 * 2**30), bytes_text(52428800)
    ('3.0 GiB', '50 MiB')
    """
    if not value:
        return NOTHING
    return f"{value / 2**30:.1f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"


def stage_seconds(stage: StageResult) -> float:
    """Wall time of a stage: the times of its metrics, or else of its finished steps."""
    times = stage.metrics.get("seconds") or {name: step.get("seconds") for name, step in stage.steps.items()}
    return float(sum(value for value in times.values() if value))


def loss_unit(dimension: int | None) -> str:
    """What one unit of the pretext loss is."""
    if dimension is None:
        return "pretext loss"
    return "nats per hidden word" if dimension == 1 else "squared error, normalised pixels"


def rehearsed(stage: StageResult) -> Mapping[str, Any]:
    """Earlier modality -> {"first", "final", "buffer_size"}."""
    return stage.metrics.get("rehearsal") or {}


def summary_rows(chain: ChainResult) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and one row a stage, as text; stages that are planned and not begun included."""
    header = (
        "Stage",
        "Samples",
        "Epochs",
        "Iterations",
        "Pretext loss",
        "Change",
        "Validation",
        "Buffer",
        "Rehearsed",
        "Samples/s",
        "Time",
        "Status",
    )
    rows = [_summary_row(stage) for stage in chain.stages]
    blank = (NOTHING,) * (len(header) - 2)
    rows += [(name, *blank, "not started") for name in chain.planned]
    return header, rows


def _summary_row(stage: StageResult) -> tuple[str, ...]:
    metrics = stage.metrics
    first, final = metrics.get("first_loss"), metrics.get("final_loss")
    return (
        stage.name,
        count_text(metrics.get("samples")),
        count_text(metrics.get("epochs")),
        count_text(metrics.get("iterations")),
        NOTHING if final is None else f"{loss_text(first)} → {loss_text(final)}",
        change_text(first, final),
        loss_text(metrics.get("validation_loss")),
        count_text(metrics.get("buffer_size")),
        ", ".join(rehearsed(stage)) or NOTHING,
        count_text(metrics.get("samples_per_second")),
        seconds_text(stage_seconds(stage)) if stage.started else NOTHING,
        stage.status,
    )
