"""Backbones of the X-ray networks (METHOD.md section 9): MONAI's ResNets, or the encoder of a MedCoSS chain.

A backbone turns images into three maps and one vector, and has no parameter beyond those that pre-training trains, so
one state dict serves contrastive learning, the tasks of MUSCLE and fine-tuning. Axes: B images, C channels, H rows,
W columns, D channels of the deepest features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from monai.networks.nets.resnet import ResNet
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from medcoss_components.data.modalities import Modality, get_modality
from medcoss_components.errors import InputError
from medcoss_components.networks.backbone import Backbone
from medcoss_components.networks.presets import PRESETS, Preset, resolve_preset
from medcoss_components.networks.pretraining import ModalityLike

INPUT_SHAPE = (3, 320, 320)
"""Channels, rows and columns that MoCo-CXR reads (METHOD.md section 9)."""
OUTPUT_STRIDES = (16, 32)
EXPANSION = {"basic": 1, "bottleneck": 4}
"""Kind of block -> how many times its planes it gives out."""


class BackboneFeatures(NamedTuple):
    """What a backbone reads from a batch of images.

    Attributes:
        maps: (B, C3, H / 8, W / 8), (B, C4, H / 16, W / 16) and (B, C5, H / 32, W / 32), sides rounded up; the last
            has the sides of the second with ``output_stride=16``.
        pooled: (B, D) float32, the mean over the deepest features: the last map of a ResNet, the patch tokens of a
            transformer.
    """

    maps: tuple[Tensor, Tensor, Tensor]
    pooled: Tensor


@dataclass(frozen=True)
class ResNetSizes:
    """Sizes of one ResNet; "layers" and "planes" can be overridden by keyword.

    Attributes:
        block: "basic" or "bottleneck".
        layers: blocks of each of the four layers.
        planes: channels of the 3 x 3 convolutions of each layer.
        width: channels D of the deepest map; follows from the others.
    """

    block: str
    layers: tuple[int, ...]
    planes: tuple[int, ...] = (64, 128, 256, 512)
    width: int = field(init=False)

    def __post_init__(self) -> None:
        for name in ("layers", "planes"):
            value = tuple(int(number) for number in getattr(self, name))
            if len(value) != 4 or min(value) < 1:
                raise InputError(f"{name}={value} must hold 4 positive numbers, one for each layer of the ResNet.")
            object.__setattr__(self, name, value)
        object.__setattr__(self, "width", self.channels[-1])

    @property
    def channels(self) -> tuple[int, int, int]:
        """Channels of the maps of the last three layers."""
        _, *last = (plane * EXPANSION[self.block] for plane in self.planes)
        return last[0], last[1], last[2]


RESNETS: dict[str, ResNetSizes] = {
    # He et al., CVPR 2016, table 1.
    "resnet18": ResNetSizes("basic", (2, 2, 2, 2)),
    "resnet50": ResNetSizes("bottleneck", (3, 4, 6, 3)),
    # Two CPU cores, from scratch.
    "resnet_demo": ResNetSizes("basic", (1, 1, 1, 1), planes=(16, 32, 64, 128)),
}
BACKBONES = (*RESNETS, *PRESETS)
"""Names of the backbones: ResNets, then the presets of the MedCoSS encoder."""


def xray_backbone(
    name: str = "resnet18",
    *,
    input_shape: Iterable[int] = INPUT_SHAPE,
    modality: ModalityLike = "xray",
    **overrides: Any,
) -> ResNetBackbone | VitBackbone:
    """The backbone called ``name``.

    Args:
        name: one of :data:`BACKBONES`.
        input_shape: (C, H, W) of the images; other H and W still work.
        modality: name or registry entry of images.
        overrides: other sizes of :class:`ResNetSizes` or :class:`~medcoss_components.networks.presets.Preset`; None
            keeps the value of the name.

    Raises:
        InputError: for an unknown name or size, or sizes that do not fit together.
    """
    entry = get_modality(modality, input_shape=input_shape)
    if entry.dimension != 2:
        raise InputError(f"modality {entry.name}: X-ray backbones read images, this one has {entry.dimension} axes.")
    if name in RESNETS:
        return ResNetBackbone(resolve_resnet(name, **overrides), modality=entry)
    if name in PRESETS:
        return VitBackbone(name, modality=entry, **overrides)
    raise InputError(f"backbone={name!r} is unknown. Use one of {', '.join(BACKBONES)}.")


def backbone_sizes(name: str) -> ResNetSizes | Preset:
    """Sizes of a backbone by its name.

    Raises:
        InputError: for an unknown name.
    """
    return RESNETS[name] if name in RESNETS else resolve_preset(name)


def input_intensity(*, intensity: Mapping[str, Any] | str | None, preset: str) -> Mapping[str, Any] | None:
    """How images are scaled for a backbone, see :class:`~medcoss_components.data.task_inputs.TaskTransform`.

    Args:
        intensity: settings, or None, are taken as they are; "auto" gives mean 0 and variance 1 per image for a ResNet,
            as MUSCLE reads images, and None, values in [0, 1], for a MedCoSS encoder, as its chain read them.
        preset: name of the backbone.

    Raises:
        InputError: for another word.

    >>> input_intensity(intensity="auto", preset="resnet50"), input_intensity(intensity="auto", preset="vit_base")
    ({'standardise': 'image'}, None)
    """
    if not isinstance(intensity, str):
        return intensity
    if intensity != "auto":
        settings = {"standardise": "image"}
        raise InputError(f"intensity={intensity!r}: must be auto, settings such as {settings}, or null.")
    return {"standardise": "image"} if preset in RESNETS else None


def resolve_resnet(name: str, **overrides: Any) -> ResNetSizes:
    """The sizes of ``name`` with some replaced; None keeps a value.

    Raises:
        InputError: for an unknown size or one that breaks its rule.
    """
    given = {key: value for key, value in overrides.items() if value is not None}
    known = [entry.name for entry in fields(ResNetSizes) if entry.name not in ("block", "width")]
    if unknown := sorted(set(given) - set(known)):
        raise InputError(f"{', '.join(unknown)}: not a size of backbone {name}. Sizes are {', '.join(known)}.")
    return replace(RESNETS[name], **given)


class ResNetBackbone(ResNet):
    """A ResNet (He et al., CVPR 2016) of MONAI, in 2D, with the layers and names of torchvision's and without its last
    linear layer. The stride of 2 of a bottleneck block is that of its 3 x 3 convolution.

    Args:
        sizes: blocks and channels.
        modality: the registry entry with the input shape.

    Attributes:
        sizes, modality: as given.
        channels: (C3, C4, C5).
        width: D = C5.
        batch_norm_frozen: whether :meth:`freeze_batch_norm` holds.
    """

    def __init__(self, sizes: ResNetSizes, *, modality: Modality) -> None:
        super().__init__(
            block=sizes.block,
            layers=list(sizes.layers),
            block_inplanes=list(sizes.planes),
            spatial_dims=2,
            n_input_channels=modality.input_shape[0],
            conv1_t_stride=2,
            bias_downsample=False,
            feed_forward=False,
        )
        self.sizes, self.modality = sizes, modality
        self.channels, self.width = sizes.channels, sizes.width
        self.batch_norm_frozen = False

    def forward(self, images: Tensor, *, output_stride: int = 32) -> BackboneFeatures:
        """Read a batch of images.

        Args:
            images: (B, C, H, W) float.
            output_stride: 32, or 16 for the dilated last layer, see :func:`dilated_layer`.

        Raises:
            InputError: for images of another shape or another stride.
        """
        check_stride(output_stride)
        _check_images(images, self.modality)
        first = self.layer1(self.maxpool(self.act(self.bn1(self.conv1(images)))))
        third = self.layer2(first)
        fourth = self.layer3(third)
        last = self.layer4(fourth) if output_stride == 32 else dilated_layer(self.layer4, fourth)
        return BackboneFeatures((third, fourth, last), last.float().mean(dim=(2, 3)))

    def freeze_batch_norm(self, frozen: bool = True) -> None:
        """Keep statistics, scale and offset of every batch norm as they are, whatever :meth:`train` says; or undo it.

        Images then no longer depend on the others of their batch.
        """
        self.batch_norm_frozen = frozen
        for norm in self._batch_norms():
            norm.requires_grad_(not frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> ResNetBackbone:
        """Set the mode; frozen batch norms stay in evaluation mode."""
        super().train(mode)
        if getattr(self, "batch_norm_frozen", False):
            for norm in self._batch_norms():
                norm.eval()
        return self

    def initialise_parts(self, generator: torch.Generator | None) -> None:
        """First values of the convolutions: N(0, 2 / (outputs * kernel area)), He et al., ICCV 2015, fan out."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fill_he(module.weight, generator)

    def _batch_norms(self) -> list[nn.Module]:
        return [module for module in self.modules() if isinstance(module, _BatchNorm)]


@torch.no_grad()
def fill_he(kernel: Tensor, generator: torch.Generator | None) -> None:
    """Fill a kernel (outputs, inputs, rows, columns) in place with N(0, 2 / (outputs * rows * columns))."""
    if not kernel.is_meta:
        fan_out = kernel.shape[0] * kernel[0, 0].numel()
        kernel.copy_(torch.randn(kernel.shape, generator=generator) * (2.0 / fan_out) ** 0.5)


def dilated_layer(layer: nn.Sequential, maps: Tensor, *, rate: int = 2) -> Tensor:
    """Run a layer of MONAI's ResNet without its stride: dense features from the very same parameters.

    The convolution that had the stride moves by one position, and those behind it read every ``rate``-th position
    (atrous convolution, Chen et al. 2017, arXiv 1706.05587). So the result, taken at every second row and column, is
    the result of the layer itself (with fixed batch norm statistics).

    Args:
        layer: blocks, of which the first may have a stride of ``rate``.
        maps: (B, C, h, w).

    Returns:
        (B, C', h, w).
    """
    for block in layer:
        maps = _dense_block(block, maps, rate)
    return maps


def _dense_block(block: Any, inputs: Tensor, rate: int) -> Tensor:
    skip = inputs
    if block.downsample is not None:
        convolution, norm = block.downsample
        skip = norm(_dense_convolution(convolution, inputs, rate))
    maps = block.bn1(_dense_convolution(block.conv1, inputs, rate))
    maps = block.bn2(_dense_convolution(block.conv2, block.act(maps), rate))
    if hasattr(block, "conv3"):
        maps = block.bn3(block.conv3(block.act(maps)))
    return block.act(maps + skip)


def _dense_convolution(convolution: nn.Conv2d, inputs: Tensor, rate: int) -> Tensor:
    """The convolution with stride 1; dilated, unless it is the one that the stride belonged to."""
    dilation = 1 if convolution.stride[0] > 1 else rate
    padding = [dilation * (side // 2) for side in convolution.kernel_size]
    return F.conv2d(inputs, convolution.weight, None, stride=1, padding=padding, dilation=dilation)


class VitBackbone(Backbone):
    """The encoder of a MedCoSS chain in the ResNet's place, with its names behind ``backbone.``.

    Its last tokens are the map of stride 16. As in the simple feature pyramid of Li et al. (ECCV 2022, arXiv
    2203.16527) the map of stride 32 is its 2 x 2 maximum; that of stride 8 is interpolated instead of learned, because
    learned layers here would be missing in the weights of every pre-training. The heads have what is to be learned.

    There is no stochastic depth: cached features and momentum keys need one answer per image.

    Args:
        preset: sizes to start from.
        modality: the registry entry with the input shape.
        overrides: other sizes of :class:`~medcoss_components.networks.presets.Preset`.

    Attributes:
        channels: (D, D, D).
        width: D.

    Raises:
        InputError: for a patch other than 16 x 16, stochastic depth, or sizes that do not fit together.
    """

    def __init__(self, preset: str, *, modality: Modality, **overrides: Any) -> None:
        if overrides.get("stochastic_depth"):
            raise InputError(f"stochastic_depth={overrides['stochastic_depth']} must be 0 in an X-ray backbone.")
        shape = modality.input_shape
        super().__init__(preset=preset, modality=modality, input_shape=shape, **{**overrides, "stochastic_depth": 0.0})
        if self.patch != (16, 16):
            raise InputError(
                f"patch_2d={self.patch} must be (16, 16) in an X-ray backbone: its maps have fixed strides."
            )
        self.width = self.sizes.width
        self.channels = (self.width,) * 3

    def forward(self, images: Tensor, *, output_stride: int = 32) -> BackboneFeatures:
        """Read a batch of images (B, C, H, W); sides are multiples of 16. See :meth:`ResNetBackbone.forward`."""
        check_stride(output_stride)
        _check_images(images, self.modality)
        (tokens,) = self.encode_image(images)
        patches = tokens[:, 1:]
        grid = [side // cell for side, cell in zip(images.shape[2:], self.patch, strict=True)]
        middle = patches.transpose(1, 2).reshape(images.shape[0], self.width, *grid)
        fine = F.interpolate(middle, scale_factor=2.0, mode="bilinear", align_corners=False)
        last = middle if output_stride == 16 else F.max_pool2d(middle, kernel_size=2, ceil_mode=True)
        return BackboneFeatures((fine, middle, last), patches.float().mean(dim=1))

    def freeze_batch_norm(self, frozen: bool = True) -> None:
        """Nothing to do: a transformer has no batch norm."""


def check_stride(output_stride: int) -> None:
    """Raise InputError unless the stride of the last map is one that backbones have."""
    if output_stride not in OUTPUT_STRIDES:
        raise InputError(f"output_stride={output_stride!r} must be one of {', '.join(map(str, OUTPUT_STRIDES))}.")


def _check_images(images: Tensor, modality: Modality) -> None:
    channels = modality.input_shape[0]
    if images.ndim != 4 or images.shape[1] != channels:
        raise InputError(f"images: must be (B, {channels}, H, W), received {tuple(images.shape)}.")
