"""Reading, writing, comparing and importing weights.

Files are read with safetensors or ``torch.load(weights_only=True)``; of the pickled extras of published checkpoints
only ``argparse.Namespace`` is admitted, and dropped.
"""

from __future__ import annotations

import argparse
import hashlib
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medcoss_components.errors import InputError
from medcoss_components.files import atomic_path, check_archive
from medcoss_components.networks.backbone import TASK_PREFIXES
from medcoss_components.networks.embeddings import interpolate_grid
from medcoss_components.networks.pretraining import ENCODER_PREFIXES, PRETEXT_PREFIXES, PretrainingModel
from medcoss_components.networks.published import from_published, is_published

STAGE_FILES = ("model.pt", "encoder.safetensors")
ZIP_START = b"PK\x03\x04"
BACKBONE = "backbone."  # what pre-training trains in the X-ray networks of MUSCLE
PARTS = {"encoder": ENCODER_PREFIXES, "all": ("",)}
"""What may be asked for -> beginnings of the names that belong to it."""
_TRANSFORMER_COMPONENTS = (
    "image_embedding.tokenizers.2d.",
    "image_embedding.tokenizers.3d.",
    "image_embedding.class_token",
    "image_embedding.norm.",
    "encoder.",
)
COMPONENTS = (
    "text_embedding.",
    *_TRANSFORMER_COMPONENTS,
    *(BACKBONE + start for start in _TRANSFORMER_COMPONENTS),
    "fc.",  # of a ResNet under torchvision's names
    *PRETEXT_PREFIXES,
    *TASK_PREFIXES,
)
"""Beginnings of the names of everything that some network of this package has and another has not."""
COUNTER = ".num_batches_tracked"  # of batch norms; nothing reads it, and old files of ResNets lack it
GRID_TABLES = (
    "image_embedding.tokenizers.2d.position",
    "image_embedding.tokenizers.3d.position",
    "decoder.positions.2d.grid",
    "decoder.positions.3d.grid",
)


@dataclass(frozen=True)
class LoadReport:
    """What happened to every tensor when weights were loaded.

    Attributes:
        loaded: names copied as they are.
        interpolated: position tables resized to another grid.
        initialised: names of the asked parts that kept their first values.
        untouched: names of the other parts (decoder, heads), which kept their first values too.
        unexpected: names of the source that the model has no place for.
        not_needed: names of the source that belong to parts which this model does not have, such as the tokenizers of
            other modalities or the heads of another task.
        dropped: tables, or rows of them, of a published checkpoint that the network never reads.
        sizes: parameters of each tensor of the model.
    """

    loaded: tuple[str, ...] = ()
    interpolated: tuple[str, ...] = ()
    initialised: tuple[str, ...] = ()
    untouched: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    not_needed: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict, repr=False)

    def parameters(self, names: Sequence[str]) -> int:
        """How many numbers the tensors called ``names`` hold."""
        return sum(self.sizes.get(name, 0) for name in names)

    def __str__(self) -> str:
        left = (*self.initialised, *self.untouched)
        parts = [
            f"{self.parameters(self.loaded):,} parameters loaded ({len(self.loaded)} tensors)",
            f"{self.parameters(self.interpolated):,} interpolated{_counted(self.interpolated)}",
            f"{self.parameters(left):,} left at initialisation{_counted(left)}",
        ]
        for label in ("unexpected", "dropped"):
            names = getattr(self, label)
            parts.append(f"{len(names)} {label}" + (f" ({some_names(names)})" if names else ""))
        if self.not_needed:
            parts.append(f"{len(self.not_needed)} not needed ({some_names(self.not_needed)})")
        return ", ".join(parts)


def _counted(names: Sequence[str]) -> str:
    return f" ({len(names)} tensors: {some_names(names)})" if names else ""


def some_names(names: Sequence[str], limit: int = 4) -> str:
    """The first few names and how many more there are."""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def _weights_file(path: Path) -> Path:
    if path.is_file():
        return path
    if path.is_dir():
        found = [path / name for name in STAGE_FILES if (path / name).is_file()]
        if found:
            return found[0]
        raise InputError(f"{path}: holds no {' or '.join(STAGE_FILES)}. Give a weights file or a finished stage.")
    raise InputError(f"{path}: no such file or folder. Give a .pt, .pth or .safetensors file, or a stage folder.")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a whole safetensors file ({error}). Fetch or write it again.") from error


def _read_torch(path: Path, *, mapped: bool = False) -> Any:
    check_archive(path)
    if not zipfile.is_zipfile(path) and _starts_as_archive(path):
        size = path.stat().st_size
        raise InputError(f"{path}: cut short, its end is missing ({size} bytes are here). Fetch it again.")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and _can_be_mapped(path))
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: holds more than tensors, or is no weights file; not read ({reason}).") from error
    except (RuntimeError, LookupError, EOFError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: not a whole weights file ({reason}). Fetch or write it again.") from error


def _starts_as_archive(path: Path) -> bool:
    with open(path, "rb") as stream:
        return stream.read(len(ZIP_START)) == ZIP_START


def _can_be_mapped(path: Path) -> bool:
    """Whether the numbers stand in the file as they are: an archive of the present format, not packed again."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())


def flat_state(content: Any, path: Path) -> dict[str, Tensor]:
    """The tensors of a file: flat, or under "model" as in published checkpoints."""
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or not content:
        raise InputError(f"{path}: must hold a mapping of names to tensors, holds {type(content).__name__}.")
    wrong = [str(name) for name, value in content.items() if not (isinstance(name, str) and _holds_numbers(value))]
    if wrong:
        raise InputError(f"{path}: {some_names(wrong)} is no tensor. Give a file of names and tensors.")
    return dict(content)


def _holds_numbers(value: Any) -> bool:
    """Whether it is a tensor with a number in every place: none that is sparse, quantised or a shape alone."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not (value.is_meta or value.is_quantized)


def read_content(path: str | Path, *, mapped: bool = False) -> tuple[Path, Any]:
    """The file that ``path`` stands for, and all it holds; arguments and errors as for :func:`read_weights`."""
    file = _weights_file(Path(path))
    return file, _read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file, mapped=mapped)


def read_weights(path: str | Path, *, mapped: bool = False) -> dict[str, Tensor]:
    """Read tensors by name, on the CPU.

    Args:
        path: a .safetensors file; a .pt or .pth file that is flat or keeps its tensors under "model"; or a stage
            folder, whose model.pt (else encoder.safetensors) is read.
        mapped: leave the numbers of a .pt or .pth file on the disk until they are used; for callers that are done with
            the tensors before the file can change.

    Raises:
        InputError: when there is no such file, it is damaged, or holds anything but tensors; the message names it.
    """
    file, content = read_content(path, mapped=mapped)
    return flat_state(content, file)


def save_weights(path: str | Path, state: Mapping[str, Tensor]) -> None:
    """Write tensors by name, atomically: safetensors for that suffix, else a flat ``torch.save``.

    Same tensors, same bytes.

    Raises:
        InputError: when ``state`` is empty.
    """
    if not state:
        raise InputError(f"{path}: no tensors to write.")
    tensors = {name: _own(value) for name, value in state.items()}
    with atomic_path(path) as partial:
        if Path(path).suffix == ".safetensors":
            _write_safetensors(partial, tensors)
            return
        with open(partial, "wb") as stream:  # given a stream, torch does not put the file's name into the archive
            torch.save(tensors, stream)


def _own(value: Tensor) -> Tensor:
    """The tensor on the CPU, copied only when it is a part of something larger or not in raster order."""
    value = value.detach().cpu().contiguous()
    return value.clone() if value.untyped_storage().nbytes() != value.numel() * value.element_size() else value


def _write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Tensor by tensor, without a second copy of all; two names of one tensor are written twice."""
    from safetensors.torch import save_file

    seen: set[int] = set()
    separate = {}
    for name, value in tensors.items():
        address = value.untyped_storage().data_ptr()
        separate[name] = value.clone() if address in seen else value
        seen.add(address)
    path.touch()
    permissions = path.stat().st_mode  # safetensors would make a file that only its owner can read
    save_file(separate, path)
    path.chmod(permissions)


def hash_weights(state: Mapping[str, Tensor]) -> str:
    """SHA-256 (64 hexadecimal digits) of names, types, shapes and bytes, whatever the order and device."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(memoryview(value.reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def _our_state(source: str | Path | Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...], tuple[str, ...]]:
    """State under our names, dropped and unexpected published names."""
    state = dict(source) if isinstance(source, Mapping) else read_weights(source, mapped=True)
    if not is_published(state):
        return state, (), ()
    conversion = from_published(state, copy=False)
    return conversion.state, conversion.dropped, conversion.unexpected


def _aligned(state: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state under the names of a model that keeps its encoder behind ``backbone.``, or of one that does not."""
    if not any(name.startswith(BACKBONE) for name in whole):
        return {name.removeprefix(BACKBONE): value for name, value in state.items()}
    return {
        BACKBONE + name
        if BACKBONE + name in whole or name.startswith(("image_embedding.", "encoder."))
        else name: value
        for name, value in state.items()
    }


def _fitted(name: str, value: Tensor, wanted: Tensor) -> Tensor | None:
    """``value`` in the shape of ``wanted``; position tables are resized; None when it cannot be."""
    if value.shape == wanted.shape:
        return value
    if name.removeprefix(BACKBONE) in GRID_TABLES and value.ndim == wanted.ndim and value.shape[-1] == wanted.shape[-1]:
        return interpolate_grid(value.float(), wanted.shape[:-1])
    return None


def _check_complete(problems: Sequence[str], parts: str, origin: str) -> None:
    if problems:
        raise InputError(
            f"{origin}: does not hold the {parts} weights of this model: {some_names(problems, 12)}. Use the preset "
            "or backbone, vocabulary, classes and regions of the source, or list names in allow_initialised to start "
            "those afresh."
        )


def load_initial_weights(
    model: nn.Module,
    source: str | Path | Mapping[str, Tensor],
    *,
    parts: str = "encoder",
    allow_initialised: Sequence[str] = (),
) -> LoadReport:
    """Start a model from weights of an earlier stage, another chain, a published checkpoint or Uni-Perceiver.

    A backbone of an X-ray network also starts from the encoder of these, or from a ResNet under torchvision's names;
    and the encoder of the other networks from such a backbone.

    Pre-training and task models alike; a task model has fewer parts, and what it lacks is reported as not needed.

    Args:
        model: the model to fill, in place.
        source: what :func:`read_weights` reads, or a mapping of names to tensors; ours or the published names.
        parts: "encoder" (encoder, tokenizers, class token) or "all" (every tensor of the model, so the decoder and the
            text head of a pre-training model or the head of a fine-tuned one as well).
        allow_initialised: beginnings of names that may be absent or of another shape; they keep their first values.

    Returns:
        A report that lists every name.

    Raises:
        InputError: when another name of the asked parts is absent or has another shape, or the model has no such
            parts. Nothing is changed then.
    """
    if parts not in PARTS:
        raise InputError(f"parts={parts!r} must be one of {', '.join(PARTS)}.")
    state, dropped, unexpected = _our_state(source)
    whole = model.state_dict()
    state = _aligned(state, whole)
    wanted = {name: value for name, value in whole.items() if name.startswith(PARTS[parts])}
    if not wanted:
        raise InputError(f"parts={parts!r}: the model has no tensor whose name begins with {', '.join(PARTS[parts])}.")
    fitted = {name: _fitted(name, state[name], value) for name, value in wanted.items() if name in state}
    usable = {name: value for name, value in fitted.items() if value is not None}
    initialised = tuple(name for name in wanted if name not in usable)
    allowed = tuple(allow_initialised)
    needed = [name for name in initialised if not (name.startswith(allowed) or name.endswith(COUNTER))]
    problems = [_describe(name, state, wanted) for name in needed]
    _check_complete(problems, parts, "source" if isinstance(source, Mapping) else str(source))
    with torch.no_grad():
        for name, value in usable.items():
            wanted[name].copy_(value)
    resized = tuple(name for name, value in usable.items() if value.shape != state[name].shape)
    strangers, not_needed = _without_place(state, whole, parts)
    return LoadReport(
        loaded=tuple(name for name in usable if name not in resized),
        interpolated=resized,
        initialised=initialised,
        untouched=tuple(name for name in whole if name not in wanted),
        unexpected=strangers + unexpected,
        not_needed=not_needed,
        dropped=dropped,
        sizes={name: value.numel() for name, value in whole.items()},
    )


def _without_place(
    state: Mapping[str, Tensor], whole: Mapping[str, Tensor], parts: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of a source that a model has no tensor for: unexpected ones, and those of parts that it does not have.

    Names of a pretext decoder or head that was not asked for are in neither.
    """
    lacking = tuple(start for start in COMPONENTS if not any(name.startswith(start) for name in whole))
    others = sorted(set(state) - set(whole))
    not_needed = tuple(name for name in others if name.startswith(lacking))
    strangers = [name for name in others if not name.startswith(lacking)]
    if parts == "encoder":
        strangers = [name for name in strangers if not name.startswith(PRETEXT_PREFIXES + TASK_PREFIXES)]
    return tuple(strangers), not_needed


def _describe(name: str, state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    if name not in state:
        return f"{name} (absent)"
    return f"{name} (has {tuple(state[name].shape)}, needs {tuple(wanted[name].shape)})"


def pretraining_model_from_medcoss(state_dict: Mapping[str, Tensor]) -> PretrainingModel:
    """Build the published network from the published checkpoint.

    Args:
        state_dict: the published names and tensors, or the whole checkpoint that keeps them under "model".

    Returns:
        A ``vit_base`` model with causal text attention and learned decoder positions, in evaluation mode. Its tensors
        are copies. Tables that the network never reads are dropped: ``from_published(state_dict).dropped`` lists them.

    Raises:
        InputError: when names are absent, unknown or of another shape; the message lists them.
    """
    conversion = from_published(flat_state(state_dict, Path("state_dict")))
    with torch.device("meta"):
        model = PretrainingModel(preset="vit_base", text_attention="causal", decoder_positions="learned")
    wanted = model.state_dict()
    problems = [
        _describe(name, conversion.state, wanted)
        for name, value in wanted.items()
        if name not in conversion.state or conversion.state[name].shape != value.shape
    ]
    problems += [f"{name} (unknown)" for name in conversion.unexpected]
    if problems:
        raise InputError(f"state_dict: not the published MedCoSS checkpoint: {some_names(problems, 12)}.")
    model.load_state_dict(conversion.state, assign=True)
    return model.eval()
