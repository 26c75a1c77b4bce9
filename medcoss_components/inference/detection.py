"""Boxes for cases, in pixels of their files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from medcoss_components.data.boxes import resolve_categories
from medcoss_components.data.plane_geometry import PlaneGeometry, has_area
from medcoss_components.engines.detection import found_boxes
from medcoss_components.engines.task_evaluators import THRESHOLD
from medcoss_components.engines.trained_settings import BOX_SETTINGS
from medcoss_components.errors import InputError
from medcoss_components.evaluation.detection import check_threshold
from medcoss_components.evaluation.detection_metrics import Boxes
from medcoss_components.files import write_json
from medcoss_components.inference.cases import InferenceCase, InferenceLoader
from medcoss_components.inference.predictor import Predictor, Row
from medcoss_components.tracking.detection_figures import write_box_overlay

SIDES = ("left", "top", "right", "bottom")
COCO_RESULTS = "coco_results.json"


class DetectionPredictor(Predictor):
    """Writes the boxes of every case in pixels of its file, and pictures with them.

        predictions.csv  predictions.json  coco_results.json  overlays/<id>.png

    ``predictions.csv`` has a line for each box: id, source, category, score, left, top, right, bottom; x to the right
    and y down from the upper left corner of the file's picture, also of DICOM, right and bottom exclusive. A case
    without any box has one line with these cells empty, so that it is seen to be finished. ``predictions.json`` lists
    the cases with width, height and boxes; ``coco_results.json`` is the list that COCO's tools read: ``image_id`` (the
    case's id), ``category_id`` (place in ``categories``, from 1), ``bbox`` [left, top, width, height], ``score``.

    Args:
        categories: names in the order of the network's outputs.
        threshold: boxes of at least this score are written.
        overlay: whether pictures are written.
        options: those of :class:`~medcoss_components.inference.predictor.Predictor` but ``settings``.

    Raises:
        InputError: cases of another kind, a threshold outside of (0, 1), or categories named twice.
    """

    task = "detection"

    def __init__(
        self,
        *,
        val_data_loader: InferenceLoader,
        categories: Sequence[str],
        threshold: float = THRESHOLD,
        overlay: bool = True,
        **options: Any,
    ) -> None:
        self._check_cases(val_data_loader)
        self.categories = list(resolve_categories(categories))
        self.threshold, self.overlay = float(threshold), overlay
        check_threshold(self.threshold)
        settings = {"categories": self.categories, "threshold": self.threshold, "overlay": overlay}
        super().__init__(val_data_loader=val_data_loader, settings=settings, **options)
        head = getattr(self.network, "head", None)
        self.settings["head"] = {name: getattr(head, name) for name in BOX_SETTINGS if hasattr(head, name)}

    def predict(self, cases: list[InferenceCase]) -> Iterable[Row]:
        inputs = self.inputs(torch.cat([case.raw for case in cases if case.raw is not None]))
        height, width = inputs.shape[-2:]
        for case, found in zip(cases, found_boxes(self.network, self.outputs(inputs), (height, width)), strict=True):
            if case.raw is None or case.plane is None:
                raise InputError("the case was not prepared for detection")
            if len(found) and found.labels.max() >= len(self.categories):
                raise InputError(
                    f"categories: {len(self.categories)} names for a network that found number {found.labels.max()}."
                )
            sure = found.at_least(self.threshold)
            sides = case.plane.restore(sure.boxes)
            inside = has_area(sides)  # what lies in the filled margin is nowhere in the file
            if self.overlay:
                self._picture(case.source.id, case.raw[0], sure.chosen(inside), case.plane)
            yield self._row(sure.moved(sides).chosen(inside), case.plane)

    def _row(self, found: Boxes, plane: PlaneGeometry) -> Row:
        """A case as ``predictions.json`` has it."""
        boxes = [
            {
                "category": self.categories[label],
                "score": round(float(score), 6),
                **{name: round(float(side), 2) for name, side in zip(SIDES, box, strict=True)},
            }
            for box, label, score in zip(found.boxes, found.labels, found.scores, strict=True)
        ]
        return {"width": plane.source_size[1], "height": plane.source_size[0], "boxes": boxes}

    def _picture(self, name: str, raw: torch.Tensor, found: Boxes, plane: PlaneGeometry) -> None:
        """The prepared picture, as the network saw it, without what was filled up around it."""
        top, left = (max(0, before) for before in plane.offset)
        height, width = plane.fitted_size
        shown = raw[:, top : top + height, left : left + width]
        write_box_overlay(
            self.output_dir / "overlays" / f"{name}.png",
            picture=shown.numpy(),
            found=found.moved(found.boxes - [left, top, left, top]),
            categories=self.categories,
        )

    def table(self, rows: list[Row]) -> list[Row]:
        lines: list[Row] = []
        for row in rows:
            named = {name: row[name] for name in ("id", "source") if name in row}
            empty = dict.fromkeys(("category", "score", *SIDES), "")
            lines += [named | box for box in row["boxes"] or [empty]]
        return lines

    def _write_tables(self) -> None:
        super()._write_tables()
        write_json(self.output_dir / COCO_RESULTS, [entry for row in self.rows.values() for entry in self._coco(row)])

    def _coco(self, row: Row) -> list[Row]:
        return [
            {
                "image_id": row["id"],
                "category_id": self.categories.index(box["category"]) + 1,
                "bbox": [
                    box["left"],
                    box["top"],
                    round(box["right"] - box["left"], 2),
                    round(box["bottom"] - box["top"], 2),
                ],
                "score": box["score"],
            }
            for box in row["boxes"]
        ]

    def summary(self) -> Row:
        return {"categories": self.categories, "threshold": self.threshold}
