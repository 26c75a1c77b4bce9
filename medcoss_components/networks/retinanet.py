"""The RetinaNet head (Lin et al., ICCV 2017, arXiv 1708.02002), put together from ``monai.apps.detection``.

MUSCLE has Faster R-CNN for detection. MONAI has neither region proposals nor RoI pooling, so its detector, RetinaNet,
stands in. Boxes are (left, top, right, bottom) in pixels of the image that the network reads: x to the right, y down,
right and bottom exclusive. MONAI's parts count rows first, (top, left, bottom, right); this file turns them.

Axes: B images, K categories, A anchors at each place, N anchors of an image, n boxes of an image.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector
from monai.apps.detection.networks.retinanet_network import RetinaNetClassificationHead, RetinaNetRegressionHead
from monai.apps.detection.utils.anchor_utils import AnchorGenerator
from monai.losses import FocalLoss
from monai.networks.blocks.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7
from torch import Tensor, nn

from medcoss_components.errors import InputError

STRIDES = (8, 16, 32, 64, 128)
"""Pixels between the places of each level."""
SCALES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
RATIOS = (0.5, 1.0, 2.0)
"""Sizes and shapes (columns to rows) of the anchors at each place (section 4 of the paper)."""
ANCHORS = len(SCALES) * len(RATIOS)
PRIOR = 0.01
"""Probability that every anchor starts with, so that the background does not drown the first steps (section 4.1)."""
FOCUS, BALANCE = 2.0, 0.25
"""gamma and alpha of the focal loss (section 5.1)."""
CANDIDATES_PER_BOX, CANDIDATES_PER_LEVEL = 4, 1000
ROWS_FIRST = (1, 0, 3, 2)
"""(left, top, right, bottom) -> (top, left, bottom, right), and back."""
GROUPS = 8
"""Groups of the group norms of MONAI's heads; each needs two channels, because the last map may have one place."""
CLASSIFICATION, BOX_REGRESSION = "classification", "box_regression"

Outputs = Mapping[str, Sequence[Tensor]]


class _LastLevels(LastLevelP6P7):
    """Levels 6 and 7 of the pyramid; on a CPU in float32, also under autocast.

    There, torch 2.13's bfloat16 weight gradient of a 3 x 3 convolution with stride 2 on a single pixel, which level 6
    is for images of up to 64 pixels, reads memory that nobody wrote (oneDNN, CPUs with AVX-512 bf16).
    """

    def forward(self, results: list[Tensor], x: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        if x[-1].device.type != "cpu":
            return super().forward(results, x, names)
        with torch.autocast("cpu", enabled=False):
            return super().forward(_not_halved(results), _not_halved(x), names)


def _not_halved(maps: Sequence[Tensor]) -> list[Tensor]:
    """Maps in float32 where autocast has made bfloat16 of them."""
    return [level.float() if level.dtype == torch.bfloat16 else level for level in maps]


def anchor_count(sides: Sequence[int]) -> int:
    """Anchors of an image of these rows and columns, all levels together.

    >>> anchor_count((320, 320)), anchor_count((64, 64))
    (19206, 774)
    """
    places = sum(math.prod(-(-side // stride) for side in sides) for stride in STRIDES)
    return places * len(SCALES) * len(RATIOS)


class RetinaNetHead(nn.Module):
    """Feature pyramid, classifier and box regression on the maps of a backbone.

    Args:
        channels: (C3, C4, C5) of the maps.
        categories: K.
        width: channels of the pyramid and the heads, a multiple of 8 from 16 on.
        anchor_scale: side of the smallest square anchor of a level, in strides of the level. The paper's 4 suits
            images of 800 pixels; 2 gives images of 320 the same range of sizes in relation to the image.
        score_threshold: lowest score of a detection.
        nms_threshold: boxes of one category that overlap a better one by more (IoU) are left out.
        boxes_per_image: most detections of an image.
        norm_inputs: whether the channels of each place of the maps are normalised first; for maps of transformers,
            which no norm has gone over.

    Raises:
        InputError: for a setting out of range.
    """

    def __init__(
        self,
        *,
        channels: Sequence[int],
        categories: int,
        width: int = 256,
        anchor_scale: float = 2.0,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        boxes_per_image: int = 100,
        norm_inputs: bool = False,
    ) -> None:
        super().__init__()
        _check_settings(width, anchor_scale, score_threshold, nms_threshold, boxes_per_image)
        self.categories, self.anchor_scale = categories, float(anchor_scale)
        self.score_threshold, self.nms_threshold = float(score_threshold), float(nms_threshold)
        self.boxes_per_image = boxes_per_image
        self.norms = nn.ModuleList(PlaceNorm(count) for count in channels) if norm_inputs else None
        self.pyramid = FeaturePyramidNetwork(2, list(channels), width, _LastLevels(2, width, width))
        self.classification = RetinaNetClassificationHead(width, ANCHORS, categories, spatial_dims=2)
        self.regression = RetinaNetRegressionHead(width, ANCHORS, spatial_dims=2)

    def forward(self, maps: Sequence[Tensor]) -> dict[str, list[Tensor]]:
        """Score and place the anchors.

        Args:
            maps: (B, C3, h, w), (B, C4, h / 2, w / 2), (B, C5, h / 4, w / 4).

        Returns:
            "classification": logits (B, A * K, rows, columns) float32 of each level, and "box_regression":
            (B, A * 4, rows, columns), as MONAI's detector reads them.
        """
        if self.norms is not None:
            maps = [norm(level) for norm, level in zip(self.norms, maps, strict=True)]
        levels = self.pyramid(OrderedDict(zip(("c3", "c4", "c5"), maps, strict=True))).values()
        # Not MONAI's forward of the heads: it stops at numbers that are not finite, before the trainer sees the loss.
        scores = [self.classification.cls_logits(self.classification.conv(level)).float() for level in levels]
        shifts = [self.regression.bbox_reg(self.regression.conv(level)).float() for level in levels]
        return {CLASSIFICATION: scores, BOX_REGRESSION: shifts}

    def initialise_parts(self, generator: torch.Generator | None) -> None:
        """First values of section 4.1: weights N(0, 0.01^2), biases 0, those of the scores -log((1 - p) / p)."""
        for module in (*self.classification.modules(), *self.regression.modules()):
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
                with torch.no_grad():
                    module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * 0.01)
        scores = self.classification.cls_logits
        if scores.bias is not None:
            nn.init.constant_(scores.bias, -math.log((1 - PRIOR) / PRIOR))

    def loss(self, outputs: Outputs, targets: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Focal loss of all anchors and smooth L1 of the matched ones, both divided by the number of matched ones.

        Anchors are matched by ATSS (Zhang et al., CVPR 2020, arXiv 1912.02424). Images without boxes count as
        background. Every parameter gets a gradient, also when no image of the batch has a box.

        Args:
            outputs: of :meth:`forward`.
            targets: for each image "boxes" (n, 4) float32 and "labels" (n,) int64 in [0, K); n may be 0.

        Returns:
            "classification" and "box_regression", scalars; not finite where the outputs are not.

        Raises:
            InputError: for targets of another number, shape or range.
        """
        scores, shifts = self._flat(outputs)
        if len(targets) != len(scores):
            raise InputError(f"targets: {len(targets)} for {len(scores)} images; each image needs one.")
        if not (torch.isfinite(scores).all() and torch.isfinite(shifts).all()):
            return {CLASSIFICATION: scores.sum(), BOX_REGRESSION: shifts.sum()}
        rows_first = [_checked_target(target, self.categories, scores.device) for target in targets]
        anchors = self._anchors(outputs)
        losses = self._detector().compute_loss(
            {CLASSIFICATION: scores, BOX_REGRESSION: shifts}, rows_first, [anchors] * len(scores), _places(outputs)
        )
        return {
            CLASSIFICATION: losses[CLASSIFICATION],
            BOX_REGRESSION: losses[BOX_REGRESSION].to(shifts.device) + 0.0 * shifts.sum(),
        }

    @torch.no_grad()
    def detections(self, outputs: Outputs, image_size: Sequence[int]) -> list[dict[str, Tensor]]:
        """Boxes above the score threshold after non-maximum suppression within each category, best first.

        Args:
            outputs: of :meth:`forward`.
            image_size: rows and columns of the image; boxes end there.

        Returns:
            For each image "boxes" (n, 4) float32, "labels" (n,) int64, "scores" (n,) float32 in [0, 1].
        """
        scores, shifts = self._flat(outputs)
        anchors = [self._anchors(outputs)] * len(scores)
        found = self._detector().postprocess_detections(
            {CLASSIFICATION: scores, BOX_REGRESSION: shifts}, anchors, [list(image_size)] * len(scores),
            _places(outputs),
        )  # fmt: skip
        return [
            {"boxes": one["boxes"][:, ROWS_FIRST], "labels": one["labels"], "scores": one["labels_scores"]}
            for one in found
        ]

    def candidates(self, outputs: Outputs) -> Tensor:
        """Every anchor's box and scores in one tensor, for exports: what is left to do is non-maximum suppression.

        Returns:
            (B, N, 4 + K) float32: left, top, right, bottom, then probabilities.
        """
        scores, shifts = self._flat(outputs)
        anchors = self._anchors(outputs)
        sides = anchors[:, 2:] - anchors[:, :2]
        centres = anchors[:, :2] + 0.5 * sides + shifts[..., :2] * sides
        halves = 0.5 * sides * shifts[..., 2:].clamp(max=math.log(1000 / 16)).exp()
        boxes = torch.cat([centres - halves, centres + halves], dim=-1)
        return torch.cat([boxes[..., ROWS_FIRST], scores.sigmoid()], dim=-1)

    def _flat(self, outputs: Outputs) -> tuple[Tensor, Tensor]:
        """(B, N, K) logits and (B, N, 4) shifts: level by level, row by row, place by place, anchor by anchor."""
        scores = [_by_anchor(level, self.categories) for level in outputs[CLASSIFICATION]]
        shifts = [_by_anchor(level, 4) for level in outputs[BOX_REGRESSION]]
        return torch.cat(scores, dim=1), torch.cat(shifts, dim=1)

    def _anchors(self, outputs: Outputs) -> Tensor:
        """(N, 4) float32 anchors, rows first, around the middle of each place."""
        levels = outputs[CLASSIFICATION]
        generator = self._anchor_generator()
        generator.set_cell_anchors(torch.float32, levels[0].device)
        grids = [list(level.shape[2:]) for level in levels]
        return torch.cat(generator.grid_anchors(grids, [[stride, stride] for stride in STRIDES])).float()

    def _anchor_generator(self) -> AnchorGenerator:
        sizes = tuple(tuple(stride * self.anchor_scale * scale for scale in SCALES) for stride in STRIDES)
        return AnchorGenerator(sizes, (RATIOS,) * len(STRIDES))

    def _detector(self) -> RetinaNetDetector:
        """MONAI's detector for the loss and the selection; it has no parameters and is made for each use."""
        detector = _Detector(nn.Identity(), self._anchor_generator(), spatial_dims=2, num_classes=self.categories)
        with _root_logger_untouched():
            detector.set_atss_matcher(CANDIDATES_PER_BOX)
        detector.set_cls_loss(AnchorScoreLoss())
        detector.set_box_regression_loss(AnchorShiftLoss(), encode_gt=True, decode_pred=False)
        detector.set_box_selector_parameters(
            score_thresh=self.score_threshold,
            topk_candidates_per_level=CANDIDATES_PER_LEVEL,
            nms_thresh=self.nms_threshold,
            detections_per_img=self.boxes_per_image,
        )
        return detector


class _Detector(RetinaNetDetector):
    """MONAI's detector with its ATSS matcher alone; it would ask torchvision, for another matcher's class, first."""

    def compute_anchor_matched_idxs(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]], num_anchor_locs_per_level: Sequence[int]
    ) -> list[Tensor]:
        """For each image (N,) int64: the number of the box that an anchor is matched with, or a negative number."""
        matches = []
        for places, target in zip(anchors, targets, strict=True):
            if not len(target["boxes"]):
                matches.append(torch.full((len(places),), -1, dtype=torch.int64, device=places.device))
                continue
            _, match = self.proposal_matcher(target["boxes"], places, num_anchor_locs_per_level, ANCHORS)
            matches.append(match)
        return matches


class PlaceNorm(nn.LayerNorm):
    """Layer norm over the channels of each place of a map (B, C, h, w)."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class AnchorScoreLoss(nn.Module):
    """Sum of MONAI's focal loss over anchors and categories, divided by the number of matched anchors (at least 1)."""

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Scalar from (anchors, K) and (anchors, K); the row of a matched anchor has one 1."""
        terms = FocalLoss(gamma=FOCUS, alpha=BALANCE, reduction="none")(logits, targets)
        return terms.sum() / targets.sum().clamp(min=1.0)


class AnchorShiftLoss(nn.Module):
    """Smooth L1 of the matched anchors, summed over the four numbers and divided by the number of anchors."""

    def forward(self, shifts: Tensor, targets: Tensor) -> Tensor:
        """Scalar from (anchors, 4) and (anchors, 4)."""
        return F.smooth_l1_loss(shifts, targets, beta=1 / 9, reduction="sum") / len(shifts)


def _by_anchor(level: Tensor, values: int) -> Tensor:
    """(B, A * values, h, w) -> (B, h * w * A, values)."""
    batch, _, rows, columns = level.shape
    return level.reshape(batch, ANCHORS, values, rows, columns).permute(0, 3, 4, 1, 2).reshape(batch, -1, values)


def _places(outputs: Outputs) -> list[int]:
    return [level.shape[2] * level.shape[3] for level in outputs[CLASSIFICATION]]


def _checked_target(target: Mapping[str, Tensor], categories: int, device: torch.device) -> dict[str, Tensor]:
    """The boxes, rows first, and labels of one image on the device."""
    boxes = (
        target["boxes"].to(device, torch.float32).reshape(-1, 4) if target["boxes"].numel() == 0 else target["boxes"]
    )
    labels = target["labels"].to(device).long()
    if boxes.ndim != 2 or boxes.shape[1] != 4 or labels.shape != boxes.shape[:1]:
        raise InputError(f"targets: boxes {tuple(boxes.shape)} must be (n, 4), labels {tuple(labels.shape)} (n,).")
    boxes = boxes.to(device, torch.float32)
    if not (torch.isfinite(boxes).all() and (boxes[:, 2:] > boxes[:, :2]).all()):
        raise InputError(
            "targets: every box must be finite (left, top, right, bottom) with left < right, top < bottom."
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < categories:
        raise InputError(f"targets: labels {labels.unique().tolist()} must be in [0, {categories}).")
    return {"boxes": boxes[:, ROWS_FIRST], "labels": labels}


def _check_settings(width: int, scale: float, score: float, overlap: float, boxes: int) -> None:
    if width < 2 * GROUPS or width % GROUPS:
        rule = f"must be a multiple of {GROUPS}, the groups of MONAI's detection heads, and at least {2 * GROUPS}"
        raise InputError(f"head_width={width} {rule}.")
    if scale <= 0 or boxes < 1:
        raise InputError(f"anchor_scale={scale} must be above 0 and boxes_per_image={boxes} at least 1.")
    if not (0 <= score < 1 and 0 < overlap <= 1):
        raise InputError(f"score_threshold={score} must be in [0, 1), nms_threshold={overlap} in (0, 1].")


@contextmanager
def _root_logger_untouched() -> Iterator[None]:
    """MONAI's matcher logs through the root logger, which would give it a handler for all later messages."""
    handler = logging.NullHandler()
    logging.root.addHandler(handler)
    try:
        yield
    finally:
        logging.root.removeHandler(handler)
