"""The builder: merge, substitution, what it writes and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medcoss_components.errors import InputError
from medcoss_components.zoo.build import (
    build_bundles,
    bundle_folders,
    check_bundles,
    deep_merge,
    main,
    merge_under,
    read_source,
    read_template,
    read_yaml,
    render_bundle,
    substitute,
    without_absent,
)

SOURCE = """
name: small
family: toy
values: {rate: 0.1, word: blue, extra: [1, 2]}
configs: {train: {inner: {b: 3}, more: 4}}
also: {second: toy.train}
"""
TEMPLATES = {
    "common.metadata.yaml": "{version: 1.0.0, tags: '${extra}'}",
    "toy.train.yaml": "extends: parts.base\nzeta: ${rate}\nalpha: a ${word} one\ninner: {a: 1, b: 2}\n",
    "parts.base.yaml": "tail: 9\ninner: {b: 0, c: 5}\n",
    "toy.README.md": "# ${name} is ${word}\n",
    "common.logging.conf": "[loggers]\n",
}


@pytest.fixture
def project(tmp_path: Path) -> tuple[Path, Path]:
    """A bundles folder with the bundle ``small``, and a folder of templates."""
    bundles, templates = tmp_path / "bundles", tmp_path / "templates"
    (bundles / "small").mkdir(parents=True)
    templates.mkdir()
    (bundles / "small" / "bundle.yaml").write_text(SOURCE)
    (tmp_path / "LICENSE").write_text("terms\n")
    for name, text in TEMPLATES.items():
        (templates / name).write_text(text)
    return bundles, templates


def rewrite(project: tuple[Path, Path], old: str, new: str) -> None:
    path = project[0] / "small" / "bundle.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_deep_merge_replaces_all_but_mappings_and_changes_no_argument() -> None:
    base, overlay = {"a": {"x": 1, "y": [1]}, "b": 1}, {"a": {"y": [2], "z": 3}, "b": None}
    assert deep_merge(base, overlay) == {"a": {"x": 1, "y": [2], "z": 3}, "b": None}
    assert base == {"a": {"x": 1, "y": [1]}, "b": 1} and overlay["a"] == {"y": [2], "z": 3}


def test_anchors_and_merge_keys(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("one: &one {x: 1, y: 2}\ntwo: {<<: *one, y: 3}\n")
    assert read_yaml(path) == {"one": {"x": 1, "y": 2}, "two": {"x": 1, "y": 3}}


def test_merge_under_keeps_the_order_of_the_content() -> None:
    merged = merge_under({"z": 1, "a": {"q": 1}}, {"b": 2, "a": {"q": 0, "p": 3}, "z": 9})
    assert list(merged) == ["z", "a", "b"]
    assert merged == {"z": 1, "a": {"q": 1, "p": 3}, "b": 2}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("${n}", 3),
        ("n=${n}, ${n}", "n=3, 3"),
        (["${flag}", {"k_${n}": "${nothing}"}], [True, {"k_3": None}]),
        ("$@bundle_root + '/store'", "$@bundle_root + '/store'"),
        (7, 7),
    ],
)
def test_substitute(content: object, expected: object) -> None:
    assert substitute(content, {"n": 3, "flag": True, "nothing": None}) == expected


def test_a_bundle_can_do_without_a_key_of_its_template(project: tuple[Path, Path]) -> None:
    bundles, templates = project
    rewrite(project, "more: 4", "alpha: '${absent}'")
    rewrite(project, "inner: {b: 3}", "inner: {c: '${absent}', b: 3}")
    train = json.loads(render_bundle(read_source(bundles / "small"), templates=templates)["configs/train.json"])
    assert train == {"zeta": 0.1, "inner": {"a": 1, "b": 3}, "tail": 9}
    assert without_absent([{"a": "${absent}"}, "${absent}"]) == [{}, "${absent}"]


def test_a_family_over_another_with_texts_of_its_own(project: tuple[Path, Path]) -> None:
    bundles, templates = project
    rewrite(project, "family: toy", "family: blue_toy")
    (templates / "blue_toy.train.yaml").write_text("alpha: ${absent}\ninner: {a: 5}\n")
    (templates / "blue.README.md").write_text("Texts of ${name}, which are ${word}.\n")
    files = render_bundle(read_source(bundles / "small"), templates=templates)
    assert json.loads(files["configs/train.json"]) == {
        "zeta": 0.1,
        "inner": {"a": 5, "b": 3, "c": 5},
        "tail": 9,
        "more": 4,
    }
    assert files["docs/README.md"] == "Texts of small, which are blue.\n"


def test_substitute_names_the_unknown_value() -> None:
    with pytest.raises(InputError, match=r"\$\{m\} has no value.*: n"):
        substitute({"a": ["${m}"]}, {"n": 3})


def test_rendered_files(project: tuple[Path, Path]) -> None:
    bundles, templates = project
    build_bundles(bundles, templates=templates)
    folder = bundles / "small"
    train = json.loads((folder / "configs/train.json").read_text())
    assert list(train) == ["zeta", "alpha", "inner", "tail", "more"]
    assert train == {"zeta": 0.1, "alpha": "a blue one", "inner": {"a": 1, "b": 3, "c": 5}, "tail": 9, "more": 4}
    second = json.loads((folder / "configs/second.json").read_text())
    assert second["inner"] == {"a": 1, "b": 2, "c": 5} and "more" not in second
    metadata = '{\n  "version": "1.0.0",\n  "tags": [\n    1,\n    2\n  ]\n}\n'
    assert (folder / "configs/metadata.json").read_text() == metadata
    assert (folder / "docs/README.md").read_text() == "# small is blue\n"
    assert (folder / "configs/logging.conf").read_text() == "[loggers]\n"
    assert (folder / "LICENSE").read_text() == "terms\n"


def test_build_twice_writes_nothing_and_check_lists_each_kind(project: tuple[Path, Path]) -> None:
    bundles, templates = project
    assert len(build_bundles(bundles, templates=templates)) == 6
    assert build_bundles(bundles, templates=templates) == []
    configs = bundles / "small" / "configs"
    (configs / "train.json").write_text("{}")
    (configs / "second.json").unlink()
    (configs / "mine.json").write_text("{}")
    found = {difference.path.name: difference.kind for difference in check_bundles(bundles, templates=templates)}
    assert found == {"train.json": "differs", "second.json": "missing", "mine.json": "extra"}
    assert {path.name for path in build_bundles(bundles, ["small"], check=True, templates=templates)} == set(found)
    assert {path.name for path in build_bundles(bundles, templates=templates)} == {"train.json", "second.json"}
    assert [str(left) for left in check_bundles(bundles, templates=templates)] == [f"extra    {configs / 'mine.json'}"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: small", "name: large", "name must be the folder's name 'small', found 'large'"),
        ("family: toy", "family: ship", "no template of family 'ship'"),
        ("word: blue", "wort: blue", r"\$\{word\} has no value"),
        ("word: blue", "word: blue, idle: 1", "values that no template uses: idle"),
        ("{train: {inner", "{trian: {inner", "configs without a template: trian; known: metadata, train, second"),
        ("also: {second: toy.train}", "also: {second: toy.gone}", "no such template"),
        ("also: {second: toy.train}", "tokens: 1", r"found \['configs', 'family', 'name', 'tokens', 'values'\]"),
        ("family: toy", "family: toy\nfamily: toy", "key given twice: family"),
        ("rate: 0.1", "rate: 1e-4", "1e-4 is text in YAML"),
    ],
)
def test_bad_source(project: tuple[Path, Path], old: str, new: str, message: str) -> None:
    rewrite(project, old, new)
    with pytest.raises(InputError, match=message):
        build_bundles(project[0], templates=project[1])


def test_bad_files(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- 1")
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(InputError, match="a template is a mapping, found list"):
        read_template(tmp_path / "list.yaml")
    with pytest.raises(InputError, match="broken.yaml"):
        read_yaml(tmp_path / "broken.yaml")


def test_unknown_bundle_and_empty_folder(project: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no bundle called tiny .*known: small"):
        bundle_folders(project[0], ["tiny"])
    with pytest.raises(InputError, match="no folder with a bundle.yaml"):
        bundle_folders(tmp_path / "templates")


def test_source_that_is_no_mapping(project: tuple[Path, Path]) -> None:
    (project[0] / "small" / "bundle.yaml").write_text("- 1")
    with pytest.raises(InputError, match="found list"):
        build_bundles(project[0], templates=project[1])


def test_bundle_without_licence_or_configs(project: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "LICENSE").unlink()
    rewrite(project, "configs: {train: {inner: {b: 3}, more: 4}}", "configs:")
    files = render_bundle(read_source(project[0] / "small"), templates=project[1])
    assert "LICENSE" not in files
    assert json.loads(files["configs/train.json"])["inner"]["b"] == 2


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(__file__).parents[2]
    folder = tmp_path / "bundles" / "medcoss_ct_pretraining"
    folder.mkdir(parents=True)
    (folder / "bundle.yaml").write_text((root / "bundles/medcoss_ct_pretraining/bundle.yaml").read_text())
    where = ["--bundles-dir", str(tmp_path / "bundles")]
    assert main([*where, "--check"]) == 1
    assert "missing  " in capsys.readouterr().out
    assert main(where) == 0
    assert "8 files written\nbundles are up to date" in capsys.readouterr().out
    assert main([*where, "--check"]) == 0
    assert main([*where, "gone"]) == 1
    assert "error: no bundle called gone" in capsys.readouterr().err
