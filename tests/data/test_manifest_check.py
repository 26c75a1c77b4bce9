from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medcoss_components.data.manifest import Item, Manifest, check_manifest, write_manifest


def save_png(path, *, seed=0, shape=(24, 32)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)).save(path)


def make(folder, training, validation=(), modality="xray"):
    return Manifest(
        name="films",
        version="1",
        modality=modality,
        licence="CC0-1.0",
        source="made in a test",
        root=folder,
        training=training,
        validation=validation,
    )


@pytest.fixture
def films(tmp_path):
    """Two training and one validation film, all in order."""
    for number in range(3):
        save_png(tmp_path / f"{number}.png", seed=number)
    return [Item(f"i{number}", Path(f"{number}.png"), None, "normal", f"g{number}") for number in range(3)]


def rules(problems, severity=None):
    return [problem.rule for problem in problems if severity in (None, problem.severity)]


def test_a_manifest_in_order_gives_label_counts_only(tmp_path, films):
    problems = check_manifest(make(tmp_path, films[:2], films[2:]), workers=2)
    assert [str(problem) for problem in problems] == [
        "info: label-counts: training: normal: 2",
        "info: label-counts: validation: normal: 1",
    ]


def boxed(number, *boxes):
    label = [{"box": list(box), "category": category} for category, *box in boxes]
    return Item(f"i{number}", Path(f"{number}.png"), None, label, f"g{number}", "hand" if number else None)


def test_boxes_and_body_parts_are_counted(tmp_path, films):
    items = [boxed(0, ("mass", 0, 0, 32, 24), ("mass", 1, 1, 2, 2)), boxed(1, ("nodule", 1, 1, 5, 5)), boxed(2)]
    problems = check_manifest(make(tmp_path, items[:2], items[2:]))
    assert [str(problem) for problem in problems] == [
        "info: label-counts: training: mass: 2, nodule: 1",
        "info: body-part-counts: training: hand: 1",
        "info: body-part-counts: validation: hand: 1",
    ]


def test_bad_boxes_are_errors(tmp_path, films):
    items = [boxed(0, ("mass", 0, 0, 40, 24)), boxed(1, ("mass", 5, 1, 2, 2)), boxed(2, ("mass", 0, 0, 1, 1))]
    problems = check_manifest(make(tmp_path, items))
    assert [str(problem) for problem in problems[:2]] == [
        "error: bad-box: training item i1: box 0 [5, 1, 2, 2]: left must be below right and top below bottom. Correct "
        "it or leave the item out.",
        "error: bad-box: training item i0: box 0 [0, 0, 40, 24]: outside the picture of 32 x 24 pixels. Correct it or "
        "leave the item out.",
    ]
    assert rules(check_manifest(make(tmp_path, items), open_files=False), "error") == ["bad-box"]


def test_lists_of_classes_are_counted_one_by_one(tmp_path, films):
    items = [Item("i0", Path("0.png"), None, ["a", "b"], "g0"), Item("i1", Path("1.png"), None, ["c", "b"], "g1")]
    problems = [str(problem) for problem in check_manifest(make(tmp_path, items[:1], items[1:]), open_files=False)]
    assert "info: label-counts: training: a: 1, b: 1" in problems
    assert "warning: label-unknown: validation: labels that no training item has: c. Check the split." in problems


def test_a_path_is_checked_like_a_manifest(tmp_path, films):
    path = write_manifest(make(tmp_path, films), tmp_path / "films.json")
    assert rules(check_manifest(path)) == ["label-counts"]


def test_no_training_items(tmp_path, films):
    (problem, *_) = check_manifest(make(tmp_path, [], films))
    assert (problem.severity, problem.rule, problem.where) == ("error", "no-items", "training")


def test_duplicate_id_and_group_across_splits(tmp_path, films):
    twin = Item("i0", Path("2.png"), None, None, "g1")
    problems = check_manifest(make(tmp_path, films[:2], [twin]), open_files=False)
    assert [(problem.rule, problem.where) for problem in problems[:2]] == [
        ("duplicate-id", "item i0"),
        ("group-across-splits", "group g1"),
    ]
    assert "training, validation" in problems[1].message


@pytest.mark.parametrize("open_files", [True, False])
def test_missing_file(tmp_path, films, open_files):
    (tmp_path / "1.png").unlink()
    (problem, *_) = check_manifest(make(tmp_path, films), open_files=open_files)
    assert (problem.severity, problem.rule, problem.where) == ("error", "missing-file", "training item i1")
    assert str(tmp_path / "1.png") in problem.message


def test_unreadable_file(tmp_path, films):
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:100])
    manifest = make(tmp_path, films)
    (problem, *_) = check_manifest(manifest)
    assert (problem.rule, problem.where) == ("unreadable-file", "training item i1")
    assert rules(check_manifest(manifest, open_files=False), "error") == []


def test_same_content_is_worse_across_splits(tmp_path, films):
    (tmp_path / "2.png").write_bytes((tmp_path / "0.png").read_bytes())
    (within, *_) = check_manifest(make(tmp_path, films), open_files=False)
    (across, *_) = check_manifest(make(tmp_path, films[:2], films[2:]), open_files=False)
    assert (within.severity, within.rule, within.where) == ("warning", "duplicate-content", "items i0, i2")
    assert (across.severity, across.rule, across.where) == ("error", "duplicate-content", "items i0, i2")


def test_same_dicom_folders(tmp_path, write_dicom):
    pixels = np.arange(12, dtype=np.int16).reshape(3, 4)
    file = write_dicom(tmp_path / "a" / "1.dcm", pixels)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "other.dcm").write_bytes(file.read_bytes())
    items = [Item("a", Path("a"), group="a"), Item("b", Path("b"), group="b")]
    assert rules(check_manifest(make(tmp_path, items, modality="ct"), open_files=False)) == ["duplicate-content"]


def test_files_outside_the_data_set(tmp_path, films):
    problems = check_manifest(make(tmp_path / "elsewhere", [Item("a", tmp_path / "0.png", group="a")]))
    assert rules(problems) == ["path-outside"]


def test_implausible_images(tmp_path):
    save_png(tmp_path / "tiny.png", shape=(8, 40))
    save_png(tmp_path / "colour.png", shape=(24, 32, 3))
    Image.new("L", (32, 24), 7).save(tmp_path / "flat.png")
    items = [Item(name, Path(f"{name}.png"), group=name) for name in ("tiny", "colour", "flat")]
    problems = check_manifest(make(tmp_path, items))
    assert [(problem.severity, problem.rule, problem.where) for problem in problems] == [
        ("warning", "shape", "training item tiny"),
        ("warning", "channels", "training item colour"),
        ("warning", "constant", "training item flat"),
    ]


def test_ct_without_air_and_of_another_modality(tmp_path, write_series):
    folder = write_series(RescaleIntercept=0, pixels=np.arange(400, dtype=np.int16).reshape(20, 20))
    problems = check_manifest(make(folder.parent, [Item("a", Path("series"), group="a")], modality="ct"))
    assert rules(problems) == ["intensity"]
    (problem,) = check_manifest(make(folder.parent, [Item("a", Path("series"), group="a")], modality="mri"))
    assert problem.rule == "unreadable-file"
    assert "is 'CT', expected MR" in problem.message


def test_texts(tmp_path):
    texts = ["No opacity.", " ", "No  opacity.", "Effusion.", "Clear."]
    items = [Item(f"t{n}", text=text, label=n % 2, group=f"g{n}") for n, text in enumerate(texts)]
    problems = check_manifest(make(tmp_path, items, [Item("v", text="Other.", label=5, group="v")], "report"))
    assert [(problem.severity, problem.rule, problem.where) for problem in problems] == [
        ("error", "empty-text", "training item t1"),
        ("warning", "duplicate-content", "items t0"),
        ("warning", "label-unknown", "validation"),
        ("info", "label-counts", "training"),
        ("info", "label-counts", "validation"),
    ]
    assert "1 texts stand more than once (2 items)" in problems[1].message
    assert problems[3].message == "0: 3, 1: 2"


def test_long_lists_are_cut(tmp_path):
    items = [Item(f"t{n}", text=f"text {n % 5}", group=f"g{n}") for n in range(10)]
    (problem,) = check_manifest(make(tmp_path, items, modality="report"))
    assert problem.where == "items t0, t1, t2 and 2 more"


class TestMasks:
    @pytest.fixture
    def masked(self, tmp_path):
        """Three films with masks: values 1, 1 and 2 in training, 3 in validation."""
        items = []
        for number, value in enumerate((1, 1, 2, 3)):
            save_png(tmp_path / f"{number}.png", seed=number)
            mask = np.zeros((24, 32), np.uint8)
            mask[3:9, 5:12] = value
            Image.fromarray(mask).save(tmp_path / f"{number}_mask.png")
            items.append(Item(f"i{number}", Path(f"{number}.png"), None, f"{number}_mask.png", f"g{number}"))
        return items

    def test_in_order(self, tmp_path, masked):
        problems = check_manifest(make(tmp_path, masked[:3]), workers=2)
        assert [str(problem) for problem in problems] == [
            "info: mask-values: training: 0: 3 items, 1: 2 items, 2: 1 items"
        ]

    def test_values_that_training_lacks(self, tmp_path, masked):
        problems = check_manifest(make(tmp_path, masked[:3], masked[3:]))
        assert rules(problems) == ["mask-value-unknown", "mask-values", "mask-values"]
        assert "no training item has: 3" in problems[0].message

    def test_missing_and_outside(self, tmp_path, masked):
        (tmp_path / "0_mask.png").unlink()
        outside = Item("o", Path("1.png"), None, "../elsewhere.png", "g")
        problems = check_manifest(make(tmp_path, [masked[0], outside]))
        assert rules(problems, "error") == ["missing-mask", "missing-mask"]
        assert rules(problems, "warning") == ["path-outside"]

    def test_another_grid_and_no_mask(self, tmp_path, masked):
        Image.fromarray(np.zeros((24, 30), np.uint8)).save(tmp_path / "0_mask.png")
        (tmp_path / "1_mask.png").write_bytes(b"x")
        problems = check_manifest(make(tmp_path, masked[:3]))
        assert rules(problems, "error") == ["bad-mask", "bad-mask"]
        assert "(24, 30), its image (24, 32)" in problems[0].message
