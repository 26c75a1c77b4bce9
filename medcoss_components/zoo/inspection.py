"""Static checks of a bundle's configs: nothing is built, nothing runs.

Every function returns the problems it finds as lines that name the place, so that a caller can show them all.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from medcoss_components.files import read_json

OVERLAYS = frozenset({"demo", "multi_gpu_train", "muscle_minus"})
"""Configs that are given behind train.json, never alone."""
ABOUT_KEYS = ("purpose", "prerequisite", "command", "override")
PART_KEYS = frozenset({"_target_", "_disabled_", "_requires_", "_desc_", "_mode_"})
RESERVED_KEYS = frozenset(
    {"run_id", "init_id", "final_id", "meta_file", "config_file", "logging_file", "tracking", "args_file"}
    | {"workflow_name", "workflow_type", "properties_path"}
)
"""Arguments of ``monai.bundle.run``, ``create_workflow`` and ``ConfigWorkflow``; they never reach the config."""

_REFERENCE = re.compile(r"@(\w+(?:(?:#|::)\w+)*)")
_ABSOLUTE = re.compile(
    r"^(/|~|[A-Za-z]:[\\/])"  # the whole text, or a text inside an expression that is not put behind another with +
    r"|(?:^|[^+\s'\"\w)\]]|\b(?:else|or|and|in))\s*['\"](?:/\w|~[/\w]|[A-Za-z]:[\\/])"
)
_FORBIDDEN = {"$import": re.compile(r"^\$\s*(import|from)\b"), "nccl": re.compile("nccl")}


def workflow_configs(bundle: str | Path) -> dict[str, dict[str, Any]]:
    """Every config of a bundle as it runs, by name; overlays are merged over train.json as MONAI does it."""
    from monai.bundle import ConfigParser

    folder = Path(bundle) / "configs"
    merged = {}
    for path in sorted(folder.glob("*.json")):
        if path.stem != "metadata":
            files = [folder / "train.json", path] if path.stem in OVERLAYS else [path]
            merged[path.stem] = ConfigParser.load_config_files([str(file) for file in files])
    return merged


def config_problems(config: Mapping[str, Any]) -> list[str]:
    """All problems of one merged config: targets, argument names, references, forbidden text, header."""
    checks: tuple[Callable[[Mapping[str, Any]], list[str]], ...] = (
        target_problems,
        reference_problems,
        text_problems,
        about_problems,
        reserved_problems,
    )
    return [problem for check in checks for problem in check(config)]


def iterate(content: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in a config with its place, such as ``train#trainer#seed``, containers before their content."""
    yield place, content
    if isinstance(content, Mapping | list):
        entries = content.items() if isinstance(content, Mapping) else enumerate(content)
        for key, value in entries:
            yield from iterate(value, f"{place}#{key}" if place else str(key))


def resolve_target(target: str) -> Callable[..., Any]:
    """What a ``_target_`` names, found as MONAI finds it.

    Raises:
        LookupError: there is no such name; the message shows it.
    """
    from monai.bundle import ConfigComponent
    from monai.utils import optional_import

    path = ConfigComponent({"_target_": target}).resolve_module_name()
    module, _, name = path.rpartition(".")
    found, exists = optional_import(module, name=name)
    if not exists or not callable(found):
        raise LookupError(f"{target} does not exist or cannot be called")
    return found


def full_signature(target: Callable[..., Any]) -> inspect.Signature:
    """The signature of a callable; where a class hands ``**options`` on, those of the class that it builds on belong to
    it."""
    signature = inspect.signature(target)
    for base in inspect.getmro(target)[1:-1] if inspect.isclass(target) else ():
        names = dict(signature.parameters)
        if "options" not in names or names["options"].kind is not inspect.Parameter.VAR_KEYWORD:
            break
        if "__init__" in vars(base):
            del names["options"]
            for name, entry in inspect.signature(base).parameters.items():
                handed_on = entry if entry.kind is entry.VAR_KEYWORD else entry.replace(kind=entry.KEYWORD_ONLY)
                names.setdefault(name, handed_on)
            signature = signature.replace(parameters=sorted(names.values(), key=lambda entry: entry.kind))
    return signature


def target_problems(config: Mapping[str, Any]) -> list[str]:
    """Targets that do not resolve, argument names that they do not take, and required arguments that are missing."""
    problems = []
    for place, part in iterate(config):
        if isinstance(part, Mapping) and "_target_" in part:
            problems += [f"{place}: {problem}" for problem in _part_problems(part)]
    return problems


def _part_problems(part: Mapping[str, Any]) -> list[str]:
    try:
        signature = full_signature(resolve_target(part["_target_"]))
    except (LookupError, ValueError) as error:
        return [str(error)]
    names = {key: None for key in part if key not in PART_KEYS}
    try:
        signature.bind(**names)
    except TypeError as error:
        return [f"{part['_target_']}: {error}"]
    return []


def reference_problems(config: Mapping[str, Any]) -> list[str]:
    """References ``@a#b`` to something that is not in the config."""
    places = {place for place, _ in iterate(config)}
    problems = []
    for place, text in iterate(config):
        if isinstance(text, str) and text.startswith(("@", "$")):
            wanted = (name.replace("::", "#") for name in _REFERENCE.findall(text))
            problems += [f"{place}: @{name} is not in the config" for name in wanted if name not in places]
    return problems


def text_problems(config: Mapping[str, Any]) -> list[str]:
    """Import expressions, a hard-coded nccl, absolute paths."""
    problems = []
    for place, text in iterate(config):
        if isinstance(text, str) and not place.startswith("about#"):
            problems += [f"{place}: {name} in {text!r}" for name, rule in _FORBIDDEN.items() if rule.search(text)]
            if _ABSOLUTE.search(text.removeprefix("$")):
                problems.append(f"{place}: absolute path in {text!r}")
    return problems


def about_problems(config: Mapping[str, Any]) -> list[str]:
    """A header that is not the first key or lacks one of its lines."""
    if next(iter(config), None) != "about":
        return ["about: must be the first key"]
    return [f"about: {key} is missing" for key in ABOUT_KEYS if not config["about"].get(key)]


def reserved_problems(config: Mapping[str, Any]) -> list[str]:
    """Settings that ``python -m monai.bundle run --<key>`` would keep for itself."""
    return [
        f"{key}: the command line of MONAI has an option of this name" for key in config if _is_reserved(config, key)
    ]


def _is_reserved(config: Mapping[str, Any], key: str) -> bool:
    return key in RESERVED_KEYS and not str(config[key]).startswith("@")


def bundle_problems(bundle: str | Path) -> list[str]:
    """Problems of the bundle as a folder: metadata against its schema, version in the changelog, README, LICENSE."""
    folder = Path(bundle)
    problems = missing_files(folder, ("docs/README.md", "LICENSE", "configs/metadata.json", "configs/logging.conf"))
    if (folder / "configs" / "metadata.json").is_file():
        problems += metadata_problems(read_json(folder / "configs" / "metadata.json"))
    return problems


def missing_files(bundle: Path, names: Iterable[str]) -> list[str]:
    """Files that a bundle should have and has not."""
    return [f"{bundle / name} is missing" for name in names if not (bundle / name).is_file()]


def metadata_problems(metadata: Mapping[str, Any]) -> list[str]:
    """Violations of the metadata schema, and a version that the changelog lacks."""
    return schema_problems(metadata) + changelog_problems(metadata)


def schema_problems(metadata: Mapping[str, Any]) -> list[str]:
    """Violations of the metadata schema."""
    from jsonschema.validators import validator_for

    schema = read_json(Path(__file__).parent / "schemas" / "bundle_meta_schema.json")
    errors = validator_for(schema)(schema).iter_errors(metadata)
    return [f"metadata {'#'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]


def changelog_problems(metadata: Mapping[str, Any]) -> list[str]:
    """A version that the changelog lacks."""
    version = metadata.get("version")
    if version in metadata.get("changelog", {}):
        return []
    return [f"metadata version {version!r} is not in the changelog"]
