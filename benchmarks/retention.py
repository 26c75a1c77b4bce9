"""Does MedCoSS forget less? The experiment, resumable in pieces.

    medcoss sample fetch sample_data
    medcoss sample fetch sample_data --task pubmed_sections --task xray_body_part --task ct_body_region \\
        --task pathology_tissue
    python benchmarks/retention.py --sample-dir sample_data --jobs 2     # all that is missing, then the report
    python benchmarks/retention.py --list                               # what is done, what is left, how long it takes
    python benchmarks/retention.py --only 0:sequential 0:medcoss --limit-minutes 30
    python benchmarks/retention.py --report --record                    # table and figure from what is finished

Stage 1 learns sentences of PubMed abstracts; X-ray, CT, MRI and pathology follow. Stage 1 is trained once a seed and
the strategies branch from it. Runs lie in ``runs/retention`` (not in git), table and figure in its ``report``; with
``--record`` in ``benchmarks/results``.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness import RESULTS, ROOT
from retention_plan import STRATEGIES, Scale, Unit, expected_seconds, open_scale, units, with_needed

from medcoss_components.errors import InputError

SEEDS = (0, 1, 2)
POLL_SECONDS = 0.5
GRACE_SECONDS = 120.0
"""How long a run may take to write its checkpoint when time is up."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample-dir", help="folder of `medcoss sample fetch`; needed at the first call only")
    parser.add_argument("--root", type=Path, default=ROOT / "runs" / "retention", help="folder of all runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES))
    parser.add_argument("--only", nargs="+", metavar="SEED:NAME", help="these runs, and stage 1 where they need it")
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs side by side, one thread each where there are several"
    )
    parser.add_argument("--limit-minutes", type=float, help="stop before this time is over; the next call goes on")
    parser.add_argument("--list", action="store_true", help="show what is done and what is left, and stop")
    parser.add_argument("--report", action="store_true", help="write table and figure from what is finished, and stop")
    parser.add_argument("--record", action="store_true", help="write the report to benchmarks/results")
    parser.add_argument("--in-process", metavar="SEED:NAME", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def chosen_units(options: argparse.Namespace) -> list[Unit]:
    """The runs asked for, each behind the one that it needs."""
    if options.only:
        return with_needed(Unit.parse(text) for text in options.only)
    return units(options.seeds, options.strategies)


def listing(chosen: Sequence[Unit], scale: Scale, root: Path, jobs: int = 1) -> str:
    """What is done, what is left, and expected minutes."""
    left, lines = 0.0, []
    for unit in chosen:
        minutes = expected_seconds(unit, scale, root) / 60
        begun = unit.folder(root).is_dir()
        state = "done" if unit.done(root) else "begun" if begun else "left"
        left += 0.0 if state == "done" else minutes
        lines.append(f"{state:6} {unit!s:28} {minutes:6.1f} min")
    done = sum(unit.done(root) for unit in chosen)
    return "\n".join([*lines, f"{done} of {len(chosen)} done, about {left / jobs:.0f} minutes left with {jobs} job(s)"])


@dataclass
class Queue:
    """Starts runs, at most ``jobs`` at a time, in order, each behind the one that it needs.

    Args:
        chosen: the runs in order.
        root: folder of all runs.
        start: starts a run as a process.
        jobs: how many at a time.
        deadline: value of the monotonic clock at which running ones are interrupted; None: never.
    """

    chosen: Sequence[Unit]
    root: Path
    start: Callable[[Unit], subprocess.Popen[bytes]]
    jobs: int = 1
    deadline: float | None = None
    running: dict[Unit, subprocess.Popen[bytes]] = field(default_factory=dict)
    failed: list[Unit] = field(default_factory=list)

    def run(self) -> bool:
        """Run until all is done or time is up; True when every chosen run is done."""
        try:
            while True:
                self._collect()
                over = self.deadline is not None and time.monotonic() >= self.deadline
                if over:
                    break
                while len(self.running) < self.jobs and (unit := self._next()) is not None:
                    print(f"{time.strftime('%H:%M:%S')} start {unit}", flush=True)
                    self.running[unit] = self.start(unit)
                if not self.running:
                    break
                time.sleep(POLL_SECONDS)
        finally:
            self._interrupt()
        return all(unit.done(self.root) for unit in self.chosen)

    def _next(self) -> Unit | None:
        for unit in self.chosen:
            ready = unit.needs is None or unit.needs.done(self.root)
            if ready and unit not in self.running and unit not in self.failed and not unit.done(self.root):
                return unit
        return None

    def _collect(self) -> None:
        for unit, process in list(self.running.items()):
            if process.poll() is not None:
                del self.running[unit]
                if unit.done(self.root):
                    print(f"{time.strftime('%H:%M:%S')} done  {unit}", flush=True)
                else:
                    self.failed.append(unit)
                    print(f"{time.strftime('%H:%M:%S')} ended without a result: {unit}; see its log", flush=True)

    def _interrupt(self) -> None:
        """As Ctrl-C does: training writes a checkpoint and ends."""
        for process in self.running.values():
            process.send_signal(signal.SIGINT)
        for unit, process in self.running.items():
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            print(f"{time.strftime('%H:%M:%S')} stopped {unit}; the next call goes on with it", flush=True)
        self.running.clear()


def start_process(unit: Unit, root: Path, jobs: int) -> subprocess.Popen[bytes]:
    """A run as a process of its own, with one thread where several run; its output goes to ``<run>.log``."""
    environment = {**os.environ, "MEDCOSS_PROGRESS": "0"}
    if jobs > 1:
        environment["OMP_NUM_THREADS"] = "1"
    folder = unit.folder(root)
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "--root", str(root), "--in-process", str(unit)]
    with open(folder.with_name(f"{unit.name}.log"), "ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def run_here(unit: Unit, scale: Scale, root: Path) -> None:
    """Run in this process, interruptible even where the shell made background processes ignore Ctrl-C."""
    from retention_data import Data, threads_from_environment
    from retention_run import run_unit

    from medcoss_components.data.locking import kept_lock

    signal.signal(signal.SIGINT, signal.default_int_handler)
    threads_from_environment()
    folder = unit.folder(root)
    with kept_lock(folder.with_name(f".{unit.name}.lock")):  # a former call may have been killed without its runs
        run_unit(unit, Data(scale, root))


def report(scale: Scale, root: Path, record: bool) -> None:
    """Write the report and say where."""
    from retention_report import write_report

    for path in write_report(scale, root, RESULTS if record else root / "report").values():
        print(path)


def run_all(chosen: Sequence[Unit], scale: Scale, options: argparse.Namespace) -> int:
    """Prepare the data, then run what is left; return the exit status."""
    from retention_data import Data

    started = time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # its runs are stopped as well then
    Data(scale, options.root).prepare()
    queue = Queue(
        chosen=chosen,
        root=options.root,
        start=lambda unit: start_process(unit, options.root, options.jobs),
        jobs=options.jobs,
        deadline=None if options.limit_minutes is None else started + 60 * options.limit_minutes,
    )
    return 0 if queue.run() else 1 if queue.failed else 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when everything asked for is done, 3 when time was up, 1 when a run failed or input is wrong."""
    options = parse(arguments)
    try:
        options.root = options.root.resolve()
        scale = open_scale(options.root, options.sample_dir)
        scale.register()
        if options.in_process:
            run_here(Unit.parse(options.in_process), scale, options.root)
            return 0
        chosen = chosen_units(options)
        if options.list:
            print(listing(chosen, scale, options.root, options.jobs))
            return 0
        state = 0 if options.report else run_all(chosen, scale, options)
        if state == 0:
            report(scale, options.root, options.record)
        else:
            print(listing(chosen, scale, options.root, options.jobs))
        return state
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
