"""The encoder with a convolutional decoder that gives one mask per region (METHOD.md section 8).

The decoder is that of UNETR (Hatamizadeh et al., WACV 2022, arXiv 2103.10504), put together from MONAI's blocks, for
images and volumes and for any patch. Axes: B samples, C channels, S the spatial axes, D channels of the encoder,
F feature size, K regions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from monai.networks.blocks import UnetOutBlock, UnetrBasicBlock, UnetrPrUpBlock, UnetrUpBlock
from torch import Tensor, nn

from medcoss_components.data.regions import ANY, resolve_regions
from medcoss_components.errors import InputError
from medcoss_components.networks.backbone import Backbone
from medcoss_components.networks.initialisation import initialise
from medcoss_components.networks.pretraining import ModalityLike

LEVELS = 4
HIDDEN_SHARES = (4 / 12, 7 / 12, 10 / 12, 1.0)
"""After which share of the blocks a hidden state is read: 4, 7, 10 and 12 of 12."""


def hidden_blocks(depth: int) -> tuple[int, ...]:
    """Numbers of the blocks, counted from 1, whose output the decoder reads; the last is always the last block.

    >>> hidden_blocks(12), hidden_blocks(4)
    ((4, 7, 10, 12), (1, 2, 3, 4))
    """
    return tuple(max(1, int(share * depth + 0.5)) for share in HIDDEN_SHARES)


def upsampling_steps(side: int) -> tuple[int, ...]:
    """How one side of a patch grows back in four steps, coarsest first: factors of ``side``, large ones first.

    >>> upsampling_steps(16), upsampling_steps(6), upsampling_steps(32)
    ((2, 2, 2, 2), (3, 2, 1, 1), (4, 2, 2, 2))
    """
    factors, rest, divisor = [], side, 2
    while rest > 1:
        if rest % divisor:
            divisor += 1
            continue
        factors.append(divisor)
        rest //= divisor
    factors += [1] * (LEVELS - len(factors))
    while len(factors) > LEVELS:
        first, second, *others = sorted(factors)
        factors = [first * second, *others]
    return tuple(sorted(factors, reverse=True))


def region_values(regions: int | Mapping[str, Any]) -> dict[str, list[int] | str]:
    """Name of each region -> the mask values that belong to it, or "any" for every value but 0.

    A number K stands for regions "1" to "K" of these mask values.

    Raises:
        InputError: when there is none, or a region has something else than numbers from 1 or "any".
    """
    if isinstance(regions, int):
        regions = {str(number): [number] for number in range(1, regions + 1)}
    return {
        name: ANY if given == ANY else list(values)
        for (name, values), given in zip(resolve_regions(regions).items(), regions.values(), strict=True)
    }


class MaskDecoder(nn.Module):
    """Hidden states and the image become one map of logits per region.

    Every hidden state grows by transposed convolutions to the resolution of its level; from the coarsest level up each
    one is joined with the next finer one, at last with features of the image itself. Residual convolution blocks,
    instance norm without parameters.

    Args:
        patch: sides of a patch; its length says whether images or volumes are read.
        channels: C of the image.
        width: D.
        feature_size: F of the finest level; coarser ones have 2, 4 and 8 times as many channels.
        regions: K.
    """

    def __init__(self, *, patch: Sequence[int], channels: int, width: int, feature_size: int, regions: int) -> None:
        super().__init__()
        axes = len(patch)
        steps = list(zip(*(upsampling_steps(side) for side in patch), strict=True))
        sizes = [feature_size * 2**level for level in range(LEVELS)]
        self.image = _block(axes, channels, feature_size)
        self.skips = nn.ModuleList(
            _projection(axes, width, sizes[level], steps[: LEVELS - level]) for level in range(1, LEVELS)
        )
        self.joins = nn.ModuleList(
            _join(axes, coarse, fine, step)
            for coarse, fine, step in zip((width, *sizes[:0:-1]), sizes[::-1], steps, strict=True)
        )
        self.output = UnetOutBlock(spatial_dims=axes, in_channels=feature_size, out_channels=regions)

    def forward(self, image: Tensor, states: Sequence[Tensor]) -> Tensor:
        """Decode; volumes on a CPU in float32, also under autocast.

        There, torch 2.13's bfloat16 weight gradient of 3D convolutions reads memory that nobody wrote, on grids of
        depth 2 (oneDNN, CPUs with AVX-512 bf16).

        Args:
            image: (B, C, *S).
            states: four times (B, D, *grid), the earliest block first.

        Returns:
            (B, K, *S).
        """
        if image.device.type != "cpu" or image.ndim != 5:
            return self._decode(image, states)
        with torch.autocast("cpu", enabled=False):
            return self._decode(image.float(), [state.float() for state in states])

    def _decode(self, image: Tensor, states: Sequence[Tensor]) -> Tensor:
        *early, joined = states
        skips = [self.image(image), *(skip(state) for skip, state in zip(self.skips, early, strict=True))]
        for join, skip in zip(self.joins, reversed(skips), strict=True):
            joined = join(joined, skip)
        return self.output(joined)


def _block(axes: int, inputs: int, outputs: int) -> nn.Module:
    return UnetrBasicBlock(
        spatial_dims=axes,
        in_channels=inputs,
        out_channels=outputs,
        kernel_size=3,
        stride=1,
        norm_name="instance",
        res_block=True,
    )


def _join(axes: int, inputs: int, outputs: int, step: Sequence[int]) -> nn.Module:
    return UnetrUpBlock(
        spatial_dims=axes,
        in_channels=inputs,
        out_channels=outputs,
        kernel_size=3,
        upsample_kernel_size=step,
        norm_name="instance",
        res_block=True,
    )


def _growth(axes: int, inputs: int, outputs: int, step: Sequence[int]) -> nn.Module:
    return UnetrPrUpBlock(
        spatial_dims=axes,
        in_channels=inputs,
        out_channels=outputs,
        num_layer=0,
        kernel_size=3,
        stride=1,
        upsample_kernel_size=step,
        norm_name="instance",
    )


def _projection(axes: int, inputs: int, outputs: int, steps: Sequence[Sequence[int]]) -> nn.Sequential:
    """MONAI's ``UnetrPrUpBlock`` with residual blocks, but with a step of its own at every layer."""
    first, *others = steps
    layers = [_growth(axes, inputs, outputs, first)]
    for step in others:
        layers += [_growth(axes, outputs, outputs, step), _block(axes, outputs, outputs)]
    return nn.Sequential(*layers)


class SegmentationModel(Backbone):
    """Logits per voxel and region for images or volumes; regions may overlap, so each has a sigmoid of its own.

    Args:
        preset: sizes to start from: "vit_base", "vit_small" or "demo".
        modality: name or registry entry of images or volumes.
        input_shape: (C, H, W) or (C, Z, H, W) of the windows that are trained on; None for the modality's own.
        regions: name -> mask values (or "any" for all but 0) in the order of the outputs, or how many there are.
        feature_size: channels of the decoder's finest level.
        overrides: other sizes of :class:`~medcoss_components.networks.presets.Preset`.

    Attributes:
        regions: name -> mask values or "any".
        feature_size: channels of the decoder's finest level.
        sizes, modality, encoder_frozen: see :class:`~medcoss_components.networks.backbone.Backbone`.

    Raises:
        InputError: for settings that do not fit together; the message names them.

    Example:
        >>> import torch
        >>> regions = {"liver": [1, 2], "tumour": [2]}
        >>> model = SegmentationModel(preset="demo", modality="ct", input_shape=(1, 16, 32, 48), regions=regions)
        >>> model(torch.zeros(1, 1, 32, 32, 48)).shape
        torch.Size([1, 2, 32, 32, 48])
    """

    def __init__(
        self,
        *,
        preset: str = "vit_base",
        modality: ModalityLike,
        input_shape: Iterable[int] | None = None,
        regions: int | Mapping[str, Any],
        feature_size: int = 16,
        **overrides: Any,
    ) -> None:
        super().__init__(preset=preset, modality=modality, input_shape=input_shape, class_token=False, **overrides)
        if self.dimension == 1:
            raise InputError(f"modality {self.modality.name}: segmentation needs images or volumes, not texts.")
        if feature_size < 1:
            raise InputError(f"feature_size={feature_size} must be at least 1.")
        self.regions = region_values(regions)
        self.feature_size = feature_size
        self.mask_decoder = MaskDecoder(
            patch=self.patch,
            channels=self.modality.input_shape[0],
            width=self.sizes.width,
            feature_size=feature_size,
            regions=len(self.regions),
        )
        initialise(self)

    def forward(self, inputs: Tensor, *, depth_noise: Tensor | None = None) -> Tensor:
        """Segment a batch.

        Args:
            inputs: images (B, C, H, W) or volumes (B, C, Z, H, W); sides are multiples of the patch.
            depth_noise: (B, 2 * depth) in [0, 1), for stochastic depth in training mode; drawn when None.

        Returns:
            (B, K, *S) float32 logits; a sigmoid makes them probabilities.

        Raises:
            InputError: for inputs of another shape.
        """
        states = self.encode_image(inputs, after=hidden_blocks(self.sizes.depth), depth_noise=depth_noise)
        grid = [side // cell for side, cell in zip(inputs.shape[2:], self.patch, strict=True)]
        maps = [state.transpose(1, 2).reshape(inputs.shape[0], -1, *grid) for state in states]
        return self.mask_decoder(inputs, maps).float()
