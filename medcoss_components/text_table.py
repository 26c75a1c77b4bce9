"""Tables as plain text for a terminal."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def text_lines(rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,)) -> list[str]:
    """Rows with their columns made equally wide, two spaces apart, without spaces at the end.

    Args:
        rows: cells as text, the same number in each row.
        left: columns that stand left; the others stand right.

    >>> print(*text_lines([("stage", "loss"), ("report", "5.37")]), sep="\\n")
    stage   loss
    report  5.37
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
