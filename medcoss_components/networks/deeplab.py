"""The DeepLab-V3 head (Chen et al. 2017, arXiv 1706.05587): atrous spatial pyramid pooling and a classifier.

Axes: B images, C channels of the deepest map, F channels of the head, K regions, h and w rows and columns of the map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medcoss_components.errors import InputError

RATES = (6, 12, 18)
"""Dilations of the three atrous convolutions for maps of stride 16 (section 3.3 of the paper)."""


class DeepLabHead(nn.Module):
    """One map of logits per region from the deepest map of a backbone, at the size of the image.

    1 x 1 convolution, three atrous 3 x 3 convolutions and the mean of the image, side by side; joined by a 1 x 1
    convolution; then 3 x 3 and the classifier. Batch norm and ReLU follow every convolution but the last. The image's
    mean is one value per channel, of which a batch of one image has no spread: layer norm over its channels takes
    batch norm's place there. There is no dropout, whose draws a resumed run could not repeat.

    Args:
        channels: C.
        regions: K.
        width: F.
        rates: dilations of the atrous convolutions.

    Raises:
        InputError: for sizes below 1.
    """

    def __init__(self, *, channels: int, regions: int, width: int = 256, rates: Sequence[int] = RATES) -> None:
        super().__init__()
        if min(channels, regions, width, *rates) < 1:
            raise InputError(f"head_width={width}, rates={tuple(rates)}, {regions} regions: all must be at least 1.")
        self.branches = nn.ModuleList(
            [_convolved(channels, width, 1), *(_convolved(channels, width, 3, rate) for rate in rates)]
        )
        self.image = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.GroupNorm(1, width), nn.ReLU())
        self.projection = _convolved((len(rates) + 2) * width, width, 1)
        self.refinement = _convolved(width, width, 3)
        self.output = nn.Conv2d(width, regions, 1)

    def forward(self, maps: Tensor, size: Sequence[int]) -> Tensor:
        """Segment.

        Args:
            maps: (B, C, h, w).
            size: rows and columns of the image.

        Returns:
            (B, K, rows, columns) float32 logits, interpolated bilinearly from (h, w).
        """
        pooled = self.image(maps.mean(dim=(2, 3), keepdim=True)).expand(-1, -1, *maps.shape[2:])
        joined = torch.cat([*(branch(maps) for branch in self.branches), pooled], dim=1)
        logits = self.output(self.refinement(self.projection(joined)))
        return F.interpolate(logits.float(), size=tuple(size), mode="bilinear", align_corners=False)


def _convolved(inputs: int, outputs: int, side: int, rate: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU; the map keeps its sides."""
    padding = rate * (side // 2)
    convolution = nn.Conv2d(inputs, outputs, side, padding=padding, dilation=rate, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())
