"""What figures are made of: panels of curves or bands, one series per norm and learning rate,
and the page that puts panels in rows under one legend."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from bnsmooth_cli.figures import style

OFF_SCALE: Final = "off scale"  # the legend's words for a value above its axis, or an overflow
DIVERGED: Final = "diverged"
WIDEST: Final = 10.0  # a figure's width in inches, at most
_XLABELS: Final = {
    "step": "training step",
    "alpha": "step length η (multiples of the learning rate)",
    "x": "position along a filter-normalised direction",
    "layer": "layer",
}


class Panel(Protocol):
    """One axes of a figure; a panel that has a `projection` gets axes of that one, such as "3d"."""

    @property
    def height(self) -> float:
        """In inches."""

    def draw(self, axes: Axes) -> dict[str, Line2D]:
        """Draw into `axes`; the legend's entries come back by their labels."""


@dataclass(frozen=True)
class Series:
    """What is drawn in one colour: a row per x, a column per run (a band: per run and point of its line)."""

    look: style.Look
    values: pd.DataFrame


def series(table: pd.DataFrame, column: str, x: str = "step", spread: str | None = None) -> list[Series]:
    """A column as series over `x`, one per norm and learning rate; `spread` names what a band spans."""
    columns = ["run"] if spread is None else ["run", spread]
    found = []
    for look, rows in style.groups(table):
        rows = rows.drop_duplicates([*columns, x], keep="last")  # a table given twice is no error
        values = rows.pivot(index=x, columns=columns, values=column).astype("float64")
        found.append(Series(look, values))
    return found


@dataclass(frozen=True, eq=False)
class Curves:
    """A panel of curves, a line a run: thin where a series has several runs, with their median in full width.

    With `band`, a series is instead the range of all its values at each x. A value above the axis is drawn
    along the upper edge and marked, once a series; a run named in `diverged` ends in a cross. A `scale` of None is
    fitted to the values.
    """

    title: str
    ylabel: str
    series: Sequence[Series]
    band: bool = False
    upper: bool = False  # stands on a panel with the same x axis, which names it
    scale: style.Scale | None = None
    diverged: frozenset[str] = frozenset()
    height: float = 2.45

    def draw(self, axes: Axes) -> dict[str, Line2D]:
        """Draw into `axes`; the legend's entries come back by their labels."""
        axes.set_title(self.title)
        axes.set_ylabel(self.ylabel)
        scale = style.fit([one.values.to_numpy() for one in self.series])
        if scale is None:
            say_empty(axes)
            return {}
        scale = self.scale or scale
        scale.apply(axes, "y")
        self._set_x(axes)
        marks: dict[str, Line2D] = {}
        # Wide bands first: a narrow one stays visible on top of them. Lines keep the norms' order.
        order = sorted(self.series, key=lambda one: -scale.width(one.values)) if self.band else self.series
        for one in order:
            shown = one.values.clip(scale.low, scale.high)
            (_draw_band if self.band else _draw_lines)(axes, one.look, shown)
            marks |= self._draw_marks(axes, one, shown, scale.high)
        return {one.look.label: _handle(one.look) for one in self.series} | marks

    def _set_x(self, axes: Axes) -> None:
        name = str(self.series[0].values.index.name)
        axes.set_xlabel("" if self.upper else _XLABELS[name])
        xs = [float(x) for one in self.series for x in one.values.index]
        if name == "step":
            axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10], integer=True))
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        elif name == "layer":
            axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10], integer=True))
            axes.set_xlim(min(xs) - 0.5, max(xs) + 0.5)  # without a tick at a layer that does not exist
        elif 0 < style.DECADES * min(xs) < max(xs):
            axes.set_xscale("log")

    def _draw_marks(self, axes: Axes, one: Series, shown: pd.DataFrame, top: float) -> dict[str, Line2D]:
        ended = [shown[run].dropna() for run in shown.columns if run in self.diverged]
        above = (one.values.drop(columns=[run.name for run in ended]) > top).any(axis=1)
        marks = [(DIVERGED, "x", run.index[-1], run.iloc[-1]) for run in ended if len(run)]
        marks += [(OFF_SCALE, "^", above.idxmax(), top)] if above.any() else []
        for _, shape, x, y in marks:
            # Half of a mark on the axis' edge stands out of it.
            axes.plot([x], [y], marker=shape, color=one.look.colour, markersize=5, clip_on=False, zorder=5)
        return {name: Line2D([], [], color="#444444", marker=shape, linestyle="") for name, shape, *_ in marks}


def _handle(look: style.Look) -> Line2D:
    return Line2D([], [], color=look.colour, linestyle=look.dash, marker=look.marker, markersize=4, linewidth=1.6)


def _draw_lines(axes: Axes, look: style.Look, shown: pd.DataFrame) -> None:
    runs = shown.shape[1]
    if runs == 1:
        return _draw_line(axes, look, shown.iloc[:, 0], width=1.6)
    axes.plot(shown.index, shown, color=look.colour, linewidth=0.6, alpha=0.45)
    # Where most runs have ended (or were not measured) a median would speak of the survivors only.
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
        marker=look.marker or ("o" if len(values) == 1 else ""),  # a single point has no line to be seen by
        markevery=max(1, len(values) // 8),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Blank:
    """The place of a panel that a row has too few of."""

    height: float = 0.0

    def draw(self, axes: Axes) -> dict[str, Line2D]:
        """Leave `axes` empty."""
        axes.set_axis_off()
        return {}


def say_empty(axes: Axes) -> None:
    """Say in a panel that nothing can be drawn in it."""
    axes.text(0.5, 0.5, "no finite data", transform=axes.transAxes, ha="center", color="#666666")
    axes.set(xticks=[], yticks=[])


def page(blocks: Iterable[tuple[str, list[list[Panel]]]]) -> Figure:
    """Titled blocks of rows of panels, under one legend; a panel repeated below itself spans the rows."""
    blocks = list(blocks)
    across = max(len(rows[0]) for _, rows in blocks)
    heights = [[max(panel.height for panel in row) for row in rows] for _, rows in blocks]
    totals = [sum(of_rows) for of_rows in heights]
    figure = Figure(figsize=(min(1 + 4 * across, WIDEST), 0.55 + sum(totals)), layout="constrained")
    parts = figure.subfigures(len(blocks), 1, squeeze=False, height_ratios=totals)[:, 0]
    entries: dict[str, Line2D] = {}
    for part, (title, rows), of_rows in zip(parts, blocks, heights, strict=True):
        part.suptitle(title, x=0.01, horizontalalignment="left")
        kinds = {panel: {"projection": getattr(panel, "projection", None)} for row in rows for panel in row}
        for panel, axes in part.subplot_mosaic(rows, height_ratios=of_rows, per_subplot_kw=kinds).items():
            entries |= panel.draw(axes)
    if entries:
        _add_legend(figure, entries)
    return figure


def _add_legend(figure: Figure, entries: dict[str, Line2D]) -> None:
    marks = [name for name in (OFF_SCALE, DIVERGED) if name in entries]
    names = [*sorted(entries.keys() - marks, key=style.rank), *marks]
    # A legend fills its columns from the top: as many columns as norms put a norm's learning rates together.
    fitting = int(figure.get_figwidth() / (0.6 + 0.07 * max(map(len, names))))
    norms = len({style.rank(name)[:2] for name in names})
    columns = len(names) if len(names) <= fitting else max(1, min(norms, fitting))
    handles = [entries[name] for name in names]
    figure.legend(handles, names, loc="outside upper center", ncols=columns, handlelength=2.6, columnspacing=1.4)
