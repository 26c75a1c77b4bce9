"""Networks for the X-ray tasks of MUSCLE (METHOD.md section 9): one backbone, and a head for each task.

State dict: ``backbone.*`` and ``head.*``, with several tasks ``heads.<task>.*``. The statistics of batch norms belong
to the weights. Axes: B images, C channels, H rows, W columns, D channels of the deepest features, K outputs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from medcoss_components.data.modalities import Modality
from medcoss_components.errors import InputError
from medcoss_components.networks.classification import class_names
from medcoss_components.networks.initialisation import initialise
from medcoss_components.networks.presets import Preset
from medcoss_components.networks.pretraining import ModalityLike
from medcoss_components.networks.retinanet import Outputs
from medcoss_components.networks.segmentation import region_values
from medcoss_components.networks.xray_backbones import INPUT_SHAPE, ResNetSizes, xray_backbone
from medcoss_components.networks.xray_heads import HEADS, BoxHead, ClassHead, RegionHead, category_names

Network = TypeVar("Network", bound="XrayModel")
TASK_NAME = re.compile(r"[a-z][a-z0-9_]{0,59}")


class XrayModel(nn.Module):
    """A backbone whose task networks are told apart by their heads.

    Args:
        backbone: one of :data:`~medcoss_components.networks.xray_backbones.BACKBONES`.
        input_shape: (C, H, W) of the images; other H and W still work (multiples of 16 for transformers).
        modality: name or registry entry of images.
        overrides: other sizes of the backbone.

    Attributes:
        backbone: the module.
        backbone_name: as given.
        modality: the registry entry with the input shape.
        sizes: of the backbone.
        encoder_frozen: whether :meth:`freeze_encoder` was called.
    """

    def __init__(
        self, *, backbone: str, input_shape: Iterable[int], modality: ModalityLike, overrides: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.backbone_name = backbone
        self.encoder_frozen = False
        self.backbone = xray_backbone(backbone, input_shape=input_shape, modality=modality, **overrides)

    @property
    def modality(self) -> Modality:
        """The registry entry with the input shape of this network."""
        return self.backbone.modality

    @property
    def sizes(self) -> ResNetSizes | Preset:
        """Sizes of the backbone."""
        return self.backbone.sizes

    def freeze_encoder(self: Network) -> Network:
        """Leave the backbone and its batch norm statistics as they are: only the heads learn (linear probe)."""
        self.encoder_frozen = True
        self.backbone.requires_grad_(False)
        return self.train(self.training)

    def train(self: Network, mode: bool = True) -> Network:
        """Set the mode; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.encoder_frozen:
            self.backbone.eval()
        return self


class XrayEmbeddingModel(XrayModel):
    """The backbone alone: one vector per image, and what is published of MUSCLE's pre-training.

    Args:
        backbone, input_shape, modality, overrides: see :class:`XrayModel`.

    Example:
        >>> import torch
        >>> XrayEmbeddingModel(backbone="resnet_demo")(torch.zeros(2, 3, 64, 96)).shape
        torch.Size([2, 128])
    """

    def __init__(
        self,
        *,
        backbone: str = "resnet18",
        input_shape: Iterable[int] = INPUT_SHAPE,
        modality: ModalityLike = "xray",
        **overrides: Any,
    ) -> None:
        super().__init__(backbone=backbone, input_shape=input_shape, modality=modality, overrides=overrides)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D) float32, the mean over the deepest features."""
        return self.backbone(images).pooled


class XrayClassificationModel(XrayModel):
    """Logits per class: the mean over the deepest map and one linear layer, with layer norm before it for transformers.

    Args:
        classes: names in the order of the outputs, or how many there are.
        backbone, input_shape, modality, overrides: see :class:`XrayModel`.

    Attributes:
        classes: names of the outputs.

    Raises:
        InputError: for settings that do not fit together; the message names them.

    Example:
        >>> import torch
        >>> model = XrayClassificationModel(backbone="resnet_demo", classes=["normal", "pneumonia"])
        >>> model(torch.zeros(2, 3, 64, 96)).shape
        torch.Size([2, 2])
    """

    def __init__(
        self,
        *,
        backbone: str = "resnet18",
        input_shape: Iterable[int] = INPUT_SHAPE,
        classes: int | Sequence[str],
        modality: ModalityLike = "xray",
        **overrides: Any,
    ) -> None:
        super().__init__(backbone=backbone, input_shape=input_shape, modality=modality, overrides=overrides)
        self.classes = class_names(classes)
        self.head = ClassHead(self.backbone, classes=self.classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K) float32 logits."""
        return self.head(self.backbone(images, output_stride=self.head.output_stride), images.shape[2:])

    def embedding(self, images: Tensor) -> Tensor:
        """What the head reads: (B, D) float32."""
        return self.backbone(images, output_stride=self.head.output_stride).pooled


class XraySegmentationModel(XrayModel):
    """Logits per pixel and region by DeepLab-V3 on features of stride 16; regions may overlap.

    Args:
        regions: name -> mask values (or "any" for all but 0) in the order of the outputs, or how many there are.
        head_width: channels of the head.
        backbone, input_shape, modality, overrides: see :class:`XrayModel`.

    Attributes:
        regions: name -> mask values or "any".

    Raises:
        InputError: for settings that do not fit together; the message names them.
    """

    def __init__(
        self,
        *,
        backbone: str = "resnet18",
        input_shape: Iterable[int] = INPUT_SHAPE,
        regions: int | Mapping[str, Any],
        modality: ModalityLike = "xray",
        head_width: int = 256,
        **overrides: Any,
    ) -> None:
        super().__init__(backbone=backbone, input_shape=input_shape, modality=modality, overrides=overrides)
        self.regions = region_values(regions)
        self.head = RegionHead(self.backbone, regions=self.regions, head_width=head_width)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K, H, W) float32 logits; a sigmoid makes them probabilities."""
        return self.head(self.backbone(images, output_stride=self.head.output_stride), images.shape[2:])


class XrayDetectionModel(XrayModel):
    """Boxes of categories by RetinaNet, see :class:`~medcoss_components.networks.retinanet.RetinaNetHead`.

    MUSCLE has Faster R-CNN here, which MONAI does not have.

    Args:
        categories: names in the order of the labels, or how many there are.
        head_width, anchor_scale, score_threshold, nms_threshold, boxes_per_image: of the head.
        backbone, input_shape, modality, overrides: see :class:`XrayModel`.

    Attributes:
        categories: names of the labels.

    Raises:
        InputError: for settings that do not fit together; the message names them.
    """

    def __init__(
        self,
        *,
        backbone: str = "resnet18",
        input_shape: Iterable[int] = INPUT_SHAPE,
        categories: int | Sequence[str],
        modality: ModalityLike = "xray",
        head_width: int = 256,
        anchor_scale: float = 2.0,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        boxes_per_image: int = 100,
        **overrides: Any,
    ) -> None:
        super().__init__(backbone=backbone, input_shape=input_shape, modality=modality, overrides=overrides)
        self.categories = category_names(categories)
        self.head = BoxHead(
            self.backbone,
            categories=self.categories,
            head_width=head_width,
            anchor_scale=anchor_scale,
            score_threshold=score_threshold,
            nms_threshold=nms_threshold,
            boxes_per_image=boxes_per_image,
        )
        initialise(self)

    def forward(self, images: Tensor) -> dict[str, list[Tensor]]:
        """(B, C, H, W) -> "classification" and "box_regression" maps of every level, see :class:`RetinaNetHead`."""
        return self.head(self.backbone(images, output_stride=self.head.output_stride), images.shape[2:])

    def loss(self, outputs: Outputs, targets: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """See :meth:`~medcoss_components.networks.retinanet.RetinaNetHead.loss`."""
        return self.head.loss(outputs, targets)

    def detections(self, outputs: Outputs, image_size: Sequence[int]) -> list[dict[str, Tensor]]:
        """See :meth:`~medcoss_components.networks.retinanet.RetinaNetHead.detections`."""
        return self.head.detections(outputs, image_size)

    def export_module(self) -> DetectionCandidates:
        """This network with one tensor as its output, sharing the weights."""
        return DetectionCandidates(self)


class DetectionCandidates(nn.Module):
    """A detection network as one function of tensors, for TorchScript and ONNX; who runs it selects by NMS."""

    def __init__(self, network: XrayDetectionModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, 4 + K) float32: left, top, right, bottom of each anchor's box, then probabilities."""
        return self.network.head.candidates(self.network(images))


class MultiTaskXrayModel(XrayModel):
    """One backbone and a head for each of several tasks, called one task at a time.

    Args:
        tasks: name -> {"kind": "classification", "classes": [...]}, {"kind": "segmentation", "regions": {...}} or
            {"kind": "detection", "categories": [...]}; further entries are settings of the head ("head_width", ...).
        backbone, input_shape, modality, overrides: see :class:`XrayModel`.

    Attributes:
        tasks: name -> {"kind", and the names of the outputs as the single-task network has them}.
        heads: by name of the task, built as in the single-task networks.

    Raises:
        InputError: for an unknown kind, or settings that do not fit together; the message names the task.

    Example:
        >>> import torch
        >>> tasks = {"chest": {"kind": "classification", "classes": 2}, "lungs": {"kind": "segmentation", "regions": 1}}
        >>> model = MultiTaskXrayModel(backbone="resnet_demo", tasks=tasks)
        >>> output, pooled = model(torch.zeros(2, 3, 64, 64), task="lungs")
        >>> output.shape, pooled.shape
        (torch.Size([2, 1, 64, 64]), torch.Size([2, 128]))
    """

    def __init__(
        self,
        *,
        backbone: str = "resnet18",
        input_shape: Iterable[int] = INPUT_SHAPE,
        tasks: Mapping[str, Mapping[str, Any]],
        modality: ModalityLike = "xray",
        **overrides: Any,
    ) -> None:
        super().__init__(backbone=backbone, input_shape=input_shape, modality=modality, overrides=overrides)
        if not tasks:
            raise InputError("tasks: must name at least one task.")
        self.heads = nn.ModuleDict()
        self.tasks: dict[str, dict[str, Any]] = {}
        for name, entry in tasks.items():
            self.heads[_task_name(name)], self.tasks[name] = self._head(name, entry)
        initialise(self)

    def _head(self, name: str, entry: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
        settings = dict(entry)
        kind = settings.pop("kind", None)
        if kind not in HEADS:
            raise InputError(f"tasks: kind {kind!r} of {name} must be one of {', '.join(HEADS)}.")
        build, key, read = HEADS[kind]
        if key not in settings:
            raise InputError(f"tasks: {name} is of kind {kind} and needs {key}.")
        try:
            outputs = read(settings.pop(key))
            return build(self.backbone, **{key: outputs}, **settings), {"kind": kind, key: outputs}
        except (InputError, TypeError) as error:
            raise InputError(f"tasks: {name}: {error}") from error

    def forward(self, images: Tensor, *, task: str) -> tuple[Any, Tensor]:
        """Read a batch for one task.

        Args:
            images: (B, C, H, W).
            task: its name.

        Returns:
            What the single-task network of its kind gives, and the pooled features (B, D) float32 of the same pass.

        Raises:
            InputError: for an unknown task or images of another shape.
        """
        head = self._known(task)
        features = self.backbone(images, output_stride=head.output_stride)
        return head(features, images.shape[2:]), features.pooled

    def embedding(self, images: Tensor, task: str) -> Tensor:
        """The pooled features (B, D) float32 that :meth:`forward` gives for the task."""
        return self.backbone(images, output_stride=self._known(task).output_stride).pooled

    def _known(self, task: str) -> Any:
        if task not in self.heads:
            raise InputError(f"task={task!r} is unknown; the tasks are {', '.join(self.heads)}.")
        return self.heads[task]


def _task_name(name: str) -> str:
    if not TASK_NAME.fullmatch(name) or hasattr(nn.ModuleDict, name):
        rule = "must be a letter a-z, then at most 59 of a-z, 0-9 and '_', and no word of Python's dictionaries"
        raise InputError(f"tasks: name {name!r} {rule}.")
    return name
