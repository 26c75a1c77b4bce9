"""Buffers over real stores: choose, write, materialise, lose the data, read again."""

import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from medcoss_components.continual.buffer import (
    make_buffer,
    materialise_buffer,
    open_buffer_store,
    read_buffer,
    write_buffer,
)
from medcoss_components.continual.exemplars import exemplar_count, select_exemplars
from medcoss_components.data.modalities import MODALITIES, Modality
from medcoss_components.data.store import prepare_store
from medcoss_components.data.synthetic import synthetic_manifest
from medcoss_components.errors import InputError
from medcoss_components.text.vocabulary import train_vocabulary

OCT = Modality(
    name="test_oct", dimension=3, input_shape=(1, 16, 16, 32), intensity="unit_range", description="One of our own"
)
ENTRIES = {
    "xray": {"name": "xray", "input_shape": [3, 32, 48]},
    "report": {"name": "report"},
    "test_oct": OCT.to_dict(),
}


@pytest.fixture(autouse=True)
def _forget_the_new_modality():
    yield
    MODALITIES.pop(OCT.name, None)


def make_store(folder, modality):
    entry = ENTRIES[modality]
    words = [f"report {number} shows no effusion" for number in range(9)]
    return prepare_store(
        manifest=synthetic_manifest(folder / "data", entry, count=10, seed=1),
        modality=entry,
        store_dir=folder / "stores",
        vocabulary=train_vocabulary(words, size=200) if modality == "report" else None,
        workers=1,
        progress=False,
    )


def choose(store, ratio=0.3):
    features = store.gather(np.arange(len(store))).reshape(len(store), -1)
    chosen = select_exemplars(features, count=exemplar_count(len(store), ratio), clusters=2, seed=0)
    return make_buffer(store=store, exemplars=chosen, encoder_hash="e" * 64, ratio=ratio, seed=0)


@pytest.mark.parametrize("modality", ENTRIES)
def test_buffer_travels_without_the_data(tmp_path, modality):
    store = make_store(tmp_path, modality)
    buffer, stage = choose(store), tmp_path / "runs" / "01"
    write_buffer(materialise_buffer(buffer, store, stage / "buffer"), stage)
    rows, samples = store.gather(np.array(buffer.indices)), [store[index] for index in buffer.indices]
    shutil.copytree(stage, tmp_path / "published")
    for gone in ("data", "stores", "runs"):
        shutil.rmtree(tmp_path / gone)
    MODALITIES.pop(OCT.name, None)
    view = open_buffer_store(read_buffer(tmp_path / "published"))
    assert list(view.ids) == list(buffer.ids) and len(view) == round(0.3 * len(store))
    np.testing.assert_array_equal(view.gather(np.arange(len(view))), rows)
    assert view.modality == store.modality and modality in MODALITIES
    for position, sample in enumerate(samples):
        content = store.modality.content_key
        assert view[position]["id"] == sample["id"] and torch.equal(view[position][content], sample[content])
    assert view.vocabulary_path is None or view.vocabulary_path.is_relative_to(tmp_path / "published")


def test_buffer_over_the_whole_store_finds_it_by_path_and_by_folder(tmp_path):
    store = make_store(tmp_path, "xray")
    write_buffer(choose(store), tmp_path / "run")
    buffer = read_buffer(tmp_path / "run")
    assert open_buffer_store(buffer).path == store.path
    shutil.move(tmp_path / "stores", tmp_path / "moved")
    view = open_buffer_store(buffer, tmp_path / "moved")
    assert list(view.ids) == list(buffer.ids) and view.key == store.key
    (tmp_path / "moved" / store.path.name / "index.json").unlink()
    with pytest.raises(InputError, match="no usable store.*index.json is missing.*--store_dir"):
        open_buffer_store(buffer, tmp_path / "moved")


KILLED = """
import os, signal, sys
from pathlib import Path
from medcoss_components.continual.buffer import materialise_buffer, open_buffer_store, read_buffer
from medcoss_components.data import store

def killed(path, content):
    os.kill(os.getpid(), signal.SIGKILL)

store.write_json = killed
buffer = read_buffer(Path(sys.argv[1]))
materialise_buffer(buffer, open_buffer_store(buffer), Path(sys.argv[1]) / "buffer")
"""


def test_a_copy_killed_half_way_is_not_picked_up_and_can_be_made_again(tmp_path):
    store, stage = make_store(tmp_path, "xray"), tmp_path / "run"
    buffer = choose(store)
    write_buffer(buffer, stage)
    process = subprocess.run([sys.executable, "-c", KILLED, str(stage)], timeout=120, check=False)
    assert process.returncode == -signal.SIGKILL
    left = [entry.name for entry in stage.iterdir() if entry.name != "buffer.json"]
    assert len(left) == 1 and left[0].startswith(".buffer.") and list((stage / left[0]).glob("shard-*"))
    assert open_buffer_store(read_buffer(stage)).path == store.path
    write_buffer(materialise_buffer(buffer, store, stage / "buffer"), stage)
    assert open_buffer_store(read_buffer(stage)).path == stage / "buffer"
