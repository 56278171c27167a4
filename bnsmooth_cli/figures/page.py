"""The page: panels side by side and below each other, as wide as the figure allows, under one legend."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

import matplotlib
from matplotlib.axes import Axes
from matplotlib.cbook import is_math_text
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator

from bnsmooth_cli.errors import InputError
from bnsmooth_cli.figures import style
from bnsmooth_cli.figures.format import Format, Picture

_MAX_WIDTH: Final = 10.0  # inches, unless the user gives a width
_MARGIN: Final = 0.65  # inches of a panel's width beside its axes
_TICK: Final = 0.4  # inches that the label of a tick takes
_LEAST: Final = 0.45  # a figure is refused if its panels get less than this share of the height that they take
#: What the legend names after the series.
MARKS: Final = ("saturated probe", "off scale", "not reached", "diverged", "ends early", "not finite")

_Item = TypeVar("_Item")


class Panel(Protocol):
    """One axes of a figure. A class attribute `axes_class` chooses the kind of axes.

    Attributes:
        title: Its title. The page breaks it into lines.
        ylabel: The label of its y axis. The page writes it once where panels side by side share label and scale.
        width: The least width in inches, where text has `style.FONT` points.
        height: Its height in inches, likewise; None for a square panel.
    """

    @property
    def title(self) -> str: ...
    @property
    def ylabel(self) -> str: ...
    @property
    def width(self) -> float: ...
    @property
    def height(self) -> float | None: ...

    def draw(self, axes: Axes) -> dict[str, Line2D]:
        """Draw into `axes`; return the legend's entries by label."""


#: Panels below each other.
Column = Sequence[Panel]


@dataclass(frozen=True)
class Band:
    """Columns of panels side by side. They continue in further rows where the figure is too narrow.

    Attributes:
        lines: The columns. Those of one line stay together as far as they fit, and short lines share a row.
        most: The largest number of columns in a row.
        stretched: Whether the columns of a short row share its width; otherwise its end stays empty.
    """

    lines: Sequence[Sequence[Column]]
    most: int = 12
    stretched: bool = False

    def rows(self, width: float) -> list[list[Column]]:
        """The columns of each row of a figure of this width in inches."""
        widest = max(panel.width for line in self.lines for column in line for panel in column)
        return _arranged(self.lines, max(1, min(self.most, int(width / style.scaled(widest)))))


def in_row(*panels: Panel, most: int = 12, stretched: bool = False) -> Band:
    """A band of panels side by side."""
    return Band([[[panel] for panel in panels]], most, stretched)


def _arranged(lines: Sequence[Sequence[_Item]], across: int) -> list[list[_Item]]:
    """Rows of at most `across` items: a long line is split into rows of similar length, short lines share a row.

    >>> _arranged(["abcde", "fg", "h"], 4)
    [['a', 'b', 'c'], ['d', 'e', 'f', 'g'], ['h']]
    """
    rows: list[list[_Item]] = []
    for line in lines:
        if rows and len(rows[-1]) + len(line) <= across:
            rows[-1] += line
        else:
            length = _even(len(line), across)
            rows += [list(line[start : start + length]) for start in range(0, len(line), length)]
    return rows


@dataclass(frozen=True)
class _Block:
    """The panels of one problem in a grid of cells: a panel fills several cells, an empty cell is None."""

    title: str
    cells: list[list[Panel | None]]
    heights: list[float]  # of the rows of cells, in inches
    width: float  # of a cell, in inches

    @classmethod
    def of(cls, title: str, bands: Sequence[Band], width: float) -> _Block:
        arranged = [(band, band.rows(width)) for band in bands]
        longest = max((len(row) for band, rows in arranged if not band.stretched for row in rows), default=1)
        across = math.lcm(longest, *(len(row) for band, rows in arranged if band.stretched for row in rows))
        cells: list[list[Panel | None]] = []
        heights: list[float] = []
        for band, rows in arranged:
            for columns in rows:
                span = across // (len(columns) if band.stretched else longest)
                for level in range(len(columns[0])):
                    line = [column[level] for column in columns for _ in range(span)]
                    cells.append([*line, *[None] * (across - len(line))])
                    heights.append(max(_height(column[level], width * span / across) for column in columns))
        return cls(title, cells, heights, width / across)

    def width_of(self, panel: Panel) -> float:
        """The width of a panel in inches."""
        return self.width * max(row.count(panel) for row in self.cells)


def _height(panel: Panel, width: float) -> float:
    height = min(style.scaled(4.0), width - 0.3) if panel.height is None else style.scaled(panel.height)
    lines = style.wrapped(panel.title, width - style.scaled(_MARGIN), style.points_of("axes.titlesize")).count("\n")
    return height + lines * 1.2 * style.points_of("axes.titlesize") / 72


def page(blocks: Iterable[tuple[str, Sequence[Band]]], form: Format | None = None) -> Picture:
    """A figure of blocks, each a title and bands of panels, under one legend.

    Args:
        blocks: The blocks.
        form: The format; its settings of matplotlib have to be in force.

    Raises:
        InputError: If the panels do not fit into the height, or the figure has too many pixels.
    """
    form = form or Format()
    blocks = list(blocks)
    width = form.inches
    if width is None:
        longest = max(len(row) for _, bands in blocks for band in bands for row in band.rows(_MAX_WIDTH))
        width = min(1 + 4 * longest, _MAX_WIDTH)
    made = [_Block.of(title, bands, width) for title, bands in blocks]
    totals = [sum(block.heights) for block in made]
    figure = Picture(figsize=(width, 1.0), dpi=form.resolution, layout="constrained")
    parts = figure.subfigures(len(made), 1, squeeze=False, height_ratios=totals)[:, 0]
    entries: dict[str, Line2D] = {}
    lines = 0
    for part, block in zip(parts, made, strict=True):
        lines += _title(part, block.title, width, is_math=bool(form.title) and is_math_text(block.title))
        entries |= _draw(part, block)
    lines += _add_legend(figure, entries, width) if entries else 0
    _set_height(figure, form, sum(totals) + (lines + 0.5) * 1.35 * style.points_of("figure.titlesize") / 72)
    return figure


def _title(part: SubFigure, title: str, width: float, is_math: bool) -> int:
    """Write the title of a block; return the number of its lines."""
    if not title:
        return 0
    text = title if is_math else style.wrapped(title, width - 0.3, style.points_of("figure.titlesize"), "bold")
    part.suptitle(text, x=0.01, horizontalalignment="left", parse_math=is_math)
    return 1 + text.count("\n")


def _set_height(figure: Picture, form: Format, taken: float) -> None:
    height = taken if form.height is None else form.height
    if height < _LEAST * taken:
        least = math.ceil(10 * _LEAST * taken) / 10
        raise InputError(
            f"--height {height:g}: these panels take at least {least:g} inches at this width; give more, or select "
            "fewer rows with --layers, --units or --steps, or fewer tables"
        )
    form.check_pixels(figure.get_figwidth(), height)
    figure.set_figheight(height)


def _draw(part: SubFigure, block: _Block) -> dict[str, Line2D]:
    """Draw a block; return the legend's entries by label."""
    kinds: Any = {
        panel: {"axes_class": getattr(panel, "axes_class", None)} for row in block.cells for panel in row if panel
    }
    mosaic: Any = [[panel or "." for panel in row] for row in block.cells]
    drawn: dict[Panel, Axes] = part.subplot_mosaic(mosaic, height_ratios=block.heights, per_subplot_kw=kinds)
    entries: dict[str, Line2D] = {}
    for panel, axes in drawn.items():
        entries |= panel.draw(axes)
    repeating = [panel for left, panel in _neighbours(block.cells) if _shares_y(left, panel, drawn)]
    for panel, axes in drawn.items():
        axes.set_ylabel("" if panel in repeating else panel.ylabel)
        axes.tick_params(axis="y", which="both", labelleft=panel not in repeating)
    for panel, axes in drawn.items():
        if _is_labelled_below(panel, block.cells, drawn):
            axes.set_xlabel("")
        _wrap(panel, axes, block.width_of(panel), block.heights[_first_row(panel, block.cells)])
    return entries


def _neighbours(cells: Sequence[Sequence[Panel | None]]) -> Iterator[tuple[Panel, Panel]]:
    """Panels side by side."""
    for row in cells:
        for left, panel in itertools.pairwise(row):
            if left is not None and panel is not None and panel is not left:
                yield left, panel


def _shares_y(left: Panel, panel: Panel, drawn: dict[Panel, Axes]) -> bool:
    """Whether two panels side by side have one labelled y axis."""
    if not panel.ylabel or left.ylabel != panel.ylabel:
        return False
    one, two = (
        (each.get_ylim(), each.get_yscale(), [label.get_text() for label in each.get_yticklabels()])
        for each in (drawn[left], drawn[panel])
    )
    return one == two


def _first_row(panel: Panel, cells: Sequence[Sequence[Panel | None]]) -> int:
    return next(place for place, row in enumerate(cells) if panel in row)


def _is_labelled_below(panel: Panel, cells: Sequence[Sequence[Panel | None]], drawn: dict[Panel, Axes]) -> bool:
    """Whether the panels below have the same label of the x axis."""
    last = max(place for place, row in enumerate(cells) if panel in row)
    if last + 1 == len(cells):
        return False
    under = {below for above, below in zip(cells[last], cells[last + 1], strict=True) if above is panel}
    label = drawn[panel].get_xlabel()
    return None not in under and all(drawn[one].get_xlabel() == label for one in under if one is not None)


def _wrap(panel: Panel, axes: Axes, width: float, height: float) -> None:
    """Write the title, and break it and the labels into lines that fit."""
    inside = width - style.scaled(_MARGIN)
    axes.set_title(style.wrapped(panel.title, inside, style.points_of("axes.titlesize")))
    axes.set_xlabel(style.wrapped(axes.get_xlabel(), width - style.scaled(0.35), style.points_of("axes.labelsize")))
    _thin_out(axes, inside)
    inside = height - style.scaled(0.7)
    axes.set_ylabel(style.wrapped(axes.get_ylabel(), inside, style.points_of("axes.labelsize")))
    for text in (axes.title, axes.yaxis.label):
        text.set_parse_math(False)  # names may have a dollar sign


def _thin_out(axes: Axes, width: float) -> None:
    """Let an x axis have as few ticks as keeps their labels apart."""
    fitting = max(2, int(width / style.scaled(_TICK)))
    locator = axes.xaxis.get_major_locator()
    ticks = [
        tick for tick in locator.tick_values(*axes.get_xlim()) if min(axes.get_xlim()) <= tick <= max(axes.get_xlim())
    ]
    if len(ticks) <= fitting:
        return
    if isinstance(locator, MaxNLocator):
        locator.set_params(nbins=fitting)
    elif isinstance(locator, FixedLocator):
        axes.xaxis.set_major_locator(FixedLocator([ticks[0], ticks[len(ticks) // 2], ticks[-1]][: max(2, fitting)]))


def _add_legend(figure: Figure, entries: dict[str, Line2D], width: float) -> int:
    """Add the legend above the panels; return the number of its lines."""
    marks = [name for name in entries if name.startswith(MARKS)]
    names = [*sorted(entries.keys() - marks, key=style.rank), *marks]
    points = style.points_of("legend.fontsize")
    handle = (2.6 + 0.8 + 1.4) * points / 72  # its line, the gap to its text, the gap to the next column
    texts = [style.wrapped(name, width - handle - 0.2, points) for name in names]
    widest = max(style.text_width(line, points) for text in texts for line in text.split("\n"))
    fitting = max(1, int((width - 0.1) / (widest + handle)))
    # A legend is filled by columns: with a column for each norm, the learning rates of a norm stay together.
    norms = len({style.rank(name)[:3] for name in names})
    columns = len(names) if len(names) <= fitting else norms if norms <= fitting else _even(len(names), fitting)
    handles = [entries[name] for name in names]
    legend = figure.legend(
        handles, texts, loc="outside upper center", ncols=columns, handlelength=2.6, columnspacing=1.4
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    rows = math.ceil(len(names) / columns)
    return rows * max(name.count("\n") + 1 for name in texts)


def _even(count: int, most: int) -> int:
    """The number of columns, at most `most`, that fills the rows of a legend evenly."""
    return math.ceil(count / math.ceil(count / most))


def say_empty(axes: Axes) -> None:
    """Write into a panel that it has no finite data."""
    axes.text(0.5, 0.5, "no finite data", transform=axes.transAxes, ha="center", color=style.grey())
    axes.set(xticks=[], yticks=[])


def draw_mark(axes: Axes, shape: str, x: float, y: float, colour: object, **more: object) -> Line2D:
    """Draw a mark, perhaps on the edge of the axes. Returns its entry in the legend."""
    # Not clipped: half of a mark on the edge lies outside.
    size = style.scaled(5)
    axes.plot([x], [y], marker=shape, color=colour, linestyle="", markersize=size, clip_on=False, zorder=5, **more)  # type: ignore[arg-type]
    return mark_handle(shape, **more)


def mark_handle(shape: str, **more: object) -> Line2D:
    """The legend's entry of a mark."""
    colour = matplotlib.rcParams["text.color"]
    return Line2D([], [], color=colour, marker=shape, linestyle="", markersize=style.scaled(5), **more)  # type: ignore[arg-type]
