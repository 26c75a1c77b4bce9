"""Several stores read as one."""

from __future__ import annotations

import numpy as np
import pytest

from medcoss_components.data.modalities import get_modality
from medcoss_components.data.sampler import PretrainingLoader
from medcoss_components.data.store import prepare_store
from medcoss_components.data.synthetic import synthetic_manifest
from medcoss_components.data.union import StoreUnion, union_of_stores
from medcoss_components.errors import InputError

SHAPE = (3, 8, 18)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Stores of 4 and 3 X-rays, whose items bear the same ids."""
    folder, made = tmp_path_factory.mktemp("union"), []
    for seed, count in enumerate((4, 3)):
        entry = get_modality("xray", input_shape=SHAPE)
        manifest = synthetic_manifest(folder / str(seed), entry, count=count, seed=seed, shape=(16, 36))
        made.append(prepare_store(manifest=manifest, modality=entry, store_dir=folder / "stores", workers=1))
    return made


@pytest.fixture
def union(stores):
    return union_of_stores(stores, ["chest", "hand"])


class TestUnion:
    def test_store_after_store(self, union, stores):
        assert len(union) == 7 and union.datasets.tolist() == [0] * 4 + [1] * 3
        assert union.counts == {"chest": 4, "hand": 3} and union.modality == stores[0].modality
        assert union.labels == [*stores[0].labels, *stores[1].labels]
        assert repr(union) == "StoreUnion(7 samples of xray in chest, hand)"

    def test_ids_and_groups_bear_the_name(self, union, stores):
        assert set(stores[0].ids) & set(stores[1].ids)
        assert len(set(union.ids)) == 7 and union.ids[4] == f"hand/{stores[1].ids[0]}"
        assert union.groups[0] == f"chest/{stores[0].groups[0]}"

    def test_gathers_in_any_order(self, union, stores):
        rows = [6, 0, 3, 4, 0]
        expected = [stores[row > 3].gather([row - 4 if row > 3 else row])[0] for row in rows]
        found = union.gather(rows)
        assert found.dtype == np.uint8 and np.array_equal(found, np.stack(expected))
        assert union.gather([]).shape == (0, 1, 8, 18)

    @pytest.mark.parametrize("row", [-1, 7])
    def test_rows_outside_refused(self, row, union):
        with pytest.raises(InputError, match=rf"must be in 0 .. 6, got {row}"):
            union.gather([row])

    def test_one_sample(self, union, stores):
        assert union[5]["id"] == f"hand/{stores[1].ids[1]}" and union[-1]["id"] == union.ids[6]
        assert np.array_equal(union[5]["image"], stores[1][1]["image"])
        with pytest.raises(IndexError):
            union[7]

    def test_a_loader_reads_it(self, union):
        loader = PretrainingLoader(union, batch_size=3, shuffle=False)
        batches = list(loader)
        assert [batch["ids"] for batch in batches] == [union.ids[:3], union.ids[3:6], union.ids[6:]]
        assert loader.modalities == {"xray": union.modality}

    def test_keys_follow_content_and_names(self, union, stores):
        assert union.key == StoreUnion(stores, ["chest", "hand"]).key
        others = [StoreUnion(stores, ["chest", "knee"]), StoreUnion(stores[::-1], ["chest", "hand"])]
        assert len({union.key, *(other.key for other in others)}) == 3
        assert union.manifest_hash != others[1].manifest_hash

    def test_body_parts(self, union, stores):
        assert union.body_parts == [None] * 7
        parts = ["chest"] * 4 + ["hand", None, "hand"]
        assert StoreUnion(stores, ["chest", "hand"], body_parts=parts).body_parts == parts

    def test_preparation_time_is_that_of_all(self, stores, monkeypatch):
        for store in stores:
            monkeypatch.setattr(store, "preparation_seconds", 1.5, raising=False)
        assert union_of_stores(stores, ["a", "b"]).preparation_seconds == 3.0


class TestRefused:
    def test_none(self):
        with pytest.raises(InputError, match="needs at least one, received none"):
            union_of_stores([], [])

    def test_names_missing(self, stores):
        with pytest.raises(InputError, match="for each of 2 stores, received 1"):
            union_of_stores(stores, ["chest"])

    def test_a_name_twice(self, stores):
        with pytest.raises(InputError, match="'chest' stands 2 times"):
            union_of_stores(stores, ["chest", "chest"])

    def test_body_parts_of_another_number(self, stores):
        with pytest.raises(InputError, match="1 are given for 7 samples"):
            union_of_stores(stores, ["a", "b"], body_parts=["chest"])

    def test_other_shape(self, stores, tmp_path):
        entry = get_modality("xray", input_shape=(3, 8, 8))
        manifest = synthetic_manifest(tmp_path / "other", entry, count=2, shape=(16, 16))
        other = prepare_store(manifest=manifest, modality=entry, store_dir=tmp_path / "stores", workers=1)
        with pytest.raises(InputError, match=r"data set hand: holds xray of shape \(1, 8, 8\)"):
            union_of_stores([stores[0], other], ["chest", "hand"])
