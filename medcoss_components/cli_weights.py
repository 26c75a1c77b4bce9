"""``medcoss weights``: published checkpoints in and out, and what a weights file holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

weights = typer.Typer(no_args_is_help=True, help="Weights: import and export published checkpoints, look into files.")

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]


@weights.command("import")
def weights_import(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Published .pth file.")],
    folder: Annotated[Path, typer.Argument(metavar="DST", help="Folder for model.pt, model.safetensors, import.json.")],
    format: Annotated[str, typer.Option(help="medcoss (whole network) or uni-perceiver (encoder).")] = "medcoss",
    vocabulary: Annotated[
        Path | None, typer.Option(help="vocab.txt of the checkpoint, for text stages; kept beside the weights.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Bring a published checkpoint under our names. Nothing in the file is executed.

    Example: medcoss weights import medcoss_vit_base.pth weights/medcoss --vocabulary vocab.txt
    """
    from medcoss_components.published_weights import import_weights

    done = import_weights(source, folder, format=format, vocabulary=vocabulary, overwrite=overwrite)
    print(f"{done}\nstart from it with --init_weights {folder} --preset vit_base")


@weights.command("inspect")
def weights_inspect(
    path: Annotated[Path, typer.Argument(help="Weights file or stage folder.")],
    names: Annotated[bool, typer.Option("--names", help="List every tensor.")] = False,
) -> None:
    """Show what a weights file holds. Nothing in the file is executed.

    Example: medcoss weights inspect runs/demo/05_pathology --names
    """
    from medcoss_components.weights_inspection import describe_weights

    print(describe_weights(path, names=names))


@weights.command("export")
def weights_export(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Stage or imported folder, .pt or .safetensors.")],
    path: Annotated[Path, typer.Argument(metavar="DST", help="The .pth file to write.")],
    format: Annotated[str, typer.Option(help="medcoss: names and shapes of the published checkpoint.")] = "medcoss",
    overwrite: Overwrite = False,
) -> None:
    """Write a whole vit_base network under the published names.

    Example: medcoss weights export runs/hospital/05_pathology hospital.pth --format medcoss
    """
    from medcoss_components.published_weights import export_weights

    shapes = export_weights(source, path, format=format, overwrite=overwrite)
    print(f"{path}: {len(shapes)} tensors under the published names")
