"""The pages of the data sets are what the recipes say."""

from __future__ import annotations

from pathlib import Path

import pytest

from medcoss_components.data.adapters.dataset_recipe import shipped_datasets
from medcoss_components.data.dataset_pages import dataset_page, index_page, require_current_pages, write_pages
from medcoss_components.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
RECIPES = shipped_datasets()


def test_shipped_pages_are_current():
    require_current_pages(ROOT / "docs" / "data")


def test_pages_are_written_checked_and_removed(tmp_path):
    written = write_pages(tmp_path)
    assert {path.name for path in written} == {f"{name}.md" for name in RECIPES} | {"README.md"}
    assert write_pages(tmp_path) == []
    require_current_pages(tmp_path)
    page = (tmp_path / "lits.md").read_text(encoding="utf-8")
    (tmp_path / "lits.md").write_text(f"{page}changed", encoding="utf-8")
    (tmp_path / "gone.md").write_text(page, encoding="utf-8")
    with pytest.raises(InputError, match=r"out of date: lits.md, gone.md. Run `medcoss manifest pages"):
        require_current_pages(tmp_path)
    assert [path.name for path in write_pages(tmp_path)] == ["lits.md", "gone.md"]
    assert not (tmp_path / "gone.md").exists()


@pytest.mark.parametrize("name", ["README.md", "guide.md"])
def test_pages_of_others_are_never_removed(tmp_path, name):
    (tmp_path / name).write_text("written by hand")
    with pytest.raises(InputError, match=rf"{name}: was not written by `medcoss manifest pages`"):
        write_pages(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "written by hand"


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_page_has_source_licence_layout_command_and_counts(name):
    recipe = RECIPES[name]
    page = dataset_page(recipe)
    words = (recipe.source, f"--dataset {name}", *recipe.layout.split("\n"), "Licence:", "## Patients and splits")
    assert all(word.strip() in page for word in words)
    assert all(f"| `{key}` |" in page for key in recipe.settings)
    for counts in recipe.expected.values():
        assert f"| {counts['items']:,} |" in page
    assert ("--contact-sheet" in page) == (recipe.modality != "report")  # texts have none
    assert (ROOT / "bundles" / recipe.bundle / "bundle.yaml").is_file()
    assert f"[`{name}`]({name}.md)" in index_page(RECIPES)


@pytest.mark.parametrize("name", list(RECIPES))
def test_recipes_fit_their_bundles(name):
    import yaml

    recipe = RECIPES[name]
    bundle = yaml.safe_load((ROOT / "bundles" / recipe.bundle / "bundle.yaml").read_text(encoding="utf-8"))
    values = bundle["values"]
    assert values["modality"] == recipe.modality
    feeding = {other for other, entry in RECIPES.items() if entry.bundle == recipe.bundle}
    assert feeding & {values.get("folder"), values.get("dataset")}  # its documents show one of its data sets
    assert list(recipe.classes) == values.get("classes", []) and recipe.regions == values.get("regions", {})
    assert list(recipe.categories) == values.get("categories", [])
    copy = ROOT / "data_manifests" / "recipes" / f"{name}.yaml"
    shipped = ROOT / "medcoss_components" / "data" / "recipes" / f"{name}.yaml"
    assert copy.read_bytes() == shipped.read_bytes()


def test_a_page_says_what_boxes_are_around():
    assert "| task | detection, boxes of: tuberculosis |" in dataset_page(RECIPES["tbx11k"])
