"""Making manifests: a DICOM tree indexed by headers alone, and long lists of texts.

    python benchmarks/manifest_building.py [--quick] [--record]

Needs the package alone; files are made up, about 1 GB of them, and removed at the end. ``dicom_index_cold`` takes the
files out of the page cache before each side (Linux); the other rows find them in memory, the worst case for headers.
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
from harness import Options, Row, alternate, main, timed

from medcoss_components.data.adapters.own_dicom import find_dicom
from medcoss_components.data.adapters.pubmed_rct import FOLDERS, LABELS
from medcoss_components.data.dataset_building import build_dataset_manifest
from medcoss_components.data.identifiers import SALT_VARIABLE
from medcoss_components.data.manifest import Manifest, read_manifest, write_manifest
from medcoss_components.data.modalities import get_modality

TREE = {"full": (20, 100), "quick": (4, 50)}
"""Studies and slices of each, by form."""
TEXTS = {"full": 100_000, "quick": 10_000}
SIDE, SENTENCES = 512, 10
WORDS = ("patients", "were", "randomised", "to", "receive", "daily", "low", "dose", "or", "placebo", "for", "weeks")


def form_of(options: Options) -> str:
    """Name of the form, as in :data:`TREE`."""
    return "quick" if options.quick else "full"


def smooth_slice(side: int) -> np.ndarray:
    """(side, side) int16: a slope with some noise, so that run lengths compress it about as they do a CT."""
    slope = np.linspace(-1000, 1000, side)[:, None] + np.linspace(0, 40, side)
    return (slope + np.random.default_rng(0).integers(-4, 5, (side, side))).astype(np.int16)


def write_tree(folder: Path, *, studies: int, slices: int, side: int, compressed: bool = False) -> None:
    """One CT series per study: int16 slices of ``side`` x ``side``, 2 mm apart, plain or as RLE."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RLELossless

    pixels, packed = smooth_slice(side).tobytes(), None
    for study in range(studies):
        (folder / f"study-{study:03d}").mkdir(parents=True)
        for index in range(slices):
            dataset = Dataset()
            dataset.file_meta = FileMetaDataset()
            dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
            dataset.SOPInstanceUID = f"1.2.{study}.{index}"
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
            dataset.PatientID, dataset.Modality = f"made-up-{study}", "CT"
            dataset.StudyInstanceUID = dataset.SeriesInstanceUID = f"1.3.{study}"
            dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 2 * index], [1, 0, 0, 0, 1, 0]
            dataset.PixelSpacing, dataset.SliceThickness = [0.8, 0.8], 2
            dataset.Rows = dataset.Columns = side
            dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
            dataset.BitsAllocated = dataset.BitsStored = 16
            dataset.HighBit, dataset.PixelRepresentation = 15, 1
            dataset.PixelData = pixels
            dataset["PixelData"].VR = "OW"
            if compressed and packed is None:
                dataset.compress(RLELossless, generate_instance_uid=False)
                packed = dataset.PixelData
            elif packed is not None:
                dataset.PixelData, dataset.file_meta.TransferSyntaxUID = packed, RLELossless
                dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
            dataset.save_as(folder / f"study-{study:03d}" / f"{index:05d}.dcm", enforce_file_format=True)


def index_with_pixels(folder: Path) -> dict[str, list[tuple[float, Path]]]:
    """The straightforward way: read every file as a whole and look at its image."""
    import pydicom

    series: dict[str, list[tuple[float, Path]]] = defaultdict(list)
    for path in sorted(folder.rglob("*.dcm")):
        dataset = pydicom.dcmread(path)
        if dataset.pixel_array.size:
            series[dataset.SeriesInstanceUID].append((float(dataset.ImagePositionPatient[2]), path))
    return {name: sorted(files) for name, files in series.items()}


def forget(folder: Path) -> None:
    """Take the files of a folder out of the page cache."""
    for path in folder.rglob("*.dcm"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def index_row(options: Options, name: str, how: str, *, compressed: bool = False, cold: bool = False) -> Row:
    """Index a tree of 20 studies with 2,000 slices by their headers, and with their pixels."""
    studies, slices = TREE[form_of(options)]
    tree = options.folder / name
    write_tree(tree, studies=studies, slices=slices, side=SIDE, compressed=compressed)
    os.sync()
    modality = get_modality("ct")
    found, left = find_dicom(tree, modality=modality)
    if len(found) != studies or len(index_with_pixels(tree)) != studies or left:
        raise RuntimeError(f"both sides must find {studies} series, ours found {len(found)} and left {len(left)}")

    def side(work: Callable[[], object]) -> Callable[[], float]:
        measured = timed(work)

        def run() -> float:
            if cold:
                forget(tree)
            return measured()

        return run

    pixels, headers = side(lambda: index_with_pixels(tree)), side(lambda: find_dicom(tree, modality=modality))
    what = f"index {studies} CT studies, {studies * slices} slices of {SIDE} x {SIDE}, {how}: whole files / headers"
    return Row(name, what, "s", *alternate(pixels, headers, pairs=options.pairs_of()), target=None)


def write_texts(folder: Path, count: int) -> Path:
    """The lists of PubMed RCT, with ``count`` made-up sentences for training."""
    generator = np.random.default_rng(0)
    (folder / FOLDERS[0]).mkdir(parents=True)
    lists = (("train.txt", count), ("dev.txt", SENTENCES), ("test.txt", SENTENCES))
    for number, (name, sentences) in enumerate(lists, start=1):
        with open(folder / FOLDERS[0] / name, "w", encoding="utf-8") as stream:
            for start in range(0, sentences, SENTENCES):
                stream.write(f"###{number}{start:07d}\n")
                for k in range(SENTENCES):
                    text = " ".join(generator.choice(WORDS, 20))
                    stream.write(f"{LABELS[k % len(LABELS)]}\t{text} {start + k} .\n")
                stream.write("\n")
    return folder


def build(root: Path, path: Path) -> Manifest:
    """The manifest of the made-up lists, with a salt of its own unless one is set."""
    os.environ.setdefault(SALT_VARIABLE, "made-up data have no secret")
    return build_dataset_manifest("pubmed_rct", root, path, workers=1).manifest


def text_manifest(options: Options) -> Row:
    """Make the manifest of 100,000 sentences: read, look for copies, hash, write."""
    count = TEXTS[form_of(options)]
    root = write_texts(options.folder / "texts", count)
    work = timed(lambda: build(root, options.folder / "texts.json"))
    work()
    ours = tuple(work() for _ in range(options.pairs_of()))
    return Row("text_manifest", f"build a manifest of {count} texts", "s", (), ours, target=None, kind="limit")


def text_manifest_open(options: Options) -> Row:
    """Open the same list as JSON and as Parquet."""
    count = TEXTS[form_of(options)]
    root = write_texts(options.folder / "texts-open", count)
    path = options.folder / "open.json"
    manifest = build(root, path)
    plain = write_manifest(manifest, options.folder / "plain.json", parquet_above=2 * count)
    if read_manifest(plain).training != read_manifest(path).training:
        raise RuntimeError("both files must hold the same items")
    sides = alternate(timed(lambda: read_manifest(plain)), timed(lambda: read_manifest(path)), pairs=options.pairs_of())
    return Row("text_manifest_open", f"open a manifest of {count} texts: JSON / Parquet", "s", *sides, target=None)


ROWS: dict[str, Callable[[Options], Row]] = {
    "dicom_index": lambda options: index_row(options, "dicom_index", "in memory"),
    "dicom_index_cold": lambda options: index_row(options, "dicom_index_cold", "on disk", cold=True),
    "dicom_index_rle": lambda options: index_row(options, "dicom_index_rle", "RLE, in memory", compressed=True),
    "text_manifest": text_manifest,
    "text_manifest_open": text_manifest_open,
}

if __name__ == "__main__":
    sys.exit(main(ROWS))
