"""Kermany's chest radiographs of children: ``<set>/<class>/<name>``, where the name tells the patient.

Two releases differ in names and sets: that of Kaggle (``person<n>_bacteria_<n>.jpeg``, ``IM-<n>-0001.jpeg``, with a
folder ``val``) and that of Mendeley Data (``BACTERIA-<patient>-0001.jpeg``, ``NORMAL-<patient>-0001.jpeg``).
"""

from __future__ import annotations

import re
from pathlib import Path

from medcoss_components.data.adapters.beside import odd_files
from medcoss_components.data.adapters.findings import DatasetSource, Findings, Found, LeftOut, bare_name
from medcoss_components.data.adapters.picture_headers import with_sizes
from medcoss_components.data.readers_image import IMAGE_SUFFIXES

SETS = {"train": "training", "val": "validation", "test": "testing"}
CLASSES = {"NORMAL": "normal", "PNEUMONIA": "pneumonia"}
BODY_PART, INNER = "chest", "chest_xray"
_PATIENTS = (
    re.compile(r"(person\d+)_", re.IGNORECASE),
    re.compile(r"(?:NORMAL2-)?(IM-\d+)-", re.IGNORECASE),
    re.compile(r"(?:NORMAL|BACTERIA|VIRUS)-(\d+)-", re.IGNORECASE),
)
"""Beginnings of a name; the group is the patient."""


def find(source: DatasetSource) -> Findings:
    """Images of the sets with the class of their folder.

    The archive of Kaggle holds a second copy of all folders in a folder ``chest_xray``: the outer ones are read.

    Raises:
        InputError: another layout.
    """
    root = source.locate("train", "test")
    found, left, odd = list[Found](), list[LeftOut](), list[Path]()
    for path in source.files(root):
        parts = path.relative_to(root).parts
        if parts[0] == INNER:
            continue
        if not _is_image(parts):
            odd.append(path)
        else:
            found.append(_found(path, "/".join(parts), parts))
    left += odd_files(odd, root, f"no image in a folder {', '.join(SETS)}, in it {' or '.join(CLASSES)}")
    kept, broken = with_sizes(found)
    if unknown := sum(not item.patient for item in kept):
        source.notes.append(f"Of {unknown} of {len(kept)} images the name tells no patient; each counts as one.")
    return kept, left + broken


def _is_image(parts: tuple[str, ...]) -> bool:
    """Whether a place below the root is that of an image of the data set."""
    known = len(parts) == 3 and parts[0] in SETS and parts[1] in CLASSES
    return known and parts[2].lower().endswith(IMAGE_SUFFIXES)


def _found(path: Path, place: str, parts: tuple[str, ...]) -> Found:
    return Found(
        name=bare_name(place),
        keys={"file": place},
        path=path,
        patient=patient_of(path.name),
        label=CLASSES[parts[1]],
        split=SETS[parts[0]],
        files=(path,),
        body_part=BODY_PART,
    )


def patient_of(name: str) -> str:
    """The patient that a file's name tells, "" for none.

    A number counts as one patient whatever stands behind it and in whatever folder: person1_virus_6 and
    person1_bacteria_2 may be of two people, but if they are of one, no split may cut them.

    >>> patient_of("person63_bacteria_306.jpeg"), patient_of("NORMAL2-IM-0927-0001.jpeg"), patient_of("x.jpeg")
    ('person63', 'IM-0927', '')
    >>> patient_of("VIRUS-1008087-0001.jpeg")
    '1008087'
    """
    return next((match.group(1) for pattern in _PATIENTS if (match := pattern.match(name))), "")
