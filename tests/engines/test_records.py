"""Which steps are done, and that a folder refuses other settings."""

from __future__ import annotations

import json
from datetime import datetime

import pytest

from medcoss_components.engines.records import StepRecord, changed_settings
from medcoss_components.errors import InputError

SETTINGS = {"batch_size": 4, "precision": "bf16", "betas": [0.9, 0.95]}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "stage.json"


def finished(path, *steps, settings=SETTINGS):
    record = StepRecord(path, settings=settings)
    for step in steps:
        with record.step(step):
            pass
    return record


def test_new_record_has_nothing_done(path):
    record = StepRecord(path, settings=SETTINGS)
    assert not record.done("train") and record.steps == {} and record.values == {}
    assert not path.exists()


def test_finished_steps_are_read_again(path):
    finished(path, "train").values["run_id"] = "not saved yet"
    record = finished(path, "evaluate")
    assert record.done("train") and record.done("evaluate") and not record.done("embed")
    assert record.values == {}


def test_values_are_saved_with_the_next_step(path):
    record = StepRecord(path, settings=SETTINGS)
    record.values["validation_loss"] = 0.25
    with record.step("evaluate"):
        pass
    assert StepRecord(path, settings=SETTINGS).values == {"validation_loss": 0.25}


def test_step_has_a_time_and_seconds(path):
    step = finished(path, "train").steps["train"]
    assert datetime.fromisoformat(step["finished"]).tzinfo is not None
    assert 0 <= step["seconds"] < 1


def test_step_that_fails_is_not_done(path):
    record = finished(path, "train")
    with pytest.raises(ZeroDivisionError), record.step("evaluate"):
        raise ZeroDivisionError
    assert not record.done("evaluate") and not StepRecord(path, settings=SETTINGS).done("evaluate")


def test_other_ranks_do_not_write(path):
    record = StepRecord(path, settings=SETTINGS, writes=False)
    with record.step("train"):
        pass
    assert record.done("train") and not path.exists()


def test_content_is_readable_json(path):
    finished(path, "train")
    content = json.loads(path.read_text())
    assert content["format"] == 1 and content["settings"] == SETTINGS and list(content["steps"]) == ["train"]


def test_changed_settings_refused_with_a_list(path):
    finished(path, "train")
    changed = {"batch_size": 8, "precision": "bf16", "betas": [0.9, 0.99], "seed": 1}
    message = r"other settings \(batch_size: 4 -> 8; betas: \[0.9, 0.95\] -> \[0.9, 0.99\]; seed: None -> 1\)"
    with pytest.raises(InputError, match=message):
        StepRecord(path, settings=changed)


def test_left_out_setting_is_a_change(path):
    finished(path, "train")
    with pytest.raises(InputError, match="precision: 'bf16' -> None"):
        StepRecord(path, settings={"batch_size": 4, "betas": [0.9, 0.95]})


def test_damaged_record_refused(path):
    path.write_text('{"settings": ')
    with pytest.raises(InputError, match="stage.json: not a JSON file"):
        StepRecord(path, settings=SETTINGS)


def test_equal_settings_have_no_changes():
    assert changed_settings(SETTINGS, dict(SETTINGS)) == []


def test_hashes_are_shortened():
    one, other = "0123456789ab" * 5 + "0123", "fedcba987654" * 5 + "fedc"
    assert changed_settings({"data": {"a": one}}, {"data": {"a": other}}) == [
        "data: {'a': '0123456789ab...'} -> {'a': 'fedcba987654...'}"
    ]
