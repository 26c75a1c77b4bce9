"""What predicting classes, masks and boxes share: going through the cases, keeping the finished, telling the failed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator

from medcoss_components._version import __version__
from medcoss_components.engines.evaluator import Evaluator
from medcoss_components.engines.optimisation import autocast
from medcoss_components.engines.task_losses import as_float32
from medcoss_components.engines.trained_settings import check_inputs
from medcoss_components.errors import InputError
from medcoss_components.files import is_disk_full, remove_partial, write_json
from medcoss_components.inference.cases import InferenceCase, InferenceLoader
from medcoss_components.inference.discovery import without_paths
from medcoss_components.inference.outputs import CasesFailedError, RunRecord, write_table
from medcoss_components.progress import progress

Row = dict[str, Any]


class Predictor(Evaluator):
    """Runs a network over cases; subclasses say what becomes of one list of cases (:meth:`predict`).

    Args:
        val_data_loader: the cases.
        preprocessing: the ``TaskTransform`` of the training; its ``evaluation`` makes inputs of stored values.
        output_dir: folder of all outputs; one that was begun with the same settings is gone on with.
        settings: what else decides the outputs, as JSON values; a subclass gives them.
        source_name: whether tables name each case's file below the input.
        raise_on_failure: raise when cases failed, after all outputs are written.
        options: the others of :class:`~medcoss_components.engines.evaluator.Evaluator`; the network has its weights.

    Attributes:
        rows: finished cases by identifier, as in ``predictions.csv``.
        failures: (identifier, source, reason) of the cases that failed in this run.
    """

    task = ""

    def __init__(
        self,
        *,
        val_data_loader: InferenceLoader,
        preprocessing: Any,
        output_dir: str | Path,
        settings: dict[str, Any] | None = None,
        source_name: bool = True,
        raise_on_failure: bool = True,
        **options: Any,
    ) -> None:
        self.loader, self.cases, self.preprocessing = val_data_loader, val_data_loader.cases, preprocessing
        self.output_dir, self.source_name, self.raise_on_failure = Path(output_dir), source_name, raise_on_failure
        self.settings, self.failures = dict(settings or {}), list[tuple[str, str, str]]()
        self.record: RunRecord | None = None
        self._bar: Any = None
        super().__init__(val_data_loader=val_data_loader, **options)
        self.add_event_handler(Events.ITERATION_COMPLETED, self._advance)

    def _check_cases(self, loader: InferenceLoader) -> None:
        """Raise InputError unless the cases were found for this task."""
        if loader.cases.kind != self.task:
            raise InputError(f"val_data_loader: its cases must be of kind {self.task}, are {loader.cases.kind}.")

    def predict(self, cases: list[InferenceCase]) -> Iterable[Row]:
        """Predict a list of cases that were read, write their own files and give their columns after id and source."""
        raise NotImplementedError

    def summary(self) -> Row:
        """What ``predictions.json`` says of the run besides its cases."""
        raise NotImplementedError

    def table(self, rows: list[Row]) -> list[Row]:
        """Lines of ``predictions.csv`` for the rows of the finished cases."""
        return rows

    @property
    def rows(self) -> dict[str, Row]:
        """Finished cases, in the order of the input."""
        known = self.record.rows if self.record else {}
        return {source.id: known[source.id] for source in self.cases.sources if source.id in known}

    def run(self, global_epoch: int = 1) -> None:
        """Predict every case that is not finished yet and write the tables.

        Raises:
            InputError: a folder that was begun with other settings, or weights trained with another intensity.
            CasesFailedError: when cases failed; the others are written.
        """
        intensity = getattr(self.preprocessing, "intensity", None)
        check_inputs(self.network, intensity=intensity, preparation=self.cases.settings)
        self.record = RunRecord(self.output_dir, self._all_settings())
        self.failures = []
        for folder in (self.output_dir, self.output_dir / "masks", self.output_dir / "overlays"):
            remove_partial(folder)
        self.data_loader = self.loader.without(self.record.rows)
        self.state.epoch_length = len(self.data_loader)
        with progress(description="Predicting", total=len(self.cases), unit="case") as self._bar:
            self._bar.update(len(self.rows))
            if self.state.epoch_length:
                super().run(global_epoch)
        self._write_tables()
        self._tell()

    def _all_settings(self) -> Row:
        cases = {"modality": self.cases.modality.to_dict(), "preparation": self.cases.settings}
        words = None if self.cases.vocabulary is None else self.cases.vocabulary.hash
        transform = getattr(self.preprocessing, "intensity", None)
        own = {
            "precision": self.precision,
            "intensity": transform,
            "source_name": self.source_name,
            "vocabulary": words,
            "network": weights_hash(self.network),
        }
        return {"format": 1, "task": self.task, **cases, **own, **self.settings}

    def _iteration(self, engine: SupervisedEvaluator, batchdata: Any) -> Row:
        cases: list[InferenceCase] = list(batchdata)
        for case in cases:
            if case.error is not None:
                self._fail(case, case.error)
        self._predict_all([case for case in cases if case.error is None])
        return {"count": len(cases), "ids": [case.source.id for case in cases]}

    def _predict_all(self, cases: list[InferenceCase]) -> None:
        """Predict a list; when that fails, one by one, so that only the case at fault is lost."""
        if not cases:
            return
        columns, failure = self._try(cases)
        if failure is None:
            if self.record is not None:
                self.record.add({**self._name(case), **row} for case, row in zip(cases, columns, strict=True))
        elif len(cases) == 1:
            self._fail(cases[0], failure)
        else:
            for case in cases:
                self._predict_all([case])

    def _try(self, cases: list[InferenceCase]) -> tuple[list[Row], str | None]:
        """Rows of the cases, or why there are none; the error itself ends here, and with it what it holds in memory."""
        try:
            self.network.eval()
            with torch.inference_mode():
                return list(self.predict(cases)), None
        except Exception as error:
            if is_disk_full(error):
                raise
            return [], str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"

    def _name(self, case: InferenceCase) -> Row:
        return {"id": case.source.id} | ({"source": case.source.source} if self.source_name else {})

    def _fail(self, case: InferenceCase, reason: str) -> None:
        paths = [*case.source.files, *([case.source.path] if case.source.path else [])]
        self.failures.append((case.source.id, case.source.source, without_paths(" ".join(reason.split())[:500], paths)))

    def _advance(self, engine: SupervisedEvaluator) -> None:
        self._bar.update(self.state.output["count"])

    def inputs(self, raw: torch.Tensor) -> torch.Tensor:
        """What the network reads, from stored values, on its device."""
        return self.preprocessing.evaluation(raw, self.state.device)

    def outputs(self, inputs: torch.Tensor) -> Any:
        """What the network gives, in float32."""
        with autocast(self.precision, self.state.device):
            outputs = self.inferer(inputs, self.network)
        return as_float32(outputs)

    def _write_tables(self) -> None:
        rows = list(self.rows.values())
        failed = [dict(zip(("id", "source", "reason"), failure, strict=True)) for failure in self.failures]
        skipped = [{"source": source, "reason": reason} for source, reason in self.cases.skipped]
        if not self.source_name:
            failed = [{"id": row["id"], "reason": row["reason"]} for row in failed]
            skipped = [{"reason": row["reason"]} for row in skipped]
        write_table(self.output_dir / "predictions.csv", self.table(rows))
        write_table(self.output_dir / "failures.csv", failed)
        write_table(self.output_dir / "skipped.csv", skipped)
        head = {"format": 1, "version": __version__, "task": self.task, "modality": self.cases.modality.name}
        document = head | self.summary() | {"cases": rows, "failed": failed, "skipped": skipped}
        write_json(self.output_dir / "predictions.json", document)

    def _tell(self) -> None:
        left_out = f", left out {len(self.cases.skipped)} (skipped.csv)" if self.cases.skipped else ""
        print(f"predicted {len(self.rows)} of {len(self.cases)} cases{left_out} -> {self.output_dir}/predictions.csv")
        if self.failures and self.raise_on_failure:
            first, _, reason = self.failures[0]
            raise CasesFailedError(
                f"{self.output_dir}/failures.csv: {len(self.failures)} of {len(self.cases)} cases failed, the first "
                f"({first}) because: {reason.rstrip('.')}. The others are written; run the same "
                "command again to try the failed ones once more."
            )


def weights_hash(network: torch.nn.Module) -> str:
    """SHA-256 of a network's parameters and buffers with their names."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(values.shape)} {values.dtype}\n".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
