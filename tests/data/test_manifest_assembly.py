"""From findings to items: body parts, boxes, lists of classes."""

from __future__ import annotations

import json
from pathlib import Path

from medcoss_components.data.adapters.findings import Found
from medcoss_components.data.manifest_assembly import hashed_groups, splits_by_shares, write_built


def box(category):
    return {"box": [1, 2, 3, 4], "category": category}


def written(folder, found, splits):
    header = {"name": "films", "version": "1", "modality": "xray", "licence": "none", "source": "a test"}
    return write_built(
        folder / "films.json",
        header=header,
        found=found,
        groups=hashed_groups(found),
        splits=splits,
        left_out=[],
        notes=[],
        record={},
    )


def test_body_parts_and_boxes_go_into_the_manifest(tmp_path):
    found = [
        Found(name="a", path=tmp_path / "a.png", label=[box("mass")], body_part="left hand"),
        Found(name="b", path=tmp_path / "b.png", label=[]),
        Found(name="c", path=tmp_path / "c.png", label=None),
        Found(name="d", path=tmp_path / "d.png", label=[box("mass"), box("cyst")]),
    ]
    built = written(tmp_path, found, ["training"] * 3 + ["testing"])
    first, second, third = built.manifest.training
    assert (first.body_part, second.body_part) == ("left hand", None)
    assert (first.label, second.label, third.label) == ([box("mass")], [], None)
    entries = json.loads(built.path.read_text())["training"]
    assert "body_part" not in entries[1] and "label" not in entries[2] and entries[1]["label"] == []
    assert built.notes == ("training has no item of cyst.",)
    record = json.loads(Path(tmp_path / "films.build.json").read_text())
    assert record["boxes"]["mass"] == {"training": 1, "validation": 0, "testing": 1}
    assert record["body_parts"]["left hand"]["training"] == [1, 1]


def test_lists_of_classes_stay_lists(tmp_path):
    found = [Found(name=name, path=tmp_path / f"{name}.png", label=label) for name, label in (("a", ["0"]), ("b", "1"))]
    built = written(tmp_path, found, ["training"] * 2)
    assert [item.label for item in built.manifest.training] == [["0"], "1"]


def test_items_are_spread_by_the_categories_that_they_have():
    """Boxes lie anywhere, so that no two labels are equal; the categories in them are what counts."""
    kinds = (["mass"], ["mass", "cyst"], [])
    found = [
        Found(
            name=str(number),
            patient=str(number),
            label=[box(name) | {"box": [0, 0, number + 1, 1]} for name in kinds[number % 3]],
        )
        for number in range(60)
    ]
    splits = splits_by_shares(found, hashed_groups(found), (80, 10, 10), seed=0, by_label=True)
    for kind in range(3):
        assert splits[kind::3].count("testing") == splits[kind::3].count("validation") == 2
