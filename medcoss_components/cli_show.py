"""``medcoss manifest show``: what a data set holds, counted and measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def manifest_show(
    path: Annotated[Path, typer.Argument(help="Manifest (JSON).")],
    dataset_dir: Annotated[Path | None, typer.Option(help="Folder that the items' paths start from.")] = None,
    contact_sheet: Annotated[Path | None, typer.Option(help="PNG with some items, to look at.")] = None,
    counts_only: Annotated[bool, typer.Option("--counts-only", help="Open no file: counts alone.")] = False,
    seed: Annotated[int, typer.Option(help="Of the choice of items that are read.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Count what a manifest lists per split, group and label, and measure sizes and intensities of some items.

    Sizes come from the headers of up to 1,000 items of a split, intensities from 32 that are read as a whole.

    Example: medcoss manifest show sample_data/ct/manifest.json --contact-sheet ct.png
    """
    from medcoss_components.cli_prepare import print_json
    from medcoss_components.data.manifest import read_manifest
    from medcoss_components.data.manifest_statistics import describe_statistics, statistics
    from medcoss_components.data.manifest_summary import describe, summary

    manifest = read_manifest(path, dataset_dir=dataset_dir)
    if not json:
        print(describe(manifest), flush=True)  # before the files are opened, which can take a while
    measured = {} if counts_only else statistics(manifest, seed=seed)
    if json:
        print_json({"name": manifest.name, "modality": manifest.modality.name, **summary(manifest), **measured})
    elif text := describe_statistics(measured):
        print(text)
    if contact_sheet is not None:
        from medcoss_components.tracking.contact_sheet import manifest_sheet, sheet_lines

        lines = sheet_lines(manifest_sheet(manifest, contact_sheet, seed=seed))
        for line in [*lines, f"{contact_sheet} (shows images of the data set; treat it like the data)"]:
            typer.echo(f"contact sheet: {line}", err=json)  # standard output is JSON then


def attach(group: typer.Typer) -> None:
    """Add the command to the group ``medcoss manifest``."""
    group.command("show")(manifest_show)
