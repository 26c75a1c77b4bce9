"""Measuring two sides in one process, alternating, and showing what came out.

A *side* is a callable that does its work once and returns what it cost: seconds (or bytes) per unit. Both sides are
called in turn after a warm-up; the ratio of a row is the median of the ratios of the pairs, and the ratio of the
medians stands beside it. Topics (``training.py``, ``reading.py``, ...) name their rows in a dictionary ``ROWS``:
name -> function from :class:`Options` to a :class:`Row`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent
PACKAGES = ("medcoss-components", "torch", "numpy", "monai", "pytorch-ignite", "scikit-learn", "nibabel", "pillow")
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16")
GATE = 0.8
CHANCE = 0.03
"""What a few pairs of other seeds may add to an excess; the inertia of one clustering varies by 1.4 % over seeds."""
ALONE = ("limit", "reach")
MORE_IS_BETTER = ("speed", "reach")


@dataclass(frozen=True)
class Options:
    """How much to measure.

    Attributes:
        quick: the short form: smaller batches and fewer pairs.
        pairs: pairs of each row; None: what the row says.
        folder: for files that a row makes; removed at the end.
    """

    quick: bool = False
    pairs: int | None = None
    folder: Path = field(default_factory=lambda: Path(tempfile.gettempdir()))

    def pairs_of(self, full: int = 5, quick: int = 3) -> int:
        """Pairs to measure: as asked for on the command line, else by form."""
        return self.pairs or (quick if self.quick else full)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: short identifier, unique over all topics.
        what: what was measured, in words.
        unit: of the figures, for example "s/step".
        straightforward: figures of the straightforward side, one a pair; empty for a limit.
        ours: figures of our side, in the same order.
        target: what the ratio should be, at least or at most; None without.
        kind: "speed": ratio = straightforward / ours, more is better. "share": ratio = ours / straightforward, less is
            better. "excess": ratio = ours / straightforward - 1, at most target. "limit", "reach": no other side, the
            ratio is our median; less, or more, is better.
        note: what a reader must know.
    """

    name: str
    what: str
    unit: str
    straightforward: tuple[float, ...]
    ours: tuple[float, ...]
    target: float | None
    kind: str = "speed"
    note: str = ""

    @property
    def ratios(self) -> list[float]:
        """The ratio of each pair; without another side our figures."""
        if self.kind in ALONE:
            return list(self.ours)
        pairs = list(zip(self.straightforward, self.ours, strict=True))
        if self.kind == "speed":
            return [one / other for one, other in pairs]
        return [other / one - (self.kind == "excess") for one, other in pairs]

    @property
    def ratio(self) -> float:
        """Median of the pairs."""
        return statistics.median(self.ratios)

    @property
    def ratio_of_medians(self) -> float:
        """The ratio of both sides' medians."""
        ours = statistics.median(self.ours)
        if self.kind in ALONE:
            return ours
        other = statistics.median(self.straightforward)
        return other / ours if self.kind == "speed" else ours / other - (self.kind == "excess")

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None without one."""
        if self.target is None:
            return None
        return self.ratio >= self.target if self.kind in MORE_IS_BETTER else self.ratio <= self.target

    def regressed(self, recorded: float) -> bool:
        """Whether the row has lost more than a fifth against the recorded ratio; limits must hold as they are."""
        if self.kind in MORE_IS_BETTER:
            return self.ratio < GATE * recorded
        if self.kind == "share":
            return self.ratio > recorded / GATE
        if self.kind == "excess":
            return self.ratio > (self.target or 0.0) + CHANCE
        return self.met is False


def alternate(
    straightforward: Callable[[], float],
    ours: Callable[[], float],
    *,
    pairs: int,
    warmup: int = 1,
    settle: bool = False,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Call both sides in turn and return their figures; which side begins changes from pair to pair.

    Memory is handed out to each side as in a process of its own: the straightforward one finds what the C library does
    by itself, ours what our engines ask it for. With ``settle`` each turn begins with a call that is not counted, so
    that neither side pays for what the other has left behind.
    """
    from straightforward.allocation import give_back_freed_memory

    from medcoss_components.engines.allocation import keep_freed_memory

    sides = ((straightforward, give_back_freed_memory), (ours, keep_freed_memory))
    figures: tuple[list[float], list[float]] = ([], [])
    for number in range(warmup + pairs):
        for side in (0, 1) if number % 2 == 0 else (1, 0):
            work, allocate = sides[side]
            allocate()
            if settle and number >= warmup:
                work()
            value = work()
            if number >= warmup:
                figures[side].append(value)
    return tuple(figures[0]), tuple(figures[1])


def timed(work: Callable[[], Any], units: float = 1.0) -> Callable[[], float]:
    """A side from a function: seconds per unit of one call."""

    def side() -> float:
        started = time.perf_counter()
        work()
        return (time.perf_counter() - started) / units

    return side


def show(value: float, unit: str) -> str:
    """A figure for people.

    >>> show(0.0123, "s/step"), show(2.5e9, "B"), show(3.0, "s")
    ('12.3 ms/step', '2.50 GB', '3.00 s')
    """
    base, _, per = unit.partition("/")
    suffix = f"/{per}" if per else ""
    scales = {"s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")), "B": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))}
    for scale, name in scales.get(base, ()):
        if abs(value) >= scale:
            return (
                f"{value / scale:.3g} {name}{suffix}" if value / scale >= 10 else f"{value / scale:.2f} {name}{suffix}"
            )
    return f"{value:.4g} {unit}"


def _ratio_text(row: Row, value: float) -> str:
    if row.kind == "excess":
        return f"{100 * value:+.2f} %"
    return show(value, row.unit) if row.kind in ALONE else f"{value:.2f}x"


def table(rows: Iterable[Row]) -> str:
    """All rows as a Markdown table."""
    lines = [
        "| what | straightforward | ours | ratio | lowest - highest | of medians | pairs | target | met |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        other = show(statistics.median(row.straightforward), row.unit) if row.straightforward else "-"
        ours = show(statistics.median(row.ours), row.unit)
        spread = f"{_ratio_text(row, min(row.ratios))} - {_ratio_text(row, max(row.ratios))}"
        target = "-" if row.target is None else _ratio_text(row, row.target)
        met = {True: "yes", False: "no", None: "-"}[row.met]
        cells = [row.what, other, ours, _ratio_text(row, row.ratio), spread, _ratio_text(row, row.ratio_of_medians)]
        lines.append("| " + " | ".join([*cells, str(len(row.ours)), target, met]) + " |")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """What the figures depend on: processor, memory, threads, versions, graphics card."""
    import torch

    cpu = _cpu_info()
    flags = cpu.get("flags", "").split()
    found: dict[str, Any] = {
        "cpu": cpu.get("model name", platform.processor() or "unknown"),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        found["cuda"] = torch.version.cuda
    return found


def _cpu_info() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    pairs = [line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line]
    return {key.strip(): value.strip() for key, value in pairs}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def commit() -> str:
    """Short hash of the commit, with "+" when files differ from it; "unknown" without git."""
    try:
        git = ["git", "-C", str(ROOT)]
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if status.stdout.strip() else "")


def record(rows: Iterable[Row], name: str, *, form: str, command: str, results: Path | None = None) -> Path:
    """Write rows into ``<results>/<name>.json`` under "full" or "quick"; other rows of the same machine stay."""
    path = (RESULTS if results is None else results) / f"{name}.json"
    content = json.loads(path.read_text()) if path.is_file() else {}
    section, here = content.get(form, {}), machine()
    if section.get("machine") != here:
        section = {"machine": here, "rows": {}}
    made = {"date": time.strftime("%Y-%m-%d %H:%M:%S %z"), "commit": commit(), "command": command}
    for row in rows:
        ratios = {"ratio": row.ratio, "ratio_of_medians": row.ratio_of_medians, "met": row.met}
        section["rows"][row.name] = asdict(row) | ratios | made
    content[form] = section
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(partial, path)
    return path


def recorded_ratios(name: str, *, form: str, results: Path | None = None) -> dict[str, float]:
    """Row name -> recorded ratio: of this form, else of the full one."""
    path = (RESULTS if results is None else results) / f"{name}.json"
    content = json.loads(path.read_text()) if path.is_file() else {}
    merged: dict[str, float] = {}
    for section in ("full", form):
        merged |= {key: row["ratio"] for key, row in content.get(section, {}).get("rows", {}).items()}
    return merged


def regressions(rows: Iterable[Row], recorded: Mapping[str, float]) -> list[str]:
    """One line for each row that has lost more than a fifth, or that nothing is recorded for."""
    lines = []
    for row in rows:
        if row.name not in recorded:
            lines.append(f"{row.name}: nothing is recorded; run with --quick --record first")
        elif row.regressed(recorded[row.name]):
            lines.append(f"{row.name}: {_ratio_text(row, row.ratio)}, recorded {_ratio_text(row, recorded[row.name])}")
    return lines


def parse(arguments: Sequence[str] | None, names: Iterable[str]) -> argparse.Namespace:
    """The options that every script shares."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the short form")
    parser.add_argument("--pairs", type=int, help="pairs of each row")
    parser.add_argument("--threads", type=int, help="threads of torch; default: all cores")
    parser.add_argument("--only", nargs="+", metavar="ROW", help=f"beginnings of row names: {', '.join(names)}")
    parser.add_argument("--record", action="store_true", help="write the figures to benchmarks/results")
    parser.add_argument("--check", action="store_true", help="short form; fail when a ratio has fallen")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of recorded figures")
    return parser.parse_args(arguments)


def main(rows: Mapping[str, Callable[[Options], Row]], *, name: str = "speed", arguments: Sequence[str] | None = None):
    """Measure, print, and record or check as the command line says; returns the exit status."""
    chosen = parse(arguments, rows)
    _start(chosen.threads)
    wanted = [key for key in rows if not chosen.only or key.startswith(tuple(chosen.only))]
    if not wanted:
        print(f"--only {' '.join(chosen.only)}: no such row; rows are {', '.join(rows)}", file=sys.stderr)
        return 2
    form = "quick" if chosen.quick or chosen.check else "full"
    command = "python " + " ".join([Path(sys.argv[0]).name, *(sys.argv[1:] if arguments is None else arguments)])
    measured = []
    with tempfile.TemporaryDirectory(prefix="medcoss-benchmark-") as folder:
        options = Options(quick=form == "quick", pairs=chosen.pairs, folder=Path(folder))
        for key in wanted:
            started = time.monotonic()
            measured.append(rows[key](options))
            reached = _ratio_text(measured[-1], measured[-1].ratio)
            print(f"{key}: {reached} ({time.monotonic() - started:.0f} s)", file=sys.stderr, flush=True)
            if chosen.record:
                record(measured[-1:], name, form=form, command=command, results=chosen.results)
    print(table(measured))
    for row in measured:
        if row.note:
            print(f"\n{row.name}: {row.note}")
    return _gate(measured, name, form, chosen) if chosen.check else 0


def _start(threads: int | None) -> None:
    import torch

    os.environ["MEDCOSS_PROGRESS"] = "0"
    if threads:
        torch.set_num_threads(threads)


def _gate(measured: Sequence[Row], name: str, form: str, chosen: argparse.Namespace) -> int:
    lines = regressions(measured, recorded_ratios(name, form=form, results=chosen.results))
    for line in lines:
        print(f"slower: {line}", file=sys.stderr)
    return 1 if lines else 0
