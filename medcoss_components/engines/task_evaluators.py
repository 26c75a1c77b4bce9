"""Evaluation of task networks: one pass over labelled data, then the numbers of a result object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator
from monai.inferers import Inferer, SlidingWindowInferer
from monai.utils.enums import CommonKeys

from medcoss_components.engines.evaluator import Evaluator
from medcoss_components.engines.finetuning import without_padding
from medcoss_components.engines.task_losses import as_float32
from medcoss_components.errors import InputError
from medcoss_components.progress import progress

if TYPE_CHECKING:
    from medcoss_components.data.task_inputs import TaskTransform
    from medcoss_components.evaluation.results import CasePicture, ClassificationResult, SegmentationResult

THRESHOLD = 0.5


class TaskEvaluator(Evaluator):
    """What the evaluators share: eval mode, precision, progress, and gathering what all ranks have seen.

    After :meth:`run`, ``state.metrics`` holds the numbers and :meth:`result` the result object, on every rank.

    Args:
        preprocessing: turns stored samples into inputs.
        options: those of :class:`~medcoss_components.engines.evaluator.Evaluator`.

    Attributes:
        outputs: names of the outputs, for each of which some metrics are also given.
    """

    outputs: tuple[str, ...] = ()

    def __init__(self, *, preprocessing: TaskTransform, **options: Any) -> None:
        self.preprocessing = preprocessing
        self.description = "validate"
        self.seen: list[Any] = []
        self.bar: Any = None
        self._result: Any = None
        super().__init__(**options)
        self.add_event_handler(Events.EPOCH_STARTED, self._reset)
        self.add_event_handler(Events.EPOCH_COMPLETED, self._finish)
        self.add_event_handler(Events.EXCEPTION_RAISED, self._close_and_raise)

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the metrics of a result."""
        raise NotImplementedError

    def check_metric(self, name: str, argument: str) -> None:
        """See that results will have a number, before anything is trained for it.

        Args:
            name: ``<metric>`` or ``<metric>/<output>``.
            argument: where the name was given, for the message.

        Raises:
            InputError: an unknown metric or output.
        """
        metric, _, output = name.partition("/")
        if metric not in self.measures or (output and output not in self.outputs):
            raise InputError(
                f"{argument}: {name!r} is no metric of this task; choose from {', '.join(self.measures)}, most of them "
                f"also as <metric>/<output> with an output of {', '.join(self.outputs)}"
            )

    def result(self) -> Any:
        """The result object of the last :meth:`run`.

        Raises:
            InputError: before the first run.
        """
        if self._result is None:
            raise InputError("evaluator: has no result yet; call run() first")
        return self._result

    def evaluate(self) -> Any:
        """Run over the loader once and return the result object."""
        self.run()
        return self.result()

    def _reset(self, engine: SupervisedEvaluator) -> None:
        self.seen, self._result = [], None
        self.state.metrics.clear()
        self.data_loader.set_position(0, 0)
        self.bar = progress(description=self.description, total=self.state.epoch_length, unit="batch", leave=False)

    def _iteration(self, engine: SupervisedEvaluator, batchdata: dict[str, Any]) -> dict[str, Any]:
        inputs = self.preprocessing.evaluation(batchdata["raw"], self.state.device)
        inputs = without_padding(inputs, self.network)
        with self.evaluating():
            logits = as_float32(self.inferer(inputs, self.network))
        self.seen += self.observe(batchdata, inputs, logits)
        self.bar.update()
        return {CommonKeys.PRED: logits, "count": batchdata["count"], "ids": batchdata["ids"]}

    def observe(self, batch: dict[str, Any], inputs: torch.Tensor, logits: Any) -> list[Any]:
        """What is kept of one batch; objects that can be pickled. ``logits``: what the network gives, in float32."""
        raise NotImplementedError

    def summarise(self, shares: list[Any]) -> Any:
        """The result object of what all ranks have seen."""
        raise NotImplementedError

    def share(self) -> Any:
        """What this rank has seen; can be pickled."""
        return self.seen

    def _finish(self, engine: SupervisedEvaluator) -> None:
        self.bar.close()
        share = (self.share(),)
        shares = idist.all_gather(share) if idist.get_world_size() > 1 else [share]
        self._result = self.summarise([part for (part,) in shares])
        self.seen = []
        self.state.metrics.update(self._result.metrics())

    def _close_and_raise(self, engine: SupervisedEvaluator, error: BaseException) -> None:
        if self.bar is not None:
            self.bar.close()
        raise error


class ClassificationEvaluator(TaskEvaluator):
    """Class probabilities of every case; several rows of one case (``dataset.cases``) are averaged.

    Args:
        classes: K names in the order of the network's outputs.

    Other arguments as for :class:`TaskEvaluator`.
    """

    def __init__(self, *, classes: Sequence[str], **options: Any) -> None:
        self.outputs = self.classes = tuple(str(name) for name in classes)
        super().__init__(**options)

    @property
    def measures(self) -> tuple[str, ...]:
        from medcoss_components.evaluation.classification import SCORES

        return SCORES

    def observe(self, batch: dict[str, Any], inputs: torch.Tensor, logits: torch.Tensor) -> list[Any]:
        probabilities = logits.double().softmax(dim=1).cpu().numpy()
        return list(zip(batch["indices"].tolist(), probabilities, batch["target"].tolist(), strict=True))

    def summarise(self, shares: list[Any]) -> ClassificationResult:
        """One row a case, in the order of the data set; rows that several ranks have seen count once."""
        from medcoss_components.evaluation.results import ClassificationResult

        seen = {row: (probabilities, target) for share in shares for row, probabilities, target in share}
        cases: dict[str, list[int]] = {}
        for row, case in enumerate(self.dataset.cases):
            cases.setdefault(case, []).append(row)
        return ClassificationResult(
            classes=self.classes,
            cases=tuple(cases),
            groups=tuple(self.dataset.groups[rows[0]] for rows in cases.values()),
            probabilities=np.stack([np.mean([seen[row][0] for row in rows], axis=0) for rows in cases.values()]),
            targets=np.array([seen[rows[0]][1] for rows in cases.values()], dtype=np.int64),
        )


class SegmentationEvaluator(TaskEvaluator):
    """Scores of every case: one whole case at a time through the inferer, sigmoid, threshold 0.5.

    Args:
        regions: names with their mask values, in the order of the network's outputs.
        source_geometry: True compares in the grid of the files, with their masks as they are; False in the prepared
            grid that the network reads.
        inferer: default: sliding windows of the network's input, overlap 1/2, Gaussian weights (METHOD section 8).
        pictures: how many of the worst cases are kept for the report.

    Other arguments as for :class:`TaskEvaluator`. ``distances`` may be set to False to leave surface distances out.
    Distances are in mm when every case has a spacing, else in voxels for all.
    """

    def __init__(
        self,
        *,
        regions: Mapping[str, Any],
        source_geometry: bool = False,
        inferer: Inferer | None = None,
        pictures: int = 6,
        network: torch.nn.Module,
        **options: Any,
    ) -> None:
        self.regions, self.source_geometry, self.pictures = dict(regions), source_geometry, pictures
        self.outputs = tuple(self.regions)
        self.distances = True
        super().__init__(network=network, inferer=inferer or window_inferer(network), **options)

    @property
    def measures(self) -> tuple[str, ...]:
        from medcoss_components.evaluation.segmentation import SCORES

        return SCORES

    @cached_property
    def unit(self) -> str:
        """Unit of the distances, "mm" or "voxel"."""
        spacings = (self.dataset.case(row).geometry.source_spacing for row in range(len(self.dataset.ids)))
        return "voxel" if any(spacing is None for spacing in spacings) else "mm"

    def _reset(self, engine: SupervisedEvaluator) -> None:
        from medcoss_components.evaluation.results import WorstCases

        super()._reset(engine)
        self.worst: WorstCases[CasePicture] = WorstCases(self.pictures)

    def observe(self, batch: dict[str, Any], inputs: torch.Tensor, logits: torch.Tensor) -> list[Any]:
        from medcoss_components.evaluation.results import make_picture
        from medcoss_components.evaluation.segmentation import case_metrics

        row, case = int(batch["row"]), self.dataset.case(int(batch["row"]))
        excess, geometry = (logits[0].sigmoid() - THRESHOLD).half().cpu(), case.geometry  # as predictions are cut
        prediction = geometry.crop(excess) > 0
        target = self._masks(geometry.crop(batch["target"][0]))
        pair, spacing = (prediction, target), geometry.spacing
        if self.source_geometry:
            pair = (geometry.restore(excess) > 0, self._masks(self._source_mask(case)))
            spacing = geometry.source_spacing
        scores = case_metrics(
            *pair,
            regions=self.regions,
            spacing=spacing if self.unit == "mm" else None,
            distances=self.distances,
        )
        score = float(np.mean([scores[f"dice/{name}"] for name in self.regions]))
        image = geometry.crop(inputs[0]).float().cpu()
        make = partial(make_picture, image, target, prediction, case=str(case.id), score=score)
        pixel = (geometry.spacing[-2], geometry.spacing[-1])
        self.worst.offer(case=str(case.id), score=score, make=lambda: square_pixels(make(), pixel))
        return [(row, case.id, case.group, scores)]

    def _source_mask(self, case: Any) -> torch.Tensor:
        from medcoss_components.data.masks import read_mask

        return torch.from_numpy(read_mask(case.mask_path, len(case.geometry.source_shape)))

    def _masks(self, mask: torch.Tensor) -> torch.Tensor:
        """(*S) integers -> (K, *S) bool."""
        from medcoss_components.data.regions import region_masks

        return region_masks(mask, self.regions, dimension=mask.ndim)

    def share(self) -> Any:
        return self.seen, self.worst.pictures

    def summarise(self, shares: list[Any]) -> SegmentationResult:
        """One row a case, in the order of the data set; cases that several ranks have seen count once."""
        from medcoss_components.evaluation.results import SegmentationResult, WorstCases

        seen = {row: entry for rows, _ in shares for row, *entry in rows}
        worst: WorstCases[CasePicture] = WorstCases(self.pictures)
        for _, pictures in shares:
            for picture in pictures:
                worst.add(picture)
        cases, groups, scores = zip(*(seen[row] for row in range(len(self.dataset))), strict=True)
        return SegmentationResult(
            regions=tuple(self.regions),
            cases=cases,
            groups=groups,
            rows=scores,
            pictures=worst.pictures,
            spacing_unit=self.unit,
        )


def square_pixels(picture: CasePicture, pixel: tuple[float, float]) -> CasePicture:
    """Repeat rows or columns of a picture until its pixels are about square, so that bodies keep their proportions.

    Args:
        pixel: (row, column) spacing in mm; sides that differ by less than a tenth stay.
    """
    if max(pixel) < 1.1 * min(pixel):
        return picture
    rows, columns = (
        np.arange(round(length * step / min(pixel))) * length // round(length * step / min(pixel))
        for length, step in zip(picture.image.shape[:2], pixel, strict=True)
    )
    masks = {name: getattr(picture, name)[:, rows][:, :, columns] for name in ("target", "prediction")}
    return replace(picture, image=picture.image[rows][:, columns], **masks)


def window_inferer(network: torch.nn.Module) -> Inferer:
    """Sliding windows of the network's input size, overlap 1/2, Gaussian weights."""
    window = network.modality.input_shape[1:]
    return SlidingWindowInferer(roi_size=window, sw_batch_size=1, overlap=0.5, mode="gaussian")
