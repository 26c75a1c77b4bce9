"""Hashing of patient and study identifiers with a salt that stays with the data owner.

Manifests, logs and MLflow only ever see ``hash_identifier(value, salt)``. The salt comes from the environment variable
``MEDCOSS_ID_SALT`` or from a key file that only its owner can read, outside any output directory.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from medcoss_components.errors import InputError

SALT_VARIABLE = "MEDCOSS_ID_SALT"
SALT_FILE_VARIABLE = "MEDCOSS_ID_SALT_FILE"
MINIMUM_SALT_LENGTH = 16
HASH_DIGITS = 16


def default_salt_file() -> Path:
    """The key file: ``MEDCOSS_ID_SALT_FILE``, or ``medcoss/id_salt`` in the user's configuration folder."""
    if named := os.environ.get(SALT_FILE_VARIABLE):
        return Path(named)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "medcoss" / "id_salt"


def identifier_salt(key_file: str | Path | None = None, *, create: bool = True) -> str:
    """The secret salt of this site.

    Args:
        key_file: file holding the salt; default :func:`default_salt_file`. ``MEDCOSS_ID_SALT`` goes before both.
        create: make the key file with a random salt and mode 600 when it does not exist.

    Raises:
        InputError: the salt is shorter than 16 characters, the key file can be read by others, or it is missing.
    """
    if (salt := os.environ.get(SALT_VARIABLE)) is not None:
        return _long_enough(salt.strip(), SALT_VARIABLE)
    path = Path(key_file) if key_file is not None else default_salt_file()
    if not path.exists():
        if not create:
            raise InputError(f"{path}: no such key file. Set {SALT_VARIABLE} or create the file with mode 600.")
        _create_key_file(path)
    if mode := path.stat().st_mode & 0o077:
        raise InputError(f"{path}: a key file must have mode 600, others have rights {mode:03o}. Run: chmod 600 {path}")
    return _long_enough(path.read_text(encoding="utf-8").strip(), str(path))


def _long_enough(salt: str, origin: str) -> str:
    if len(salt) < MINIMUM_SALT_LENGTH:
        raise InputError(
            f"{origin}: a salt must have at least {MINIMUM_SALT_LENGTH} characters, got {len(salt)}. Use a random one."
        )
    return salt


def _create_key_file(path: Path) -> None:
    """Write a random salt; when two processes do so at once, the first one's is kept by both."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="utf-8") as stream:
            stream.write(secrets.token_hex(32) + "\n")
        _link_unless_present(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _link_unless_present(partial: Path, path: Path) -> None:
    try:
        os.link(partial, path)
    except FileExistsError:
        return


def hash_identifier(value: str | int, salt: str) -> str:
    """Salted hash of an identifier: the first 16 hexadecimal digits of HMAC-SHA256(salt, value).

    64 bits: among a million patients two share a hash with probability below 1e-7.

    >>> hash_identifier("PATIENT-1", "0123456789abcdef") == hash_identifier(" PATIENT-1 ", "0123456789abcdef")
    True
    """
    if not salt:
        raise InputError("salt must not be empty; take it from identifier_salt().")
    text = str(value).strip()
    return hmac.new(salt.encode(), text.encode(), hashlib.sha256).hexdigest()[:HASH_DIGITS]
