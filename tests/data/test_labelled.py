import json
import logging

import numpy as np
import pytest
import torch

from medcoss_components.data.labelled import ClassificationDataset, classification_dataset, segmentation_dataset
from medcoss_components.data.manifest import Item, Manifest, read_manifest
from medcoss_components.data.synthetic import synthetic_manifest
from medcoss_components.data.task_splits import choose_items
from medcoss_components.errors import InputError

CLASSES = ["small", "large"]
REGIONS = {"organ": [1, 2], "core": [2]}
INPUT = (1, 6, 8, 8)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Twenty films, ten of each class, no validation split."""
    folder = tmp_path_factory.mktemp("films")
    return synthetic_manifest(folder, "xray", count=20, validation=0, testing=4, shape=(24, 20))


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("volumes")
    return synthetic_manifest(folder, "ct", count=5, validation=1, shape=(12, 24, 20), regions=REGIONS)


@pytest.fixture
def classify(tmp_path):
    def build(manifest, **options):
        return classification_dataset(
            manifest=manifest, **({"classes": CLASSES, "store_dir": tmp_path / "stores", "workers": 1} | options)
        )

    return build


@pytest.fixture
def segment(tmp_path):
    def build(manifest, **options):
        options = {"regions": REGIONS, "input_shape": INPUT, "store_dir": tmp_path / "stores", "workers": 1} | options
        return segmentation_dataset(manifest=manifest, **options)

    return build


def changed(path, **changes):
    """Write a changed manifest beside ``path``."""
    document = json.loads(path.read_text())
    target = path.with_name("changed.json")
    target.write_text(json.dumps(document | {key: change(document) for key, change in changes.items()}))
    return target


class TestChooseItems:
    OPTIONS = {"validation_share": 0.25, "label_ratio": 1.0, "seed": 0}

    def manifest(self, validation=()):
        items = [Item(f"t{n}", None, f"text {n}", n % 2, f"g{n // 2}") for n in range(24)]
        return Manifest(
            name="texts",
            version="1",
            modality="report",
            licence="CC0-1.0",
            source="a test",
            root=".",
            training=tuple(items),
            validation=tuple(validation),
        )

    def test_training_and_validation_share_nothing_and_miss_nothing(self):
        manifest = self.manifest()
        parts = {split: choose_items(manifest, split, **self.OPTIONS) for split in ("training", "validation")}
        assert {part.source for part in parts.values()} == {"training"}
        training, validation = parts["training"].ids, parts["validation"].ids
        assert not training & validation
        assert len(training | validation) == 24
        assert len(validation) == 6
        groups = {item.id: item.group for item in manifest.training}
        assert not {groups[i] for i in training} & {groups[i] for i in validation}

    def test_the_manifests_own_validation_wins(self):
        manifest = self.manifest([Item("v0", None, "other", 0, "v")])
        assert choose_items(manifest, "validation", **self.OPTIONS).ids == {"v0"}
        assert len(choose_items(manifest, "training", **self.OPTIONS).ids) == 24

    def test_the_ratio_takes_from_training_alone(self):
        few = self.OPTIONS | {"label_ratio": 0.5}
        validation = choose_items(self.manifest(), "validation", **self.OPTIONS)
        assert choose_items(self.manifest(), "validation", **few) == validation
        half = choose_items(self.manifest(), "training", **few)
        assert len(half.ids) == 9
        assert half.ids < choose_items(self.manifest(), "training", **self.OPTIONS).ids

    def test_stratified_by_the_targets(self):
        targets = {f"t{n}": int(n // 2 % 3 == 0) for n in range(24)}
        chosen = choose_items(self.manifest(), "validation", targets=targets, **self.OPTIONS)
        assert sum(targets[i] for i in chosen.ids) == 2  # a quarter of 8

    def test_unknown_split(self):
        with pytest.raises(InputError, match="got 'train'"):
            choose_items(self.manifest(), "train", **self.OPTIONS)


class TestClassification:
    def test_splits(self, films, classify):
        training, validation = classify(films), classify(films, split="validation")
        testing = classify(films, split="testing")
        assert [len(part) for part in (training, validation, testing)] == [16, 4, 4]
        assert np.bincount(training.targets).tolist() == [8, 8]
        assert np.bincount(validation.targets).tolist() == [2, 2]
        labels = {item.id: item.label for item in read_manifest(films).training}
        assert [CLASSES[t] for t in training.targets] == [labels[case] for case in training.cases]
        assert training.store.path == validation.store.path
        assert training.key != validation.key != classify(films, classes=CLASSES[::-1], split="validation").key
        assert training.ids == training.cases and len(training.groups) == 16
        assert training.manifest_hash == read_manifest(films).hash
        assert training.preparation_seconds >= 0 and training.vocabulary_path is None
        assert repr(training) == "ClassificationDataset(16 samples of xray, 2 classes)"

    def test_samples(self, films, classify):
        dataset = classify(films, input_shape=(3, 12, 10))
        entry = dataset[-1]
        assert (entry["id"], entry["label"]) == (dataset.ids[-1], int(dataset.targets[-1]))
        assert entry["image"].shape == (3, 12, 10) and entry["image"].dtype == torch.float32
        assert np.array_equal(dataset.gather([3, 1]), dataset.store.gather(dataset.rows[[3, 1]]))
        with pytest.raises(IndexError):
            dataset[16]

    def test_ratio(self, films, classify):
        dataset = classify(films, label_ratio=0.5, seed=3)
        assert len(dataset) == 8
        assert set(dataset.ids) < set(classify(films, seed=3).ids)
        with pytest.raises(InputError, match=r"split training: no item of class (small|large)"):
            classify(films, label_ratio=0.06)

    def test_texts(self, tmp_path, classify, vocabulary):
        manifest = synthetic_manifest(tmp_path / "texts", "report", count=6, validation=2)
        dataset = classify(manifest, vocabulary=vocabulary, input_shape=(20,))
        assert dataset[0]["text"].dtype == torch.int64
        assert dataset.vocabulary_path.is_file()
        assert len(classify(manifest, vocabulary=vocabulary, split="validation")) == 2

    def test_volumes_are_taken_whole_unless_said_otherwise(self, tmp_path, classify):
        manifest = synthetic_manifest(tmp_path / "ct", "ct", count=2, validation=0, shape=(20, 16, 16))
        options = {"input_shape": INPUT, "validation_share": 0}
        whole = classify(manifest, **options)
        assert whole.ids == whole.cases == ["training-000", "training-001"]
        slabs = classify(manifest, preparation={"depth": "slabs"}, **options)
        assert slabs.ids[:3] == ["training-000#0", "training-000#1", "training-000#2"]
        assert slabs.cases == ["training-000"] * 3 + ["training-001"] * 3
        assert slabs.targets.tolist() == [0, 0, 0, 1, 1, 1]
        own = changed(manifest, preparation=lambda _: {"slices_stride": 6})
        assert len(classify(own, **options)) == 6

    def test_empty_splits(self, films, classify, volumes):
        without = changed(films, testing=lambda _: [])
        assert classify(without, split="testing", optional=True) is None
        with pytest.raises(InputError, match="the split testing has no items. Give the manifest items"):
            classify(without, split="testing")
        with pytest.raises(InputError, match="split validation has no items.*a validation_share above 0"):
            classify(films, split="validation", validation_share=0)

    def test_all_bad(self, tmp_path, classify):
        manifest = synthetic_manifest(tmp_path / "f", "xray", count=6, validation=0)
        chosen = classify(manifest, split="validation")
        bad = {case: read_manifest(manifest).root / "files" / f"{case}.png" for case in chosen.cases}
        for path in bad.values():
            path.write_bytes(b"")
        document = changed(manifest, version=lambda _: "2")
        with pytest.raises(InputError, match="split validation: every chosen item is bad"):
            classify(document, split="validation", max_bad_share=0.9)

    def test_labels_that_name_no_class(self, films, classify):
        with pytest.raises(InputError, match=r"10 of 20 items name no class: 'large' \(10 items\)"):
            classify(films, classes=["small", "medium"])

    @pytest.mark.parametrize("manifest", [None, ""])
    def test_no_manifest(self, classify, manifest):
        with pytest.raises(InputError, match="data_manifest: give the path"):
            classify(manifest)

    def test_shared_groups_are_told(self, films, classify, caplog):
        group = {"group": "group-training-000"}
        leaking = changed(films, testing=lambda document: [entry | group for entry in document["testing"]])
        with caplog.at_level(logging.WARNING):
            classify(leaking, split="testing")
        assert "1 groups of testing are in training as well" in caplog.text

    def test_rows_of_a_store(self, films, classify):
        store = classify(films).store
        dataset = ClassificationDataset(store, rows=[4, 2], targets=np.array([1, 0]), classes=CLASSES)
        assert dataset.ids == [store.ids[4], store.ids[2]]


class TestSegmentation:
    def test_cases_and_regions(self, volumes, segment):
        dataset = segment(volumes)
        assert (len(dataset), dataset.regions) == (5, {"organ": (1, 2), "core": (2,)})
        assert dataset.cases == dataset.ids == [f"training-{n:03d}" for n in range(5)]
        assert dataset.shape(0) == (12, 24, 20) and len(dataset.groups) == 5
        assert repr(dataset).endswith("5 cases of ct, regions organ, core)")
        entry, case = dataset[1], dataset.case(1)
        assert entry["image"].shape == (1, 12, 24, 20) and entry["image"].dtype == torch.float32
        np.testing.assert_allclose(entry["image"][0], np.array(case.image[0]) / 1024)
        assert np.array_equal(entry["label"].numpy(), np.stack([case.mask > 0, case.mask == 2]).astype(np.float32))

    def test_foreground(self, volumes, segment):
        dataset = segment(volumes)
        found = dataset.foreground(1)
        mask = dataset.case(1).mask
        assert list(found) == ["organ", "core"]
        assert len(found["organ"]) == (mask > 0).sum() and len(found["core"]) == (mask == 2).sum()
        assert list(segment(volumes, regions={"core": 2}).foreground(1)) == ["core"]

    def test_splits(self, volumes, segment):
        assert segment(volumes, split="validation").ids == ["validation-000"]
        assert segment(volumes, split="testing", optional=True) is None
        without = changed(volumes, validation=lambda _: [])
        parts = [segment(without, split=split) for split in ("training", "validation")]
        assert sorted(parts[0].ids + parts[1].ids) == [f"training-{n:03d}" for n in range(5)]
        assert parts[0].key != parts[1].key
        assert len(segment(volumes, label_ratio=0.4)) == 2

    def test_a_region_without_voxel(self, volumes, segment):
        with pytest.raises(InputError, match=r"no mask has a voxel of other; the masks hold the values \[1, 2\]"):
            segment(volumes, regions={"organ": "any", "other": 9})

    def test_values_of_no_region_are_told(self, volumes, segment, caplog):
        with caplog.at_level(logging.WARNING):
            segment(volumes, regions={"core": 2})
        assert "mask values [1] belong to no region" in caplog.text

    def test_all_bad(self, volumes, segment, tmp_path):
        manifest = synthetic_manifest(tmp_path / "v", "ct", count=4, validation=0, shape=(8, 16, 16), regions=REGIONS)
        (chosen,) = segment(manifest, split="validation").ids
        (manifest.parent / "masks" / f"{chosen}.nii.gz").write_bytes(b"")
        document = changed(manifest, version=lambda _: "2")
        with pytest.raises(InputError, match="split validation: every chosen item is bad"):
            segment(document, split="validation", max_bad_share=0.5)
