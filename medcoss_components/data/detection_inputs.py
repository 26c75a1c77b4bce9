"""Inputs and targets of a detection task: pictures and their boxes are mirrored and zoomed alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from medcoss_components.data.modalities import Modality
from medcoss_components.data.task_inputs import TaskTransform
from medcoss_components.data.transforms import CropFlip
from medcoss_components.errors import InputError
from medcoss_components.randomness import generator_for

AUGMENTATIONS = ("none", "flip")
LARGEST_SCALE = 4.0

Target = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class ZoomFlip:
    """The window of each picture that fills the picture afterwards, and mirroring of left and right.

    Attributes:
        window: (B, 4) float32 top, left, height, width in pixels; it may be larger than the picture, whose edge is
            then continued. None: the whole picture, nothing is resampled.
        flip: (B,) bool, mirrored after zooming.
    """

    window: torch.Tensor | None
    flip: torch.Tensor

    def rows(self, index: torch.Tensor) -> ZoomFlip:
        """The record of the chosen samples, in the order of ``index``."""
        values = [getattr(self, field.name) for field in fields(self)]
        window, flip = (value if value is None else value[index] for value in values)
        return ZoomFlip(window=window, flip=flip)

    def apply(self, inputs: torch.Tensor) -> torch.Tensor:
        """Move pictures (B, C, H, W), bilinearly where there are windows, else exactly."""
        if self.window is not None:
            return CropFlip(box=self.window, flip=self.flip, limits=None, mode="bilinear").apply(inputs)
        flip = self.flip.to(inputs.device)[:, None, None, None]
        return torch.where(flip, inputs.flip(-1), inputs)

    def move(self, targets: Sequence[Target], size: Sequence[int]) -> list[dict[str, torch.Tensor]]:
        """Move boxes along with pictures of ``size`` (H, W).

        A box whose centre leaves the picture is gone, since what is left of it may show nothing; others are cut.

        Args:
            targets: (B) of ``{"boxes": (n, 4) float32, "labels": (n,) int64}``.
        """
        return [self._move_one(number, target, *size) for number, target in enumerate(targets)]

    def _move_one(self, number: int, target: Target, height: int, width: int) -> dict[str, torch.Tensor]:
        boxes, labels = target["boxes"], target["labels"]
        if self.window is not None:
            top, left, rows, columns = self.window[number].tolist()
            across, down = width / columns, height / rows
            boxes = (boxes - boxes.new_tensor([left, top] * 2)) * boxes.new_tensor([across, down] * 2)
        if bool(self.flip[number]):
            boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1)
        if self.window is None:
            return {"boxes": boxes, "labels": labels}
        edges = boxes.new_tensor([width, height])
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2
        kept = ((centre > 0) & (centre < edges)).all(dim=1)
        boxes = boxes.clamp(min=0).minimum(edges.repeat(2))
        return {"boxes": boxes[kept], "labels": labels[kept]}


class DetectionTransform(TaskTransform):
    """Inputs of a detection network, and boxes that moved with them.

    Args:
        modality, input_shape, intensity, seed: see :class:`~medcoss_components.data.task_inputs.TaskTransform`.
        augmentation: "flip" (left and right, probability 1/2) or "none".
        scale: [low, high] of a zoom that is drawn log-uniformly for every picture, around a place that is drawn as
            well: 2 shows half the height and width at double size, 0.5 the whole at half size. None: no zoom.

    Raises:
        InputError: a modality that is not 2D, an unknown augmentation or intensity, or a scale out of order.
    """

    def __init__(
        self,
        *,
        modality: str | Mapping[str, Any] | Modality,
        input_shape: Sequence[int] | None = None,
        intensity: Mapping[str, Any] | None = None,
        augmentation: str | None = "flip",
        scale: Sequence[float] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            modality=modality, input_shape=input_shape, intensity=intensity, augmentation="none", seed=seed
        )
        self.augmentation = _check_augmentation(augmentation or "flip", self.modality)
        self.scale = _check_scale(scale)

    def training(self, batch: Mapping[str, Any], device: torch.device | str) -> tuple[torch.Tensor, Any]:
        """Augmented inputs and targets of a batch of a detection loader.

        The augmentation is drawn for the global batch from (seed, epoch, step); this rank applies its rows.

        Returns:
            inputs (B, C, H, W) float32; list of B ``{"boxes": (n, 4) float32, "labels": (n,) int64}`` on the device.
        """
        inputs, targets = self.evaluation(batch["raw"], device), batch["target"]
        record = self.draw(batch["count"], inputs.shape[-2:], batch["epoch"], batch["step"])
        if record is not None:
            record = record.rows(batch["rows"])
            inputs, targets = record.apply(inputs), record.move(targets, tuple(inputs.shape[-2:]))
        return inputs, [{name: value.to(device) for name, value in target.items()} for target in targets]

    def draw(self, count: int, size: Sequence[int], epoch: int, step: int) -> ZoomFlip | None:
        """The record of a global batch of ``count`` pictures of ``size`` (H, W); None where nothing is done."""
        if self.augmentation == "none" and self.scale is None:
            return None
        generator = generator_for(self.seed, "augment", epoch, step)
        flip = torch.rand(count, generator=generator) < (0.5 if self.augmentation == "flip" else 0.0)
        if self.scale is None:
            return ZoomFlip(window=None, flip=flip)
        zoom, top, left = torch.rand(3, count, generator=generator, dtype=torch.float64)
        low, high = self.scale
        height, width = (side * (low / high) ** zoom / low for side in size)
        places = [(size[0] - height) * top, (size[1] - width) * left, height, width]
        return ZoomFlip(window=torch.stack(places, dim=1).to(torch.float32), flip=flip)


def _check_augmentation(augmentation: str, modality: Modality) -> str:
    if modality.dimension != 2:
        raise InputError(f"modality {modality.name}: boxes are of 2D pictures, this one has {modality.dimension} axes.")
    if augmentation not in AUGMENTATIONS:
        raise InputError(
            f"augmentation={augmentation!r}: a detection task may have one of {', '.join(AUGMENTATIONS)}; scale=[low, "
            "high] adds a zoom."
        )
    return augmentation


def _check_scale(scale: Sequence[float] | None) -> tuple[float, float] | None:
    if scale is None:
        return None
    numbers = list(scale)
    if len(numbers) != 2 or not 1 / LARGEST_SCALE <= numbers[0] <= numbers[1] <= LARGEST_SCALE:
        raise InputError(
            f"scale={numbers}: must be [low, high] in order within {1 / LARGEST_SCALE:g} and {LARGEST_SCALE:g}."
        )
    return float(numbers[0]), float(numbers[1])
