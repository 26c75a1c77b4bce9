"""Pack a bundle with trained weights into one zip that runs anywhere MONAI, torch and ignite are installed.

``NAME_<version>.zip`` holds one folder ``NAME``::

    README.md  docs/README.md       the model card, with the front matter that Hugging Face reads
    configs/*.json                  the bundle's configs, set to the network that the weights belong to
    models/                         model.pt, encoder.safetensors, vocabulary.json when the run has one
    medcoss_components/             this package; ``pip install --no-deps ./NAME`` installs it, without a network
    pyproject.toml requirements.txt what that needs; see :mod:`medcoss_components.zoo.wheel`
    LICENSE  SHA256SUMS             ``sha256sum -c SHA256SUMS`` checks every other file

Same input, same bytes: entries are sorted, stored without compression, with fixed times and modes. Of the run only the
weights, the vocabulary, the network's sizes and numbers of metrics.json go in: no sample ids, no paths, no buffer.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from medcoss_components._version import __version__
from medcoss_components.errors import InputError
from medcoss_components.files import atomic_path, read_json, sha256_file, write_json
from medcoss_components.zoo.build import BundleSource, bundle_folders, read_source
from medcoss_components.zoo.inspection import bundle_problems
from medcoss_components.zoo.model_card import CardOptions, model_card

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
NETWORK_SETTINGS = ("preset", "text_attention", "decoder_positions")
"""Settings of a stage that decide what network its weights belong to; keys at the top of the configs."""
ALIASES = {"inference.json": "infer.json"}
"""``monai.bundle.load(workflow_type="infer")`` reads ``configs/infer.json``."""
VENDORED_SUFFIXES = frozenset({".py", ".yaml", ".json", ".md", ".conf"})
ZIP_TIME = (1980, 1, 1, 0, 0, 0)
FILE_MODE = 0o100644
BLOCK = 1 << 20


@dataclass(frozen=True)
class Run:
    """A finished stage: where its weights are and what they belong to.

    Attributes:
        folder: the stage's folder.
        settings: result-relevant settings of ``stage.json``.
        metrics: content of ``metrics.json``.
        overrides: sizes of the network that differ from its preset's, as keywords of ``PretrainingModel``.
        sizes: every size of the network.
    """

    folder: Path
    settings: Mapping[str, Any]
    metrics: Mapping[str, Any]
    overrides: Mapping[str, Any]
    sizes: Mapping[str, Any]


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
        weights: folder of a finished stage, or of a finished chain, whose last stage is taken.
        to: folder of the zip.
        bundles_dir: folder that holds the bundles.
        with_buffer: also pack the run's materialised buffer, which holds training samples and their ids.
        card: what only the publisher knows for the model card: licence of the weights, data sets, base model.

    Returns:
        Path of the zip.

    Raises:
        InputError: no such bundle; a run that is unfinished, of another modality or contradicts itself; a bundle whose
            metadata breaks the rules; a buffer that cannot travel. Nothing is written then.
    """
    source = read_source(bundle_folders(bundles_dir, [name])[0])
    if problems := bundle_problems(source.folder):
        raise InputError(f"{source.folder}: {'; '.join(problems)}. Run `medcoss bundles build`.")
    run = read_run(weights)
    _check_modality(source, run)
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
    _write_configs(folder, source=source, run=run)
    _write_models(folder / "models", run)
    if with_buffer:
        _write_buffer(folder / "models", run)
    shutil.copyfile(source.folder / "LICENSE", folder / "LICENSE")
    metadata = read_json(folder / "configs" / "metadata.json")
    text = model_card(source=source, metadata=metadata, run=run, options=card, with_buffer=with_buffer)
    (folder / "docs").mkdir()
    for path in (folder / "docs" / "README.md", folder / "README.md"):
        path.write_text(text, encoding="utf-8")
    vendor_package(folder)


# ---- the run ----


def read_run(path: str | Path) -> Run:
    """Read a finished stage, or the last stage of a finished chain.

    Raises:
        InputError: it is not one, or its weights do not belong to the network that it records.
    """
    from medcoss_components.networks.presets import resolve_preset

    folder = _stage_folder(Path(path))
    settings = _finished_settings(folder)
    metrics = read_json(folder / "metrics.json")
    preset = resolve_preset(settings["preset"])
    sizes = {**asdict(preset), **(metrics.get("network") or {})}
    overrides = {
        field.name: sizes[field.name]
        for field in fields(preset)
        if _plain(sizes[field.name]) != _plain(getattr(preset, field.name))
    }
    return Run(folder=folder, settings=settings, metrics=metrics, overrides=overrides, sizes=sizes)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _stage_folder(path: Path) -> Path:
    if not path.is_dir():
        raise InputError(f"{path}: no such folder. Give the output folder of a finished stage (--weights RUN).")
    if not (path / "chain.json").is_file():
        return path
    chain = read_json(path / "chain.json")
    if chain.get("status") != "finished":
        raise InputError(f"{path}: the chain is {chain.get('status')}, not finished. Run its command again first.")
    return path / chain["stages"][-1]["folder"]


def _finished_settings(folder: Path) -> dict[str, Any]:
    from medcoss_components.engines.stage import STEPS

    if not (folder / "stage.json").is_file():
        raise InputError(f"{folder}: holds no stage.json. Give the output folder of a finished stage (--weights RUN).")
    record = read_json(folder / "stage.json")
    if missing := [step for step in STEPS if step not in record["steps"]]:
        raise InputError(
            f"{folder}: not finished ({', '.join(missing)} not done). Run the same training command again."
        )
    if absent := [name for name in (*NETWORK_SETTINGS, "modality") if name not in record["settings"]]:
        raise InputError(f"{folder / 'stage.json'}: settings lack {', '.join(absent)}. Train with the bundle's config.")
    return record["settings"]


def _check_modality(source: BundleSource, run: Run) -> None:
    wanted, trained = source.values.get("modality"), run.metrics["modality"]
    if wanted is not None and wanted != trained:
        raise InputError(
            f"{run.folder}: trained on {trained}, while {source.name} is for {wanted}. "
            f"Give a stage of {wanted}, or pack it as another bundle."
        )


# ---- weights ----


def _write_models(folder: Path, run: Run) -> None:
    """Write the weights anew from their tensors: a flat state dict whatever the file also held."""
    from medcoss_components.networks.pretraining import ENCODER_PREFIXES
    from medcoss_components.weights import read_weights, save_weights

    state = read_weights(run.folder / "model.pt")
    _check_weights(state, run)
    ordered = {name: state[name] for name in sorted(state)}
    save_weights(folder / "model.pt", ordered)
    encoder = {name: value for name, value in ordered.items() if name.startswith(ENCODER_PREFIXES)}
    save_weights(folder / "encoder.safetensors", encoder)
    if (run.folder / "vocabulary.json").is_file():
        shutil.copyfile(run.folder / "vocabulary.json", folder / "vocabulary.json")


def _check_weights(state: Mapping[str, Any], run: Run) -> None:
    """The weights fit, name by name, the network that the packed configs will build."""
    import torch

    from medcoss_components.networks.pretraining import PretrainingModel

    settings = {name: run.settings[name] for name in NETWORK_SETTINGS}
    with torch.device("meta"):
        wanted = PretrainingModel(**settings, **run.overrides).state_dict()
    wrong = sorted(
        name
        for name in {*state, *wanted}
        if name not in state or name not in wanted or state[name].shape != wanted[name].shape
    )
    if wrong:
        some = ", ".join(wrong[:4]) + (f" and {len(wrong) - 4} more" if len(wrong) > 4 else "")
        raise InputError(
            f"{run.folder / 'model.pt'}: does not fit the network that the run records (preset {settings['preset']}, "
            f"other sizes: {dict(run.overrides) or 'none'}): {some}. Pack the folder as its training left it."
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


# ---- configs ----


def _write_configs(folder: Path, *, source: BundleSource, run: Run) -> None:
    (folder / "configs").mkdir(parents=True)
    for path in sorted((source.folder / "configs").iterdir()):
        if path.name == "metadata.json":
            write_json(folder / "configs" / path.name, packed_metadata(read_json(path), run))
        elif path.suffix == ".json":
            text = path.read_text(encoding="utf-8").replace(f"bundles/{source.name}/", f"{source.name}/")
            content = json.loads(text)
            for name in filter(None, (path.name, ALIASES.get(path.name))):
                write_json(folder / "configs" / name, packed_config(content, run))
        else:
            shutil.copyfile(path, folder / "configs" / path.name)


def packed_config(config: Mapping[str, Any], run: Run) -> dict[str, Any]:
    """The config with the defaults that the packed weights need; overlays, which build no network, stay as they are.

    >>> run = Run(Path(), {"preset": "demo"}, {}, {"depth": 2}, {"vocabulary_size": 4000})
    >>> packed_config({"preset": "vit_base", "seed": 0, "network_def": {"_target_": "x"}}, run)
    {'preset': 'demo', 'seed': 0, 'network_def': {'_target_': 'x', 'depth': 2}}
    """
    if "network_def" not in config and "stage_settings" not in config:
        return dict(config)
    packed = {key: run.settings[key] if key in NETWORK_SETTINGS else value for key, value in config.items()}
    if "vocabulary_size" in packed:
        packed["vocabulary_size"] = min(packed["vocabulary_size"], run.sizes["vocabulary_size"])
    if "network_def" in packed:
        packed["network_def"] = {**packed["network_def"], **run.overrides}
    return packed


def packed_metadata(metadata: Mapping[str, Any], run: Run) -> dict[str, Any]:
    """The metadata with the measured loss and the width of the packed network's features."""
    packed = json.loads(json.dumps(metadata))
    if run.metrics.get("validation_loss") is not None:
        packed["eval_metrics"] = {"validation_pretext_loss": run.metrics["validation_loss"]}
    output = packed["network_data_format"]["outputs"].get("pred", {})
    if output.get("format") == "features":
        output["spatial_shape"] = [run.sizes["width"]]
    return packed


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
