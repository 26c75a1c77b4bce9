"""Long lists of items, against the same items as a tuple."""

from __future__ import annotations

import pickle
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from medcoss_components.data.item_table import Item, ItemTable, read_item_tables, relative_path
from medcoss_components.data.manifest import Manifest, read_manifest, write_manifest
from medcoss_components.errors import InputError

ITEMS = tuple(Item(f"i{n}", Path(f"/data/films/{n}.png"), None, n % 2, f"g{n // 2}") for n in range(7))


@pytest.fixture
def table():
    columns = {
        "id": [item.id for item in ITEMS],
        "image": [f"films/{n}.png" for n in range(7)],
        "text": pyarrow.nulls(7, pyarrow.string()),
        "label": [item.label for item in ITEMS],
        "group": [item.group for item in ITEMS],
    }
    return ItemTable(pyarrow.table(columns), "/data")


def manifest(items, **changes):
    fields = {"name": "films", "version": "1", "modality": "xray", "licence": "x", "source": "x", "root": "/data"}
    return Manifest(**{**fields, "training": items, **changes})


def test_it_behaves_like_a_tuple(table):
    assert len(table) == 7 and tuple(table) == ITEMS and table == ITEMS and table == list(ITEMS)
    assert table[2] == ITEMS[2] and table[-1] == ITEMS[-1] and ITEMS[3] in table
    for part in (slice(2, 5), slice(None, None, 3), slice(5, 2), slice(-2, None), slice(None, None, -1)):
        assert table[part] == ITEMS[part]
    assert table != ITEMS[:-1] and table != "films" and table != (*ITEMS[:-1], ITEMS[0])
    assert pickle.loads(pickle.dumps(table)) == ITEMS and repr(table) == "ItemTable(7 items)"
    with pytest.raises(IndexError):
        table[7]


def test_a_manifest_of_a_table_has_the_hash_of_one_of_items(table):
    assert manifest(table).hash == manifest(ITEMS).hash
    assert manifest(table).counts == {"training": 7, "validation": 0, "testing": 0}


@pytest.mark.parametrize("image", ["./a.png", "a//b.png", "a/./b.png", "a/../b.png", "../b.png", "a/", "/data/c.png"])
def test_paths_count_alike_however_they_are_written(image):
    row = {"id": ["a"], "image": [image], "text": pyarrow.nulls(1, pyarrow.string()), "label": [None], "group": ["g"]}
    table = ItemTable(pyarrow.table(row), "/data")
    assert manifest(table).hash == manifest((Item("a", Path(image), group="g"),)).hash


def test_round_trip_through_parquet(table, tmp_path):
    path = write_manifest(manifest(table, root=tmp_path), tmp_path / "m.json", parquet_above=3)
    back = read_manifest(path)
    assert isinstance(back.training, ItemTable) and [item.id for item in back.training] == [i.id for i in ITEMS]
    assert write_manifest(back, tmp_path / "n.json", parquet_above=3)
    lists = [next(tmp_path.glob(f"{name}.items-*.parquet")).read_bytes() for name in "mn"]
    assert lists[0] == lists[1] and back.hash == read_manifest(tmp_path / "n.json").hash


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": ["a", ""]}, r"training\[1\]: id must be a non-empty string, got ''"),
        ({"group": [None, "g"]}, r"training\[0\]: group must be a non-empty string, got None"),
        ({"id": [1, 2]}, r"training\[0\]: id must be a non-empty string, got 1"),
        ({"image": ["a.png", None]}, r"training\[1\] \(b\): an item of the 2D modality xray has 'image' and no 'text'"),
        ({"text": [None, "words"]}, r"training\[1\] \(b\): an item of the 2D modality xray has 'image' and no 'text'"),
    ],
)
def test_wrong_items_are_named(change, words):
    columns = {
        "id": ["a", "b"],
        "image": ["a.png", "b.png"],
        "text": [None, None],
        "label": [0, 1],
        "group": ["g", "h"],
    }
    with pytest.raises(InputError, match=words):
        manifest(ItemTable(pyarrow.table(columns | change), "/data"))


def test_missing_columns_are_empty(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(
        pyarrow.table({"split": ["training"], "id": ["a"], "group": ["g"], "text": ["x"]}), path
    )
    tables = read_item_tables(path, "/data")
    assert tables["training"] == (Item("a", text="x", group="g"),) and len(tables["testing"]) == 0


def test_relative_paths():
    assert relative_path("/data/a/b.png", "/data") == "a/b.png"
    assert relative_path("/data/a/../b.png", "/data") == "b.png"
    assert relative_path("/other/b.png", "/data") == "../other/b.png"
