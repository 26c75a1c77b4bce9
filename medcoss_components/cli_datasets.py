"""``medcoss manifest datasets`` and ``medcoss manifest pages``: the published data sets that there are recipes of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def manifest_datasets(
    name: Annotated[str | None, typer.Argument(help="Data set whose page is printed; default: the list.")] = None,
) -> None:
    """List the published data sets that `medcoss manifest build --dataset` reads, or print the page of one.

    Example: medcoss manifest datasets lits
    """
    from medcoss_components.data.adapters.dataset_recipe import dataset_recipe, shipped_datasets

    if name is not None:
        from medcoss_components.data.dataset_pages import dataset_page

        print(dataset_page(dataset_recipe(name)))
        return
    recipes = shipped_datasets().values()
    widths = [max(len(getattr(recipe, key)) for recipe in recipes) for key in ("name", "modality", "task")]
    for recipe in recipes:
        cells = zip((recipe.name, recipe.modality, recipe.task), widths, strict=True)
        print("  ".join([*(text.ljust(width) for text, width in cells), recipe.title]))


def manifest_pages(
    folder: Annotated[Path, typer.Argument(help="Folder of the pages.")] = Path("docs/data"),
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail when a page is out of date.")] = False,
) -> None:
    """Write the pages of the published data sets from their recipes.

    Example: medcoss manifest pages docs/data --check
    """
    from medcoss_components.data.dataset_pages import require_current_pages, write_pages

    if check:
        require_current_pages(folder)
    changed = [] if check else write_pages(folder)
    for path in changed:
        print(f"written or removed: {path}")
    print(f"{len(changed)} pages changed" if changed else "pages are up to date")


def attach(group: typer.Typer) -> None:
    """Add the commands to the group ``medcoss manifest``."""
    group.command("datasets")(manifest_datasets)
    group.command("pages")(manifest_pages)
