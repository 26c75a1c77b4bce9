"""Sweep over every bundle and every config in the repository: found recursively, counted, one case per file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medcoss_components.zoo.build import check_bundles
from medcoss_components.zoo.inspection import OVERLAYS, bundle_problems, config_problems, workflow_configs
from medcoss_components.zoo.runtime import check_settings

ROOT = Path(__file__).parents[1]
BUNDLES = sorted(path.parent for path in (ROOT / "bundles").glob("*/bundle.yaml"))
CONFIGS = sorted(path for path in (ROOT / "bundles").rglob("configs/*.json") if path.stem != "metadata")
STAGE_CONFIGS = {"train", "evaluate", "inference", "multi_gpu_train", "demo"}
STEPS = {"stage", "contrastive", "multitask", "muscle_minus"}
"""Configs that only a chain or MUSCLE's pre-training has."""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT / "bundles"))


@pytest.fixture(scope="module")
def merged() -> dict[Path, dict]:
    """Configs as they run, overlays behind train.json."""
    return {
        bundle / "configs" / f"{name}.json": content
        for bundle in BUNDLES
        for name, content in workflow_configs(bundle).items()
    }


def test_counts() -> None:
    # 5 stage bundles and 13 downstream bundles with 5 configs, the chain with 5 and stage.json, MUSCLE's pre-training
    # with 5, its two steps and its overlay
    assert len(BUNDLES) == 20
    assert len(CONFIGS) == 18 * 5 + 6 + 8
    for bundle in BUNDLES:
        names = {path.stem for path in CONFIGS if path.parents[1] == bundle}
        assert names - STEPS == STAGE_CONFIGS


def test_generated_files_are_up_to_date() -> None:
    assert [str(difference) for difference in check_bundles(ROOT / "bundles")] == []


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_config(path: Path, merged: dict[Path, dict]) -> None:
    assert config_problems(merged[path]) == []
    check_settings(merged[path])


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_overlay_sets_only_what_train_has(path: Path, merged: dict[Path, dict]) -> None:
    if path.stem in OVERLAYS:
        added = set(merged[path]) - set(merged[path.with_name("train.json")])
        assert added <= {"finalize"}


@pytest.mark.parametrize("bundle", BUNDLES, ids=name_of)
def test_bundle_folder(bundle: Path) -> None:
    assert bundle_problems(bundle) == []


@pytest.mark.parametrize("bundle", BUNDLES, ids=name_of)
def test_readme_shows_every_command_and_the_warning(bundle: Path) -> None:
    text = (bundle / "docs" / "README.md").read_text(encoding="utf-8")
    for config in STAGE_CONFIGS:
        assert f"bundles/{bundle.name}/configs/{config}.json" in text
    assert "Configs are code" in text and "licence" in text and "## Limits" in text and "## Intended use" in text


def test_stage_config_is_the_stage_bundles_train_config(merged: dict[Path, dict]) -> None:
    stage = dict(merged[ROOT / "bundles/medcoss_continual_pretraining/configs/stage.json"])
    train = dict(merged[ROOT / "bundles/medcoss_ct_pretraining/configs/train.json"])
    open_keys = ("about", "modality", "data_manifest")
    for key in open_keys:
        stage.pop(key), train.pop(key)
    assert stage == train


def test_chain_passes_on_only_keys_of_the_stage_config(merged: dict[Path, dict]) -> None:
    chain = merged[ROOT / "bundles/medcoss_continual_pretraining/configs/train.json"]
    stage = merged[ROOT / "bundles/medcoss_continual_pretraining/configs/stage.json"]
    assert set(chain["stage_settings"]) <= set(stage)
    same = {key: stage[key] for key in chain["stage_settings"] if not str(stage[key]).startswith("$")}
    assert {key: chain[key] for key in same} == same


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_metadata_names_the_tested_versions(bundle: Path) -> None:
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    named = metadata["required_packages_version"] | {
        "monai": metadata["monai_version"],
        "torch": metadata["pytorch_version"],
        "numpy": metadata["numpy_version"],
    }
    lower = {name.lower(): version for name, version in pinned.items()}
    assert named == {name: lower.get(name.lower()) for name in named}
    assert "supported_apps" not in metadata
