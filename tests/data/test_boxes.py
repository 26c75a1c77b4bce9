"""Labels of boxes: what is one, how it is written, what is wrong with it."""

from __future__ import annotations

import math

import pytest

from medcoss_components.data.boxes import (
    canonical_label,
    check_labels,
    is_box_label,
    label_categories,
    label_problem,
    resolve_categories,
)
from medcoss_components.errors import InputError


def box(*sides, category="a"):
    return {"box": list(sides), "category": category}


@pytest.mark.parametrize("label", [[], [box(0, 0, 1, 1)], [box(0, 0, 1, 1), box(2, 2, 3, 3, category="b")]])
def test_lists_of_boxes(label):
    assert is_box_label(label) and label_problem(label) == ""


@pytest.mark.parametrize("label", [None, "a", 1, ["a"], [{"box": [0, 0, 1, 1]}], [box(0, 0, 1, 1) | {"score": 1}]])
def test_other_labels(label):
    assert not is_box_label(label) and label_categories(label) == [] and canonical_label(label) == label


def test_canonical_labels_compare_as_texts():
    whole = canonical_label([{"category": "a", "box": [1, 2, 3, 4]}])
    assert str(whole) == str(canonical_label([{"box": [1.0, 2.0, 3.0, 4.0], "category": "a"}]))
    odd = [box("1", True, None, 4)]
    assert (
        canonical_label(odd) == odd
        and str(canonical_label(odd)) == "[{'box': ['1', True, None, 4.0], 'category': 'a'}]"
    )


def test_categories():
    assert resolve_categories(["b", "a"]) == ("b", "a")
    assert label_categories([box(0, 0, 1, 1, category="b"), box(0, 0, 1, 1)]) == ["a", "b"]
    for wrong, shown in (([], r"\[\]"), (["a", "a"], r"\['a', 'a'\]"), ("ab", "'ab'"), (None, "None")):
        with pytest.raises(InputError, match=f"categories: .* got {shown}"):
            resolve_categories(wrong)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (None, r"it has no label; write \[\] where nothing is there"),
        ("a", "its label is no list of"),
        ([box(0, 0, 1)], "box 0 must be four finite numbers"),
        ([box(0, 0, 1, "2")], "box 0 must be four finite numbers"),
        ([box(0, 0, 1, True)], "box 0 must be four finite numbers"),
        ([box(0, 0, 1, 1), box(0, math.nan, 1, 1)], "box 1 must be four finite numbers"),
        ([box(0, 0, math.inf, 1)], "box 0 must be four finite numbers"),
        ([{"box": 3, "category": "a"}], "box 0 must be four finite numbers"),
        ([box(4, 0, 2, 3)], r"box 0 \[4, 0, 2, 3\]: left must be below right and top below bottom"),
        ([box(0, 1, 2, 1)], r"box 0 \[0, 1, 2, 1\]: left must be below right"),
        ([box(0, 0, 1, 1, category="c")], "box 0 .*: its category is 'c', known: a, b"),
        ([box(0, 0, 1, 1, category=7)], "its category is '7'"),
        ([box(0.5, 0, 302, 1)], r"box 0 \[0.5, 0, 302, 1\]: outside the picture of 200 x 100 pixels"),
        ([box(0, -2, 1, 1)], "outside the picture"),
        ([box(200, 0, 201, 1)], "outside the picture"),
    ],
)
def test_problems(label, message):
    import re

    assert re.search(message, label_problem(label, size=(100, 200), categories=["a", "b"]))


def test_rounding_at_the_edge_is_no_problem():
    """One hundredth of a side, or one pixel, may stick out."""
    assert label_problem([box(-2, -1, 202, 101)], size=(100, 200)) == ""
    assert label_problem([box(0, 0, 9, 9)], size=(8, 8)) == ""


def test_errors_name_where_item_and_number():
    labels = [[box(0, 0, 5, 5)], None, [box(0, 0, 0, 5)], None, "x"]
    ids = ["i0", "i1", "i2", "i3", "i4"]
    with pytest.raises(
        InputError, match=r"films: 4 of 5 items .*item i1: .*item i2: box 0 .*item i3.*; and 1 more"
    ) as told:
        check_labels(labels, ids=ids, where="films")
    assert "i4" not in str(told.value)
    check_labels(labels[:1], ids=ids[:1], where="films", sizes=[(5, 5)], categories=["a"])
    with pytest.raises(InputError, match="item i0: box 0 .* outside the picture of 3 x 5 pixels"):
        check_labels(labels[:1], ids=ids[:1], where="films", sizes=[(5, 3)])
