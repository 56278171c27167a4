"""Panels of curves or bands, one series for each norm and learning rate, and the page that arranges panels in rows
under one legend."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator
from matplotlib.typing import ColorType

from bnsmooth_cli.figures import style

#: The legend's labels for a value above the axis or an overflow, a beta that the probe sets, and the end of a diverged
#: run.
OFF_SCALE: Final = "off scale"
SATURATED: Final = "saturated probe"
DIVERGED: Final = "diverged"
MAX_WIDTH: Final = 10.0  # of a figure, in inches
_PAPER_WIDTH: Final = 0.9  # of the paper's lines
_XLABELS: Final = {
    "step": "training step",
    "alpha": "step length η (multiples of the learning rate)",
    "x": "position along a filter-normalised direction",
    "layer": "layer",
    "data_loss": "training loss without the penalty",
}


class Panel(Protocol):
    """One axes of a figure. A class attribute `projection`, such as "3d", chooses the kind of axes."""

    @property
    def height(self) -> float:
        """The height in inches."""

    def draw(self, axes: Axes) -> dict[str, Line2D]:
        """Draw into `axes`; return the legend's entries by label."""


@dataclass(frozen=True)
class Series:
    """The values drawn in one look: a row for each x, a column for each run (in a band, for each point of its line)."""

    look: style.Look
    values: pd.DataFrame


def series(table: pd.DataFrame, column: str, x: str = "step", spread: str | None = None) -> list[Series]:
    """A column of a table as series over the column `x`; `spread` is the column that a band spans."""
    columns = ["run"] if spread is None else ["run", spread]
    result = []
    for look, rows in style.groups(table):
        rows = rows.drop_duplicates([*columns, x], keep="last")  # a table may be given twice
        values = rows.pivot(index=x, columns=columns, values=column).astype("float64")
        result.append(Series(look, values))
    return result


def along(table: pd.DataFrame, title: str, formula: str) -> tuple[str, str]:
    """A title and a formula about the line along the gradient g; of a table of random directions, along d.

    >>> along(pd.DataFrame({"direction": ["random"]}), "loss along the gradient", "L(θ − ηg)")
    ('loss along a random direction', 'L(θ − ηd)')
    >>> along(pd.DataFrame({"direction": ["random"]}), "Lipschitz constant of the loss on the line", "max ‖g(θ − ηg)‖")
    ('Lipschitz constant of the loss along a random direction', 'max ‖g(θ − ηd)‖')
    """
    if "direction" not in table:
        return title, formula
    changed = formula.replace("gᵀHg / gᵀg", "dᵀHd / dᵀd").replace("ηg", "ηd")
    for line in ("along the gradient", "on the line"):
        title = title.replace(line, "along a random direction")
    return title if changed == formula or "along" in title else f"{title}, along a random direction", changed


def papers(paper: pd.DataFrame | None, table: pd.DataFrame, *columns: str, unit: float = 1) -> list[Series]:
    """A curve of the paper, or the edges of its band, for the norms and learning rates of a table.

    Args:
        paper: Rows from `paper.matching.curves`; None if the figure is drawn without the paper's curves.
        table: The rows that are drawn above them.
        columns: The column of a curve, or the columns of a band's edges.
        unit: The number of units of the axis in one unit of the columns.
    """
    if paper is None or not {*columns} <= {*paper}:
        return []
    shown = paper.dropna(subset=[*columns])
    if "layer" in table:
        shown = shown[shown["layer"].isin(table["layer"])]
    lrs = style.lrs_of(table)
    shown = shown[shown["norm"].isin(table["norm"]) & shown["lr"].isin(lrs)]
    result = []
    for look, rows in style.groups(shown, lrs):
        rows = rows[rows["figure"] == rows["figure"].iloc[0]]  # several figures may show one run
        result.append(Series(style.papers(look), unit * rows.set_index("step")[[*columns]]))
    return result


def layers_over_depth(table: pd.DataFrame, paper: pd.DataFrame | None = None) -> list[int]:
    """The first, the middle and the last layer of a table; those that the paper shows, if its curves are drawn too."""
    layers = sorted(int(layer) for layer in table["layer"].unique())
    if paper is not None and "layer" in paper and (theirs := [n for n in layers if n in set(paper["layer"])]):
        return theirs
    return sorted({layers[0], layers[len(layers) // 2], layers[-1]})


@dataclass(frozen=True, eq=False)
class Curves:
    """A panel of curves: a line for each run, and the median in a wider line if a series has several runs.

    The paper's own curves and the floors are thin lines under them. Values above the axis are drawn along its upper
    edge, with one mark for each series.

    Attributes:
        title: The panel's title.
        ylabel: The label of the y axis.
        series: What is drawn.
        papers: The paper's own curves or bands, and other curves to compare with.
        band: Whether to draw the range of each series at each x, instead of lines.
        upper: Whether the panel below has the same x axis and labels it.
        scale: The scale of the y axis; None fits it to the values.
        diverged: The runs that end in a cross.
        height: The height in inches.
    """

    title: str
    ylabel: str
    series: Sequence[Series]
    papers: Sequence[Series] = ()
    band: bool = False
    upper: bool = False
    scale: style.Scale | None = None
    diverged: frozenset[str] = frozenset()
    height: float = 2.45

    def draw(self, axes: Axes) -> dict[str, Line2D]:
        axes.set_title(self.title)
        axes.set_ylabel(self.ylabel)
        scale = style.fit([curves.values.to_numpy() for curves in (*self.series, *self.papers)])
        if scale is None:
            say_empty(axes)
            return {}
        scale = self.scale or scale
        scale.apply(axes, "y")
        self._set_x(axes)
        for curves in self.papers:
            shown = curves.values.clip(scale.low, scale.high)
            axes.plot(
                shown.index, shown, color=curves.look.colour, linestyle=curves.look.dash, linewidth=_PAPER_WIDTH,
                zorder=1.5, marker=curves.look.marker, markersize=2.5, markevery=max(1, len(shown) // 8),
            )  # fmt: skip
        marks: dict[str, Line2D] = {}
        # Wide bands first, so that narrow ones stay visible. Lines keep the order of the norms.
        order = sorted(self.series, key=lambda curves: -scale.width(curves.values)) if self.band else self.series
        for curves in order:
            shown = curves.values.clip(scale.low, scale.high)
            if self.band:
                _draw_band(axes, curves.look, shown)
            else:
                _draw_lines(axes, curves.look, shown, alpha=0.2 if self.papers else 0.45)
            marks |= self._draw_marks(axes, curves, shown, scale.high)
        entries = {curves.look.label: _handle(curves.look) for curves in self.series}
        return entries | {curves.look.label: _handle(curves.look, _PAPER_WIDTH) for curves in self.papers} | marks

    def _set_x(self, axes: Axes) -> None:
        name = str(self.series[0].values.index.name)
        axes.set_xlabel("" if self.upper else _XLABELS[name])
        xs = [float(x) for curves in (*self.series, *self.papers) for x in curves.values.index]
        if name == "step":
            axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10], integer=True))
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        elif name == "layer":
            axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10], integer=True))
            axes.set_xlim(min(xs) - 0.5, max(xs) + 0.5)  # no tick at layer 0
        elif 0 < style.DECADES * min(xs) < max(xs):
            axes.set_xscale("log")

    def _draw_marks(self, axes: Axes, curves: Series, shown: pd.DataFrame, top: float) -> dict[str, Line2D]:
        ended = [shown[run].dropna() for run in shown.columns if run in self.diverged]
        above = (curves.values.drop(columns=[run.name for run in ended]) > top).any(axis=1)
        marks = [(DIVERGED, "x", run.index[-1], run.iloc[-1]) for run in ended if len(run)]
        marks += [(OFF_SCALE, "^", above.idxmax(), top)] if above.any() else []
        return {name: draw_mark(axes, shape, x, y, curves.look.colour) for name, shape, x, y in marks}


def draw_mark(axes: Axes, shape: str, x: float, y: float, colour: ColorType) -> Line2D:
    """Draw a mark, perhaps on the edge of the axes. Returns its entry in the legend."""
    # Not clipped: half of a mark on the edge lies outside.
    axes.plot([x], [y], marker=shape, color=colour, markersize=5, clip_on=False, zorder=5)
    return Line2D([], [], color="#444444", marker=shape, linestyle="")


def _handle(look: style.Look, width: float = 1.6) -> Line2D:
    return Line2D([], [], color=look.colour, linestyle=look.dash, marker=look.marker, markersize=4, linewidth=width)


def _draw_lines(axes: Axes, look: style.Look, shown: pd.DataFrame, alpha: float) -> None:
    runs = shown.shape[1]
    if runs == 1:
        return _draw_line(axes, look, shown.iloc[:, 0], width=1.6)
    axes.plot(shown.index, shown, color=look.colour, linewidth=0.6, alpha=alpha)
    # No median where most runs have ended or were not measured: it would be the survivors'.
    _draw_line(axes, look, shown[shown.notna().sum(axis=1) > runs / 2].median(axis=1), width=1.8)


def _draw_band(axes: Axes, look: style.Look, shown: pd.DataFrame) -> None:
    low, high = shown.min(axis=1), shown.max(axis=1)
    axes.fill_between(low.index, low, high, color=look.colour, alpha=0.13, linewidth=0)
    for edge in (low, high):
        _draw_line(axes, look, edge, width=1.0)


def _draw_line(axes: Axes, look: style.Look, values: pd.Series[float], width: float) -> None:
    values = values.dropna()
    axes.plot(
        values.index, values, color=look.colour, linestyle=look.dash, linewidth=width, markersize=3.5,
        marker=look.marker or ("o" if len(values) == 1 else ""),  # a single point has no line
        markevery=max(1, len(values) // 8),
    )  # fmt: skip


def say_empty(axes: Axes) -> None:
    """Write into a panel that it has no finite data."""
    axes.text(0.5, 0.5, "no finite data", transform=axes.transAxes, ha="center", color="#666666")
    axes.set(xticks=[], yticks=[])


def page(blocks: Iterable[tuple[str, list[list[Panel]]]]) -> Figure:
    """A figure of blocks, each a title and rows of panels, under one legend.

    A repeated panel spans its cells. The end of a short row stays empty.
    """
    blocks = list(blocks)
    across = max(len(row) for _, rows in blocks for row in rows)
    heights = [[max(panel.height for panel in row) for row in rows] for _, rows in blocks]
    totals = [sum(block) for block in heights]
    figure = Figure(figsize=(min(1 + 4 * across, MAX_WIDTH), 0.55 + sum(totals)), layout="constrained")
    parts = figure.subfigures(len(blocks), 1, squeeze=False, height_ratios=totals)[:, 0]
    entries: dict[str, Line2D] = {}
    for part, (title, rows), ratios in zip(parts, blocks, heights, strict=True):
        part.suptitle(title, x=0.01, horizontalalignment="left")
        axes_kw = {panel: {"projection": getattr(panel, "projection", None)} for row in rows for panel in row}
        width = max(map(len, rows))
        mosaic = [[*row, *["."] * (width - len(row))] for row in rows]
        for panel, axes in part.subplot_mosaic(mosaic, height_ratios=ratios, per_subplot_kw=axes_kw).items():
            entries |= panel.draw(axes)
    if entries:
        _add_legend(figure, entries)
    return figure


def _add_legend(figure: Figure, entries: dict[str, Line2D]) -> None:
    marks = [name for name in entries if name.startswith((SATURATED, OFF_SCALE, DIVERGED))]
    names = [*sorted(entries.keys() - marks, key=style.rank), *marks]
    # A legend is filled by columns: with a column for each norm, the learning rates of a norm stay together.
    fitting = int(figure.get_figwidth() / (0.6 + 0.07 * max(map(len, names))))
    norms = len({style.rank(name)[:3] for name in names})
    columns = len(names) if len(names) <= fitting else max(1, min(norms, fitting))
    handles = [entries[name] for name in names]
    figure.legend(handles, names, loc="outside upper center", ncols=columns, handlelength=2.6, columnspacing=1.4)
