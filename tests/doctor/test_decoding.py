from base64 import b64encode

import numpy as np
import pytest

from medcoss_components.doctor import decoding
from medcoss_components.doctor.decoding import COMPRESSIBLE, FORMATS, LOSSLESS_JPEG, PICTURE, check_readers
from medcoss_components.doctor.findings import ERROR, OK
from medcoss_components.errors import InputError


def lossless_jpeg(picture):
    """JPEG lossless, process 14 with predictor 1: each difference to the left pixel as category (5 bits) and value."""
    bits = ""
    for (row, column), value in np.ndenumerate(picture.astype(int)):
        left, above = picture[row, column - 1] if column else None, picture[row - 1, 0] if row else 1 << 15
        difference = int(value) - int(above if left is None else left)
        size = abs(difference).bit_length()
        bits += f"{size:05b}"
        if 0 < size < 16:  # category 16 is -32768 alone
            bits += f"{difference if difference > 0 else difference + (1 << size) - 1:0{size}b}"
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\x00")
    rows, columns = (side.to_bytes(2, "big") for side in picture.shape)
    segments = {
        0xC3: bytes([16, *rows, *columns, 1, 1, 0x11, 0]),
        0xC4: bytes([0, 0, 0, 0, 0, 17, *[0] * 11, *range(17)]),  # 17 codes of 5 bits
        0xDA: bytes([1, 1, 0, 1, 0, 0]),
    }
    parts = [bytes([0xFF, mark]) + (len(body) + 2).to_bytes(2, "big") + body for mark, body in segments.items()]
    return b"\xff\xd8" + b"".join(parts) + data + b"\xff\xd9"


class TestReaders:
    def test_all_formats_here(self):
        found = {entry.what: entry for entry in check_readers()}
        assert {name: entry.value for name, entry in found.items() if entry.status != OK} == {}
        assert list(found) == list(FORMATS) and len(found) == 15

    def test_the_embedded_sample(self):
        assert b64encode(lossless_jpeg(PICTURE)).decode() == LOSSLESS_JPEG

    def test_a_missing_codec(self, tmp_path, monkeypatch):
        def fail(folder):
            try:
                raise RuntimeError("no plug-in")
            except RuntimeError as error:
                raise InputError("image.dcm: Restore the file.") from error

        found = decoding._tried("DICOM RLE", fail, tmp_path)
        assert (found.status, found.value) == (ERROR, "cannot be read (RuntimeError: no plug-in)")

    def test_damaged_values_are_seen(self, tmp_path, monkeypatch):
        monkeypatch.setattr(decoding, "_read", lambda path: COMPRESSIBLE + 1)
        found = decoding._tried("DICOM RLE", FORMATS["DICOM RLE"], tmp_path)
        assert found.value == "cannot be read (the values that were read are not those that were written)"

    def test_another_spacing(self, tmp_path, monkeypatch):
        monkeypatch.setattr(decoding, "SPACING", (2.0, 1.5, 1.0))
        FORMATS["NIfTI"](tmp_path)
        monkeypatch.setattr(decoding, "SPACING", (2.0, 1.5, 1.1))
        with pytest.raises(InputError, match="spacing"):
            decoding._volume(tmp_path / "volume.nii.gz")

    def test_another_text(self, tmp_path):
        with pytest.raises(InputError, match="text"):
            decoding._text(tmp_path / "a.csv", "id,text\n1,other words\n")

    def test_an_optional_encoder(self, tmp_path, monkeypatch):
        monkeypatch.setattr(decoding, "find_spec", lambda name: None)
        assert "not tried" in FORMATS["DICOM JPEG-LS"](tmp_path)
