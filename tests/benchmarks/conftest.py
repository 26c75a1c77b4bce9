"""The scripts of ``benchmarks/`` import one another by name, as they do when they are started from there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(FOLDER))

from harness import Options  # noqa: E402
from sides import Setting  # noqa: E402


@pytest.fixture
def options(tmp_path):
    """The short form with one pair."""
    return Options(quick=True, pairs=1, folder=tmp_path)


@pytest.fixture
def tiny_setting(tiny_sizes, tiny_modality):
    """``tiny_setting(name)``: a tiny network and four tiny samples a step, in float32 without stochastic depth."""

    def build(name, **fields):
        sizes = {**tiny_sizes, "stochastic_depth": 0.0, **fields.pop("sizes", {})}
        defaults = {"batch": 4, "preset": "demo", "pieces": 120, "precision": "float32"}
        return Setting(tiny_modality(name), sizes=sizes, **{**defaults, **fields})

    return build
