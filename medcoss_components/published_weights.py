"""Published checkpoints in, published checkpoints out (METHOD.md section 10).

A published ``.pth`` is a pickle with ``model``, ``optimizer`` and ``args``. It is read without running pickled code: of
the extras only ``argparse.Namespace`` is admitted, and dropped. The numbers stay on the disk until each tensor is
written, so that memory holds the weights about once.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medcoss_components._version import __version__
from medcoss_components.errors import InputError
from medcoss_components.files import atomic_path, sha256_file, write_json
from medcoss_components.networks.presets import PRESETS, Preset
from medcoss_components.networks.pretraining import PRETEXT_PREFIXES, PretrainingModel
from medcoss_components.networks.published import (
    TABLE_ROWS,
    UNREAD_TABLES,
    Rows,
    fixed_positions,
    from_published,
    is_published,
    published_places,
    to_published,
)
from medcoss_components.weights import (
    flat_state,
    hash_weights,
    read_content,
    read_weights,
    save_weights,
    some_names,
)

SIZES = PRESETS["vit_base"]
"""Sizes of the published network."""

FORMATS: dict[str, tuple[str, ...]] = {
    "medcoss": ("",),
    "uni-perceiver": ("fused_encoder.", "token_embed.", "video_embed.", "cls_token"),
}
"""Format -> beginnings of the published names that its files hold."""

MODEL, SAFETENSORS, RECORD, VOCABULARY = "model.pt", "model.safetensors", "import.json", "vocabulary.json"
POSITIONS = "decoder.positions."
LICENCE = (
    "The terms of the source carry over to these weights and to all that are trained from them. MedCoSS is published "
    "for non-commercial use; read the terms of Uni-Perceiver where you fetched it."
)
LISTED = 20
"""Names of one kind that an error lists."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Imported:
    """What :func:`import_weights` wrote: the folder and its record."""

    folder: Path
    record: Mapping[str, Any]

    def __str__(self) -> str:
        weights, names = self.record["weights"], self.record["names"]
        return (
            f"{self.folder}: {weights['parameters']:,} parameters in {weights['tensors']} tensors, "
            f"{len(names['mapped'])} names mapped, {len(names['dropped'])} dropped, {len(names['missing'])} missing"
        )


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


@lru_cache(maxsize=8)
def our_shapes(sizes: Preset) -> Shapes:
    """Our names and shapes of the network with learned decoder positions."""
    with torch.device("meta"):
        overrides: dict[str, Any] = asdict(sizes)
        model = PretrainingModel(preset="vit_base", decoder_positions="learned", **overrides)
    return _shapes(model.state_dict())


def published_shapes(sizes: Preset = SIZES, format: str = "medcoss") -> dict[str, tuple[int, ...]]:
    """Published names and shapes of a checkpoint of that format."""
    ours = our_shapes(sizes)
    shapes: dict[str, tuple[int, ...]] = {
        name: (rows, sizes.width) for name, rows in (TABLE_ROWS | UNREAD_TABLES).items()
    }
    for name, place in published_places(sizes).items():
        if isinstance(place, str):
            shapes[place] = ours[name]
        elif place.published not in TABLE_ROWS:
            rows = max(place.stop, shapes.get(place.published, (1, 0))[1])
            shapes[place.published] = (1, rows, ours[name][-1])
    return {name: shape for name, shape in shapes.items() if name.startswith(FORMATS[format])}


def import_weights(
    source: str | Path,
    folder: str | Path,
    *,
    format: str = "medcoss",
    vocabulary: str | Path | None = None,
    overwrite: bool = False,
    sizes: Preset | None = None,
) -> Imported:
    """Bring a published checkpoint under our names: ``model.pt``, ``model.safetensors`` and ``import.json``.

    Args:
        source: the published .pth file.
        folder: receives the files; it can be given as ``init_weights``.
        format: "medcoss" (the whole network) or "uni-perceiver" (encoder, tokenizers, class token).
        vocabulary: WordPiece ``vocab.txt`` of the checkpoint; put beside the weights, where text stages look for it.
        overwrite: replace the files of an earlier import.
        sizes: sizes of the network; None: those of the published one.

    Raises:
        InputError: when the file is another one, damaged, or holds other names or shapes; the message lists them. Also
            when the folder holds such files already.
    """
    if format not in FORMATS:
        raise InputError(f"format={format!r} must be one of {', '.join(FORMATS)}.")
    sizes = sizes or SIZES
    folder = _free_folder(Path(folder), overwrite)
    words = _read_vocabulary(vocabulary, sizes)
    path, content = read_content(source, mapped=True)
    if path.resolve().parent == folder.resolve() and path.name in (MODEL, SAFETENSORS, RECORD, VOCABULARY):
        raise InputError(f"{path}: would be overwritten by its own import. Give another folder.")
    state = flat_state(content, path)
    _check_names(_shapes(state), path, format, sizes)
    _check_numbers(state, path)
    ours = _without_fixed_positions(from_published(state, sizes=sizes, copy=False).state, sizes)
    (folder / RECORD).unlink(missing_ok=True)
    for name in (SAFETENSORS, MODEL):
        save_weights(folder / name, ours)
    if words is not None:
        words.save(folder / VOCABULARY)
    record = {
        "format": 1,
        "source": {"name": path.name, "format": format, "bytes": path.stat().st_size, "sha256": sha256_file(path)},
        **_described(ours, folder),
        "names": _names(_shapes(state), ours, sizes),
        "left_out": sorted(str(key) for key in content if key != "model") if content.keys() != state.keys() else [],
        "licence": LICENCE,
        "versions": _versions(),
    }
    write_json(folder / RECORD, record)
    return Imported(folder, record)


def _described(ours: Mapping[str, Tensor], folder: Path) -> dict[str, Any]:
    """What was written, for the record."""
    parameters = sum(value.numel() for value in ours.values())
    return {
        "weights": {"tensors": len(ours), "parameters": parameters, "hash": hash_weights(ours)},
        "files": {name: sha256_file(folder / name) for name in (SAFETENSORS, MODEL)},
        "network": _network(ours),
    }


def _free_folder(folder: Path, overwrite: bool) -> Path:
    if folder.is_file() or folder.suffix in (".pt", ".pth", ".safetensors"):
        raise InputError(f"{folder}: must be a folder; it receives {SAFETENSORS}, {MODEL} and {RECORD}.")
    there = [name for name in (MODEL, SAFETENSORS, RECORD) if (folder / name).exists()]
    if there and not overwrite:
        raise InputError(f"{folder}: holds {', '.join(there)} already. Give another folder, or --overwrite.")
    if there and not (folder / RECORD).exists() and (folder / "stage.json").exists():
        raise InputError(f"{folder}: is the folder of a stage; its weights are not overwritten. Give another folder.")
    return folder


def _read_vocabulary(path: str | Path | None, sizes: Preset) -> Any:
    if path is None:
        return None
    from medcoss_components.text.vocabulary import load_vocabulary

    words = load_vocabulary(path)
    if words.size > sizes.vocabulary_size:
        raise InputError(f"{path}: has {words.size} pieces, the word table only {sizes.vocabulary_size} rows.")
    return words


def _check_names(found: Shapes, path: Path, format: str, sizes: Preset) -> None:
    wanted = published_shapes(sizes, format)
    if found.keys() <= our_shapes(sizes).keys():
        raise InputError(f"{path}: holds this package's names, not published ones; give it to init_weights as it is.")
    problems = _differences(found, wanted)
    if problems:
        other = [name for name in FORMATS if found.keys() == published_shapes(sizes, name).keys()]
        hint = f" Its names are those of --format {other[0]}." if other and other[0] != format else ""
        raise InputError(f"{path}: not a published {format} checkpoint; {problems}.{hint}")


def _differences(found: Shapes, wanted: Shapes) -> str:
    """Names that are missing, unexpected or of another shape, for an error; empty when there are none."""
    both = found.keys() & wanted.keys()
    kinds = {
        "missing": [f"{name} {shape}" for name, shape in wanted.items() if name not in found],
        "unexpected": [f"{name} {shape}" for name, shape in found.items() if name not in wanted],
        "of another shape": [
            f"{name} (has {found[name]}, needs {shape})"
            for name, shape in wanted.items()
            if name in both and found[name] != shape
        ],
    }
    return "; ".join(f"{len(names)} {kind}: {some_names(names, LISTED)}" for kind, names in kinds.items() if names)


def _check_numbers(state: Mapping[str, Tensor], path: Path) -> None:
    types = [f"{name} ({value.dtype})" for name, value in state.items() if not value.is_floating_point()]
    if types:
        raise InputError(f"{path}: not floating-point numbers: {some_names(types, LISTED)}.")
    broken = [name for name, value in state.items() if not torch.isfinite(value.sum(dtype=torch.float64))]
    if broken:
        raise InputError(f"{path}: holds numbers that are not finite: {some_names(broken, LISTED)}.")


def _without_fixed_positions(state: dict[str, Tensor], sizes: Preset) -> dict[str, Tensor]:
    """Leave out the decoder's position tables when all of them are the fixed sin-cos ones, as an export writes them."""
    fixed = fixed_positions(sizes)
    if any(name not in state for name in fixed):
        return state
    if all(torch.allclose(state[name].float(), value, rtol=0, atol=1e-6) for name, value in fixed.items()):
        return {name: value for name, value in state.items() if name not in fixed}
    return state


def _network(ours: Mapping[str, Tensor]) -> dict[str, Any]:
    """What to build for these weights."""
    if not any(name.startswith(PRETEXT_PREFIXES) for name in ours):
        return {"preset": "vit_base", "parts": "encoder"}
    learned = any(name.startswith(POSITIONS) for name in ours)
    return {"preset": "vit_base", "parts": "all", "decoder_positions": "learned" if learned else "sincos"}


def _names(found: Shapes, ours: Mapping[str, Tensor], sizes: Preset) -> dict[str, Any]:
    """Our names and their places in the source; what was dropped and what the network still needs, with shapes."""
    places = published_places(sizes)
    mapped = {name: {**_place(places[name]), "shape": list(value.shape)} for name, value in ours.items()}
    read = {place["name"]: 0 for place in mapped.values()}
    for place in mapped.values():
        read[place["name"]] = max(read[place["name"]], place.get("rows", (0, 0))[1])
    dropped = [{"name": name, "shape": list(shape)} for name, shape in found.items() if name not in read]
    for name, rows in TABLE_ROWS.items():
        if name in read and name in found and rows > read[name]:
            dropped.append({"name": name, "shape": [rows - read[name], sizes.width], "rows": [read[name], rows]})
    fixed = fixed_positions(sizes) if any(name.startswith(PRETEXT_PREFIXES) for name in ours) else {}
    missing = [
        {"name": name, "shape": list(shape)}
        for name, shape in our_shapes(sizes).items()
        if name not in ours and name not in fixed
    ]
    return {"mapped": mapped, "dropped": dropped, "missing": missing}


def _place(place: str | Rows) -> dict[str, Any]:
    return {"name": place} if isinstance(place, str) else {"name": place.published, "rows": [place.start, place.stop]}


def _versions() -> dict[str, str]:
    import safetensors

    return {
        "medcoss_components": __version__,
        "torch": torch.__version__,
        "safetensors": safetensors.__version__,
        "python": platform.python_version(),
    }


def export_weights(
    source: str | Path,
    path: str | Path,
    *,
    format: str = "medcoss",
    overwrite: bool = False,
    sizes: Preset | None = None,
) -> dict[str, tuple[int, ...]]:
    """Write our weights under the published names, as ``{"model": {name: tensor}}``.

    Tables and rows that the network never reads are 0. The fixed sin-cos positions of a decoder that has no learned
    ones are written out; :func:`import_weights` recognises them.

    Args:
        source: stage folder, imported folder, .pt or .safetensors of a whole ``vit_base`` model.
        path: the .pth file to write.
        format: "medcoss".
        overwrite: replace an existing file.
        sizes: sizes of the network; None: those of the published one.

    Returns:
        Published name -> shape.

    Raises:
        InputError: when the weights are not those of a whole network of this size; the message lists names.
    """
    if format != "medcoss":
        raise InputError(f"format={format!r} must be medcoss: that is the published layout of a whole network.")
    path = Path(path)
    if path.exists() and not overwrite:
        raise InputError(f"{path}: exists already. Give another name, or --overwrite.")
    sizes = sizes or SIZES
    state = read_weights(source, mapped=True)
    if is_published(state):
        raise InputError(f"{source}: is under the published names already.")
    if not any(name.startswith(POSITIONS) for name in state):
        state |= fixed_positions(sizes)
    _check_ours(_shapes(state), source, sizes)
    published = to_published(state, sizes=sizes, copy=False)
    with atomic_path(path) as partial, open(partial, "wb") as stream:
        torch.save({"model": published}, stream)
    return _shapes(published)


def _check_ours(found: Shapes, source: str | Path, sizes: Preset) -> None:
    problems = _differences(found, our_shapes(sizes))
    if problems:
        raise InputError(
            f"{source}: not a whole vit_base network with the published sizes; {problems}. "
            "Give the model.pt of a stage or of an imported MedCoSS checkpoint."
        )
