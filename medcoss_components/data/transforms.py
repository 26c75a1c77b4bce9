"""From stored samples to model inputs, and random augmentation of whole batches on their device.

Augmentation is drawn first, from a passed generator, into a small record; applying the record is deterministic. The
record of some samples of a batch is ``record.rows(index)``, so that several ranks can draw one global batch and keep
their part.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from medcoss_components.data.transfer import to_device
from medcoss_components.errors import InputError

if TYPE_CHECKING:
    from medcoss_components.data.modalities import Modality

CROP_AREA = (0.2, 1.0)  # share of the image area, METHOD.md section 7
CROP_RATIO = (3 / 4, 4 / 3)  # width / height in pixels
CROP_TRIALS = 10  # boxes drawn per sample; the first that fits is taken
CLIP_HU = 1024.0
INPUT_SCALES = {"unit_range": 1 / 255, "hounsfield": 1 / CLIP_HU, "zscore": 1.0}
"""Intensity rule -> factor from the stored value to the model's input."""
INPUT_RANGES = {"unit_range": (0.0, 1.0), "hounsfield": (-1.0, 1.0)}
"""Intensity rule -> range that an interpolated input is clamped to (bicubic overshoots at edges)."""
STANDARD_DEVIATION_FLOOR = 1e-6
"""Added to each image's standard deviation before dividing by it."""


def to_model_input(modality: Modality, raw: torch.Tensor) -> torch.Tensor:
    """Turn stored samples into what the model reads.

    Args:
        modality: its registry entry.
        raw: (B, *stored_shape), uint8, int16, float16, uint16 or uint32, as :meth:`Store.gather` gives them.

    Returns:
        Text: (B, L) int64 ids. Images: (B, *input_shape) float32; ``unit_range`` in [0, 1], ``hounsfield`` HU / 1024 in
        [-1, 1], ``zscore`` as stored; one stored channel is repeated where the model wants three.

    Raises:
        InputError: when the shape of a sample is not the modality's stored shape.
    """
    if tuple(raw.shape[1:]) != tuple(modality.stored_shape):
        raise InputError(
            f"raw: samples of {modality.name} are stored as {tuple(modality.stored_shape)}, got {tuple(raw.shape[1:])}."
        )
    return raw.to(torch.int64) if modality.intensity == "tokens" else scale_to_input(modality, raw)


def scale_to_input(modality: Modality, raw: torch.Tensor) -> torch.Tensor:
    """Like :func:`to_model_input` for images of any spatial size: (B, stored C, *S) to (B, C, *S) float32."""
    inputs = raw.to(torch.float32)
    if (scale := INPUT_SCALES[modality.intensity]) != 1.0:
        inputs = inputs * scale
    return repeat_channels(modality, inputs)


def repeat_channels(modality: Modality, inputs: torch.Tensor) -> torch.Tensor:
    """Repeat one stored channel where the model wants several."""
    channels = modality.input_shape[0]
    return inputs if inputs.shape[1] == channels else inputs.repeat(1, channels, *[1] * (inputs.ndim - 2))


def standardise_images(inputs: torch.Tensor) -> torch.Tensor:
    """Give every image mean 0 and standard deviation 1 over its own pixels: (value - mean) / (std + 1e-6).

    This evens out body parts and scanners (METHOD.md section 9). The standard deviation is that of the population.

    Args:
        inputs: (B, C, *S) numbers; C channels of an image count together.

    Returns:
        Tensor of the same shape, float32; an image of one value gives zeros.
    """
    values = inputs.to(torch.float32)
    axes = tuple(range(1, values.ndim))
    deviation, mean = torch.std_mean(values, dim=axes, keepdim=True, correction=0)
    flat = values.amin(axes, keepdim=True) == values.amax(axes, keepdim=True)  # the mean's rounding would be blown up
    return ((values - mean) / (deviation + STANDARD_DEVIATION_FLOOR)).masked_fill(flat, 0.0)


@dataclass(frozen=True)
class NoAugmentation:
    """The record of a modality whose samples are left as they are (text)."""

    count: int

    def rows(self, index: torch.Tensor) -> NoAugmentation:
        """The record of the chosen samples, in the order of ``index``."""
        return NoAugmentation(count=len(torch.arange(self.count)[index]))

    def apply(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs


class _TensorRecord:
    """Shared by records whose fields are per-sample tensors (first axis: sample) or shared settings."""

    def rows(self, index: torch.Tensor) -> Any:
        """The record of the chosen samples, in the order of ``index`` (int64 positions or a boolean mask)."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return type(self)(**{k: v[index] if isinstance(v, torch.Tensor) else v for k, v in values.items()})


@dataclass(frozen=True)
class CropFlip(_TensorRecord):
    """Random resized crop and horizontal flip of 2D images.

    Attributes:
        box: (B, 4) float32, top, left, height, width of each crop in pixels (whole numbers).
        flip: (B,) bool, mirror left and right after cropping.
        limits: values are clamped to this range afterwards; None leaves them.
        mode: ``bicubic`` (the paper's) or ``bilinear``.
    """

    box: torch.Tensor
    flip: torch.Tensor
    limits: tuple[float, float] | None = (0.0, 1.0)
    mode: str = "bicubic"

    def apply(self, inputs: torch.Tensor) -> torch.Tensor:
        """Crop, resize back to H x W and flip (B, C, H, W) in one resampling.

        The result equals cropping the box and resizing it with ``align_corners=False``, except that within two pixels
        of a box edge the kernel reads the true neighbours outside the box instead of repeating the edge.
        """
        height, width = inputs.shape[-2:]
        top, left, box_height, box_width = to_device(self.box.float(), inputs.device).unbind(1)
        theta = torch.zeros(len(self.box), 2, 3, device=inputs.device)
        flip = to_device(self.flip, inputs.device)
        theta[:, 0, 0] = box_width / width * torch.where(flip, -1.0, 1.0)
        theta[:, 1, 1] = box_height / height
        theta[:, 0, 2] = (2 * left + box_width) / width - 1
        theta[:, 1, 2] = (2 * top + box_height) / height - 1
        grid = functional.affine_grid(theta, list(inputs.shape), align_corners=False).to(inputs.dtype)
        output = functional.grid_sample(inputs, grid, mode=self.mode, padding_mode="border", align_corners=False)
        return output if self.limits is None else output.clamp_(*self.limits)


@dataclass(frozen=True)
class Mirror(_TensorRecord):
    """Mirroring of volumes: ``flip`` (B, 3) bool says which of the axes Z, H, W of each sample are reversed."""

    flip: torch.Tensor

    def apply(self, inputs: torch.Tensor) -> torch.Tensor:
        """Mirror (B, C, Z, H, W); exact, no resampling. Samples with the same axes are copied together, once."""
        output = torch.empty_like(inputs)
        code = self.flip.cpu().long() @ torch.tensor([4, 2, 1])
        for number in code.unique().tolist():
            index = to_device((code == number).nonzero().squeeze(1), inputs.device)
            axes = [axis + 2 for axis in range(3) if number & (4 >> axis)]
            output[index] = inputs[index].flip(axes)
        return output


Augmentation = NoAugmentation | CropFlip | Mirror


def draw_augmentation(
    modality: Modality, count: int, generator: torch.Generator | None, *, mode: str = "bicubic"
) -> Augmentation:
    """Draw what to do with each of ``count`` samples, by the modality's augmentation rule (METHOD.md section 7).

    ``resized_crop_flip``: box with area share U(0.2, 1) and log-uniform ratio in [3/4, 4/3] (ten trials to fit, then
    the largest central box of the nearest ratio), flip with probability 1/2. ``mirror``: each axis with probability
    1/2. ``none``: nothing.

    Args:
        modality: its registry entry.
        count: B, samples in the batch.
        generator: source of the numbers; a CPU generator gives the same draw for every device.
        mode: interpolation of crops, ``bicubic`` or ``bilinear``.

    Raises:
        InputError: for another rule or mode.
    """
    if modality.augmentation not in _DRAWS:
        raise InputError(
            f"augmentation of modality {modality.name}: one of {', '.join(_DRAWS)}, got {modality.augmentation!r}."
        )
    if mode not in ("bicubic", "bilinear"):
        raise InputError(f"mode={mode!r}: crops are resampled with 'bicubic' or 'bilinear'.")
    return _DRAWS[modality.augmentation](modality, count, generator, mode)


def apply_augmentation(inputs: torch.Tensor, record: Augmentation) -> torch.Tensor:
    """Apply a drawn record to a batch of model inputs, on their device and in one go.

    Args:
        inputs: (B, C, H, W) or (B, C, Z, H, W) floats, or (B, L) ids.
        record: from :func:`draw_augmentation` for the same B.

    Returns:
        Tensor of the same shape and dtype.

    Raises:
        InputError: when the record is of another batch size.
    """
    count = record.count if isinstance(record, NoAugmentation) else len(record.flip)
    if len(inputs) != count:
        raise InputError(f"record: drawn for {count} samples, the batch holds {len(inputs)}.")
    return record.apply(inputs)


def _draw_nothing(modality: Modality, count: int, generator: torch.Generator | None, mode: str) -> NoAugmentation:
    return NoAugmentation(count=count)


def _draw_mirror(modality: Modality, count: int, generator: torch.Generator | None, mode: str) -> Mirror:
    return Mirror(flip=torch.rand(count, 3, generator=generator) < 0.5)


def _draw_crop_flip(modality: Modality, count: int, generator: torch.Generator | None, mode: str) -> CropFlip:
    area, ratio, top, left = torch.rand(4, count, CROP_TRIALS, generator=generator, dtype=torch.float64)
    flip = torch.rand(count, generator=generator) < 0.5
    box = _choose_boxes(area, ratio, top, left, size=modality.input_shape[1:])
    return CropFlip(box=box, flip=flip, limits=INPUT_RANGES.get(modality.intensity), mode=mode)


def _choose_boxes(
    area: torch.Tensor, ratio: torch.Tensor, top: torch.Tensor, left: torch.Tensor, *, size: tuple[int, ...]
) -> torch.Tensor:
    """Boxes (B, 4) of whole pixels from uniform numbers (B, trials): the first trial that fits, else a central box."""
    height, width = size
    low, high = (math.log(bound) for bound in CROP_RATIO)
    share = CROP_AREA[0] + area * (CROP_AREA[1] - CROP_AREA[0])
    aspect = torch.exp(low + ratio * (high - low))
    box_height = torch.sqrt(share * height * width / aspect).round().clamp(min=1)
    box_width = torch.sqrt(share * height * width * aspect).round().clamp(min=1)
    fits = (box_height <= height) & (box_width <= width)
    boxes = torch.stack(
        [
            torch.floor(top * (height - box_height + 1)),
            torch.floor(left * (width - box_width + 1)),
            box_height,
            box_width,
        ],
        dim=-1,
    )
    first = fits.to(torch.int8).argmax(dim=1)
    chosen = boxes[torch.arange(len(boxes)), first]
    central = torch.tensor(_central_box(height, width), dtype=chosen.dtype)
    return torch.where(fits.any(dim=1, keepdim=True), chosen, central).to(torch.float32)


def _central_box(height: int, width: int) -> tuple[int, int, int, int]:
    """The largest central box whose ratio is within CROP_RATIO."""
    box_height = min(height, round(width / CROP_RATIO[0]))
    box_width = min(width, round(height * CROP_RATIO[1]))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


_DRAWS: dict[str, Callable[[Modality, int, torch.Generator | None, str], Augmentation]] = {
    "none": _draw_nothing,
    "resized_crop_flip": _draw_crop_flip,
    "mirror": _draw_mirror,
}
