"""The ``medcoss`` command: sample data, manifests, bundles, benchmarks and reports.

Training, evaluation and inference are run by MONAI: ``python -m monai.bundle run --config_file ...``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from medcoss_components import cli_benchmark, cli_datasets, cli_doctor, cli_manifest, cli_pack, cli_retention
from medcoss_components._version import __version__
from medcoss_components.cli_verify import bundles_verify
from medcoss_components.cli_weights import weights
from medcoss_components.errors import InputError

DEBUG_VARIABLE = "MEDCOSS_DEBUG"

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Continual multi-modal medical pre-training. Exit status 0 means success; --debug shows tracebacks.",
)
sample = typer.Typer(no_args_is_help=True, help="Real sample data that the package registry carries.")
manifest = typer.Typer(no_args_is_help=True, help="Manifests: what a data set is.")
bundles = typer.Typer(no_args_is_help=True, help="MONAI bundles: build, verify and pack them.")
for name, group in (("sample", sample), ("manifest", manifest), ("bundles", bundles)):
    app.add_typer(group, name=name)
app.add_typer(weights, name="weights")
bundles.command("verify")(bundles_verify)
cli_pack.attach(bundles)
cli_manifest.attach(manifest)
cli_datasets.attach(manifest)
cli_benchmark.attach(app)
cli_doctor.attach(app)
cli_retention.attach(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit()


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options that hold for every command; ``main`` looks for --debug itself, before anything can fail."""


@sample.command("fetch")
def sample_fetch(
    root: Annotated[Path, typer.Argument(help="Folder that receives files and manifests.")] = Path("sample_data"),
    modality: Annotated[list[str] | None, typer.Option(help="Only this modality; may be given several times.")] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="Labelled task from the same files, or 'all'; may be given several times.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder with the wheels, for a machine without a registry.")
    ] = None,
) -> None:
    """Fetch the sample data, check hashes, write manifests and ATTRIBUTION.md.

    With --task and without --modality only the tasks are made, in ROOT/tasks/<task>/.

    Example: medcoss sample fetch sample_data --modality xray --task pubmed_sections
    """
    from medcoss_components.data.sample import fetch_sample, fetch_tasks

    paths = {} if task and not modality else fetch_sample(root, modalities=modality, cache=cache)
    if task:
        paths |= fetch_tasks(root, task, cache=cache)
    for name, path in paths.items():
        print(f"{name:10} {path}")


@manifest.command("check")
def manifest_check(
    path: Annotated[Path, typer.Argument(help="Manifest (JSON).")],
    dataset_dir: Annotated[Path | None, typer.Option(help="Folder that the items' paths start from.")] = None,
    headers_only: Annotated[bool, typer.Option(help="Do not open every file.")] = False,
) -> None:
    """Check a manifest: files open, modality and shape plausible, no group across splits, no duplicates.

    Example: medcoss manifest check sample_data/ct/manifest.json
    """
    from medcoss_components.data.manifest import check_manifest, read_manifest

    content = read_manifest(path, dataset_dir=dataset_dir)
    problems = check_manifest(content, open_files=not headers_only)
    for problem in problems:
        print(f"{problem.severity}: {problem.rule}: {problem.where}: {problem.message}")
    errors = sum(problem.severity == "error" for problem in problems)
    counts = ", ".join(f"{len(content.items(split))} {split}" for split in ("training", "validation", "testing"))
    print(f"{path}: {content.modality.name}, {counts}; {errors} errors, {len(problems) - errors} remarks")
    if errors:
        raise typer.Exit(1)


@bundles.command("build")
def bundles_build(
    names: Annotated[list[str] | None, typer.Argument(help="Bundles; default: all.")] = None,
    root: Annotated[Path, typer.Option(help="Folder of the bundles.")] = Path("bundles"),
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail when a file is out of date.")] = False,
) -> None:
    """Write the bundles' JSON configs from templates and bundle.yaml.

    Example: medcoss bundles build --check
    """
    from medcoss_components.zoo.build import build_bundles

    changed = build_bundles(root, names=names or None, check=check)
    for path in changed:
        print(f"{'out of date' if check else 'written'}: {path}")
    if check and changed:
        raise InputError(f"{len(changed)} files are out of date; run `medcoss bundles build` and commit them")
    print("bundles are up to date" if not changed else f"{len(changed)} files written")


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="Output folder of a pre-training.")]) -> None:
    """Print the summary table of a chain, or of MUSCLE's pre-training, and write its REPORT.html again.

    Example: medcoss report runs/demo
    """
    from medcoss_components.tracking import muscle_report, report

    if (folder / muscle_report.MUSCLE_FILE).is_file():
        path, summary = muscle_report.write_muscle_report(folder), muscle_report.muscle_table(folder)
    else:
        path, summary = report.write_report(folder), report.summary_table(folder)
    print(f"{summary}\n\nreport: {path}")


def main() -> None:
    """Entry point: errors that the user can act on are printed on one line."""
    try:
        app()
    except (InputError, OSError) as error:
        if "--debug" in sys.argv or os.environ.get(DEBUG_VARIABLE):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from what was finished", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
