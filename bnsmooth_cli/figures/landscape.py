"""The landscape along the gradient: the loss and the gradient predictiveness, as bands over training (figures 4a-b,
9a-b, 11b-c, 12b-c) or along the line if a single step was measured; and over the step length (figure 10)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from bnsmooth_cli.figures import scales, style
from bnsmooth_cli.figures.page import Band, draw_mark, in_row, say_empty
from bnsmooth_cli.figures.panels import OFF_SCALE, Curves, along, by_rate, of_band, papers, series

#: Column -> its name, its formula, and the columns of the edges of its band.
_METRICS: Final[dict[str, tuple[str, str, tuple[str, str]]]] = {
    "loss": ("loss", "L(θ − ηg)", ("loss_min", "loss_max")),
    "grad_distance": ("gradient predictiveness", "‖g(θ) − g(θ − ηg)‖", ("predictiveness_min", "predictiveness_max")),
}
_SUM: Final = "grad_distance_summed"  # the quantity of the paper's figures, as it seems (docs/paper.md)
#: Shares of the colours from early to late, on a bright and on a dark background: none is like the background.
_SHARES: Final = {False: (0.1, 1.0), True: (0.75, 0.0)}
_GREYS: Final = ListedColormap(matplotlib.colormaps["Greys"](np.linspace(0.3, 0.8, 256)))  # for the paper's lines
_IN_ROW: Final = 3  # panels of figure 10
_TOGETHER: Final = 3  # bands in a panel


def panels(table: pd.DataFrame, paper: pd.DataFrame | None = None) -> list[Band]:
    """Figures 4a-b, 9a-b, 11b-c, 12b-c: loss and gradient predictiveness on the line, a row for each learning rate.

    The length of the line is proportional to the learning rate, so bands of different learning rates do not compare.
    They share a row only if each norm has one learning rate, as when each was trained at its best one. More than three
    bands have a panel each.
    """
    table, symbol = _comparable(table, paper)
    return [_row(_probed(rows), suffix, symbol, paper) for rows, suffix in by_rate(table)]


def _comparable(table: pd.DataFrame, paper: pd.DataFrame | None) -> tuple[pd.DataFrame, str]:
    """The rows and the formula of the change of the gradient: what the paper's curves seem to show, if these are drawn
    and the table has it of every run."""
    formula = _METRICS["grad_distance"][1]
    if paper is None or {"predictiveness_min", "grad_distance"}.isdisjoint(paper) or _SUM not in table:
        return table, formula
    if not table.groupby("run")[_SUM].count().all():
        return table, formula
    return table.assign(grad_distance=table[_SUM]), f"Σ {formula} (tensors)"


def _row(probed: pd.DataFrame, suffix: str, change: str, paper: pd.DataFrame | None) -> Band:
    band = paper is not None or bool(probed.groupby("run")["step"].nunique().max() > 1)
    x, spread = ("step", "alpha") if band else ("alpha", None)
    steps = probed["step"].unique()
    at = f", step {steps[0]:,}" if len(steps) == 1 else ""
    about = f"{' range' * band} along the gradient{at}{suffix}"
    curves = []
    for name, (title, symbol, edges) in _METRICS.items():
        title, symbol = along(probed, f"{title}{about}", change if name == "grad_distance" else symbol)
        drawn = series(probed, name, x, spread)
        title = of_band(title, drawn) if band else title
        panel = Curves(title, symbol, drawn, papers(paper, probed, *edges), band=band)
        if panel.papers and name == "loss":  # whose axis is logarithmic in the paper
            panel = replace(panel, scale=scales.fit(panel.drawn(), decades=1))
        curves.append(panel)
    return _apart(curves) if band and len(curves[0].series) > _TOGETHER else in_row(*curves)


def _apart(curves: Sequence[Curves]) -> Band:
    """A panel for each series, the quantities below each other: many bands would cover each other."""
    columns: list[list[Curves]] = [[] for _ in curves[0].series]
    for panel in curves:
        scale = panel.scale or scales.fit(panel.drawn())
        label = of_band(f"range of {panel.ylabel}", panel.series)
        for column, drawn in zip(columns, panel.series, strict=True):
            name = drawn.look.label
            theirs = [other for other in panel.papers if name.startswith(other.look.label.removeprefix(style.PAPER))]
            title = "" if column else name
            column.append(
                replace(panel, title=title, ylabel=label, series=[drawn], papers=theirs, scale=scale, width=1.3)
            )
    return Band([columns])


@dataclass(frozen=True, eq=False)
class Fan:
    """The gradient difference over the step length: a line for each measured step, coloured from early to late.

    A line that leaves the axis continues along its upper edge, with a mark where it leaves.
    """

    title: str
    ylabel: str
    lines: pd.DataFrame  # a row for each step length, a column for each step
    papers: pd.DataFrame  # the paper's own lines
    steps: Normalize
    scale: scales.Scale | None
    width: float = 1.5
    height: float = 2.6

    def draw(self, axes: Axes) -> dict[str, Line2D]:
        if self.scale is None or self.lines.empty:
            say_empty(axes)
            return {}
        axes.set_xlabel("step length η")
        lengths = self.lines.index.union(self.papers.index)
        scales.Scale("log", lengths.min() / 1.2, lengths.max() * 1.2).apply(axes, "x")
        self.scale.apply(axes, "y")
        theirs = self.papers.clip(self.scale.low, self.scale.high)
        for step in theirs.columns.to_numpy("int64").tolist():
            grey = _GREYS(float(self.steps(step)))
            axes.plot(theirs.index, theirs[step], color=grey, linewidth=style.scaled(0.5), zorder=1.5)
        label = f"{style.PAPER}light to dark, from early to late"
        entries = {label: Line2D([], [], color=_GREYS(0.5), linewidth=0.8)} if len(theirs) else {}
        palette = colours()
        for step in self.lines.columns.to_numpy("int64").tolist():
            shown = self.lines[step].clip(self.scale.low, self.scale.high).dropna()
            colour = palette(float(self.steps(step)))
            axes.plot(shown.index, shown, color=colour, linewidth=style.scaled(0.9), marker=".",
                      markersize=style.scaled(3))  # fmt: skip
            if (above := self.lines[step] > self.scale.high).any():
                entries[OFF_SCALE] = draw_mark(axes, "^", above.idxmax(), self.scale.high, colour)
        if out := int((self.lines > self.scale.high).any().sum()):
            text = f"{style.count_text(out, self.lines.shape[1])} off scale".strip()
            axes.text(
                0.03, 0.97, text, va="top", transform=axes.transAxes, color=style.grey(), fontsize=style.small()
            )  # fmt: skip
        return entries


@dataclass(frozen=True, eq=False)
class Bar:
    """The training steps that the colours of the lines above mean."""

    steps: Normalize
    title: str = ""
    ylabel: str = ""
    width: float = 2.0
    height: float = 0.2

    def draw(self, axes: Axes) -> dict[str, Line2D]:
        Colorbar(axes, ScalarMappable(self.steps, colours()), orientation="horizontal", label="training step",
                 format=EngFormatter(sep=""))  # fmt: skip
        return {}


def colours() -> ListedColormap:
    """The colours of the steps, from early to late."""
    return ListedColormap(matplotlib.colormaps["viridis_r"](np.linspace(*_SHARES[style.is_dark()], 256)))


def steps(table: pd.DataFrame, paper: pd.DataFrame | None = None) -> list[Band]:
    """Figure 10: the norms side by side on one scale, below them the next learning rate; medians over the seeds."""
    first, last = float(table["step"].min()), float(table["step"].max())
    shades = Normalize(first, max(last, first + 1))
    lrs = style.lrs_of(table)
    table, symbol = _comparable(table, paper)
    paper = table.head(0) if paper is None else paper
    ends = table.groupby(style.APART, observed=True)["step"].transform("max")
    label = along(table, "", symbol)[1]
    fans: dict[float, list[tuple[str, pd.DataFrame, pd.DataFrame]]] = {lr: [] for lr in lrs}
    for look, rows in style.groups(table):
        norm, lr = rows["norm"].iloc[0], float(rows["lr"].iloc[0])
        theirs = _lines(paper[(paper["norm"] == norm) & (paper["lr"] == lr)])
        fans[lr].append((_about(table, look, rows, int(ends[rows.index].max())), _lines(_probed(rows)), theirs))
    scale = scales.fit([lines.to_numpy() for of_lr in fans.values() for _, *both in of_lr for lines in both])
    drawn = [
        in_row(*(Fan(title, label, ours, theirs, shades, scale) for title, ours, theirs in of_lr), most=_IN_ROW)
        for of_lr in fans.values()
    ]
    return [*drawn, in_row(Bar(shades), stretched=True)]


def _about(table: pd.DataFrame, look: style.Look, rows: pd.DataFrame, last: int) -> str:
    """The title of a fan: its runs, the line, and how many of the runs end before the last step."""
    title = along(table, f"{look.label}, along the gradient", "")[0]
    ends = rows.groupby("run")["step"].max()
    if early := int((ends < last).sum()):
        those = f"; {style.count_text(early, len(ends))} end" if len(ends) > 1 else "; ends"
        title += f"{those} before step {last:,}"
    return title


def _lines(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.pivot_table("grad_distance", "step_size", "step", "median")


def _probed(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the line without the point itself. On the line, NaN is an overflow, like infinity."""
    probed = table[(table["alpha"] > 0) & np.isfinite(table["alpha"])]
    return probed.assign(**{name: probed[name].fillna(np.inf) for name in _METRICS})
