"""Two processes give what one gives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from medcoss_components.files import read_json, write_json

SCRIPT = Path(__file__).with_name("score_parts.py")


@pytest.mark.slow
def test_matrix_of_two_ranks(finished, entries, tmp_path, two_processes):
    target = finished.parent / "two ranks"  # stores are found from here
    shutil.copytree(finished, target)
    shutil.rmtree(target / "retention")
    (target / "retention.json").unlink()
    modalities = [json.loads(Path(entry["data_manifest"]).read_text())["modality"] for entry in entries]
    write_json(tmp_path / "probes.json", {"probes": entries, "modalities": modalities})
    two_processes(SCRIPT, target, tmp_path / "probes.json")
    result, expected = read_json(target / "retention.json"), read_json(finished / "retention.json")
    assert result["probes"] == expected["probes"] and result["summary"] == expected["summary"]
    for name, entry in expected["reference"].items():
        for key in ("cka", "overlap"):
            assert result["reference"][name][key] == [
                None if value is None else pytest.approx(value, abs=1e-3) for value in entry[key]
            ]
