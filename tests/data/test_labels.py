import numpy as np
import pytest

from medcoss_components.data.labels import (
    class_targets,
    first_share,
    require_every_class,
    resolve_classes,
    validation_groups,
)
from medcoss_components.errors import InputError

CLASSES = ["normal", "pneumonia", "covid"]


class TestClasses:
    def test_names_in_order(self):
        assert resolve_classes(CLASSES) == ("normal", "pneumonia", "covid")

    @pytest.mark.parametrize(
        ("classes", "message"),
        [("normal", "'normal'"), (3, "got 3"), (["one"], r"\['one'\]"), (["a", "a"], r"'a', 'a'")],
    )
    def test_wrong_lists(self, classes, message):
        with pytest.raises(InputError, match=message):
            resolve_classes(classes)


class TestTargets:
    def test_names_and_numbers(self):
        labels = ["covid", 0, 1.0, np.int64(2), True, False, "normal"]
        targets = class_targets(labels, classes=CLASSES, ids=list("abcdefg"))
        assert targets.tolist() == [2, 0, 1, 2, 1, 0, 0]
        assert targets.dtype == np.int64

    def test_no_item(self):
        assert class_targets([], classes=CLASSES, ids=[]).shape == (0,)

    def test_unknown_labels_are_counted(self):
        labels = ["flu", "normal", "flu", None, 3, -1, 0.5, ["normal"]]
        with pytest.raises(InputError) as caught:
            class_targets(labels, classes=CLASSES, ids=[f"i{n}" for n in range(8)])
        text = str(caught.value)
        assert "7 of 8 items name no class: 'flu' (2 items), no label (1 items), 3 (1 items)" in text
        assert "and 1 more; first items: i0, i2, i3, i4, i5." in text
        assert "normal, pneumonia, covid, or numbers 0 to 2" in text

    def test_a_class_without_item_is_named(self):
        require_every_class(np.array([0, 1, 2]), classes=CLASSES, where="here")
        with pytest.raises(InputError, match=r"here: no item of class pneumonia \(normal: 2, pneumonia: 0, covid: 1\)"):
            require_every_class(np.array([0, 2, 0]), classes=CLASSES, where="here")


class TestValidationGroups:
    def test_single_items_are_stratified_exactly(self):
        targets = np.repeat([0, 1, 2], [50, 20, 10])
        groups = [f"g{n}" for n in range(80)]
        chosen = validation_groups(groups, targets, share=0.2, seed=3)
        taken = [targets[groups.index(group)] for group in chosen]
        assert np.bincount(taken).tolist() == [10, 4, 2]

    def test_groups_stay_whole_and_near_the_share(self):
        generator = np.random.default_rng(0)
        groups = [f"p{n}" for n in generator.integers(0, 60, 600)]
        targets = generator.integers(0, 3, 600)
        chosen = validation_groups(groups, targets, share=0.25, seed=1)
        aside = np.array([group in chosen for group in groups])
        counts = np.bincount(targets[aside]) / np.bincount(targets)
        assert np.abs(counts - 0.25).max() < 0.04

    def test_order_of_items_does_not_matter_but_the_seed_does(self):
        groups = [f"g{n}" for n in range(40)]
        one = validation_groups(groups, share=0.2, seed=0)
        assert one == validation_groups(groups[::-1], share=0.2, seed=0)
        assert one != validation_groups(groups, share=0.2, seed=1)
        assert len(one) == 8

    @pytest.mark.parametrize(("share", "count"), [(0.01, 1), (0.99, 2)])
    def test_never_none_and_never_all(self, share, count):
        assert len(validation_groups(["a", "b", "c"], share=share, seed=0)) == count

    def test_the_smallest_group_when_none_fits(self):
        groups = ["big"] * 9 + ["small"]
        assert validation_groups(groups, share=0.01, seed=0) == {"small"}

    def test_one_group(self):
        with pytest.raises(InputError, match="has 1 group; at least 2"):
            validation_groups(["a", "a"], share=0.2, seed=0)

    @pytest.mark.parametrize("share", [0, 1, -0.1, 1.5])
    def test_share_out_of_range(self, share):
        with pytest.raises(InputError, match=f"validation_share={share}"):
            validation_groups(["a", "b"], share=share, seed=0)


class TestFirstShare:
    def test_smaller_shares_are_parts_of_larger_ones(self):
        rows = np.arange(100, 140)
        parts = [set(first_share(rows, ratio, 7).tolist()) for ratio in (0.1, 0.5, 1.0)]
        assert [len(part) for part in parts] == [4, 20, 40]
        assert parts[0] < parts[1] < parts[2]

    def test_order_is_kept_and_one_is_the_least(self):
        assert first_share([5, 3, 9], 1.0, 0).tolist() == [5, 3, 9]
        assert len(first_share([5, 3, 9], 0.01, 0)) == 1

    def test_seeds_differ(self):
        assert first_share(range(50), 0.2, 0).tolist() != first_share(range(50), 0.2, 10).tolist()

    @pytest.mark.parametrize("ratio", [0, -1, 1.1])
    def test_ratio_out_of_range(self, ratio):
        with pytest.raises(InputError, match=f"label_ratio={ratio}"):
            first_share([1], ratio, 0)
