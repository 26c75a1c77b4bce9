"""Every reader decodes a tiny file that is made on the spot, so that a missing codec shows before a long run."""

from __future__ import annotations

import tempfile
from base64 import b64decode
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from textwrap import shorten

import numpy as np

from medcoss_components.doctor.findings import ERROR, OK, Finding
from medcoss_components.errors import InputError

SPACING = (2.0, 1.5, 1.0)
PICTURE: np.ndarray = ((np.arange(48).reshape(6, 8) * 37) % 1000).astype(np.uint16)
"""(6, 8) uint16: what the DICOM and PNG samples hold."""
VOLUME: np.ndarray = (np.arange(4 * 5 * 6).reshape(4, 5, 6) - 60).astype(np.int16)
"""(4, 5, 6) int16: what the volume samples hold."""
LOSSLESS_JPEG = (
    "/9j/wwALEAAGAAgBAREA/8QAJAAAAAAAEQAAAAAAAAAAAAAAAAECAwQFBgcICQoLDA0ODxD/2gAIAQEAAQAAgaU0ppTSmlNKaVMoNKaU0ppTSmlN"
    "KmUGlNKaU0ppTSmlTKDSmlNKoPDSmlNKpPzSmlNKaU0ppTSplBpTSmlNKaU0ppf/2Q=="
)
""":data:`PICTURE` as JPEG lossless (process 14, selection value 1) in base64. No required package writes this form."""
COMPRESSIBLE: np.ndarray = ((np.arange(32 * 32).reshape(32, 32) * 37) % 1000).astype(np.uint16)
"""(32, 32) uint16 for codecs that refuse less: JPEG 2000 halves a picture five times."""
LOSSLESS_SYNTAX = "1.2.840.10008.1.2.4.70"
BASELINE_SYNTAX = "1.2.840.10008.1.2.4.50"
PUBMED = """<PubmedArticleSet><PubmedArticle><MedlineCitation><PMID>1</PMID><Article><ArticleTitle>t</ArticleTitle>
<Abstract><AbstractText NlmCategory="METHODS">two words</AbstractText></Abstract><Language>eng</Language></Article>
</MedlineCitation></PubmedArticle></PubmedArticleSet>"""


def check_readers() -> Iterator[Finding]:
    """One finding per format."""
    with tempfile.TemporaryDirectory(prefix="medcoss-doctor-") as folder:
        for name, check in FORMATS.items():
            yield _tried(name, check, Path(folder))


def _tried(name: str, check: Callable[[Path], str], folder: Path) -> Finding:
    try:
        remark = check(folder)
    except Exception as error:  # a codec that is missing or broken raises what it likes; the file holds no secrets
        cause = error.__cause__ or error  # ours speaks of a file to restore, which this one is not
        detail = shorten(str(cause) if isinstance(cause, InputError) else f"{type(cause).__name__}: {cause}", 200)
        return Finding(ERROR, name, f"cannot be read ({detail})", "reinstall medcoss-components with its requirements")
    return Finding(OK, name, remark, fold="readers")


def _same(found: np.ndarray, expected: np.ndarray, tolerance: float = 0) -> str:
    if found.shape != expected.shape or np.abs(found.astype(float) - expected.astype(float)).max() > tolerance:
        raise InputError("the values that were read are not those that were written")
    return ""


def _picture(name: str) -> Callable[[Path], str]:
    """Check of a format that stores (32, 24, 3) uint8 pictures; JPEG within 12 of 255 on a smooth one."""

    def check(folder: Path) -> str:
        from PIL import Image

        from medcoss_components.data.readers import read_image

        rows, columns = np.mgrid[0:32, 0:24]
        colours = np.stack([rows * 4, columns * 5, np.full_like(rows, 60)], axis=2).astype(np.uint8)
        Image.fromarray(colours).save(folder / name)
        return _same(read_image(folder / name).array, colours, tolerance=12 if name.endswith("jpg") else 0)

    return check


def _grey_png(folder: Path) -> str:
    from medcoss_components.data.readers import read_image
    from medcoss_components.data.writers import write_picture

    write_picture(folder / "grey.png", PICTURE)
    return _same(read_image(folder / "grey.png").array, PICTURE)


def _nifti(folder: Path) -> str:
    from medcoss_components.data.writers import write_nifti

    write_nifti(folder / "volume.nii.gz", VOLUME, SPACING)
    return _volume(folder / "volume.nii.gz")


def _itk(name: str) -> Callable[[Path], str]:
    """Check of a format that SimpleITK writes; its axes already point as ours do."""

    def check(folder: Path) -> str:
        import SimpleITK

        image = SimpleITK.GetImageFromArray(VOLUME)
        image.SetSpacing(SPACING[::-1])
        SimpleITK.WriteImage(image, str(folder / name), True)
        return _volume(folder / name)

    return check


def _volume(path: Path) -> str:
    from medcoss_components.data.readers import read_volume

    volume = read_volume(path)
    if not np.allclose(volume.spacing, SPACING):
        raise InputError("the spacing that was read is not the one that was written")
    return _same(volume.array, VOLUME)


def _dicom_series(folder: Path) -> str:
    from medcoss_components.data.readers import read_volume
    from medcoss_components.data.writers import write_dicom_series

    write_dicom_series(folder / "series", VOLUME, modality="CT", thickness=2.0)
    return _same(read_volume(folder / "series").array, VOLUME)


def _compressed(syntax: str) -> Callable[[Path], str]:
    """Check of a DICOM compression that a required package writes; ``syntax`` is a name of ``pydicom.uid``."""

    def check(folder: Path) -> str:
        from pydicom import dcmread, uid

        path = _plain_dicom(folder, COMPRESSIBLE)
        dataset = dcmread(path)
        dataset.compress(getattr(uid, syntax), generate_instance_uid=False)
        dataset.save_as(path)
        return _same(_read(path), COMPRESSIBLE)

    return check


def _plain_dicom(folder: Path, picture: np.ndarray = PICTURE) -> Path:
    from medcoss_components.data.writers import write_dicom

    path = folder / "image.dcm"
    write_dicom(path, picture, modality="CT", position=0.0)
    return path


def _read(path: Path) -> np.ndarray:
    from medcoss_components.data.readers import read_image

    return read_image(path).array


def _lossless(folder: Path) -> str:
    return _same(_read(_encapsulated(folder, b64decode(LOSSLESS_JPEG), LOSSLESS_SYNTAX)), PICTURE)


def _baseline(folder: Path) -> str:
    from io import BytesIO

    from PIL import Image

    smooth = np.add.outer(np.arange(16) * 6, np.arange(24) * 5).astype(np.uint8)
    stream = BytesIO()
    Image.fromarray(smooth).save(stream, "JPEG", quality=95)
    path = _encapsulated(
        folder, stream.getvalue(), BASELINE_SYNTAX, Rows=16, Columns=24, BitsAllocated=8, BitsStored=8, HighBit=7
    )
    return _same(_read(path), smooth, tolerance=12)


def _encapsulated(folder: Path, frame: bytes, syntax: str, **elements: int) -> Path:
    """A DICOM file whose one frame is compressed already."""
    from pydicom import dcmread
    from pydicom.encaps import encapsulate

    path = _plain_dicom(folder)
    dataset = dcmread(path)
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path)
    return path


def _jpeg_ls(folder: Path) -> str:
    """Written by an optional package; pylibjpeg-libjpeg reads it all the same."""
    if find_spec("jpeg_ls") is None:
        return "(not tried: pyjpegls is not installed)"
    return _compressed("JPEGLSLossless")(folder)


def _pubmed(folder: Path) -> str:
    return _text(folder / "articles.xml", PUBMED)


def _table(folder: Path) -> str:
    return _text(folder / "texts.csv", "id,text\n1,two words\n")


def _text(path: Path, content: str) -> str:
    from medcoss_components.data.readers import read_texts

    path.write_text(content, encoding="utf-8")
    if [record.text for record in read_texts(path)] != ["two words"]:
        raise InputError("the text that was read is not the one that was written")
    return ""


FORMATS: dict[str, Callable[[Path], str]] = {
    "PNG": _grey_png,
    "JPEG": _picture("colours.jpg"),
    "TIFF": _picture("colours.tiff"),
    "BMP": _picture("colours.bmp"),
    "NIfTI": _nifti,
    "NRRD": _itk("volume.nrrd"),
    "MetaImage": _itk("volume.mha"),
    "DICOM series": _dicom_series,
    "DICOM RLE": _compressed("RLELossless"),
    "DICOM JPEG": _baseline,
    "DICOM JPEG lossless": _lossless,
    "DICOM JPEG 2000": _compressed("JPEG2000Lossless"),
    "DICOM JPEG-LS": _jpeg_ls,
    "PubMed XML": _pubmed,
    "CSV": _table,
}
"""Format -> its check: writes below a folder, reads back, returns a remark or raises."""
