"""Labelled tasks of the sample on DRRs: boxes of organs and body regions, on a small stand-in for the CT."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from medcoss_components.data.adapters import sample_task_drr, sample_task_drr_organs, sample_task_drr_regions
from medcoss_components.data.adapters.recipe import shipped_tasks, without_empty_categories
from medcoss_components.data.drr import View, project
from medcoss_components.data.manifest import SPLITS, Item
from medcoss_components.data.readers import read_image
from medcoss_components.data.sample import convert_sample
from medcoss_components.data.synthetic import ellipse_mask
from medcoss_components.data.writers import write_dicom, write_nifti
from medcoss_components.errors import InputError
from medcoss_components.files import read_json

SHAPE, SPACING = (20, 36, 44), (3.0, 3.0, 3.0)
SECTORS = {"training": [[60, 105], [135, 150]], "validation": [[30, 45]], "testing": [-10, 10]}
HEART, LIVER = 51, 5


@pytest.fixture
def ct(tmp_path):
    """Sources: a body along z with a heart in the upper half to the left and a liver in the lower to the right."""
    volume = np.full(SHAPE, -1000, np.int16)
    volume[ellipse_mask(SHAPE, (10, 18, 22), (1e6, 13, 18))] = 40
    mask = np.zeros(SHAPE, np.uint8)
    mask[11:15, 14:22, 24:32] = HEART
    mask[2:8, 12:22, 10:22] = LIVER
    mask[8:9, 18:19, 30:31] = 1  # a speck of spleen
    paths = {name: tmp_path / name for name in ("ct.nii.gz", "mask.nii.gz", "film.dcm")}
    write_nifti(paths["ct.nii.gz"], volume, SPACING)
    write_nifti(paths["mask.nii.gz"], mask, SPACING)
    ramp = np.random.default_rng(0).integers(0, 4000, (40, 60)).astype(np.uint16)
    write_dicom(paths["film.dcm"], ramp, modality="CR")
    return paths, mask


def convert(module, sources, folder, settings):
    folder = folder / "out"
    folder.mkdir()
    return module.convert(sources=sources, folder=folder, settings=settings)


class TestViews:
    def test_several_sectors_of_a_split(self):
        views = sample_task_drr.views_by_split(turns=12, leans=[0], sectors=SECTORS)
        turns = {split: sorted({view.turn % 180 for name, view in views if name == split}) for split in SPLITS}
        assert turns == {"training": [60, 90, 150], "validation": [30], "testing": [0]}
        assert len(views) == 10  # a view and its opposite

    def test_empty_slices_cost_nothing_and_change_nothing(self):
        solid = torch.zeros(9, 7, 8)
        solid[2:5] = torch.rand((3, 7, 8), generator=torch.Generator().manual_seed(0))
        (line,) = next(sample_task_drr.project_together([solid], [View(turn=20)], voxel=2.0))
        np.testing.assert_allclose(line, project(solid, View(turn=20), voxel=2.0).numpy(), rtol=1e-6)
        assert line[4:7].min() > 0 and line[:4].max() == 0 and line[7:].max() == 0  # row 0 is the head
        (line,) = next(sample_task_drr.project_together([0 * solid], [View(turn=20)], voxel=2.0))
        assert line.shape == (9, 8) and line.max() == 0


ORGANS = {
    **{"file": "ct.nii.gz", "subject": "s", "turns": 12, "leans": [0], "voxel": 3.0, "sectors": SECTORS},
    "organs": {
        **{"file": "mask.nii.gz", "least_path": 5.0, "least_side": 3},
        "values": {"heart": [HEART], "liver": [LIVER], "spleen": [1]},
    },
    "parts": {
        "whole": {"rows": [0, 1], "every": 1, "body_part": "trunk"},
        "upper": {"rows": [0, 0.2], "every": 3, "body_part": "chest"},
    },
}


class TestOrgans:
    def test_boxes_of_the_frontal_view(self, ct, tmp_path):
        items = convert(sample_task_drr_organs, ct[0], tmp_path, ORGANS)
        item = next(item for item in items["testing"] if item.id == "s-drr-turn000-lean+00-whole")
        boxes = {entry["category"]: entry["box"] for entry in item.label}
        assert set(boxes) == {"heart", "liver"}  # the spleen is smaller than least_side
        # slices 11 .. 14 of 20 are rows 5 .. 8 from the head; the ray from the source widens columns by up to a pixel
        heart, liver = boxes["heart"], boxes["liver"]
        assert heart[1::2] == [5, 9] and liver[1::2] == [12, 18]
        assert np.abs(np.subtract(heart[::2], [24, 32])).max() <= 1
        assert np.abs(np.subtract(liver[::2], [10, 22])).max() <= 1
        assert (item.group, item.body_part) == ("s-drr-testing", "trunk")
        assert all(type(side) is int for side in heart)

    def test_boxes_surround_the_projected_mask(self, ct, tmp_path):
        items = convert(sample_task_drr_organs, ct[0], tmp_path, ORGANS)
        solid = torch.from_numpy((ct[1] == LIVER).astype(np.float32))
        for entry in (item for item in items["training"] if item.id.endswith("-whole")):
            view = View(turn=float(entry.id[10:13]))
            rows, columns = np.nonzero(project(solid, view, voxel=3.0).numpy() > 5.0)
            wanted = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert next(box["box"] for box in entry.label if box["category"] == "liver") == wanted

    def test_a_part_without_organs_has_an_empty_list(self, ct, tmp_path):
        items = convert(sample_task_drr_organs, ct[0], tmp_path, ORGANS)
        counts = {split: Counter(item.id.rsplit("-", 1)[1] for item in entries) for split, entries in items.items()}
        assert counts == {
            "training": {"whole": 6, "upper": 2},
            "validation": {"whole": 2, "upper": 1},
            "testing": {"whole": 2, "upper": 1},
        }
        upper = [item for item in items["training"] if item.id.endswith("upper")]
        assert [item.label for item in upper] == [[], []] and {item.body_part for item in upper} == {"chest"}
        assert read_image(upper[0].image).array.shape == (4, 44) and read_image(upper[0].image).array.max() > 0

    def test_nearest_takes_the_value_at_the_centre(self):
        mask = np.random.default_rng(0).integers(0, 9, (4, 5, 6))
        np.testing.assert_array_equal(sample_task_drr_organs.nearest(mask, mask.shape), mask)
        doubled = mask.repeat(2, 0).repeat(2, 1).repeat(2, 2)
        np.testing.assert_array_equal(sample_task_drr_organs.nearest(mask, doubled.shape), doubled)


REGIONS = {
    "acquired": {
        "pictures": [
            {
                **{"file": "film.dcm", "subject": "leg", "label": "lower_leg"},
                "areas": [
                    {"split": split, "box": [0, 40, 20 * number, 20 * number + 20]}
                    for number, split in enumerate(SPLITS)
                ],
            }
        ],
        **{"sizes": [16], "overlap": 0},
    },
    "drr": {
        **{"file": "ct.nii.gz", "subject": "s", "turns": 12, "leans": [0], "voxel": 3.0, "sectors": SECTORS},
        **{"crop": 30, "overlap": 0.5},
        "regions": {"abdomen": {"band": [0, 30]}, "shoulder": {"band": [30, 60], "sides": True}},
    },
}


class TestRegions:
    def test_crops_of_computed_and_acquired_pictures(self, ct, tmp_path):
        items = convert(sample_task_drr_regions, ct[0], tmp_path, REGIONS)
        for split, entries in items.items():
            labels = Counter(item.label for item in entries)
            assert set(labels) == {"abdomen", "shoulder", "lower_leg"}
            views = {"training": 6, "validation": 2, "testing": 2}[split]
            assert labels["shoulder"] == 2 * views and labels["abdomen"] > labels["shoulder"]
            for item in entries:
                assert item.body_part == item.label
                assert ("drr" in item.id) == (item.label != "lower_leg")
                side = 16 if item.label == "lower_leg" else 10
                assert read_image(item.image).array.shape == (side, side)

    def test_bands_and_columns(self):
        line = np.zeros((20, 40))
        line[:, 12:32] = 1.0
        line[:10, 10:12] = 1.0  # the upper half is wider
        found = list(sample_task_drr_regions.region_boxes(line, REGIONS["drr"]))
        shoulders = [box for region, _, box in found if region == "shoulder"]
        assert [(box[0], box[1]) for box in shoulders] == [
            (slice(0, 10), slice(10, 20)),
            (slice(0, 10), slice(22, 32)),
        ]
        abdomen = [box for region, _, box in found if region == "abdomen"]
        assert {(box[0].start, box[0].stop) for box in abdomen} == {(10, 20)}
        assert [box[1].start for box in abdomen] == [12, 17, 22]

    def test_a_body_narrower_than_a_crop_takes_the_whole_width(self):
        line = np.zeros((20, 14))
        line[:, 5:8] = 1.0
        columns = {box[1].start for _, _, box in sample_task_drr_regions.region_boxes(line, REGIONS["drr"])}
        assert min(columns) == 0 and max(columns) == 4
        assert sample_task_drr_regions._columns(np.zeros((2, 14)), 10) == (0, 14)


class TestRecipes:
    def test_a_manifest_with_boxes(self, ct, tmp_path):
        recipe = replace(
            shipped_tasks()["drr_organs"],
            settings=ORGANS,
            categories=("heart", "liver"),
            expected={"training": 8, "validation": 3, "testing": 3},
        )
        path = convert_sample(recipe, sources=ct[0], folder=tmp_path / "drr_organs")
        entries = read_json(path)["training"]
        assert {entry["body_part"] for entry in entries} == {"trunk", "chest"}
        assert [entry["label"] for entry in entries if entry["body_part"] == "chest"] == [[], []]
        assert all(len(box["box"]) == 4 for entry in entries for box in entry["label"])

    def test_every_split_has_boxes_of_every_category(self):
        recipe = shipped_tasks()["drr_organs"]
        label = [{"box": [0, 0, 1, 1], "category": name} for name in recipe.categories]
        item = Item("a", image=Path("a"), label=label, group="g")
        recipe.check_labels({"training": [item], "testing": [replace(item, label=[]), item]})
        with pytest.raises(InputError, match=r"testing must have the categories \['heart', .*, got \['heart'\]"):
            recipe.check_labels({"testing": [replace(item, label=label[:1])]})

    def test_hashes_are_those_of_before_there_were_categories(self):
        assert without_empty_categories({"a": 1, "categories": ()}) == {"a": 1}
        assert without_empty_categories({"categories": ("a",)}) == {"categories": ("a",)}
        before = shipped_tasks()["drr_organs"]
        assert replace(before, categories=before.categories[:2]).hash != before.hash

    @pytest.mark.parametrize("name", ["drr_organs", "drr_body_regions"])
    def test_shipped_recipes_are_those_of_the_folder_for_people(self, name):
        root, file = Path(__file__).resolve().parents[2], f"sample_task_{name}.yaml"
        shipped = root / "medcoss_components/data/recipes" / file
        assert shipped.read_bytes() == (root / "data_manifests/recipes" / file).read_bytes()
