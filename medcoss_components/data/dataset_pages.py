"""The pages ``docs/data/<data set>.md`` and their index, written from the recipes."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medcoss_components.data.adapters.dataset_recipe import TASKS, DatasetRecipe, shipped_datasets
from medcoss_components.data.modalities import MODALITIES, get_modality
from medcoss_components.errors import InputError
from medcoss_components.files import write_text

INDEX = "README.md"
_MARK = "<!-- Written by `medcoss manifest pages` from {}; change that. -->"
_MARKED = _MARK.partition("{}")[0]
_SPLITS = {
    "published": "the publisher's lists; a patient who stands in several of them stays in the last one (`published`)",
    "patients": "anew by patient, {} % training / validation / testing (`patients`)",
}


def write_pages(folder: str | Path, *, check: bool = False) -> list[Path]:
    """Write the page of every shipped recipe and the index.

    Args:
        folder: where the pages go.
        check: write nothing.

    Returns:
        files whose content differs (or differed). Pages of recipes that are gone are among them; they are removed.

    Raises:
        InputError: a Markdown file in the folder is no such page.
    """
    folder, recipes = Path(folder), shipped_datasets()
    pages = {f"{name}.md": dataset_page(recipe) for name, recipe in recipes.items()} | {INDEX: index_page(recipes)}
    _require_own(folder)
    changed = []
    for name, text in pages.items():
        path = folder / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            changed.append(path)
            if not check:
                write_text(path, text)
    gone = [path for path in sorted(folder.glob("*.md")) if path.name not in pages]
    for path in [] if check else gone:
        path.unlink()
    return changed + gone


def _require_own(folder: Path) -> None:
    """Refuse a folder that also holds other pages, since those would be overwritten or removed."""
    for path in sorted(folder.glob("*.md")):
        if _MARKED not in path.read_text(encoding="utf-8", errors="replace"):
            raise InputError(
                f"{path}: was not written by `medcoss manifest pages`, which removes pages that no recipe has. Give a "
                "folder of its own, or move that file away."
            )


def require_current_pages(folder: str | Path) -> None:
    """Raise InputError when a page is not what the recipes say, or none of them."""
    if changed := write_pages(folder, check=True):
        names = ", ".join(path.name for path in changed)
        raise InputError(f"{folder}: out of date: {names}. Run `medcoss manifest pages {folder}` and commit them.")


def index_page(recipes: Mapping[str, DatasetRecipe]) -> str:
    """The table of all data sets."""
    lines = [
        "# Data sets that a command reads as they are published",
        "",
        _MARK.format("data_manifests/recipes"),
        "",
        "Download a data set under its own terms, then: `medcoss manifest build FOLDER manifest.json --dataset NAME`.",
        "Files of one's own: [own-data.md](../own-data.md); manifests, stores and readers: [data.md](../data.md).",
        "",
        "| name | data set | modality | task | feeds | licence |",
        "|---|---|---|---|---|---|",
    ]
    for name, recipe in sorted(recipes.items(), key=_order):
        feeds = f"[`{recipe.bundle}`](../../bundles/{recipe.bundle}/docs/README.md)"
        cells = [f"[`{name}`]({name}.md)", recipe.title, recipe.modality, recipe.task, feeds, _line(recipe.licence)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _order(entry: tuple[str, DatasetRecipe]) -> tuple[int, int, str]:
    """By task, then by modality in the order of the stages."""
    name, recipe = entry
    return TASKS.index(recipe.task), list(MODALITIES).index(recipe.modality), name


def dataset_page(recipe: DatasetRecipe) -> str:
    """One data set: source, access, licence, layout, commands, splits, published counts, notes."""
    parts = [
        f"# {recipe.title}",
        _MARK.format(f"data_manifests/recipes/{recipe.name}.yaml"),
        _wrap(recipe.description),
        _facts(recipe),
        f"## Get it\n\n{_wrap(recipe.access)}",
        f"## Layout\n\nAs the publisher ships it, unpacked:\n\n{_indent(recipe.layout)}",
        f"## Commands\n\n{_commands(recipe)}",
        f"## Patients and splits\n\n{_patients(recipe)}",
        _settings(recipe),
        _counts(recipe),
        f"## What to know\n\n{_wrap(recipe.notes)}" if recipe.notes else "",
        f"## Terms and citation\n\nLicence: {_wrap(recipe.licence, first=9)}\n\n{_wrap(recipe.attribution)}\n\n"
        f"{_wrap(recipe.citation)}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _facts(recipe: DatasetRecipe) -> str:
    rows = {
        "source": f"<{recipe.source}>" if recipe.source.startswith("http") else recipe.source,
        "modality": f"{recipe.modality}, {recipe.intensity_unit}",
        "task": _task(recipe),
        "bundle": f"[`{recipe.bundle}`](../../bundles/{recipe.bundle}/docs/README.md)",
        "equal contents": {"drop": "one of each is kept", "keep": "are kept"}[recipe.duplicates],
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _task(recipe: DatasetRecipe) -> str:
    if recipe.classes:
        return f"classification: {', '.join(recipe.classes)}"
    if recipe.categories:
        return f"detection, boxes of: {', '.join(recipe.categories)}"
    regions = "; ".join(f"{name} = {values}" for name, values in recipe.regions.items())
    return f"segmentation, mask values: {regions}" if regions else "pre-training"


def _commands(recipe: DatasetRecipe) -> str:
    manifest = f"{recipe.name}/manifest.json"
    bundle = f"bundles/{recipe.bundle}"
    sheet = "" if get_modality(recipe.modality).dimension == 1 else f" --contact-sheet {recipe.name}.png"
    build = f"medcoss manifest build FOLDER {manifest} --dataset {recipe.name}"
    return "\n".join(
        [
            "Manifest and prepared store in one command; what was left out, and why, stands in "
            f"`{recipe.name}/manifest.build.json`:",
            "",
            f"    {build} \\",
            f"        --bundle {bundle} --store-dir stores",
            "",
            "Look at it, and check every item:",
            "",
            f"    medcoss manifest show {manifest}{sheet}",
            f"    medcoss manifest check {manifest}",
            "",
            "Then train:",
            "",
            f"    python -m monai.bundle run --config_file {bundle}/configs/train.json \\",
            f"        --data_manifest {manifest} --store_dir stores --output_dir runs/{recipe.name}",
        ]
    )


def _patients(recipe: DatasetRecipe) -> str:
    shares = "/".join(f"{share:g}" for share in recipe.shares)
    lines = [f"Patients: {_wrap(recipe.groups, first=10)}", "", f"Splits: {_wrap(recipe.split, first=8)}", ""]
    default = _SPLITS[recipe.split_by].format(shares)
    lines += [_wrap(f"Default of `--split-by`: {default}."), ""]
    lines.append(
        _wrap(
            "`--split-by patients --split 70/10/20 --seed 0` splits anew. `--split-by as_published` keeps the "
            "publisher's lists even where they share patients, and says so in the manifest's record."
        )
    )
    return "\n".join(lines)


def _settings(recipe: DatasetRecipe) -> str:
    if not recipe.settings:
        return ""
    rows = [f"| `{key}` | `{_value(value)}` | {recipe.settings_help.get(key, '')} |"
            for key, value in recipe.settings.items()]  # fmt: skip
    head = ["## Settings", "", "Changed with `--set name=value`.", "", "| name | default | meaning |", "|---|---|---|"]
    return "\n".join([*head, *rows])


def _value(value: Any) -> str:
    return "null" if value is None else str(value)


def _counts(recipe: DatasetRecipe) -> str:
    if not recipe.expected:
        return ""
    rows = []
    for split, counts in recipe.expected.items():
        labels = ", ".join(f"{label} {count:,}" for label, count in counts.get("labels", {}).items())
        rows.append(f"| {split} | {counts['items']:,} | {labels} |")
    table = "\n".join(["| split | items | of them |", "|---|---|---|", *rows])
    where = _wrap(f"Source: {recipe.expected_source}") if recipe.expected_source else ""
    return f"## Published counts\n\nThe command reports where it finds others.\n\n{table}\n\n{where}".rstrip()


def _wrap(text: str, *, first: int = 0) -> str:
    """Lines of at most 140 characters; the first one is shorter by ``first``. List items stay lines of their own."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    blocks = lines if any(line.lstrip().startswith("- ") for line in lines) else [" ".join(text.split())]
    filled = [
        textwrap.fill(block, 140, initial_indent=" " * first if number == 0 else "", break_on_hyphens=False)
        for number, block in enumerate(blocks)
    ]
    return "\n".join(filled)[first:]


def _line(text: str) -> str:
    return " ".join(text.split())


def _indent(text: str) -> str:
    return textwrap.indent(text.rstrip(), "    ")
