"""Small data sets of histology in the layout of their publishers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

WHITE, RED, VIOLET = (245, 244, 246), (200, 40, 60), (110, 60, 150)


def tile(colour, *, size=(224, 224), number=0):
    """(H, W, 3) uint8 of one colour; the number makes its content differ in the last eight rows."""
    picture = np.full((*size, 3), colour, np.uint8)
    picture[-8:, :8, 0], picture[-8:, 8:16, 0] = number // 256, number % 256
    return picture


def disc(size, *, radius, inside=RED, outside=WHITE, centre=None):
    """(H, W, 3) uint8 with a disc, and its (H, W) bool."""
    rows, columns = np.indices(size)
    middle = centre or ((size[0] - 1) / 2, (size[1] - 1) / 2)
    within = (rows - middle[0]) ** 2 + (columns - middle[1]) ** 2 <= radius**2
    return np.where(within[..., None], np.uint8(inside), np.uint8(outside)), within


def extent(mask):
    """(height, width) of the box around a mask."""
    return tuple(int(np.ptp(index)) + 1 for index in np.nonzero(mask))


def save(path, picture, **options):
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, **options)
    return path


def cut_short(path, size):
    """Keep the first bytes of a file."""
    path.write_bytes(path.read_bytes()[:size])


def write_nct(root: Path, *, per_class=2, folders=("NCT-CRC-HE-100K", "CRC-VAL-HE-7K"), suffix=".tif"):
    """Tiles of all classes in the folders; the tiles of class k have the blue value 20 k."""
    classes = ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")
    for split, folder in enumerate(folders):
        for kind, label in enumerate(classes):
            for number in range(per_class):
                letters = "".join(chr(65 + digit) for digit in (split, kind, number, 3, 1, 4, 1, 5))
                picture = tile((200, 40, 20 * kind), number=1000 * split + number)
                save(root / folder / label / f"{label}-{letters}{suffix}", picture)
    return root


def write_glas(root: Path, patients):
    """Pictures of 40 x 60 pixels (height, width) with a round gland of number 3 each, and Grade.csv.

    Args:
        patients: name such as train_1 -> patient.
    """
    lines = ["name,patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)"]
    for number, (name, patient) in enumerate(patients.items()):
        picture, gland = disc((40, 60), radius=12)
        picture[0, 0] = 200 + number
        save(root / f"{name}.bmp", picture)
        save(root / f"{name}_anno.bmp", gland.astype(np.uint8) * 3)
        lines.append(f"{name},{patient}, benign, adenomatous")
    (root / "Grade.csv").write_bytes("\r".join(lines).encode())  # as the publisher's file has it
    return root


def write_slide(path: Path, picture, *, spacing=0.25, levels=3, photometric="rgb"):
    """A tiled TIFF pyramid as scanners write it, each level half as large as the one before.

    Args:
        picture: (H, W, 3) uint8 of the finest level.
        spacing: micrometres per pixel of it; None: no resolution is written.
        levels: of the pyramid.
    """
    import tifffile

    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as writer:
        for level in range(levels):
            step = 2**level
            scale = {} if spacing is None else {"resolution": (1e4 / (spacing * step),) * 2, "resolutionunit": 3}
            writer.write(
                picture[::step, ::step],
                tile=(64, 64),
                photometric=photometric,
                subfiletype=1 if level else 0,
                **scale,
            )
    return path
