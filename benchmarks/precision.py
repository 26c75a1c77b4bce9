"""bfloat16 against float32: a small chain trained in both, three seeds each; curves, final losses, and the noise.

    python benchmarks/precision.py [--sample-dir sample_data] [--seeds 0,1,2] [--share 0.25] [--to runs/precision]

With ``--sample-dir`` (``medcoss sample fetch`` makes the folder) the chain is the demo's with ``--share`` of its
epochs; without, it runs on made-up pictures, sentences and volumes. Everything goes through ``PretrainingChain``, as
``make demo`` does; a chain that is finished in ``--to`` is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import RESULTS, ROOT, commit, machine

PRECISIONS = ("float32", "bf16")
CONFIGS = ROOT / "bundles" / "medcoss_continual_pretraining" / "configs"
ORDER = ("report", "xray", "ct", "mri", "pathology")
COLOURS = {"float32": "#1b6ca8", "bf16": "#d1495b"}
PER_STAGE = ("max_epochs", "warmup_epochs")


def demo_settings(share: float) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Settings of the demo chain, and those of each stage by modality, with ``share`` of the epochs, at least one."""
    demo = json.loads((CONFIGS / "demo.json").read_text())
    stages = {entry["modality"]: {k: v for k, v in entry.items() if k != "data_manifest"} for entry in demo["stages"]}
    kept = (
        "preset",
        "vocabulary_size",
        "batch_size",
        "max_epochs",
        "warmup_epochs",
        "base_learning_rate",
        "num_workers",
    )
    settings = {key: demo[key] for key in kept}
    for values in (settings, *stages.values()):
        if "max_epochs" in values:
            epochs = max(1, round(share * values["max_epochs"]))
            values["warmup_epochs"] *= epochs / values["max_epochs"]
            values["max_epochs"] = epochs
    return settings, stages


def made_up_manifests(folder: Path, modalities: Sequence[str], count: int) -> dict[str, Path]:
    """Synthetic data sets, kept in ``folder``."""
    from medcoss_components.data.synthetic import synthetic_manifest

    paths = {}
    for name in modalities:
        paths[name] = folder / name / "manifest.json"
        if not paths[name].is_file():
            synthetic_manifest(folder / name, name, count=count * (20 if name == "report" else 1))
    return paths


def run_chain(folder: Path, manifests: Mapping[str, Path], *, precision: str, seed: int, share: float, stores: Path):
    """Train the chain unless it is finished in ``folder``; returns the folder."""
    from medcoss_components.engines.chain import PretrainingChain

    record = folder / "chain.json"
    if record.is_file() and json.loads(record.read_text())["status"] == "finished":
        return folder
    settings, by_stage = demo_settings(share)
    settings |= {"precision": precision, "seed": seed, "store_dir": str(stores), "log_interval": 5}
    stages = [{**by_stage[name], "data_manifest": str(path)} for name, path in manifests.items()]
    chain = PretrainingChain(
        stage_config=CONFIGS / "stage.json",
        stages=stages,
        output_dir=folder,
        stage_settings=settings,
        tracking=False,
        reference_samples=0,
    )
    return chain.run()


def curves(folder: Path) -> dict[str, dict[str, Any]]:
    """Modality -> iterations, pretext losses, final loss (mean of the last tenth) and validation loss of a chain."""
    found = {}
    for stage in json.loads((folder / "chain.json").read_text())["stages"]:
        name, part = stage["modality"], folder / stage["folder"]
        rows = json.loads((part / "history.json").read_text())["rows"]
        steps, losses = zip(*((row[0], row[4]) for row in rows if row[2] == name and row[3] == "pretext"), strict=True)
        metrics = json.loads((part / "metrics.json").read_text())
        tail = losses[-max(1, len(losses) // 10) :]
        found[name] = {"steps": steps, "losses": losses, "final": statistics.fmean(tail)}
        found[name]["validation"] = metrics["validation_loss"]
    return found


def deviation(values: Sequence[float]) -> float:
    """Standard deviation over seeds; 0 for one."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def compare(runs: Mapping[str, Sequence[Mapping[str, Mapping[str, Any]]]], key: str) -> list[dict[str, Any]]:
    """For each modality: mean and deviation of both precisions, their difference, and whether noise explains it.

    The noise is the pooled standard deviation over seeds; within it: |difference of means| <= noise.
    """
    rows = []
    for name in runs[PRECISIONS[0]][0]:
        values = {precision: [run[name][key] for run in runs[precision]] for precision in PRECISIONS}
        if any(value is None for listed in values.values() for value in listed):
            continue
        means = {precision: statistics.fmean(listed) for precision, listed in values.items()}
        noise = statistics.fmean(deviation(listed) ** 2 for listed in values.values()) ** 0.5
        paired = [half - full for full, half in zip(values["float32"], values["bf16"], strict=True)]
        difference = means["bf16"] - means["float32"]
        row = {"modality": name, "loss": key, "values": values, "means": means, "noise": noise, "paired": paired}
        rows.append(row | {"difference": difference, "within": abs(difference) <= noise})
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The comparison as a Markdown table."""
    lines = ["| stage | loss | float32 | bf16 | bf16 - float32, by seed | noise over seeds | within |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in rows:
        sides = [f"{row['means'][p]:.4f} +- {deviation(row['values'][p]):.4f}" for p in PRECISIONS]
        paired = ", ".join(f"{value:+.4f}" for value in row["paired"])
        verdict = "yes" if row["within"] else "no"
        cells = [row["modality"], row["loss"], *sides, paired, f"{row['noise']:.4f}", verdict]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(runs: Mapping[str, Sequence[Mapping[str, Mapping[str, Any]]]], path: Path) -> None:
    """Loss curves of all stages, one panel each: thin lines are seeds, thick ones their mean."""
    import matplotlib
    import numpy as np

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(runs[PRECISIONS[0]][0])
    figure, axes = plt.subplots(1, len(names), figsize=(4 * len(names), 3.2), squeeze=False, layout="constrained")
    for axis, name in zip(axes[0], names, strict=True):
        for precision in PRECISIONS:
            lines = [(run[name]["steps"], run[name]["losses"]) for run in runs[precision]]
            for line in lines:
                axis.plot(*line, color=COLOURS[precision], linewidth=0.6, alpha=0.4)
            steps = lines[0][0]  # another seed rehearses at other steps
            mean = np.mean([np.interp(steps, *line) for line in lines], axis=0)
            style = "-" if precision == "float32" else "--"
            axis.plot(steps, mean, style, color=COLOURS[precision], linewidth=1.8, label=precision)
        axis.set(title=name, xlabel="iteration", ylabel="pretext loss")
    axes[0][0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sample-dir", type=Path, help="folder of `medcoss sample fetch`; default: made-up data")
    parser.add_argument("--modalities", default="report,xray,ct", help="stages, in order")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--share", type=float, default=0.25, help="of the demo's epochs")
    parser.add_argument("--count", type=int, default=64, help="made-up training items of a modality")
    parser.add_argument("--to", type=Path, default=Path("runs/precision"), help="folder of the chains")
    parser.add_argument("--record", action="store_true", help="write precision.json and precision.png to the results")
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is missing, compare, print; returns the exit status."""
    chosen = parse(arguments)
    os.environ.setdefault("MEDCOSS_PROGRESS", "0")
    names = [name for name in chosen.modalities.split(",") if name]
    manifests = {name: chosen.sample_dir / name / "manifest.json" for name in names} if chosen.sample_dir else None
    manifests = manifests or made_up_manifests(chosen.to / "data", names, chosen.count)
    runs: dict[str, list[dict[str, dict[str, Any]]]] = {precision: [] for precision in PRECISIONS}
    for seed in map(int, chosen.seeds.split(",")):
        for precision in PRECISIONS:
            started, folder = time.monotonic(), chosen.to / f"{precision}-{seed}"
            run_chain(
                folder, manifests, precision=precision, seed=seed, share=chosen.share, stores=chosen.to / "stores"
            )
            runs[precision].append(curves(folder))
            print(f"{precision}, seed {seed}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    rows = [*compare(runs, "final"), *compare(runs, "validation")]
    print(table(rows))
    draw(runs, chosen.to / "precision.png")
    if chosen.record:
        command = "python precision.py " + " ".join(sys.argv[1:] if arguments is None else arguments)
        made = {"date": time.strftime("%Y-%m-%d %H:%M:%S %z"), "commit": commit(), "command": command}
        chosen.results.mkdir(parents=True, exist_ok=True)
        draw(runs, chosen.results / "precision.png")
        content = {"machine": machine(), **made, "rows": rows}
        (chosen.results / "precision.json").write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
