"""An outline: headings with rows below them in common columns, at the width of a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from rich.cells import cell_len
from rich.text import Text

_INDENT: Final = 3
_GAP: Final = 2
#: Where the first column would be narrower, it has lines of its own.
_LEAST: Final = 24
_UNLIMITED: Final = 10_000


class Cell(NamedTuple):
    """A text, and rich's style for it."""

    text: str
    style: str = ""


class Section(NamedTuple):
    """A heading of some lines, and its rows."""

    heading: tuple[Cell, ...]
    rows: tuple[tuple[Cell, ...], ...]


def outline(columns: Mapping[str, bool], sections: Sequence[Section], width: int | None) -> Iterator[Text]:
    """The lines of an outline. The first column is wrapped between words; columns without a text are left out.

    Args:
        columns: The names of the columns, and whether they are aligned right.
        sections: The headings with their rows, which have a cell for each column.
        width: The width of the terminal; None for lines of any length.

    >>> rows = ((Cell("a long name of a part"), Cell("1.5")), (Cell("short"), Cell("12")))
    >>> for line in outline({"part": False, "here": True}, [Section((Cell("1 Claim"),), rows)], 30):
    ...     print(line.plain)
       part                   here
    1 Claim
       a long name of a part   1.5
       short                    12
    """
    names, width = [*columns], width or _UNLIMITED
    every = [row for section in sections for row in section.rows]
    used = [i for i in range(len(names)) if i == 0 or any(row[i].text not in ("", "-") for row in every)]
    head = tuple(Cell(names[i], "bold") for i in used)
    widths = [max(cell_len(row[i].text) for row in [[*map(Cell, names)], *every]) for i in used]
    room = width - _INDENT - sum(widths[1:]) - _GAP * (len(used) - 1)
    widths[0] = min(widths[0], room) if room >= min(_LEAST, widths[0]) else 0
    aligned = [columns[names[i]] for i in used]
    if every:
        yield from list(_lines(head, widths, aligned, width))[0 if widths[0] else 1 :]  # a wide one names itself
    for section in sections:
        for text, style in section.heading:
            indent = " " * _INDENT
            for line in textwrap.wrap(text, width, subsequent_indent=indent, break_on_hyphens=False):
                yield Text(line, style)
        for row in section.rows:
            yield from _lines(tuple(row[i] for i in used), widths, aligned, width)


def _lines(row: Sequence[Cell], widths: Sequence[int], right: Sequence[bool], width: int) -> Iterator[Text]:
    """A row. Where the first column has no width, its text has lines of its own above the other cells."""
    first, others = row[0], list(zip(row[1:], widths[1:], right[1:], strict=True))
    names = textwrap.wrap(first.text, widths[0] or width - _INDENT, break_on_hyphens=False) or [""]
    cells = Text()
    for (text, style), size, to_right in others:
        space = " " * (size - cell_len(text))
        cells.append(" " * _GAP)
        cells.append(space + text if to_right else text + space, style)
    if not widths[0]:
        yield from (Text(" " * _INDENT + name, first.style) for name in names)
        names = [""] if others else []
    for i, name in enumerate(names):
        line = Text(" " * _INDENT)
        line.append(name + " " * (widths[0] - cell_len(name)), first.style)
        if i == 0:
            line.append_text(cells)
        line.rstrip()
        yield line
