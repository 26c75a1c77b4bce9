"""docs/publish.md, walked through as it stands on a copy of the bundle."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import yaml

from .conftest import BUNDLES, NAME, ROOT, page_commands


def test_publish_page(run_folder: Path, tmp_path: Path, shell: Callable[..., str]) -> None:
    shutil.copytree(BUNDLES / NAME, tmp_path / "bundles" / NAME)
    shutil.copy(ROOT / "LICENSE", tmp_path)
    shutil.copytree(run_folder, tmp_path / "runs" / "02_xray")
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    printed = shell(["bash", "-e", "-c", page_commands(ROOT / "docs" / "publish.md")], tmp_path, PATH=path)
    assert "bundles are up to date" in printed and f"dist/{NAME}_0.1.0.zip" in printed
    assert f"{NAME}: weights: ok" in printed and f"{NAME}: onnx: ok" in printed and "19 ok, 0 failed" in printed
    front = yaml.safe_load(printed.split("---\n")[1])
    assert front["license"] == "cc-by-nc-4.0" and front["datasets"] == ["MIMIC-CXR-JPG"]
