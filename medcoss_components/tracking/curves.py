"""Loss curves of one stage and of a whole chain, drawn from ``history.json``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medcoss_components.errors import InputError
from medcoss_components.tracking.figures import INK, PALETTE, SOFT_INK, new_figure, save_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = ("iteration", "epoch", "modality", "kind", "loss", "learning_rate", "samples_per_second")
Curve = tuple[NDArray[np.float64], NDArray[np.float64]]


class Curves(NamedTuple):
    """Curves of a stage, each (iterations (n,), values (n,)), by modality name."""

    pretext: dict[str, Curve]
    rehearsal: dict[str, Curve]
    learning_rate: Curve


def read_curves(history: Mapping[str, Any]) -> Curves:
    """Sort the rows of a ``history.json`` into curves.

    Args:
        history: ``{"columns": [...], "rows": [[...]]}``; kind "pretext" is the current modality, every other kind
            ("distillation", "replay") is rehearsal.

    Raises:
        InputError: when a column is missing.
    """
    columns = list(history.get("columns", []))
    missing = [name for name in ("iteration", "modality", "kind", "loss", "learning_rate") if name not in columns]
    if missing:
        raise InputError(f"history: columns {', '.join(missing)} missing, received {columns}. Expected {COLUMNS}.")
    records = [dict(zip(columns, row, strict=True)) for row in history.get("rows", [])]
    pretext = [record for record in records if record["kind"] == "pretext"]
    rehearsal = [record for record in records if record["kind"] != "pretext"]
    return Curves(_by_modality(pretext), _by_modality(rehearsal), _curve(records, "learning_rate"))


def _curve(records: Sequence[Mapping[str, Any]], column: str) -> Curve:
    values = {record["iteration"]: record[column] for record in records if record[column] is not None}
    steps = sorted(values)
    return np.asarray(steps, dtype=float), np.asarray([values[step] for step in steps], dtype=float)


def _by_modality(records: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    names = list(dict.fromkeys(record["modality"] for record in records))
    return {name: _curve([record for record in records if record["modality"] == name], "loss") for name in names}


def smoothed(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Centred mean over ``width`` (odd) entries; at the ends over the entries that exist; NaN are left out.

    >>> smoothed(np.array([0.0, 3.0, 6.0]), 3).tolist()
    [1.5, 3.0, 4.5]
    """
    half, count = width // 2, len(values)
    first = np.maximum(np.arange(count) - half, 0)
    end = np.minimum(np.arange(count) + half + 1, count)
    sums = np.concatenate([[0.0], np.nancumsum(values)])
    counts = np.concatenate([[0], np.cumsum(np.isfinite(values))])
    return (sums[end] - sums[first]) / np.maximum(counts[end] - counts[first], 1)


def _draw(axes: Axes, curve: Curve, label: str, colour: str, offset: float = 0.0) -> None:
    steps, values = curve[0] + offset, curve[1]
    if len(steps) < 20:
        axes.plot(steps, values, color=colour, linewidth=1.8, marker="o", markersize=3, label=label)
        return
    axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.3)
    axes.plot(steps, smoothed(values, max(5, len(values) // 25 | 1)), color=colour, linewidth=1.8, label=label)


def _log_scale(axes: Axes, curves: Sequence[Curve]) -> None:
    values = np.concatenate([curve[1] for curve in curves]) if curves else np.zeros(0)
    values = values[np.isfinite(values)]
    if values.size and values.min() > 0 and values.max() > 5 * values.min():
        axes.set_yscale("log")


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=8, frameon=False, labelcolor=INK, loc="best")


def _empty(axes: Axes, text: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel("")
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=9, color=SOFT_INK)


def _loss_panel(axes: Axes, curves: Mapping[str, Curve], colours: Mapping[str, str], empty: str) -> None:
    for name, curve in curves.items():
        _draw(axes, curve, name, colours[name])
    _log_scale(axes, list(curves.values()))
    _legend(axes)
    if not curves:
        _empty(axes, empty)


def modality_colours(names: Iterable[str]) -> dict[str, str]:
    """One colour a modality: its place in the registry, so that it has the same colour in every picture."""
    from medcoss_components.data.modalities import MODALITIES

    known = list(dict.fromkeys([*MODALITIES, *names]))
    return {name: PALETTE[index % len(PALETTE)] for index, name in enumerate(known)}


def loss_curves(history: Mapping[str, Any], path: str | Path) -> Path:
    """Pretext loss, rehearsal losses and learning rate of one stage, side by side.

    Args:
        history: content of ``history.json``, see :func:`read_curves`.
        path: PNG file to write.

    Returns:
        ``path``.
    """
    curves = read_curves(history)
    colours = modality_colours([*curves.pretext, *curves.rehearsal])
    figure = new_figure(10.0, 3.1)
    first, second, third = figure.subplots(1, 3, width_ratios=(4, 4, 2.4))
    style_axes(first, "Pretext loss", "iteration", "loss")
    _loss_panel(first, curves.pretext, colours, "no iteration recorded yet")
    style_axes(second, "Rehearsal loss", "iteration")
    _loss_panel(second, curves.rehearsal, colours, "no earlier modality in this stage")
    style_axes(third, "Learning rate", "iteration")
    third.plot(*curves.learning_rate, color=SOFT_INK, linewidth=1.6)
    third.yaxis.set_major_formatter(lambda value, _: f"{value:.1e}".replace("e-0", "e-") if value else "0")
    figure.tight_layout()
    return save_figure(figure, path)


def _last_iteration(curves: Curves) -> float:
    ends = [curve[0][-1] for curve in (*curves.pretext.values(), *curves.rehearsal.values()) if len(curve[0])]
    return max(ends, default=0.0)


def chain_curves(histories: Mapping[str, Mapping[str, Any]], path: str | Path) -> Path:
    """Losses of all stages on one axis of iterations.

    The upper panel shows each pretext loss divided by its first recorded value, because word and pixel losses have
    different units; the lower one the rehearsal losses.

    Args:
        histories: stage name -> content of its ``history.json``, in the order of the chain.
        path: PNG file to write.
    """
    stages = {name: read_curves(history) for name, history in histories.items()}
    colours = modality_colours(name for curves in stages.values() for name in (*curves.pretext, *curves.rehearsal))
    figure = new_figure(10.0, 4.6)
    upper, lower = figure.subplots(2, 1, sharex=True)
    style_axes(upper, "Pretext loss, relative to the start of its stage", ylabel="loss / first loss")
    style_axes(lower, "Rehearsal loss of earlier modalities", "iteration, all stages in a row", "loss")
    seen: set[str] = set()
    offset, rehearsal = 0.0, []
    for position, (name, curves) in enumerate(stages.items()):
        end = offset + _last_iteration(curves)
        for axes in (upper, lower):
            axes.axvspan(offset, end, color="#f5f7fa" if position % 2 == 0 else "white", zorder=0)
        upper.text((offset + end) / 2, 1.02, name, transform=upper.get_xaxis_transform(), ha="center", fontsize=8)
        for modality, (steps, values) in curves.pretext.items():
            _draw(upper, (steps, values / (values[0] or 1.0)), "", colours[modality], offset)
        for modality, curve in curves.rehearsal.items():
            _draw(lower, curve, "" if modality in seen else modality, colours[modality], offset)
            rehearsal.append(curve)
            seen.add(modality)
        offset = end
    upper.set_title(upper.get_title(loc="left"), loc="left", pad=18, fontsize=10, color=INK, fontweight="bold")
    upper.set_xlim(0, offset or 1)
    _log_scale(lower, rehearsal)
    _legend(lower)
    if not rehearsal:
        lower.text(0.5, 0.5, "no rehearsal yet", transform=lower.transAxes, ha="center", fontsize=9, color=SOFT_INK)
    figure.tight_layout()
    return save_figure(figure, path)
