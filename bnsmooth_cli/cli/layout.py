"""How a table is laid out: whole in a pipe, and at the width of a terminal without a break inside a word."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Final

from rich.cells import cell_len, chop_cells
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

#: Where a text may be broken: at spaces, and in names after a hyphen, underscore or slash, but not in 1e-06.
_BREAK: Final = re.compile(r"(?<=\s)|(?<=\w[-_/])(?<!\de-)(?=\w)")

#: Longer words are broken, since a file may have anything for a name.
MAX_WORD: Final = 32


def plain(text: str) -> str:
    r"""Escape the characters of a line that a terminal would obey, such as those in the name of a folder.

    >>> plain("a\x1b[31mb")
    'a\\x1b[31mb'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def cell(value: object) -> str:
    """Format a value for a summary: a number to three significant digits.

    >>> cell(0.123456), cell(250.0), cell(float("nan")), cell("l1")
    ('0.123', '250', '-', 'l1')
    """
    if isinstance(value, float):
        if math.isnan(value):
            return "-"
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e6 else f"{value:.3g}"
    return plain(str(value))


def wrap(text: str, width: int) -> list[str]:
    """The lines of a text that is broken at spaces and in names, not inside a word, which may be longer than `width`.

    >>> wrap("vgg-batch-lr1e-06-seed0 is new", 12)
    ['vgg-batch-', 'lr1e-06-', 'seed0 is new']
    """
    lines = [""]
    for piece in (part for word in _BREAK.split(text) for part in chop_cells(word, MAX_WORD) or [""]):
        if lines[-1] and cell_len(lines[-1] + piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return [line.rstrip() for line in lines]


class Whole:
    """A table of fixed width, which a narrower console neither wraps nor cuts. Print it with `crop=False`."""

    def __init__(self, table: Table, width: int) -> None:
        self._table, self._width = table, width

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from console.render(self._table, options.update_width(self._width))


def arrange(heads: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[bool], width: int | None) -> Whole:
    """A table whose cells are not broken inside a word.

    If it is too wide, its heads are stacked first. Then its widest columns are wrapped, as far as their words allow.

    Args:
        heads: The names of the columns.
        cells: The texts of each column.
        right: Which columns are aligned right.
        width: The width of the terminal; None for a table without line breaks.
    """
    columns = list(zip(heads, cells, strict=True))
    widths = [max(map(cell_len, [head, *texts])) for head, texts in columns]
    if width is not None:
        longest = [[max(map(cell_len, wrap(text, 1)), default=0) for text in (head, *texts)] for head, texts in columns]
        room = width - (len(widths) - 1)
        if sum(widths) > room:
            widths = [max(parts[0], *map(cell_len, texts)) for parts, (_, texts) in zip(longest, columns, strict=True)]
        least = [*map(max, longest)]
        while sum(widths) > room and widths != least:
            widest = max((i for i in range(len(widths)) if widths[i] > least[i]), key=lambda i: widths[i])
            widths[widest] -= 1
    table = Table(box=None, pad_edge=False, collapse_padding=True)

    def lines(text: str, most: int) -> str:
        return text if width is None else "\n".join(wrap(text, most))

    for head, most, aligned in zip(heads, widths, right, strict=True):
        table.add_column(lines(head, most), justify="right" if aligned else "left", width=most, no_wrap=True)
    for row in zip(*cells, strict=True):
        table.add_row(*map(lines, row, widths))
    return Whole(table, sum(widths) + len(widths) - 1)
