import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from medcoss_components.data import modalities
from medcoss_components.data.manifest import Item, Manifest, manifest_schema, read_manifest, write_manifest
from medcoss_components.data.modalities import MODALITIES, Modality
from medcoss_components.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def make(folder, *, count=3, **changes):
    settings = {
        "name": "films",
        "version": "1",
        "modality": "xray",
        "licence": "CC0-1.0",
        "source": "made in a test",
        "root": folder,
        "training": [Item(f"t{n}", Path(f"images/t{n}.png"), None, n % 2, f"g{n}") for n in range(count)],
        "validation": [Item("v0", Path("images/v0.png"), group="h0")],
        "preparation": {"tile": [32, 32]},
        "intensity_unit": "a.u.",
    }
    return Manifest(**settings | changes)


def make_texts(folder, text="No focal opacity."):
    return make(folder, modality="report", preparation={}, training=[Item("t0", text=text, group="g0")], validation=[])


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


@pytest.mark.parametrize("parquet_above", [100, 1])
def test_round_trip(tmp_path, parquet_above):
    manifest = make(tmp_path)
    path = write_manifest(manifest, tmp_path / "films.json", parquet_above=parquet_above)
    again = read_manifest(path)
    assert again == manifest
    assert again.hash == manifest.hash
    assert again.items("training")[1] == Item("t1", tmp_path / "images/t1.png", None, 1, "g1")
    assert again.counts == {"training": 3, "validation": 1, "testing": 0}
    assert len(list(tmp_path.glob("*.parquet"))) == (parquet_above == 1)


@pytest.mark.parametrize("parquet_above", [100, 0])
def test_text_round_trip(tmp_path, parquet_above):
    manifest = make_texts(tmp_path)
    assert read_manifest(write_manifest(manifest, tmp_path / "a.json", parquet_above=parquet_above)) == manifest


def test_monai_reads_it_as_a_datalist(tmp_path):
    from monai.data import load_decathlon_datalist

    path = write_manifest(make(tmp_path), tmp_path / "films.json")
    first = load_decathlon_datalist(path, is_segmentation=False, data_list_key="training")[0]
    assert first == {"id": "t0", "image": str(tmp_path / "images/t0.png"), "label": 0, "group": "g0"}


def test_hash_does_not_depend_on_the_folder(tmp_path):
    path = write_manifest(make(tmp_path / "one"), tmp_path / "one" / "films.json")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert read_manifest(tmp_path / "two" / "films.json").hash == read_manifest(path).hash


def test_hash_depends_on_what_decides_the_samples(tmp_path):
    manifest = make(tmp_path)
    variants = [
        manifest,
        replace(manifest, version="2"),
        replace(manifest, preparation={}),
        replace(manifest, training=manifest.training[1:]),
        replace(manifest, training=manifest.training[::-1]),
        replace(manifest, training=(replace(manifest.training[0], label=1), *manifest.training[1:])),
        replace(manifest, validation=(), testing=manifest.validation),
    ]
    assert len({variant.hash for variant in variants}) == len(variants)
    assert replace(manifest, licence="other", attribution="me").hash == manifest.hash


def test_dataset_dir_replaces_the_folder(tmp_path):
    (tmp_path / "data").mkdir()
    manifest = make(tmp_path / "data")
    path = write_manifest(manifest, tmp_path / "lists" / "films.json", dataset_dir=tmp_path / "data")
    assert json.loads(path.read_text())["training"][0]["image"] == "images/t0.png"
    assert read_manifest(path, dataset_dir=tmp_path / "data") == manifest
    assert read_manifest(path).training[0].image == tmp_path / "lists/images/t0.png"


def test_paths_elsewhere_are_written_relative_to_the_manifest(tmp_path):
    path = write_manifest(make(tmp_path / "data"), tmp_path / "lists" / "films.json")
    assert json.loads(path.read_text())["training"][0]["image"] == "../data/images/t0.png"
    assert os.path.normpath(read_manifest(path).training[0].image) == str(tmp_path / "data/images/t0.png")


@pytest.mark.parametrize("parquet_above", [0, 99])
def test_masks_move_with_dataset_dir(tmp_path, parquet_above):
    items = [Item("a", Path("images/a.png"), None, "masks/a.png", "g"), Item("b", Path("b.png"), group="h")]
    manifest = make(tmp_path / "data", training=items, validation=[])
    path = tmp_path / "data" / "lists" / "films.json"
    write_manifest(manifest, path, parquet_above=parquet_above)
    assert [item.label for item in read_manifest(path).training] == ["../masks/a.png", None]
    write_manifest(read_manifest(path), path, dataset_dir=tmp_path, parquet_above=parquet_above)
    found = read_manifest(path, dataset_dir=tmp_path)
    assert found.training[0].label == "data/masks/a.png"
    assert found.training[0].image == tmp_path / "data/images/a.png"
    write_manifest(found, path, dataset_dir=tmp_path / "data", parquet_above=parquet_above)
    assert read_manifest(path, dataset_dir=tmp_path / "data") == manifest


BOXES = [{"box": [1, 2, 3.5, 4], "category": "nodule"}, {"category": "mass", "box": [0, 0, 9, 9]}]
LABELLED = [
    Item("t0", Path("a.png"), None, BOXES, "g0", "left hand"),
    Item("t1", Path("b.png"), None, [], "g1"),
    Item("t2", Path("c.png"), None, None, "g2", "c-spine"),
]


@pytest.mark.parametrize("parquet_above", [100, 1])
def test_boxes_and_body_parts_round_trip(tmp_path, parquet_above):
    manifest = make(tmp_path, training=LABELLED)
    path = write_manifest(manifest, tmp_path / "films.json", parquet_above=parquet_above)
    back = read_manifest(path)
    assert [item.label for item in back.training] == [BOXES, [], None] and back.validation == manifest.validation
    assert [item.body_part for item in back.training] == ["left hand", None, "c-spine"]
    assert back.hash == manifest.hash
    assert read_manifest(write_manifest(back, tmp_path / "again.json", parquet_above=1)).hash == manifest.hash


def test_the_hash_counts_boxes_and_body_parts_but_not_how_numbers_are_written(tmp_path):
    whole = [{"box": [1.0, 2.0, 3.5, 4.0], "category": "nodule"}, {"box": [0.0, 0, 9, 9], "category": "mass"}]
    hashes = [
        make(tmp_path, training=[Item("t0", Path("a.png"), None, label, "g0", part)]).hash
        for label, part in ((BOXES, "hand"), (whole, "hand"), (BOXES[:1], "hand"), (BOXES, "foot"), (BOXES, None))
    ]
    assert hashes[0] == hashes[1] and len(set(hashes)) == 4


def test_hashes_and_lists_of_before_there_were_body_parts_stay(tmp_path):
    manifest = make(tmp_path, preparation={})
    header = ["films", "1", "xray", "a.u.", {}]
    digest, listed = hashlib.sha256(json.dumps(header, sort_keys=True).encode()), hashlib.sha256()
    rows = [["training", f"t{n}", f"images/t{n}.png", None, n % 2, f"g{n}"] for n in range(3)]
    columns = ["split", "id", "image", "text", "label", "group"]
    for row in [*rows, ["validation", "v0", "images/v0.png", None, None, "h0"]]:
        digest.update(json.dumps(row).encode() + b"\n")
        listed.update(json.dumps(dict(zip(columns, row, strict=True))).encode())
    assert manifest.hash == digest.hexdigest()
    path = write_manifest(manifest, tmp_path / "films.json", parquet_above=1)
    table = pyarrow.parquet.read_table(tmp_path / f"films.items-{listed.hexdigest()[:12]}.parquet")
    assert sorted(table.column_names) == sorted(columns)
    assert read_manifest(path).training == manifest.training


@pytest.mark.parametrize("part", ["", "Left Hand", "hand ", "Mr Secret, 53", 7, "a\nb"])
def test_body_parts_are_words(tmp_path, part):
    with pytest.raises(InputError, match=r"training\[0\] \(t0\): body_part must be lower-case words") as told:
        make(tmp_path, training=[Item("t0", Path("a.png"), None, None, "g0", part)])
    assert "Secret" not in str(told.value)


def test_body_parts_of_long_lists_are_checked(tmp_path):
    items = [Item(f"t{n}", Path("a.png"), None, None, "g", "hand") for n in range(3)]
    path = write_manifest(make(tmp_path, training=items, validation=[]), tmp_path / "films.json", parquet_above=1)
    lists = next(tmp_path.glob("*.parquet"))
    table = pyarrow.parquet.read_table(lists)
    for parts in (["hand", None, "Secret Name"], [None, None, 7]):
        column = pyarrow.array(parts)
        pyarrow.parquet.write_table(table.set_column(table.column_names.index("body_part"), "body_part", column), lists)
        with pytest.raises(InputError, match=r"training\[2\] \(t2\): body_part must be lower-case words"):
            read_manifest(path)


@pytest.mark.parametrize(
    "label",
    [
        [{"box": [1, 2, 3], "category": "a"}],
        [{"box": [1, 2, 3, "4"], "category": "a"}],
        [{"box": [1, 2, 3, 4]}],
        [{"box": [1, 2, 3, 4], "category": ""}],
        [{"box": [1, 2, 3, 4], "category": "a", "note": "Mr Secret"}],
    ],
)
def test_malformed_boxes_break_the_schema(tmp_path, label):
    path = write_manifest(make(tmp_path, count=0, validation=[]), tmp_path / "films.json")
    content = {"training": [{"id": "t0", "image": "a.png", "group": "g", "label": label}], "counts": {"training": 1}}
    with pytest.raises(InputError, match=r"\$\.training\[0\]\.label\[0\].*of manifest.schema.json") as told:
        read_manifest(edit(path, **content))
    assert "Secret" not in str(told.value)


def test_class_names_are_no_paths(tmp_path):
    items = [Item("a", Path("a.png"), None, "normal", "g"), Item("b", Path("b.png"), None, "x.nii", "h")]
    path = write_manifest(make(tmp_path / "data", training=items, validation=[]), tmp_path / "lists" / "films.json")
    assert [item.label for item in read_manifest(path).training] == ["normal", "x.nii"]


def test_new_modality_travels_with_the_manifest(tmp_path, monkeypatch):
    monkeypatch.setattr(modalities, "MODALITIES", registry := dict(MODALITIES))
    entry = Modality(name="sonogram", dimension=2, input_shape=(3, 32, 32), intensity="unit_range")
    path = write_manifest(make(tmp_path, modality=entry), tmp_path / "films.json")
    del registry["sonogram"]
    assert read_manifest(path).modality == registry["sonogram"] == entry


def test_rewriting_removes_the_older_item_list(tmp_path):
    path = tmp_path / "films.json"
    write_manifest(make(tmp_path, count=3), path, parquet_above=0)
    write_manifest(make(tmp_path, count=4), path, parquet_above=0)
    assert [entry.name for entry in tmp_path.glob("*.parquet")] == [json.loads(path.read_text())["items_file"]]
    write_manifest(make(tmp_path), path)
    assert list(tmp_path.glob("*.parquet")) == []


def test_items_of_unknown_split(tmp_path):
    with pytest.raises(InputError, match="split must be one of training, validation, testing, got 'train'"):
        make(tmp_path).items("train")


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (Item("", Path("a.png"), group="g"), r"training\[0\]: id must be a non-empty string, got ''"),
        (Item("a", Path("a.png")), "group must be a non-empty string, got ''"),
        (Item("a", group="g"), "2D modality xray has 'image' and no 'text'"),
        (Item("a", Path("a.png"), "text", group="g"), "2D modality xray has 'image' and no 'text'"),
    ],
)
def test_incomplete_items(tmp_path, item, message):
    with pytest.raises(InputError, match=message):
        make(tmp_path, training=[item])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, r"\$\.schema_version: breaks the rule 'const' = 1 .*got '2'"),
        ({"licence": ""}, r"\$\.licence: breaks the rule 'minLength'"),
        ({"colour": 1}, "'colour' was unexpected"),
        ({"training": [{"id": "a"}]}, r"\$\.training\[0\]: breaks the rule '(required|oneOf)'"),
        ({"training": [{"id": "a", "group": "g", "image": 3}]}, "got int"),
        ({"counts": {"training": 9}}, r"counts say \{'training': 9\}, the lists hold \{'training': 3"),
        ({"items_file": "x.parquet"}, "items_file and inline items"),
        ({"modality": "sonar"}, "'sonar' is not registered"),
    ],
)
def test_broken_files_name_place_and_rule(tmp_path, change, message):
    path = edit(write_manifest(make(tmp_path), tmp_path / "films.json"), **change)
    with pytest.raises(InputError, match=message):
        read_manifest(path)


def test_errors_never_quote_item_text(tmp_path):
    path = write_manifest(make_texts(tmp_path), tmp_path / "a.json")
    edit(path, training=[{"id": "t0", "text": ["Mr Secret, 53"], "group": "g0"}])
    with pytest.raises(InputError, match=r"\$\.training\[0\]\.text: .*got list") as caught:
        read_manifest(path)
    assert "Secret" not in str(caught.value)


def test_missing_manifest_and_dataset_dir(tmp_path):
    with pytest.raises(InputError, match="absent.json: no such file"):
        read_manifest(tmp_path / "absent.json")
    path = write_manifest(make(tmp_path), tmp_path / "films.json")
    with pytest.raises(InputError, match="absent: no such folder"):
        read_manifest(path, dataset_dir=tmp_path / "absent")


def test_missing_and_damaged_item_lists(tmp_path):
    path = write_manifest(make(tmp_path), tmp_path / "films.json", parquet_above=0)
    (items,) = tmp_path.glob("*.parquet")
    content = items.read_bytes()
    items.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=f"{items.name}: not a readable Parquet file"):
        read_manifest(path)
    items.unlink()
    with pytest.raises(InputError, match=f"{items.name}: no such file"):
        read_manifest(path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [({"id": ["a"]}, r"misses the columns \['split', 'group'\]"), ({"split": ["train"]}, "got 'train'")],
)
def test_foreign_item_lists(tmp_path, columns, message):
    import pyarrow
    import pyarrow.parquet

    path = write_manifest(make(tmp_path), tmp_path / "films.json", parquet_above=0)
    if "split" in columns:
        columns = {"id": ["a"], "group": ["g"], "image": ["a.png"]} | columns
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "own.parquet")
    with pytest.raises(InputError, match=message):
        read_manifest(edit(path, items_file="own.parquet"))


def test_labels_of_several_kinds_do_not_fit_a_list(tmp_path):
    items = [Item("a", Path("a.png"), None, 1, "g"), Item("b", Path("b.png"), None, "one", "h")]
    with pytest.raises(InputError, match="labels must be all of one kind"):
        write_manifest(make(tmp_path, training=items), tmp_path / "films.json", parquet_above=0)


def test_an_unwritable_manifest_leaves_the_former_one(tmp_path):
    path = write_manifest(make(tmp_path), tmp_path / "films.json")
    with pytest.raises(InputError, match=r"\$\.name: breaks the rule 'pattern'"):
        write_manifest(make(tmp_path, name="two words"), path)
    assert read_manifest(path).name == "films"


def test_schema_in_the_repository_is_the_shipped_one():
    published = ROOT / "data_manifests" / "manifest.schema.json"
    assert json.loads(published.read_text()) == manifest_schema()
    shipped = ROOT / "medcoss_components" / "data" / "schemas" / "manifest.schema.json"
    assert published.read_bytes() == shipped.read_bytes()
