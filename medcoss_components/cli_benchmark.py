"""``medcoss benchmark``: one task from several initialisations, with several seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

benchmark = typer.Typer(no_args_is_help=True, help="Benchmarks: one task, several initialisations and seeds.")


@benchmark.command("run")
def benchmark_run(
    task: Annotated[str, typer.Option(help="Fine-tuning bundle.")],
    data_manifest: Annotated[Path, typer.Option(help="Labelled manifest (JSON).")],
    to: Annotated[Path, typer.Option(help="Folder for runs and tables; the same folder again goes on.")],
    init: Annotated[
        list[str], typer.Option(help="scratch, NAME=PATH or PATH of weights; several with commas or by repeating.")
    ],
    seeds: Annotated[str, typer.Option(help="Whole numbers with commas between them.")] = "0,10,100",
    overlay: Annotated[list[str] | None, typer.Option(help="Config merged over train.json, such as demo.")] = None,
    set: Annotated[list[str] | None, typer.Option(help="key=value of the bundle; may be given several times.")] = None,
    root: Annotated[Path, typer.Option(help="Folder of the bundles.")] = Path("bundles"),
) -> None:
    """Fine-tune a task once per initialisation and seed, and compare. Finished runs are not repeated.

    Exit status 1 when a run failed; the table then shows the others.

    Example: medcoss benchmark run --task pubmed_abstract_classification --data-manifest pubmed/manifest.json
    --init scratch,chain=runs/demo/05_pathology --seeds 0,10,100 --overlay demo --to runs/benchmark
    """
    from medcoss_components.zoo import benchmark as zoo
    from medcoss_components.zoo.benchmark_results import TABLE
    from medcoss_components.zoo.verify import bundle_folders

    plan = zoo.Benchmark(
        bundle=bundle_folders(root, [task])[0],
        data_manifest=data_manifest,
        folder=to,
        initialisations=zoo.parse_initialisations(init),
        seeds=zoo.parse_seeds(seeds),
        overlays=tuple(overlay or ()),
        settings=zoo.parse_settings(set or ()),
    )
    results = zoo.run_benchmark(plan)
    print((to / TABLE).read_text(encoding="utf-8"))
    print(f"{len(results['runs'])} runs finished, {len(results['failed'])} failed: {to / TABLE}")
    if results["failed"]:
        raise typer.Exit(1)


@benchmark.command("show")
def benchmark_show(folder: Annotated[Path, typer.Argument(help="Folder of a benchmark.")]) -> None:
    """Gather the finished runs of a benchmark again and print the table.

    Example: medcoss benchmark show runs/benchmark
    """
    from medcoss_components.zoo.benchmark_results import TABLE, write_results

    write_results(folder)
    print((folder / TABLE).read_text(encoding="utf-8"))


def attach(app: typer.Typer) -> None:
    """Add the group to ``medcoss``."""
    app.add_typer(benchmark, name="benchmark")
