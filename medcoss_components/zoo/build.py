"""Generate the files of every bundle from the shared templates and the bundle's own short ``bundle.yaml``.

No template language: ``${name}`` is replaced by a value, mappings are merged, and a key whose value is ``${absent}`` is
left out (so that a bundle can do without a key of its template).

``bundle.yaml`` has these keys::

    name: medcoss_xray_pretraining      # the folder's name
    family: pretraining                 # templates pretraining.<output> are used, on top of common.<output>
    values: {modality: xray, ...}       # what ${modality} in a template becomes
    configs: {train: {batch_size: 64}}  # merged over the template of configs/train.json
    also: {stage: pretraining.train}    # optional: further configs from a named template

A template ``<family>.<config>.yaml`` gives ``configs/<config>.json``, ``<family>.README.md`` gives ``docs/README.md``,
``<family>.logging.conf`` gives ``configs/logging.conf``; ``common.*`` stands in for the last two where a family has
none. A family ``xray_detection`` is laid over the family ``detection``, and its texts are those of ``xray``. The
bundle's LICENSE is a copy of the one beside the bundles folder. A template may open with ``extends: <template>``: what
that one has and it lacks is added behind its own keys.
Nothing is ever deleted: a file in ``configs`` that no template gives is listed as extra.

Run ``python -m medcoss_components.zoo.build`` to write and ``... --check`` to list what differs (exit status 1).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from medcoss_components.errors import InputError
from medcoss_components.files import write_text

TEMPLATES = Path(__file__).parent / "templates"
COMMON_FAMILY = "common"
SOURCE_NAME = "bundle.yaml"
SOURCE_KEYS = frozenset({"name", "family", "values", "configs", "also"})
EXTENDS = "extends"
ABSENT = "${absent}"
HINT = "run `medcoss bundles build`; remove extra files by hand"

MERGE_TAG = "tag:yaml.org,2002:merge"  # the key "<<", which takes over the entries of another mapping

_PLACEHOLDER = re.compile(r"\$\{(\w+)\}")
_NUMBER_AS_TEXT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML loader that refuses a key given twice in one mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != MERGE_TAG]
        if repeated := sorted({str(key) for key in keys if keys.count(key) > 1}):
            raise InputError(f"key given twice: {', '.join(repeated)}{node.start_mark}")
        return super().construct_mapping(node, deep=deep)


@dataclass(frozen=True)
class BundleSource:
    """The content of a ``bundle.yaml``; see the module's description for the fields."""

    folder: Path
    family: str
    values: Mapping[str, Any]
    configs: Mapping[str, Mapping[str, Any]]
    also: Mapping[str, str]

    @property
    def name(self) -> str:
        return self.folder.name


@dataclass(frozen=True)
class Difference:
    """A file that is not what the builder would write. ``kind``: "missing", "differs" or "extra"."""

    path: Path
    kind: str

    def __str__(self) -> str:
        return f"{self.kind:8} {self.path}"


def deep_merge(base: Any, overlay: Any) -> Any:
    """``overlay`` over ``base``: mappings merge key by key, anything else is replaced. Neither argument changes.

    >>> deep_merge({"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"c": 3}, "d": [2]})
    {'a': {'b': 1, 'c': 3}, 'd': [2]}
    """
    if not (isinstance(base, Mapping) and isinstance(overlay, Mapping)):
        return overlay
    merged = dict(base)
    for key, value in overlay.items():
        merged[key] = deep_merge(base[key], value) if key in base else value
    return merged


def merge_under(content: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """``content`` over ``base``, in the key order of ``content``; what only ``base`` has comes last.

    >>> merge_under({"b": 1, "a": {"x": 1}}, {"a": {"x": 0, "y": 2}, "c": 3})
    {'b': 1, 'a': {'x': 1, 'y': 2}, 'c': 3}
    """
    merged = dict(content)
    for key, value in base.items():
        if key not in merged:
            merged[key] = value
        elif isinstance(merged[key], Mapping) and isinstance(value, Mapping):
            merged[key] = merge_under(merged[key], value)
    return merged


def without_absent(content: Any) -> Any:
    """``content`` without the keys whose value is ``${absent}``, on every level.

    >>> without_absent({"a": {"b": "${absent}", "c": 1}, "d": "${absent}"})
    {'a': {'c': 1}}
    """
    if isinstance(content, Mapping):
        return {key: without_absent(value) for key, value in content.items() if value != ABSENT}
    return [without_absent(value) for value in content] if isinstance(content, list) else content


def substitute(content: Any, values: Mapping[str, Any], used: set[str] | None = None) -> Any:
    """Replace every ``${name}`` in keys and strings; a string that is one placeholder becomes the value itself.

    Args:
        content: JSON-like content.
        values: what names stand for.
        used: collects the names that occurred.

    Raises:
        InputError: a name without a value; the message lists the names that exist.

    >>> substitute({"lr": "${rate}", "text": "at ${rate}"}, {"rate": 0.1})
    {'lr': 0.1, 'text': 'at 0.1'}
    """
    used = set() if used is None else used

    def lookup(name: str) -> Any:
        if name not in values:
            raise InputError(f"${{{name}}} has no value; bundle.yaml gives values for: {', '.join(sorted(values))}")
        used.add(name)
        return values[name]

    return _map_strings(content, lambda text: _fill(text, lookup))


def _fill(text: str, lookup: Callable[[str], Any]) -> Any:
    if whole := _PLACEHOLDER.fullmatch(text):
        return lookup(whole[1])
    return _PLACEHOLDER.sub(lambda match: str(lookup(match[1])), text)


def _map_strings(content: Any, change: Callable[[str], Any]) -> Any:
    if isinstance(content, Mapping):
        return {change(key): _map_strings(value, change) for key, value in content.items()}
    if isinstance(content, list):
        return [_map_strings(value, change) for value in content]
    return change(content) if isinstance(content, str) else content


def read_yaml(path: Path) -> Any:
    """Read a YAML file; keys must be unique, and a number must not be spelt so that YAML reads it as text (``1e-4``).

    Raises:
        InputError: naming the file and what is wrong.
    """

    def refuse_number(text: str) -> str:
        if _NUMBER_AS_TEXT.fullmatch(text):
            raise InputError(f"{text} is text in YAML; write it with a point, such as 1.0e-4")
        return text

    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)  # a SafeLoader
        return _map_strings(content, refuse_number)
    except (InputError, yaml.YAMLError) as error:
        raise InputError(f"{path}: {error}") from error


def read_template(path: Path) -> Mapping[str, Any]:
    """Read a template and what it extends.

    Raises:
        InputError: a file that is missing or not a mapping.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such template")
    content = read_yaml(path)
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: a template is a mapping, found {type(content).__name__}")
    own = {key: value for key, value in content.items() if key != EXTENDS}
    return merge_under(own, read_template(path.with_name(f"{content[EXTENDS]}.yaml"))) if EXTENDS in content else own


def read_source(folder: Path) -> BundleSource:
    """Read ``folder/bundle.yaml``.

    Raises:
        InputError: the file is not a mapping with the known keys, or ``name`` is not the folder's name.
    """
    path = folder / SOURCE_NAME
    content = read_yaml(path)
    if not isinstance(content, Mapping) or not {"name", "family"} <= set(content) <= SOURCE_KEYS:
        found = sorted(content) if isinstance(content, Mapping) else type(content).__name__
        raise InputError(f"{path}: needs name and family, may have values, configs, also; found {found}")
    if content["name"] != folder.name:
        raise InputError(f"{path}: name must be the folder's name {folder.name!r}, found {content['name']!r}")
    return BundleSource(
        folder=folder,
        family=content["family"],
        values={"name": content["name"], **(content.get("values") or {})},
        configs=content.get("configs") or {},
        also=content.get("also") or {},
    )


def render_bundle(source: BundleSource, *, templates: Path = TEMPLATES) -> dict[str, str]:
    """Every generated file of a bundle: path relative to the bundle's folder -> text.

    Raises:
        InputError: a config or value that no template uses, or a value that is missing.
    """
    used = {"name"}
    layers = _layers(source, templates)
    if unknown := sorted(set(source.configs) - set(layers)):
        where, known = source.folder / SOURCE_NAME, ", ".join(layers)
        raise InputError(f"{where}: configs without a template: {', '.join(unknown)}; known: {known}")
    files = {}
    for config, paths in layers.items():
        content = _render_config(source, config, paths, used)
        files[f"configs/{config}.json"] = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    files.update(_render_texts(source, templates, used))
    if idle := sorted(set(source.values) - used):
        raise InputError(f"{source.folder / SOURCE_NAME}: values that no template uses: {', '.join(idle)}")
    return files


def _layers(source: BundleSource, templates: Path) -> dict[str, list[Path]]:
    """Config name -> its templates, the general one first."""
    layers: dict[str, list[Path]] = {}
    own = dict.fromkeys((source.family.rpartition("_")[2], source.family))
    for family in (COMMON_FAMILY, *own):
        for path in sorted(templates.glob(f"{family}.*.yaml")):
            layers.setdefault(path.name.split(".")[1], []).append(path)
    if not any(path.name.split(".")[0] in own for paths in layers.values() for path in paths):
        raise InputError(f"{source.folder / SOURCE_NAME}: no template of family {source.family!r} in {templates}")
    for config, template in source.also.items():
        layers[config] = [templates / f"{template}.yaml"]
    return layers


def _render_config(source: BundleSource, config: str, paths: Iterable[Path], used: set[str]) -> Any:
    content: Any = {}
    for layer in [*(read_template(path) for path in paths), source.configs.get(config) or {}]:
        content = deep_merge(content, layer)
    try:
        return substitute(without_absent(content), source.values, used)
    except InputError as error:
        raise InputError(f"{source.name}, {config}.json: {error}") from error


def _render_texts(source: BundleSource, templates: Path, used: set[str]) -> dict[str, str]:
    targets = {"README.md": "docs/README.md", "logging.conf": "configs/logging.conf"}
    files = {}
    for suffix, target in targets.items():
        for family in (source.family, source.family.partition("_")[0], COMMON_FAMILY):
            path = templates / f"{family}.{suffix}"
            if path.is_file():
                files[target] = str(substitute(path.read_text(encoding="utf-8"), source.values, used))
                break
    licence = source.folder.parent.parent / "LICENSE"
    if licence.is_file():
        files["LICENSE"] = licence.read_text(encoding="utf-8")
    return files


def bundle_folders(bundles_dir: str | Path, names: Iterable[str] = ()) -> list[Path]:
    """The folders below ``bundles_dir`` that have a ``bundle.yaml``, or those called ``names``.

    Raises:
        InputError: a name without a bundle, or a folder without any; the message lists the known ones.
    """
    known = {path.parent.name: path.parent for path in sorted(Path(bundles_dir).glob(f"*/{SOURCE_NAME}"))}
    wanted = list(names) or list(known)
    if unknown := [name for name in wanted if name not in known]:
        raise InputError(f"no bundle called {', '.join(unknown)} in {bundles_dir}; known: {', '.join(known) or 'none'}")
    if not known:
        raise InputError(f"{bundles_dir}: no folder with a {SOURCE_NAME}")
    return [known[name] for name in wanted]


def compare_bundle(folder: Path, *, templates: Path = TEMPLATES) -> list[Difference]:
    """What differs between a bundle's folder and what the builder would write there."""
    files = render_bundle(read_source(folder), templates=templates)
    differences = []
    for name, text in files.items():
        path = folder / name
        if not path.is_file():
            differences.append(Difference(path, "missing"))
        elif path.read_text(encoding="utf-8") != text:
            differences.append(Difference(path, "differs"))
    present = sorted(path for path in (folder / "configs").rglob("*") if path.is_file())
    return differences + [Difference(path, "extra") for path in present if str(path.relative_to(folder)) not in files]


def check_bundles(
    bundles_dir: str | Path, names: Iterable[str] | None = None, *, templates: Path = TEMPLATES
) -> list[Difference]:
    """Differences of every bundle (or of ``names``); an empty list means all is up to date."""
    folders = bundle_folders(bundles_dir, names or ())
    return [difference for folder in folders for difference in compare_bundle(folder, templates=templates)]


def build_bundles(
    bundles_dir: str | Path, names: Iterable[str] | None = None, *, check: bool = False, templates: Path = TEMPLATES
) -> list[Path]:
    """Write what is missing or differs.

    Args:
        bundles_dir: folder that holds the bundles.
        names: bundles to build; default: all.
        check: write nothing.
        templates: folder of the templates.

    Returns:
        The paths written; with ``check`` every path that is not as it should be, extra files included.
    """
    differences = check_bundles(bundles_dir, names, templates=templates)
    if check:
        return [difference.path for difference in differences]
    for folder in bundle_folders(bundles_dir, names or ()):
        for name, text in render_bundle(read_source(folder), templates=templates).items():
            if any(difference.path == folder / name for difference in differences):
                write_text(folder / name, text)
    return [difference.path for difference in differences if difference.kind != "extra"]


def main(arguments: list[str] | None = None) -> int:
    """Command line of the builder; returns the exit status."""
    parser = argparse.ArgumentParser(description="Generate the bundles' files from the templates.")
    parser.add_argument("names", nargs="*", help="bundles to build; default: all")
    parser.add_argument("--bundles-dir", default="bundles", help="folder that holds the bundles")
    parser.add_argument("--check", action="store_true", help="write nothing; list what differs and end with status 1")
    options = parser.parse_args(arguments)
    try:
        if options.check:
            return _report_check(check_bundles(options.bundles_dir, options.names))
        written = build_bundles(options.bundles_dir, options.names)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join([*(f"wrote    {path}" for path in written), f"{len(written)} files written"]))
    return _report_check(check_bundles(options.bundles_dir, options.names))


def _report_check(differences: list[Difference]) -> int:
    for difference in differences:
        print(difference)
    print("bundles are up to date" if not differences else f"{len(differences)} files differ, {HINT}")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
