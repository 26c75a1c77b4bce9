"""The retention experiment for readers: a table in Markdown and a figure, both made of ``retention.json`` alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness import machine
from retention_plan import Scale
from retention_summary import Summary, interval, without_folders

from medcoss_components.files import atomic_path, write_json, write_text

NAME = "retention"
INTRODUCTION = (
    "Accuracies in percent, mean over seeds, 95 % interval (Student's t over seeds) in brackets. Forgetting = after "
    "the own stage - at the end, as in the paper's figure 5 (backward transfer with its sign turned); since the best "
    "stage = best of all stages but the last - at the end, as in Chaudhry et al., ECCV 2018."
)
SEEN = (
    "These sentences were read without their labels in stage 1, and a twentieth of them may stand in the buffer that "
    "experience replay and MedCoSS rehearse; the testing sentences above were read by nobody."
)
MAIN = ("sequential", "experience_replay", "ewc", "cassle", "medcoss")
COLOURS = ("#D55E00", "#E69F00", "#009E73", "#56B4E9", "#0072B2")
"""Colours that stay apart for colour-blind readers (M. Okabe and K. Ito's set)."""
MARKS = ("o", "s", "^", "v", "D")


def write_report(scale: Scale, root: Path, results: Path) -> dict[str, Path]:
    """Write ``retention.json``, ``retention.md`` and ``retention.png`` from the finished runs; return their paths."""
    results.mkdir(parents=True, exist_ok=True)
    settings = asdict(scale)
    settings |= {key: without_folders(settings[key]) for key in ("stages", "probes")}
    settings |= {key: Path(settings[key]).parts[-3] for key in ("stage_config", "task_config")}
    content = Summary(scale, root).content(machine(), settings)
    paths = {kind: results / f"{NAME}.{kind}" for kind in ("json", "md", "png")}
    write_json(paths["json"], content)
    write_text(paths["md"], markdown(content))
    draw(content, paths["png"])
    return paths


def percent(values: Sequence[float] | None) -> str:
    """Mean over seeds with its interval, in percent points.

    >>> percent([0.5, 0.5]), percent([0.5]), percent(None)
    ('50.0 [50.0, 50.0]', '50.0', '-')
    """
    return _with_interval([100 * value for value in values or ()], ".1f")


def difference(values: Sequence[float] | None) -> str:
    """Mean over seeds with its interval and signs.

    >>> difference([0.5, 0.5]), difference([-0.25]), difference([])
    ('+0.500 [+0.500, +0.500]', '-0.250', '-')
    """
    return _with_interval(values or (), "+.3f")


def _with_interval(values: Sequence[float], form: str) -> str:
    mean, low, high = (interval(values)[name] for name in ("mean", "low", "high"))
    if mean is None:
        return "-"
    return f"{mean:{form}}" + ("" if low is None or high is None else f" [{low:{form}}, {high:{form}}]")


def number(values: Sequence[float] | None) -> str:
    """Mean over seeds.

    >>> number([0.25, 0.75]), number([])
    ('0.500', '-')
    """
    mean = interval(list(values or ()))["mean"]
    return "-" if mean is None else f"{mean:.3f}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join([_row(head), "|" + "---|" * len(head), *map(_row, rows)])


def markdown(content: Mapping[str, Any]) -> str:
    """All tables; accuracies in percent, 95 % intervals (Student's t over seeds) in brackets."""
    few = [name for name in content if name.startswith("text_fine_tuning_")]
    parts = ["# Retention: what is left of the text after four image stages", ""]
    parts += [INTRODUCTION, ""]
    parts += ["## Text k-NN (`text_probe`)", "", kept_table(content, "text_probe"), ""]
    parts += ["## Text k-NN on the validation sentences", "", SEEN, ""]
    parts += [kept_table(content, "text_probe_validation"), ""]
    parts += ["## Text logistic regression", "", kept_table(content, "text_logistic"), ""]
    for name in few:
        parts += [f"## Text, fine-tuned on {name.rpartition('_')[2]} labels", "", kept_table(content, name), ""]
    parts += ["## Likeness of the text features to those after stage 1", "", likeness_table(content), ""]
    parts += ["## Does one forget more than the other? (text k-NN, same seed)", ""]
    parts += [paired_table(content, "text_probe"), "", "On the validation sentences:", ""]
    parts += [paired_table(content, "text_probe_validation"), "", "Since the best stage, testing sentences:", ""]
    parts += [paired_table(content, "text_probe", "paired_forgetting_from_best"), ""]
    parts += ["Since the best stage, validation sentences:", ""]
    parts += [paired_table(content, "text_probe_validation", "paired_forgetting_from_best"), ""]
    parts += ["## Stage 1 against the untrained encoder", "", untrained_table(content), ""]
    parts += [
        "## How well each modality was learned: pretext loss on validation data",
        "",
        plasticity_table(content),
        "",
    ]
    parts += ["Difference to sequential training with the same seed, 95 % interval; above 0 is learned worse:", ""]
    parts += [paired_plasticity_table(content)]
    return "\n".join(parts) + "\n"


def kept_table(content: Mapping[str, Any], name: str) -> str:
    """Strategy, after the own stage, at the end, forgetting since the own and since the best stage."""
    columns = ("after_own_stage", "final", "forgetting", "forgetting_from_best")
    rows = [[strategy, *(percent(row[column]) for column in columns)] for strategy, row in content[name].items()]
    return _table(["strategy", "after own stage", "at the end", "forgetting", "since the best stage"], rows)


def likeness_table(content: Mapping[str, Any]) -> str:
    """Strategy, linear CKA, neighbour overlap."""
    rows = [
        [strategy, number(values), number(content["text_overlap"].get(strategy))]
        for strategy, values in content["text_cka"].items()
    ]
    return _table(["strategy", "linear CKA", "10 nearest neighbours kept"], rows)


def paired_table(content: Mapping[str, Any], name: str, kind: str = "paired_forgetting") -> str:
    """Differences of forgetting and whether their interval excludes 0."""
    rows = []
    for row in content[kind][name]:
        apart = "-" if row["low"] is None else "yes" if row["low"] > 0 or row["high"] < 0 else "no"
        rows.append([f"{row['first']} - {row['second']}", percent(row["differences"]), apart])
    return _table(["forgetting of", "difference", "interval without 0"], rows)


def untrained_table(content: Mapping[str, Any]) -> str:
    """Measure, untrained encoder, after stage 1."""
    rows = [
        [name, percent(row["untrained"]), percent(row["after_stage_1"])] for name, row in content["untrained"].items()
    ]
    return _table(["measure", "untrained", "after stage 1"], rows)


def plasticity_table(content: Mapping[str, Any]) -> str:
    """Strategy and the loss of each modality at the end of its own stage."""
    modalities = list(dict.fromkeys(name for row in content["plasticity"].values() for name in row))
    rows = [
        [strategy, *(number(row.get(name)) for name in modalities)] for strategy, row in content["plasticity"].items()
    ]
    return _table(["strategy", *modalities], rows)


def paired_plasticity_table(content: Mapping[str, Any]) -> str:
    """Strategy and the difference in loss of each modality."""
    table = content["paired_plasticity"]
    modalities = list(dict.fromkeys(name for row in table.values() for name in row))
    rows = [[strategy, *(difference(row.get(name)) for name in modalities)] for strategy, row in table.items()]
    return _table(["strategy", *modalities], rows)


def draw(content: Mapping[str, Any], path: Path) -> None:
    """Left: text k-NN after each stage. Right: forgetting of every strategy with its interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_curves(left, content)
    _draw_forgetting(right, content["text_probe"])
    with atomic_path(path) as partial:
        figure.savefig(partial, dpi=150)


def _draw_curves(axes: Any, content: Mapping[str, Any]) -> None:
    for name, colour, mark in zip(MAIN, COLOURS, MARKS, strict=True):
        curves = content["curves"].get(name)
        if curves:
            means = [100 * sum(values) / len(values) for values in zip(*curves, strict=True)]
            axes.plot(range(1, len(means) + 1), means, color=colour, marker=mark, label=name)
    untrained = content["untrained"]["k_nn"]["untrained"]
    if untrained:
        axes.axhline(100 * sum(untrained) / len(untrained), color="0.4", linestyle=":", label="untrained")
    stages = [entry["modality"] for entry in content["settings"]["stages"]]
    axes.set_xticks(range(1, len(stages) + 1), stages)
    axes.set(xlabel="last stage trained", ylabel="accuracy, %", title="Text k-NN after each stage")
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=8)


def _draw_forgetting(axes: Any, table: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    names = [name for name in table if name not in ("joint", "medcoss_reversed")]  # the text is not followed by stages
    for place, name in enumerate(names):
        found = interval(table[name]["forgetting"])
        centre = 100 * (found["mean"] or 0.0)
        if found["low"] is not None and found["high"] is not None:
            axes.plot([100 * found["low"], 100 * found["high"]], [place, place], color="0.3", linewidth=1.5)
        axes.plot([centre], [place], "o", color="#0072B2" if name == "medcoss" else "0.3")
    axes.axvline(0, color="0.7", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xlabel="percent points of text k-NN lost", title="Forgetting, 95 % interval over seeds")
