"""Two processes give what one gives."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from medcoss_components.files import read_json, write_json

SCRIPT = Path(__file__).with_name("score_parts.py")


@pytest.mark.slow
def test_matrix_of_two_ranks(finished, entries, tmp_path):
    target = finished.parent / "two ranks"  # stores are found from here
    shutil.copytree(finished, target)
    shutil.rmtree(target / "retention")
    (target / "retention.json").unlink()
    modalities = [json.loads(Path(entry["data_manifest"]).read_text())["modality"] for entry in entries]
    write_json(tmp_path / "probes.json", {"probes": entries, "modalities": modalities})
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(SCRIPT)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    outcome = subprocess.run(
        [*command, str(target), str(tmp_path / "probes.json")], capture_output=True, text=True, env=environment
    )
    assert outcome.returncode == 0, outcome.stderr[:3000]
    result, expected = read_json(target / "retention.json"), read_json(finished / "retention.json")
    assert result["probes"] == expected["probes"] and result["summary"] == expected["summary"]
    for name, entry in expected["reference"].items():
        for key in ("cka", "overlap"):
            assert result["reference"][name][key] == [
                None if value is None else pytest.approx(value, abs=1e-3) for value in entry[key]
            ]
