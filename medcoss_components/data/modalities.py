"""The registry of modalities: the one place that says how a kind of data is stored, read and trained on.

Nothing else in the project asks for a modality by name. Code that behaves differently keys a small table on one of the
rule names below (``intensity``, ``augmentation``, ``pretext``) or on ``dimension``. A new modality is one entry:

>>> ultrasound = get_modality({"name": "doc_ultrasound", "dimension": 2, "input_shape": [3, 224, 224],
...                            "intensity": "unit_range", "stored_channels": 1})
>>> ultrasound.stored_shape, ultrasound.stored_dtype, ultrasound.augmentation
((1, 224, 224), 'uint8', 'resized_crop_flip')
>>> get_modality("ct", input_shape=(1, 8, 32, 48)).stored_shape
(1, 8, 32, 48)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from medcoss_components.errors import InputError

INTENSITY_DTYPES = {"tokens": "uint16", "unit_range": "uint8", "hounsfield": "int16", "zscore": "float16"}
"""Intensity rule -> the dtype that it is stored in.

``tokens``: vocabulary ids. ``unit_range``: model input in [0, 1] = stored / 255. ``hounsfield``: model input = stored
HU / 1024. ``zscore``: stored and read with mean 0 and variance 1 per sample.
"""
DIMENSION_RULES = {
    1: {"augmentation": "none", "pretext": "masked_language"},
    2: {"augmentation": "resized_crop_flip", "pretext": "masked_image"},
    3: {"augmentation": "mirror", "pretext": "masked_image"},
}
"""Dimension -> rules that a new entry gets unless it says otherwise."""
DIMENSION_INTENSITIES = {1: ("tokens",), 2: ("unit_range",), 3: ("hounsfield", "zscore", "unit_range")}
DIMENSION_AUGMENTATIONS = {1: ("none",), 2: ("none", "resized_crop_flip"), 3: ("none", "mirror")}
DIMENSION_AXES = {1: ("L",), 2: ("C", "H", "W"), 3: ("C", "Z", "H", "W")}

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")


@dataclass(frozen=True, kw_only=True)
class Modality:
    """One kind of data.

    Args:
        name: lower-case identifier; it names stage folders, stores and metrics.
        dimension: 1 (token ids), 2 (image) or 3 (volume).
        input_shape: what the model reads, without the batch axis: (L,), (C, H, W) or (C, Z, H, W).
        intensity: rule name, see :data:`INTENSITY_DTYPES`.
        stored_dtype: NumPy dtype name of the store; default: the rule's own.
        stored_channels: channels in the store; fewer than the input's (1 for 3) means repeated at reading. Default: the
            input's. Meaningless (0) for text.
        augmentation: "none", "resized_crop_flip" (2D) or "mirror" (3D); default by dimension.
        pretext: "masked_language" (1D) or "masked_image"; default by dimension.
        dicom_modalities: values of the DICOM attribute Modality (0008,0060) that files of this kind carry; empty: any.
        description: one line for people.

    Raises:
        InputError: a field breaks its rule; the message names it and shows the value.
    """

    name: str
    dimension: int
    input_shape: tuple[int, ...]
    intensity: str
    stored_dtype: str = ""
    stored_channels: int = 0
    augmentation: str = ""
    pretext: str = ""
    dicom_modalities: tuple[str, ...] = ()
    description: str = ""

    def __post_init__(self) -> None:
        _check_identity(self)
        self._set("input_shape", tuple(int(size) for size in self.input_shape))
        self._set("dicom_modalities", tuple(str(code) for code in self.dicom_modalities))
        for field_name, default in DIMENSION_RULES[self.dimension].items():
            self._set(field_name, getattr(self, field_name) or default)
        self._set("stored_dtype", self.stored_dtype or INTENSITY_DTYPES.get(self.intensity, ""))
        if self.dimension > 1:
            self._set("stored_channels", self.stored_channels or self.input_shape[0])
        _check_rules(self)

    def _set(self, field_name: str, value: Any) -> None:
        object.__setattr__(self, field_name, value)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of one stored sample: (L,) or (stored_channels, [Z,] H, W)."""
        return self.input_shape if self.dimension == 1 else (self.stored_channels, *self.input_shape[1:])

    @property
    def content_key(self) -> str:
        """Manifest key of an item's content: "text" for 1D, "image" otherwise."""
        return "text" if self.dimension == 1 else "image"

    def to_dict(self) -> dict[str, Any]:
        """The entry as JSON values; :meth:`from_dict` reads it back."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Modality:
        """Build an entry from JSON values without registering it.

        Raises:
            InputError: an unknown or missing key, or a value that breaks a rule.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(entry) - set(known))
        missing = [key for key in ("name", "dimension", "input_shape", "intensity") if key not in entry]
        if unknown or missing:
            raise InputError(
                f"modality entry {entry.get('name', '?')!r}: unknown keys {unknown}, missing keys {missing}; "
                f"the keys are {', '.join(known)}."
            )
        return cls(**entry)


def _check_identity(entry: Modality) -> None:
    if not isinstance(entry.name, str) or not _NAME.fullmatch(entry.name):
        raise InputError(f"modality name {entry.name!r}: use a letter a-z, then at most 39 of a-z, 0-9 and '_'.")
    if entry.dimension not in DIMENSION_RULES:
        raise InputError(f"modality {entry.name}: dimension must be 1, 2 or 3, got {entry.dimension!r}.")
    axes = DIMENSION_AXES[entry.dimension]
    shape = entry.input_shape
    sizes = tuple(shape) if isinstance(shape, Iterable) else ()
    if len(sizes) != len(axes) or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise InputError(
            f"modality {entry.name}: input_shape must be ({', '.join(axes)}) of positive integers, got {shape!r}."
        )


def _check_rules(entry: Modality) -> None:
    choices = {
        "intensity": DIMENSION_INTENSITIES[entry.dimension],
        "augmentation": DIMENSION_AUGMENTATIONS[entry.dimension],
        "pretext": (DIMENSION_RULES[entry.dimension]["pretext"],),
        "stored_dtype": ("uint16", "uint32") if entry.dimension == 1 else (INTENSITY_DTYPES.get(entry.intensity),),
    }
    for field_name, allowed in choices.items():
        if (value := getattr(entry, field_name)) not in allowed:
            options = ", ".join(str(option) for option in allowed)
            raise InputError(
                f"modality {entry.name}: {field_name} of a {entry.dimension}D entry must be one of: {options}; "
                f"got {value!r}."
            )
    if entry.dimension > 1 and entry.stored_channels not in (1, entry.input_shape[0]):
        raise InputError(
            f"modality {entry.name}: stored_channels must be 1 or the input's {entry.input_shape[0]}, "
            f"got {entry.stored_channels!r}."
        )


MODALITIES: dict[str, Modality] = {
    entry.name: entry
    for entry in (
        Modality(
            name="report",
            dimension=1,
            input_shape=(112,),
            intensity="tokens",
            description="Radiology reports and other medical text",
        ),
        Modality(
            name="xray",
            dimension=2,
            input_shape=(3, 224, 224),
            stored_channels=1,
            intensity="unit_range",
            dicom_modalities=("CR", "DX", "RG", "MG", "RF", "XA", "PX", "IO"),
            description="Projection radiographs",
        ),
        Modality(
            name="ct",
            dimension=3,
            input_shape=(1, 16, 192, 192),
            intensity="hounsfield",
            dicom_modalities=("CT",),
            description="Computed tomography",
        ),
        Modality(
            name="mri",
            dimension=3,
            input_shape=(1, 16, 192, 192),
            intensity="zscore",
            dicom_modalities=("MR",),
            description="Magnetic resonance imaging",
        ),
        Modality(
            name="pathology",
            dimension=2,
            input_shape=(3, 224, 224),
            intensity="unit_range",
            dicom_modalities=("SM",),
            description="Histopathology tiles, stained",
        ),
    )
}
"""Every registered modality by name, in the default order of pre-training stages."""
BUILT_IN: dict[str, Modality] = dict(MODALITIES)
"""The entries that this version of the package ships: files may name these without spelling them out."""


def register_modality(modality: Modality, *, replace: bool = False) -> Modality:
    """Add an entry to :data:`MODALITIES`; registering an equal entry again changes nothing.

    Raises:
        InputError: another entry has the name already and ``replace`` is false; the message lists the differing fields.
    """
    known = MODALITIES.get(modality.name)
    differing = [] if known is None else _differing_fields(known, modality)
    if differing and not replace:
        raise InputError(
            f"modality {modality.name!r} is registered already with another {', '.join(differing)}; "
            "choose another name, or pass replace=True."
        )
    MODALITIES[modality.name] = modality
    return modality


def _differing_fields(one: Modality, other: Modality) -> list[str]:
    mine, yours = one.to_dict(), other.to_dict()
    return [f"{key} ({mine[key]!r}, not {yours[key]!r})" for key in mine if mine[key] != yours[key]]


def get_modality(modality: str | Mapping[str, Any] | Modality, *, input_shape: Iterable[int] | None = None) -> Modality:
    """The entry for a name, an entry dict (a configuration's or a file's) or an entry itself.

    An entry under a new name is registered, so that its name works from then on. Under a known name a dict may be
    partial (missing keys come from the registry) and may differ from the registered entry in ``input_shape`` and
    ``description`` only; the registry keeps its own.

    Args:
        modality: name, mapping of the fields of :class:`Modality`, or an entry.
        input_shape: replaces the entry's input shape for this caller (one run); the registry is not changed.

    Raises:
        InputError: unknown name (the known ones are listed), a malformed entry, or one that contradicts the registry.
    """
    entry = _resolve(modality)
    return entry if input_shape is None else replace(entry, input_shape=_shape_tuple(entry.name, input_shape))


def _resolve(modality: str | Mapping[str, Any] | Modality) -> Modality:
    if isinstance(modality, str):
        if modality not in MODALITIES:
            raise InputError(
                f"modality {modality!r} is not registered; known: {', '.join(MODALITIES)}. "
                "Give a full entry (name, dimension, input_shape, intensity, ...) to add a new one."
            )
        return MODALITIES[modality]
    if isinstance(modality, Mapping):
        known = MODALITIES.get(modality.get("name", ""))
        modality = Modality.from_dict({**(known.to_dict() if known else {}), **modality})
    elif not isinstance(modality, Modality):
        raise InputError(f"modality must be a name, a mapping or a Modality, got {type(modality).__name__}.")
    return _reconcile(modality)


def _reconcile(entry: Modality) -> Modality:
    known = MODALITIES.get(entry.name)
    if known is None:
        return register_modality(entry)
    register_modality(replace(entry, input_shape=known.input_shape, description=known.description))
    return entry


def _shape_tuple(name: str, shape: Iterable[int]) -> tuple[int, ...]:
    try:
        return tuple(shape)
    except TypeError as error:
        raise InputError(f"modality {name}: input_shape must be a list of integers, got {shape!r}.") from error
