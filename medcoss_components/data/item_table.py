"""Long lists of items: the columns of a Parquet file, of which an item is made when it is asked for.

What was measured with a million items stands in ``benchmarks/RESULTS.md``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medcoss_components.data.boxes import canonical_label
from medcoss_components.errors import InputError
from medcoss_components.files import atomic_path

SPLITS = ("training", "validation", "testing")
COLUMNS = ("id", "image", "text", "label", "group", "body_part")
_OPTIONAL = ("body_part",)
BODY_PART = "[a-z][a-z0-9]*(?:[ _-][a-z0-9]+)*"
"""Form of a body part: lower-case words. DICOM headers may hold free text there, which has no place in a manifest."""
_ROWS_AT_ONCE = 1 << 14
_UNTIDY = re.compile(r"^/|^\./|/$|\.\.|//|/\./|\\")
"""Ways to write a relative path other than the one that paths are compared in."""


@dataclass(frozen=True)
class Item:
    """One item of a data set.

    Args:
        id: unique in the manifest.
        image: image file, volume file or DICOM folder; None for text.
        text: the text itself; None for images.
        label: class, list of classes, list of boxes (``boxes.py``) or relative path of a mask; None when unlabelled.
        group: salted hash of the patient (or of what else must not be split).
        body_part: what is shown, in lower-case words such as "left hand"; None where that is not recorded.
    """

    id: str
    image: Path | None = None
    text: str | None = None
    label: Any = None
    group: str = ""
    body_part: str | None = None


def body_part_name(text: str) -> str:
    """A body part as manifests have it, of a code or a name in any case; "" where it is no words.

    >>> body_part_name(" CHEST "), body_part_name("Left Hand"), body_part_name("seen by Dr. X, 1999")
    ('chest', 'left hand', '')
    """
    name = text.strip().lower()
    return name if re.fullmatch(BODY_PART, name) else ""


class ItemTable(Sequence[Item]):
    """Items in the columns of a table; it compares, iterates and slices like a tuple of them.

    Args:
        table: ``pyarrow.Table`` with the columns :data:`COLUMNS`; body_part may be missing.
        root: absolute folder that its paths count from.
    """

    def __init__(self, table: Any, root: str) -> None:
        self._table, self._root = _with_missing(table, _OPTIONAL), root

    def __len__(self) -> int:
        return self._table.num_rows

    def __iter__(self) -> Iterator[Item]:
        return self._items(self._table)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                return tuple(self[number] for number in range(start, stop, step))
            return tuple(self._items(self._table.slice(start, max(0, stop - start))))
        number = range(len(self))[index]  # negative numbers, IndexError beyond the end
        return next(self._items(self._table.slice(number, 1)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ItemTable | tuple | list) or len(self) != len(other):
            return False
        return all(one == another for one, another in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"ItemTable({len(self)} items)"

    def _items(self, table: Any) -> Iterator[Item]:
        for name, image, *rest in _rows(table):
            yield Item(name, None if image is None else Path(os.path.join(self._root, image)), *rest)

    def rows(self, root: str) -> Iterator[tuple[Any, ...]] | None:
        """Values of :data:`COLUMNS`, images relative to ``root``; None where that is not the table's root."""
        return None if root != self._root else _tidy_rows(self._table, root)

    def doubtful(self, wanted: str, other: str) -> list[int]:
        """Positions of items to look at: without id, group or ``wanted`` content, or with ``other`` content."""
        import pyarrow
        import pyarrow.compute as compute

        if any(not _is_text(self._table.schema.field(name).type) for name in ("id", "group")):
            return list(range(len(self)))
        bad = compute.or_(compute.is_null(self._table[wanted]), compute.is_valid(self._table[other]))
        for name in ("id", "group"):
            bad = compute.or_(bad, compute.fill_null(compute.equal(self._table[name], pyarrow.scalar("")), True))
        parts = self._table["body_part"]
        if not _is_text(parts.type):  # a column without any value has no kind; one of numbers is looked at
            bad = compute.or_(bad, compute.is_valid(parts))
        else:
            fits = compute.match_substring_regex(parts, f"^(?:{BODY_PART})$")
            bad = compute.or_(bad, compute.fill_null(compute.invert(fits), False))
        return np.flatnonzero(bad.to_numpy()).tolist()  # indices_nonzero crashes on a table without chunks


def without_empty_body_part(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the list as it counts in hashes: they are those of before where no body part is recorded."""
    return row if row.get("body_part") is not None else {k: v for k, v in row.items() if k != "body_part"}


def _is_text(kind: Any) -> bool:
    import pyarrow

    return pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)


def _rows(table: Any) -> Iterator[tuple[Any, ...]]:
    for batch in table.to_batches(_ROWS_AT_ONCE):
        yield from zip(*(batch.column(name).to_pylist() for name in COLUMNS), strict=True)


def _tidy_rows(table: Any, root: str) -> Iterator[tuple[Any, ...]]:
    for name, image, text, label, *rest in _rows(table):
        tidy = image is None or not _UNTIDY.search(image)
        path = image if tidy else relative_path(os.path.join(root, image), root)
        yield name, path, text, canonical_label(label), *rest


def _with_missing(table: Any, names: Iterable[str]) -> Any:
    """The table with columns of None for those of ``names`` that it does not have."""
    import pyarrow

    for name in names:
        if name not in table.column_names:
            table = table.append_column(name, pyarrow.nulls(table.num_rows, pyarrow.string()))
    return table


def relative_path(path: str, base: str) -> str:
    """``path`` relative to ``base``, in POSIX form."""
    path = str(Path(path))
    prefix = base + os.sep
    inside = path.startswith(prefix) and ".." not in path
    relative = path[len(prefix) :] if inside else os.path.relpath(path, base)
    return relative.replace(os.sep, "/")


def read_item_tables(path: Path, root: str) -> dict[str, ItemTable]:
    """The items of a Parquet file by split.

    Args:
        path: file with the columns split, id, group and at least one of image, text; others are passed over.
        root: absolute folder that images count from.

    Raises:
        InputError: missing or broken file, a missing column, or an unknown split.
    """
    import pyarrow
    import pyarrow.compute as compute
    import pyarrow.parquet

    if not path.is_file():
        raise InputError(f"{path}: no such file, but the manifest's items_file names it. Keep both files together.")
    try:
        names = pyarrow.parquet.read_schema(path).names
        if missing := [name for name in ("split", "id", "group") if name not in names]:
            raise InputError(f"{path}: misses the columns {missing}; needed: split, {', '.join(COLUMNS)}.")
        table = pyarrow.parquet.read_table(path, columns=[name for name in ("split", *COLUMNS) if name in names])
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({error}). Restore or rebuild it.") from error
    table = _with_missing(table, COLUMNS)
    known = compute.unique(table["split"]).to_pylist()
    if unknown := sorted(set(known) - set(SPLITS), key=str):
        raise InputError(f"{path}: split must be one of {', '.join(SPLITS)}, got {unknown[0]!r}.")
    return {
        split: ItemTable(table.filter(compute.equal(table["split"], split)).select(COLUMNS), root) for split in SPLITS
    }


def write_item_table(path: Path, rows: Iterable[dict[str, Any]], *, name: str) -> Path:
    """Write items to ``<stem of path>.items-<hash>.parquet``, so that an interrupted rewrite never mixes old and new.

    Args:
        path: of the manifest.
        rows: mappings with the keys split and :data:`COLUMNS`.
        name: of the manifest, for errors.

    Raises:
        InputError: labels of several kinds.
    """
    import pyarrow
    import pyarrow.parquet

    digest, values = hashlib.sha256(), {column: list[Any]() for column in ("split", *COLUMNS)}
    for row in rows:
        for column, entries in values.items():
            entries.append(row.get(column))
        digest.update(json.dumps(without_empty_body_part(row)).encode())
    for column in _OPTIONAL:  # lists without body parts stay the files that they were before there were any
        if not any(value is not None for value in values[column]):
            del values[column]
    columns: dict[str, Any] = {key: pyarrow.array(values[key], pyarrow.string()) for key in values if key != "label"}
    try:
        columns["label"] = pyarrow.array(values["label"])
    except pyarrow.ArrowException as error:
        raise InputError(f"manifest {name}: labels must be all of one kind ({error}).") from error
    target = path.with_name(f"{path.stem}.items-{digest.hexdigest()[:12]}.parquet")
    with atomic_path(target) as partial:
        pyarrow.parquet.write_table(pyarrow.table(columns), partial, compression="zstd")
    return target
