"""``medcoss doctor``: the installation, the machine and the data, examined before a long run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from medcoss_components.doctor.run import Examination


def doctor(
    manifest: Annotated[list[Path] | None, typer.Option(help="Manifest (JSON); may be given several times.")] = None,
    dataset_dir: Annotated[Path | None, typer.Option(help="Folder that the items' paths start from.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="Folder of the bundle that will train on the manifest.")] = None,
    store_dir: Annotated[Path | None, typer.Option(help="Folder of all stores; default: the bundle's own.")] = None,
    output_dir: Annotated[Path | None, typer.Option(help="Folder for the results of the training.")] = None,
    overlay: Annotated[list[str] | None, typer.Option(help="Config merged over train.json, such as demo.")] = None,
    set: Annotated[
        list[str] | None, typer.Option(help="key=value of the bundle's training; may be given several times.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Examine installation, readers, GPU, folders, manifests and the room for their stores. Exit status 1 on any error.

    Nothing is written except temporary files. A few items of each manifest are read to estimate the size of its store.

    Example: medcoss doctor --manifest lits/manifest.json --bundle bundles/liver_tumor_ct_segmentation
    --store-dir stores --output-dir runs/liver
    """
    from medcoss_components.cli_prepare import print_json
    from medcoss_components.doctor.findings import ERROR, count, describe_section, summary_line
    from medcoss_components.doctor.run import examine

    examination = _examination(manifest or [], dataset_dir, bundle, store_dir, output_dir, overlay or [], set or [])
    sections = []
    for section in examine(examination):
        sections.append(section)
        if not json:
            print("\n".join(describe_section(section)) + "\n", flush=True)
    if json:
        summary = {"summary": summary_line(sections), "errors": count(sections, ERROR)}
        print_json(summary | {"sections": [section.to_dict() for section in sections]})
    else:
        print(summary_line(sections))
    if count(sections, ERROR):
        raise typer.Exit(1)


def _examination(
    manifests: list[Path],
    dataset_dir: Path | None,
    bundle: Path | None,
    store_dir: Path | None,
    output_dir: Path | None,
    overlays: list[str],
    settings: list[str],
) -> Examination:
    from medcoss_components.cli_prepare import typed_settings
    from medcoss_components.doctor.run import DataCase, Examination
    from medcoss_components.errors import InputError

    if (settings or overlays) and not (manifests and bundle):
        raise InputError("set, overlay: they change a bundle's training on a manifest. Give --manifest and --bundle.")
    if dataset_dir and not manifests:
        raise InputError(f"dataset_dir {dataset_dir}: paths of a manifest start from it. Give --manifest.")
    typed = tuple(typed_settings(settings).items())
    cases = tuple(
        DataCase(path, dataset_dir, bundle, store_dir, settings=typed, overlays=tuple(overlays)) for path in manifests
    )
    return Examination(data=cases, bundle=bundle, store_dir=store_dir, output_dir=output_dir)


def attach(app: typer.Typer) -> None:
    """Add the command to ``medcoss``."""
    app.command("doctor")(doctor)
