"""PubMed RCT: miniatures of the three lists, with the defects that text files have."""

from pathlib import Path

import numpy as np
import pytest

from medcoss_components.data.adapters.dataset_recipe import dataset_recipe
from medcoss_components.data.adapters.findings import DatasetSource
from medcoss_components.data.adapters.pubmed_rct import FOLDERS, LABELS, find
from medcoss_components.data.dataset_building import build_dataset_manifest
from medcoss_components.data.manifest import check_manifest, read_manifest
from medcoss_components.data.modalities import get_modality
from medcoss_components.errors import InputError

ABSTRACT = "###{}\nOBJECTIVE\tTo see it {} .\nMETHODS\tWe looked at {} .\nRESULTS\tIt was there {} .\n\n"


def abstracts(*numbers):
    """The text of a list: three sentences for each PubMed number."""
    return "".join(ABSTRACT.format(number, *[f"in trial {number}"] * 3) for number in numbers)


def write_lists(folder, train, dev, test):
    folder.mkdir(parents=True)
    for name, text in (("train.txt", train), ("dev.txt", dev), ("test.txt", test)):
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


@pytest.fixture
def root(tmp_path):
    """The repository with one variant: two abstracts for training, one each for validation and testing."""
    write_lists(tmp_path / "pubmed-rct" / FOLDERS[0], abstracts(101, 102), abstracts(201), abstracts(301))
    return tmp_path / "pubmed-rct"


def run(root, folder=FOLDERS[0]):
    where = DatasetSource(root=root, modality=get_modality("report"), files_dir=root, settings={"folder": folder})
    found, left = find(where)
    return found, {entry.where: entry.reason for entry in left}


def test_every_sentence_is_an_item_of_its_abstract(root):
    found, left = run(root)
    assert len(found) == 12 and not left
    first = found[0]
    assert (first.name, first.text, first.label) == ("train.txt line 2", "To see it in trial 101 .", "OBJECTIVE")
    assert [item.patient for item in found[::3]] == ["101", "102", "201", "301"]
    assert [item.split for item in found[::3]] == ["training", "training", "validation", "testing"]


@pytest.mark.parametrize("level", ["", "..", "../.."])
def test_the_root_may_be_the_folder_the_repository_or_its_parent(root, level):
    assert len(run((root / FOLDERS[0] / level).resolve())[0]) == 12


def test_lists_in_a_folder_of_another_name(root):
    (root / FOLDERS[0]).rename(root / "lists")
    assert len(run(root / "lists")[0]) == 12


def test_defective_lines_are_left_out_by_number(root):
    lines = [
        b"METHODS\tbefore any number .",
        b"###101",
        b"METHOD\tan unknown label .",
        b"METHODS no tab",
        b"RESULTS\t  ",
        b"RESULTS\tcaf\xe9 .",
        b"RESULTS\ttwo  spaces .\r",
        b"",
        b"CONCLUSIONS\tbehind the end .",
        b"###",
        b"METHODS\tno number above .",
        b"###102",
        b"BACKGROUND\tthe end of file is cut",
    ]
    (root / FOLDERS[0] / "train.txt").write_bytes(b"\n".join(lines))
    (root / FOLDERS[0] / "notes.docx").write_text("x")
    (root / FOLDERS[0] / "train.7z").write_text("x")
    found, left = run(root)
    assert [(item.text, item.patient) for item in found[:2]] == [
        ("two spaces .", "101"),
        ("the end of file is cut", "102"),
    ]
    reasons = ["no abstract", "the label is none", "no tab", "the sentence is empty", "not UTF-8"]
    reasons += ["no abstract", "behind ### stands no", "no abstract", "not part of the published layout"]
    assert [
        reason for wanted, reason in zip(reasons, left.values(), strict=True) if not reason.startswith(wanted)
    ] == []
    assert list(left)[:5] == [f"train.txt line {number}" for number in (1, 3, 4, 5, 6)]
    assert list(left)[-1] == "notes.docx"


def test_a_byte_order_mark_is_no_part_of_the_text(root):
    (root / FOLDERS[0] / "dev.txt").write_text(abstracts(201), encoding="utf-8-sig")
    assert not run(root)[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "dev.txt").unlink(), r"holds no dev\.txt\. The three lists"),
        (lambda folder: (folder / "train.txt").rename(folder / "train.7z"), r"no train\.txt\. Unpack train\.7z"),
        (lambda folder: folder.rename(folder.with_name("other")), "holds no PubMed_20k_RCT"),
    ],
)
def test_another_layout(root, change, message):
    change(root / FOLDERS[0])
    with pytest.raises(InputError, match=message):
        run(root)


def test_another_variant_than_the_folder(root):
    with pytest.raises(InputError, match=r"Give --set folder=PubMed_20k_RCT\."):
        run(root / FOLDERS[0], folder=FOLDERS[1])
    with pytest.raises(InputError, match="folder: must be one of .*, got 'PubMed_2k'"):
        run(root, folder="PubMed_2k")


def test_recipe_has_the_labels_of_the_bundle_and_counts_that_add_up():
    recipe = dataset_recipe("pubmed_rct")
    assert recipe.classes == LABELS
    for counts in recipe.expected.values():
        assert sum(counts["labels"].values()) == counts["items"] and set(counts["labels"]) == set(LABELS)


def test_the_shipped_recipes_are_those_of_the_repository():
    here = Path(__file__).parents[3]
    for name in ("pubmed_rct.yaml", "mimic_cxr_reports.yaml"):
        shipped = (here / "medcoss_components/data/recipes" / name).read_bytes()
        assert shipped == (here / "data_manifests/recipes" / name).read_bytes()


def test_from_lists_to_a_store(root, tmp_path, vocabulary):
    from medcoss_components.data.store import prepare_store

    (root / FOLDERS[0] / "dev.txt").write_text(abstracts(201, 102))
    (root / FOLDERS[0] / "test.txt").write_text(abstracts(301, 101))
    built = build_dataset_manifest("pubmed_rct", root, tmp_path / "manifest.json", workers=1)
    assert built.manifest.counts == {"training": 0, "validation": 6, "testing": 6}
    assert sum("also stands" in entry.reason for entry in built.left_out) == 6
    assert "training has 0 items, published are 180040 (-180040)." in built.notes

    (root / FOLDERS[0] / "train.txt").write_text(abstracts(101, 102, 103))
    built = build_dataset_manifest("pubmed_rct", root, tmp_path / "manifest.json", workers=1)
    manifest = read_manifest(built.path)
    assert manifest.counts == {"training": 3, "validation": 6, "testing": 6}
    assert not [problem for problem in check_manifest(manifest) if problem.severity == "error"]
    store = prepare_store(manifest=manifest, store_dir=tmp_path / "store", vocabulary=vocabulary, workers=1)
    texts = [item.text for item in manifest.training]
    assert texts[0] == "To see it in trial 103 ." and store.labels == ["OBJECTIVE", "METHODS", "RESULTS"]
    assert np.array_equal(store.gather([0, 1, 2]), vocabulary.encode_batch(texts, 112))


def test_the_lists_as_they_are_are_said_to_share_abstracts(root, tmp_path):
    (root / FOLDERS[0] / "dev.txt").write_text(abstracts(201, 102))
    path = tmp_path / "manifest.json"
    built = build_dataset_manifest("pubmed_rct", root, path, split_by="as_published", workers=1)
    assert built.manifest.counts == {"training": 6, "validation": 6, "testing": 3}
    assert any("1 patients stand in several" in note for note in built.notes)
