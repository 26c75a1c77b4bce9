"""``torchrun score_parts.py chain probes.json``: score a finished chain with several gloo processes."""

from __future__ import annotations

import json
import sys

from medcoss_components.data.modalities import get_modality
from medcoss_components.engines.chain_inputs import read_chain
from medcoss_components.engines.setup import start_distributed, stop_distributed
from medcoss_components.retention.probes import read_probes
from medcoss_components.retention.record import score_chain


def main() -> None:
    folder, path = sys.argv[1:]
    start_distributed()
    with open(path, encoding="utf-8") as stream:
        content = json.load(stream)
    for entry in content["modalities"]:
        get_modality(entry)
    score_chain(folder, read_chain(folder), probes=read_probes(content["probes"]))
    stop_distributed()


if __name__ == "__main__":
    main()
