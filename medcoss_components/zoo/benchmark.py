"""One task trained from several initialisations with several seeds: ``medcoss benchmark run``.

Every run is a ``python -m monai.bundle run`` of its own, so that none sees what another left behind, and what is
measured is what a user of the bundle gets. Runs that finished are not repeated; one that fails is listed, the others
go on. Numbers: ``benchmark_results.py``.

    <folder>/benchmark.json  results.json  table.md  logs/<initialisation>_seed_<n>.log
    <folder>/<initialisation>/seed_<n>/     output_dir of the run: metrics.json, evaluation/, model.pt, ...
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medcoss_components.errors import InputError
from medcoss_components.files import read_json, sha256_file, write_json
from medcoss_components.progress import progress
from medcoss_components.zoo.benchmark_results import RECORD, scores, write_results

LAUNCHER = (sys.executable, "-m", "monai.bundle", "run")
SCRATCH = "scratch"
SEEDS = (0, 10, 100)
"""The seeds of the published comparison."""
OWN_KEYS = ("data_manifest", "init_weights", "output_dir", "seed")
"""Settings of the bundle that the benchmark itself gives to every run."""
POLL_SECONDS, GRACE_SECONDS = 1.0, 60.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SHOWN = 60


@dataclass(frozen=True)
class Initialisation:
    """Where training starts: a name for the table, and weights (None: from scratch)."""

    name: str
    source: Path | None = None


@dataclass(frozen=True)
class Run:
    """One training of the benchmark."""

    initialisation: Initialisation
    seed: int

    @property
    def key(self) -> str:
        """Name of the run, and its folder below that of the benchmark."""
        return f"{self.initialisation.name}/seed_{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What to compare.

    Args:
        bundle: folder of a fine-tuning bundle.
        data_manifest: labelled manifest, the same for every run.
        folder: receives runs, record and tables.
        initialisations: where training starts; names differ.
        seeds: each initialisation is trained once with each.
        overlays: configs of the bundle that are merged over train.json, such as "demo".
        settings: further settings of the bundle, as they would be written on the command line.

    Raises:
        InputError: a bundle without the needed settings, a missing overlay or manifest, a name or seed given twice, or
            a setting that the benchmark gives itself.
    """

    bundle: Path
    data_manifest: Path
    folder: Path
    initialisations: tuple[Initialisation, ...]
    seeds: tuple[int, ...] = SEEDS
    overlays: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_unique("initialisation", [entry.name for entry in self.initialisations])
        _check_unique("seed", list(self.seeds))
        if not self.data_manifest.is_file():
            raise InputError(f"data_manifest {self.data_manifest}: no such file. Give the task's labelled manifest.")
        if taken := sorted(set(self.settings) & set(OWN_KEYS)):
            raise InputError(f"settings: {', '.join(taken)} is given to every run by the benchmark. Leave it out.")
        keys = {key for path in self.configs for key in _config(path)}
        if missing := sorted(set(OWN_KEYS) - keys):
            raise InputError(
                f"{self.bundle}: no fine-tuning bundle, its configs lack {', '.join(missing)}. Name a task's bundle."
            )

    @property
    def configs(self) -> list[Path]:
        """train.json and the overlays over it."""
        return [self.bundle / "configs" / f"{name}.json" for name in ("train", *self.overlays)]

    def runs(self) -> list[Run]:
        """All runs, seed by seed, so that every initialisation has results early."""
        return [Run(entry, seed) for seed in self.seeds for entry in self.initialisations]

    def command(self, run: Run) -> list[str]:
        """Arguments of one run, without the program. Paths are absolute."""
        given: dict[str, Any] = {
            "config_file": [str(path.absolute()) for path in self.configs],
            "data_manifest": self.data_manifest.absolute(),
            "init_weights": run.initialisation.source.absolute() if run.initialisation.source else "$None",
            "seed": run.seed,
            "output_dir": (self.folder / run.key).absolute(),
        }
        if "tracking_dir" in _config(self.configs[0]):
            given["tracking_dir"] = self.folder.absolute()
        return [f"--{key}={value}" for key, value in {**given, **self.settings}.items()]

    def identity(self) -> dict[str, Any]:
        """What must be the same whenever a benchmark goes on, as JSON values."""
        return {
            "task": self.bundle.absolute().name,
            "configs": {path.name: sha256_file(path) for path in self.configs},
            "manifest": sha256_file(self.data_manifest),
            "settings": dict(self.settings),
            "initialisations": {entry.name: _weights_hash(entry.source) for entry in self.initialisations},
        }


def parse_initialisations(values: Sequence[str]) -> tuple[Initialisation, ...]:
    """Read ``scratch``, ``NAME=PATH`` or ``PATH`` (named like the folder), several in one value by commas.

    >>> [entry.name for entry in parse_initialisations(["scratch,chain=runs/demo/05_pathology"])]
    ['scratch', 'chain']

    Raises:
        InputError: nothing given, a name that cannot be a folder's, or a path that does not exist.
    """
    entries = tuple(_parse_initialisation(text) for value in values for text in value.split(",") if text.strip())
    if not entries:
        raise InputError(f"init: must name at least one initialisation, got {list(values)}. Try --init scratch.")
    return entries


def _parse_initialisation(text: str) -> Initialisation:
    name, given, source = text.strip().partition("=")
    if not given and name == SCRATCH:
        return Initialisation(SCRATCH)
    path = Path(source if given else name)
    name = name if given else path.name.removesuffix(path.suffix)
    if not _NAME.fullmatch(name) or name == "logs":
        raise InputError(f"init: {text!r} needs a name of letters, digits, '.', '_' and '-'. Write NAME=PATH.")
    return Initialisation(name, path)


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read seeds such as ``0,10,100``.

    Raises:
        InputError: something that is no whole number from 0.
    """
    parts = [part.strip() for part in text.split(",")]
    if wrong := [part for part in parts if not part.isdigit()]:
        raise InputError(f"seeds: must be whole numbers from 0 with commas between them, got {wrong[0]!r} in {text!r}.")
    return tuple(int(part) for part in parts)


def parse_settings(values: Sequence[str]) -> dict[str, str]:
    """Read ``key=value`` texts; nested keys with ``#`` as MONAI writes them.

    Raises:
        InputError: a text without "=", or a key given twice.
    """
    settings: dict[str, str] = {}
    for text in values:
        key, given, value = text.partition("=")
        key = key.strip().lstrip("-")
        if not given or not key or key in settings:
            raise InputError(f"set: each setting is key=value and stands once, got {text!r}.")
        settings[key] = value
    return settings


def run_benchmark(benchmark: Benchmark, *, launcher: Sequence[str] | None = None) -> dict[str, Any]:
    """Do every run that has not finished yet, then write ``results.json`` and ``table.md``.

    Args:
        benchmark: what to run.
        launcher: program and first arguments that start a bundle; default: :data:`LAUNCHER`.

    Returns:
        Content of ``results.json``; ``["failed"]`` lists what did not finish.

    Raises:
        InputError: the folder was begun with another bundle, manifest, setting or initialisation.
    """
    record = _begin(benchmark)
    runs = benchmark.runs()
    waiting = [run for run in runs if not _finished(benchmark, record, run)]
    with progress(
        description="benchmark", total=len(runs), initial=len(runs) - len(waiting), unit="run", smoothing=0
    ) as bar:
        for run in waiting:
            record["runs"][run.key] = _execute(benchmark, run, launcher or LAUNCHER, bar)
            write_json(benchmark.folder / RECORD, record)
            bar.update()
    return write_results(benchmark.folder)


def _begin(benchmark: Benchmark) -> dict[str, Any]:
    """The record of the folder, new or checked against what was asked, with the initialisations of this call added."""
    path, identity = benchmark.folder / RECORD, benchmark.identity()
    record = read_json(path) if path.is_file() else {"format": 1, **identity, "overlays": [], "runs": {}}
    if changes := _changes(record, identity):
        raise InputError(
            f"{path}: this benchmark was begun otherwise ({'; '.join(changes)}). Go on with the recorded ones or give "
            "another folder (--to)."
        )
    record["initialisations"] |= identity["initialisations"]
    record["overlays"] = list(benchmark.overlays)
    write_json(path, record)
    return record


def _changes(record: Mapping[str, Any], identity: Mapping[str, Any]) -> list[str]:
    """What differs; initialisations and seeds may be added, known ones must be the same weights."""
    known = record["initialisations"]
    changed = [name for name, content in identity["initialisations"].items() if known.get(name, content) != content]
    changes = [f"initialisation {name} has other weights" for name in changed]
    if record["manifest"] != identity["manifest"]:
        changes.append("the manifest has another content")
    for key in ("task", "configs", "settings"):
        if record[key] != identity[key]:
            detail = "other content" if key == "configs" else f"{record[key]!r}, now {identity[key]!r}"
            changes.append(f"{key}: {detail}")
    return changes


def _finished(benchmark: Benchmark, record: Mapping[str, Any], run: Run) -> bool:
    entry = record["runs"].get(run.key)
    return bool(entry) and entry["status"] == "finished" and (benchmark.folder / run.key / "metrics.json").is_file()


def _execute(benchmark: Benchmark, run: Run, launcher: Sequence[str], bar: Any) -> dict[str, Any]:
    """Start one run, wait, and say how it ended."""
    log = benchmark.folder / "logs" / f"{run.initialisation.name}_seed_{run.seed}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    begun, started = log.stat().st_size if log.is_file() else 0, time.monotonic()
    bar.set_description(f"{run.initialisation.name} seed {run.seed}")
    status = _wait([*launcher, *benchmark.command(run)], log, bar)
    problem = _problem(benchmark.folder / run.key, status, log, begun)
    seconds = round(time.monotonic() - started, 1)
    entry = {"seed": run.seed, "initialisation": run.initialisation.name, "seconds": seconds}
    return {**entry, "status": "failed", "reason": problem} if problem else {**entry, "status": "finished"}


def _wait(command: Sequence[str], log: Path, bar: Any) -> int:
    """Exit status of a program whose output goes to ``log``; its last line is shown beside the bar meanwhile."""
    with open(log, "ab") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            while True:
                try:
                    return process.wait(POLL_SECONDS)
                except subprocess.TimeoutExpired:
                    bar.set_postfix_str(_last_line(log)[:_SHOWN], refresh=False)
                    bar.update(0)
        finally:
            _end(process)


def _end(process: subprocess.Popen) -> None:
    """Let a program that Ctrl-C reached as well write its checkpoint; then end it."""
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait()


def _last_line(log: Path, begun: int = 0) -> str:
    """The line of ``log`` behind byte ``begun`` that says most: the last error, else the last that is not empty."""
    with open(log, "rb") as stream:
        stream.seek(max(begun, log.stat().st_size - 16384))
        lines = [line.strip() for line in re.split(r"[\r\n]+", stream.read().decode("utf-8", "replace"))]
    lines = [line for line in lines if line and not line.startswith("(MEDCOSS_DEBUG")]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1]


def _problem(output: Path, status: int, log: Path, begun: int) -> str | None:
    """Why a run does not count, or None."""
    if status != 0:
        return f"exit status {status}: {_last_line(log, begun)[:400]} (log: logs/{log.name})"
    try:
        scores(read_json(output / "metrics.json"))
    except InputError as error:
        return f"ended without an error, but {error}"
    return None


def _check_unique(what: str, values: Sequence[Any]) -> None:
    repeated = sorted({value for value in values if values.count(value) > 1})
    if repeated or not values:
        raise InputError(f"{what}s: each stands once and there is at least one, got {list(values)}.")


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        known = ", ".join(sorted(entry.stem for entry in path.parent.glob("*.json"))) or "none"
        raise InputError(f"{path}: no such config; there are: {known}.")
    return read_json(path)


def _weights_hash(source: Path | None) -> str | None:
    """SHA-256 of a weights file, read once before anything is trained from it.

    Raises:
        InputError: no such file or folder, or damaged weights.
    """
    if source is None:
        return None
    from medcoss_components.weights import read_content

    path, _ = read_content(source, mapped=True)
    return sha256_file(path)
