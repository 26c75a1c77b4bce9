"""From stored samples and labels to what a task's network reads and is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from medcoss_components.data.modalities import DIMENSION_AXES, Modality, get_modality
from medcoss_components.data.regions import region_masks, resolve_regions
from medcoss_components.data.transfer import to_device
from medcoss_components.data.transforms import (
    CropFlip,
    draw_augmentation,
    repeat_channels,
    scale_to_input,
    standardise_images,
    to_model_input,
)
from medcoss_components.errors import InputError
from medcoss_components.randomness import generator_for

STORED_RANGES = {"unit_range": (0.0, 255.0), "hounsfield": (-1024.0, 1024.0)}
"""Intensity rule -> range of stored values, for clamping what interpolation overshoots."""
AUGMENTATIONS = {1: ("none",), 2: ("none", "flip", "mirror", "resized_crop_flip"), 3: ("none", "flip", "mirror")}
"""Dimension -> what a task may choose. ``flip`` reverses the last axis (left and right in axial slices and in pictures)
with probability 1/2, ``mirror`` every spatial axis, ``resized_crop_flip`` is that of pre-training."""
INTENSITY_KEYS = ("clip", "subtract", "divide", "standardise")


@dataclass(frozen=True)
class Flips:
    """Reversal of spatial axes: ``flip`` (B, D) bool."""

    flip: torch.Tensor

    def rows(self, index: torch.Tensor) -> Flips:
        """The record of the chosen samples, in the order of ``index``."""
        return Flips(self.flip[index])

    def apply(self, values: torch.Tensor) -> torch.Tensor:
        """Reverse (B, C, *S), each sample along its axes; exact."""
        samples = []
        for sample, chosen in zip(values, self.flip.tolist(), strict=True):
            axes = [axis + 1 for axis, reverse in enumerate(chosen) if reverse]
            samples.append(sample.flip(axes) if axes else sample)
        return torch.stack(samples)


class TaskTransform:
    """Inputs and targets of a task: intensity, augmentation of image and mask alike, regions.

    Args:
        modality: name or entry.
        input_shape: what the network reads; None: the modality's.
        intensity: None for the modality's own rule (see :func:`~medcoss_components.data.transforms.to_model_input`), or
            ``{"clip": [low, high], "subtract": a, "divide": b}`` in stored values (HU, 0 .. 255): the input is then
            (clip(value) - a) / b. Each key may be left out. Or ``{"standardise": "image"}``, with "clip" or without: of
            each image, or of each window that is cut from a case, (value - mean) / (std + 1e-6), see
            :func:`~medcoss_components.data.transforms.standardise_images`; augmentation comes after it.
        augmentation: see :data:`AUGMENTATIONS`; None: the modality's.
        regions: segmentation: name -> mask values; None for classification.
        seed: of the augmentation.

    Raises:
        InputError: an unknown augmentation or intensity key, a clip out of order, division by 0, or a malformed region.
    """

    def __init__(
        self,
        *,
        modality: str | Mapping[str, Any] | Modality,
        input_shape: Sequence[int] | None = None,
        intensity: Mapping[str, Any] | None = None,
        augmentation: str | None = None,
        regions: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        self.modality = get_modality(modality, input_shape=input_shape)
        self.intensity = _check_intensity(intensity, self.modality)
        self.augmentation = _check_augmentation(augmentation, self.modality)
        self.regions = None if regions is None else resolve_regions(regions)
        self.seed = seed

    def training(self, batch: Mapping[str, Any], device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
        """Augmented inputs and targets of a batch of a task loader.

        The augmentation is drawn for the global batch from (seed, epoch, step); this rank applies its rows.

        Returns:
            inputs (B, C, *S) float32 or (B, L) int64; targets (B,) int64 class numbers, or (B, K, *S) float32 masks.
        """
        inputs, target = self.evaluation(batch["raw"], device), to_device(batch["target"], device)
        record = self._draw(batch, inputs.shape[2:])
        if record is not None:
            inputs = record.apply(inputs)
        if self.regions is None:
            return inputs, target.to(torch.int64)
        if record is not None:
            target = _nearest(record).apply(target[:, None].float())[:, 0].round().to(torch.uint8)
        return inputs, self.region_masks(target).float()

    def evaluation(self, raw: torch.Tensor, device: torch.device | str) -> torch.Tensor:
        """Inputs without augmentation.

        Args:
            raw: (B, *stored_shape); with regions, images of any spatial size.

        Returns:
            (B, C, *S) float32, or (B, L) int64 ids.

        Raises:
            InputError: samples of another shape.
        """
        raw = to_device(raw, device)
        if self.modality.dimension == 1 or (self.intensity is None and self.regions is None):
            return to_model_input(self.modality, raw)
        self._check_shape(raw)
        if self.intensity is None:
            return scale_to_input(self.modality, raw)
        return repeat_channels(self.modality, self._scaled(raw.to(torch.float32)))

    def region_masks(self, mask: torch.Tensor | np.ndarray) -> Any:
        """One boolean mask per region: (..., *S) mask values to (..., K, *S), NumPy or torch as given.

        Raises:
            InputError: without regions.
        """
        if self.regions is None:
            raise InputError("regions: none were given to TaskTransform; masks need them.")
        return region_masks(mask, self.regions, dimension=self.modality.dimension)

    def _check_shape(self, raw: torch.Tensor) -> None:
        channels, spatial = self.modality.stored_shape[0], self.modality.stored_shape[1:]
        fits = raw.ndim == len(spatial) + 2 and raw.shape[1] == channels
        if not fits or (self.regions is None and tuple(raw.shape[2:]) != tuple(spatial)):
            axes = ", ".join(DIMENSION_AXES[self.modality.dimension])
            raise InputError(
                f"raw: samples of {self.modality.name} are stored as ({axes}) = {self.modality.stored_shape}, got "
                f"{tuple(raw.shape[1:])}."
            )

    def _scaled(self, values: torch.Tensor) -> torch.Tensor:
        settings = self.intensity or {}
        if (limits := settings.get("clip")) is not None:
            values = values.clamp(*limits)
        if "standardise" in settings:
            return standardise_images(values)
        return (values - settings.get("subtract", 0.0)) / settings.get("divide", 1.0)

    def _draw(self, batch: Mapping[str, Any], spatial: Sequence[int]) -> Any:
        """This rank's rows of the record for the global batch; None for no augmentation."""
        if self.augmentation == "none":
            return None
        generator = generator_for(self.seed, "augment", batch["epoch"], batch["step"])
        count, dimension = batch["count"], self.modality.dimension
        if self.augmentation == "resized_crop_flip":
            entry = replace(self.modality, input_shape=(self.modality.input_shape[0], *spatial))
            record = draw_augmentation(replace(entry, augmentation=self.augmentation), count, generator)
            return self._with_limits(record).rows(batch["rows"])
        flip = torch.rand(count, dimension, generator=generator) < 0.5
        if self.augmentation == "flip":
            flip[:, :-1] = False
        return Flips(flip).rows(batch["rows"])

    def _with_limits(self, record: Any) -> Any:
        if self.intensity is None or not isinstance(record, CropFlip):
            return record
        if "standardise" in self.intensity:  # every image has a range of its own
            return replace(record, limits=None)
        low, high = self._scaled(torch.tensor(STORED_RANGES[self.modality.intensity])).tolist()
        return replace(record, limits=(min(low, high), max(low, high)))


def _nearest(record: Any) -> Any:
    """The same record for masks."""
    return replace(record, mode="nearest", limits=None) if isinstance(record, CropFlip) else record


def _check_augmentation(augmentation: str | None, modality: Modality) -> str:
    chosen, allowed = augmentation or modality.augmentation, AUGMENTATIONS[modality.dimension]
    if chosen not in allowed:
        raise InputError(
            f"augmentation={chosen!r}: a task of the {modality.dimension}D modality {modality.name} may have one of "
            f"{', '.join(allowed)}."
        )
    return chosen


def _check_intensity(intensity: Mapping[str, Any] | None, modality: Modality) -> dict[str, Any] | None:
    if intensity is None:
        return None
    if modality.dimension == 1:
        raise InputError(f"intensity={dict(intensity)}: modality {modality.name} is text, it has no intensities.")
    unknown = sorted(set(intensity) - set(INTENSITY_KEYS))
    if unknown:
        raise InputError(f"intensity: {unknown[0]!r} is no key; known: {', '.join(INTENSITY_KEYS)}.")
    clip = intensity.get("clip")
    if clip is not None and (len(clip) != 2 or not clip[0] < clip[1]):
        raise InputError(f"intensity: clip must be [low, high] with low below high, got {clip!r}.")
    if intensity.get("divide", 1.0) == 0:
        raise InputError("intensity: divide must not be 0, got 0.")
    if "standardise" in intensity:
        _check_standardise(intensity)
    return dict(intensity)


def _check_standardise(intensity: Mapping[str, Any]) -> None:
    if (chosen := intensity["standardise"]) != "image":
        raise InputError(f"intensity: standardise must be 'image', got {chosen!r}.")
    if others := sorted({"subtract", "divide"} & set(intensity)):
        raise InputError(
            f"intensity: standardise sets mean and scale itself, {others[0]}={intensity[others[0]]!r} would have no "
            "effect. Give one or the other."
        )
