"""Reading probes: what is refused, how samples are chosen, what is opened."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from medcoss_components.data.modalities import get_modality
from medcoss_components.data.synthetic import synthetic_manifest
from medcoss_components.errors import InputError
from medcoss_components.retention.probes import LIMIT, read_probes, stratified

PICTURE = {"name": "tiny_picture", "dimension": 2, "input_shape": [3, 8, 18], "intensity": "unit_range"} | {
    "stored_channels": 1
}


def changed(path, tmp_path, change):
    """A copy of a manifest with another content; paths still count from the old folder."""
    content = json.loads(path.read_text())
    change(content)
    copy = tmp_path / "manifest.json"
    copy.write_text(json.dumps(content))
    return {"name": "p", "data_manifest": str(copy), "dataset_dir": str(path.parent)}


class TestStratified:
    def test_shares_are_kept(self):
        labels = ["a"] * 60 + ["b"] * 30 + ["c"] * 10
        rows = stratified(labels, 20, seed=0, purpose="test")
        assert Counter(labels[row] for row in rows) == {"a": 12, "b": 6, "c": 2}
        assert rows.tolist() == sorted(set(rows.tolist()))

    def test_every_class_has_one(self):
        labels = ["a"] * 1000 + ["b", "c"]
        assert {labels[row] for row in stratified(labels, 3, seed=0, purpose="test")} == {"a", "b", "c"}

    def test_a_larger_limit_keeps_the_smaller_one(self):
        labels = np.arange(50) % 3
        few, many = (set(stratified(labels, limit, seed=1, purpose="test").tolist()) for limit in (10, 25))
        assert few < many

    def test_seed_and_purpose(self):
        labels = np.zeros(100, int)
        draws = [stratified(labels, 5, seed=s, purpose=p).tolist() for s, p in ((0, "x"), (0, "x"), (1, "x"), (0, "y"))]
        assert draws[0] == draws[1] and draws[0] not in draws[2:]

    def test_all_when_there_are_fewer(self):
        assert stratified(["a", "b"], 10, seed=0, purpose="test").tolist() == [0, 1]


class TestReading:
    def test_defaults(self, labelled):
        probe, *_ = read_probes([{"name": "p", "data_manifest": str(labelled["tiny_picture"])}])
        assert probe.limit == LIMIT and probe.classes == ("large", "small") and probe.preparation is None
        assert probe.modality.name == "tiny_picture"
        assert {split: len(probe.manifest.items(split)) for split in ("training", "validation", "testing")} == {
            "training": 10,
            "validation": 4,
            "testing": 6,
        }

    def test_limit_holds_for_each_split(self, labelled):
        probe, *_ = read_probes([{"name": "p", "data_manifest": str(labelled["tiny_picture"]), "limit": 4}])
        for split in ("training", "validation", "testing"):
            assert Counter(item.label for item in probe.manifest.items(split)) == {"small": 2, "large": 2}

    def test_validation_is_held_out_of_training_by_groups(self, tmp_path):
        path = synthetic_manifest(tmp_path / "d", PICTURE, count=10, validation=0, testing=2, classes=("a", "b"))
        first, second = (read_probes([{"name": "p", "data_manifest": str(path)}])[0].manifest for _ in range(2))
        assert len(first.training) == 8 and len(first.validation) == 2
        assert first.validation == second.validation
        assert not {item.group for item in first.training} & {item.group for item in first.validation}

    def test_numbers_are_class_names(self, labelled, tmp_path):
        def number(content):
            for split in ("training", "validation", "testing"):
                for item in content[split]:
                    item["label"] = 7 if item["label"] == "small" else 3

        probe, *_ = read_probes([changed(labelled["tiny_picture"], tmp_path, number)])
        assert probe.classes == ("3", "7")

    def test_optional_probe_without_manifest(self, tmp_path, caplog):
        entry = {"name": "p", "data_manifest": str(tmp_path / "gone.json"), "optional": True}
        assert read_probes([entry]) == []
        assert "probe p is left out" in caplog.text


class TestOpening:
    def test_samples_of_each_split(self, labelled, store_dir):
        probe, *_ = read_probes([{"name": "p", "data_manifest": str(labelled["tiny_volume"])}])
        splits = probe.open(store_dir, workers=1)
        assert [len(splits[split]) for split in ("training", "validation", "testing")] == [10, 4, 6]
        assert splits["testing"].targets.tolist() == [1, 0] * 3  # volumes whole, one sample an item

    def test_limit_holds_for_the_samples_of_an_item_too(self, labelled, store_dir):
        entry = {"name": "p", "data_manifest": str(labelled["tiny_volume"]), "limit": 5}
        probe, *_ = read_probes([entry | {"preparation": {"depth": "slabs"}}])
        splits = probe.open(store_dir, workers=1)
        assert all(len(content) <= 5 for content in splits.values())
        assert len(splits["training"].store) == 10  # 5 volumes of 12 slices, 6 a sample
        assert set(splits["training"].targets) == {0, 1}

    def test_text_needs_a_vocabulary(self, labelled, store_dir, vocabulary):
        probe, *_ = read_probes([{"name": "p", "data_manifest": str(labelled["tiny_text"])}])
        with pytest.raises(InputError, match="vocabulary"):
            probe.open(store_dir)
        splits = probe.open(store_dir, vocabulary=vocabulary, preparation={"max_length": 6})
        assert (splits["training"].gather([0])[:, 6:] == vocabulary.pad_id).all()


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"nam": "x"}, r"probes\[0\]: unknown keys \['nam'\], missing keys \[\]; the keys are name"),
            ({"name": ""}, r"missing keys \['name'\]"),
            ({"data_manifest": None}, r"missing keys \['data_manifest'\]"),
            ({"name": "Chest X-ray"}, "name 'Chest X-ray' must be"),
            ({"limit": 1}, "probe p: limit=1 must be an integer of at least 2"),
            ({"limit": True}, "limit=True"),
            ({"data_manifest": "gone.json"}, "probe p: data_manifest gone.json: no such file"),
            ({"modality": "xray"}, "modality xray is given, but .* holds tiny_picture"),
        ],
    )
    def test_entry(self, change, match, labelled):
        with pytest.raises(InputError, match=match):
            read_probes([{"name": "p", "data_manifest": str(labelled["tiny_picture"])} | change])

    def test_name_twice(self, entries):
        with pytest.raises(InputError, match="the name 'probe_text' stands twice"):
            read_probes([entries[1], entries[1]])

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            (lambda content: content["testing"].clear(), "has no testing items"),
            (lambda content: content["training"].clear(), "has no training items"),
            (lambda content: content["testing"][0].pop("label"), "1 of 20 items of .* have no label"),
            (lambda content: content["testing"][0].update(label=["small", "large"]), "masks or lists"),
            (
                lambda content: [item.update(label="small") for item in content["training"]],
                "received 1 classes and limit 1000",
            ),
        ],
    )
    def test_manifest(self, change, match, labelled, tmp_path):
        def both(content):
            content.pop("counts", None)
            change(content)

        with pytest.raises(InputError, match=match):
            read_probes([changed(labelled["tiny_picture"], tmp_path, both)])

    def test_masks(self, tmp_path):
        get_modality(PICTURE)
        path = synthetic_manifest(tmp_path, PICTURE, count=4, testing=2, regions={"a": [1]}, shape=(16, 36))
        with pytest.raises(InputError, match="labels of .* are masks"):
            read_probes([{"name": "p", "data_manifest": str(path)}])
