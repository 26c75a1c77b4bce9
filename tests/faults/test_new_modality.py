"""A sixth modality after publication: what docs/new-modality.md says, done with the artefacts of a finished chain and
none of the earlier data."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from medcoss_components.data.modalities import MODALITIES
from medcoss_components.data.synthetic import synthetic_manifest
from medcoss_components.engines.setup import initialised_network
from medcoss_components.networks.pretraining import PretrainingModel
from medcoss_components.weights import hash_weights, read_weights

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "new-modality.md").read_text(encoding="utf-8")
EARLIER = ("report", "xray", "ct")


def blocks(page: str) -> list[str]:
    """Indented code blocks."""
    return re.findall(r"(?:(?:^    .*\n)|(?:^\n(?=    )))+", page, flags=re.MULTILINE)


def documented_overlay() -> dict:
    return json.loads(next(block for block in blocks(PAGE) if '"continue_from"' in block))


def documented_command() -> list[str]:
    """Words of the command behind ``python``."""
    block = next(block for block in blocks(PAGE) if "monai.bundle run" in block and "ultrasound.json" in block)
    words = shlex.split(block.replace("\\\n", " "))
    assert words[:4] == ["python", "-m", "monai.bundle", "run"]
    return words[3:]


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def registry() -> Iterator[None]:
    """Take away what these tests register."""
    known = dict(MODALITIES)
    yield
    MODALITIES.clear()
    MODALITIES.update(known)


@pytest.fixture(scope="module")
def place(registry, tmp_path_factory, write_chain, tiny_settings, kill_server) -> Path:
    """A folder with the bundles, a published chain of three modalities without its data, and ultrasound data."""
    origin, place = tmp_path_factory.mktemp("origin"), tmp_path_factory.mktemp("place")
    manifests = {
        name: synthetic_manifest(origin / "data" / name, name, count=8, validation=1, seed=number)
        for number, name in enumerate(EARLIER)
    }
    log = place / "chain.log"
    code = kill_server(write_chain(origin, manifests, materialise=True, max_epochs=1), log=log)
    assert code == 0, log.read_text()[-3000:]
    shutil.copytree(origin / "chain", place / "runs" / "chain")
    shutil.rmtree(origin)  # data, stores and the first copy of the chain
    (place / "bundles").symlink_to(ROOT / "bundles")
    (place / "tiny.json").write_text(json.dumps({**tiny_settings, "store_dir": "store", "materialise": True}))
    (place / "ultrasound.json").write_text(json.dumps(documented_overlay()))
    entry = documented_overlay()["extra_modalities"][0]
    synthetic_manifest(place / "ultrasound", entry, count=12, validation=2, seed=9)
    return place


@pytest.fixture(scope="module")
def six(place, environment) -> SimpleNamespace:
    """The documented command, made tiny by one more overlay and the preset of the chain."""
    words = documented_command()
    words[words.index("--preset") + 1] = "demo"
    where = words.index("--config_file") + 1
    words[where] = words[where].replace("'ultrasound.json'", "'tiny.json','ultrasound.json'")
    done = subprocess.run(
        [sys.executable, "-m", "monai.bundle", *words],
        env=environment,
        cwd=place,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return SimpleNamespace(folder=place / "runs" / "six", stage=place / "runs" / "six" / "04_ultrasound")


def test_the_chain_record(six) -> None:
    record = read(six.folder / "chain.json")
    assert record["status"] == "finished"
    assert [stage["modality"] for stage in record["earlier"]] == list(EARLIER)
    assert [(stage["folder"], stage["modality"]) for stage in record["stages"]] == [("04_ultrasound", "ultrasound")]
    assert set(record["stages"][0]["steps"]) >= {"train", "evaluate", "embed", "select", "artefacts"}
    assert (six.folder / "REPORT.html").is_file()


def test_every_earlier_modality_was_rehearsed(six, place) -> None:
    metrics = read(six.stage / "metrics.json")
    sizes = {path.parent.name[3:]: read(path)["size"] for path in place.glob("runs/chain/*/buffer.json")}
    assert {name: entry["buffer_size"] for name, entry in metrics["rehearsal"].items()} == sizes
    assert {entry["kind"] for entry in metrics["rehearsal"].values()} == {"distillation"}
    assert metrics["samples"] == 12 and read(six.stage / "buffer.json")["size"] == round(0.3 * 12)


def test_training_started_from_the_last_stage(six, place, tiny_settings) -> None:
    sizes = tiny_settings["+stage_settings"]["network_def"]
    last = place / "runs" / "chain" / "03_ct"

    def start(**source) -> dict:
        return initialised_network(network=PretrainingModel(preset="demo", **sizes), seed=0, **source).state_dict()

    recorded = read(six.stage / "stage.json")["settings"]["initial_weights"]
    continued = start(init_weights=last)
    assert recorded == hash_weights(continued) != hash_weights(start())
    former, now = read_weights(last), read_weights(six.stage)
    encoder = [name for name in former if name.startswith("encoder.")]
    assert encoder and all(continued[name].equal(former[name]) for name in encoder)
    assert not all(now[name].equal(former[name]) for name in encoder)
    assert (six.stage / "vocabulary.json").read_bytes() == (last / "vocabulary.json").read_bytes()


def test_a_seventh_modality_continues_from_the_sixth(six, place, kill_server) -> None:
    """The registry entry of ultrasound comes from its buffer; the configuration names the seventh alone."""
    for folder in ("ultrasound", "store"):
        shutil.rmtree(place / folder)
    entry = {"name": "elastography", "dimension": 2, "input_shape": [3, 224, 224], "intensity": "unit_range"}
    manifest = synthetic_manifest(place / "seven", entry, count=8, validation=1, seed=11)
    overlay = {
        "continue_from": "runs/six",
        "extra_modalities": [entry],
        "stages": [{"modality": "elastography", "data_manifest": os.path.relpath(manifest, place)}],
        "output_dir": "runs/seven",
    }
    (place / "seven.json").write_text(json.dumps(overlay))
    files = ["bundles/medcoss_continual_pretraining/configs/train.json", "tiny.json", "seven.json"]
    log = place / "seven.log"
    assert kill_server(["run", "--config_file", str(files)], log=log, folder=place) == 0, log.read_text()[-3000:]
    metrics = read(place / "runs" / "seven" / "05_elastography" / "metrics.json")
    assert set(metrics["rehearsal"]) == {*EARLIER, "ultrasound"}


def test_without_the_buffers_data_the_message_says_what_to_do(place, kill_server, tmp_path) -> None:
    """A chain whose buffers were not materialised, taken away from its stores."""
    chain = tmp_path / "chain"
    shutil.copytree(place / "runs" / "chain", chain)
    shutil.rmtree(chain / "02_xray" / "buffer")
    arguments = ["bundles/medcoss_continual_pretraining/configs/train.json", "tiny.json", "ultrasound.json"]
    synthetic_manifest(place / "ultrasound", documented_overlay()["extra_modalities"][0], count=4, validation=1)
    log = tmp_path / "log.txt"
    options = ["--continue_from", str(chain), "--output_dir", str(tmp_path / "out")]
    assert kill_server(["run", "--config_file", str(arguments), *options], log=log, folder=place) == 1
    line = next(line for line in log.read_text().splitlines() if line.startswith("error: "))
    assert "The buffer of xray" in line and "no such folder" in line and "--store_dir" in line and "materialise" in line
