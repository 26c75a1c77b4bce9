"""MIDRC-RICORD: chest CT with COVID-19 (collection 1A) and without (1B), DICOM trees of The Cancer Imaging Archive.

The folders below a collection differ with the way of downloading; headers alone say what belongs together. Settings:
``series`` and ``minimum_slices``, see :func:`~medcoss_components.data.adapters.own_dicom.index_dicom`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medcoss_components.data.adapters.beside import is_beside
from medcoss_components.data.adapters.findings import DatasetSource, Findings, Found, LeftOut, is_hidden
from medcoss_components.data.adapters.own_dicom import Study, index_dicom
from medcoss_components.errors import InputError

COLLECTIONS = {"MIDRC-RICORD-1A": "positive", "MIDRC-RICORD-1B": "negative"}
"""Collection -> class of all its studies."""
_PREFIX = re.compile(r"MIDRC-RICORD-1[AB]-", re.IGNORECASE)


def find(source: DatasetSource) -> Findings:
    """Series of both collections with the collection's class; one series of each study by the rule of ``series``.

    Raises:
        InputError: a collection that is missing, or stands there twice.
    """
    folders = {name: _collection(source.root, name) for name in COLLECTIONS}
    found, left = list[Found](), list[LeftOut]()
    for name, folder in folders.items():
        index = index_dicom(
            folder,
            modality=source.modality,
            series=source.settings["series"],
            minimum_slices=source.settings["minimum_slices"],
            sort_into=source.files_dir,
        )
        found += [_labelled(item, name) for item in index.found]
        left += [
            replace(entry, where=f"{name}/{entry.where}") for entry in index.left if not is_beside(Path(entry.where))
        ]
        source.notes.append(f"{name}: {_account(index.studies)}")
    return found, left


def _collection(root: Path, name: str) -> Path:
    """The folder of a collection: the root, or up to two levels below it; spelled as TCIA or as IDC does.

    Raises:
        InputError: none, or several.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder. Give the folder that holds both collections of RICORD.")
    spellings = (name, name.lower().replace("-", "_"))
    patterns = [f"{level}{spelling}/" for level in ("", "*/", "*/*/") for spelling in spellings]
    found = [folder for pattern in patterns for folder in sorted(root.glob(pattern)) if folder.is_dir()]
    shown = [folder for folder in found if not any(map(is_hidden, folder.relative_to(root).parts))]
    # an archive that was unpacked into a folder of its own name nests it twice
    hits = [folder for folder in shown if not any(other in folder.parents for other in shown)]
    if len(hits) != 1:
        what = "holds no folder" if not hits else f"{len(hits)} folders are called"
        raise InputError(
            f"{root}: {what} {name}. RICORD is expected as two trees of DICOM files, "
            f"{' and '.join(COLLECTIONS)}, in this folder or up to two levels below it, each once."
        )
    return hits[0]


def _labelled(item: Found, collection: str) -> Found:
    """With the collection's class and name. The same number of a site counts as the same person in both collections."""
    return replace(
        item,
        name=f"{collection}/{item.name}",
        label=COLLECTIONS[collection],
        patient=_PREFIX.sub("", item.patient),
    )


def _account(studies: Sequence[Study]) -> str:
    """How many series the studies have and which kinds were taken, for people."""
    several = sum(study.series > 1 for study in studies)
    kinds = Counter(orientation for study in studies for _, orientation in study.chosen)
    none = sum(not study.chosen for study in studies)
    taken = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()) or "none"
    return (
        f"{len(studies)} studies, {several} with several series; taken: {taken}; {none} studies without a usable one."
    )
