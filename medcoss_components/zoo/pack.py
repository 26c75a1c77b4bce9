"""Pack a bundle with trained weights into one zip that runs anywhere MONAI, torch and ignite are installed.

``NAME_<version>.zip`` holds one folder ``NAME``::

    README.md  docs/README.md       the model card, with the front matter that Hugging Face reads
    configs/*.json                  the bundle's configs, set to the network that the weights belong to
    models/                         model.pt, encoder.safetensors, vocabulary.json when the run has one
    medcoss_components/             this package; ``pip install --no-deps ./NAME`` installs it, without a network
    pyproject.toml requirements.txt what that needs; see :mod:`medcoss_components.zoo.wheel`
    LICENSE  LICENSE.md             of the code; of the weights, when their licence has no name of its own
    SHA256SUMS                      ``sha256sum -c SHA256SUMS`` checks every other file

Same input, same bytes: entries are sorted, stored without compression, with fixed times and modes. Of the run only the
weights, the vocabulary, the network's sizes and numbers of metrics.json go in: no sample ids, no paths, no buffer.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from medcoss_components._version import __version__
from medcoss_components.errors import InputError
from medcoss_components.files import atomic_path, read_json, sha256_file
from medcoss_components.zoo.build import BundleSource, bundle_folders, read_source
from medcoss_components.zoo.inspection import bundle_problems
from medcoss_components.zoo.model_card import LICENCE_FILE, LICENCE_OTHER, CardOptions, licence_text, model_card
from medcoss_components.zoo.packed_configs import write_configs
from medcoss_components.zoo.packed_run import BACKBONE_KINDS, Run, check_fits, read_run

if TYPE_CHECKING:
    from torch import Tensor

PACKAGE = "medcoss_components"
DISTRIBUTION = "medcoss-components"
PROJECT_FILE = f"""\
# Installs the package that this bundle's configs name, also without a network: pip install --no-deps .
[build-system]
requires = []
build-backend = "{PACKAGE}.zoo.wheel"
backend-path = ["."]

[project]
name = "{DISTRIBUTION}"
version = "{__version__}"
requires-python = ">=3.10"
dynamic = ["dependencies", "scripts"]
"""
SUMS_NAME = "SHA256SUMS"
VENDORED_SUFFIXES = frozenset({".py", ".yaml", ".json", ".md", ".conf"})
ZIP_TIME = (1980, 1, 1, 0, 0, 0)
FILE_MODE = 0o100644
BLOCK = 1 << 20
BACKBONE_PREFIX = "backbone."


def pack_bundle(
    name: str,
    *,
    weights: str | Path,
    to: str | Path,
    bundles_dir: str | Path = "bundles",
    with_buffer: bool = False,
    card: CardOptions | None = None,
) -> Path:
    """Write ``to/NAME_<version>.zip``; a file of that name is replaced.

    Args:
        name: a bundle in ``bundles_dir``.
        weights: folder of a finished stage, of a finished chain, whose last stage is taken, or of a finished
            fine-tuning.
        to: folder of the zip.
        bundles_dir: folder that holds the bundles.
        with_buffer: also pack the run's materialised buffer, which holds training samples and their ids.
        card: what only the publisher knows for the model card: licence of the weights, data sets, base model.

    Returns:
        Path of the zip.

    Raises:
        InputError: no such bundle; a run that is unfinished, of another task or modality, or contradicts itself; a
            bundle whose metadata breaks the rules; a buffer that cannot travel. Nothing is written then.
    """
    source = read_source(bundle_folders(bundles_dir, [name])[0])
    if problems := bundle_problems(source.folder):
        raise InputError(f"{source.folder}: {'; '.join(problems)}. Run `medcoss bundles build`.")
    run = read_run(weights)
    _check_kind(source, run)
    version = read_json(source.folder / "configs" / "metadata.json")["version"]
    target = Path(to) / f"{name}_{version}.zip"
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=target.parent) as scratch:
        folder = Path(scratch) / name
        _fill(folder, source=source, run=run, card=card or CardOptions(), with_buffer=with_buffer)
        write_sums(folder)
        write_zip(folder, target)
    return target


def _fill(folder: Path, *, source: BundleSource, run: Run, card: CardOptions, with_buffer: bool) -> None:
    write_configs(folder, source=source, run=run)
    _write_models(folder / "models", run)
    if with_buffer:
        _write_buffer(folder / "models", run)
    shutil.copyfile(source.folder / "LICENSE", folder / "LICENSE")
    if card.licence == LICENCE_OTHER:
        (folder / LICENCE_FILE).write_text(licence_text(card), encoding="utf-8")
    metadata = read_json(folder / "configs" / "metadata.json")
    text = model_card(source=source, metadata=metadata, run=run, options=card, with_buffer=with_buffer)
    (folder / "docs").mkdir()
    for path in (folder / "docs" / "README.md", folder / "README.md"):
        path.write_text(text, encoding="utf-8")
    vendor_package(folder)


def _check_kind(source: BundleSource, run: Run) -> None:
    """Refuse a run that was trained for something else. The chain bundle takes a stage of any modality."""
    config = read_json(source.folder / "configs" / "inference.json")
    chain = (source.folder / "configs" / "stage.json").is_file()
    check_fits(run, name=source.name, config={**config, "modality": None} if chain else config)


# ---- weights ----


def _write_models(folder: Path, run: Run) -> None:
    """Write the weights anew from their tensors: a flat state dict whatever the file also held."""
    from medcoss_components.networks.pretraining import ENCODER_PREFIXES
    from medcoss_components.weights import read_weights, save_weights

    state = read_weights(run.folder / "model.pt")
    if run.kind in BACKBONE_KINDS:  # projection or heads of the tasks stay behind
        state = {name: value for name, value in state.items() if name.startswith(BACKBONE_PREFIX)}
    _check_weights(state, run, folder.parent / "configs" / "inference.json")
    ordered = {name: state[name] for name in sorted(state)}
    save_weights(folder / "model.pt", ordered)
    encoder = {name: value for name, value in ordered.items() if name.startswith(ENCODER_PREFIXES)}
    save_weights(folder / "encoder.safetensors", encoder)
    if (run.folder / "vocabulary.json").is_file():
        shutil.copyfile(run.folder / "vocabulary.json", folder / "vocabulary.json")


def _check_weights(state: Mapping[str, Tensor], run: Run, config: Path) -> None:
    """The weights fit, name by name, the network that the packed inference config builds."""
    import torch

    from medcoss_components.engines.setup import register_modalities
    from medcoss_components.zoo.verify_network import build_network, misfits

    content = read_json(config)
    register_modalities(content.get("extra_modalities") or ())
    with torch.device("meta"):
        network = build_network(content)
    if wrong := misfits(network.state_dict(), state):
        some = "; ".join(wrong[:4]) + (f" and {len(wrong) - 4} more" if len(wrong) > 4 else "")
        raise InputError(
            f"{run.folder / 'model.pt'}: does not fit the network that the run records (preset "
            f"{run.settings['preset']}, other sizes: {dict(run.overrides) or 'none'}): {some}. "
            "Pack the folder as its training left it."
        )


def _write_buffer(folder: Path, run: Run) -> None:
    """Copy the materialised exemplars; their file then names no other place."""
    from dataclasses import replace

    from medcoss_components.continual.buffer import BUFFER_STORE_NAME, read_buffer, write_buffer

    buffer = read_buffer(run.folder)
    if buffer.materialised is None or not Path(buffer.materialised).is_dir():
        raise InputError(
            f"{run.folder / 'buffer.json'}: the buffer is not materialised, its samples are elsewhere. Train with "
            "--materialise True, or pack without --with-buffer."
        )
    place = str((folder / BUFFER_STORE_NAME).resolve())
    shutil.copytree(buffer.materialised, place)
    write_buffer(replace(buffer, materialised=place, store=place), folder)


# ---- the package ----


def vendor_package(folder: Path) -> None:
    """Copy this package into ``folder`` and write a pyproject.toml that installs it from there."""
    package = Path(__file__).resolve().parents[1]
    for path in sorted(package.rglob("*")):
        if path.suffix in VENDORED_SUFFIXES and "__pycache__" not in path.parts:
            target = folder / PACKAGE / path.relative_to(package)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    (folder / "pyproject.toml").write_text(PROJECT_FILE, encoding="utf-8")
    (folder / "requirements.txt").write_text("".join(f"{line}\n" for line in requirements()), encoding="utf-8")


def requirements() -> list[str]:
    """What the installed package requires, without extras.

    Raises:
        InputError: the package is not installed, so that nothing tells.
    """
    from importlib.metadata import PackageNotFoundError, requires

    try:
        lines = requires(DISTRIBUTION) or []
    except PackageNotFoundError as error:
        raise InputError(
            f"{DISTRIBUTION} is not installed; packing copies its requirements. Run `make install`."
        ) from error
    return sorted(line for line in lines if not re.search(r";.*\bextra\b", line))


# ---- hashes and the zip ----


def _files(folder: Path) -> list[Path]:
    return sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.as_posix())


def write_sums(folder: Path) -> None:
    """Write ``SHA256SUMS`` over every file of ``folder``, in the form that ``sha256sum -c`` reads."""
    lines = [f"{sha256_file(path)}  {path.relative_to(folder).as_posix()}\n" for path in _files(folder)]
    (folder / SUMS_NAME).write_text("".join(lines), encoding="utf-8")


def write_zip(folder: Path, target: Path) -> None:
    """Write ``folder`` as ``target``, atomically: the same files give the same bytes."""
    with atomic_path(target) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        for path in _files(folder):
            entry = zipfile.ZipInfo(f"{folder.name}/{path.relative_to(folder).as_posix()}", date_time=ZIP_TIME)
            entry.create_system, entry.external_attr, entry.file_size = 3, FILE_MODE << 16, path.stat().st_size
            with path.open("rb") as reader, archive.open(entry, "w") as writer:
                shutil.copyfileobj(reader, writer, BLOCK)
