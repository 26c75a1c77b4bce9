"""Tiles out of whole-slide images: tissue is found on a coarse view, then some tiles of it are read at one resolution.

Slides are read by OpenSlide through MONAI's ``WSIReader``, a region at a time: what is in memory at once depends on the
tile, never on the slide. Of one slide the same settings always give the same tiles.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from medcoss_components.data.readers_common import naming_file, require_file
from medcoss_components.errors import InputError

PICTURES = {"jpeg": ".jpg", "png": ".png"}
TILING_VERSION = 1
"""Raise it when the same settings would give other tiles: it is part of the names of made files."""
CELLS = 8
"""The coarse view has this many cells along a side of a tile."""
BLOCK = 8
"""Tiles along a side of the region that the coarse view reads at once."""
PLAUSIBLE = (0.05, 4.0)
"""Micrometres per pixel that a slide's header may say."""
COARSER = 1.1
"""A slide may be scanned this much coarser than its tiles are wanted."""
LEAST_COLOUR, DARKEST, BLUEST = 20, 60, 80
"""Of 255: least difference of a stained cell's channels, its brightest channel, and by how much blue exceeds red."""


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How a slide is cut.

    Args:
        size: pixels along a tile's side.
        microns_per_pixel: of the tiles.
        at_most: tiles of a slide; which ones is drawn with ``seed``.
        least_tissue: share of a tile that must be stained tissue, 0 to 1.
        seed: of the choice.
        slide_microns_per_pixel: of slides whose header does not say; None: these cannot be read.
        picture: "jpeg" (quality 95, full colour resolution) or "png".

    Raises:
        InputError: a value outside its range.
    """

    size: int = 224
    microns_per_pixel: float = 0.5
    at_most: int = 100
    least_tissue: float = 0.5
    seed: int = 0
    slide_microns_per_pixel: float | None = None
    picture: str = "jpeg"

    def __post_init__(self) -> None:
        low, high = PLAUSIBLE
        rules = {
            "size": (_whole(self.size, CELLS), f"a whole number from {CELLS}"),
            "at_most": (_whole(self.at_most, 1), "a whole number from 1"),
            "microns_per_pixel": (_within(self.microns_per_pixel, low, high), f"from {low} to {high}"),
            "least_tissue": (_within(self.least_tissue, 0, 1), "from 0 to 1"),
            "slide_microns_per_pixel": (
                self.slide_microns_per_pixel is None or _within(self.slide_microns_per_pixel, low, high),
                f"null, or from {low} to {high}",
            ),
            "picture": (self.picture in PICTURES, f"one of {', '.join(PICTURES)}"),
        }
        for name, (good, rule) in rules.items():
            if not good:
                raise InputError(f"{name}: must be {rule}, got {getattr(self, name)!r}.")

    @property
    def key(self) -> list[Any]:
        """JSON values that decide the tiles of a slide."""
        return [TILING_VERSION, asdict(self)]


def _whole(value: Any, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def _within(value: Any, low: float, high: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def require_openslide() -> None:
    """Say what to install where OpenSlide is missing.

    Raises:
        InputError: the package or the library behind it is missing.
    """
    try:
        import_module("openslide")
    except (ImportError, OSError) as error:  # OSError: the package is there, its library is not
        raise InputError(
            "openslide: whole slides need it and it is not installed. Run: pip install 'medcoss-components[datasets]'"
        ) from error


def draw(names: Iterable[str], at_most: int, *, seed: int = 0) -> list[str]:
    """Some of the names, in their order; which ones depends on the names and the seed alone.

    >>> draw("abcdef", 2, seed=1) == draw("fedcba", 2, seed=1)
    True
    """

    def rank(name: str) -> tuple[bytes, str]:
        return hashlib.sha256(f"{seed} {name}".encode()).digest(), name

    return sorted(sorted(names, key=rank)[:at_most])


def write_tiles(folder: Path, *, slide: Path, tiling: Tiling) -> None:
    """Write tiles of a slide as ``r<row>c<column>.jpg`` (or ``.png``) of the slide's grid of tiles.

    Args:
        folder: exists and is empty.
        slide: file that OpenSlide reads.
        tiling: how it is cut.

    Raises:
        InputError: a missing, truncated or unknown file, no or no plausible resolution, one that is coarser than the
            tiles, or no tissue.
    """
    with _opened(slide, tiling) as opened:
        shares = opened.tissue()
        rows, columns = np.nonzero(shares >= max(tiling.least_tissue, 1e-9))
        names = {f"r{row:04d}c{column:04d}": (row, column) for row, column in zip(rows, columns, strict=True)}
        if not names:
            raise InputError(
                f"{slide}: none of its {shares.size} tiles is tissue to {tiling.least_tissue:.0%} (least_tissue)."
            )
        for name in draw(names, tiling.at_most, seed=tiling.seed):
            row, column = names[name]
            _save(opened.tile(int(row), int(column)), folder / f"{name}{PICTURES[tiling.picture]}")


def _save(tile: np.ndarray, path: Path) -> None:
    from PIL import Image

    options: dict[str, Any] = (
        {"quality": 95, "subsampling": 0} if path.suffix == PICTURES["jpeg"] else {"compress_level": 1}
    )
    Image.fromarray(tile).save(path, **options)


@contextmanager
def _opened(path: Path, tiling: Tiling) -> Iterator[_Slide]:
    """Open a slide; errors name it and quote none of its header."""
    from monai.data.wsi_reader import WSIReader

    reader = WSIReader(backend="openslide", channel_dim=-1, mode="RGBA")
    with naming_file(require_file(path), show_detail=False):
        image = reader.read(path)
    try:
        yield _Slide(path, reader, image, tiling)
    finally:
        image.close()


class _Slide:
    """An open slide under a grid of square tiles from its upper left corner; what does not fill a tile is left out."""

    def __init__(self, path: Path, reader: Any, image: Any, tiling: Tiling) -> None:
        self.path, self.reader, self.image, self.tiling = path, reader, image, tiling
        wanted = tiling.microns_per_pixel
        spacing = self._spacing()
        if max(spacing) > COARSER * wanted:
            raise InputError(
                f"{path}: scanned at {max(spacing):.3g} um per pixel, coarser than the {wanted:g} um that its tiles "
                "shall have (microns_per_pixel)."
            )
        self.extent = (tiling.size * wanted / spacing[0], tiling.size * wanted / spacing[1])
        height, width = reader.get_size(image, 0)
        self.grid = (int(height / self.extent[0] + 1e-6), int(width / self.extent[1] + 1e-6))

    def _spacing(self) -> tuple[float, float]:
        """(row, column) micrometres per pixel of the finest level."""
        try:
            found = self.reader.get_mpp(self.image, 0)
        except Exception:  # without the entries, or with ones that are no numbers, MONAI raises several kinds
            found = (0.0, 0.0)
        if all(PLAUSIBLE[0] <= value <= PLAUSIBLE[1] for value in found):
            return float(found[0]), float(found[1])
        if self.tiling.slide_microns_per_pixel is None:
            raise InputError(
                f"{self.path}: its header does not say how large a pixel is, or says what cannot be. Give "
                "slide_microns_per_pixel if you know it."
            )
        return self.tiling.slide_microns_per_pixel, self.tiling.slide_microns_per_pixel

    def tissue(self) -> np.ndarray:
        """(rows, columns) float32 of the grid: share of each tile that is stained tissue."""
        shares: np.ndarray = np.zeros(self.grid, np.float32)
        for row in range(0, self.grid[0], BLOCK):
            for column in range(0, self.grid[1], BLOCK):
                block = shares[row : row + BLOCK, column : column + BLOCK]
                view = self._read(row, column, tiles=BLOCK, pixels=BLOCK * CELLS, smooth=False)
                cells = is_tissue(view).reshape(BLOCK, CELLS, BLOCK, CELLS).mean(axis=(1, 3))
                block[:] = cells[: block.shape[0], : block.shape[1]]
        return shares

    def tile(self, row: int, column: int) -> np.ndarray:
        """(size, size, 3) uint8 RGB."""
        return self._read(row, column, tiles=1, pixels=self.tiling.size, smooth=True)

    def _read(self, row: int, column: int, *, tiles: int, pixels: int, smooth: bool) -> np.ndarray:
        """(pixels, pixels, 3) uint8: ``tiles`` x ``tiles`` tiles of the grid, read from the level next finer."""
        from PIL import Image

        level = self._level(tiles * min(self.extent) / pixels)
        ratio = self.reader.get_downsample_ratio(self.image, level)
        where = (round(row * self.extent[0]), round(column * self.extent[1]))
        size = tuple(max(1, round(tiles * extent / ratio)) for extent in self.extent)
        with naming_file(self.path, show_detail=False):
            values, _ = self.reader.get_data(self.image, location=where, size=size, level=level)
        region = Image.fromarray(np.asarray(values, np.uint8))  # RGBA; nothing was scanned where it is transparent
        opaque = Image.alpha_composite(Image.new("RGBA", region.size, "white"), region).convert("RGB")
        rule = Image.Resampling.BICUBIC if smooth else Image.Resampling.BOX
        return np.asarray(opaque.resize((pixels, pixels), rule))

    def _level(self, downsample: float) -> int:
        """The coarsest level that is no coarser than ``downsample``; 1 % counts as rounding."""
        ratios = [self.reader.get_downsample_ratio(self.image, level) for level in range(self.image.level_count)]
        return max((level for level, ratio in enumerate(ratios) if ratio <= 1.01 * downsample), default=0)


def is_tissue(view: np.ndarray) -> np.ndarray:
    """Which pixels of a coarse view are stained: coloured, not black, and neither green nor blue as markers are.

    Args:
        view: (..., 3) uint8 RGB.

    Returns:
        (...) bool.

    >>> glass, eosin, haematoxylin, pen = [240, 238, 241], [225, 160, 190], [110, 70, 150], [40, 160, 60]
    >>> is_tissue(np.array([glass, eosin, haematoxylin, pen], np.uint8)).tolist()
    [False, True, True, False]
    """
    red, green, blue = np.moveaxis(view.astype(np.int16), -1, 0)
    brightest = np.maximum(np.maximum(red, green), blue)
    darkest = np.minimum(np.minimum(red, green), blue)
    coloured = (brightest - darkest >= LEAST_COLOUR) & (brightest >= DARKEST)
    return coloured & (green < brightest) & (blue - red <= BLUEST)
