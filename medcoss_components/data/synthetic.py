"""Seeded phantoms and sentences with known geometry: small real files for tests and for trying a configuration.

Nothing here looks like a patient. An image item is one bright ellipse (2D) or ellipsoid (3D) inside a larger dim body;
its centre, radii and label stand in ``geometry.json`` beside the manifest. A text item is a sentence of fixed clauses.
Faults can be planted by name to test what the readers, the manifest check and the store do with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medcoss_components.data.modalities import Modality, get_modality
from medcoss_components.data.writers import write_dicom, write_dicom_series, write_nifti, write_picture
from medcoss_components.errors import InputError
from medcoss_components.files import write_json
from medcoss_components.randomness import numpy_generator_for

DEFECTS = (
    "truncated",
    "nan",
    "missing_file",
    "wrong_modality",
    "empty_text",
    "duplicate_content",
    "duplicate_id",
    "group_across_splits",
)
ALLOWED_DEFECTS = {
    1: ("empty_text", "duplicate_content", "duplicate_id", "group_across_splits"),
    2: tuple(name for name in DEFECTS if name not in ("empty_text", "nan")),
    3: tuple(name for name in DEFECTS if name != "empty_text"),
}
LABELS = ("small", "large")
# (outside, body, ellipse) and the unit, per intensity rule; 2D pictures use the whole range of their integer type.
VOLUME_LEVELS: dict[str, tuple[tuple[float, float, float], str]] = {
    "hounsfield": ((-1000.0, 40.0, 700.0), "HU"),
    "zscore": ((0.0, 400.0, 900.0), "a.u."),
}
VOLUME_SPACING = (2.5, 1.0, 1.0)
SUBJECTS = ("The left lung", "The right lung", "The heart", "The aorta", "The liver", "The left kidney", "The spine")
FINDINGS = {
    "small": ("shows a small opacity", "is slightly enlarged", "contains a tiny nodule", "has a faint calcification"),
    "large": ("shows a large opacity", "is markedly enlarged", "contains a bulky mass", "has a dense calcification"),
}
ENDINGS = ("since the last study", "without change", "as described before", "and needs follow-up", "at its base")


@dataclass(frozen=True)
class Phantom:
    """Known geometry of one image item: centre and radii of the bright ellipse as indices, in array axis order."""

    label: str
    centre: tuple[float, ...]
    radii: tuple[float, ...]
    spacing: tuple[float, ...] | None


def ellipse_mask(shape: Sequence[int], centre: Sequence[float], radii: Sequence[float]) -> np.ndarray:
    """Boolean array of ``shape``: True where sum(((index - centre) / radii)^2) <= 1. Any number of axes.

    >>> int(ellipse_mask((5, 5), (2, 2), (1, 1)).sum())
    5
    """
    axes = np.ogrid[tuple(slice(0, size) for size in shape)]
    distance = sum(((axis - c) / r) ** 2 for axis, c, r in zip(axes, centre, radii, strict=True))
    return np.asarray(distance <= 1.0)


def draw_phantom(shape: Sequence[int], label: str, generator: np.random.Generator, spacing=None) -> Phantom:
    """Draw an ellipse that lies inside the body; a "large" one has 1.5 to 2 times the radii of a "small" one."""
    size = np.asarray(shape, dtype=float)
    scale = 0.1 if label == LABELS[0] else 0.18
    radii = size * scale * generator.uniform(0.9, 1.1, len(size))
    centre = (size - 1) / 2 + size * generator.uniform(-0.12, 0.12, len(size))
    return Phantom(label, tuple(centre.round(3).tolist()), tuple(radii.round(3).tolist()), spacing)


def render_phantom(
    shape: Sequence[int], phantom: Phantom, levels: tuple[float, float, float], generator: np.random.Generator
) -> np.ndarray:
    """Paint outside, body and ellipse at ``levels`` and add 2 % noise. Returns float32 of ``shape``."""
    outside, body, bright = levels
    middle = [(size - 1) / 2 for size in shape]
    image: np.ndarray = np.full(tuple(shape), outside, np.float32)
    image[ellipse_mask(shape, middle, [0.42 * size for size in shape])] = body
    image[ellipse_mask(shape, phantom.centre, phantom.radii)] = bright
    noise = generator.standard_normal(image.shape, dtype=np.float32) * 0.02 * (bright - outside)
    return np.clip(image + noise, min(levels), max(levels)).astype(np.float32)


def synthetic_sentence(label: str, number: int, generator: np.random.Generator) -> str:
    """One sentence of a subject, a finding that tells the label, an ending and ``number``, which makes it unique."""
    parts = (SUBJECTS, FINDINGS[label], ENDINGS)
    return " ".join(str(generator.choice(part)) for part in parts) + f", {number} mm."


class _Writer:
    """Writes the items of one synthetic data set and remembers their geometry."""

    def __init__(self, *, folder: Path, modality: Modality, seed: int, shape: Sequence[int] | None) -> None:
        self.folder, self.modality, self.seed = folder, modality, seed
        default = (96, 80) if modality.dimension == 2 else (32, 64, 64)
        self.shape = tuple(shape or default)
        self.geometry: dict[str, Phantom] = {}

    def item(self, split: str, index: int) -> dict[str, Any]:
        label = LABELS[index % len(LABELS)]
        item_id = f"{split}-{index:03d}"
        generator = numpy_generator_for(self.seed, "synthetic", self.modality.name, split, index)
        content = self._content(item_id, label, 2 * index + (split != "training"), generator)
        return {"id": item_id, **content, "label": label, "group": f"group-{item_id}"}

    def _content(self, item_id: str, label: str, number: int, generator: np.random.Generator) -> dict[str, str]:
        if self.modality.dimension == 1:
            return {"text": synthetic_sentence(label, number, generator)}
        draw = self._picture if self.modality.dimension == 2 else self._volume
        path = draw(item_id, label, generator)
        return {"image": path.relative_to(self.folder).as_posix()}

    def _picture(self, item_id: str, label: str, generator: np.random.Generator) -> Path:
        phantom = self.geometry[item_id] = draw_phantom(self.shape, label, generator)
        levels = (0.02, 0.4, 0.95)
        grey = render_phantom(self.shape, phantom, levels, generator)
        path = self.folder / "files" / f"{item_id}.png"
        if self.modality.stored_channels == 1:
            write_picture(path, (grey * 65535).astype(np.uint16))
        else:
            tint = np.asarray((1.0, 0.6, 0.85), np.float32)
            write_picture(path, (grey[..., None] * tint * 255).astype(np.uint8))
        return path

    def _volume(self, item_id: str, label: str, generator: np.random.Generator) -> Path:
        phantom = self.geometry[item_id] = draw_phantom(self.shape, label, generator, VOLUME_SPACING)
        levels, unit = VOLUME_LEVELS.get(self.modality.intensity, VOLUME_LEVELS["zscore"])
        volume = render_phantom(self.shape, phantom, levels, generator)
        path = self.folder / "files" / f"{item_id}.nii.gz"
        write_nifti(path, volume.astype(np.int16) if unit == "HU" else volume, VOLUME_SPACING)
        return path


def synthetic_manifest(
    folder: str | Path,
    modality: str | Modality | Mapping[str, Any] = "xray",
    *,
    count: int = 8,
    validation: int | None = None,
    seed: int = 0,
    shape: Sequence[int] | None = None,
    defects: Sequence[str] = (),
    preparation: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``count`` training items, some validation items and ``manifest.json`` below ``folder``.

    Every item has a group of its own and a label, "small" or "large" in turn. Equal arguments write equal content.

    Args:
        modality: registered name, entry or its dictionary.
        validation: number of validation items; None is a quarter of ``count``, at least 2.
        shape: (H, W) or (Z, Y, X) of the files; None is (96, 80) or (32, 64, 64).
        defects: names from ``DEFECTS``; the k-th name spoils training item k (``training-000``, ``training-001``, ...).
        preparation: settings to carry in the manifest.

    Returns:
        path of ``manifest.json``; ``geometry.json`` beside it maps image item ids to :class:`Phantom` fields.

    Raises:
        InputError: for a defect that does not exist for the modality, or more defects than training items.
    """
    entry = get_modality(modality)
    _check_defects(defects, entry, count)
    folder = Path(folder)
    (folder / "files").mkdir(parents=True, exist_ok=True)
    writer = _Writer(folder=folder, modality=entry, seed=seed, shape=shape)
    validation = max(2, count // 4) if validation is None else validation
    training = [writer.item("training", index) for index in range(count)]
    held_out = [writer.item("validation", index) for index in range(validation)]
    for index, name in enumerate(defects):
        _plant(name, index, training, held_out, folder, entry)
    write_json(folder / "geometry.json", {key: asdict(value) for key, value in writer.geometry.items()})
    reference = entry.name if isinstance(modality, str) else entry.to_dict()
    document = _describe(entry, seed) | {"modality": reference, "training": training, "validation": held_out}
    write_json(folder / "manifest.json", document | ({"preparation": dict(preparation)} if preparation else {}))
    return folder / "manifest.json"


def _describe(entry: Modality, seed: int) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "name": f"synthetic-{entry.name}",
        "version": f"{seed}",
        "licence": "CC0-1.0",
        "source": "medcoss_components.data.synthetic",
        "attribution": "Generated phantoms and sentences; no person's data.",
        "intensity_unit": VOLUME_LEVELS.get(entry.intensity, ((), "a.u."))[1],
        "testing": [],
    }


def _check_defects(defects: Sequence[str], entry: Modality, count: int) -> None:
    allowed = ALLOWED_DEFECTS[entry.dimension]
    for name in defects:
        if name not in allowed:
            raise InputError(f"defects: {name!r} does not exist for modality {entry.name!r}; use one of {allowed}.")
    if len(defects) > count:
        raise InputError(f"defects: {len(defects)} names for count={count} training items. Raise count.")


def _plant(
    name: str, index: int, training: list[dict[str, Any]], held_out: list[dict[str, Any]], folder: Path, entry: Modality
) -> None:
    """Spoil training item ``index``; duplicates copy the last training item, a shared group is a validation item's."""
    item = training[index]
    path = folder / item.get("image", "")
    if name == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif name == "missing_file":
        path.unlink()
    elif name == "empty_text":
        item["text"] = "  "
    elif name == "duplicate_id":
        item["id"] = training[-1]["id"]
    elif name == "group_across_splits":
        item["group"] = held_out[0]["group"]
    elif name == "duplicate_content":
        _copy_content(item, training[-1], folder)
    elif name == "nan":
        _spoil_with_nan(path)
    else:
        item["image"] = _wrong_modality(path, entry).relative_to(folder).as_posix()


def _copy_content(item: dict[str, Any], other: dict[str, Any], folder: Path) -> None:
    if "text" in item:
        item["text"] = other["text"]
    else:
        (folder / item["image"]).write_bytes((folder / other["image"]).read_bytes())


def _spoil_with_nan(path: Path) -> None:
    import nibabel

    image = nibabel.load(str(path))
    volume = np.asarray(image.dataobj, dtype=np.float32).T.copy()
    volume[volume.shape[0] // 2, :4, :4] = np.nan
    write_nifti(path, volume, VOLUME_SPACING)


def _wrong_modality(path: Path, entry: Modality) -> Path:
    """Replace the file by an ultrasound in DICOM form: no modality of the project reads that code."""
    path.unlink()
    target = path.with_name(path.name.split(".")[0])
    picture: np.ndarray = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    if entry.dimension == 3:
        write_dicom_series(target, np.stack([picture] * 16), modality="US")
        return target
    target = target.with_suffix(".dcm")
    write_dicom(target, picture, modality="US")
    return target
