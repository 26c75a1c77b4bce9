"""PubMed 20k and 200k RCT: sentences of abstracts of randomised trials, each with the section that it stands in.

    ###24293578
    OBJECTIVE<tab>To investigate the efficacy of ...
    METHODS<tab>A total of 125 patients ...
    <empty line>

The number is the abstract's PubMed number: sentences of one abstract are one group.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from medcoss_components.data.adapters.findings import DatasetSource, Findings, Found, LeftOut
from medcoss_components.data.readers_common import naming_file
from medcoss_components.errors import InputError
from medcoss_components.progress import progress

FOLDERS = (
    "PubMed_20k_RCT",
    "PubMed_20k_RCT_numbers_replaced_with_at_sign",
    "PubMed_200k_RCT",
    "PubMed_200k_RCT_numbers_replaced_with_at_sign",
)
LABELS = ("BACKGROUND", "OBJECTIVE", "METHODS", "RESULTS", "CONCLUSIONS")
SPLIT_FILES = {"train.txt": "training", "dev.txt": "validation", "test.txt": "testing"}
ARCHIVES = ("train.7z", "train.zip")
_NUMBER, _NO_NUMBER = "###", "no abstract number stands above it"


def find(source: DatasetSource) -> Findings:
    """Sentences of the folder that the setting ``folder`` names, one of :data:`FOLDERS`.

    Raises:
        InputError: another layout, or a training list that is still packed.
    """
    folder = _folder(source)
    found, left = list[Found](), list[LeftOut]()
    for name, split in SPLIT_FILES.items():
        for entry in progress(_sentences(folder / name, split), description=f"read {name}", unit="sentence"):
            if isinstance(entry, Found):
                found.append(entry)
            else:
                left.append(entry)
    return found, left + _others(folder)


def _folder(source: DatasetSource) -> Path:
    """Where the three lists lie: in the root itself, or in the folder of the variant below it."""
    variant = source.settings.get("folder", FOLDERS[0])
    if variant not in FOLDERS:
        raise InputError(f"folder: must be one of {', '.join(FOLDERS)}, got {variant!r}.")
    root = source.root
    if any((root / name).is_file() for name in SPLIT_FILES):
        if root.absolute().name in FOLDERS and root.absolute().name != variant:
            raise InputError(f"{root}: is not the variant {variant}. Give --set folder={root.absolute().name}.")
        folder = root
    else:
        folder = source.locate(variant) / variant
    for name in SPLIT_FILES:
        if not (folder / name).is_file():
            packed = next((archive for archive in ARCHIVES if (folder / archive).is_file()), None)
            advice = f"Unpack {packed} there." if packed else "The three lists are train.txt, dev.txt and test.txt."
            raise InputError(f"{folder}: holds no {name}. {advice}")
    return folder


def _sentences(path: Path, split: str) -> Iterator[Found | LeftOut]:
    """Sentences of one list, one by one; an empty line ends an abstract."""
    abstract = ""
    with naming_file(path, show_detail=False), open(path, "rb") as stream:
        for number, raw in enumerate(stream, start=1):
            where = f"{path.name} line {number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip(" \r\n")
            except UnicodeDecodeError:
                yield LeftOut(where, "not UTF-8")
                continue
            if not line:
                abstract = ""
            elif line.startswith(_NUMBER):
                abstract = line.removeprefix(_NUMBER).strip()
                if not abstract.isdecimal():
                    abstract = ""
                    yield LeftOut(where, "behind ### stands no PubMed number")
            else:
                yield _sentence(line, where, abstract, split)


def _sentence(line: str, where: str, abstract: str, split: str) -> Found | LeftOut:
    label, tab, text = line.partition("\t")
    label, text = label.strip(), " ".join(text.split())
    if not tab:
        return LeftOut(where, "no tab between label and sentence")
    if label not in LABELS:
        return LeftOut(where, f"the label is none of {', '.join(LABELS)}")
    if not text:
        return LeftOut(where, "the sentence is empty")
    if not abstract:
        return LeftOut(where, _NO_NUMBER)
    return Found(name=where, text=text, patient=abstract, label=label, split=split)


def _others(folder: Path) -> list[LeftOut]:
    """Entries beside the lists that are not of the publisher."""
    known = {*SPLIT_FILES, *ARCHIVES, "README.md", "LICENSE", *FOLDERS}
    names = sorted(entry.name for entry in folder.iterdir())
    unknown = [name for name in names if name not in known and not name.startswith(".")]
    return [LeftOut(name, "not part of the published layout") for name in unknown]
