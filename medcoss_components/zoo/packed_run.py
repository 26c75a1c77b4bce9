"""The finished training that a bundle is packed from: where its weights are and which network they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medcoss_components.engines.trained_settings import BOX_SETTINGS
from medcoss_components.errors import InputError
from medcoss_components.files import read_json

if TYPE_CHECKING:
    from medcoss_components.data.modalities import Modality

PRETRAINING = "pretraining"
RECORDS = {
    "stage.json": ("train", "evaluate", "embed", "select", "artefacts"),
    "run.json": ("train", "evaluate", "artefacts"),
}
"""Record of a training -> the steps that a finished one has. stage.json: pre-training, run.json: fine-tuning."""
NETWORK_SETTINGS = ("modality", "preset", "text_attention", "decoder_positions")
"""Settings of a stage that decide what network its weights belong to; keys at the top of the configs."""
HEAD_SETTINGS = ("head_width", *BOX_SETTINGS)
TASK_SETTINGS = {
    "classification": ("modality", "preset", "text_attention", "input_shape", "classes", "preparation", "intensity"),
    "segmentation": ("modality", "preset", "feature_size", "input_shape", "regions", "preparation", "intensity"),
    "detection": ("modality", "preset", "input_shape", "categories", "preparation", "intensity", *HEAD_SETTINGS),
    "multitask": ("modality", "preset", "input_shape", "intensity"),
    "contrastive": ("modality", "preset", "input_shape", "intensity"),
}
"""The same for other trainings by what they train, with what turns files into inputs."""
TEXT_SETTINGS = frozenset({"text_attention"})
"""Settings that networks of images alone do not have."""
KIND_KEYS = {
    "classes": ("classification",),
    "regions": ("segmentation",),
    "categories": ("detection",),
}
"""Key of an inference config -> kinds of training that it is for; pre-training where it has none of them."""
BACKBONE_KINDS = ("multitask", "contrastive")
"""Kinds of training of which the backbone alone is published."""
BACKBONE_TARGET = "medcoss_components.XrayEmbeddingModel"
FOLLOWING_SIZES = frozenset({"grid_2d", "grid_3d", "channels_2d", "channels_3d"})
"""Sizes of a task's network that follow from its input shape."""


@dataclass(frozen=True)
class Run:
    """A finished training: where its weights are and what they belong to.

    Attributes:
        folder: the training's folder.
        settings: result-relevant settings of ``stage.json`` or ``run.json``.
        metrics: content of ``metrics.json``.
        overrides: sizes of the network that differ from its preset's, as keywords of its class.
        sizes: every size of the network.
        kind: "pretraining", or a key of :data:`TASK_SETTINGS`.
    """

    folder: Path
    settings: Mapping[str, Any]
    metrics: Mapping[str, Any]
    overrides: Mapping[str, Any]
    sizes: Mapping[str, Any]
    kind: str = PRETRAINING

    @property
    def network_settings(self) -> dict[str, Any]:
        """The settings that the packed configs take over."""
        names = TASK_SETTINGS.get(self.kind, NETWORK_SETTINGS)
        found = {name: self.settings[name] for name in names if name in self.settings}
        # the complete preparation: what the manifest of the training said does not come with the files to predict
        return found | {name: value for name, value in self.metrics.items() if name == "preparation" and name in found}

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the classes or regions, in the order of the outputs; empty for pre-training."""
        from medcoss_components.networks.classification import class_names
        from medcoss_components.networks.segmentation import region_values

        if self.kind == "classification":
            return class_names(self.settings["classes"])
        if self.kind == "detection":
            return tuple(self.settings["categories"])
        return tuple(region_values(self.settings["regions"])) if self.kind == "segmentation" else ()

    def entry(self) -> Modality:
        """The modality that the network reads, with this run's input shape; a new one is registered.

        Raises:
            InputError: the run names a modality that neither the registry nor its buffer describes.
        """
        from medcoss_components.data.modalities import get_modality

        buffer = self.folder / "buffer.json"
        described = read_json(buffer).get("modality") if buffer.is_file() else None
        return get_modality(described or self.settings["modality"], input_shape=self.settings.get("input_shape"))


def read_run(path: str | Path) -> Run:
    """Read a finished stage, the last stage of a finished chain, or a finished fine-tuning.

    Raises:
        InputError: it is none of them, or what it records does not fit together.
    """
    from medcoss_components.networks.xray_backbones import backbone_sizes

    folder = _run_folder(Path(path))
    name = _record_name(folder)
    settings = _finished_settings(folder / name)
    metrics = read_json(folder / "metrics.json")
    kind = PRETRAINING if name == "stage.json" else str(metrics.get("task"))
    _check_settings(folder / name, settings, kind)
    preset = backbone_sizes(settings["preset"])
    sizes = {**asdict(preset), **(metrics.get("network") or {})}
    following = FOLLOWING_SIZES if kind in TASK_SETTINGS else frozenset()
    overrides = {
        field.name: sizes[field.name]
        for field in fields(preset)
        if field.name not in following and _plain(sizes[field.name]) != _plain(getattr(preset, field.name))
    }
    return Run(folder=folder, settings=settings, metrics=metrics, overrides=overrides, sizes=sizes, kind=kind)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _run_folder(path: Path) -> Path:
    if not path.is_dir():
        raise InputError(f"{path}: no such folder. Give the output folder of a finished training (--weights RUN).")
    if not (path / "chain.json").is_file():
        return path
    chain = read_json(path / "chain.json")
    if chain.get("status") != "finished":
        raise InputError(f"{path}: the chain is {chain.get('status')}, not finished. Run its command again first.")
    return path / chain["stages"][-1]["folder"]


def _record_name(folder: Path) -> str:
    found = [name for name in RECORDS if (folder / name).is_file()]
    if not found:
        raise InputError(
            f"{folder}: holds no {' or '.join(RECORDS)}. Give the output folder of a finished training (--weights RUN)."
        )
    return found[0]


def _finished_settings(record: Path) -> dict[str, Any]:
    content = read_json(record)
    if missing := [step for step in RECORDS[record.name] if step not in content["steps"]]:
        raise InputError(
            f"{record.parent}: not finished ({', '.join(missing)} not done). Run the same training command again."
        )
    return content["settings"]


def _check_settings(record: Path, settings: Mapping[str, Any], kind: str) -> None:
    if kind != PRETRAINING and kind not in TASK_SETTINGS:
        tasks = ", ".join(TASK_SETTINGS)
        raise InputError(f"{record.parent / 'metrics.json'}: task must be one of {tasks}, found {kind!r}.")
    optional = TEXT_SETTINGS if kind in TASK_SETTINGS else frozenset()
    needed = [name for name in TASK_SETTINGS.get(kind, NETWORK_SETTINGS) if name not in optional]
    if absent := [name for name in needed if name not in settings]:
        raise InputError(f"{record}: settings lack {', '.join(absent)}. Train with the bundle's config.")


def check_fits(run: Run, *, name: str, config: Mapping[str, Any]) -> None:
    """Refuse a run that was not trained for what the bundle does.

    Args:
        run: the training.
        name: the bundle.
        config: its inference config, whose keys tell what it is for, see :data:`KIND_KEYS`.

    Raises:
        InputError: another kind of training, or another modality; a chain's last stage may have any.
    """
    target = (config.get("network_def") or {}).get("_target_")
    others = BACKBONE_KINDS if target == BACKBONE_TARGET else (PRETRAINING,)
    wanted = next((kinds for key, kinds in KIND_KEYS.items() if key in config), others)
    if run.kind not in wanted:
        kinds = " or ".join(wanted)
        raise InputError(f"{run.folder}: its training was {run.kind}, while {name} is for {kinds}. Name its bundle.")
    modality, trained = config.get("modality"), run.metrics["modality"]
    if (modality if isinstance(modality, str) else trained) != trained:
        raise InputError(
            f"{run.folder}: trained on {trained}, while {name} is for {modality}. "
            f"Give a run of {modality}, or pack it as another bundle."
        )
