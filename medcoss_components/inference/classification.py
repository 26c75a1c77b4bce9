"""Class probabilities for cases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from medcoss_components.errors import InputError
from medcoss_components.inference.cases import InferenceCase, InferenceLoader
from medcoss_components.inference.predictor import Predictor, Row

ROWS = 64  # samples in the network at once


class ClassificationPredictor(Predictor):
    """Writes the probability of every class for every case: ``predictions.csv`` and ``predictions.json``.

    A case of several samples (tiles of an image, slabs of a volume) gets the mean of their probabilities. Columns: id,
    source, predicted (the class of the highest probability), prob_<class>.

    Args:
        classes: names in the order of the network's outputs.
        options: those of :class:`~medcoss_components.inference.predictor.Predictor` but ``settings``.

    Raises:
        InputError: cases that were found for segmentation.
    """

    task = "classification"

    def __init__(self, *, val_data_loader: InferenceLoader, classes: Sequence[str], **options: Any) -> None:
        self._check_cases(val_data_loader)
        self.classes = [str(name) for name in classes]
        super().__init__(val_data_loader=val_data_loader, settings={"classes": self.classes}, **options)

    def predict(self, cases: list[InferenceCase]) -> Iterable[Row]:
        raws = [case.raw for case in cases if case.raw is not None]
        pieces = torch.cat(raws).split(ROWS)
        probabilities = torch.cat([self._probabilities(piece) for piece in pieces])
        for part in probabilities.split([len(raw) for raw in raws]):
            yield self._row(part.mean(dim=0))

    def _probabilities(self, raw: torch.Tensor) -> torch.Tensor:
        """(n, K) float64 on the CPU."""
        logits = self.outputs(self.inputs(raw))
        if logits.shape[1] != len(self.classes):
            raise InputError(f"classes: {len(self.classes)} names for a network with {logits.shape[1]} outputs.")
        if not bool(torch.isfinite(logits).all()):
            raise InputError("the network's output is not finite; check the weights, or try precision float32")
        return logits.double().softmax(dim=1).cpu()

    def _row(self, probabilities: torch.Tensor) -> Row:
        values = {
            f"prob_{name}": round(float(value), 6) for name, value in zip(self.classes, probabilities, strict=True)
        }
        return {"predicted": self.classes[int(probabilities.argmax())], **values}

    def summary(self) -> Row:
        return {"classes": self.classes}
