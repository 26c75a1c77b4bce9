"""Turning a chain's results into the parts of one HTML page without outside references."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from medcoss_components._version import __version__
from medcoss_components.tracking.figures import PALETTE
from medcoss_components.tracking.parameters import flatten_parameters
from medcoss_components.tracking.report_captions import COLUMNS, Caption, caption_for
from medcoss_components.tracking.report_data import (
    NOTHING,
    PICTURES,
    ChainResult,
    StageResult,
    bytes_text,
    change_text,
    count_text,
    loss_text,
    loss_unit,
    rehearsed,
    seconds_text,
    stage_seconds,
    summary_rows,
)
from medcoss_components.tracking.report_style import STYLE

PICTURES_OF_DATA = "The pictures show samples of the training data: handle this file as you handle the data."


def page(title: str, head: str, sections: Iterable[str], handling: str) -> str:
    """A whole page: style and pictures inside, no script, nothing asked from the network.

    Args:
        title: of the browser's tab.
        head: what comes first, as HTML.
        sections: the rest, as HTML.
        handling: sentence of the footer on how to treat the file.
    """
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>{head}<main>{''.join(sections)}"
        f"</main><footer>Written by medcoss-components {__version__}. {escape(handling)}</footer></body></html>\n"
    )


def fact_list(entries: Iterable[tuple[str, str, str]]) -> str:
    """Tiles of (name, value, unit or remark); those without a value are left out."""
    cells = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(unit)}</small></dd></div>"
        for name, value, unit in entries
        if value != NOTHING
    )
    return f"<dl class=facts>{cells}</dl>"


def picture(path: Path, caption: Caption, context: str, *, beside: bool = False) -> str:
    """A figure with the PNG inside the page, its alternative text and how to read it.

    Args:
        path: PNG file.
        caption: texts of this kind of picture.
        context: what the picture belongs to, for the alternative text.
        beside: caption to the right of the picture on wide screens.
    """
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    image = f'<img src="data:image/png;base64,{data}" alt="{escape(f"{context}: {caption.alternative}")}">'
    text = f"<figcaption><b>How to read this.</b> {escape(caption.reading)}</figcaption>"
    return f"<figure{' class=pair' if beside else ''}><h3>{escape(caption.heading)}</h3>{image}{text}</figure>"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, wrap: Sequence[int] = ()) -> str:
    """A table; columns in ``wrap`` may break lines and stand left."""
    kinds = [' class="wrap left"' if column in wrap else "" for column in range(len(header))]
    head = "".join(f'<th scope="col"{kind}>{escape(name)}</th>' for name, kind in zip(header, kinds, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(row, kinds, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def badge(text: str) -> str:
    """A coloured label, green for "finished"."""
    return f'<span class="badge{" finished" if text == "finished" else ""}">{escape(text)}</span>'


def header(chain: ChainResult, *, retained: bool = False) -> str:
    """Title, status, one sentence on what the page is, links to the sections; ``retained``: to that on retention."""
    done = sum(stage.finished for stage in chain.stages)
    total = len(chain.stages) + len(chain.planned)
    status = "finished" if chain.finished else f"unfinished: {done} of {total} stages"
    facts = [f"{done} stages", seconds_text(chain.seconds)] + ([f"last step {chain.ended}"] if chain.ended else [])
    sections = [*(["retention"] if retained else []), *(stage.name for stage in chain.stages)]
    links = "".join(f'<a href="#{escape(name)}">{escape(name)}</a>' for name in sections)
    return (
        f"<header class=page><h1>Continual pre-training report</h1><p class=lead>{badge(status)} &nbsp; "
        f"{escape(' · '.join(facts))}</p><p>One encoder learned the modalities below one after the other. Each stage "
        "hides part of every sample and learns to predict it, while a small buffer of earlier modalities is rehearsed "
        f"so that they are not forgotten.</p><nav class=contents aria-label=Stages>{links}</nav></header>"
    )


def notice(chain: ChainResult) -> str:
    """What is missing and how to go on; empty for a finished chain without problems."""
    problems = [*chain.problems, *(problem for stage in chain.stages for problem in stage.problems)]
    open_stages = [f"{stage.name}: {stage.status}" for stage in chain.stages if not stage.finished]
    entries = [*open_stages, *(f"{name}: not started" for name in chain.planned), *problems]
    command = chain.settings.get("command")
    again = f"<code>{escape(str(command))}</code>" if command else "the command that started it"
    return incomplete("chain", entries, command=again, kept="steps")


def incomplete(what: str, entries: Sequence[str], *, command: str, kept: str) -> str:
    """A box that lists what is missing and says how to go on; empty without ``entries``.

    Args:
        what: what is not complete.
        entries: what is missing, as text.
        command: what to start again, as HTML.
        kept: what of the former start is used.
    """
    if not entries:
        return ""
    items = "".join(f"<li>{escape(entry)}</li>" for entry in entries)
    return (
        f"<div class=notice role=note><b>This {what} is not complete.</b><ul>{items}</ul>If it is not running, start "
        f"{command} again: finished {kept} are kept and it goes on where it stopped.</div>"
    )


def summary(chain: ChainResult) -> str:
    """The table that comes first, and what its columns mean."""
    head, rows = summary_rows(chain)
    return f"<h2>Summary</h2>{table(head, rows, wrap=(8, 11))}<p class='small muted'>{escape(COLUMNS)}</p>"


def times(chain: ChainResult) -> str:
    """Where the time went: one bar a stage, split by step."""
    stages = [stage for stage in chain.stages if stage_seconds(stage) > 0]
    if not stages:
        return ""
    parts = {stage.name: _seconds(stage) for stage in stages}
    names = list(dict.fromkeys(name for entry in parts.values() for name in entry))
    colours = dict(zip(names, PALETTE * (1 + len(names) // len(PALETTE)), strict=False))
    longest = max(stage_seconds(stage) for stage in stages)
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{_bar(entry, colours, longest)}</td>"
        f"<td>{seconds_text(sum(entry.values()))}</td></tr>"
        for name, entry in parts.items()
    )
    keys = "".join(f'<span class=key style="background:{colours[name]}"></span>{escape(name)}' for name in names)
    return f"<h3>Where the time went</h3><p class=small>{keys}</p><table class=times><tbody>{rows}</tbody></table>"


def _seconds(stage: StageResult) -> dict[str, float]:
    given = stage.metrics.get("seconds") or {name: step.get("seconds") for name, step in stage.steps.items()}
    return {name: float(value) for name, value in given.items() if value}


def _bar(parts: Mapping[str, float], colours: Mapping[str, str], longest: float) -> str:
    total = sum(parts.values())
    pieces = "".join(
        f'<span style="width:{100 * value / total:.2f}%;background:{colours[name]}" '
        f'title="{escape(name)} {seconds_text(value)}"></span>'
        for name, value in parts.items()
    )
    return f'<div class=bar style="width:{100 * total / longest:.1f}%">{pieces}</div>'


def facts(stage: StageResult) -> str:
    """Key numbers of a stage with their units."""
    metrics = stage.metrics
    first, final = metrics.get("first_loss"), metrics.get("final_loss")
    entries = [
        ("Training samples", count_text(metrics.get("samples")), ""),
        ("Epochs", count_text(metrics.get("epochs")), f"{count_text(metrics.get('iterations'))} iterations"),
        ("Pretext loss", f"{loss_text(first)} → {loss_text(final)}", loss_unit(stage.dimension)),
        ("Change of loss", change_text(first, final), "first to last"),
        ("Validation loss", loss_text(metrics.get("validation_loss")), "held-out samples"),
        ("Throughput", count_text(metrics.get("samples_per_second")), "samples per second"),
        ("Buffer", count_text(metrics.get("buffer_size")), "samples kept"),
        ("Time", seconds_text(stage_seconds(stage)), "all steps"),
        ("Peak memory", bytes_text(metrics.get("peak_memory_bytes")), str(metrics.get("device", ""))),
        ("Parameters", count_text(metrics.get("parameters")), str(metrics.get("precision", ""))),
    ]
    return fact_list(entries)


def rehearsal(stage: StageResult) -> str:
    """Table of the rehearsed modalities of a stage; empty when there is none."""
    rows = [
        (
            name,
            str(entry.get("kind") or "distillation"),
            count_text(entry.get("buffer_size")),
            loss_text(entry.get("first")),
            loss_text(entry.get("final")),
        )
        for name, entry in rehearsed(stage).items()
    ]
    head = ("Rehearsed modality", "Loss", "Samples in buffer", "First", "Last")
    return f"<div class=compact><h3>Rehearsal</h3>{table(head, rows, wrap=(1,))}</div>" if rows else ""


def stage_section(number: int, stage: StageResult) -> str:
    """Everything about one stage; says what is not there yet."""
    heading = f"{number} · {escape(stage.modality)} {badge(stage.status)}"
    parts = [f'<section class=stage id="{escape(stage.name)}"><h2>{heading}</h2>']
    if stage.finished:
        parts += [facts(stage), rehearsal(stage)]
    else:
        parts.append("<p class=muted>The numbers of this stage are written when it ends.</p>")
    missing = []
    for kind in PICTURES:
        path, caption = stage.picture(kind), caption_for(kind, stage.dimension)
        if path is None:
            missing.append(caption.heading.lower())
        else:
            beside = kind == "buffer_map" or (kind == "reconstruction" and stage.dimension != 1)
            parts.append(picture(path, caption, stage.name, beside=beside))
    if missing and stage.started:
        parts.append(f"<p class='small muted'>No picture yet of: {escape(', '.join(missing))}.</p>")
    return "".join(parts) + "</section>"


def settings(chain: ChainResult) -> str:
    """Settings and MLflow run ids, folded away."""
    runs = [("chain", chain.run_id or NOTHING), *((stage.name, stage.run_id or NOTHING) for stage in chain.stages)]
    return settings_section({"settings": chain.settings}, runs)


def settings_section(settings: Mapping[str, Mapping[str, Any]], runs: Sequence[tuple[str, str]]) -> str:
    """Settings by what they belong to, and MLflow run ids by name, folded away."""
    parts = ["<section><h2>Settings and runs</h2>"]
    for name, values in settings.items():
        rows = sorted(flatten_parameters(values).items())
        if rows:
            shown = table(("Setting", "Value"), rows, wrap=(1,))
            parts.append(f"<details><summary>{len(rows)} {escape(name)}</summary>{shown}</details>")
    parts.append(
        f"<details><summary>MLflow runs</summary>{table(('Run', 'Run id'), runs, wrap=(1,))}</details></section>"
    )
    return "".join(parts)
