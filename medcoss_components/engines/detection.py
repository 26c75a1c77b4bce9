"""Detection as a downstream task: its loss, and its evaluation in the pixels of the files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from medcoss_components.continual.strategies import LossTerm
from medcoss_components.data.boxes import resolve_categories
from medcoss_components.data.plane_geometry import has_area
from medcoss_components.engines.task_evaluators import THRESHOLD, TaskEvaluator
from medcoss_components.engines.task_losses import DETECTION
from medcoss_components.engines.trainer import module_of
from medcoss_components.errors import InputError

if TYPE_CHECKING:
    from medcoss_components.evaluation.detection import DetectionResult

BOXES = "boxes"
"""Kind of the loss of the boxes' sides; the loss of their categories is called after the task."""


class DetectionLoss:
    """The network's own losses of categories and of sides, both reported, their weighted sum minimised.

    Each image is compared alone and the images are averaged, as RetinaNet's loss is meant (Lin et al. 2017): then an
    image with many boxes outweighs no other, and several ranks compute the same as one.

    Args:
        network: has ``loss(outputs, targets)``, see
            :class:`~medcoss_components.networks.xray_tasks.XrayDetectionModel`.
        box_weight: factor of the loss of the sides, above 0.

    Raises:
        InputError: a network without such a loss, or another factor.
    """

    def __init__(self, network: torch.nn.Module, box_weight: float = 1.0) -> None:
        if not callable(getattr(network, "loss", None)):
            raise InputError(
                f"network: {type(network).__name__} has no loss(outputs, targets); give a detection model."
            )
        if not (math.isfinite(box_weight) and box_weight > 0):
            raise InputError(f"box_weight={box_weight}: must be a number above 0.")
        self.network, self.box_weight = network, float(box_weight)

    def __call__(
        self, outputs: Mapping[str, Sequence[torch.Tensor]], targets: Sequence[Mapping[str, torch.Tensor]]
    ) -> LossTerm:
        """Loss of the network's outputs, (B, A * K, h, w) and (B, A * 4, h, w) a level, against B targets."""
        parts = [self.network.loss(_image(outputs, row), [target]) for row, target in enumerate(targets)]
        categories = torch.stack([part["classification"].float() for part in parts]).sum()
        sides = torch.stack([part["box_regression"].float().to(categories.device) for part in parts]).sum()
        count = torch.tensor(float(len(parts)), device=categories.device)
        return LossTerm(DETECTION, categories, count, (LossTerm(BOXES, self.box_weight * sides, count),))


def _image(outputs: Mapping[str, Sequence[torch.Tensor]], row: int) -> dict[str, list[torch.Tensor]]:
    """The outputs of one image of a batch, as a batch of one."""
    return {name: [level[row : row + 1] for level in levels] for name, levels in outputs.items()}


def detection_loss(*, network: torch.nn.Module, box_weight: float = 1.0) -> DetectionLoss:
    """The loss of a detection task; arguments as of :class:`DetectionLoss`."""
    return DetectionLoss(network, box_weight)


class DetectionEvaluator(TaskEvaluator):
    """Found boxes of every case against the true ones, both in pixels of the file.

    Args:
        categories: K names in the order of the network's outputs.
        threshold: score from which a box counts in tables, pictures, ``sensitivity`` and ``false_positives``; average
            precision looks at all boxes that the network gives.
        pictures: how many of the worst cases are kept for the report.

    Other arguments as for :class:`~medcoss_components.engines.task_evaluators.TaskEvaluator`; the network has
    ``detections(outputs, image_size)``, see :class:`~medcoss_components.networks.xray_tasks.XrayDetectionModel`.

    Raises:
        InputError: a threshold outside of (0, 1), or categories that are not those of the data.
    """

    def __init__(
        self, *, categories: Sequence[str], threshold: float = THRESHOLD, pictures: int = 6, **options: Any
    ) -> None:
        from medcoss_components.evaluation.detection import check_threshold

        self.categories, self.threshold, self.pictures = resolve_categories(categories), float(threshold), pictures
        self.outputs = tuple(self.categories)
        check_threshold(self.threshold)
        super().__init__(**options)
        if list(self.dataset.categories) != list(self.categories):
            raise InputError(
                f"categories: {list(self.categories)} are given, the data have {list(self.dataset.categories)}. Give "
                "the same ones, in the order of the network's outputs."
            )

    @property
    def measures(self) -> tuple[str, ...]:
        from medcoss_components.evaluation.detection_metrics import BY_CATEGORY

        return BY_CATEGORY

    def _reset(self, engine: Any) -> None:
        from medcoss_components.evaluation.results import WorstCases

        super()._reset(engine)
        self.worst: WorstCases[Any] = WorstCases(self.pictures)

    def observe(self, batch: dict[str, Any], inputs: torch.Tensor, logits: Any) -> list[Any]:
        from medcoss_components.evaluation.detection_metrics import Boxes

        height, width = inputs.shape[-2:]
        found = found_boxes(self.network, logits, (height, width))
        seen = []
        for place, (row, boxes) in enumerate(zip(batch["indices"].tolist(), found, strict=True)):
            target = Boxes.of(batch["target"][place])
            sides = self.dataset.restore(row, boxes.boxes)
            inside = has_area(sides)  # as predictions are written
            self._offer(row, inputs[place], target, boxes.chosen(inside))
            seen.append((row, boxes.moved(sides).chosen(inside)))
        return seen

    def _offer(self, row: int, image: torch.Tensor, target: Any, found: Any) -> None:
        """Keep the picture of a case that is among the worst, in the grid that the network reads."""
        from medcoss_components.evaluation.detection import case_counts, make_box_picture
        from medcoss_components.evaluation.detection_metrics import match_boxes

        case, sure = str(self.dataset.ids[row]), found.at_least(self.threshold)
        score = float(case_counts(match_boxes([target], [sure])[0], self.threshold)["f1"])
        picture = partial(make_box_picture, image, target, sure, case=case, score=score)
        self.worst.offer(case=case, score=score, make=picture)

    def share(self) -> Any:
        return self.seen, self.worst.pictures

    def summarise(self, shares: list[Any]) -> DetectionResult:
        """One row a case, in the order of the data set; cases that several ranks have seen count once."""
        from medcoss_components.evaluation.detection import DetectionResult
        from medcoss_components.evaluation.results import WorstCases

        seen = {row: boxes for rows, _ in shares for row, boxes in rows}
        worst: WorstCases[Any] = WorstCases(self.pictures)
        for _, pictures in shares:
            for picture in pictures:
                worst.add(picture)
        return DetectionResult(
            categories=self.categories,
            cases=tuple(self.dataset.ids),
            groups=tuple(self.dataset.groups),
            targets=tuple(self.dataset.source_targets),
            predictions=tuple(seen[row] for row in range(len(self.dataset))),
            threshold=self.threshold,
            pictures=worst.pictures,
        )


def found_boxes(network: torch.nn.Module, outputs: Any, image_size: tuple[int, int]) -> list[Any]:
    """What a network found in each image of a batch, as
    :class:`~medcoss_components.evaluation.detection_metrics.Boxes` in pixels of the input, the surest first.

    Args:
        network: has ``detections``.
        outputs: of its forward pass, in float32.
        image_size: (H, W) of the input.

    Raises:
        InputError: outputs that are not finite.
    """
    from medcoss_components.evaluation.detection_metrics import Boxes

    levels = [level for entries in outputs.values() for level in entries]
    if not all(bool(torch.isfinite(level).all()) for level in levels):
        raise InputError("the network's output is not finite; check the weights, or try precision float32")
    return [Boxes.of(found).at_least(0.0) for found in module_of(network).detections(outputs, image_size)]
