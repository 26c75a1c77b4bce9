"""Handlers of the trainers: schedules, guard against non-finite losses, resume checkpoint, history, progress.

Each one attaches to events and, where it has a state, gives it as ``state_dict`` for the resume checkpoint.
"""

from __future__ import annotations

import logging
import pickle
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import ignite.distributed as idist
import torch
from ignite.engine import Events
from monai.utils.enums import CommonKeys

from medcoss_components.engines.agreement import AnyRank
from medcoss_components.engines.optimisation import WarmupCosine, polynomial_decay
from medcoss_components.engines.trainer import ResumableTrainer, loss_terms
from medcoss_components.errors import InputError
from medcoss_components.files import atomic_path, check_archive
from medcoss_components.progress import progress

if TYPE_CHECKING:
    from medcoss_components.tracking.runs import TrackedRun


logger = logging.getLogger(__name__)


class Stateful(Protocol):
    """Something whose state travels in the resume checkpoint."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class NonFiniteLossError(RuntimeError):
    """A loss became NaN or infinite; the message names iteration, modality and samples."""


class LearningRateSchedule:
    """Sets the learning rate before every iteration; it depends on the iteration number alone, so it has no state.

    Args:
        peak: learning rate at the end of the warm-up; see
            :func:`~medcoss_components.engines.optimisation.scaled_learning_rate`.
        warmup_epochs: epochs of the linear warm-up; fractions are allowed.
    """

    def __init__(self, *, peak: float, warmup_epochs: float) -> None:
        self.peak, self.warmup_epochs = peak, warmup_epochs
        self.schedule: WarmupCosine | None = None

    def attach(self, engine: ResumableTrainer) -> None:
        self.schedule = WarmupCosine(
            peak=self.peak,
            warmup_iterations=round(self.warmup_epochs * engine.state.epoch_length),
            total_iterations=engine.total_iterations,
        )
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, engine: ResumableTrainer) -> None:
        if self.schedule is None:
            raise RuntimeError("attach the schedule to an engine first")
        if engine.state.iteration > self.schedule.total_iterations:
            raise InputError(
                f"iteration {engine.state.iteration} is past the {self.schedule.total_iterations} that the learning "
                "rate is planned for and would train nothing; federated rounds set train#handlers to []"
            )
        for group in engine.optimizer.param_groups:
            group["lr"] = self.schedule(engine.state.iteration)


class PolynomialDecay:
    """Multiplies every group's learning rate by (1 - epoch / max_epochs) ** power, epochs from 0 (METHOD section 8).

    It depends on the iteration number and on the rates at the start alone, so it has no state.

    Args:
        power: of the decay; 0 keeps the learning rate.
    """

    def __init__(self, *, power: float = 0.9) -> None:
        if power < 0:
            raise InputError(f"decay_power must be at least 0, received {power}")
        self.power = power
        self.peaks: list[float] = []
        self.max_epochs = 0

    def attach(self, engine: ResumableTrainer) -> None:
        self.peaks = [group["lr"] for group in engine.optimizer.param_groups]
        self.max_epochs = engine.state.max_epochs
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, engine: ResumableTrainer) -> None:
        epoch = (engine.state.iteration - 1) // engine.state.epoch_length
        if epoch >= self.max_epochs:
            raise InputError(
                f"epoch {epoch + 1} is past the {self.max_epochs} that the learning rate is planned for and would "
                "train nothing; federated rounds set train#handlers to []"
            )
        factor = polynomial_decay(epoch, self.max_epochs, self.power)
        for group, peak in zip(engine.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor


class NonFiniteGuard:
    """Stops the run when a loss is not finite.

    On a CPU every loss is looked at; on a GPU every ``interval`` iterations, so that the host does not wait for each
    step. :meth:`check` is also called before a checkpoint is written: the last checkpoint is always good.
    """

    def __init__(self, *, interval: int = 20) -> None:
        self.interval = interval
        self.recent: deque[tuple[int, dict[str, Any]]] = deque()

    def attach(self, engine: ResumableTrainer) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: ResumableTrainer) -> None:
        self.recent.append((engine.state.iteration, engine.state.output))
        if engine.state.device.type == "cpu" or len(self.recent) >= self.interval:
            self.check()

    def check(self) -> None:
        """Look at the losses since the last check.

        Raises:
            NonFiniteLossError: naming the first iteration whose loss is not finite, its modality and its sample ids.
        """
        recent, self.recent = list(self.recent), deque()
        if not recent or bool(torch.isfinite(torch.stack([output[CommonKeys.LOSS] for _, output in recent])).all()):
            return
        iteration, output = next(item for item in recent if not torch.isfinite(item[1][CommonKeys.LOSS]))
        raise NonFiniteLossError(
            f"iteration {iteration}: the {output['kind']} loss of modality {output['modality']} is "
            f"{float(output[CommonKeys.LOSS])}. Samples of this process: {', '.join(output['ids'])}. Look at them in "
            "the store, lower the learning rate, set max_gradient_norm or precision float32; the last checkpoint was "
            "kept, and the same command goes on from it."
        )


class ResumeCheckpoint:
    """Writes everything that is needed to go on, every ``seconds``.

    The file replaces its predecessor by a rename, so that a crash at any moment leaves a whole one. Rank 0 writes.
    Ctrl-C on any rank lets the optimiser step end, writes, and then stops all ranks after the same step; a second
    Ctrl-C stops at once.

    Args:
        path: the checkpoint file.
        seconds: at least this long between two checkpoints.
        guard: looked at before writing.
        parts: further objects with a state, by name.
        on_saved: called after each checkpoint (flushes the tracker).
    """

    def __init__(
        self,
        *,
        path: Path,
        seconds: float,
        guard: NonFiniteGuard,
        parts: Mapping[str, Stateful],
        on_saved: Callable[[], None] = lambda: None,
    ) -> None:
        self.path, self.seconds, self.guard, self.parts = Path(path), seconds, guard, dict(parts)
        self.on_saved = on_saved
        self.written_at = time.monotonic()
        self.trained_seconds = 0.0
        self.started_at = time.monotonic()
        self.interrupted = False
        self.any_rank = AnyRank()
        self.former_answer: Any = None

    def attach(self, engine: ResumableTrainer) -> None:
        self.written_at = self.started_at = time.monotonic()
        engine.add_event_handler(Events.STARTED, self._listen)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._stop_listening)
        engine.add_event_handler(Events.INTERRUPT, self._stop_listening)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._stop_listening_and_raise)

    def __call__(self, engine: ResumableTrainer) -> None:
        if engine.window_closed:
            self.stop_if_asked(engine)
            if time.monotonic() - self.written_at >= self.seconds:
                self.save(engine)

    def stop_if_asked(self, engine: ResumableTrainer) -> None:
        """After Ctrl-C on any rank: write a checkpoint and raise KeyboardInterrupt. All ranks call it together."""
        if self.any_rank(self.interrupted):
            self.save(engine)
            raise KeyboardInterrupt

    def _listen(self, engine: ResumableTrainer) -> None:
        """Answer Ctrl-C between two steps: in the middle of one the weights may be half updated."""
        if threading.current_thread() is threading.main_thread():
            self.interrupted, self.former_answer = False, signal.signal(signal.SIGINT, self._on_interrupt)

    def _on_interrupt(self, number: int, frame: Any) -> None:
        self.interrupted = True
        self._stop_listening()
        logger.warning("interrupted: writing a checkpoint after this step; Ctrl-C again stops at once")

    def _stop_listening(self, *_: Any) -> None:
        if self.former_answer is not None:
            signal.signal(signal.SIGINT, self.former_answer)
            self.former_answer = None

    def _stop_listening_and_raise(self, engine: ResumableTrainer, error: BaseException) -> None:
        self._stop_listening()
        raise error

    @property
    def training_seconds(self) -> float:
        """Seconds of training so far, those before a resume included."""
        return self.trained_seconds + time.monotonic() - self.started_at

    def save(self, engine: ResumableTrainer) -> None:
        """Write the checkpoint now (rank 0)."""
        self.guard.check()
        self.written_at = time.monotonic()
        if idist.get_rank() != 0:
            return
        content = {
            "iteration": engine.state.iteration,
            "model": engine.model.state_dict(),
            "optimizer": engine.optimizer.state_dict(),
            "gradient_scaler": engine.gradient_scaler.state_dict(),
            "training_seconds": self.training_seconds,
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
        }
        with atomic_path(self.path) as partial, open(partial, "wb") as stream:
            torch.save(content, stream)
        self.on_saved()

    def load(self, engine: ResumableTrainer) -> bool:
        """Restore the engine from the file; return False when there is none.

        Raises:
            InputError: when the file cannot be read or belongs to another network.
        """
        if not self.path.is_file():
            return False
        try:
            check_archive(self.path)
            content = torch.load(self.path, map_location=engine.state.device, weights_only=True)
            engine.model.load_state_dict(content["model"])
            engine.optimizer.load_state_dict(content["optimizer"])
            engine.gradient_scaler.load_state_dict(content["gradient_scaler"])
            for name, part in self.parts.items():
                part.load_state_dict(content["parts"][name])
        except (RuntimeError, LookupError, TypeError, ValueError, EOFError, OSError, pickle.UnpicklingError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                f"{self.path}: cannot resume from this checkpoint ({reason}). Delete it to start the stage again, "
                "or run with the settings that it was written with."
            ) from error
        self.trained_seconds = float(content["training_seconds"])
        engine.resume_at(int(content["iteration"]))
        return True


class LossHistory:
    """Mean losses per modality over every ``interval`` iterations, kept for plots and sent to the tracker.

    Rows are (iteration, epoch, modality, kind, loss, learning_rate, samples_per_second).
    """

    COLUMNS = ("iteration", "epoch", "modality", "kind", "loss", "learning_rate", "samples_per_second")

    def __init__(self, *, interval: int, run: TrackedRun | None = None) -> None:
        if interval < 1:
            raise InputError(f"log_interval must be at least 1 iteration, received {interval}")
        self.interval, self.run = interval, run
        self.rows: list[list[Any]] = []
        self.pending: list[dict[str, Any]] = []
        self.samples, self.since = 0, time.monotonic()
        self.latest: dict[str, float] = {}

    def attach(self, engine: ResumableTrainer) -> None:
        engine.add_event_handler(Events.STARTED, self._restart_clock)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def _restart_clock(self, engine: ResumableTrainer) -> None:
        self.samples, self.since = 0, time.monotonic()

    def __call__(self, engine: ResumableTrainer) -> None:
        output = engine.state.output
        self.pending += [
            {CommonKeys.LOSS: loss, "modality": output["modality"], "kind": kind}
            for kind, loss in output["parts"].items()
        ]
        self.samples += output["count"]
        if engine.state.iteration % self.interval == 0 or engine.state.iteration == engine.total_iterations:
            self._record(engine)

    def _record(self, engine: ResumableTrainer) -> None:
        speed = self.samples / max(1e-9, time.monotonic() - self.since)
        rate = engine.optimizer.param_groups[0]["lr"]
        self.latest = {"samples_per_second": speed}
        for (modality, kind), loss in sorted(loss_terms(self.pending).items()):
            self.rows.append([engine.state.iteration, engine.state.epoch, modality, kind, loss, rate, round(speed, 3)])
            self.latest[f"{modality}/{kind}"] = loss
        if self.run is not None:
            metrics = self.latest | {"learning_rate": rate} | memory_metrics(engine.state.device)
            self.run.log_metrics(metrics, step=engine.state.iteration)
        self.pending = []
        self._restart_clock(engine)

    def losses(self, modality: str, kind: str) -> list[float]:
        """Recorded losses of one modality and kind, in order."""
        return [row[4] for row in self.rows if row[2] == modality and row[3] == kind]

    def to_json(self) -> dict[str, Any]:
        return {"columns": list(self.COLUMNS), "rows": self.rows}

    def state_dict(self) -> dict[str, Any]:
        loss = CommonKeys.LOSS.value  # a plain string: torch.load(weights_only=True) refuses the enumeration
        keys = ("modality", "kind")
        pending = [{loss: output[loss].cpu(), **{key: output[key] for key in keys}} for output in self.pending]
        return {"rows": [list(row) for row in self.rows], "pending": pending}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rows = [list(row) for row in state["rows"]]
        self.pending = [dict(output) for output in state["pending"]]


def memory_metrics(device: torch.device) -> dict[str, float]:
    """Peak memory of this process so far, in MiB: GPU memory on a GPU, resident memory otherwise."""
    if device.type == "cuda":
        return {"peak_memory_mib": torch.cuda.max_memory_allocated(device) / 2**20}
    import resource

    return {"peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10}


class ProgressBar:
    """One bar per stage: iterations done and left, the last losses and samples/s."""

    def __init__(self, *, description: str, history: LossHistory) -> None:
        self.description, self.history = description, history
        self.bar: Any = None

    def attach(self, engine: ResumableTrainer) -> None:
        engine.add_event_handler(Events.STARTED, self._open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._close)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._close_and_raise)

    def _open(self, engine: ResumableTrainer) -> None:
        # initial: what a resumed run has behind it
        self.bar = progress(
            description=self.description, total=engine.total_iterations, unit="it", initial=engine.state.iteration
        )

    def __call__(self, engine: ResumableTrainer) -> None:
        latest = self.history.latest
        if latest and engine.state.iteration % self.history.interval == 0:
            losses = {name: f"{value:.4f}" for name, value in latest.items() if name != "samples_per_second"}
            self.bar.set_postfix({**losses, "samples/s": f"{latest['samples_per_second']:.0f}"}, refresh=False)
        self.bar.update()

    def _close(self, engine: ResumableTrainer) -> None:
        self.bar.close()

    def _close_and_raise(self, engine: ResumableTrainer, error: BaseException) -> None:
        self._close(engine)
        raise error
