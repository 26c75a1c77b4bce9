"""ChestXR: chest radiographs in folders by class, ``train`` and ``validation``; test images without public labels.

The names of the files tell nothing of patients, so every image is a group of its own.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medcoss_components.data.adapters.beside import is_beside
from medcoss_components.data.adapters.findings import DatasetSource, Findings, Found, LeftOut, bare_name
from medcoss_components.data.adapters.picture_headers import looked_at
from medcoss_components.data.readers_common import naming_file, require_file
from medcoss_components.data.readers_image import IMAGE_SUFFIXES
from medcoss_components.errors import InputError
from medcoss_components.progress import progress

CLASSES = ("covid", "normal", "pneumonia")
FOLDERS = {"train": "training", "validation": "validation", "test": "testing", "test_set": "testing"}
ROLES = ("auto", "validation", "testing")
"""What the folder ``validation`` can be; auto: testing, unless there are test images with labels."""


def find(source: DatasetSource) -> Findings:
    """Images of the three folders; labels of the test images come from class folders or from a table.

    Raises:
        InputError: another layout, or a setting or line of the table that breaks a rule.
    """
    role = source.settings.get("validation_as", "auto")
    if role not in ROLES:
        raise InputError(f"settings: validation_as must be one of {', '.join(ROLES)}, got {role!r}.")
    root = source.locate("train", "validation")
    table = _test_table(root, source.settings)
    found, left = list[Found](), list[LeftOut]()
    for path in progress(source.files(root), description="look at files", unit="file"):
        if path == table.path or is_beside(path):
            continue
        entry = _look(path, root, table)
        if isinstance(entry, Found):
            found.append(entry)
        else:
            left.append(entry)
    left += _unmatched(table)
    if role == "auto":
        role = "validation" if any(item.split == "testing" for item in found) else "testing"
    if role == "testing":
        source.notes.append("The images of the publisher's validation folder are in the testing split.")
    return [replace(item, split=role) if item.split == "validation" else item for item in found], left


def _look(path: Path, root: Path, table: _TestTable) -> Found | LeftOut:
    relative = path.relative_to(root).as_posix()
    parts = relative.lower().split("/")
    if not path.name.lower().endswith(IMAGE_SUFFIXES):
        return LeftOut(relative, f"files ending in {path.suffix or 'nothing'} are not read here")
    if len(parts) < 2 or parts[0] not in FOLDERS:
        return LeftOut(relative, f"not in one of the folders {', '.join(FOLDERS)}")
    label = next((name for name in parts[1:-1] if name in CLASSES), None)
    if label is None and FOLDERS[parts[0]] != "testing":
        return LeftOut(relative, f"not in a folder of one of the classes {', '.join(CLASSES)}")
    label = label or table.take(path)
    if label is None:
        return LeftOut(relative, "a test image without label; a table of labels is given with --set test_labels=FILE")
    size, problem = looked_at(path)
    if problem:
        return LeftOut(relative, problem)
    keys = {"file": relative}
    split = FOLDERS[parts[0]]
    return Found(name=bare_name(relative), keys=keys, path=path, label=label, split=split, size=size, files=(path,))


@dataclass(frozen=True)
class _TestTable:
    """Labels of test images: name without suffix -> (line, class); names that were asked for."""

    path: Path | None
    rows: Mapping[str, tuple[int, str]]
    taken: set[str]

    def take(self, image: Path) -> str | None:
        """Class of an image, None where the table does not tell."""
        if image.stem not in self.rows:
            return None
        self.taken.add(image.stem)
        return self.rows[image.stem][1]


def _unmatched(table: _TestTable) -> Iterator[LeftOut]:
    """Lines of the table about no image."""
    for stem, (line, _) in table.rows.items():
        if stem not in table.taken and table.path is not None:
            yield LeftOut(f"{table.path.name} line {line}", "no test image of this name was found")


def _test_table(root: Path, settings: Mapping[str, object]) -> _TestTable:
    if not (given := settings.get("test_labels")):
        return _TestTable(None, {}, set())
    path = require_file(root / str(given))
    numbers = settings.get("test_classes", ["normal", "covid", "pneumonia"])
    if not isinstance(numbers, list | tuple) or sorted(map(str, numbers)) != sorted(CLASSES):
        raise InputError(f"settings: test_classes must list {', '.join(CLASSES)} by their number, got {numbers!r}.")
    names = {name: name for name in CLASSES} | {str(number): str(name) for number, name in enumerate(numbers)}
    rows: dict[str, tuple[int, str]] = {}
    with naming_file(path, show_detail=False), open(path, newline="", encoding="utf-8-sig") as stream:
        for line, row in enumerate(csv.reader(stream), start=1):
            _add_row(path, line, [cell.strip() for cell in row], names, rows)
    return _TestTable(path, rows, set())


def _add_row(
    path: Path, line: int, row: Sequence[str], names: Mapping[str, str], rows: dict[str, tuple[int, str]]
) -> None:
    """Add a line of two columns, image name and class; the first line may be a heading, blank lines are passed over."""
    if not any(row):
        return
    label = names.get(row[1].lower().removesuffix(".0")) if len(row) > 1 else None
    if label is None and line > 1:
        raise InputError(f"{path}: line {line}: the second column must be one of {', '.join(names)}. Correct the line.")
    if label is None:
        return
    stem = bare_name(Path(row[0]).name)
    other = rows.setdefault(stem, (line, label))
    if other[1] != label:
        raise InputError(f"{path}: lines {other[0]} and {line} give one image two classes. Correct one of them.")
