"""What tests of several strategies share."""

from __future__ import annotations

import pytest
import torch

from medcoss_components.data.sampler import BatchPlan, BatchReader
from medcoss_components.engines.batches import StepSettings, step_batch


@pytest.fixture
def prepared(fake_source, vocabulary, tiny_sizes):
    """``prepared(modality)``: a current batch of four samples."""

    def build(name):
        source = fake_source(name, 4)
        batch = BatchReader([source], current=1, seed=0)[BatchPlan(0, 0, 0, torch.arange(4).numpy())]
        settings = StepSettings(
            vocabulary=vocabulary, depth=2, patch_2d=tiny_sizes["patch_2d"], patch_3d=tiny_sizes["patch_3d"]
        )
        return step_batch(batch, modality=source.modality, settings=settings, device=torch.device("cpu"))

    return build
