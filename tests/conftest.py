"""Shared by all tests: a quiet environment, a tiny network, sources in memory and a trainer over them.

Patches and grids have sides that all differ, so that swapped axes show.
"""

from __future__ import annotations

import os
import subprocess
import sys

os.environ.update(MEDCOSS_PROGRESS="0", MEDCOSS_ID_SALT="a salt for tests only", CUDA_VISIBLE_DEVICES="")
os.environ.update(MPLBACKEND="Agg", MLFLOW_DISABLE_TELEMETRY="true")
for name in ("MLFLOW_TRACKING_URI", "MEDCOSS_DEBUG", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
    os.environ.pop(name, None)

import numpy as np  # noqa: E402  after the environment is set
import pytest  # noqa: E402
import torch  # noqa: E402

from medcoss_components.data import modalities  # noqa: E402
from medcoss_components.data.modalities import get_modality  # noqa: E402
from medcoss_components.data.sampler import PretrainingLoader  # noqa: E402
from medcoss_components.data.synthetic import LABELS, synthetic_sentence  # noqa: E402
from medcoss_components.engines.optimisation import pretraining_optimizer  # noqa: E402
from medcoss_components.engines.pretrainer import Pretrainer  # noqa: E402
from medcoss_components.networks.pretraining import PretrainingModel  # noqa: E402
from medcoss_components.text.vocabulary import train_vocabulary  # noqa: E402

torch.set_num_threads(1)

SIZES = {
    "width": 24,
    "depth": 2,
    "heads": 2,
    "decoder_width": 16,
    "decoder_depth": 1,
    "decoder_heads": 2,
    "vocabulary_size": 160,
    "text_positions": 16,
    "patch_2d": (4, 6),
    "grid_2d": (2, 3),
    "patch_3d": (2, 4, 6),
    "grid_3d": (3, 2, 2),
}
SHAPES = {"report": (14,), "xray": (3, 8, 18), "pathology": (3, 8, 18), "ct": (1, 6, 8, 12), "mri": (1, 6, 8, 12)}


class FakeSource:
    """Samples in memory with what loaders and engines need of a store."""

    def __init__(self, modality, samples):
        self.modality, self.samples = modality, samples
        self.ids = [f"{modality.name}-{number:03d}" for number in range(len(samples))]
        self.key, self.manifest_hash = f"key of {modality.name}", "manifest hash"

    def __len__(self):
        return len(self.samples)

    def gather(self, indices):
        return self.samples[np.asarray(indices)]


def _restored_registry():
    known = dict(modalities.MODALITIES)
    yield
    modalities.MODALITIES.clear()
    modalities.MODALITIES.update(known)


@pytest.fixture(autouse=True)
def same_registry():
    """Take away what a test registered."""
    yield from _restored_registry()


@pytest.fixture(autouse=True, scope="module")
def same_registry_after_a_module():
    """Take away what the fixtures of a module registered."""
    yield from _restored_registry()


@pytest.fixture
def tiny_sizes():
    """Sizes of the tiny network, as keywords of ``PretrainingModel``."""
    return dict(SIZES)


@pytest.fixture
def tiny_network():
    """Build a tiny network from a fixed seed; keywords go to the model."""

    def build(seed=7, **arguments):
        torch.manual_seed(seed)
        return PretrainingModel(preset="demo", **(SIZES | arguments))

    return build


@pytest.fixture
def tiny_modality():
    """``tiny_modality(name)``: a registered modality with a tiny, non-cubic input."""
    return lambda name: get_modality(name, input_shape=SHAPES[name])


@pytest.fixture(scope="session")
def texts():
    """Sixty sentences of different lengths."""
    generator = np.random.default_rng(0)
    sentences = [synthetic_sentence(LABELS[number % 2], number, generator) for number in range(60)]
    return [" ".join(sentence.split()[: 3 + number % 9]) for number, sentence in enumerate(sentences)]


@pytest.fixture(scope="session")
def vocabulary(texts):
    """A byte-pair vocabulary of 120 pieces."""
    return train_vocabulary(texts, size=120)


@pytest.fixture
def fake_source(tiny_modality, vocabulary, texts):
    """``fake_source(name, count)``: random samples of a tiny modality, in memory."""

    def build(name, count=10, seed=0):
        modality = tiny_modality(name)
        if modality.dimension == 1:
            return FakeSource(modality, vocabulary.encode_batch(texts[:count], modality.stored_shape[0]))
        scale = {"unit_range": 255, "hounsfield": 1000, "zscore": 2}[modality.intensity]
        values = np.random.default_rng(seed).random((count, *modality.stored_shape)) * scale
        return FakeSource(modality, values.astype(modality.stored_dtype))

    return build


@pytest.fixture
def make_trainer(tiny_network, vocabulary):
    """Build a trainer over sources: ``make_trainer(source, buffers=[...], **arguments of Pretrainer)``."""

    def build(source, *, buffers=(), joint=(), network=None, batch_size=4, learning_rate=1e-3, seed=0, **options):
        network = network or tiny_network()
        loader = PretrainingLoader(source, buffers=buffers, joint=joint, batch_size=batch_size, seed=seed)
        optimizer = pretraining_optimizer(network=network, learning_rate=learning_rate)
        options = {"precision": "float32", "max_epochs": 2, "device": "cpu", "vocabulary": vocabulary} | options
        return Pretrainer(train_data_loader=loader, network=network, optimizer=optimizer, seed=seed, **options)

    return build


@pytest.fixture
def medcoss(monkeypatch, capsys):
    """``medcoss(*arguments) -> (exit status, stdout, stderr)``, in this process."""
    from medcoss_components import cli

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["medcoss", *map(str, arguments)])
        monkeypatch.delenv(cli.DEBUG_VARIABLE, raising=False)
        try:
            cli.main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        else:
            status = 0
        monkeypatch.delenv(cli.DEBUG_VARIABLE, raising=False)  # --debug sets it
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return call


@pytest.fixture(scope="session")
def two_processes():
    """``two_processes(script or "-m", ..., environment=...)``: two gloo processes under torchrun; what they printed."""

    def run(*arguments, environment=None):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        settings = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            [*launcher, *map(str, arguments)],
            env={**(os.environ if environment is None else environment), **settings},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout + done.stderr

    return run
