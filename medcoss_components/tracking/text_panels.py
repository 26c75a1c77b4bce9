"""Reports with hidden words boxed and the model's guesses below them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from medcoss_components.errors import InputError
from medcoss_components.tracking.figures import (
    GRID,
    INK,
    REMOVED,
    RIGHT,
    WRONG,
    blank_axes,
    new_figure,
    save_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINE_WIDTH = 116  # characters of a line
MAX_WORDS = 70  # words shown of one text
MAX_LETTERS = 24  # letters shown of one word


class TextRow(NamedTuple):
    """One text: words or word pieces ("##ing"), which of them were hidden, the model's guess there (else None)."""

    words: Sequence[str]
    masked: Sequence[bool]
    predicted: Sequence[str | None]


class _Slot(NamedTuple):
    line: int
    column: int
    word: str
    masked: bool
    guess: str


def _shown(piece: str) -> str:
    """A word piece as a reader expects a suffix: "##ing" -> "-ing"."""
    return (f"-{piece[2:]}" if piece.startswith("##") else piece)[:MAX_LETTERS]


def _joined(row: TextRow) -> list[tuple[str, bool, str]]:
    """(word, hidden, guess) with visible continuation pieces joined to the visible word before them."""
    joined: list[tuple[str, bool, str]] = []
    for word, masked, guess in zip(*row, strict=True):
        if word.startswith("##") and not masked and joined and not joined[-1][1]:
            joined[-1] = (joined[-1][0] + word[2:], False, "")
        else:
            joined.append((word, bool(masked), guess or ""))
    return [(_shown(word), masked, _shown(guess)) for word, masked, guess in joined]


def _slots(row: TextRow, show_text: bool) -> list[_Slot]:
    """Flow the words of a text into lines of ``LINE_WIDTH`` characters; a hidden word is as wide as its guess."""
    slots: list[_Slot] = []
    line = column = 0
    for word, masked, guess in _joined(row)[:MAX_WORDS]:
        width = max(len(word), len(guess) + 2) if masked and show_text else len(word)
        if column and column + width > LINE_WIDTH:
            line, column = line + 1, 0
        slots.append(_Slot(line, column, word, masked, guess))
        column += width + 2
    return slots


def text_panel(rows: Sequence[TextRow | tuple], path: str | Path, *, show_text: bool = False) -> Path:
    """Texts with their hidden words boxed and the model's guess below each.

    Args:
        rows: texts; see :class:`TextRow`. At most ``MAX_WORDS`` words of each are shown.
        path: PNG file to write.
        show_text: True prints the words; False (for reports that may identify somebody) draws bars of their length.

    Raises:
        InputError: when no text is given or the lengths of a row differ.
    """
    texts = [TextRow(*row) for row in rows]
    if not texts or any(len({len(part) for part in text}) != 1 for text in texts):
        raise InputError("rows must hold at least one text, and words, masked and predicted of equal length")
    flowed = [_slots(text, show_text) for text in texts]
    heights = [2.0 * (slots[-1].line + 1) + 1.0 if slots else 2.0 for slots in flowed]
    figure = new_figure(10.0, 0.2 * (sum(heights) + 2.6))
    axes = figure.add_axes((0.02, 0.0, 0.96, 1.0))
    axes.set_xlim(0, LINE_WIDTH + 1)
    axes.set_ylim(sum(heights) + 0.4, -2.2)
    blank_axes(axes)
    axes.text(0, -1.2, _text_heading(texts), fontsize=10, color=INK, va="center", fontweight="bold")
    top = 0.0
    for slots, height in zip(flowed, heights, strict=True):
        for slot in slots:
            _draw_slot(axes, slot, top + 2.0 * slot.line, show_text)
        top += height
        axes.axhline(top - 0.7, color=GRID, linewidth=0.8)
    return save_figure(figure, path)


def _text_heading(texts: Sequence[TextRow]) -> str:
    pairs = [(word, guess) for text in texts for word, masked, guess in zip(*text, strict=True) if masked]
    right = sum(word == guess for word, guess in pairs)
    return f"{right} of {len(pairs)} hidden words and word pieces guessed right"


def _draw_slot(axes: Axes, slot: _Slot, top: float, show_text: bool) -> None:
    from matplotlib.patches import Rectangle

    right = slot.word == slot.guess
    colour = RIGHT if right else WRONG
    mono: dict[str, Any] = {"family": "DejaVu Sans Mono", "fontsize": 9.6, "va": "center"}
    if slot.masked:
        box = Rectangle((slot.column - 0.3, top), len(slot.word) + 0.6, 1.0, facecolor=REMOVED, edgecolor="none")
        axes.add_patch(box)
        guess = ("✓ " if right else "✗ ") + (slot.guess if show_text else "")
        axes.text(slot.column, top + 1.4, guess, color=colour, **mono)
    if show_text:
        axes.text(slot.column, top + 0.5, slot.word, color=INK, **mono)
    elif not slot.masked:
        axes.add_patch(Rectangle((slot.column, top + 0.25), len(slot.word), 0.5, facecolor=GRID, edgecolor="none"))
