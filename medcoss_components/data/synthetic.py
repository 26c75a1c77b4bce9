"""Seeded phantoms and sentences with known geometry: small real files for tests and for trying a configuration.

Nothing here looks like a patient. An image item is one bright ellipse (2D) or ellipsoid (3D) inside a larger dim body;
its centre, radii and label stand in ``geometry.json`` beside the manifest. A text item is a sentence of fixed clauses.
For tasks, the class decides size and brightness or the words, or each image has a mask file of its ellipse, so that
both can be learned from a few items. Faults can be planted by name to test what the readers, the manifest check and the
store do with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medcoss_components.data.modalities import Modality, get_modality
from medcoss_components.data.regions import ANY, resolve_regions
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
PICTURE_LEVELS = (0.02, 0.4, 0.95)
VOLUME_SPACING = (2.5, 1.0, 1.0)
NUMBERS: dict[str, Callable[[int], float]] = {
    "training": lambda index: 2 * index,
    "validation": lambda index: 2 * index + 1,
    "testing": lambda index: index + 0.5,
}
"""Split -> the number in the sentence of its index-th item, never the same twice in a data set."""
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


def draw_phantom(
    shape: Sequence[int], label: str, generator: np.random.Generator, spacing=None, *, rank: float | None = None
) -> Phantom:
    """Draw an ellipse that lies inside the body; a "large" one has 1.5 to 2 times the radii of a "small" one.

    Args:
        rank: size from 0 (small) to 1 (large); None reads it from ``label``.
    """
    size = np.asarray(shape, dtype=float)
    rank = float(label != LABELS[0]) if rank is None else rank
    scale = 0.1 + 0.08 * rank
    radii = size * scale * generator.uniform(0.9, 1.1, len(size))
    centre = (size - 1) / 2 + size * generator.uniform(-0.12, 0.12, len(size))
    return Phantom(label, tuple(centre.round(3).tolist()), tuple(radii.round(3).tolist()), spacing)


def shells(shape: Sequence[int], phantom: Phantom, count: int) -> np.ndarray:
    """uint8 of ``shape``: 0 outside the ellipse, 1 to ``count`` from its outer shell to its core.

    The k-th ellipse has ``1 - k / count`` of the radii (k from 0).
    """
    numbers: np.ndarray = np.zeros(tuple(shape), np.uint8)
    for k in range(count):
        radii = [radius * (1 - k / count) for radius in phantom.radii]
        numbers[ellipse_mask(shape, phantom.centre, radii)] = k + 1
    return numbers


def render_phantom(
    shape: Sequence[int],
    phantom: Phantom,
    levels: tuple[float, float, float],
    generator: np.random.Generator,
    *,
    count: int = 1,
) -> np.ndarray:
    """Paint outside, body and ellipse at ``levels`` and add 2 % noise. Returns float32 of ``shape``.

    Of ``count`` shells (:func:`shells`) each is brighter than the one around it, the core has the highest level.
    """
    outside, body, bright = levels
    middle = [(size - 1) / 2 for size in shape]
    image: np.ndarray = np.full(tuple(shape), outside, np.float32)
    image[ellipse_mask(shape, middle, [0.42 * size for size in shape])] = body
    numbers = shells(shape, phantom, count)
    image[numbers > 0] = body + (bright - body) * numbers[numbers > 0] / count
    noise = generator.standard_normal(image.shape, dtype=np.float32) * 0.02 * (bright - outside)
    return np.clip(image + noise, min(levels), max(levels)).astype(np.float32)


def synthetic_sentence(label: str, number: float, generator: np.random.Generator) -> str:
    """One sentence of a subject, a finding that tells the label, an ending and ``number``, which makes it unique."""
    findings = FINDINGS.get(label) or [f"{verb} {label}" for verb in ("shows", "suggests", "is typical of")]
    parts = (SUBJECTS, findings, ENDINGS)
    return " ".join(str(generator.choice(part)) for part in parts) + f", {number} mm."


class _Writer:
    """Writes the items of one synthetic data set and remembers their geometry."""

    def __init__(
        self,
        *,
        folder: Path,
        modality: Modality,
        seed: int,
        shape: Sequence[int] | None,
        classes: Sequence[str] | None,
        values: Sequence[int],
    ) -> None:
        self.folder, self.modality, self.seed = folder, modality, seed
        default = (96, 80) if modality.dimension == 2 else (32, 64, 64)
        self.shape = tuple(shape or default)
        self.labels, self.fade, self.values = tuple(classes or LABELS), classes is not None, tuple(values)
        self.geometry: dict[str, Phantom] = {}

    def item(self, split: str, index: int) -> dict[str, Any]:
        label = self.labels[index % len(self.labels)]
        item_id = f"{split}-{index:03d}"
        generator = numpy_generator_for(self.seed, "synthetic", self.modality.name, split, index)
        content = self._content(item_id, label, NUMBERS[split](index), generator)
        return {"id": item_id, **content, "label": content.get("label", label), "group": f"group-{item_id}"}

    def _content(self, item_id: str, label: str, number: float, generator: np.random.Generator) -> dict[str, str]:
        if self.modality.dimension == 1:
            return {"text": synthetic_sentence(label, number, generator)}
        draw = self._picture if self.modality.dimension == 2 else self._volume
        paths = {"image": draw(item_id, label, generator)}
        if self.values:
            paths["label"] = self._mask(item_id)
        return {key: path.relative_to(self.folder).as_posix() for key, path in paths.items()}

    def _phantom(self, item_id: str, label: str, generator: np.random.Generator) -> Phantom:
        spacing = VOLUME_SPACING if self.modality.dimension == 3 else None
        phantom = draw_phantom(self.shape, label, generator, spacing, rank=self._rank(label))
        self.geometry[item_id] = phantom
        return phantom

    def _rank(self, label: str) -> float:
        """Place of a class among the classes, from 0 to 1."""
        return self.labels.index(label) / max(1, len(self.labels) - 1)

    def _render(
        self, item_id: str, label: str, levels: tuple[float, float, float], generator: np.random.Generator
    ) -> np.ndarray:
        """The image of a phantom; with classes of the caller's, later ones are also brighter."""
        phantom = self._phantom(item_id, label, generator)
        outside, body, bright = levels
        if self.fade:
            bright = body + (bright - body) * (0.4 + 0.6 * self._rank(label))
        count = max(1, len(self.values))
        return render_phantom(self.shape, phantom, (outside, body, bright), generator, count=count)

    def _mask(self, item_id: str) -> Path:
        """Write the shells of the phantom's ellipse with the mask values in turn."""
        numbers = shells(self.shape, self.geometry[item_id], len(self.values))
        mask = np.asarray((0, *self.values), np.uint8)[numbers]
        flat = self.modality.dimension == 2
        path = self.folder / "masks" / f"{item_id}{'.png' if flat else '.nii.gz'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if flat:
            write_picture(path, mask)
        else:
            write_nifti(path, mask, VOLUME_SPACING)
        return path

    def _picture(self, item_id: str, label: str, generator: np.random.Generator) -> Path:
        grey = self._render(item_id, label, PICTURE_LEVELS, generator)
        path = self.folder / "files" / f"{item_id}.png"
        if self.modality.stored_channels == 1:
            write_picture(path, (grey * 65535).astype(np.uint16))
        else:
            tint = np.asarray((1.0, 0.6, 0.85), np.float32)
            write_picture(path, (grey[..., None] * tint * 255).astype(np.uint8))
        return path

    def _volume(self, item_id: str, label: str, generator: np.random.Generator) -> Path:
        levels, unit = VOLUME_LEVELS.get(self.modality.intensity, VOLUME_LEVELS["zscore"])
        volume = self._render(item_id, label, levels, generator)
        path = self.folder / "files" / f"{item_id}.nii.gz"
        write_nifti(path, volume.astype(np.int16) if unit == "HU" else volume, VOLUME_SPACING)
        return path


def synthetic_manifest(
    folder: str | Path,
    modality: str | Modality | Mapping[str, Any] = "xray",
    *,
    count: int = 8,
    validation: int | None = None,
    testing: int = 0,
    classes: Sequence[str] | None = None,
    regions: Mapping[str, Sequence[int] | str] | None = None,
    seed: int = 0,
    shape: Sequence[int] | None = None,
    defects: Sequence[str] = (),
    preparation: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``count`` training items, some validation items and ``manifest.json`` below ``folder``.

    Every item has a group of its own and a label, "small" or "large" in turn. Equal arguments write equal content.

    Args:
        modality: registered name, entry or its dictionary.
        validation: number of validation items; None is a quarter of ``count``, at least 2 and one of each class.
        testing: number of testing items.
        classes: names that the items are labelled with in turn. Later classes have larger and brighter ellipses;
            sentences name their class.
        regions: region -> its mask values, or "any" for every value that is not 0. The label of an item is then the
            path of its mask file (``masks/<id>.png`` or ``.nii.gz``): the shells of the ellipse hold the values in
            ascending order from outside inwards, so that {"liver": [1, 2], "tumour": [2]} is an organ with a core.
        shape: (H, W) or (Z, Y, X) of the files; None is (96, 80) or (32, 64, 64).
        defects: names from ``DEFECTS``; the k-th name spoils training item k (``training-000``, ``training-001``, ...).
        preparation: settings to carry in the manifest.

    Returns:
        path of ``manifest.json``; ``geometry.json`` beside it maps image item ids to :class:`Phantom` fields.

    Raises:
        InputError: for a defect that does not exist for the modality, more defects than training items, classes that
            are no different names, or mask values that are not 1 to 255.
    """
    entry = get_modality(modality)
    _check_defects(defects, entry, count)
    values = _mask_values(classes, regions, entry)
    folder = Path(folder)
    (folder / "files").mkdir(parents=True, exist_ok=True)
    writer = _Writer(folder=folder, modality=entry, seed=seed, shape=shape, classes=classes, values=values)
    validation = max(2, count // 4, len(classes or ())) if validation is None else validation
    training = [writer.item("training", index) for index in range(count)]
    held_out = [writer.item("validation", index) for index in range(validation)]
    tested = [writer.item("testing", index) for index in range(testing)]
    for index, name in enumerate(defects):
        _plant(name, index, training, held_out, folder, entry)
    write_json(folder / "geometry.json", {key: asdict(value) for key, value in writer.geometry.items()})
    reference = entry.name if isinstance(modality, str) else entry.to_dict()
    document = _describe(entry, seed) | {"modality": reference}
    document |= {"training": training, "validation": held_out, "testing": tested}
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


def _mask_values(
    classes: Sequence[str] | None, regions: Mapping[str, Sequence[int] | str] | None, entry: Modality
) -> list[int]:
    """The mask values that regions name, in ascending order; empty without regions."""
    if classes is not None and (not classes or len(set(classes)) < len(classes)):
        raise InputError(f"classes must be one or more different names, received {list(classes)}.")
    if regions is None:
        return []
    if classes is not None or entry.dimension == 1:
        raise InputError(f"regions: masks are for images and exclude classes; modality {entry.name!r}, {classes=}.")
    named = {name: values for name, values in resolve_regions(regions).items() if regions[name] != ANY}
    values = sorted({value for listed in named.values() for value in listed})
    return values or [1]


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
