"""Made-up data of realistic sizes: stores filled with numbers, files to read, a vocabulary of the size of BERT's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medcoss_components.data.building import STORE_FORMAT
from medcoss_components.data.modalities import Modality, get_modality
from medcoss_components.data.shards import samples_per_shard, shard_name, write_shard
from medcoss_components.data.store import Store, open_store
from medcoss_components.text.vocabulary import SPECIAL_TOKENS, Vocabulary, load_vocabulary

PIECES = 28_996
TYPICAL_TOKENS, TOKENS_DEVIATION = 75.0, 0.5
"""Median and spread (of the logarithm) of the tokens of a report: findings and impression."""


def word_list(folder: Path, pieces: int = PIECES) -> Vocabulary:
    """A WordPiece vocabulary of made-up pieces, three quarters of which begin a word."""
    names = [f"##p{n}" if n % 4 == 0 else f"w{n}" for n in range(pieces - len(SPECIAL_TOKENS))]
    path = folder / "vocab.txt"
    path.write_text("\n".join([*SPECIAL_TOKENS, *names]) + "\n", encoding="utf-8")
    return load_vocabulary(path)


def report_ids(count: int, length: int, vocabulary: Vocabulary, generator: np.random.Generator) -> np.ndarray:
    """(count, length) ids: [CLS] pieces [SEP], padded; lengths spread like those of reports, cut at ``length``."""
    wanted = generator.lognormal(np.log(TYPICAL_TOKENS), TOKENS_DEVIATION, count)
    lengths = np.clip(np.rint(wanted * length / 112 if length < 112 else wanted), 4, length).astype(int)
    ids = generator.integers(len(SPECIAL_TOKENS), vocabulary.size, (count, length)).astype(vocabulary.dtype)
    place = np.arange(length)
    first, last = vocabulary.tokens.index("[CLS]"), vocabulary.tokens.index("[SEP]")
    ids[:, 0] = first
    ids[np.arange(count), lengths - 1] = last
    ids[place[None] >= lengths[:, None]] = vocabulary.pad_id
    return ids


def samples(entry: Modality, count: int, generator: np.random.Generator) -> np.ndarray:
    """(count, *stored_shape) of noise in the stored dtype, as the intensity rule expects it."""
    shape = (count, *entry.stored_shape)
    if entry.intensity == "zscore":
        return generator.standard_normal(shape, dtype=np.float32).astype(np.float16)
    low, high = {"unit_range": (0, 256), "hounsfield": (-1024, 1025)}[entry.intensity]
    return generator.integers(low, high, shape, dtype=np.dtype(entry.stored_dtype))


def fabricated_store(
    folder: Path,
    modality: str | Modality,
    count: int,
    *,
    vocabulary: Vocabulary | None = None,
    seed: int = 0,
    block: int = 4096,
) -> Store:
    """A store of made-up samples, written without files to read from, ``block`` samples at a time."""
    entry, generator = get_modality(modality), np.random.default_rng(seed)
    folder.mkdir(parents=True)
    dtype = np.dtype(entry.stored_dtype if vocabulary is None else vocabulary.dtype).newbyteorder("<")
    step = samples_per_shard(int(np.prod(entry.stored_shape)) * dtype.itemsize)
    shards = []
    for number, start in enumerate(range(0, count, step)):
        here, path = min(step, count - start), folder / shard_name(number)
        sizes = [min(block, here - first) for first in range(0, here, block)]
        blocks = (_block(entry, size, vocabulary, generator).astype(dtype, copy=False) for size in sizes)
        write_shard(path, blocks, count=here, shape=entry.stored_shape, dtype=dtype)
        shards.append({"file": path.name, "count": here, "bytes": path.stat().st_size, "sha256": ""})
    _describe(folder, entry, count, dtype, shards, vocabulary)
    return open_store(folder)


def _block(entry: Modality, count: int, vocabulary: Vocabulary | None, generator: np.random.Generator) -> np.ndarray:
    if vocabulary is None:
        return samples(entry, count, generator)
    return report_ids(count, entry.stored_shape[0], vocabulary, generator)


def _describe(
    folder: Path,
    entry: Modality,
    count: int,
    dtype: np.dtype,
    shards: Sequence[dict[str, Any]],
    vocabulary: Vocabulary | None,
) -> None:
    names = [f"made-up-{number:07d}" for number in range(count)]
    items = {"ids": names, "labels": [None] * count, "groups": [f"group-{number // 4}" for number in range(count)]}
    index = {
        "format": STORE_FORMAT,
        "modality": entry.to_dict(),
        "key": f"made up {entry.name} {count}",
        "manifest": {"hash": "made up"},
        "name": "made up",
        "dtype": dtype.str,
        "sample_shape": list(entry.stored_shape),
        "count": count,
        "shards": list(shards),
        "vocabulary_hash": None if vocabulary is None else vocabulary.hash,
    }
    (folder / "items.json").write_text(json.dumps(items))
    (folder / "report.json").write_text(json.dumps({"items": count, "samples": count, "bad_share": 0, "bad_items": []}))
    if vocabulary is not None:
        vocabulary.save(folder / "vocabulary.json")
    (folder / "index.json").write_text(json.dumps(index))


def smooth_volume(shape: tuple[int, int, int], generator: np.random.Generator) -> np.ndarray:
    """(Z, Y, X) int16 in HU that compresses like a CT: a body of slow changes with noise, air around it."""
    from scipy.ndimage import zoom

    coarse = generator.standard_normal([max(2, size // 16) for size in shape])
    slow = zoom(coarse, [size / coarse.shape[axis] for axis, size in enumerate(shape)], order=1)[
        : shape[0], : shape[1], : shape[2]
    ]
    z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    body = ((y / shape[1] - 0.5) / 0.38) ** 2 + ((x / shape[2] - 0.5) / 0.45) ** 2 + 0 * z < 1
    noisy = 40 + 150 * slow + 15 * generator.standard_normal(shape)
    return np.where(body, noisy, -1000).clip(-1024, 3000).astype(np.int16)


def grey_picture(shape: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """(H, W) uint8 that compresses like a radiograph."""
    volume = smooth_volume((16, *shape), generator)[8]
    return ((volume.clip(-1000, 600) + 1000) / 1600 * 255).astype(np.uint8)


def embeddings(count: int, width: int, generator: np.random.Generator, subjects: int | None = None) -> np.ndarray:
    """(count, width) float32 that cluster as embeddings do: subjects of different sizes, few directions, some noise."""
    subjects = subjects or max(2, count // 50)
    directions = generator.standard_normal((min(64, width), width)).astype(np.float32) / width**0.5
    centres = generator.standard_normal((subjects, len(directions))).astype(np.float32)
    weights = generator.gamma(1.0, size=subjects)
    which = generator.choice(subjects, count, p=weights / weights.sum())
    features = np.empty((count, width), np.float32)
    for start in range(0, count, 20_000):
        rows = slice(start, start + 20_000)
        place = centres[which[rows]]
        place = place + 0.35 * generator.standard_normal(place.shape, dtype=np.float32)
        noise = generator.standard_normal((len(place), width), dtype=np.float32)
        features[rows] = place @ directions + 0.02 * noise
    return features
