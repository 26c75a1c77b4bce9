"""Pictures with boxes of a split, and their batches."""

from __future__ import annotations

import json
import logging
import pickle

import numpy as np
import pytest
import torch

from medcoss_components.data import task_loader
from medcoss_components.data.detection import SOURCES, detection_dataset, detection_layer
from medcoss_components.data.manifest import read_manifest
from medcoss_components.data.modalities import get_modality
from medcoss_components.data.preparation import image_samples
from medcoss_components.data.readers import read_image
from medcoss_components.data.synthetic_detection import synthetic_detection, tight_box
from medcoss_components.data.task_loader import DetectionLoader
from medcoss_components.data.writers import write_picture
from medcoss_components.errors import InputError

CATEGORIES = ["small", "large"]


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    return synthetic_detection(tmp_path_factory.mktemp("films"), count=9, validation=3, testing=3, body_parts=["hand"])


@pytest.fixture
def detect(tmp_path):
    def build(manifest, **options):
        given = {"categories": CATEGORIES, "store_dir": tmp_path / "stores", "workers": 1, "input_shape": (3, 48, 64)}
        return detection_dataset(manifest=manifest, **(given | options))

    return build


@pytest.fixture(scope="module")
def dataset(films, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    return detection_dataset(
        manifest=films, categories=CATEGORIES, store_dir=folder, workers=1, input_shape=(3, 48, 64)
    )


def relabelled(path, change):
    """A manifest beside ``path`` whose training labels are changed by ``change(items)``."""
    document = json.loads(path.read_text())
    change(document["training"])
    target = path.with_name("changed.json")
    target.write_text(json.dumps(document))
    return target


class TestDataset:
    def test_pictures_and_boxes(self, dataset, films):
        items = read_manifest(films).training
        assert len(dataset) == 9 and dataset.ids == dataset.cases == [item.id for item in items]
        assert dataset.groups == [item.group for item in items] and dataset.categories == tuple(CATEGORIES)
        assert dataset.source_sizes.tolist() == [[96, 80]] * 9
        assert [len(target["labels"]) for target in dataset.targets] == [len(item.label) for item in items]
        assert dataset.targets[2]["boxes"].shape == (0, 4) and dataset.targets[2]["boxes"].dtype == torch.float32
        assert "9 pictures of xray with" in repr(dataset)
        sample = dataset[0]
        assert sample["image"].shape == (3, 48, 64) and sample["labels"].dtype == torch.int64
        assert pickle.loads(pickle.dumps(dataset)).key == dataset.key

    def test_boxes_are_halved_and_moved_as_the_pictures_are(self, dataset, films):
        """96 x 80 fits 48 x 64 at half the size: 48 x 40 with 12 columns on either side."""
        label = read_manifest(films).training[0].label
        for entry, box in zip(label, dataset.targets[0]["boxes"].tolist(), strict=True):
            left, top, right, bottom = entry["box"]
            assert box == [left / 2 + 12, top / 2, right / 2 + 12, bottom / 2]
        assert [CATEGORIES[number] for number in dataset.targets[0]["labels"]] == [entry["category"] for entry in label]
        back = dataset.restore(0, dataset.targets[0]["boxes"])
        assert back.tolist() == [entry["box"] for entry in label] == dataset.source_targets[0]["boxes"].tolist()
        assert dataset.geometry(0).offset == (0, 12)

    def test_the_bright_part_lies_in_the_box(self, dataset):
        row = next(row for row, target in enumerate(dataset.targets) if len(target["labels"]) == 1)
        image = dataset.gather([row])[0, 0]
        found = np.array(tight_box(image > np.median(image[image > 40]) + 40))
        np.testing.assert_allclose(found, dataset.targets[row]["boxes"][0].numpy(), atol=1.5)

    def test_validation_and_testing(self, films, detect):
        assert len(detect(films, split="validation")) == len(detect(films, split="testing")) == 3

    def test_a_part_is_put_aside_where_there_is_no_validation_split(self, tmp_path, detect):
        films = synthetic_detection(tmp_path, count=12, validation=0)
        training, held_out = (
            detect(films, validation_share=0.34),
            detect(films, split="validation", validation_share=0.34),
        )
        assert len(training) + len(held_out) == 12 and not set(training.ids) & set(held_out.ids)
        assert any(len(target["labels"]) == 0 for target in held_out.targets)
        assert training.key != held_out.key and training.store.key == held_out.store.key
        assert detect(films, split="testing", optional=True) is None

    def test_sources_are_looked_up_once(self, films, detect, monkeypatch):
        dataset = detect(films)
        assert json.loads((dataset.store.path / SOURCES).read_text())[0] == [96, 80, None]
        monkeypatch.setattr("medcoss_components.data.detection.read_image_grid", None)
        assert detect(films).key == dataset.key

    def test_a_store_that_may_not_be_written_to(self, films, detect, monkeypatch):
        monkeypatch.setattr("medcoss_components.data.detection.write_json", lambda *_: (_ for _ in ()).throw(OSError()))
        dataset = detect(films)
        assert len(dataset) == 9 and not (dataset.store.path / SOURCES).exists()

    def test_dicom_with_oblong_pixels(self, tmp_path, write_dicom, detect):
        """Rows 1 mm apart, columns 0.5 mm: 60 x 96 pixels are 60 x 48 mm, which is 48 x 38 of 48 x 64."""
        pixels = np.full((60, 96), 100, np.uint16)
        pixels[20:40, 48:72] = 900
        write_dicom(tmp_path / "a.dcm", pixels, Modality="DX", PixelSpacing=[1.0, 0.5])
        label = [{"box": [48, 20, 72, 40], "category": "small"}]
        item = {"id": "a", "image": "a.dcm", "label": label, "group": "g"}
        header = {"schema_version": 1, "name": "one", "version": "1", "modality": "xray", "licence": "x", "source": "x"}
        path = tmp_path / "one.json"
        path.write_text(json.dumps(header | {"training": [item], "validation": [], "testing": []}))
        dataset = detect(path, categories=["small"], validation_share=0)
        assert dataset.geometry(0).fitted_size == (48, 38) and dataset.source_sizes.tolist() == [[60, 96]]
        found = tight_box(dataset.gather([0])[0, 0] > 127)
        np.testing.assert_allclose(found, dataset.targets[0]["boxes"][0].numpy(), atol=1.0)

    def test_boxes_that_are_cut_away_are_told(self, tmp_path, detect, caplog):
        films = synthetic_detection(tmp_path, count=3, validation=0, shape=(60, 240), preparation={"fit": "crop"})

        def widen(items):
            items[0]["label"] = [
                {"box": [0, 0, 9, 9], "category": "small"},
                {"box": [100, 20, 140, 40], "category": "large"},
                {"box": [110, 20, 240.5, 40], "category": "small"},
            ]

        with caplog.at_level(logging.WARNING):
            dataset = detect(relabelled(films, widen), validation_share=0)
        assert "1 boxes lie outside the prepared pictures (fit=crop)" in caplog.text
        assert dataset.targets[0]["labels"].tolist() == [1, 0] and len(dataset.source_targets[0]["labels"]) == 3
        assert dataset.targets[0]["boxes"][1, 2] == 64

    def test_a_box_over_the_edge_ends_there(self, tmp_path, detect):
        films = synthetic_detection(tmp_path, count=2, validation=0)

        def over(items):
            items[0]["label"] = [{"box": [-0.5, -0.5, 80.5, 96.5], "category": "small"}]

        dataset = detect(relabelled(films, over), validation_share=0, categories=CATEGORIES)
        assert dataset.targets[0]["boxes"].tolist() == [[12.0, 0.0, 52.0, 48.0]]  # not into the filled columns


class TestErrors:
    @pytest.mark.parametrize(
        ("label", "message"),
        [
            (None, "item training-000: it has no label"),
            ([{"box": [5, 5, 4, 9], "category": "small"}], r"box 0 \[5, 5, 4, 9\]: left must be below right"),
            ([{"box": [5, 5, 90, 9], "category": "small"}], "outside the picture of 80 x 96 pixels"),
            ([{"box": [5, 5, 9, 9], "category": "huge"}], "its category is 'huge', known: small, large"),
            ([{"box": [5, 5, 9, float("nan")], "category": "small"}], "four finite numbers"),
            ("small", "its label is no list of"),
        ],
    )
    def test_bad_boxes(self, films, detect, label, message):
        changed = relabelled(films, lambda items: items[0].update(label=label))
        with pytest.raises(InputError, match=f"manifest synthetic-detection-xray, split training: .*{message}"):
            detect(changed)

    def test_a_category_without_boxes(self, films, detect):
        with pytest.raises(InputError, match=r"no box of category nodule \(small: \d+, large: \d+, nodule: 0\)"):
            detect(films, categories=[*CATEGORIES, "nodule"])
        assert len(detect(films, categories=[*CATEGORIES, "nodule"], split="validation")) == 3

    def test_volumes_and_tiles(self, films, detect):
        with pytest.raises(InputError, match=r"ct: boxes are of 2D pictures, this one has 3 axes"):
            detection_layer(get_modality("ct"), {}, None)
        with pytest.raises(InputError, match=r"preparation: tile=\[48, 64\]: boxes need the whole picture"):
            detect(films, preparation={"tile": [48, 64]})

    def test_nothing_left(self, tmp_path, detect):
        films = synthetic_detection(tmp_path, count=3, validation=1)
        for path in (tmp_path / "files").glob("validation*"):
            write_picture(path, np.zeros((20, 20), np.uint8))
        with pytest.raises(InputError, match="1 of 1 items are bad"):
            detect(films, split="validation", max_bad_share=1.0)


def test_the_preparation_keeps_the_whole_picture_unless_told():
    xray = get_modality("xray")
    assert detection_layer(xray, {}, None) == {"fit": "pad"}
    assert detection_layer(xray, {}, {"percentiles": None}) == {"fit": "pad", "percentiles": None}
    assert detection_layer(xray, {"fit": "crop"}, None) is None
    assert detection_layer(xray, {"fit": "crop"}, {"fit": "stretch"}) == {"fit": "stretch"}


def test_the_store_holds_what_preparing_by_hand_gives(dataset, films):
    image = read_image(read_manifest(films).training[0].image)
    settings = dataset.store.index["preparation"]
    (sample,) = image_samples(image.array, image.spacing, modality=dataset.modality, settings=settings)
    assert settings["fit"] == "pad" and np.array_equal(dataset.gather([0])[0], sample)


def test_targets_are_a_list_of_copies(dataset):
    targets = dataset.targets
    assert len(targets) == len(list(targets)) == 9 and torch.equal(targets[-9]["boxes"], targets[0]["boxes"])
    assert [len(target["labels"]) for target in targets[:3]] == [len(targets[row]["labels"]) for row in range(3)]
    targets[0]["boxes"][:] = 0
    assert targets[0]["boxes"].any()
    with pytest.raises(IndexError):
        targets[9]


class TestLoader:
    def test_batches(self, dataset):
        loader = DetectionLoader(dataset, batch_size=4, seed=3)
        batches = list(loader)
        assert sorted(name for batch in batches for name in batch["ids"]) == sorted(dataset.ids)
        batch = batches[0]
        assert batch["raw"].shape[1:] == (1, 48, 64) and batch["raw"].dtype == torch.uint8
        for row, target in zip(batch["indices"].tolist(), batch["target"], strict=True):
            assert torch.equal(target["boxes"], dataset.targets[row]["boxes"])
            assert torch.equal(target["labels"], dataset.targets[row]["labels"])
        assert loader.modalities == {"xray": dataset.modality} and len(loader) == len(batches)

    def test_it_resumes_at_any_batch(self, dataset):
        first, other = DetectionLoader(dataset, batch_size=4), DetectionLoader(dataset, batch_size=4)
        whole = [batch["ids"] for batch in first] + [batch["ids"] for batch in first]
        other.set_position(1, 1)
        assert [batch["ids"] for batch in other] == whole[len(first) + 1 :]
        assert whole[: len(first)] != whole[len(first) :]

    def test_workers_give_the_same(self, dataset):
        plain, read_ahead = (list(DetectionLoader(dataset, batch_size=5, num_workers=count)) for count in (0, 1))
        for one, two in zip(plain, read_ahead, strict=True):
            assert one["ids"] == two["ids"] and torch.equal(one["raw"], two["raw"])
            pairs = zip(one["target"], two["target"], strict=True)
            assert all(torch.equal(here["boxes"], there["boxes"]) for here, there in pairs)

    def test_ranks_read_their_rows(self, dataset, monkeypatch):
        parts = []
        for rank in range(2):
            monkeypatch.setattr(task_loader, "_ranks", lambda rank=rank: {"rank": rank, "ranks": 2})
            parts.append(list(DetectionLoader(dataset, batch_size=4, shuffle=False)))
        monkeypatch.undo()
        for one, two in zip(*parts, strict=True):
            assert one["count"] == two["count"] and not set(one["rows"].tolist()) & set(two["rows"].tolist())
        seen = {name for part in parts for batch in part for name in batch["ids"]}
        assert seen == set(dataset.ids)
