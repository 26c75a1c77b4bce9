import json
from dataclasses import replace

import pytest

from medcoss_components.data import modalities
from medcoss_components.data.modalities import MODALITIES, Modality, get_modality, register_modality
from medcoss_components.errors import InputError

ULTRASOUND = {
    "name": "ultrasound",
    "dimension": 2,
    "input_shape": [3, 64, 96],
    "intensity": "unit_range",
    "stored_channels": 1,
}


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    monkeypatch.setattr(modalities, "MODALITIES", registry := dict(MODALITIES))
    return registry


@pytest.mark.parametrize(
    ("name", "dimension", "input_shape", "stored_shape", "dtype", "augmentation", "pretext"),
    [
        ("report", 1, (112,), (112,), "uint16", "none", "masked_language"),
        ("xray", 2, (3, 224, 224), (1, 224, 224), "uint8", "resized_crop_flip", "masked_image"),
        ("ct", 3, (1, 16, 192, 192), (1, 16, 192, 192), "int16", "mirror", "masked_image"),
        ("mri", 3, (1, 16, 192, 192), (1, 16, 192, 192), "float16", "mirror", "masked_image"),
        ("pathology", 2, (3, 224, 224), (3, 224, 224), "uint8", "resized_crop_flip", "masked_image"),
    ],
)
def test_built_in_entries_follow_the_method(name, dimension, input_shape, stored_shape, dtype, augmentation, pretext):
    entry = get_modality(name)
    assert (entry.dimension, entry.input_shape, entry.stored_shape) == (dimension, input_shape, stored_shape)
    assert (entry.stored_dtype, entry.augmentation, entry.pretext) == (dtype, augmentation, pretext)
    assert entry.content_key == ("text" if name == "report" else "image")


def test_default_order_is_the_order_of_stages():
    assert list(MODALITIES) == ["report", "xray", "ct", "mri", "pathology"]


@pytest.mark.parametrize("name", MODALITIES)
def test_entries_survive_json(name):
    entry = get_modality(name)
    assert Modality.from_dict(json.loads(json.dumps(entry.to_dict()))) == entry


def test_dict_registers_a_new_modality_and_fills_rules_from_the_dimension(own_registry):
    entry = get_modality(ULTRASOUND)
    assert entry.stored_shape == (1, 64, 96)
    assert (entry.stored_dtype, entry.augmentation, entry.pretext) == ("uint8", "resized_crop_flip", "masked_image")
    assert get_modality("ultrasound") is own_registry["ultrasound"]


def test_stored_channels_default_to_the_input_channels():
    assert Modality(name="oct", dimension=3, input_shape=(1, 4, 6, 8), intensity="zscore").stored_shape == (1, 4, 6, 8)


def test_an_entry_itself_is_returned_and_registered(own_registry):
    entry = Modality.from_dict(ULTRASOUND)
    assert get_modality(entry) is entry
    assert "ultrasound" in own_registry


def test_input_shape_is_overridden_for_one_caller_only():
    small = get_modality("ct", input_shape=[1, 4, 6, 8])
    assert small.stored_shape == (1, 4, 6, 8)
    assert get_modality("ct").input_shape == (1, 16, 192, 192)
    assert get_modality(small) == small


def test_partial_dict_of_a_known_modality():
    small = get_modality({"name": "xray", "input_shape": [3, 32, 48]})
    assert small == replace(get_modality("xray"), input_shape=(3, 32, 48))


def test_registering_twice():
    entry = get_modality(ULTRASOUND)
    assert register_modality(entry) == entry
    other = replace(entry, stored_channels=3)
    with pytest.raises(
        InputError, match=r"'ultrasound' is registered already with another stored_channels \(1, not 3\)"
    ):
        register_modality(other)
    assert register_modality(other, replace=True) is get_modality("ultrasound")


def test_a_contradicting_dict_is_an_error():
    with pytest.raises(InputError, match=r"another augmentation \('mirror', not 'none'\)"):
        get_modality({"name": "ct", "augmentation": "none"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "Ultra Sound"}, "modality name 'Ultra Sound'"),
        ({"dimension": 4}, "dimension must be 1, 2 or 3, got 4"),
        ({"input_shape": [3, 64]}, r"\(C, H, W\) of positive integers, got \[3, 64\]"),
        ({"input_shape": [3, 64, 0]}, r"got \[3, 64, 0\]"),
        ({"input_shape": 64}, "got 64"),
        ({"intensity": "hounsfield"}, "intensity of a 2D entry must be one of: unit_range; got 'hounsfield'"),
        ({"augmentation": "mirror"}, "must be one of: none, resized_crop_flip; got 'mirror'"),
        ({"pretext": "masked_language"}, "must be one of: masked_image; got 'masked_language'"),
        ({"stored_dtype": "float64"}, "must be one of: uint8; got 'float64'"),
        ({"stored_channels": 2}, "stored_channels must be 1 or the input's 3, got 2"),
        ({"colour": True}, r"unknown keys \['colour'\]"),
    ],
)
def test_broken_entries_name_field_and_value(change, message):
    with pytest.raises(InputError, match=message):
        Modality.from_dict(ULTRASOUND | change)


def test_missing_keys_are_listed():
    with pytest.raises(InputError, match=r"missing keys \['dimension', 'input_shape', 'intensity'\]"):
        get_modality({"name": "ultrasound"})


def test_unknown_names_list_the_known_ones():
    with pytest.raises(InputError, match="'sonar' is not registered; known: report, xray, ct, mri, pathology"):
        get_modality("sonar")


def test_other_types_are_refused():
    with pytest.raises(InputError, match="got int"):
        get_modality(3)
    with pytest.raises(InputError, match="input_shape must be a list of integers, got 7"):
        get_modality("ct", input_shape=7)
