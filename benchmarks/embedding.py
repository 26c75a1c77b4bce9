"""Embedding a store: every sample through the encoder, nothing masked, one vector each.

python benchmarks/embedding.py [--quick] [--record]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from harness import Options, Row, alternate, main, timed
from sides import Setting, free, made_up_store, our_network, straightforward_network
from straightforward.steps import embed_images, embed_texts

from medcoss_components.data.store import Store
from medcoss_components.data.transforms import to_model_input
from medcoss_components.engines.embedding import embed_source

SETTINGS = {
    "embed_2d": ("xray", "embedding a store of X-rays", 32, 3.0),
    "embed_text": ("report", "embedding a store of reports", 128, 3.0),
}
"""Row -> (modality, what, samples, target)."""
BATCH = 16


def ready_batches(store: Store, batch: int, pad_id: int | None) -> list[Any]:
    """What the straightforward side reads: float images, or ids with their padding mask, ready in memory."""
    inputs = to_model_input(store.modality, torch.from_numpy(store.gather(range(len(store)))))
    parts = inputs.split(batch)
    return list(parts) if pad_id is None else [(part, part != pad_id) for part in parts]


def embedding_row(name: str, options: Options, setting: Setting | None = None) -> Row:
    """Measure seconds per sample."""
    modality, what, count, target = SETTINGS[name]
    setting = setting or Setting(modality)
    count = count // 4 if options.quick else count
    store, vocabulary = made_up_store(setting, options.folder / name, count)
    network = our_network(setting)
    plain = straightforward_network(network)
    batches = ready_batches(store, BATCH, None if vocabulary is None else vocabulary.pad_id)
    arguments = {"pad_id": None if vocabulary is None else vocabulary.pad_id, "precision": setting.precision}
    embed = embed_texts if setting.is_text else embed_images
    ours = partial(embed_source, network, store, device=torch.device(setting.device), **arguments)
    sides = timed(lambda: embed(plain, _each(batches)), count), timed(ours, count)
    figures = alternate(*sides, pairs=options.pairs_of(), warmup=1, settle=True)
    free()
    note = f"{count} samples; the straightforward side in batches of {BATCH}, ours of 64 as in the chain."
    return Row(name, what, "s/sample", *figures, target=target, note=note)


def _each(batches: list[Any]) -> Iterator[Any]:
    yield from batches


ROWS = {name: partial(embedding_row, name) for name in SETTINGS}

if __name__ == "__main__":
    sys.exit(main(ROWS))
