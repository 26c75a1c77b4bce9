"""Atomic writes, leftovers of interrupted ones, JSON and hashes."""

from __future__ import annotations

import errno
import hashlib
import os

import pytest

from medcoss_components import files
from medcoss_components.errors import DiskFullError, InputError
from medcoss_components.files import (
    atomic_folder,
    atomic_path,
    check_archive,
    file_beside,
    folder_of,
    is_disk_full,
    read_json,
    remove_partial,
    sha256_file,
    sha256_json,
    write_json,
)


class Crash(RuntimeError):
    """What a test throws."""


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


class TestAtomicPath:
    def test_file_appears_whole(self, tmp_path):
        with atomic_path(tmp_path / "new" / "a.txt") as partial:
            partial.write_text("content")
            assert partial.parent == tmp_path / "new" and not (tmp_path / "new" / "a.txt").exists()
        assert (tmp_path / "new" / "a.txt").read_text() == "content"
        assert names(tmp_path / "new") == ["a.txt"]

    @pytest.mark.parametrize("name", ["a.txt", "a.nii.gz", "plain"])
    def test_temporary_name_keeps_the_suffix_and_names_the_process(self, name, tmp_path):
        with atomic_path(tmp_path / name) as partial:
            partial.touch()
            assert partial.suffix == (tmp_path / name).suffix or name == "plain"
            assert str(os.getpid()) in partial.name and partial.name.startswith(".")
        assert names(tmp_path) == [name]

    def test_error_keeps_the_former_content(self, tmp_path):
        path = tmp_path / "a.txt"
        path.write_text("former")
        with pytest.raises(Crash), atomic_path(path) as partial:
            partial.write_text("half")
            raise Crash
        assert path.read_text() == "former" and names(tmp_path) == ["a.txt"]

    def test_nothing_written_is_an_error(self, tmp_path):
        with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a.txt"):
            pass
        assert names(tmp_path) == []


class TestAtomicFolder:
    def test_folder_appears_whole(self, tmp_path):
        with atomic_folder(tmp_path / "store") as partial:
            (partial / "a").touch()
            assert not (tmp_path / "store").exists()
        assert names(tmp_path / "store") == ["a"] and names(tmp_path) == ["store"]

    def test_error_leaves_nothing(self, tmp_path):
        with pytest.raises(Crash), atomic_folder(tmp_path / "store") as partial:
            (partial / "a").touch()
            raise Crash
        assert names(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
class TestFullDisk:
    def test_is_said_with_the_file(self, number, tmp_path):
        path = tmp_path / "a.txt"
        path.write_text("former")
        with pytest.raises(DiskFullError, match=r"a.txt: the disk.*bytes are free"), atomic_path(path):
            raise OSError(number, "no room")
        assert path.read_text() == "former" and names(tmp_path) == ["a.txt"]

    def test_behind_another_error(self, number, tmp_path):
        """torch says it as a RuntimeError."""
        with pytest.raises(DiskFullError), atomic_folder(tmp_path / "store"):
            try:
                raise OSError(number, "no room")
            except OSError as error:
                raise RuntimeError("write failed") from error

    def test_is_recognised(self, number, tmp_path):
        assert is_disk_full(OSError(number, "no room")) and is_disk_full(DiskFullError("told"))
        assert not is_disk_full(OSError(errno.ENOENT, "gone")) and not is_disk_full(None)
        assert is_disk_full(OSError("10 requested and 8 written")) and not is_disk_full(OSError("other"))


class TestRemovePartial:
    def test_removes_leftovers_only(self, tmp_path):
        (tmp_path / ".model.12.partial.pt").touch()
        (tmp_path / ".store.12.partial").mkdir()
        (tmp_path / ".store.12.partial" / "a").touch()
        (tmp_path / "model.pt").touch()
        (tmp_path / "below").mkdir()
        (tmp_path / "below" / ".a.12.partial").touch()
        assert remove_partial(tmp_path) == 2
        assert names(tmp_path) == ["below", "model.pt"] and names(tmp_path / "below") == [".a.12.partial"]

    def test_missing_folder(self, tmp_path):
        assert remove_partial(tmp_path / "gone") == 0

    def test_finds_what_atomic_path_leaves_when_killed(self, tmp_path, monkeypatch):
        with pytest.raises(Crash), monkeypatch.context() as patch:
            patch.setattr(files.Path, "unlink", lambda *arguments, **options: None)
            with atomic_path(tmp_path / "model.pt") as partial:
                partial.touch()
                raise Crash
        assert remove_partial(tmp_path) == 1 and names(tmp_path) == []


class TestJson:
    def test_round_trip(self, tmp_path):
        content = {"b": [1, 2.5, None], "a": "größer"}
        write_json(tmp_path / "new" / "a.json", content)
        assert read_json(tmp_path / "new" / "a.json") == content
        text = (tmp_path / "new" / "a.json").read_text(encoding="utf-8")
        assert "größer" in text and text.endswith("}\n") and '\n  "b"' in text

    def test_missing_file(self, tmp_path):
        with pytest.raises(InputError, match="gone.json: no such file"):
            read_json(tmp_path / "gone.json")

    @pytest.mark.parametrize("content", [b'{"a": ', b"\xff\xfe\x00"])
    def test_damaged_file(self, content, tmp_path):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(InputError, match="a.json: not a JSON file"):
            read_json(tmp_path / "a.json")


class TestArchive:
    """``torch.load`` does not compare the checksums of its archive; this does."""

    @pytest.fixture
    def path(self, tmp_path):
        import zipfile

        with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
            archive.writestr("data/0", bytes(range(200)))
        return tmp_path / "model.pt"

    def test_whole_archives_and_other_files_pass(self, path, tmp_path):
        (tmp_path / "text").write_text("no archive")
        check_archive(path)
        check_archive(tmp_path / "text")

    def test_changed_byte_is_found(self, path):
        content = bytearray(path.read_bytes())
        content[content.index(bytes([50, 51, 52]))] ^= 1
        path.write_bytes(bytes(content))
        with pytest.raises(InputError, match=r"model.pt: damaged since it was written \(data/0"):
            check_archive(path)

    def test_damaged_structure_is_found(self, path):
        content = bytearray(path.read_bytes())
        content[:4] = b"XXXX"  # signature of the first local header
        path.write_bytes(bytes(content))
        with pytest.raises(InputError, match=r"model.pt: damaged"):
            check_archive(path)


class TestBeside:
    def test_folder_of_a_file_and_of_a_folder(self, tmp_path):
        (tmp_path / "model.pt").write_text("weights")
        assert folder_of(tmp_path / "model.pt") == folder_of(tmp_path) == tmp_path

    def test_file_beside_a_file_and_in_a_folder(self, tmp_path):
        for name in ("model.pt", "vocabulary.json"):
            (tmp_path / name).write_text("content")
        for path in (tmp_path, str(tmp_path / "model.pt")):
            assert file_beside(path, "vocabulary.json") == tmp_path / "vocabulary.json"

    def test_none_without_the_file_or_a_path(self, tmp_path):
        (tmp_path / "folder").mkdir()
        assert file_beside(tmp_path, "vocabulary.json") is None
        assert file_beside(tmp_path, "folder") is None
        assert file_beside(None, "vocabulary.json") is None


class TestHashes:
    def test_file(self, tmp_path):
        content = bytes(range(256)) * 5000  # more than one block
        (tmp_path / "a").write_bytes(content)
        assert sha256_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()

    def test_json_does_not_depend_on_order(self):
        assert sha256_json({"a": 1, "b": [2]}) == sha256_json({"b": [2], "a": 1})
        assert sha256_json({"a": 1}) == hashlib.sha256(b'{"a":1}').hexdigest()
        assert sha256_json([1, 2]) != sha256_json([2, 1])
