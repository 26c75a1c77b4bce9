"""Heads of the X-ray networks: each reads what a backbone gives, at the output stride that it names.

Axes: B images, H rows, W columns, D channels of the deepest features, K outputs. Maps and means of a transformer are
normalised first, because no norm stands behind its last block; those of a ResNet come from batch norms.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from medcoss_components.data.boxes import resolve_categories
from medcoss_components.errors import InputError
from medcoss_components.networks.classification import class_names, classification_head
from medcoss_components.networks.deeplab import DeepLabHead
from medcoss_components.networks.retinanet import PlaceNorm, RetinaNetHead
from medcoss_components.networks.segmentation import region_values
from medcoss_components.networks.xray_backbones import BackboneFeatures, VitBackbone


class ClassHead(nn.Module):
    """The mean of the deepest features -> (B, K) float32 logits."""

    output_stride = 32

    def __init__(self, backbone: nn.Module, *, classes: Sequence[str]) -> None:
        super().__init__()
        if isinstance(backbone, VitBackbone):
            layers = classification_head(2, backbone.width, len(classes))
        else:
            layers = nn.Sequential(OrderedDict(output=nn.Linear(int(backbone.width), len(classes))))
        for name, layer in layers.named_children():
            self.add_module(name, layer)

    def forward(self, features: BackboneFeatures, size: Sequence[int]) -> Tensor:
        pooled = features.pooled
        for layer in self.children():
            pooled = layer(pooled)
        return pooled.float()


class RegionHead(DeepLabHead):
    """The deepest map of stride 16 -> (B, K, H, W) float32 logits."""

    output_stride = 16

    def __init__(self, backbone: Any, *, regions: Mapping[str, Any], head_width: int = 256) -> None:
        super().__init__(channels=backbone.channels[-1], regions=len(regions), width=head_width)
        self.norm = PlaceNorm(backbone.width) if isinstance(backbone, VitBackbone) else nn.Identity()

    def forward(self, features: BackboneFeatures, size: Sequence[int]) -> Tensor:
        return super().forward(self.norm(features.maps[-1]), size)


class BoxHead(RetinaNetHead):
    """All three maps -> scores and shifts of the anchors."""

    output_stride = 32

    def __init__(self, backbone: Any, *, categories: Sequence[str], head_width: int = 256, **settings: Any) -> None:
        super().__init__(
            channels=backbone.channels,
            categories=len(categories),
            width=head_width,
            norm_inputs=isinstance(backbone, VitBackbone),
            **settings,
        )

    def forward(  # type: ignore[override]
        self, features: BackboneFeatures, size: Sequence[int]
    ) -> dict[str, list[Tensor]]:
        return super().forward(features.maps)


def category_names(categories: int | Sequence[str]) -> tuple[str, ...]:
    """Names of the categories in the order of the labels; a number K stands for "0" to "K - 1".

    Raises:
        InputError: for none, a name twice or something that is no list.
    """
    names = [str(number) for number in range(categories)] if isinstance(categories, int) else categories
    unique = resolve_categories(names)
    if not all(unique):
        raise InputError(f"categories: no name may be empty, received {list(unique)}.")
    return unique


HEADS: dict[str, tuple[type[nn.Module], str, Any]] = {
    "classification": (ClassHead, "classes", class_names),
    "segmentation": (RegionHead, "regions", region_values),
    "detection": (BoxHead, "categories", category_names),
}
"""Kind of a task -> its head, the setting that names its outputs, and how these are read."""
