"""``medcoss bundles pack``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def bundles_pack(
    name: Annotated[str, typer.Argument(help="Bundle.")],
    weights: Annotated[Path, typer.Option(help="Folder of a finished stage, chain (its last stage) or fine-tuning.")],
    to: Annotated[Path, typer.Option(help="Folder that receives NAME_<version>.zip.")],
    root: Annotated[Path, typer.Option(help="Folder of the bundles.")] = Path("bundles"),
    licence: Annotated[str, typer.Option(help="Licence of the weights, as Hugging Face spells it.")] = "other",
    data: Annotated[list[str] | None, typer.Option(help="A data set's name; may be given several times.")] = None,
    base_model: Annotated[str | None, typer.Option(help="What training started from.")] = None,
    with_buffer: Annotated[
        bool, typer.Option("--with-buffer", help="Also pack the materialised buffer: training samples and their ids.")
    ] = False,
) -> None:
    """Pack a bundle with trained weights, model card, hashes and this package into one zip.

    Example: medcoss bundles pack medcoss_xray_pretraining --weights runs/demo/02_xray --to dist
    medcoss bundles pack pubmed_abstract_classification --weights runs/pubmed --to dist
    """
    from medcoss_components.files import sha256_file
    from medcoss_components.zoo.model_card import CardOptions
    from medcoss_components.zoo.pack import pack_bundle

    card = CardOptions(licence=licence, data=tuple(data or ()), base_model=base_model)
    path = pack_bundle(name, weights=weights, to=to, bundles_dir=root, with_buffer=with_buffer, card=card)
    print(f"{sha256_file(path)}  {path}")


def attach(group: typer.Typer) -> None:
    """Add the command to the group ``medcoss bundles``."""
    group.command("pack")(bundles_pack)
