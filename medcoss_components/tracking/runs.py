"""MLflow runs without global state: several runs in one process, reopened after a crash, never in the way of training.

    tracker = open_tracking(None, output_dir)                                  # sqlite:///<output_dir>/mlruns.db
    with tracker.start_run("chain", parameters=settings) as chain:
        with tracker.start_run("01_report", parent_run_id=chain.run_id) as stage:
            stage.log_metrics({"loss/report": 2.3}, step=10)

What is logged are settings, numbers, tags and files that the caller names. Sample ids and texts are for the caller to
keep out; long lists among the settings are replaced by their length and hash.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import uuid4

from medcoss_components.errors import InputError
from medcoss_components.files import write_text
from medcoss_components.tracking.provenance import git_tags

STATUSES = ("FINISHED", "FAILED", "KILLED")
SQLITE = "sqlite:///"
DATABASE_NAME = "mlruns.db"
ARTIFACT_FOLDER = "mlruns"
KEY_FILE = ".tracking_key"
KEY_TAG = "medcoss.output_key"
PARENT_TAG = "mlflow.parentRunId"
#: No telemetry, and a tracking server that went away costs seconds, not minutes. What the user has set stays.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}

logger = logging.getLogger(__name__)


class TrackedRun:
    """A run that records nothing: what a disabled tracker gives, and the interface of the one that records."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.run_id: str | None = None

    def log_metrics(self, values: Mapping[str, Any], step: int) -> None:
        """Record numbers of one step; they reach the database at the next flush.

        Args:
            values: metric name -> number (anything ``float`` takes). NaN is kept, infinity becomes the largest float.
            step: iteration number, x axis of the charts.
        """

    def log_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Record settings (nested mappings are flattened). A value once recorded stays; a new one becomes a tag."""

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Copy one file to the run's artefacts, below ``folder``."""

    def log_artifacts(self, path: str | Path, folder: str | None = None) -> None:
        """Copy the files of a folder to the run's artefacts, below ``folder``."""

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set or overwrite tags."""

    def flush(self) -> None:
        """Write what is buffered. Call it when a checkpoint has been written."""

    def close(self, status: str = "FINISHED") -> None:
        """Flush and end the run.

        Raises:
            InputError: when ``status`` is not one of ``STATUSES``.
        """
        check_status(status)

    def __enter__(self) -> TrackedRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close as FINISHED, as KILLED after Ctrl-C or ``sys.exit``, as FAILED after any other error."""
        self.close(status_after(kind))


class Tracker:
    """A tracker that records nothing."""

    enabled = False
    uri: str | None = None

    def start_run(
        self,
        name: str,
        *,
        experiment: str = "medcoss",
        parent_run_id: str | None = None,
        run_id: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
    ) -> TrackedRun:
        """Start a run, or go on with one.

        Args:
            name: name shown in the user interface.
            experiment: name of the experiment; created when missing.
            parent_run_id: ``run_id`` of the run that this one is nested in.
            run_id: run to reopen. When the database does not know it (it was removed), a warning is logged and a new
                run is started. Without ``run_id``, a run of the same name and parent that an earlier process of this
                output folder left running (crash, ``kill -9``) is reopened.
            parameters: nested settings.
            tags: tag -> text.

        Returns:
            The run. Its ``run_id`` may differ from the argument (see above): store the one it has.
        """
        return TrackedRun(name)

    def end_run(self, run_id: str, status: str = "FINISHED") -> None:
        """End a run that an earlier process left open after its work was done; a run that has ended stays as it is."""
        check_status(status)


def check_status(status: str) -> None:
    """Raise an :class:`InputError` unless ``status`` is one of ``STATUSES``."""
    if status not in STATUSES:
        raise InputError(f"status must be one of {', '.join(STATUSES)}, received {status!r}")


def status_after(kind: type[BaseException] | None) -> str:
    """Status of a run whose ``with`` block ended with an exception of this class (None: with none)."""
    if kind is None:
        return "FINISHED"
    return "FAILED" if issubclass(kind, Exception) else "KILLED"


def default_uri(output_dir: str | Path) -> str:
    """``sqlite:///<absolute output_dir>/mlruns.db``.

    Raises:
        InputError: when the folder's path holds ``%`` or ``?``, which a database address cannot carry.
    """
    path = Path(output_dir).resolve() / DATABASE_NAME
    if set("%?") & set(str(path)):
        raise InputError(
            f"output_dir {str(path.parent)!r}: the tracking database cannot lie in a path with '%' or '?'. "
            "Rename the folder or set MLFLOW_TRACKING_URI."
        )
    return f"{SQLITE}{path.as_posix()}"


def check_uri(uri: str) -> str:
    """Return ``uri`` when MLflow can write to it.

    Raises:
        InputError: for a plain path or a ``file:`` address; MLflow 3 keeps runs in a database.
    """
    if ":" not in uri or uri.startswith("file:"):
        raise InputError(
            f"tracking uri {without_password(uri)!r}: MLflow keeps runs in a database or on a server, not in a folder. "
            "Give sqlite:////absolute/path/mlruns.db or http://host:5000 (also through MLFLOW_TRACKING_URI)."
        )
    return uri


def database_path(uri: str) -> Path | None:
    """File of a local sqlite address; None for every other address."""
    return Path(uri[len(SQLITE) :].split("?")[0]) if uri.startswith(SQLITE) else None


def without_password(text: str) -> str:
    """Hide what stands before ``@`` in an address.

    >>> without_password("postgresql://me:secret@host/runs")
    'postgresql://***@host/runs'
    """
    return re.sub(r"//[^/@\s]*@", "//***@", text)


def check_database(uri: str) -> None:
    """See that a local sqlite database can be written, at once; MLflow itself would try again for half an hour.

    Raises:
        InputError: when its folder cannot be made, or the file is no database, locked for 30 s or not writable.
    """
    path = database_path(uri)
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute("CREATE TABLE medcoss_probe (number INTEGER)")
            database.execute("ROLLBACK")
    except (OSError, sqlite3.Error) as error:
        raise InputError(
            f"tracking database {path}: cannot be written ({error}). Free space, remove the file, or give another "
            "place with MLFLOW_TRACKING_URI; tracking can also be switched off."
        ) from error


def output_key(output_dir: str | Path) -> str:
    """A random key that marks the runs of one output folder, kept in ``<output_dir>/.tracking_key``.

    On a shared server it tells the interrupted run of this folder from one that another machine has in a folder of the
    same name.
    """
    path = Path(output_dir) / KEY_FILE
    if not path.is_file():
        write_text(path, uuid4().hex)
    return path.read_text(encoding="utf-8").strip()


@contextmanager
def quiet_database() -> Iterator[None]:
    """Keep the migration messages of a first database (some fifty lines) off the terminal; errors still show."""
    loggers = [logging.getLogger(name) for name in ("alembic", "mlflow.store.db.utils")]
    levels = [entry.level for entry in loggers]
    for entry in loggers:
        entry.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for entry, level in zip(loggers, levels, strict=True):
            entry.setLevel(level)


def open_tracking(uri: str | None, output_dir: str | Path, enabled: bool = True) -> Tracker:
    """Open the tracking database of an output folder, creating it when missing.

    Args:
        uri: MLflow tracking address; None takes ``MLFLOW_TRACKING_URI`` or else ``sqlite:///<output_dir>/mlruns.db``.
        output_dir: folder of the chain or task; artefacts of a local database go to ``mlruns`` beside it.
        enabled: False gives a tracker with the same interface that records nothing (other ranks, quick tests).

    Raises:
        InputError: when the address cannot hold runs, the database cannot be written, the server does not answer or
            mlflow is not installed.
    """
    if not enabled:
        return Tracker()
    uri = check_uri(uri or os.environ.get("MLFLOW_TRACKING_URI") or default_uri(output_dir))
    check_database(uri)
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        from medcoss_components.tracking.mlflow_runs import MlflowTracker
    except ImportError as error:
        raise InputError(f"tracking needs mlflow ({error}). Install it or switch tracking off.") from error
    with quiet_database():
        return MlflowTracker(uri, key=output_key(output_dir), tags=git_tags())
