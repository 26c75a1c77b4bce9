"""``medcoss retention``: score the encoders of a chain on probes of one's own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer


def retention(
    folder: Annotated[Path, typer.Argument(help="Output folder of a chain with at least one finished stage.")],
    probes: Annotated[
        Path | None,
        typer.Option(help="JSON or YAML list of {name, data_manifest, limit}; paths count from its folder."),
    ] = None,
    store_dir: Annotated[
        Path | None,
        typer.Option(help="Folder of prepared stores; default: the chain's, else one in the chain's folder."),
    ] = None,
    reference_samples: Annotated[
        int | None,
        typer.Option(
            help="Samples of each modality compared with the end of its stage; 0: none; default: the chain's."
        ),
    ] = None,
) -> None:
    """Score the encoders of a chain, before it and after each stage, and print the matrix.

    What was scored before is kept; REPORT.html, retention.json and retention.png are written again.

    Example: medcoss retention runs/demo --probes my_probes.yaml
    """
    from medcoss_components.engines.chain_inputs import read_chain
    from medcoss_components.retention.probes import read_probes
    from medcoss_components.retention.record import score_chain
    from medcoss_components.retention.results import retention_table
    from medcoss_components.tracking.report import write_report

    record = read_chain(folder)
    entries = [] if probes is None else read_probe_file(probes)
    chosen = read_probes(entries)
    result = score_chain(folder, record, probes=chosen, store_dir=store_dir, reference_samples=reference_samples)
    report = write_report(folder)
    print(f"{retention_table(result)}\n\nreport: {report}")


def read_probe_file(path: Path) -> list[dict[str, Any]]:
    """Probe entries of a JSON or YAML file; their relative paths count from the file's folder.

    Raises:
        InputError: the file is missing, is not JSON or YAML, or holds no list of mappings.
    """
    import yaml

    from medcoss_components.errors import InputError

    if not path.is_file():
        raise InputError(f"probes {path}: no such file. Give a JSON or YAML list of probes.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML as well
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"probes {path}: not a JSON or YAML file. Correct it.") from error
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise InputError(f"probes {path}: must hold a list of mappings with name and data_manifest.")
    return [_from_folder(entry, path.parent) for entry in content]


def _from_folder(entry: dict[str, Any], folder: Path) -> dict[str, Any]:
    paths = {key: os.path.normpath(folder / entry[key]) for key in ("data_manifest", "dataset_dir") if entry.get(key)}
    return entry | paths


def attach(app: typer.Typer) -> None:
    """Add the command to ``medcoss``."""
    app.command("retention")(retention)
