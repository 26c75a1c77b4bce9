"""TBX11K in its publisher's layout: boxes of COCO files, healthy and sick pictures without any, defects."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medcoss_components.data.adapters.dataset_recipe import dataset_recipe
from medcoss_components.data.adapters.tbx11k import find
from medcoss_components.data.dataset_building import build_dataset_manifest
from medcoss_components.data.manifest import SPLITS, check_manifest, read_manifest
from medcoss_components.errors import InputError

from .miniatures import recipe_source, save_noise

RECIPE = dataset_recipe("tbx11k")
HEIGHT, WIDTH = 32, 40
ACTIVE, LATENT, UNUSED = 1, 2, 3
TRAIN, VAL = range(1, 13), range(13, 17)
NAMES = {ACTIVE: "ActiveTuberculosis", LATENT: "ObsoletePulmonaryTuberculosis", UNUSED: "PulmonaryTuberculosis"}


def save(path, seed):
    save_noise(path, seed, (HEIGHT, WIDTH))


def boxes_of(number):
    """(category, [x, y, width, height]) of picture ``number``: one active box, of even numbers a latent one too."""
    latent = [(LATENT, [1.5, 2, 3, 4])] if number % 2 == 0 else []
    return [(ACTIVE, [number, 5, 10, 8.5]), *latent]


def annotate(root, file, boxes, size=(WIDTH, HEIGHT), extra=()):
    """Write a COCO file: name of a picture -> boxes."""
    images, annotations = [], []
    for identifier, (name, entries) in enumerate(boxes.items()):
        images.append({"id": identifier, "file_name": name, "width": size[0], "height": size[1]})
        annotations += [{"image_id": identifier, "category_id": kind, "bbox": box} for kind, box in entries]
    content = {"images": images, "annotations": annotations}
    content["categories"] = [{"id": key, "name": name} for key, name in (*NAMES.items(), *extra)]
    path = root / "annotations" / "json" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def data(tmp_path):
    """Sixteen pictures with tuberculosis (four in the list val), three healthy and three sick ones, and others."""
    root = tmp_path / "download" / "TBX11K"
    for number in (*TRAIN, *VAL):
        save(root / "imgs" / "tb" / f"tb{number:04d}.png", number)
    for number in range(1, 4):
        save(root / "imgs" / "health" / f"h{number:04d}.png", 100 + number)
        save(root / "imgs" / "sick" / f"s{number:04d}.png", 200 + number)
        save(root / "imgs" / "test" / f"test{number:04d}.png", 300 + number)
    save(root / "imgs" / "extra" / "shenzhen" / "train" / "CHNCXR_0001_0.png", 400)
    train = {f"tb/tb{number:04d}.png": boxes_of(number) for number in TRAIN} | {"health/h0001.png": []}
    val = {f"tb/tb{number:04d}.png": boxes_of(number) for number in VAL}
    for file, boxes in (("TBX11K_train.json", train), ("TBX11K_val.json", val), ("all_trainval.json", train | val)):
        annotate(root, file, boxes)
    annotate(root, "all_test.json", {"test/test0001.png": []})
    (root / "lists").mkdir()
    (root / "lists" / "TBX11K_train.txt").write_text("".join(f"{name}\n" for name in train) + "sick/s0001.png\n")
    (root / "lists" / "TBX11K_val.txt").write_text("\n".join(val))
    return root


def look(root, **settings):
    return find(recipe_source("tbx11k", root, **settings))


def without_others(left):
    """Reasons by place, without what every download holds beside the pictures with boxes."""
    return {
        e.where: e.reason
        for e in left
        if "its boxes are not published" not in e.reason and "as folders" not in e.reason
    }


class TestFind:
    def test_boxes_and_splits(self, data):
        found, left = look(data.parent)
        assert without_others(left) == {} and len(found) == 16
        assert {e.where for e in left} >= {"health", "sick", "imgs/test/test0001.png"}
        items = {item.path.stem: item for item in found}
        assert items["tb0002"].label == [
            {"box": [2.0, 5.0, 12.0, 13.5], "category": "tuberculosis"},
            {"box": [1.5, 2.0, 4.5, 6.0], "category": "tuberculosis"},
        ]
        assert (items["tb0001"].split, items["tb0013"].split) == ("training", "testing")
        assert (items["tb0001"].size, items["tb0001"].body_part) == ((WIDTH, HEIGHT), "chest")

    def test_kinds_kept_apart_and_empty_pictures(self, data):
        found, left = look(data, kinds="apart", folders=["health", "sick", "tb"], validation_as="validation")
        assert without_others(left) == {} and len(found) == 22
        items = {item.path.stem: item for item in found}
        kinds = [entry["category"] for entry in items["tb0002"].label]
        assert kinds == ["active_tuberculosis", "latent_tuberculosis"]
        assert items["h0001"].label == [] and items["s0003"].label == []
        assert (items["s0001"].split, items["s0003"].split, items["tb0013"].split) == ("training", "", "validation")
        assert len(look(data, folders="sick")[0]) == 3

    def test_defects_are_left_out(self, data):
        imgs = data / "imgs"
        (imgs / "tb" / "tb0001.png").unlink()
        (imgs / "tb" / "tb0002.png").write_bytes(b"no picture")
        (imgs / "tb" / "list.txt").write_text("x")
        save(imgs / "tb" / "tb1199.png", 500)
        for name, box in (("tb0003", [1, 2, 0, 4]), ("tb0004", [30, 2, 20, 4])):
            annotate(data, f"{name}.json", {f"tb/{name}.png": [(ACTIVE, box)]})
            for file in ("TBX11K_train.json", "all_trainval.json"):
                path = data / "annotations" / "json" / file
                content = json.loads(path.read_text())
                place = [e["id"] for e in content["images"] if name in e["file_name"]][0]
                others = [e for e in content["annotations"] if e["image_id"] != place]
                content["annotations"] = [*others, {"image_id": place, "category_id": ACTIVE, "bbox": box}]
                path.write_text(json.dumps(content))
        annotate(data, "other.json", {"tb/tb0005.png": [(LATENT, [1, 1, 2, 2])], "sick/s0001.png": boxes_of(1)})
        annotate(data, "large.json", {"tb/tb0099.png": boxes_of(1)}, size=(512, 512))
        save(imgs / "tb" / "tb0099.png", 501)
        found, left = look(data, folders=["sick", "tb"])
        reasons = without_others(left)
        assert len(found) == 11 + 2 and len(reasons) == 9 - 1
        assert reasons["imgs/tb/tb0001.png"] == "has boxes, but is not there"
        assert reasons["imgs/tb/tb0002"].startswith("cannot be read")
        assert reasons["imgs/tb/tb1199"] == "no box, though it shows tuberculosis"
        assert "left must be below right" in reasons["imgs/tb/tb0003"]
        assert "outside the picture of 40 x 32 pixels" in reasons["imgs/tb/tb0004"]
        assert reasons["imgs/tb/tb0005"] == "the annotation files contradict each other on it"
        assert reasons["imgs/sick/s0001"] == "boxes, though it lies in sick"
        assert reasons["imgs/tb/tb0099"].endswith("pixels (width, height), its annotation is for (512, 512)")

    def test_without_lists_or_sizes(self, data):
        for path in (data / "lists").iterdir():
            path.unlink()
        for path in (data / "annotations" / "json").iterdir():
            content = json.loads(path.read_text())
            for entry in content["images"]:
                del entry["width"]
            path.write_text(json.dumps(content))
        found, _ = look(data)
        assert len(found) == 16 and {item.split for item in found} == {""}

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"kinds": "both"}, "kinds must be one of together, apart, got 'both'"),
            ({"validation_as": "x"}, "validation_as must be one of testing, validation, got 'x'"),
            ({"folders": ["test"]}, "folders must be null or list some of health, sick, tb, got"),
        ],
    )
    def test_wrong_settings(self, data, settings, message):
        with pytest.raises(InputError, match=message):
            look(data, **settings)

    def test_annotation_files_of_another_form(self, data, tmp_path):
        annotate(data, "more.json", {"tb/tb0001.png": [(9, [1, 1, 2, 2])]}, extra=[(9, "Nodule")])
        with pytest.raises(InputError, match=r"more.json: category must be one of ActiveTuberculosis.*got 'Nodule'"):
            look(data)
        (data / "annotations" / "json" / "more.json").write_text('{"images": []}')
        with pytest.raises(
            InputError, match=r"more.json: is no annotation file of COCO's form \(KeyError: 'categories'"
        ):
            look(data)
        for path in (data / "annotations" / "json").iterdir():
            path.unlink()
        with pytest.raises(InputError, match=r"holds no annotation file \(\*.json\)"):
            look(data)
        with pytest.raises(InputError, match="holds no imgs, annotations"):
            look(data / "imgs")


class TestWholeWay:
    def test_manifest_with_boxes(self, data, tmp_path):
        for number, name in ((600, "s0008"), (600, "s0009"), (601, "tb0017")):
            save(data / "imgs" / name.rstrip("0123456789").replace("s", "sick") / f"{name}.png", number)
        settings = {"folders": ["sick", "tb"]}
        built = build_dataset_manifest("tbx11k", data, tmp_path / "out" / "t.json", settings=settings, workers=1)
        manifest = read_manifest(built.path)
        assert [problem for problem in check_manifest(manifest) if problem.severity == "error"] == []
        items = [item for split in SPLITS for item in manifest.items(split)]
        assert len(items) == 16 + 3 + 1 and all(manifest.items(split) for split in SPLITS)  # one of the equal pictures
        assert sum(item.label == [] for item in items) == 4 and {item.body_part for item in items} == {"chest"}
        assert sorted(len(item.label) for item in items if item.label) == [1] * 8 + [2] * 8
        assert "tb0017" in {entry.where.rpartition("/")[2] for entry in built.left_out}

    def test_kinds_of_boxes_are_spread_alike(self, data, tmp_path):
        settings = {"folders": ["health", "sick", "tb"], "kinds": "apart"}
        built = build_dataset_manifest(
            "tbx11k", data, tmp_path / "t.json", shares=(50, 0, 50), settings=settings, workers=1
        )
        for split in ("training", "testing"):
            counts = [len(item.label) for item in built.manifest.items(split)]
            assert (counts.count(0), counts.count(1), counts.count(2)) == (3, 4, 4)

    def test_equal_pictures_with_different_boxes_are_left_out(self, data, tmp_path):
        folder = data / "imgs" / "tb"
        (folder / "tb0002.png").write_bytes((folder / "tb0001.png").read_bytes())
        built = build_dataset_manifest("tbx11k", data, tmp_path / "t.json", split_by="published", workers=1)
        assert built.manifest.counts == {"training": 10, "validation": 0, "testing": 4}
        reasons = {entry.where: entry.reason for entry in built.left_out}
        assert reasons["imgs/tb/tb0001"] == "the same content stands with several labels"
        assert "training has 10 items, published are 599 (-589)." in built.notes


def test_recipe_is_the_one_for_people():
    root, file = Path(__file__).resolve().parents[3], "tbx11k.yaml"
    shipped = root / "medcoss_components/data/recipes" / file
    assert shipped.read_bytes() == (root / "data_manifests/recipes" / file).read_bytes()
    assert RECIPE.categories == ("tuberculosis",)
