"""Reference samples: unlabelled samples of a learned modality, whose features are kept from the end of its stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medcoss_components.continual.buffer import BUFFER_NAME, open_buffer_store, read_buffer
from medcoss_components.continual.store_view import StoreView
from medcoss_components.errors import InputError
from medcoss_components.files import sha256_json
from medcoss_components.randomness import numpy_generator_for
from medcoss_components.retention.encoders import Column

SAMPLES = 500
FEWEST = 20  # below it, samples that are rehearsed count as well


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Where the samples of a modality are, and which encoder had just learned it.

    Attributes:
        modality: its name.
        own: number of the column that learned it; 0 for one that was learned before the chain.
        column: the encoder at the end of its own stage.
    """

    modality: str
    own: int
    column: Column

    def samples(self, count: int, *, seed: int, store_dir: str | Path | None = None) -> StoreView:
        """Up to ``count`` samples of the modality's training store that no later stage rehearses.

        A rehearsed sample would say how well the buffer is kept, not how well the modality is. Where the buffer was
        materialised and the store is gone, and where hardly a sample is left, rehearsed ones count.

        Raises:
            InputError: neither the store nor a copy of the buffer is there.
        """
        buffer = read_buffer(self.column.folder)
        try:
            view = open_buffer_store(replace(buffer, materialised=None), store_dir)
        except InputError:
            view = open_buffer_store(buffer, store_dir)
        whole, rows = view.store, np.arange(len(view.store))
        if len(whole) > len(view):
            others = np.setdiff1d(rows, view.indices)
            rows = others if len(others) >= min(FEWEST, count) else rows
        generator = numpy_generator_for(seed, "reference samples", self.modality)
        return StoreView(whole, np.sort(generator.permutation(rows)[:count]))

    def identity(self, samples: StoreView, count: int) -> str:
        """Changes with the samples and with the encoder of the own stage."""
        return sha256_json([samples.key, samples.indices.tolist(), count, self.column.state])


def references(columns: Sequence[Column], earlier: Mapping[str, Path]) -> list[Reference]:
    """One reference for each learned modality that has a buffer.json, in the order of learning.

    Args:
        columns: of the chain.
        earlier: modality learned before the chain -> folder of its stage.
    """
    found = [
        Reference(
            modality=name,
            own=0,
            column=Column(name=folder.name, modality=name, learned=(name,), folder=folder),
        )
        for name, folder in earlier.items()
    ]
    for number, column in enumerate(columns):
        if column.modality is not None and (column.folder / BUFFER_NAME).is_file():
            found.append(Reference(modality=column.modality, own=number, column=column))
    return found
