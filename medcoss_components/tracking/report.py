"""REPORT.html of a chain, and the same table for the terminal.

write_report("runs/demo")          # -> runs/demo/REPORT.html, one file that needs nothing else
print(summary_table("runs/demo"))
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from medcoss_components._version import __version__
from medcoss_components.files import atomic_path
from medcoss_components.tracking import report_html as html
from medcoss_components.tracking.curves import chain_curves
from medcoss_components.tracking.report_captions import OVERVIEW
from medcoss_components.tracking.report_data import ChainResult, read_chain, seconds_text, summary_rows
from medcoss_components.tracking.report_retention import retention_section
from medcoss_components.tracking.report_style import STYLE

REPORT_NAME = "REPORT.html"


def write_report(output_dir: str | Path) -> Path:
    """Write ``<output_dir>/REPORT.html`` from what the chain has written so far.

    The page holds its style and pictures itself, asks nothing from the network and runs no script. An unfinished chain
    gives a page that says what is missing and how to go on. The same files give the same bytes.

    Args:
        output_dir: folder with ``chain.json``.

    Returns:
        Path of the page.

    Raises:
        InputError: when there is no readable ``chain.json``.
    """
    chain = read_chain(output_dir)
    path = chain.folder / REPORT_NAME
    page = _page(chain)
    with atomic_path(path) as partial:
        partial.write_text(page, encoding="utf-8")
    return path


def _page(chain: ChainResult) -> str:
    sections = [html.stage_section(number, stage) for number, stage in enumerate(chain.stages, 1)]
    retained = retention_section(chain)
    body = [
        html.header(chain, retained=bool(retained)),
        "<main>",
        html.notice(chain),
        f"<section>{html.summary(chain)}{_overview(chain)}{html.times(chain)}</section>",
        retained,
        *sections,
        html.settings(chain),
        f"</main><footer>Written by medcoss-components {__version__}. The pictures show samples of the training data: "
        "handle this file as you handle the data.</footer>",
    ]
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Continual pre-training report</title><style>{STYLE}</style></head>"
        f"<body>{''.join(body)}</body></html>\n"
    )


def _overview(chain: ChainResult) -> str:
    """Curves of the whole chain."""
    histories = {stage.name: stage.history for stage in chain.stages if stage.history.get("rows")}
    if not histories:
        return ""
    with tempfile.TemporaryDirectory() as folder:
        return html.picture(chain_curves(histories, Path(folder) / "chain.png"), OVERVIEW, "Whole chain")


def summary_table(output_dir: str | Path) -> str:
    """The summary as plain text for a terminal, one line a stage and the total time.

    Raises:
        InputError: when there is no readable ``chain.json``.
    """
    chain = read_chain(output_dir)
    header, rows = summary_rows(chain)
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = [
        "  ".join(_aligned(cell, width, column) for column, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in (header, *rows)
    ]
    rule = "-" * max(len(line.rstrip()) for line in lines)
    total = f"Total time {seconds_text(chain.seconds)}"
    return "\n".join([lines[0].rstrip(), rule, *(line.rstrip() for line in lines[1:]), rule, total])


def _aligned(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column in (0, 8, 11) else cell.rjust(width)
