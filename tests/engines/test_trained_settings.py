"""Fine-tuned weights are used with the names and inputs of their training."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import pytest
import torch

from medcoss_components.engines.setup import task_network
from medcoss_components.engines.trained_settings import check_inputs, check_outputs, check_put_aside, trained_settings
from medcoss_components.errors import InputError
from medcoss_components.networks.classification import ClassificationModel
from medcoss_components.weights import save_weights

INTENSITY = {"clip": [0, 9], "divide": 9}


@pytest.fixture
def run(tmp_path):
    """Folder of a finished run that told "a" from "b"."""
    settings = {"classes": ["a", "b"], "modality": "report", "text_attention": "bidirectional", "intensity": INTENSITY}
    settings |= {"input_shape": [14], "data": {"validation": "key"}}
    (tmp_path / "run.json").write_text(json.dumps({"settings": settings}))
    (tmp_path / "metrics.json").write_text(json.dumps({"preparation": {"fit": "crop", "tile": [8, 8]}}))
    return tmp_path


def modality(name, *shape):
    return SimpleNamespace(name=name, input_shape=shape)


def network(**changes):
    own = {"classes": ("a", "b"), "modality": modality("report", 14), "text_attention": "bidirectional"}
    return SimpleNamespace(**own | changes)


def test_settings_of_a_folder_or_file_and_of_other_weights(run, tmp_path):
    assert trained_settings(run)["prepared"] == {"fit": "crop", "tile": [8, 8]}
    assert trained_settings(run / "model.pt") == trained_settings(run)
    assert trained_settings(tmp_path / "elsewhere" / "model.pt") == {}
    (run / "metrics.json").unlink()
    assert "prepared" not in trained_settings(run)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ("b", "a")}, r"classes: .* trained with \['a', 'b'\], given \['b', 'a'\].*--classes"),
        ({"modality": modality("xray", 14)}, "modality: .* 'report', given 'xray'"),
        ({"modality": modality("report", 7)}, r"input_shape: .* \[14\], given \[7\]"),
        ({"text_attention": "causal"}, "text_attention: .* 'bidirectional', given 'causal'"),
    ],
)
def test_other_names_refused(run, changes, message):
    check_outputs(network(), run)
    with pytest.raises(InputError, match=message):
        check_outputs(network(**changes), run)


def test_regions_are_compared_by_name_and_order(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"settings": {"regions": {"organ": [1, 2], "core": [2]}}}))
    check_outputs(
        SimpleNamespace(regions={"organ": [7], "core": [8]}), tmp_path
    )  # masks of elsewhere have other values
    with pytest.raises(InputError, match=r"regions: .*given \['core', 'organ'\]"):
        check_outputs(SimpleNamespace(regions={"core": [2], "organ": [1, 2]}), tmp_path)


def test_anchors_are_compared(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"settings": {"anchor_scale": 4}}))
    check_outputs(SimpleNamespace(head=SimpleNamespace(anchor_scale=4.0)), tmp_path)
    with pytest.raises(InputError, match=r"anchor_scale: .* trained with 4, given 2.0.*--anchor_scale"):
        check_outputs(SimpleNamespace(head=SimpleNamespace(anchor_scale=2.0)), tmp_path)


def test_inputs(run, caplog):
    known = network()
    check_outputs(known, run)
    with caplog.at_level(logging.WARNING):
        check_inputs(known, intensity={"clip": (0, 9), "divide": 9}, preparation={"fit": "crop", "tile": (8, 8)})
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        check_inputs(known, intensity=INTENSITY, preparation={"fit": "pad", "tile": [8, 8]})
    assert "(fit crop -> pad)" in caplog.text
    with pytest.raises(InputError, match="intensity: .*'divide': 9.*given None"):
        check_inputs(known, intensity=None, preparation=None)
    check_inputs(torch.nn.Linear(1, 1), intensity=INTENSITY, preparation={"fit": "pad"})  # nothing is known


@pytest.mark.parametrize("parts", ["all", "encoder"])
def test_only_whole_networks_are_compared(run, parts, tiny_sizes):
    def build(classes):
        return ClassificationModel(preset="demo", modality="report", input_shape=(14,), classes=classes, **tiny_sizes)

    save_weights(run / "model.pt", build(["a", "b"]).state_dict())
    task_network(network=build(["a", "b"]), init_weights=run, parts=parts)
    if parts == "encoder":  # a new task may start from the encoder
        task_network(network=build(["c", "d", "e"]), init_weights=run, parts=parts)
    else:
        with pytest.raises(InputError, match="classes: .*given"):
            task_network(network=build(["c", "d"]), init_weights=run, parts=parts)


@pytest.mark.parametrize(
    ("key", "source", "split", "told"),
    [
        ("key", "training", "validation", False),
        ("other", "training", "validation", True),  # for example put aside with another seed
        ("other", "validation", "validation", False),
        ("other", "testing", "testing", False),
    ],
)
def test_validation_cases_that_may_be_training_cases(run, caplog, key, source, split, told):
    known = network()
    check_outputs(known, run)
    dataset = SimpleNamespace(key=key, store=SimpleNamespace(index={"split": source}))
    check_put_aside(known, dataset, split)
    assert ("may have been trained with" in caplog.text) == told
