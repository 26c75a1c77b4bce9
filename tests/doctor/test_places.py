from collections import namedtuple

import pytest

from medcoss_components.data.identifiers import SALT_FILE_VARIABLE, SALT_VARIABLE
from medcoss_components.doctor import places
from medcoss_components.doctor.findings import ERROR, OK, WARNING
from medcoss_components.errors import InputError

SALT = "a salt that nobody may see"


def only(found):
    (finding,) = found
    return finding


class TestSalt:
    @pytest.fixture(autouse=True)
    def key_file(self, tmp_path, monkeypatch):
        monkeypatch.delenv(SALT_VARIABLE, raising=False)
        monkeypatch.setenv(SALT_FILE_VARIABLE, str(tmp_path / "id_salt"))
        return tmp_path / "id_salt"

    def test_environment(self, monkeypatch):
        monkeypatch.setenv(SALT_VARIABLE, SALT)
        found = only(places.check_salt())
        assert (found.status, found.value) == (OK, f"from {SALT_VARIABLE}")

    def test_too_short(self, monkeypatch):
        monkeypatch.setenv(SALT_VARIABLE, "abc")
        found = only(places.check_salt())
        assert found.status == ERROR and "16 characters" in found.value and "abc" not in found.value

    def test_none_yet_and_none_is_made(self, key_file):
        found = only(places.check_salt())
        assert found.status == OK and "none yet" in found.value and not key_file.exists()

    @pytest.mark.parametrize(("mode", "status"), [(0o600, OK), (0o644, ERROR)])
    def test_key_file(self, key_file, mode, status):
        key_file.write_text(SALT)
        key_file.chmod(mode)
        found = only(places.check_salt())
        assert found.status == status and str(key_file) in found.value and SALT not in found.value + found.advice


class TestTracking:
    @pytest.mark.slow
    def test_a_database_and_a_server_that_is_not_touched(self, monkeypatch, tmp_path):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://name:secret@tracking.example:1")
        found = list(places.check_tracking())
        assert [entry.status for entry in found] == [OK, OK]
        assert "tracking.example" in found[1].value and "secret" not in found[1].value

    def test_broken(self, monkeypatch):
        from medcoss_components.tracking import runs

        def fail(*_, **__):
            raise ImportError("SECRET")

        monkeypatch.setattr(runs, "open_tracking", fail)
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        found = only(places.check_tracking())
        assert (found.status, found.value) == (ERROR, "no database could be made (ImportError)")

    def test_what_ours_says_is_shown(self, monkeypatch):
        from medcoss_components.tracking import runs

        def fail(*_, **__):
            raise InputError("mlflow is not installed")

        monkeypatch.setattr(runs, "open_tracking", fail)
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert "mlflow is not installed" in only(places.check_tracking()).value


class TestFolders:
    def test_written_to_and_left_as_it_was(self, tmp_path):
        found = only(places.check_folder(tmp_path / "a" / "b", "output folder"))
        assert found.status == OK and "(will be made)" in found.value and not list(tmp_path.iterdir())
        assert "(will be made)" not in only(places.check_folder(tmp_path, "output folder")).value

    def test_little_room(self, tmp_path, monkeypatch):
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(places.shutil, "disk_usage", lambda path: usage(10, 5, 5_000_000))
        found = only(places.check_folder(tmp_path, "output folder", 1e9))
        assert found.status == WARNING and found.value.endswith(": 5.0 MB free") and "1.0 GB" in found.advice

    def test_not_writable(self, tmp_path, monkeypatch):
        def denied(**_):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(places.tempfile, "TemporaryFile", denied)
        found = only(places.check_folder(tmp_path, "store folder"))
        assert found.status == ERROR and "Permission denied" in found.advice

    def test_a_file_in_its_place(self, tmp_path):
        (tmp_path / "file").write_text("")
        found = only(places.check_folder(tmp_path / "file" / "stores", "store folder"))
        assert (found.status, found.what) == (ERROR, "store folder") and "file is a file" in found.value
