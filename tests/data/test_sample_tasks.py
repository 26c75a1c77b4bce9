"""Labelled tasks of the sample: adapters on stand-ins, recipes as shipped, fetching, the real files if at hand."""

import gzip
import os
import zipfile
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from medcoss_components.data import sample
from medcoss_components.data.adapters import (
    sample_report,
    sample_task_drr,
    sample_task_pictures,
    sample_task_text,
    sample_task_volumes,
)
from medcoss_components.data.adapters.recipe import (
    Member,
    TaskRecipe,
    read_task_recipe,
    shipped_recipes,
    shipped_tasks,
)
from medcoss_components.data.drr import View, project
from medcoss_components.data.manifest import SPLITS, Item, check_manifest, read_manifest
from medcoss_components.data.readers import read_image, read_volume
from medcoss_components.data.synthetic import ellipse_mask
from medcoss_components.data.writers import write_dicom, write_nifti
from medcoss_components.errors import InputError
from medcoss_components.files import read_json

CACHE = Path(os.environ.get("MEDCOSS_SAMPLE_CACHE", "/nonexistent"))
TASKS = (
    *("ct_body_region", "ct_liver", "drr_body_regions", "drr_lungs", "drr_organs", "mri_tissue"),
    *("pathology_nuclei", "pathology_tissue", "pubmed_sections", "xray_body_part"),
)
ARTICLE = """<PubmedArticle><MedlineCitation><PMID>{pmid}</PMID><Article><Language>eng</Language><Abstract>
<AbstractText NlmCategory="METHODS">We measured all of {pmid} twice.</AbstractText>
<AbstractText NlmCategory="RESULTS">Group {pmid} had forty patients.</AbstractText>
<AbstractText>No section is given in {pmid} here.</AbstractText>
</Abstract></Article></MedlineCitation></PubmedArticle>"""


def all_items(items):
    return [(split, item) for split, entries in items.items() for item in entries]


@pytest.fixture
def pubmed(tmp_path):
    path = tmp_path / "some.xml.gz"
    articles = "".join(ARTICLE.format(pmid=1000 + number) for number in range(100))
    path.write_bytes(gzip.compress(f"<PubmedArticleSet>{articles}</PubmedArticleSet>".encode()))
    return {path.name: path}


class TestText:
    SETTINGS = {"testing_percent": 20, "validation_percent": 30, "minimum_words": 4}

    def test_labelled_sentences_by_abstract(self, pubmed, tmp_path):
        items = sample_task_text.convert(sources=pubmed, folder=tmp_path, settings=self.SETTINGS)
        assert Counter(item.label for _, item in all_items(items)) == {"METHODS": 100, "RESULTS": 100}
        groups = {split: {item.group for item in entries} for split, entries in items.items()}
        assert sum(map(len, groups.values())) == 100 and all(groups[split] for split in SPLITS)
        assert all(int(group, 16) % 100 < 20 for group in groups["testing"])
        assert all(20 <= int(group, 16) % 100 < 50 for group in groups["validation"])

    def test_pretraining_has_not_read_the_testing_abstracts(self, pubmed, tmp_path):
        items = sample_task_text.convert(sources=pubmed, folder=tmp_path, settings=self.SETTINGS)
        report = sample_report.convert(
            sources=pubmed, folder=tmp_path, settings={"validation_percent": 20, "minimum_words": 4}
        )
        read = {item.group for item in report["training"]}
        assert read and read.isdisjoint(item.group for item in items["testing"])
        labelled = [item for item in report["validation"] if item.label]
        assert sorted(item.id for item in labelled) == sorted(item.id for item in items["testing"])

    def test_shipped_percentages_agree(self):
        task, report = shipped_tasks()["pubmed_sections"], shipped_recipes()["report"]
        assert task.settings["testing_percent"] <= report.settings["validation_percent"]
        assert task.settings["minimum_words"] == report.settings["minimum_words"]
        assert task.packages == report.packages


@pytest.fixture
def field(tmp_path):
    """Colour picture (24, 40, 3) and its mask: left half 1, right half 3, top 4 rows unmarked."""
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (24, 40, 3), dtype=np.uint8)
    mask = np.repeat(np.array([[1, 3]], np.int32), 20, axis=1).repeat(24, axis=0)
    mask[:4] = 0
    paths = {"field.png": tmp_path / "field.png", "mask.npz": tmp_path / "mask.npz"}
    Image.fromarray(pixels).save(paths["field.png"])
    np.savez(paths["mask.npz"], kinds=mask)
    return paths, pixels, mask


def picture_settings(**changes):
    areas = [{"split": "training", "box": [0, 12, 0, 40], "overlap": 0}, {"split": "testing", "box": [12, 24, 0, 40]}]
    picture = {"file": "field.png", "subject": "f", "mask": {"file": "mask.npz", "array": "kinds"}, "areas": areas}
    return {"pictures": [picture], "sizes": [10], "overlap": 0.5} | changes


class TestPictures:
    def convert(self, sources, folder, settings):
        folder = folder / "out"
        folder.mkdir()
        return sample_task_pictures.convert(sources=sources, folder=folder, settings=settings), folder

    def test_mask_files_are_the_pieces_of_the_mask(self, field, tmp_path):
        sources, pixels, mask = field
        items, folder = self.convert(sources, tmp_path, picture_settings())
        assert {split: len(entries) for split, entries in items.items()} == {
            "training": 2 * 4,
            "validation": 0,
            "testing": 2 * 7,
        }
        for split, item in all_items(items):
            row, column = int(item.id[-9:-5]), int(item.id[-4:])
            assert item.id == f"f-{split}-s10y{row:04d}x{column:04d}" and item.group == f"f-{split}"
            np.testing.assert_array_equal(read_image(item.image).array, pixels[row : row + 10, column : column + 10])
            np.testing.assert_array_equal(
                read_image(folder / item.label).array, mask[row : row + 10, column : column + 10]
            )

    def test_class_by_mask_leaves_mixed_and_unmarked_tiles_out(self, field, tmp_path):
        rule = {"values": {"stroma": [1], "tumour": [3]}, "least_share": 0.7, "least_cover": 0.65}
        settings = picture_settings(classes=rule)
        settings["pictures"][0]["areas"][0]["box"] = [0, 10, 0, 40]  # 60 % of a tile is marked there
        items, folder = self.convert(field[0], tmp_path, settings)
        assert items["training"] == []
        columns = {item.label: sorted({int(item.id[-4:]) for item in items["testing"]}) for item in items["testing"]}
        assert set(columns) == {"stroma", "tumour"}
        assert Counter(item.label for item in items["testing"]) == {"stroma": 2 * 3, "tumour": 2 * 3}
        assert sorted({int(item.id[-4:]) for item in items["testing"]}) == [0, 5, 10, 20, 25, 30]
        assert not (folder / "masks").exists()

    def test_grey_picture_with_one_class_is_stretched(self, tmp_path):
        ramp = np.arange(24 * 40, dtype=np.uint16).reshape(24, 40)
        write_dicom(tmp_path / "film.dcm", ramp, modality="CR")
        settings = picture_settings()
        del settings["pictures"][0]["mask"]
        settings["pictures"][0] |= {"file": "film.dcm", "label": "leg"}
        items, _ = self.convert({"film.dcm": tmp_path / "film.dcm"}, tmp_path, settings)
        assert {item.label for _, item in all_items(items)} == {"leg"}
        values = read_image(items["testing"][0].image).array
        assert values.dtype == np.uint16 and values.shape == (10, 10)
        assert values.max() > 40_000

    def test_unmarked_tile_has_no_class(self):
        empty = np.zeros((4, 5), np.uint8)
        assert sample_task_pictures.class_of_mask(empty, values={"a": [1]}, least_share=0, least_cover=0) is None

    def test_boxes_stay_inside_the_area(self):
        area = [3, 29, 7, 50]
        seen = np.zeros((40, 60), bool)
        for _, box in sample_task_pictures.square_boxes(area, sizes=[8, 20, 99], overlap=0.3):
            seen[box] = True
        wanted = np.zeros_like(seen)
        wanted[3:29, 7:50] = True
        np.testing.assert_array_equal(seen, wanted)


SHAPE, SPACING = (20, 36, 44), (2.5, 1.5, 1.5)


@pytest.fixture
def ct(tmp_path):
    """Sources: a body with one lung along z, and its mask file (7 = lung)."""
    volume = np.full(SHAPE, -1000, np.int16)
    volume[ellipse_mask(SHAPE, (10, 18, 22), (1e6, 13, 18))] = 40
    lung = ellipse_mask(SHAPE, (10, 18, 20), (7, 5, 6))
    volume[lung] = -800
    paths = {name: tmp_path / name for name in ("ct.nii.gz", "mask.nii.gz")}
    write_nifti(paths["ct.nii.gz"], volume, SPACING)
    write_nifti(paths["mask.nii.gz"], lung.astype(np.uint8) * 7, SPACING)
    return paths, volume, lung


class TestVolumes:
    SETTINGS = {"file": "ct.nii.gz", "subject": "s", "above": -400, "margin": 1}

    def convert(self, sources, folder, **settings):
        folder = folder / "out"
        folder.mkdir()
        return sample_task_volumes.convert(sources=sources, folder=folder, settings=self.SETTINGS | settings), folder

    def test_mask_slabs_lie_where_the_image_does(self, ct, tmp_path):
        sources, volume, lung = ct
        blocks = [{"split": "testing", "slices": [2, 9]}, {"split": "training", "slices": [10, 20]}]
        masks = [{"file": "mask.nii.gz", "values": [7], "write": 1}, {"file": "ct.nii.gz", "above": 0, "write": 2}]
        items, folder = self.convert(sources, tmp_path, blocks=blocks, masks=masks)
        assert [(split, item.id, item.group) for split, item in all_items(items)] == [
            ("training", "s-training-z010", "s-training"),
            ("testing", "s-testing-z002", "s-testing"),
        ]
        for (_, item), (first, end) in zip(all_items(items), ((10, 20), (2, 9)), strict=True):
            image, mask = read_volume(item.image), read_volume(folder / item.label)
            np.testing.assert_array_equal(image.affine, mask.affine)
            column, row, z = (np.linalg.inv(read_volume(sources["ct.nii.gz"]).affine) @ image.affine)[:3, 3].round()
            assert (z, image.spacing) == (first, SPACING)
            box = (slice(first, end), slice(int(row), None), slice(int(column), None))
            height, width = image.array.shape[1:]
            np.testing.assert_array_equal(image.array, volume[box][:, :height, :width])
            wanted = np.where(volume > 0, 2, lung)[box][:, :height, :width]
            np.testing.assert_array_equal(mask.array, wanted)
            assert mask.array.max() == 2

    def test_classes_of_overlapping_slabs(self, ct, tmp_path):
        blocks = [
            {"split": "training", "slices": [0, 8], "slab": 4, "step": 2, "label": "low"},
            {"split": "validation", "slices": [8, 20], "slab": 4, "label": "high"},
        ]
        items, folder = self.convert(ct[0], tmp_path, blocks=blocks)
        assert [(item.id, item.label) for item in items["training"]] == [
            (f"s-training-z{first:03d}", "low") for first in (0, 2, 4)
        ]
        assert [item.id[-3:] for item in items["validation"]] == ["008", "012", "016"]
        assert {len(read_volume(item.image).array) for _, item in all_items(items)} == {4}
        assert not (folder / "masks").exists()


class TestDrr:
    SETTINGS = {
        **{"file": "ct.nii.gz", "subject": "s", "turns": 12, "leans": [0, 5], "voxel": 3.0},
        "mask": {"file": "mask.nii.gz", "values": [7], "least_path": 4.0},
        "sectors": {"training": [60, 150], "validation": [30, 45], "testing": [-10, 10]},
    }

    def test_pairs_of_picture_and_mask(self, ct, tmp_path):
        folder = tmp_path / "out"
        folder.mkdir()
        items = sample_task_drr.convert(sources=ct[0], folder=folder, settings=self.SETTINGS)
        turns = {split: sorted({int(item.id[10:13]) % 180 for item in entries}) for split, entries in items.items()}
        assert turns == {"training": [60, 75, 90, 105, 120, 135, 150], "validation": [30, 45], "testing": [0]}
        for split, item in all_items(items):
            assert item.group == f"s-drr-{split}" and item.id.startswith("s-drr-turn")
            grey, mask = read_image(item.image).array, read_image(folder / item.label).array
            assert grey.shape == mask.shape and grey.dtype == np.uint16
            assert set(np.unique(mask)) == {0, 1} and 0.02 < mask.mean() < 0.5
            assert grey[mask == 1].min() > 0

    def test_same_rays_as_one_by_one(self):
        generator = torch.Generator().manual_seed(0)
        solids = [torch.rand((5, 7, 9), generator=generator) for _ in range(2)]
        views = [View(turn=10), View(turn=100), View(turn=40, lean=6), View(turn=0)]
        together = list(sample_task_drr.project_together(solids, views, voxel=2.0))
        for view, lines in zip(views, together, strict=True):
            for solid, line in zip(solids, lines, strict=True):
                np.testing.assert_allclose(line, project(solid, view, voxel=2.0).numpy(), rtol=1e-6)


class TestRecipes:
    def test_names(self):
        assert tuple(shipped_tasks()) == TASKS
        assert set(shipped_recipes()) == {"report", "xray", "ct", "mri", "pathology"}

    @pytest.mark.parametrize("name", TASKS)
    def test_recipe_is_complete_and_honest(self, name):
        recipe = shipped_tasks()[name]
        assert recipe.folder == f"tasks/{name}"
        assert recipe.load_adapter().__name__ == "convert"
        assert set(recipe.expected) == set(SPLITS) and min(recipe.expected.values()) > 0
        assert all(len(text) > 10 for text in (recipe.licence, recipe.attribution, recipe.split, recipe.layout))
        assert ("Smoke test, not a result" in recipe.description) == (name != "pubmed_sections")
        assert name == "pubmed_sections" or any(
            word in recipe.split for word in ("One person", "same two", "same person", "One field", "One averaged")
        )

    def test_pins_are_those_of_the_sample(self):
        pins = {}
        for recipe in [*shipped_recipes().values(), *shipped_tasks().values()]:
            for member in (m for package in recipe.packages for m in package.members):
                assert pins.setdefault(member.path, member) == member

    @pytest.mark.parametrize(
        "name", ["drr_body_regions", *(name for name in TASKS if name.startswith(("xray", "pathology")))]
    )
    def test_no_pixel_is_in_two_areas(self, name):
        settings = shipped_tasks()[name].settings
        for picture in settings.get("acquired", settings)["pictures"]:
            assert {area["split"] for area in picture["areas"]} == set(SPLITS)
            for one, other in combinations([area["box"] for area in picture["areas"]], 2):
                assert one[1] <= other[0] or other[1] <= one[0] or one[3] <= other[2] or other[3] <= one[2]

    @pytest.mark.parametrize("name", ["ct_body_region", "ct_liver", "mri_tissue"])
    def test_no_slice_is_in_two_blocks(self, name):
        blocks = sorted(block["slices"] for block in shipped_tasks()[name].settings["blocks"])
        assert all(first[1] <= second[0] for first, second in zip(blocks, blocks[1:], strict=False))

    @pytest.mark.parametrize("name", ["drr_body_regions", "drr_lungs", "drr_organs"])
    def test_sectors_are_ten_degrees_apart(self, name):
        settings = shipped_tasks()[name].settings
        covered = {split: set() for split in SPLITS}
        for split, given in settings.get("drr", settings)["sectors"].items():
            for first, last in given if isinstance(given[0], list) else [given]:
                covered[split] |= {turn % 180 for turn in range(first, last + 1)}
        assert all(covered.values())
        for one, other in combinations(covered.values(), 2):
            assert min(min((a - b) % 180, (b - a) % 180) for a in one for b in other) >= 10

    @pytest.mark.parametrize(
        "changes",
        [
            {"task": "detection"},
            {"classes": ()},
            {"regions": {"lungs": [1]}},
            {"task": "segmentation"},
            {"categories": ("heart",)},
            {"task": "sorting"},
        ],
    )
    def test_labels_that_do_not_fit_the_task(self, changes):
        with pytest.raises(InputError, match=f"(task|got) {changes.get('task', 'classification')!r}"):
            replace(shipped_tasks()["xray_body_part"], **changes)

    def test_unknown_key(self, tmp_path):
        (tmp_path / "recipe.yaml").write_text("{name: half, packages: [], classes: [a]}")
        with pytest.raises(InputError, match="'half'.*task"):
            read_task_recipe(tmp_path / "recipe.yaml")

    def test_every_split_has_every_class(self):
        recipe = shipped_tasks()["ct_body_region"]
        item = [Item(label, image=Path("a"), label=label, group="g") for label in ("abdomen", "chest")]
        recipe.check_labels({"training": item, "testing": item})
        with pytest.raises(InputError, match=r"testing must have the classes \['abdomen', 'chest'\], got \['chest'\]"):
            recipe.check_labels({"training": item, "testing": item[1:]})


@pytest.fixture
def stand_in(field, tmp_path):
    """({task: recipe}, cache) with one pathology task in a wheel of a few kilobytes."""
    sources, _, _ = field
    cache = tmp_path / "cache"
    cache.mkdir()
    recipe: TaskRecipe = shipped_tasks()["pathology_nuclei"]
    package, members = recipe.packages[0], []
    with zipfile.ZipFile(cache / "histolytics-0.3.0-py3-none-any.whl", "w") as wheel:
        for path in sources.values():
            wheel.writestr(f"data/{path.name}", content := path.read_bytes())
            digest = sha256(content).hexdigest()
            members.append(Member(path=f"data/{path.name}", bytes=len(content), sha256=digest))
    settings = picture_settings(sizes=[12])
    packages = (replace(package, members=tuple(members)),)
    small = replace(recipe, packages=packages, settings=settings, expected={"training": 4, "testing": 6})
    return {"pathology_nuclei": small}, cache


class TestFetch:
    def test_whole_path(self, stand_in, tmp_path, capsys):
        recipes, cache = stand_in
        paths = sample.fetch_tasks(tmp_path, ["all"], cache, recipes=recipes)
        assert paths == {"pathology_nuclei": tmp_path / "tasks" / "pathology_nuclei" / "manifest.json"}
        manifest = read_manifest(paths["pathology_nuclei"])
        assert manifest.counts == {"training": 4, "validation": 0, "testing": 6}
        errors = [problem for problem in check_manifest(manifest, workers=1) if problem.severity == "error"]
        assert errors == []
        assert all((manifest.root / item.label).is_file() for item in manifest.training)
        text = (tmp_path / "tasks" / "ATTRIBUTION.md").read_text()
        assert "**tasks/pathology_nuclei** (histolytics==0.3.0)" in text and text in capsys.readouterr().out
        assert not (tmp_path / "ATTRIBUTION.md").exists()

    def test_complete_task_is_left_alone_and_a_changed_one_made_again(self, stand_in, tmp_path):
        recipes, cache = stand_in
        marker = tmp_path / "tasks" / "pathology_nuclei" / "sample.json"
        sample.fetch_tasks(tmp_path, None, cache, recipes=recipes)
        before = marker.stat().st_mtime_ns
        sample.fetch_tasks(tmp_path, ["pathology_nuclei"], cache / "absent", recipes=recipes)
        assert marker.stat().st_mtime_ns == before
        changed = {"pathology_nuclei": replace(recipes["pathology_nuclei"], version="2")}
        sample.fetch_tasks(tmp_path, None, cache, recipes=changed)
        assert read_json(marker)["recipe"] == changed["pathology_nuclei"].hash

    def test_labels_are_checked(self, stand_in, tmp_path):
        recipes, cache = stand_in
        wrong = replace(recipes["pathology_nuclei"], task="classification", classes=("a",), regions={})
        with pytest.raises(InputError, match=r"must have the classes \['a'\], got \['masks/"):
            sample.fetch_tasks(tmp_path, None, cache, recipes={"pathology_nuclei": wrong})
        assert not (tmp_path / "tasks" / "pathology_nuclei").exists()

    def test_unknown_task(self, tmp_path):
        with pytest.raises(InputError, match="tasks: no sample for 'heart'; there are samples for ct_body_region"):
            sample.fetch_tasks(tmp_path, ["heart"])


@pytest.mark.slow
@pytest.mark.skipif(not CACHE.is_dir(), reason="set MEDCOSS_SAMPLE_CACHE to a folder with the five sample wheels")
def test_real_tasks(tmp_path):
    for name, path in sample.fetch_tasks(tmp_path, cache=CACHE).items():
        manifest = read_manifest(path)
        errors = [problem for problem in check_manifest(manifest) if problem.severity == "error"]
        assert errors == [], name
