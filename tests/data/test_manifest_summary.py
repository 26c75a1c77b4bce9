"""Counts of a manifest as a table, and pictures of its items to look at."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from medcoss_components.data.manifest import Item, Manifest
from medcoss_components.data.manifest_building import OwnData, build_manifest
from medcoss_components.data.manifest_summary import describe, group_sizes, summary
from medcoss_components.data.writers import write_nifti, write_picture
from medcoss_components.errors import InputError
from medcoss_components.tracking.contact_sheet import choose_items, load_picture, manifest_sheet, sheet_lines


def picture(number, shape=(20, 24)):
    values = np.random.default_rng(number).integers(0, 255, shape)
    return values.astype(np.uint8)


def write_table(path, rows):
    with open(path, "w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def films(tmp_path):
    """Twenty pictures of ten patients with a table: patient n has label n % 2."""
    rows = []
    for number in range(20):
        write_picture(tmp_path / f"{number:02d}.png", picture(number))
        patient = number // 2
        rows.append(
            {"file": f"{number:02d}.png", "label": ("normal", "covid")[patient % 2], "patient": f"case {patient}"}
        )
    write_table(tmp_path / "labels.csv", rows)
    given = {"kind": "images", "modality": "xray", "labels": tmp_path / "labels.csv", "split": (60, 20, 20)}
    return build_manifest(OwnData(root=tmp_path, name="films", **given), tmp_path / "films.json").manifest


class TestBoxesAndBodyParts:
    @pytest.fixture
    def hands(self, tmp_path):
        box = {"box": [0, 0, 2, 2], "category": "mass"}
        lists = {
            "training": [
                Item("a", Path("a.png"), None, [box, box, box | {"category": "cyst"}], "g", "hand"),
                Item("b", Path("b.png"), None, [], "g", "foot"),
            ],
            "testing": [Item("c", Path("c.png"), None, [box], "h")],
        }
        texts = {"name": "hands", "version": "1", "licence": "none", "source": "a test"}
        return Manifest(modality="xray", root=tmp_path, **texts, **lists)

    def test_counts(self, hands):
        content = summary(hands)
        assert content["labels"] == {
            "cyst": {"training": [1, 1], "validation": [0, 0], "testing": [0, 0]},
            "mass": {"training": [1, 1], "validation": [0, 0], "testing": [1, 1]},
            "(empty)": {"training": [1, 1], "validation": [0, 0], "testing": [0, 0]},
        }
        assert content["boxes"] == {
            "cyst": {"training": 1, "validation": 0, "testing": 0},
            "mass": {"training": 2, "validation": 0, "testing": 1},
        }
        assert list(content["body_parts"]) == ["foot", "hand", "(not recorded)"]
        assert content["body_parts"]["(not recorded)"]["testing"] == [1, 1]

    def test_lines(self, hands):
        lines = [" ".join(line.split()) for line in describe(hands).splitlines()]
        assert "boxes of mass 2 - 1" in lines and "body part hand 1 (1) - -" in lines

    def test_other_manifests_have_neither(self, films):
        assert set(summary(films)) == {"items", "groups", "labels"}


class TestSummaryAndSheet:
    def test_describe(self, films):
        lines = describe(films).splitlines()
        assert lines[0] == "films 1: xray, licence: not stated" and lines[2].split() == [
            "all",
            "12",
            "(6)",
            "4",
            "(2)",
            "4",
            "(2)",
        ]
        assert lines[-1] == "items (groups); a group has 2 to 2 items, 2 on average"
        assert group_sizes(films) == (2, 2.0, 2)

    def test_sheet_of_images(self, films):
        (films.root / "00.png").write_bytes(b"broken")
        problems = manifest_sheet(films, films.root / "sheet.png", limit=20)
        assert (films.root / "sheet.png").read_bytes()[:4] == b"\x89PNG"
        assert len(problems) == 1 and sheet_lines(problems * 7)[-1] == "and 2 more"

    def test_choice_takes_every_split_and_label(self, films):
        chosen = choose_items(films, limit=6, seed=0)
        assert len({(split, item.label) for split, item in chosen}) == 6
        assert chosen == choose_items(films, limit=6, seed=0)

    def test_slice_with_most_of_the_mask(self, tmp_path):
        for number in range(3):
            volume, mask = np.zeros((5, 18, 400), np.int16), np.zeros((5, 18, 400), np.uint8)
            volume[3], mask[3, 4:9, 20:60] = 7 + number, 2
            mask[1, 0, 0] = 1
            write_nifti(tmp_path / f"{number}.nii.gz", volume, (1, 1, 1))
            write_nifti(tmp_path / f"{number}_m.nii.gz", mask, (1, 1, 1))
        data = OwnData(root=tmp_path, kind="volumes", modality="mri", masks=tmp_path, mask_suffix="_m")
        manifest = build_manifest(data, tmp_path / "manifest.json").manifest
        shown, mask, _ = load_picture(manifest.training[0], manifest)
        assert shown.shape == (9, 200, 1) and mask.shape == (9, 200) and set(mask.ravel()) == {0, 2}
        assert shown.min() >= 7 and manifest_sheet(manifest, tmp_path / "sheet.png") == []

    def test_masks_of_pictures(self, tmp_path):
        for number in range(3):
            write_picture(tmp_path / f"{number}.png", picture(number, (20, 24, 3)))
            write_picture(tmp_path / f"{number}_m.png", np.repeat(np.eye(20, 24, dtype=np.uint8)[..., None], 3, axis=2))
        data = OwnData(root=tmp_path, kind="images", modality="pathology", masks=tmp_path, mask_suffix="_m")
        manifest = build_manifest(data, tmp_path / "manifest.json").manifest
        shown, mask, _ = load_picture(manifest.training[0], manifest)
        assert shown.shape == (20, 24, 3) and mask.sum() == 20 and shown.max() <= 1
        write_picture(manifest.root / manifest.training[0].label, np.eye(8, dtype=np.uint8))
        with pytest.raises(InputError, match=r"\(8, 8\)"):
            load_picture(manifest.training[0], manifest)

    def test_no_sheet_of_texts_or_nothing(self, tmp_path):
        (tmp_path / "t.csv").write_text("text,label\n" + "\n".join(f"t{n},a" for n in range(3)))
        built = build_manifest(OwnData(root=tmp_path / "t.csv", kind="csv", modality="report"), tmp_path / "m.json")
        with pytest.raises(InputError, match="texts have no contact sheet"):
            manifest_sheet(built.manifest, tmp_path / "sheet.png")

        empty = Manifest(name="e", version="1", modality="xray", licence="x", source="x", root=tmp_path)
        with pytest.raises(InputError, match="has no items"):
            manifest_sheet(empty, tmp_path / "sheet.png")
        assert group_sizes(empty) == (0, 0.0, 0)
