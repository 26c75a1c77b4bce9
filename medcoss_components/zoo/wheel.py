"""Build backend of a packed bundle (PEP 517), from the standard library alone.

``pip install --no-deps ./NAME`` fetches the build system that a pyproject.toml asks for; a bundle's asks for nothing
but this module, so that it installs without a network. It reads the bundle's ``requirements.txt`` and this package.
"""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path
from typing import Any

from medcoss_components._version import __version__

PACKAGE = "medcoss_components"
INFO = f"{PACKAGE}-{__version__}.dist-info"
WHEEL = "Wheel-Version: 1.0\nGenerator: medcoss-bundle\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
ENTRY_POINTS = f"[console_scripts]\nmedcoss = {PACKAGE}.cli:main\n"


def build_wheel(
    wheel_directory: str, config_settings: dict[str, Any] | None = None, metadata_directory: str | None = None
) -> str:
    """Write the wheel of the bundle in the current folder; return its file name."""
    root = Path.cwd()
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in _package_files(root)}
    files |= {f"{INFO}/{name}": text.encode() for name, text in _information(root).items()}
    record = "".join(f"{name},{_digest(content)},{len(content)}\n" for name, content in files.items())
    files[f"{INFO}/RECORD"] = f"{record}{INFO}/RECORD,,\n".encode()
    wheel = f"{PACKAGE}-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(Path(wheel_directory) / wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return wheel


def _package_files(root: Path) -> list[Path]:
    files = (path for path in (root / PACKAGE).rglob("*") if path.is_file())
    return sorted(path for path in files if "__pycache__" not in path.parts)


def _information(root: Path) -> dict[str, str]:
    needs = (root / "requirements.txt").read_text(encoding="utf-8").splitlines()
    lines = ["Metadata-Version: 2.1", f"Name: {PACKAGE.replace('_', '-')}", f"Version: {__version__}"]
    lines += ["Requires-Python: >=3.10", *(f"Requires-Dist: {need}" for need in needs)]
    return {"METADATA": "\n".join(lines) + "\n", "WHEEL": WHEEL, "entry_points.txt": ENTRY_POINTS}


def _digest(content: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
    return f"sha256={digest.decode()}"
