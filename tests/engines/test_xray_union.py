"""Manifests to one data set: preparation, names, body parts, errors that name the manifest."""

from __future__ import annotations

import pytest

from medcoss_components.data.modalities import get_modality
from medcoss_components.data.synthetic import synthetic_manifest
from medcoss_components.engines.xray_union import xray_union
from medcoss_components.errors import InputError
from medcoss_components.files import read_json, write_json

SHAPE = (3, 8, 18)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Manifests called chest (4 training, 1 validation) and hand (3 training)."""
    folder, made = tmp_path_factory.mktemp("xray_union"), {}
    for seed, (name, counts) in enumerate({"chest": (4, 1), "hand": (3, 0)}.items()):
        path = synthetic_manifest(
            folder / name,
            get_modality("xray", input_shape=SHAPE),
            count=counts[0],
            validation=counts[1],
            seed=seed,
            shape=(16, 36),
        )
        content = read_json(path)
        content["name"] = name
        for item in content["training"][:2]:
            item["body_part"] = name
        write_json(path, content)
        made[name] = path
    return made


@pytest.fixture
def join(store_dir):
    """``join(manifests, **options)``"""
    return lambda manifests, **options: xray_union(
        manifests=manifests, **({"store_dir": store_dir, "input_shape": SHAPE, "workers": 1} | options)
    )


class TestUnion:
    def test_bears_names_and_body_parts(self, paths, join):
        union = join([paths["chest"], str(paths["hand"])])
        assert union.counts == {"chest": 4, "hand": 3}
        assert union.body_parts == ["chest"] * 2 + [None] * 2 + ["hand"] * 2 + [None]
        assert union.modality.input_shape == SHAPE and union.preparation_seconds >= 0

    def test_a_split_without_items_is_left_out(self, paths, join):
        assert join([paths["chest"], paths["hand"]], split="validation").counts == {"chest": 1}

    def test_nothing_to_validate(self, paths, join):
        assert join(paths["hand"], split="validation", optional=True) is None
        with pytest.raises(InputError, match="none of 1 has items in the split validation"):
            join(paths["hand"], split="validation")

    def test_entries_have_settings_of_their_own(self, paths, join):
        entry = {"data_manifest": paths["hand"], "name": "fingers", "preparation": {"fit": "pad"}}
        union = join([paths["chest"], entry])
        assert union.dataset_names == ["chest", "fingers"]
        assert [store.index["preparation"]["fit"] for store in union.stores] == ["crop", "pad"]

    def test_samples_of_tiles_have_the_item_s_body_part(self, paths, join):
        union = join([paths["hand"]], preparation={"tile": [8, 18]})
        assert len(union) == 12 and union.body_parts == ["hand"] * 8 + [None] * 4


class TestRefused:
    @pytest.mark.parametrize("given", [[], "", [None]])
    def test_no_manifest(self, given, join):
        with pytest.raises(InputError, match="manifests: give the paths"):
            join(given)

    def test_the_same_twice(self, paths, join):
        with pytest.raises(InputError, match=f"the same data set as {paths['chest']}"):
            join([paths["chest"], paths["hand"], paths["chest"]])

    def test_missing_file_is_named(self, paths, join, tmp_path):
        with pytest.raises(InputError, match=f"^{tmp_path / 'none.json'}: no such file"):
            join([paths["chest"], tmp_path / "none.json"])

    def test_other_errors_name_the_manifest(self, paths, join):
        with pytest.raises(InputError, match=f"^{paths['hand']}: preparation: fit='fold'"):
            join([paths["chest"], {"data_manifest": paths["hand"], "preparation": {"fit": "fold"}}])

    def test_unknown_key(self, paths, join):
        with pytest.raises(InputError, match=r"manifests\[1\]: 'weight' is no key; the keys are data_manifest"):
            join([paths["chest"], {"data_manifest": paths["hand"], "weight": 2}])

    def test_entry_without_manifest(self, join):
        with pytest.raises(InputError, match=r"manifests\[0\]: data_manifest is missing"):
            join([{"name": "chest"}])
