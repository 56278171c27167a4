"""Panels of curves or bands, one series for each norm, learning rate and group of settings."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import NDArray

from bnsmooth_cli import kinds
from bnsmooth_cli.figures import scales, style
from bnsmooth_cli.figures.page import draw_mark, mark_handle, say_empty

#: The legend's labels for a value beyond the axis or an overflow, a beta that the probe sets, the end of a diverged
#: run, and that of a run whose rows end before those of the others.
OFF_SCALE: Final = "off scale"
SATURATED: Final = "saturated probe"
DIVERGED: Final = "diverged"
ENDED: Final = "ends early"
_PAPER_WIDTH: Final = 0.9  # of the paper's lines
_FEW: Final = 12  # a curve of at most so many points shows them
_MANY: Final = 80  # a band of more points says how many there are, instead of showing them
_XLABELS: Final = {
    "step": "training step",
    "alpha": "step length η (multiples of the learning rate)",
    "x": "position along a filter-normalised direction",
    "eigenvector": "position along the top eigenvector",
    "layer": "layer",
    "data_loss": "training loss without the penalty",
}


@dataclass(frozen=True)
class Series:
    """The values drawn in one look: a row for each x, a column for each run (in a band, for each point of its line).

    `ends` are the last steps of the runs whose rows end before those of other runs with the same settings.
    """

    look: style.Look
    values: pd.DataFrame
    ends: Mapping[str, int] = field(default_factory=dict)

    @property
    def runs(self) -> list[str]:
        """The runs, in the order of the columns."""
        return [str(run) for run in self.values.columns.get_level_values(0).unique()]

    def edges(self) -> pd.DataFrame:
        """The edges of the band, as the columns `low` and `high`: the medians over the runs of the edges of each run.

        The range over all runs together would show how the runs differ from each other.
        """
        lines = self.values.T.groupby(level=0)
        return pd.DataFrame({name: _medians(edge.T) for name, edge in (("low", lines.min()), ("high", lines.max()))})


def series(
    table: pd.DataFrame, column: str, x: str = "step", spread: str | None = None, lrs: Sequence[float] | None = None
) -> list[Series]:
    """A column of a table as series over the column `x`.

    `spread` is the column that a band spans, and `lrs` are the learning rates of the figure, if they are not those of
    the table.
    """
    columns = ["run"] if spread is None else ["run", spread]
    ends = _ends(table) if x == "step" else {}
    result = []
    for look, rows in style.groups(table, lrs):
        values = rows.pivot(index=x, columns=columns, values=column).astype("float64")
        result.append(Series(look, values, {run: ends[run] for run in rows["run"].unique() if run in ends}))
    return result


def by_rate(table: pd.DataFrame) -> list[tuple[pd.DataFrame, str]]:
    """The rows of each learning rate, with the end of the titles of their panels.

    They stay together, and the end is empty, if each norm has one learning rate, as when each was trained at its best.
    """
    if table.groupby("norm")["lr"].nunique().max() == 1:
        return [(table, "")]
    return [(table[table["lr"] == lr], f", {style.lr_text(lr)}") for lr in style.lrs_of(table)]


def _ends(table: pd.DataFrame) -> dict[str, int]:
    """The last steps of the runs whose rows end before those of other runs with the same settings."""
    last = table.groupby(style.identity(table), observed=True)["step"].max().rename("last").reset_index()
    furthest = (
        last.groupby(style.APART, observed=True)["last"].transform("max") if style.APART in last else last["last"].max()
    )
    early = last[last["last"] < furthest]
    return dict(zip(early["run"], early["last"].astype(int), strict=True))


def along(table: pd.DataFrame, title: str, formula: str) -> tuple[str, str]:
    """A title and a formula about the line along the gradient g; of a table of another direction, along d.

    >>> along(pd.DataFrame({"direction": ["random"]}), "loss along the gradient", "L(θ − ηg)")
    ('loss along a random direction', 'L(θ − ηd)')
    >>> along(pd.DataFrame({"direction": ["random"]}), "Lipschitz constant of the loss on the line", "max ‖g(θ − ηg)‖")
    ('Lipschitz constant of the loss along a random direction', 'max ‖g(θ − ηd)‖')
    """
    if "direction" not in table or table.empty:
        return title, formula
    words = kinds.DIRECTIONS[str(table["direction"].iloc[0])]
    changed = formula.replace("gᵀHg / gᵀg", "dᵀHd / dᵀd").replace("ηg", "ηd")
    for line in ("along the gradient", "on the line"):
        title = title.replace(line, words)
    return title if changed == formula or "along" in title else f"{title}, {words}", changed


def of_band(title: str, drawn: Sequence[Series]) -> str:
    """The title of a panel of bands: of several runs, it says that the edges are medians."""
    return f"{title}, median of seeds" if any(len(curves.runs) > 1 for curves in drawn) else title


def papers(
    paper: pd.DataFrame | None,
    table: pd.DataFrame,
    *columns: str,
    unit: float = 1,
    lrs: Sequence[float] | None = None,
) -> list[Series]:
    """A curve of the paper, or the edges of its band, for the norms and learning rates of a table.

    Args:
        paper: Rows from `paper.matching.curves`; None if the figure is drawn without the paper's curves.
        table: The rows that are drawn above them.
        columns: The column of a curve, or the columns of a band's edges.
        unit: The number of units of the axis in one unit of the columns.
        lrs: The learning rates of the figure, by default of the table.
    """
    if paper is None or not {*columns} <= {*paper}:
        return []
    shown = paper.dropna(subset=[*columns])
    if "layer" in table:
        shown = shown[shown["layer"].isin(table["layer"])]
    lrs = style.lrs_of(table) if lrs is None else lrs
    shown = shown[shown["norm"].isin(table["norm"]) & shown["lr"].isin(lrs)]
    result = []
    for look, rows in style.groups(shown, lrs):
        rows = rows[rows["figure"] == rows["figure"].iloc[0]]  # several figures may show one run
        result.append(Series(style.papers(look), unit * rows.set_index("step")[[*columns]]))
    return result


def layers_over_depth(table: pd.DataFrame, paper: pd.DataFrame | None = None, every: bool = False) -> list[int]:
    """The first, the middle and the last layer of a table; those that the paper shows, if its curves are drawn too.

    With `every`, the user has chosen them: all layers of the table.
    """
    layers = sorted(int(layer) for layer in table["layer"].unique())
    if every:
        return layers
    if paper is not None and "layer" in paper and (theirs := [n for n in layers if n in set(paper["layer"])]):
        return theirs
    return sorted({layers[0], layers[len(layers) // 2], layers[-1]})


@dataclass(frozen=True, eq=False)
class Curves:
    """A panel of curves: a line for each run, and the median in a wider line if a series has several runs.

    The paper's own curves and the floors are thin lines under them. Few points are marked. Values beyond the axis are
    drawn along its edge, with one mark for each series and the number of its runs that are there. Runs that diverge, or
    end before the others, end in a mark.

    Attributes:
        title: The panel's title.
        ylabel: The label of the y axis.
        series: What is drawn.
        papers: The paper's own curves or bands, and other curves to compare with.
        band: Whether to draw the range of a run's line at each x, at the median over the runs, instead of lines.
        scale: The scale of the y axis; None fits it to the values.
        diverged: The runs that end in a cross.
        height: The height in inches.
        width: The least width in inches.
    """

    title: str
    ylabel: str
    series: Sequence[Series]
    papers: Sequence[Series] = ()
    band: bool = False
    scale: scales.Scale | None = None
    diverged: frozenset[str] = frozenset()
    height: float = 2.45
    width: float = 2.2

    def draw(self, axes: Axes) -> dict[str, Line2D]:
        scale = scales.fit(self.drawn())
        if scale is None:
            say_empty(axes)
            return {}
        scale = self.scale or scale
        scale.apply(axes, "y")
        self._set_x(axes)
        for curves in self.papers:
            shown = curves.values.clip(scale.low, scale.high)
            point = "o" if shown.notna().sum().max() == 1 else ""  # which no line shows
            axes.plot(
                shown.index, shown, color=curves.look.colour, linestyle=curves.look.dash,
                linewidth=style.scaled(_PAPER_WIDTH), zorder=1.5, marker=curves.look.marker or point,
                markersize=style.scaled(2.5), markevery=max(1, len(shown) // 8),
            )  # fmt: skip
        marks: list[_Mark] = []
        # Wide bands first, so that narrow ones stay visible. Lines keep the order of the norms.
        order = sorted(self.series, key=lambda curves: -scale.width(curves.edges())) if self.band else self.series
        for curves in order:
            shown = curves.values.clip(scale.low, scale.high)
            if self.band:
                _draw_band(axes, curves.look, curves.edges().clip(scale.low, scale.high))
            else:
                _draw_lines(axes, curves.look, shown, alpha=0.2 if self.papers else 0.45)
            marks += [*self._ends(curves, shown), *self._beyond(curves, scale)]
        entries = {curves.look.label: _handle(curves.look) for curves in self.series}
        entries |= {curves.look.label: _handle(curves.look, _PAPER_WIDTH) for curves in self.papers}
        return entries | _draw_marks(axes, marks)

    def drawn(self) -> list[NDArray[np.float64]]:
        """The values of each series and of the paper's curves, by which a scale is fitted."""
        ours = [curves.edges() if self.band else curves.values for curves in self.series]
        return [values.to_numpy() for values in (*ours, *(curves.values for curves in self.papers))]

    def _set_x(self, axes: Axes) -> None:
        name = str(self.series[0].values.index.name)
        xs = [float(x) for curves in (*self.series, *self.papers) for x in curves.values.index]
        points = len({x for curves in self.series for x in curves.values.index})
        axes.set_xlabel(_XLABELS[name] + (f" ({points:,} measured)" if self.band and points > _MANY else ""))
        if len(set(xs)) == 1:
            axes.set_xlim(xs[0] - 1, xs[0] + 1)
            axes.set_xticks([xs[0]])
        elif name == "step":
            axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10], integer=True))
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        elif name == "layer":
            axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10], integer=True))
            axes.set_xlim(min(xs) - 0.5, max(xs) + 0.5)  # no tick at layer 0
        elif 0 < scales.DECADES * min(xs) < max(xs):
            axes.set_xscale("log")

    def _ends(self, curves: Series, shown: pd.DataFrame) -> list[_Mark]:
        """A mark where each run ends that diverges or ends early; one of each says how many do."""
        marks: list[_Mark] = []
        runs = curves.runs
        for label, those in ((DIVERGED, self.diverged), (ENDED, curves.ends.keys() - self.diverged)):
            ended = [run for run in runs if run in those]
            for place, run in enumerate(ended):
                values = pd.DataFrame(shown[run]).max(axis=1).dropna()
                if len(values):
                    text = style.count_text(len(ended), len(runs)) if place == len(ended) - 1 else ""
                    marks.append(
                        _Mark(label, float(values.index[-1]), float(values.iloc[-1]), curves.look.colour, text)
                    )
        return marks

    def _beyond(self, curves: Series, scale: scales.Scale) -> list[_Mark]:
        """A mark at each edge of the axis that a series crosses, where it first does. Diverged runs have one."""
        values = curves.values[[run for run in curves.runs if run not in self.diverged]]
        if values.empty:
            return []
        drawn = replace(curves, values=values).edges() if self.band else values
        marks = []
        for edge, is_out in ((scale.high, operator.gt), (scale.low, operator.lt)):
            if (out := is_out(drawn, edge)).to_numpy().any():
                crossing = is_out(values, edge).T.groupby(level=0).any().any(axis=1)
                text = style.count_text(int(crossing.sum()), len(curves.runs))
                marks.append(_Mark(OFF_SCALE, float(out.any(axis=1).idxmax()), edge, curves.look.colour, text))
        return marks


def over_layers(table: pd.DataFrame, metrics: Mapping[str, tuple[str, str]]) -> list[Curves]:
    """A panel over the layers for each metric: the median over the measured steps.

    Args:
        table: Rows of layers.
        metrics: The columns, each with its name and its formula.
    """
    steps = table["step"].unique()
    of_steps = f"step {steps[0]:,}" if len(steps) == 1 else f"median over {len(steps)} measured steps"
    by = [*style.identity(table), "layer"]
    medians = table.groupby(by, as_index=False, sort=False, observed=True)[list(metrics)].median()
    return [
        Curves(f"{title}\n{of_steps}", formula, series(medians, column, x="layer"), height=2.7)
        for column, (title, formula) in metrics.items()
    ]


def shared(row: Sequence[Curves], headroom: float = scales.HEADROOM) -> list[Curves]:
    """Panels of one quantity on one scale, so that they can be compared by eye."""
    scale = scales.fit([values for panel in row for values in panel.drawn()], headroom=headroom)
    return [replace(panel, scale=scale) for panel in row]


@dataclass(frozen=True)
class _Mark:
    """A mark of a series, with a text beside it."""

    label: str
    x: float
    y: float
    colour: str
    text: str


#: Label -> the mark.
_SHAPES: Final = {OFF_SCALE: "^", DIVERGED: "x", ENDED: "|"}


def _draw_marks(axes: Axes, marks: Sequence[_Mark]) -> dict[str, Line2D]:
    """Draw marks and their texts, which give way to each other."""
    entries: dict[str, Line2D] = {}
    for mark in marks:
        shape = "v" if mark.label == OFF_SCALE and mark.y == axes.get_ylim()[0] else _SHAPES[mark.label]
        draw_mark(axes, shape, mark.x, mark.y, mark.colour)
        entries[mark.label] = mark_handle(_SHAPES[mark.label])
    axes.get_xlim()  # otherwise the transformation has stale limits
    to_axes = axes.transScale + axes.transLimits
    taken: list[tuple[float, float]] = []
    for mark in sorted((mark for mark in marks if mark.text), key=lambda mark: mark.x):
        x, y = to_axes.transform((mark.x, mark.y))
        left = x > 0.6
        x += -0.03 if left else 0.03
        near = [height for at, height in taken if abs(x - at) < 0.35]
        y = min(max(y, 0.06), 0.94)
        step = -0.09 if y > 0.5 else 0.09
        heights = [y + step * place for place in range(10) if 0.05 < y + step * place < 0.95]
        # With more marks than heights, some texts overlap.
        y = next((height for height in heights if all(abs(height - other) >= 0.085 for other in near)), y)
        taken.append((x, y))
        axes.text(
            x, y, mark.text, transform=axes.transAxes, color=mark.colour, fontsize=style.small(),
            ha="right" if left else "left", va="center", zorder=6,
            bbox={"facecolor": style.background(), "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
        )  # fmt: skip
    return entries


def _handle(look: style.Look, width: float = 1.6) -> Line2D:
    return Line2D(
        [], [], color=look.colour, linestyle=look.dash, marker=look.marker, markersize=style.scaled(4),
        linewidth=style.scaled(width),
    )  # fmt: skip


def _draw_lines(axes: Axes, look: style.Look, shown: pd.DataFrame, alpha: float) -> None:
    runs = shown.shape[1]
    if runs == 1:
        return _draw_line(axes, look, shown.iloc[:, 0], width=1.6)
    axes.plot(shown.index, shown, color=look.colour, linewidth=style.scaled(0.6), alpha=alpha)
    _draw_line(axes, look, _medians(shown), width=1.8)


def _medians(values: pd.DataFrame) -> pd.Series[float]:
    """The medians over runs. None where most have ended or were not measured: it would be the survivors'."""
    return values.median(axis=1).where(values.notna().sum(axis=1) > values.shape[1] / 2)


def _draw_band(axes: Axes, look: style.Look, shown: pd.DataFrame) -> None:
    low, high = shown["low"], shown["high"]
    axes.fill_between(low.index, low, high, color=look.colour, alpha=0.13, linewidth=0)
    for edge in (low, high):
        _draw_line(axes, look, edge, width=1.0, dots=True)


def _draw_line(axes: Axes, look: style.Look, values: pd.Series[float], width: float, dots: bool = False) -> None:
    values = values.dropna()
    few = len(values) <= _FEW
    marker, every = (look.marker or ("o" if few else "")), 1 if few else max(1, len(values) // 8)
    axes.plot(
        values.index, values, color=look.colour, linestyle=look.dash, linewidth=style.scaled(width),
        markersize=style.scaled(3.5 if look.marker or len(values) == 1 else 2.8), marker=marker, markevery=every,
    )  # fmt: skip
    if dots and not few and len(values) <= _MANY:
        axes.plot(values.index, values, ".", color=look.colour, markersize=style.scaled(2.6))
