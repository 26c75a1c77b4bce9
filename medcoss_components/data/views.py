"""Two views of an X-ray for contrastive learning, as MoCo-CXR draws them (Sowrirajan et al. 2021, arXiv 2010.05352).

A view is the image mirrored with probability 1/2, turned by an angle from U(-10, 10) degrees and, where asked for, cut
to a random box that is scaled back: one affine resampling for the whole batch. Larger changes would not suit X-rays: a
crop may lose the finding, a change of brightness may make one up.
Axes: B samples, C channels, H rows, W columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from medcoss_components.data.modalities import Modality
from medcoss_components.data.task_inputs import TaskTransform
from medcoss_components.errors import InputError
from medcoss_components.randomness import generator_for

CROP_RATIO = (3 / 4, 4 / 3)
"""Width / height of a crop as shares of the image's sides, drawn log-uniformly."""
VIEWS = ("query view", "key view")
"""Purposes of the two draws of a batch."""


@dataclass(frozen=True)
class ViewRecord:
    """What is done to each sample; the turn comes first, then the cut, then the mirror.

    Attributes:
        flip: (B,) bool, mirror left and right.
        angle: (B,) float32, degrees; above 0 turns the picture anticlockwise about its middle.
        box: (B, 4) float32, centre row, centre column, height and width of the part that is kept, as shares of the
            image's sides: (0.5, 0.5, 1, 1) is the whole image.
    """

    flip: Tensor
    angle: Tensor
    box: Tensor

    def rows(self, index: Tensor) -> ViewRecord:
        """The record of the chosen samples, in the order of ``index``."""
        return ViewRecord(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    def apply(self, inputs: Tensor) -> Tensor:
        """The views (B, C, H, W) of (B, C, H, W) float images, bilinear, in one resampling.

        What comes in from outside has each image's smallest value: a film lies on a black ground.

        Raises:
            InputError: when the record is of another batch size.
        """
        if len(inputs) != len(self.flip):
            raise InputError(f"record: drawn for {len(self.flip)} samples, the batch holds {len(inputs)}.")
        theta = self.matrices(inputs.shape[-2], inputs.shape[-1]).to(inputs.device)
        grid = functional.affine_grid(theta, list(inputs.shape), align_corners=False).to(inputs.dtype)
        ground = inputs.amin(dim=(1, 2, 3), keepdim=True)
        return functional.grid_sample(inputs - ground, grid, align_corners=False) + ground

    def matrices(self, height: int, width: int) -> Tensor:
        """(B, 2, 3) float32: where a place of the view lies in the image, both as (x, y) from -1 to 1.

        A turn by a is a turn in pixels. With half sides w and h it takes (x, y) to
        (x cos a - y sin a * h / w, x sin a * w / h + y cos a).
        """
        row, column, tall, wide = self.box.unbind(1)
        zeros = torch.zeros_like(row)
        mirrored = torch.where(self.flip, -wide, wide)
        cut = torch.stack(
            [
                torch.stack([mirrored, zeros, 2 * column - 1], dim=1),
                torch.stack([zeros, tall, 2 * row - 1], dim=1),
            ],
            dim=1,
        )
        radians = torch.deg2rad(self.angle)
        cosine, sine = radians.cos(), radians.sin()
        turn = torch.stack(
            [
                torch.stack([cosine, -sine * (height / width)], dim=1),
                torch.stack([sine * (width / height), cosine], dim=1),
            ],
            dim=1,
        )
        return turn @ cut


@dataclass(frozen=True, kw_only=True)
class ContrastiveViews:
    """How views are drawn.

    Args:
        flip: probability of a mirror image, in [0, 1].
        degrees: largest angle to either side, in [0, 180].
        crop: [low, high] shares of the area that a view may keep, in (0, 1]; None: the whole image.

    Raises:
        InputError: when a value is outside.
    """

    flip: float = 0.5
    degrees: float = 10.0
    crop: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.flip <= 1:
            raise InputError(f"flip must be a probability in [0, 1], received {self.flip}")
        if not 0 <= self.degrees <= 180:
            raise InputError(f"degrees must be in [0, 180], received {self.degrees}")
        if self.crop is not None and (len(self.crop) != 2 or not 0 < self.crop[0] <= self.crop[1] <= 1):
            raise InputError(
                f"crop must be [lowest share, highest share] with 0 < lowest <= highest <= 1, or null; received "
                f"{list(self.crop)}"
            )

    def draw(self, count: int, generator: torch.Generator | None) -> ViewRecord:
        """Draw the views of ``count`` samples; a setting that is off does not change the draws of the others."""
        flip = torch.rand(count, generator=generator) < self.flip
        angle = (torch.rand(count, generator=generator) * 2 - 1) * self.degrees
        numbers = torch.rand(4, count, generator=generator)
        return ViewRecord(flip=flip, angle=angle, box=self._boxes(*numbers))

    def _boxes(self, area: Tensor, ratio: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """Boxes (B, 4) from uniform numbers (B,); a side that would pass the image's own is cut to it."""
        if self.crop is None:
            return torch.tensor([0.5, 0.5, 1.0, 1.0]).repeat(len(area), 1)
        share = self.crop[0] + area * (self.crop[1] - self.crop[0])
        low, high = (math.log(bound) for bound in CROP_RATIO)
        aspect = torch.exp(low + ratio * (high - low))
        tall, wide = (share / aspect).sqrt().clamp(max=1), (share * aspect).sqrt().clamp(max=1)
        return torch.stack([tall / 2 + row * (1 - tall), wide / 2 + column * (1 - wide), tall, wide], dim=1)


class PairTransform:
    """The two views of every sample of a batch, on the device.

    Images get their intensity first, over the whole image: both views of it, and later the image in fine-tuning, then
    have the same scale.

    Args:
        modality: name or entry.
        input_shape: what the network reads, (C, H, W); None: the modality's.
        intensity: as for :class:`~medcoss_components.data.task_inputs.TaskTransform`; MUSCLE standardises each image,
            None gives values in [0, 1] for encoders of a MedCoSS chain.
        views: how they are drawn; None: as MoCo-CXR does.
        seed: of the draws.

    Raises:
        InputError: a modality that is not 2D, or an unknown intensity.
    """

    def __init__(
        self,
        *,
        modality: str | Mapping[str, Any] | Modality,
        input_shape: Sequence[int] | None = None,
        intensity: Mapping[str, Any] | None = None,
        views: ContrastiveViews | Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        self.scaling = TaskTransform(
            modality=modality, input_shape=input_shape, intensity=intensity, augmentation="none", seed=seed
        )
        if self.modality.dimension != 2:
            raise InputError(
                f"modality {self.modality.name}: views are of 2D images, its samples have {self.modality.dimension} "
                "dimensions"
            )
        self.views = views if isinstance(views, ContrastiveViews) else ContrastiveViews(**(views or {}))
        self.seed = seed

    @property
    def modality(self) -> Modality:
        """The entry with the input shape of the network."""
        return self.scaling.modality

    @property
    def intensity(self) -> dict[str, Any] | None:
        return self.scaling.intensity

    def plain(self, raw: Tensor, device: torch.device | str) -> Tensor:
        """Inputs (B, C, H, W) float32 of stored samples (B, *stored_shape), no view drawn."""
        return self.scaling.evaluation(raw, device)

    def pair(self, batch: Mapping[str, Any], device: torch.device | str) -> tuple[Tensor, Tensor]:
        """Query views of the own rows of a batch, and key views of their partners.

        Both are drawn for the global batch, from (seed, epoch, step): what a row becomes does not depend on the process
        that computes it.

        Args:
            batch: of :class:`~medcoss_components.data.sampler.BatchReader`.
            device: where the views are made.

        Returns:
            two (own, C, H, W) float32; row i of the second is a view of global row ``rows[partners[i]]``.
        """
        inputs, rows, own = self.plain(batch["raw"], device), batch["rows"], batch["own"]
        query, key = (self._record(batch, purpose) for purpose in VIEWS)
        queries = query.rows(rows[:own]).apply(inputs[:own])
        keys = key.rows(rows[batch["partners"]]).apply(inputs[batch["partners"].to(inputs.device)])
        return queries, keys

    def _record(self, batch: Mapping[str, Any], purpose: str) -> ViewRecord:
        return self.views.draw(batch["count"], generator_for(self.seed, purpose, batch["epoch"], batch["step"]))
