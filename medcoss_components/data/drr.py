"""Digitally reconstructed radiographs: project a CT volume as an X-ray tube and a flat detector would.

A DRR is computed, not acquired: it has no scatter, no detector noise and the resolution of the CT. File names, item ids
and documents call it a DRR wherever it appears.

The geometry is a fan beam: in every axial slice rays leave one source point and reach one detector row, so near parts
look larger than far ones; between slices rays are parallel. A view is a turn of the body about its long axis, after the
body was leant by a small angle about its left-right axis. Along a ray (Beer-Lambert):

    mu = mu_water * max(0, 1 + HU / 1000)                    linear attenuation, 1/mm
    line = integral of mu along the ray                      no unit
    transmission = exp(-line);  grey = 1 - transmission ** exposure

``exposure`` < 1 is the film's response: it spreads the thick parts of a chest over the grey scale. Pictures are seen as
on a light box for turn 0 (postero-anterior): head up, the patient's left at the viewer's right.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from medcoss_components.errors import InputError

MU_WATER = 0.02
"""Linear attenuation of water in 1/mm at about 65 keV effective energy (a 120 kV tube)."""
AIR = -1000
SOURCE_DISTANCE = 1500.0
"""Source to rotation axis in millimetres: a chest stand at 1.8 m."""


@dataclass(frozen=True, kw_only=True)
class View:
    """One direction of projection.

    Args:
        turn: degrees about the body's long axis; 0 looks from the back to the front (postero-anterior).
        lean: degrees about the left-right axis, head towards the front is positive.
    """

    turn: float
    lean: float = 0.0

    @property
    def name(self) -> str:
        """Part of a file name, for example ``drr-turn045-lean+08``."""
        return f"drr-turn{self.turn % 360:03.0f}-lean{self.lean:+03.0f}"


def view_grid(*, turns: int, leans: Sequence[float] = (0.0,)) -> list[View]:
    """``turns`` directions over the full circle for every lean, each lean offset so that no two views share a turn.

    >>> [view.turn for view in view_grid(turns=2, leans=(0, 5))]
    [0.0, 180.0, 90.0, 270.0]
    """
    step = 360.0 / turns
    offsets = [step * index / len(leans) for index in range(len(leans))]
    return [View(turn=k * step + o, lean=lean) for lean, o in zip(leans, offsets, strict=True) for k in range(turns)]


def attenuation_from_hounsfield(volume: np.ndarray, *, mu_water: float = MU_WATER) -> np.ndarray:
    """Linear attenuation in 1/mm, float32, never negative: ``mu_water * max(0, 1 + HU / 1000)``.

    >>> attenuation_from_hounsfield(np.array([-2048, -1000, 0, 1000])).tolist() == [0, 0, *np.float32([0.02, 0.04])]
    True
    """
    return (mu_water * np.clip(1.0 + volume.astype(np.float32) / 1000.0, 0.0, None)).astype(np.float32)


def body_mask(volume: np.ndarray, *, threshold: float = -400.0, opening: int = 2) -> np.ndarray:
    """Where the body is: without the table, clothes and the air around; lungs and bowel gas belong to the body.

    Tissue above ``threshold`` is opened in every slice (cuts thin sheets such as the table top), the largest connected
    part is kept, grown back and its holes are filled slice by slice.

    Args:
        volume: (Z, Y, X) in HU.
        opening: radius in voxels.

    Returns:
        boolean (Z, Y, X).

    Raises:
        InputError: when no voxel is above the threshold.
    """
    from scipy import ndimage

    tissue = volume > threshold
    disk = ndimage.iterate_structure(ndimage.generate_binary_structure(2, 1), opening)[None]
    opened = ndimage.binary_erosion(tissue, disk)
    labels, count = ndimage.label(opened)
    if count == 0:
        raise InputError(
            f"volume: no tissue above {threshold:g} HU; is the unit Hounsfield? Got maximum {volume.max():g}."
        )
    largest = 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    grown = ndimage.binary_dilation(labels == largest, disk) & tissue
    return np.stack([ndimage.binary_fill_holes(plane) for plane in grown])


def resample_isotropic(volume: np.ndarray, spacing: Sequence[float], *, voxel: float) -> np.ndarray:
    """Resample (Z, Y, X) of ``spacing`` (z, y, x) to cubes of ``voxel`` millimetres, linearly (averaging when smaller).

    Returns:
        float32 (Z', Y', X') with Z' = round(Z * spacing_z / voxel), at least 1.
    """
    size = [max(1, round(n * s / voxel)) for n, s in zip(volume.shape, spacing, strict=True)]
    tensor = torch.from_numpy(volume.astype(np.float32))[:, None]
    tensor = interpolate(tensor, size=size[1:], mode="bilinear", antialias=True, align_corners=False)
    planes = tensor[:, 0].reshape(1, 1, volume.shape[0], -1)
    planes = interpolate(planes, size=(size[0], planes.shape[-1]), mode="bilinear", antialias=True, align_corners=False)
    return planes.reshape(size).numpy()


def _lean(volume: Tensor, degrees: float) -> Tensor:
    """Rotate (Z, Y, X) about the X axis through the middle, zeros from outside; head to the front is positive."""
    if degrees == 0:
        return volume
    depth, height, _ = volume.shape
    angle = np.deg2rad(degrees)
    z, y = torch.meshgrid(torch.arange(depth) - (depth - 1) / 2, torch.arange(height) - (height - 1) / 2, indexing="ij")
    source_z = z * np.cos(angle) - y * np.sin(angle)
    source_y = z * np.sin(angle) + y * np.cos(angle)
    grid = torch.stack([source_y / (height / 2), source_z / (depth / 2)], dim=-1)[None].float()
    sampled = grid_sample(volume.permute(2, 0, 1)[None], grid, align_corners=False, padding_mode="zeros")
    return sampled[0].permute(1, 2, 0).contiguous()


def fan_beam_grid(*, size: int, turn: float, source_distance: float) -> tuple[Tensor, Tensor]:
    """Sampling points of one slice for all rays, and the length of one step on every ray.

    The slice is square with ``size`` voxels per side; lengths are in voxels. Rays start at distance ``source_distance``
    from the slice's centre and pass through ``size`` equally spaced points of the line through the centre. They are
    sampled at ``size`` equally spaced depths.

    Returns:
        grid (1, size depths, size columns, 2) as (x, y) in [-1, 1] for ``grid_sample(align_corners=False)``, float32;
        step (size,) >= 1: distance between two samples of a ray.
    """
    axis = torch.arange(size) - (size - 1) / 2
    depth, column = torch.meshgrid(axis, axis, indexing="ij")
    across = column * (source_distance + depth) / source_distance
    angle = np.deg2rad(turn)
    x = across * np.cos(angle) - depth * np.sin(angle)
    y = across * np.sin(angle) + depth * np.cos(angle)
    step = torch.sqrt(1 + (axis / source_distance) ** 2)
    return (torch.stack([x, y], dim=-1)[None] / (size / 2)).float(), step.float()


def project(attenuation: Tensor, view: View, *, voxel: float, source_distance: float = SOURCE_DISTANCE) -> Tensor:
    """Line integrals of one view through an upright (not yet leant) volume.

    Args:
        attenuation: (Z, Y, X) in 1/mm on cubes of ``voxel`` mm; +z head, +y back, +x left.
        source_distance: source to rotation axis in millimetres.

    Returns:
        (Z, S) float32, S = max(Y, X); row 0 is the head, column 0 the patient's right when turn is 0.
    """
    return _project_leant(_square(_lean(attenuation, view.lean)), view.turn, voxel, source_distance)


def _square(volume: Tensor) -> Tensor:
    """Pad (Z, Y, X) with zeros to a common Y and X, centred."""
    _, height, width = volume.shape
    size = max(height, width)
    top, left = (size - height) // 2, (size - width) // 2
    return torch.nn.functional.pad(volume, (left, size - width - left, top, size - height - top))


def _project_leant(volume: Tensor, turn: float, voxel: float, source_distance: float) -> Tensor:
    grid, step = fan_beam_grid(size=volume.shape[-1], turn=turn + 180.0, source_distance=source_distance / voxel)
    sampled = grid_sample(volume[None], grid, align_corners=False, padding_mode="zeros")[0]
    return (sampled.sum(dim=1) * step * voxel).flip(0, 1)


def grey_levels(line: np.ndarray, *, exposure: float = 0.2) -> np.ndarray:
    """``1 - exp(-exposure * line)`` as uint16: air black, bone bright.

    >>> grey_levels(np.array([0.0, 100.0])).tolist()
    [0, 65535]
    """
    return np.round(65535 * (1 - np.exp(-exposure * line))).astype(np.uint16)


def crop_air(line: np.ndarray, *, threshold: float = 0.05, margin: int = 4) -> np.ndarray:
    """Cut rows and columns without attenuation, leaving ``margin`` pixels; an empty picture is returned whole."""
    rows, columns = np.nonzero(line.max(axis=1) > threshold)[0], np.nonzero(line.max(axis=0) > threshold)[0]
    if not len(rows):
        return line
    box: tuple[slice, ...] = tuple(
        slice(max(0, index[0] - margin), index[-1] + 1 + margin) for index in (rows, columns)
    )
    return line[box]


def project_views(
    volume: np.ndarray,
    spacing: Sequence[float],
    views: Iterable[View],
    *,
    voxel: float = 1.4,
    source_distance: float = SOURCE_DISTANCE,
) -> Iterator[tuple[View, np.ndarray]]:
    """Line integrals of a CT for many views, air cut away; views of equal lean share the leant volume.

    Args:
        volume: (Z, Y, X) in HU, +z head, +y back, +x left; set voxels outside :func:`body_mask` to ``AIR`` first.
        spacing: (z, y, x) in millimetres.
        voxel: edge of a projection pixel in millimetres.
        source_distance: source to rotation axis in millimetres.

    Yields:
        the view and float32 (rows, columns).
    """
    attenuation = torch.from_numpy(resample_isotropic(attenuation_from_hounsfield(volume), spacing, voxel=voxel))
    lean, leant = None, attenuation
    for view in views:
        if view.lean != lean:
            lean, leant = view.lean, _square(_lean(attenuation, view.lean))
        yield view, crop_air(_project_leant(leant, view.turn, voxel, source_distance).numpy())
