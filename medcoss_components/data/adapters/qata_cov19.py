"""QaTa-COV19 v2: radiographs and masks of infected regions, in a training and a test folder.

Images of BIMCV carry their subject in the name (``sub-S...``); of the others (``covid_<n>``) no patient is known.
"""

from __future__ import annotations

import re
from pathlib import Path

from medcoss_components.data.adapters.beside import is_beside
from medcoss_components.data.adapters.findings import DatasetSource, Findings, Found, LeftOut, bare_name
from medcoss_components.data.adapters.picture_headers import looked_at
from medcoss_components.data.masks import PICTURE_SUFFIXES
from medcoss_components.data.readers_image import IMAGE_SUFFIXES
from medcoss_components.errors import InputError
from medcoss_components.progress import progress

FOLDERS = {"Train Set": "training", "Test Set": "testing"}
IMAGES, MASKS, PREFIX = "Images", "Ground-truths", "mask_"
_SUBJECT = re.compile(r"sub-[A-Za-z0-9]+")


def find(source: DatasetSource) -> Findings:
    """Pairs of an image and its mask ``mask_<name of the image>``, both of one size.

    Raises:
        InputError: another layout.
    """
    root = source.locate(*FOLDERS)
    for folder in FOLDERS:
        for part in (IMAGES, MASKS):
            if not (root / folder / part).is_dir():
                raise InputError(f"{root / folder}: holds no folder {part}. Unpack the whole data set.")
    images, masks, left = _sorted_out(root, source)
    found = list[Found]()
    for path in progress(images, description="look at files", unit="file"):
        mask = masks.pop((_folder(path, root), path.stem), None)
        entry = _pair(path, mask, root)
        if isinstance(entry, Found):
            found.append(entry)
        else:
            left.append(entry)
    if unknown := sum(not item.patient for item in found):
        source.notes.append(f"Of {unknown} of {len(found)} images no patient is known; each counts as a patient.")
    return found, left + [LeftOut(path.relative_to(root).as_posix(), "a mask without image") for path in masks.values()]


def _folder(path: Path, root: Path) -> str:
    return path.relative_to(root).parts[0]


def _sorted_out(root: Path, source: DatasetSource) -> tuple[list[Path], dict[tuple[str, str], Path], list[LeftOut]]:
    """Images, masks by folder and name of their image, and other files."""
    images, masks, left = list[Path](), dict[tuple[str, str], Path](), list[LeftOut]()
    for path in source.files(root):
        relative = path.relative_to(root)
        part = relative.parts[1] if len(relative.parts) == 3 and relative.parts[0] in FOLDERS else ""
        if is_beside(path):
            continue
        if part not in (IMAGES, MASKS):
            places = f"{' or '.join(FOLDERS)}, in {IMAGES} or {MASKS}"
            left.append(LeftOut(relative.as_posix(), f"a file that lies elsewhere than in {places}"))
        elif not path.name.lower().endswith(IMAGE_SUFFIXES if part == IMAGES else PICTURE_SUFFIXES):
            left.append(LeftOut(relative.as_posix(), f"files ending in {path.suffix or 'nothing'} are not read here"))
        elif part == IMAGES:
            images.append(path)
        elif not path.name.startswith(PREFIX):
            left.append(LeftOut(relative.as_posix(), f"a mask whose name does not begin with {PREFIX}"))
        elif (key := (relative.parts[0], path.stem.removeprefix(PREFIX))) in masks:
            left.append(LeftOut(relative.as_posix(), f"{masks[key].name} is a mask of this image too"))
        else:
            masks[key] = path
    return images, masks, left


def _pair(path: Path, mask: Path | None, root: Path) -> Found | LeftOut:
    """An image with its mask, or why it is left out."""
    relative = path.relative_to(root).as_posix()
    size, problem = looked_at(path)
    if mask is None or problem:
        return LeftOut(relative, problem or "an image without mask")
    mask_size, problem = looked_at(mask)
    if problem:
        return LeftOut(relative, f"its mask {problem}")
    if size != mask_size:
        return LeftOut(relative, f"the image has {size} pixels (width, height), its mask {mask_size}")
    subject = _SUBJECT.match(path.name)
    return Found(
        name=bare_name(relative),
        keys={"file": relative},
        path=path,
        patient=subject.group(0) if subject else "",
        label=mask.absolute(),
        split=FOLDERS[_folder(path, root)],
        size=size,
        files=(path,),
    )
