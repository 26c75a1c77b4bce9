"""The recipe of a published data set: where it is, its terms and layout, how it is split, what counts are published."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from medcoss_components.data.adapters.findings import DatasetSource, Findings
from medcoss_components.data.adapters.recipe import (
    adapter_module,
    read_recipe_content,
    recipe_files,
    require_labels_of_task,
    without_empty_categories,
)
from medcoss_components.data.copies import DUPLICATES
from medcoss_components.data.manifest import SPLITS
from medcoss_components.data.modalities import get_modality
from medcoss_components.errors import InputError
from medcoss_components.files import sha256_json

TASKS = ("pretraining", "classification", "segmentation", "detection")
SPLIT_BY = ("published", "patients", "as_published")
"""Ways to split: the publisher's lists, each patient in one of them; anew by patient; the lists as they are."""
ALL = "all"


@dataclass(frozen=True, kw_only=True)
class DatasetRecipe:
    """A published data set; the fields are the keys of its YAML file.

    Args:
        name: file name of the recipe.
        title, description, notes: for people; ``notes`` tells defects of the data set and what is done about them.
        modality: registered name.
        version: of our reading of the data set.
        task: one of :data:`TASKS`.
        bundle: bundle that the data set feeds.
        classes, regions, categories: of a classification, a segmentation or a detection, as in that bundle.
        source, access, licence, citation, attribution: where it is, how one gets it, its terms.
        intensity_unit: "HU", "a.u.", "8-bit sRGB" or "text".
        layout: tree of files as the publisher ships it.
        groups, split: what identifies a patient; how the publisher splits and what we do with it.
        split_by: default way to split, one of :data:`SPLIT_BY`.
        shares: of training, validation and testing where items are split by patients.
        duplicates: what happens to equal contents, "drop" or "keep".
        adapter: module with ``find(source)``.
        settings: defaults of what a caller may change.
        settings_help: what each of them means, in a line.
        preparation: settings of the store that go into the manifest.
        expected: split (or "all") -> {"items": count, "labels": {class: count}}, as published.
        expected_source: where these counts are published.

    Raises:
        InputError: a value outside its range; name and value are shown.
    """

    name: str
    title: str
    modality: str
    version: str
    task: str
    bundle: str
    description: str
    source: str
    access: str
    licence: str
    citation: str
    attribution: str
    intensity_unit: str
    layout: str
    groups: str
    split: str
    adapter: str
    classes: tuple[str, ...] = ()
    regions: dict[str, Any] = field(default_factory=dict)
    categories: tuple[str, ...] = ()
    split_by: str = "published"
    shares: tuple[float, float, float] = (80, 0, 20)
    duplicates: str = "drop"
    settings: dict[str, Any] = field(default_factory=dict)
    settings_help: dict[str, str] = field(default_factory=dict)
    preparation: dict[str, Any] = field(default_factory=dict)
    expected: dict[str, dict[str, Any]] = field(default_factory=dict)
    expected_source: str = ""
    notes: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "categories", tuple(self.categories))
        object.__setattr__(self, "shares", tuple(self.shares))
        get_modality(self.modality)
        _check_choices(self)
        _check_keys(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> DatasetRecipe:
        """Build a recipe from the YAML content.

        Raises:
            InputError: unknown or missing keys, or a value outside its range.
        """
        known = [entry.name for entry in fields(cls)]
        try:
            return cls(**content)
        except TypeError as error:
            raise InputError(
                f"recipe {content.get('name', '?')!r}: {error}. The keys are {', '.join(known)}."
            ) from error

    @property
    def hash(self) -> str:
        """SHA-256 of the whole recipe; the adapter's code is not part of it: change ``version`` when that changes."""
        return sha256_json(without_empty_categories(asdict(self)))

    def load_adapter(self) -> Callable[[DatasetSource], Findings]:
        """The function ``find(source)`` of the module that ``adapter`` names.

        Raises:
            InputError: a module outside :mod:`medcoss_components.data.adapters`, or none of that name.
        """
        return adapter_module(self.name, self.adapter).find


def _check_choices(recipe: DatasetRecipe) -> None:
    allowed = {"task": TASKS, "split_by": SPLIT_BY, "duplicates": DUPLICATES[1:]}
    for key, choices in allowed.items():
        if (value := getattr(recipe, key)) not in choices:
            raise InputError(f"recipe {recipe.name}: {key} must be one of {', '.join(choices)}, got {value!r}.")
    require_labels_of_task(recipe)


def _check_keys(recipe: DatasetRecipe) -> None:
    if odd := sorted(set(recipe.settings) ^ set(recipe.settings_help)):
        raise InputError(f"recipe {recipe.name}: settings and settings_help must have the same keys; differing: {odd}.")
    if unknown := sorted(set(recipe.expected) - {*SPLITS, ALL}):
        raise InputError(f"recipe {recipe.name}: expected knows {', '.join((*SPLITS, ALL))}, got {unknown}.")


def read_dataset_recipe(path: str | Path) -> DatasetRecipe:
    """Read the recipe file of a published data set.

    Raises:
        InputError: missing file, broken YAML, or a content that is no such recipe.
    """
    return DatasetRecipe.from_dict(read_recipe_content(path))


def shipped_datasets() -> dict[str, DatasetRecipe]:
    """The recipes of published data sets in the package, by name."""
    recipes = [read_dataset_recipe(path) for path in recipe_files(sample=False)]
    return {recipe.name: recipe for recipe in recipes}


def dataset_recipe(name: str) -> DatasetRecipe:
    """The shipped recipe of a name; dashes count as underscores.

    Raises:
        InputError: no such recipe; the known names are listed.
    """
    paths = {path.stem: path for path in recipe_files(sample=False)}  # one is read: all of them take a second
    if (key := name.replace("-", "_").lower()) not in paths:
        raise InputError(f"dataset: there is no recipe {name!r}; there are {', '.join(paths)}.")
    return read_dataset_recipe(paths[key])
