"""docs/fine-tune.md, walked through as it stands on made-up radiographs."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np

from medcoss_components.data.writers import write_picture

ROOT = Path(__file__).resolve().parents[1]


def page_commands(page: Path) -> str:
    """The indented commands as one script; a block is left out where the line before it says so."""
    blocks = re.split(r"\n(?!    |\n)", page.read_text(encoding="utf-8"))
    commands = [
        textwrap.dedent("\n".join(line for line in block.splitlines() if line.startswith("    ")))
        for block in blocks
        if "not run by the test" not in block and "file,label,patient" not in block
    ]
    return "\n".join(command for command in commands if command)


def write_films(folder: Path, count: int = 20) -> None:
    """Bright discs of two sizes as radiographs, two per patient, with their table."""
    generator, rows = np.random.default_rng(0), []
    (folder / "ward3").mkdir(parents=True)
    row, column = np.mgrid[:96, :80]
    for number in range(count):
        large = (number // 2) % 2
        disc = (row - 48) ** 2 + (column - 40) ** 2 < (30 if large else 14) ** 2
        picture = 60 + 120 * disc + generator.integers(0, 40, disc.shape)
        write_picture(folder / "ward3" / f"{number:04d}.png", picture.astype(np.uint8))
        label = "effusion" if large else "normal"
        rows.append({"file": f"ward3/{number:04d}.png", "label": label, "patient": f"p-{number // 2:02d}"})
    with open(folder / "labels.csv", "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_every_command_of_the_guide(tmp_path: Path) -> None:
    write_films(tmp_path / "films")
    (tmp_path / "bundles").symlink_to(ROOT / "bundles")
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
    }
    script = page_commands(ROOT / "docs" / "fine-tune.md")
    for setting in ("--max_epochs 2", "--split testing"):  # stores beside the bundle would be in the repository
        script = script.replace(setting, f"{setting} --store_dir {tmp_path}/store")
    done = subprocess.run(["bash", "-e", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "films.png").is_file() and "p-17" not in (tmp_path / "films" / "manifest.json").read_text()
    for split in ("validation", "testing"):
        assert (tmp_path / "runs" / "films_small" / "evaluation" / split / "REPORT.html").is_file()
    assert (tmp_path / "runs" / "films_evaluation" / "testing" / "cases.csv").is_file()
    with open(tmp_path / "predictions" / "predictions.csv", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 20 and {"prob_normal", "prob_effusion"} <= set(rows[0])
