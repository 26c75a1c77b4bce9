"""Class probabilities for cases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.inferers import Inferer

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
        device, val_data_loader, network, preprocessing, output_dir, precision, inferer, source_name, raise_on_failure,
            val_handlers: see :class:`~medcoss_components.inference.predictor.Predictor`.

    Raises:
        InputError: cases that were found for segmentation.
    """

    task = "classification"

    def __init__(
        self,
        *,
        device: torch.device | str,
        val_data_loader: InferenceLoader,
        network: torch.nn.Module,
        preprocessing: Any,
        classes: Sequence[str],
        output_dir: str | Path,
        precision: str = "bf16",
        inferer: Inferer | None = None,
        source_name: bool = True,
        raise_on_failure: bool = True,
        val_handlers: Sequence[Any] = (),
    ) -> None:
        self._check_cases(val_data_loader)
        self.classes = [str(name) for name in classes]
        super().__init__(
            device=device,
            val_data_loader=val_data_loader,
            network=network,
            preprocessing=preprocessing,
            output_dir=output_dir,
            settings={"classes": self.classes},
            precision=precision,
            inferer=inferer,
            source_name=source_name,
            raise_on_failure=raise_on_failure,
            val_handlers=val_handlers,
        )

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
