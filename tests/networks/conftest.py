"""A network small enough for loops, with patches and grids whose sides all differ."""

import pytest
import torch

from medcoss_components.networks.pretraining import PretrainingModel

TINY = {
    "width": 24,
    "depth": 2,
    "heads": 3,
    "decoder_width": 16,
    "decoder_depth": 1,
    "decoder_heads": 2,
    "vocabulary_size": 50,
    "text_positions": 12,
    "patch_2d": (4, 6),
    "grid_2d": (2, 3),
    "patch_3d": (4, 6, 8),
    "grid_3d": (2, 1, 3),
}
INPUTS = {
    "report": lambda g: torch.randint(5, 50, (3, 9), generator=g),
    "xray": lambda g: torch.rand(3, 3, 8, 18, generator=g),
    "pathology": lambda g: torch.rand(3, 3, 8, 18, generator=g),
    "ct": lambda g: torch.randn(3, 1, 8, 6, 24, generator=g),
    "mri": lambda g: torch.randn(3, 1, 8, 6, 24, generator=g),
}


@pytest.fixture
def tiny():
    """Build a tiny model from a fixed seed; keywords go to the model."""

    def build(**arguments):
        torch.manual_seed(7)
        return PretrainingModel(preset="demo", **(TINY | arguments))

    return build


@pytest.fixture
def batch():
    """Inputs of a modality: three samples from a fixed seed."""
    return lambda modality, seed=3: INPUTS[modality](torch.Generator().manual_seed(seed))
