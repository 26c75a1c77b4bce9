"""The guides point at files and settings that exist."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUNDLE_PAGES = sorted((ROOT / "bundles").glob("*/docs/README.md"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md")), *BUNDLE_PAGES]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
CONFIG = re.compile(r"bundles/\w+/configs/\w+\.json")
SETTING = re.compile(r"--(\w+)[ =]")
NOT_OURS = {"config_file", "standalone", "nproc_per_node", "cache", "tracking", "run_id", "meta_file", "args_file"}
EXPORT = {"net_id", "ckpt_file", "filepath", "use_trace", "dynamic_batchsize"}
"""Options of MONAI's export commands."""
NOT_OURS |= {"name", "url", "bundle_dir"}  # of monai.bundle download


def page_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_and_configs_exist(page):
    text = page.read_text(encoding="utf-8")
    for link in LINK.findall(text):
        if "://" not in link:
            assert (page.parent / link).exists(), f"{page_name(page)}: {link}"
    for config in CONFIG.findall(text):
        assert (ROOT / config).is_file(), f"{page_name(page)}: {config}"


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_settings_of_commands_exist(page):
    known = {key for path in ROOT.glob("bundles/*/configs/*.json") for key in json.loads(path.read_text())}
    blocks = re.findall(r"(?:^    .*\n?)+", page.read_text(encoding="utf-8"), flags=re.M)
    commands = " ".join(block for block in blocks if "monai.bundle" in block)
    unknown = set(SETTING.findall(commands)) - known - NOT_OURS - EXPORT
    assert not unknown, f"{page_name(page)}: {sorted(unknown)}"
