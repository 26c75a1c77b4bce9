"""RSNA pneumonia challenge of 2018: ``stage_2_train_images/<image>.dcm`` and two tables, of classes and of boxes.

Every image has a name of its own, which the tables call patientId though a patient may have several images. The
mapping to NIH ChestX-ray14, which RSNA publishes beside the challenge, tells the patients where it is there.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from medcoss_components.data.adapters.beside import odd_files
from medcoss_components.data.adapters.findings import DatasetSource, Findings, Found, LeftOut, bare_name, reason
from medcoss_components.data.adapters.picture_headers import THREADS
from medcoss_components.data.adapters.picture_lists import by_key, missing_files
from medcoss_components.data.modalities import Modality
from medcoss_components.data.readers_common import naming_file
from medcoss_components.data.readers_dicom import check_modality, read_dataset
from medcoss_components.data.readers_text import table_reader
from medcoss_components.errors import InputError
from medcoss_components.files import read_json
from medcoss_components.progress import progress

IMAGES, CLASSES_TABLE, BOXES_TABLE = (
    "stage_2_train_images",
    "stage_2_detailed_class_info.csv",
    "stage_2_train_labels.csv",
)
MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"
TEST_IMAGES = "stage_2_test_images"
OTHER = "No Lung Opacity / Not Normal"
CLASSES = {"Normal": "normal", "Lung Opacity": "pneumonia", OTHER: ""}
"""Class of the publisher -> ours; what becomes of the empty one is a setting."""
OTHERS = ("leave out", "normal")
BODY_PART = "chest"
_TABLES = (CLASSES_TABLE, BOXES_TABLE, MAPPING, "stage_2_sample_submission.csv")


def find(source: DatasetSource) -> Findings:
    """Images with their class; those with other findings are left out, or count as normal (without pneumonia).

    Raises:
        InputError: another layout, a table that contradicts itself or has no such columns, or another setting.
    """
    if (others := source.settings["others"]) not in OTHERS:
        raise InputError(f"settings: others must be one of {', '.join(OTHERS)}, got {others!r}.")
    root = source.locate(IMAGES, CLASSES_TABLE)
    labels, patients = _classes(root / CLASSES_TABLE), _patients(root)
    files = [path for path in source.files(root) if path.name not in _TABLES and TEST_IMAGES not in path.parts]
    images, left, odd = by_key(files, root, lambda path: path.stem if _is_image(path, root) else None)
    left += odd_files(odd, root, f"no DICOM file in {IMAGES}")
    left += missing_files([f"{IMAGES}/{name}.dcm" for name in labels if name not in images], CLASSES_TABLE, "not there")
    found = list[Found]()
    for name, path in images.items():
        item = _found(path, root, patients.get(name, ""))
        label = labels.get(name)
        if label is None:
            left.append(LeftOut(item.name, f"an image that {CLASSES_TABLE} does not name"))
        elif label or others == "normal":
            found.append(replace(item, label=label or "normal"))
    without = sum(not labels.get(name, "x") for name in images) if others == "leave out" else 0
    if without:
        left.append(LeftOut(IMAGES, f"{without} images of the class {OTHER!r}; --set others=normal takes them"))
    if not patients:
        source.notes.append(f"{MAPPING} is not there, so no patient is known; each image counts as a patient.")
    kept, broken = _with_headers(found, source.modality)
    return kept, left + broken


def _is_image(path: Path, root: Path) -> bool:
    return path.suffix.lower() == ".dcm" and path.relative_to(root).parts[0] == IMAGES


def _classes(path: Path) -> dict[str, str]:
    """Name of an image -> our class, "" for :data:`OTHER`.

    Raises:
        InputError: no such columns, an unknown class, or two classes of one image; lines are named.
    """
    with naming_file(path, show_detail=False):
        reader: csv.DictReader = table_reader(path)
        rows = [(reader.line_num, row) for row in reader]
    if not {"patientId", "class"} <= set(reader.fieldnames or ()):
        raise InputError(f"{path}: must have the columns 'patientId' and 'class', found {reader.fieldnames}.")
    labels = dict[str, str]()
    for line, row in rows:
        if row["class"] not in CLASSES:
            raise InputError(f"{path}: line {line}: the class must be one of {', '.join(CLASSES)}. Restore the table.")
        label = CLASSES[row["class"]]
        if labels.setdefault(row["patientId"], label) != label:
            raise InputError(f"{path}: line {line} gives an image another class than before. Restore the table.")
    return labels


def _patients(root: Path) -> Mapping[str, str]:
    """Name of an image -> patient of NIH ChestX-ray14, from the publisher's mapping; empty where it is not there.

    Raises:
        InputError: a file of another form.
    """
    path = root / MAPPING
    if not path.is_file():
        return {}
    try:
        return {str(row["subset_img_id"]): str(row["img_id"]).partition("_")[0] for row in read_json(path)}
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: must be a list of rows with subset_img_id and img_id. Restore the file.") from error


def _found(path: Path, root: Path, patient: str) -> Found:
    place = path.relative_to(root).as_posix()
    return Found(
        name=bare_name(place), keys={"file": place}, path=path, patient=patient, files=(path,), body_part=BODY_PART
    )


def _with_headers(found: Sequence[Found], modality: Modality) -> Findings:
    """Images with the size of their header; those that are no radiograph or cannot be read are left out."""
    kept, left = list[Found](), list[LeftOut]()
    with ThreadPoolExecutor(THREADS) as pool:
        looked = pool.map(partial(_looked_at, modality=modality), found, chunksize=64)
        bar = progress(looked, description="look at images", total=len(found), unit="file")
        for item, (size, why) in zip(found, bar, strict=True):
            if why:
                left.append(LeftOut(item.name, why))
            else:
                kept.append(replace(item, size=size))
    return kept, left


def _looked_at(item: Found, modality: Modality) -> tuple[tuple[int, ...], str]:
    """(width, height) and "", or () and why the image cannot be used."""
    path = Path(str(item.path))
    try:
        dataset = read_dataset(path, stop_before_pixels=True)
        check_modality(dataset, modality.dicom_modalities, path)
    except InputError as error:
        return (), reason(error, path)
    return (int(dataset.Columns), int(dataset.Rows)), ""
