"""Files that an adapter has to make, such as masks out of contours: in parallel, each once, whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medcoss_components.data.identifiers import hash_identifier, identifier_salt
from medcoss_components.data.workers import available_cores, run_jobs
from medcoss_components.errors import InputError
from medcoss_components.files import atomic_folder, atomic_path, is_disk_full, remove_partial, sha256_json
from medcoss_components.progress import progress


@dataclass(frozen=True, kw_only=True)
class FileJob:
    """One file or folder to make.

    Args:
        target: where it goes; :func:`made_name` gives it a name.
        function: of a module, called as ``function(partial, **arguments)``; it writes to the path ``partial``.
        arguments: picklable.
        folder: the target is a folder, which exists and is empty when the function is called.
    """

    target: Path
    function: Callable[..., None]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    folder: bool = False


def made_name(identifier: str, files: Iterable[Path], *, settings: Any = None, suffix: str = "") -> str:
    """Name of a made file: a salted hash of what it is, and a digest of what it is made from.

    Args:
        identifier: of the item in the data set, such as its relative path.
        files: that it is made from; their sizes and times of change count.
        settings: JSON values that decide the content, with a version of the code that makes it.
        suffix: such as ".nii.gz".
    """
    stats = [path.stat() for path in files]
    digest = sha256_json([[[stat.st_size, stat.st_mtime_ns] for stat in stats], settings])
    return f"{hash_identifier(identifier, identifier_salt())}-{digest[:8]}{suffix}"


def make_files(jobs: Sequence[FileJob], *, workers: int | None = None, description: str) -> dict[Path, str]:
    """Make the files that do not exist yet; killed at any moment, the next call goes on.

    Args:
        jobs: what to make; targets of one folder differ.
        workers: processes; None: one per core.
        description: of the progress bar.

    Returns:
        target -> reason, for those that could not be made. Nothing is left of these.

    Raises:
        OSError: a full disk.
    """
    for folder in {job.target.parent for job in jobs}:
        remove_partial(folder)
    missing = [job for job in jobs if not job.target.exists()]
    if not missing:
        return {}
    count = min(workers or available_cores(), len(missing))
    results = run_jobs(_make, missing, workers=count)
    with closing(results):
        shown = progress(results, description=description, total=len(missing), unit="file")
        return {job.target: why for job, why in shown if why}


def _make(job: FileJob) -> str:
    """Run one job; why it failed, or ""."""
    opened = atomic_folder if job.folder else atomic_path
    try:
        with opened(job.target) as partial:
            job.function(partial, **job.arguments)
    except InputError as error:
        if is_disk_full(error):
            raise
        return str(error)
    return ""
