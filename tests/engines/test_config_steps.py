"""Steps of a longer run: reading a config, checking and setting its keys."""

from __future__ import annotations

import pytest
from monai.bundle import ConfigParser

from medcoss_components.engines.config_steps import check_keys, read_step_config, set_keys
from medcoss_components.errors import InputError
from medcoss_components.files import write_json


@pytest.fixture
def config(tmp_path):
    write_json(tmp_path / "step.json", {"seed": 0, "network": {"_target_": "N", "width": 1}})
    return tmp_path / "step.json"


def test_mapping_sets_the_keys_of_a_part():
    parser = ConfigParser({"network": {"_target_": "N", "width": 1, "depth": 2}, "free": None, "list": [1]})
    set_keys(parser, {"network": {"width": 5, "heads": 3}, "free": {"a": 1}, "list": [2, 3]})
    assert parser.config == {
        "network": {"_target_": "N", "width": 5, "depth": 2, "heads": 3},
        "free": {"a": 1},
        "list": [2, 3],
    }


def test_nothing_is_built_when_a_config_is_read(config):
    assert read_step_config(config)["network"] == {"_target_": "N", "width": 1}


def test_known_keys_pass(config):
    check_keys(["seed", "network#width", "network"], config, where="step 1")


def test_unknown_keys_are_named_with_the_known_ones(config):
    with pytest.raises(
        InputError, match=r"step 1: learning_rate, sed is no key of .*step.json; its keys are network, seed"
    ):
        check_keys(["sed", "seed", "learning_rate"], config, where="step 1")


def test_missing_config(tmp_path):
    with pytest.raises(InputError, match=r"gone.json: no such file"):
        read_step_config(tmp_path / "gone.json")
