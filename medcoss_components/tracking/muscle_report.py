"""REPORT.html of MUSCLE's pre-training, and its tasks as a table for the terminal.

write_muscle_report("runs/muscle")          # -> runs/muscle/REPORT.html, one file that needs nothing else
print(muscle_table("runs/muscle"))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from medcoss_components.errors import InputError
from medcoss_components.files import read_json, write_text
from medcoss_components.retention.results import change_text, score_text
from medcoss_components.text_table import text_lines
from medcoss_components.tracking.muscle_captions import CAPTIONS, INTRODUCTION, TASK_COLUMNS
from medcoss_components.tracking.report_data import (
    NOTHING,
    bytes_text,
    count_text,
    loss_text,
    optional_json,
    seconds_text,
    status_text,
)
from medcoss_components.tracking.report_html import (
    PICTURES_OF_DATA,
    badge,
    fact_list,
    incomplete,
    page,
    picture,
    settings_section,
    table,
)

MUSCLE_FILE, REPORT_NAME = "muscle.json", "REPORT.html"
TITLES = {"contrastive": "Contrast, without labels", "multitask": "Labelled tasks in turn"}
TASK_HEAD = ("Task", "Kind", "Training images", "Number", "Validation", "Testing")


@dataclass(frozen=True)
class StepResult:
    """What one step has written so far; absent files give empty mappings, ``problems`` names unreadable ones."""

    name: str
    folder: Path
    run_id: str | None
    record: Mapping[str, Any]
    metrics: Mapping[str, Any]
    rounds: Mapping[str, Any]
    problems: list[str]

    @property
    def status(self) -> str:
        """One word or two: finished, stopped after a part, not started."""
        return status_text(self.record.get("steps") or {}, finished=bool(self.metrics), begun=bool(self.record))

    @property
    def seconds(self) -> float:
        """Wall time of the parts that are done."""
        return sum(part["seconds"] for part in (self.record.get("steps") or {}).values())


@dataclass(frozen=True)
class MuscleResult:
    """What a run of the pipeline has written so far."""

    folder: Path
    run_id: str | None
    steps: Sequence[StepResult]

    @property
    def finished(self) -> bool:
        return all(step.metrics for step in self.steps)


def read_muscle(output_dir: str | Path) -> MuscleResult:
    """Collect what the pipeline has written, finished or not.

    Raises:
        InputError: when ``output_dir`` holds no readable ``muscle.json``.
    """
    folder = Path(output_dir)
    if not (folder / MUSCLE_FILE).is_file():
        raise InputError(f"{folder}: no {MUSCLE_FILE} here. Give the output_dir of a pre-training that has begun.")
    record = read_json(folder / MUSCLE_FILE)
    steps = [_read_step(folder / entry["folder"], entry) for entry in record["steps"]]
    return MuscleResult(folder, record.get("run_id"), steps)


def _read_step(folder: Path, entry: Mapping[str, Any]) -> StepResult:
    problems: list[str] = []
    record, metrics, rounds = (
        optional_json(folder / name, problems) for name in ("run.json", "metrics.json", "rounds.json")
    )
    run_id = entry.get("run_id") or (record.get("values") or {}).get("run_id")
    return StepResult(entry["name"], folder, run_id, record, metrics, rounds, problems)


def write_muscle_report(output_dir: str | Path) -> Path:
    """Write ``<output_dir>/REPORT.html`` from what the pipeline has written so far.

    The page holds its style and pictures itself; links lead to the pages of the tasks in the same folder.

    Returns:
        Path of the page.

    Raises:
        InputError: when there is no readable ``muscle.json``.
    """
    result = read_muscle(output_dir)
    settings = {f"settings of {step.name}": step.record.get("settings") or {} for step in result.steps}
    runs = [("pipeline", result.run_id or NOTHING), *((step.name, step.run_id or NOTHING) for step in result.steps)]
    sections = [
        _notice(result),
        *(_section(number, step) for number, step in enumerate(result.steps, 1)),
        settings_section(settings, runs),
    ]
    text = page("X-ray pre-training report", _header(result), sections, PICTURES_OF_DATA)
    path = result.folder / REPORT_NAME
    write_text(path, text)
    return path


def _header(result: MuscleResult) -> str:
    done = sum(bool(step.metrics) for step in result.steps)
    status = "finished" if result.finished else f"unfinished: {done} of {len(result.steps)} steps"
    facts = f"{len(result.steps)} steps · {seconds_text(sum(step.seconds for step in result.steps))}"
    links = "".join(f'<a href="#{step.name}">{escape(TITLES[step.name])}</a>' for step in result.steps)
    return (
        f"<header class=page><h1>X-ray pre-training report</h1><p class=lead>{badge(status)} &nbsp; {facts}</p>"
        f"<p>{escape(INTRODUCTION)}</p><nav class=contents aria-label=Steps>{links}</nav></header>"
    )


def _notice(result: MuscleResult) -> str:
    """What is missing and how to go on; empty for a finished run without problems."""
    entries = [f"{step.name}: {step.status}" for step in result.steps if not step.metrics]
    entries += [problem for step in result.steps for problem in step.problems]
    return incomplete("run", entries, command="the same command", kept="parts")


def _section(number: int, step: StepResult) -> str:
    heading = f"{number} · {escape(TITLES[step.name])} {badge(step.status)}"
    parts = [f"<section class=stage id={step.name}><h2>{heading}</h2>"]
    if step.metrics:
        facts, tables = (_contrast_facts, _union) if step.name == "contrastive" else (_task_facts, _tasks)
        parts += [fact_list([*facts(step), *_common_facts(step)]), tables(step)]
    else:
        parts.append("<p class=muted>The numbers of this step are written when it ends.</p>")
    for name, caption in CAPTIONS[step.name].items():
        path = step.folder / "previews" / f"{name}.png"
        if path.is_file():
            parts.append(picture(path, caption, TITLES[step.name], beside=name == "views"))
    return "".join(parts) + "</section>"


def _common_facts(step: StepResult) -> list[tuple[str, str, str]]:
    metrics = step.metrics
    return [
        ("Time", seconds_text(step.seconds), "all parts"),
        ("Peak memory", bytes_text(metrics["peak_memory_bytes"]), metrics["device"]),
        ("Parameters", count_text(metrics["parameters"]), metrics["precision"]),
    ]


def _contrast_facts(step: StepResult) -> list[tuple[str, str, str]]:
    metrics, held_out = step.metrics, step.metrics["validation"] or {}
    return [
        ("Training images", count_text(metrics["samples"]), f"{len(metrics['datasets'])} data sets"),
        ("Epochs", count_text(metrics["epochs"]), f"{count_text(metrics['iterations'])} iterations"),
        ("Contrastive loss", f"{loss_text(metrics['first_loss'])} → {loss_text(metrics['final_loss'])}", "nats"),
        ("Views that find each other", score_text(held_out.get("top1")), "held-out images, nearest neighbour"),
        ("Spread of features", loss_text(metrics["feature_spread"]), "0: collapsed, 1: in all directions"),
        ("Throughput", count_text(metrics["samples_per_second"]), "images per second"),
    ]


def _task_facts(step: StepResult) -> list[tuple[str, str, str]]:
    metrics, retained = step.metrics, step.metrics["retention"] or {}
    return [
        ("Tasks", count_text(len(metrics["tasks"])), ""),
        ("Rounds", count_text(metrics["rounds"]), f"{count_text(metrics['iterations'])} iterations"),
        ("Weights", f"round {metrics['kept_round']}", f"the {metrics['keep']} one"),
        ("Mean of the tasks", score_text(metrics["mean_headline"]), "validation, each by its number"),
        ("Backward transfer", change_text(retained.get("backward_transfer")), "last round against the first visit"),
        ("Forgetting", change_text(retained.get("forgetting")), "last round against the best; lower is better"),
    ]


def _union(step: StepResult) -> str:
    """What the union of data sets consists of."""
    kinds = [("Data set", step.metrics["datasets"]), ("Body part", step.metrics["body_parts"])]
    tables = [
        table((head, "Images"), [(str(name), count_text(count)) for name, count in counts.items()])
        for head, counts in kinds
        if counts
    ]
    return "".join(f"<div class=compact>{entry}</div>" for entry in tables)


def task_rows(step: StepResult) -> list[tuple[str, ...]]:
    """A row a task: name, kind, training images, the number that speaks for it, and its values."""
    names = step.rounds.get("headlines") or {}
    return [
        (
            task,
            entry["kind"],
            count_text(entry["samples"]),
            names.get(task, NOTHING),
            *(_value(entry, split, names.get(task)) for split in ("validation", "testing")),
        )
        for task, entry in step.metrics["tasks"].items()
    ]


def _value(entry: Mapping[str, Any], split: str, name: str | None) -> str:
    """ "0.926 (0.913 to 0.953)", without an interval where there is none."""
    value = (entry.get(split) or {}).get(name)
    if value is None:
        return NOTHING
    interval = (entry["intervals"].get(split) or {}).get(name)
    return f"{value:.3f}" + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")


def _tasks(step: StepResult) -> str:
    links = [
        f'<a href="{escape(path.relative_to(step.folder.parent).as_posix())}">{escape(task)}, {split}</a>'
        for task in step.metrics["tasks"]
        for split in ("validation", "testing")
        if (path := step.folder / "evaluation" / task / split / REPORT_NAME).is_file()
    ]
    pages = f"<p class=small>Pages of the tasks: {' · '.join(links)}</p>" if links else ""
    return f"{table(TASK_HEAD, task_rows(step))}<p class='small muted'>{escape(TASK_COLUMNS)}</p>{pages}"


def muscle_table(output_dir: str | Path) -> str:
    """The tasks of step 2 as plain text for a terminal, and the time of each step.

    Raises:
        InputError: when there is no readable ``muscle.json``.
    """
    result = read_muscle(output_dir)
    steps = [("Step", "Status", "Time")]
    steps += [(step.folder.name, step.status, seconds_text(step.seconds)) for step in result.steps]
    tasks = [row for step in result.steps if step.name == "multitask" and step.metrics for row in task_rows(step)]
    blocks = [steps] + ([[TASK_HEAD, *tasks]] if tasks else [])
    return "\n\n".join("\n".join(text_lines(block, left=range(6))) for block in blocks)
