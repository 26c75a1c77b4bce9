"""Identifier salt, tracking database and the folders that a run writes to."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from medcoss_components.data.identifiers import SALT_VARIABLE, default_salt_file, identifier_salt
from medcoss_components.data.store_sizes import size_text
from medcoss_components.doctor.findings import ERROR, OK, WARNING, Finding
from medcoss_components.errors import InputError

OUTPUT_NEEDED = 10e9  # bytes; checkpoints and weights of one training of the paper's size, with room for pictures


def check_salt() -> Iterator[Finding]:
    """The secret that patient identifiers are hashed with: from the environment or a key file only its owner reads."""
    where = SALT_VARIABLE if SALT_VARIABLE in os.environ else str(default_salt_file())
    if SALT_VARIABLE not in os.environ and not default_salt_file().exists():
        value = f"none yet; the first `medcoss manifest build` makes {where}"
        yield Finding(OK, "identifier salt", value, "keep a copy of that file: other salts give other hashes")
        return
    try:
        identifier_salt(create=False)
    except InputError as error:
        yield Finding(ERROR, "identifier salt", str(error), "correct it before a manifest is built")
    else:
        yield Finding(OK, "identifier salt", f"from {where}")


def check_tracking() -> Iterator[Finding]:
    """An MLflow database in a folder of its own, as every training makes one. A server that is set is only named."""
    from medcoss_components.tracking.runs import default_uri, open_tracking, without_password

    with tempfile.TemporaryDirectory(prefix="medcoss-doctor-") as folder:
        try:
            with open_tracking(default_uri(folder), folder).start_run("doctor") as run:
                run.log_metrics({"loss": 1.0}, step=1)
        except Exception as error:  # mlflow and its database layer raise many kinds
            advice = "train with --mlflow False, or reinstall mlflow"
            reason = str(error) if isinstance(error, InputError) else type(error).__name__
            yield Finding(ERROR, "MLflow", f"no database could be made ({reason})", advice)
        else:
            yield Finding(OK, "MLflow", "a database could be made and written")
    if server := os.environ.get("MLFLOW_TRACKING_URI"):
        yield Finding(OK, "MLflow server", f"runs go to {without_password(server)} (MLFLOW_TRACKING_URI), not tried")


def check_folder(folder: Path, what: str, needed: float = 0.0) -> Iterator[Finding]:
    """Whether a folder, or the one that it will be made in, can be written, and the room there.

    Args:
        folder: need not exist; nothing is left in it.
        what: its name for the user, such as "store folder".
        needed: bytes that should be free.
    """
    try:
        place = existing_parent(folder)
        free = shutil.disk_usage(place).free
        with tempfile.TemporaryFile(dir=place):
            pass
    except InputError as error:
        yield Finding(ERROR, what, str(error), "choose another folder")
        return
    except OSError as error:
        advice = f"choose a folder that you may write to ({error.strerror})"
        yield Finding(ERROR, what, f"{folder}: cannot be written", advice)
        return
    value = f"{folder}{'' if folder.exists() else ' (will be made)'}: {size_text(free)} free"
    if free < needed:
        advice = f"{size_text(needed)} are advisable; free some room or choose another folder"
        yield Finding(WARNING, what, value, advice)
    else:
        yield Finding(OK, what, value)


def existing_parent(folder: Path) -> Path:
    """The folder itself, or the closest one above it that exists.

    Raises:
        InputError: a file stands in its place.
    """
    place = Path(os.path.abspath(folder))
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise InputError(f"{folder}: {place} is a file. Give a folder.")
    return place
