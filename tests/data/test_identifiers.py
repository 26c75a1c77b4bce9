import hashlib
import hmac
import stat

import pytest

from medcoss_components.data import identifiers
from medcoss_components.data.identifiers import default_salt_file, hash_identifier, identifier_salt
from medcoss_components.errors import InputError

SALT = "a salt of twenty chr"


@pytest.fixture(autouse=True)
def no_salt_in_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("MEDCOSS_ID_SALT", raising=False)
    monkeypatch.delenv("MEDCOSS_ID_SALT_FILE", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def test_hash_is_the_start_of_hmac_sha256():
    expected = hmac.new(SALT.encode(), b"PAT-7", hashlib.sha256).hexdigest()[:16]
    assert hash_identifier("PAT-7", SALT) == hash_identifier(" PAT-7\n", SALT) == expected
    assert hash_identifier(12, SALT) == hash_identifier("12", SALT)


def test_another_salt_or_value_gives_another_hash():
    assert len({hash_identifier("1", SALT), hash_identifier("2", SALT), hash_identifier("1", SALT + "x")}) == 3


def test_empty_salt_is_refused():
    with pytest.raises(InputError, match="salt must not be empty"):
        hash_identifier("1", "")


def test_environment_goes_first(monkeypatch, tmp_path):
    monkeypatch.setenv("MEDCOSS_ID_SALT", f" {SALT} ")
    assert identifier_salt(tmp_path / "absent") == SALT


def test_short_salt_is_refused(monkeypatch):
    monkeypatch.setenv("MEDCOSS_ID_SALT", "short")
    with pytest.raises(InputError, match="MEDCOSS_ID_SALT: a salt must have at least 16 characters, got 5"):
        identifier_salt()


def test_key_file_is_made_once_with_mode_600(tmp_path):
    path = tmp_path / "config" / "medcoss" / "id_salt"
    first = identifier_salt()
    assert default_salt_file() == path
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (len(first), identifier_salt()) == (64, first)
    assert [entry.name for entry in path.parent.iterdir()] == ["id_salt"]


def test_key_file_of_a_faster_process_is_kept(tmp_path):
    path = tmp_path / "key"
    path.write_text(SALT)
    path.chmod(0o600)
    identifiers._create_key_file(path)
    assert identifier_salt(path) == SALT


def test_key_file_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("MEDCOSS_ID_SALT_FILE", str(tmp_path / "mine"))
    assert default_salt_file() == tmp_path / "mine"


def test_readable_key_file_is_refused(tmp_path):
    path = tmp_path / "key"
    path.write_text(SALT)
    path.chmod(0o640)
    with pytest.raises(InputError, match="must have mode 600, others have rights 040"):
        identifier_salt(path)


def test_missing_key_file_without_create(tmp_path):
    with pytest.raises(InputError, match="no such key file"):
        identifier_salt(tmp_path / "absent", create=False)
