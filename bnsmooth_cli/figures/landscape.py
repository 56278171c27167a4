"""The landscape along the gradient: the loss and the gradient predictiveness, as bands over training (figures 4a-b,
9a-b, 11b-c, 12b-c) or along the line if a single step was measured; and over the step length (figure 10)."""

from __future__ import annotations

from dataclasses import dataclass
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

from bnsmooth_cli.figures import style
from bnsmooth_cli.figures.panels import OFF_SCALE, Curves, Panel, along, draw_mark, papers, say_empty, series

#: Column -> its name, its formula, and the columns of the edges of its band.
_METRICS: Final = {
    "loss": ("loss", "L(θ − ηg)", ("loss_min", "loss_max")),
    "grad_distance": ("gradient predictiveness", "‖g(θ) − g(θ − ηg)‖", ("predictiveness_min", "predictiveness_max")),
}
#: From early to late, without the lightest tenth.
_COLOURS: Final = ListedColormap(matplotlib.colormaps["viridis_r"](np.linspace(0.1, 1, 256)))
_GREYS: Final = ListedColormap(matplotlib.colormaps["Greys"](np.linspace(0.3, 0.8, 256)))  # for the paper's lines
_IN_ROW: Final = 3  # panels of figure 10


def panels(table: pd.DataFrame, paper: pd.DataFrame | None = None) -> list[list[Panel]]:
    """Figures 4a-b, 9a-b, 11b-c, 12b-c: loss and gradient predictiveness on the line, a row for each learning rate.

    The length of the line is proportional to the learning rate, so bands of different learning rates do not compare.
    They share a row only if each norm has one learning rate, as when each was trained at its best one.
    """
    probed = _probed(table)
    lrs = style.lrs_of(table)
    if table.groupby("norm")["lr"].nunique().max() == 1:
        return [_row(probed, "", paper)]
    return [_row(probed[probed["lr"] == lr], f", {style.lr_text(lr)}", paper) for lr in lrs]


def _row(probed: pd.DataFrame, suffix: str, paper: pd.DataFrame | None) -> list[Panel]:
    band = paper is not None or bool(probed.groupby("run")["step"].nunique().max() > 1)
    x, spread = ("step", "alpha") if band else ("alpha", None)
    steps = probed["step"].unique()
    at = f", step {steps[0]}" if len(steps) == 1 else ""
    about = f"{' range' * band} along the gradient{at}{suffix}"
    return [
        Curves(
            *along(probed, f"{title}{about}", symbol),
            series(probed, name, x, spread),
            papers(paper, probed, *edges),
            band=band,
        )
        for name, (title, symbol, edges) in _METRICS.items()
    ]


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
    scale: style.Scale | None
    height: float = 2.6

    def draw(self, axes: Axes) -> dict[str, Line2D]:
        axes.set_title(self.title)
        axes.set_ylabel(self.ylabel)
        if self.scale is None or self.lines.empty:
            say_empty(axes)
            return {}
        axes.set_xlabel("step length η")
        lengths = self.lines.index.union(self.papers.index)
        style.Scale("log", lengths.min() / 1.2, lengths.max() * 1.2).apply(axes, "x")
        self.scale.apply(axes, "y")
        theirs = self.papers.clip(self.scale.low, self.scale.high)
        for step in theirs.columns.to_numpy("int64").tolist():
            grey = _GREYS(float(self.steps(step)))
            axes.plot(theirs.index, theirs[step], color=grey, linewidth=0.5, zorder=1.5)
        label = f"{style.PAPER}light to dark, from early to late"
        entries = {label: Line2D([], [], color=_GREYS(0.5), linewidth=0.8)} if len(theirs) else {}
        for step in self.lines.columns.to_numpy("int64").tolist():
            shown = self.lines[step].clip(self.scale.low, self.scale.high).dropna()
            colour = _COLOURS(float(self.steps(step)))
            axes.plot(shown.index, shown, color=colour, linewidth=0.9, marker=".", markersize=3)
            if (above := self.lines[step] > self.scale.high).any():
                entries[OFF_SCALE] = draw_mark(axes, "^", above.idxmax(), self.scale.high, colour)
        return entries


@dataclass(frozen=True, eq=False)
class Bar:
    """The training steps that the colours of the lines above mean."""

    steps: Normalize
    height: float = 0.2

    def draw(self, axes: Axes) -> dict[str, Line2D]:
        Colorbar(axes, ScalarMappable(self.steps, _COLOURS), orientation="horizontal", label="training step",
                 format=EngFormatter(sep=""))  # fmt: skip
        return {}


def steps(table: pd.DataFrame, paper: pd.DataFrame | None = None) -> list[list[Panel]]:
    """Figure 10: the norms side by side on one scale, below them the next learning rate; medians over the seeds."""
    first, last = float(table["step"].min()), float(table["step"].max())
    colours = Normalize(first, max(last, first + 1))
    lrs = style.lrs_of(table)
    paper = table.head(0) if paper is None else paper
    lines = {
        (lr, look.label): (_lines(_probed(rows)), _lines(paper[(paper["norm"] == look.label) & (paper["lr"] == lr)]))
        for lr in lrs
        for look, rows in style.groups(table[table["lr"] == lr])
    }
    scale = style.fit([line.to_numpy() for both in lines.values() for line in both])
    page: list[list[Panel]] = []
    for lr in lrs:
        fans: list[Panel] = []
        for norm, both in ((norm, both) for (of_lr, norm), both in lines.items() if of_lr == lr):
            title = f"{norm}, {style.lr_text(lr)}" if lrs[1:] else norm
            title, label = along(table, f"{title}, along the gradient", _METRICS["grad_distance"][1])
            label = "" if len(fans) % _IN_ROW else label
            fans.append(Fan(title, label, *both, colours, scale))
        page += [fans[place : place + _IN_ROW] for place in range(0, len(fans), _IN_ROW)]
    bar: list[Panel] = [Bar(colours)] * max(map(len, page))
    return [*page, bar]


def _lines(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.pivot_table("grad_distance", "step_size", "step", "median")


def _probed(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the line without the point itself. On the line, NaN is an overflow, like infinity."""
    probed = table[(table["alpha"] > 0) & np.isfinite(table["alpha"])]
    return probed.assign(**{name: probed[name].fillna(np.inf) for name in _METRICS})
