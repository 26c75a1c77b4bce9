"""The two steps of MUSCLE's pre-training: what is given to them. Whole runs are in tests/clients."""

from __future__ import annotations

from pathlib import Path

import pytest

from medcoss_components.engines.muscle import MusclePretraining
from medcoss_components.errors import InputError

CONFIGS = Path(__file__).parents[2] / "bundles/muscle_xray_pretraining/configs"


def pipeline(folder, **options):
    return MusclePretraining(
        contrastive_config=CONFIGS / "contrastive.json",
        multitask_config=CONFIGS / "multitask.json",
        output_dir=folder,
        tracking=False,
        **options,
    )


@pytest.mark.parametrize("manifests", ["films/manifest.json", Path("films/manifest.json"), {"data_manifest": "films"}])
def test_one_manifest_and_one_step_stand_for_themselves(tmp_path, manifests):
    (step,) = pipeline(tmp_path, manifests=manifests, steps="contrastive").steps
    assert (step.name, step.settings["manifests"]) == ("contrastive", [manifests])


def test_a_file_that_is_not_there_is_named_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match="manifests: data_manifest films/manifest.json: no such file"):
        pipeline(tmp_path / "run", manifests="films/manifest.json", steps="contrastive").run()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("steps", [[], ["multitask", "contrastive"], "finetuning"])
def test_other_steps(tmp_path, steps):
    with pytest.raises(InputError, match="steps: must be one or both of contrastive, multitask, in this order"):
        pipeline(tmp_path, steps=steps)
