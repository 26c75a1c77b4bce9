"""The static checks find planted defects and nothing else."""

from __future__ import annotations

import copy
import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from medcoss_components.zoo.inspection import (
    bundle_problems,
    config_problems,
    full_signature,
    iterate,
    metadata_problems,
    resolve_target,
    workflow_configs,
)

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "bundles" / "medcoss_xray_pretraining"
GOOD: dict[str, Any] = {
    "about": {"purpose": "p", "prerequisite": "q", "command": "c --output_dir /data", "override": "o"},
    "size": 3,
    "folder": "$@bundle_root + '/store'",
    "bundle_root": ".",
    "parts": [{"_target_": "monai.data.Dataset", "data": "@items#0", "_requires_": "@size"}],
    "items": [[1, 2]],
}


def with_change(change: dict[str, Any]) -> dict[str, Any]:
    return {**copy.deepcopy(GOOD), **change}


class TestOptionsHandedOn:
    """Arguments of the classes below count where a class takes ``**options``."""

    TRAINER = "medcoss_components.Pretrainer"
    PREDICTOR = "medcoss_components.DetectionPredictor"

    @pytest.mark.parametrize(("target", "name"), [(TRAINER, "max_epochs"), (PREDICTOR, "output_dir")])
    def test_are_needed_and_known(self, target, name):
        names = set(full_signature(resolve_target(target)).parameters)
        good = dict.fromkeys(names, "@size")
        assert name in names and "options" not in names
        assert config_problems(with_change({"parts": {"_target_": target, **good}})) == []
        wrong = {f"{name}s" if key == name else key: value for key, value in good.items()}
        (problem,) = config_problems(with_change({"parts": {"_target_": target, **wrong}}))
        assert f"missing a required argument: '{name}'" in problem
        (problem,) = config_problems(with_change({"parts": {"_target_": target, **good, "precison": 1}}))
        assert "unexpected keyword argument 'precison'" in problem

    def test_own_arguments_come_before_those_handed_on(self):
        class Base:
            def __init__(self, *, size: int, rate: float = 1.0) -> None: ...

        class Built(Base):
            def __init__(self, name: str, *, rate: float, **options: Any) -> None: ...

        class Again(Built):
            pass

        assert str(full_signature(Again)).startswith("(name: 'str', *, rate: 'float', size: 'int')")

    def test_what_is_no_class_stays_as_it_is(self):
        def function(size: int, **options: Any) -> None: ...

        assert full_signature(function).parameters["options"].kind is inspect.Parameter.VAR_KEYWORD


def test_good_config_has_no_problem() -> None:
    assert config_problems(GOOD) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"parts": {"_target_": "medcoss_components.nowhere"}}, "parts: medcoss_components.nowhere does not exist"),
        ({"parts": {"_target_": "NoSuchMonaiName"}}, "parts: NoSuchMonaiName does not exist or cannot be called"),
        ({"parts": {"_target_": "math.pi"}}, "parts: math.pi does not exist or cannot be called"),
        ({"parts": [{"_target_": "Dataset", "data": 1, "dta": 2}]}, "unexpected keyword argument 'dta'"),
        ({"parts": [{"_target_": "Dataset"}]}, "parts#0: Dataset: missing a required argument: 'data'"),
        ({"size": "@sise"}, "size: @sise is not in the config"),
        ({"size": "$len(@items#1)"}, "size: @items#1 is not in the config"),
        ({"size": "$@items::2"}, "size: @items#2 is not in the config"),
        ({"imports": ["$import glob"]}, "imports#0: $import in '$import glob'"),
        ({"backend": "nccl"}, "backend: nccl in 'nccl'"),
        ({"folder": "/home/me/data"}, "folder: absolute path in '/home/me/data'"),
        ({"folder": "$'/workspace/' + 'x'"}, "folder: absolute path in"),
        ({"folder": "C:\\data"}, "folder: absolute path in"),
        ({"folder": "$'/srv/x'"}, "folder: absolute path in"),
        ({"folder": "$__import__('os').path.join(@size, '/opt/x')"}, "folder: absolute path in"),
        ({"folder": "$@size if @size else '~/x'"}, "folder: absolute path in"),
        ({"tracking": True}, "tracking: the command line of MONAI has an option of this name"),
        ({"about": {"purpose": "p", "command": "c", "override": "o"}}, "about: prerequisite is missing"),
    ],
)
def test_planted_defect(change: dict[str, Any], problem: str) -> None:
    problems = config_problems(with_change(change))
    assert len(problems) == 1 and problem in problems[0]


def test_path_behind_another_is_not_absolute() -> None:
    texts = ["$str(@size) + '/x'", "$str(@size)+'/x'", "$'a/b'.replace('/', '_')"]
    assert config_problems(with_change({"parts": texts})) == []


def test_header_must_come_first() -> None:
    content = dict(reversed(GOOD.items()))
    assert config_problems(content) == ["about: must be the first key"]


def test_iterate_gives_places_of_dicts_and_lists() -> None:
    assert list(iterate({"a": [1, {"b": 2}]})) == [
        ("", {"a": [1, {"b": 2}]}),
        ("a", [1, {"b": 2}]),
        ("a#0", 1),
        ("a#1", {"b": 2}),
        ("a#1#b", 2),
    ]


def test_resolve_target_finds_monai_names_without_a_path() -> None:
    from monai.inferers import SimpleInferer

    assert resolve_target("SimpleInferer") is SimpleInferer


def test_overlays_are_merged_over_train() -> None:
    configs = workflow_configs(BUNDLE)
    assert set(configs) == {"train", "evaluate", "inference", "demo", "multi_gpu_train"}
    assert configs["demo"]["preset"] == "demo" and configs["demo"]["train"] == configs["train"]["train"]


def test_bundle_folder_defects(tmp_path: Path) -> None:
    copied = tmp_path / BUNDLE.name
    shutil.copytree(BUNDLE, copied, ignore=shutil.ignore_patterns("models", "output", "store"))
    assert bundle_problems(copied) == []
    (copied / "docs" / "README.md").unlink()
    path = copied / "configs" / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": "9.9.9", "authors": 3}))
    assert bundle_problems(copied) == [
        f"{copied / 'docs/README.md'} is missing",
        "metadata authors: 3 is not of type 'string'",
        "metadata version '9.9.9' is not in the changelog",
    ]
    path.unlink()
    assert f"{path} is missing" in bundle_problems(copied)


def test_metadata_without_required_keys() -> None:
    problems = metadata_problems({})
    assert any("'network_data_format' is a required property" in problem for problem in problems)
