"""Where the running code comes from, as far as git can tell."""

from __future__ import annotations

import subprocess
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def _git(*arguments: str, folder: Path) -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def git_tags(package: Path = PACKAGE) -> dict[str, str]:
    """Tags that name the commit of the package's own repository; empty when there is none.

    A package installed inside somebody else's repository (``site-packages`` below a project folder) is not part of it
    and gives no tag. ``medcoss.git_dirty`` is "true" when a tracked file of the package was changed after the commit.
    """
    if not _git("ls-files", "--", "errors.py", folder=package):
        return {}
    commit = _git("rev-parse", "HEAD", folder=package)
    if not commit:
        return {}
    dirty = bool(_git("status", "--porcelain", "--untracked-files=no", "--", ".", folder=package))
    return {"mlflow.source.git.commit": commit, "medcoss.git_dirty": str(dirty).lower()}
