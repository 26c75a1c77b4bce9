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
import products
import reading
import training
from harness import main

TOPICS = (imports, training, products, reading, exemplars, embedding, memory)
ROWS = {name: row for topic in TOPICS for name, row in topic.ROWS.items()}

if __name__ == "__main__":
    sys.exit(main(ROWS))
