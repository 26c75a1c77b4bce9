"""REPORT.html of a chain, and the same table for the terminal.

write_report("runs/demo")          # -> runs/demo/REPORT.html, one file that needs nothing else
print(summary_table("runs/demo"))
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from medcoss_components.files import write_text
from medcoss_components.text_table import text_lines
from medcoss_components.tracking import report_html as html
from medcoss_components.tracking.curves import chain_curves
from medcoss_components.tracking.report_captions import OVERVIEW
from medcoss_components.tracking.report_data import ChainResult, read_chain, seconds_text, summary_rows
from medcoss_components.tracking.report_retention import retention_section

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
    write_text(path, _page(chain))
    return path


def _page(chain: ChainResult) -> str:
    retained = retention_section(chain)
    sections = [
        html.notice(chain),
        f"<section>{html.summary(chain)}{_overview(chain)}{html.times(chain)}</section>",
        retained,
        *(html.stage_section(number, stage) for number, stage in enumerate(chain.stages, 1)),
        html.settings(chain),
    ]
    head = html.header(chain, retained=bool(retained))
    return html.page("Continual pre-training report", head, sections, html.PICTURES_OF_DATA)


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
    head, *lines = text_lines([header, *rows], left=(0, 8, 11))
    rule = "-" * max(map(len, (head, *lines)))
    total = f"Total time {seconds_text(chain.seconds)}"
    return "\n".join([head, rule, *lines, rule, total])
