"""All rows of the speed table, both sides in one process, alternating.

    python benchmarks/run.py [--quick] [--only train reading] [--record] [--check]

``--record`` writes ``benchmarks/results/speed.json``; ``--check`` runs the short form and fails when a ratio has fallen
under 80 % of the recorded one.
"""

from __future__ import annotations

import sys

import embedding
import exemplars
import imports
import memory
import reading
import training
from harness import main

ROWS = {**imports.ROWS, **training.ROWS, **reading.ROWS, **exemplars.ROWS, **embedding.ROWS, **memory.ROWS}

if __name__ == "__main__":
    sys.exit(main(ROWS))
