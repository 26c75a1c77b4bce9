"""What all evaluators share: a network called in one precision, on whole batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from monai.engines import SupervisedEvaluator
from monai.inferers import Inferer, SimpleInferer

from medcoss_components.data.transfer import pin_for
from medcoss_components.engines.optimisation import autocast, check_precision


class Evaluator(SupervisedEvaluator):
    """A MONAI evaluator with a precision; batches are not taken apart.

    Args:
        device: where the network runs.
        val_data_loader: data in order (``shuffle=False``).
        network: what is evaluated; it is moved to the device.
        precision: "float32", "bf16" or "fp16".
        inferer: MONAI inferer that calls the network; None calls it once.
        val_handlers: further handlers.

    Raises:
        InputError: a precision that does not exist, or that the device cannot do.
    """

    def __init__(
        self,
        *,
        device: torch.device | str,
        val_data_loader: Any,
        network: torch.nn.Module,
        precision: str = "bf16",
        inferer: Inferer | None = None,
        val_handlers: Sequence[Any] = (),
    ) -> None:
        device = torch.device(device)
        self.precision = check_precision(precision, device)
        pin_for(val_data_loader, device)
        super().__init__(
            device=device,
            val_data_loader=val_data_loader,
            network=network.to(device),
            inferer=SimpleInferer() if inferer is None else inferer,
            val_handlers=list(val_handlers),
            decollate=False,
        )

    @property
    def dataset(self) -> Any:
        """The data behind the loader."""
        return self.data_loader.dataset

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The network in evaluation mode, no gradients, the precision of the evaluator."""
        self.network.eval()
        with torch.no_grad(), autocast(self.precision, self.state.device):
            yield
