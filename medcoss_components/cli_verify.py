"""``medcoss bundles verify``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


def bundles_verify(
    names: Annotated[list[str] | None, typer.Argument(help="Bundles; default: all.")] = None,
    root: Annotated[Path, typer.Option(help="Folder of the bundles.")] = Path("bundles"),
    weights: Annotated[
        Path | None, typer.Option(help="Weights to load strictly; default: models/model.pt of each bundle.")
    ] = None,
) -> None:
    """Check that bundles can be published: files, configs, networks, two training steps, exports.

    One line for each check: ok, failed or not run, with the reason. Exit status 1 when a check failed.

    Example: medcoss bundles verify medcoss_ct_pretraining --weights runs/ct/model.pt
    """
    from medcoss_components.zoo.verify import bundle_folders, verify_bundle

    os.environ.setdefault("MEDCOSS_PROGRESS", "0")
    counts = {"ok": 0, "failed": 0, "not run": 0}
    for folder in bundle_folders(root, names or None):
        for outcome in verify_bundle(folder, weights=weights):
            counts[outcome.status] += 1
            print(outcome, flush=True)
    print(", ".join(f"{count} {status}" for status, count in counts.items()))
    if counts["failed"]:
        raise typer.Exit(1)
