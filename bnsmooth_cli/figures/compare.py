"""The comparison of runs: a row for each norm and learning rate, best first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from bnsmooth_cli.figures import style
from bnsmooth_cli.figures.panels import Panel

_GREY = "#666666"


@dataclass(frozen=True, eq=False)
class Dots:
    """A panel of one metric: a dot for each run, a bar at the median of several runs, a word for a missing value."""

    title: str
    column: str
    groups: Sequence[tuple[style.Look, pd.DataFrame]]
    missing: str = "–"
    labelled: bool = False
    percent: bool = False

    @property
    def height(self) -> float:
        """A line of text for each row, in inches."""
        return 0.95 + 0.24 * len(self.groups)

    def draw(self, axes: Axes) -> dict[str, Line2D]:
        axes.set_title(self.title)
        axes.set_ylim(len(self.groups) - 0.4, -0.6)
        axes.set_yticks(range(len(self.groups)), [_name(*group) if self.labelled else "" for group in self.groups])
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="y", linestyle=":")
        factor = 100 if self.percent else 1
        values = [factor * runs[self.column].to_numpy("float64") for _, runs in self.groups]
        # Rows are read one by one, so the axis may span more here than where curves share a panel.
        scale = style.fit(values, decades=10, headroom=1e6)
        if scale is not None:
            scale.apply(axes, "x")
            if self.column.startswith("steps") and scale.name == "linear":
                axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        for place, ((look, runs), row) in enumerate(zip(self.groups, values, strict=True)):
            if scale is None or np.isnan(row).all():
                word = "diverged" if runs["diverged_at"].notna().all() else self.missing
                axes.text(0.03, place, word, va="center", color=_GREY, transform=axes.get_yaxis_transform())
            else:
                _draw_row(axes, place, row, look.colour, scale.high)
        return {}


def _name(look: style.Look, runs: pd.DataFrame) -> str:
    diverged = int(runs["diverged_at"].notna().sum())
    return look.label + (f" ({diverged} of {len(runs)} diverged)" if 0 < diverged < len(runs) else "")


def _draw_row(axes: Axes, place: int, row: NDArray[np.float64], colour: str, top: float) -> None:
    inside = row[row <= top]
    axes.plot(inside, [place] * len(inside), "o", color=colour, markersize=5.5, alpha=0.75, markeredgewidth=0)
    if (row > top).any():
        axes.plot([top], [place], ">", color=colour, clip_on=False)
        if not len(inside):
            axes.annotate(f"{np.nanmin(row):.2g}  ", (top, place), ha="right", va="center", color=_GREY)
    if len(row) > 1 and len(inside) == len(row):  # otherwise the median of the drawn ones would mislead
        axes.plot([np.median(row)], [place], "|", color=colour, markersize=13, markeredgewidth=1.8)


def panels(table: pd.DataFrame) -> list[list[Panel]]:
    """Final accuracy (or loss), steps to the target, predictiveness and effective beta; those that were measured."""
    accuracy = bool(table["final_test_accuracy"].notna().any())
    goal = "final_test_accuracy" if accuracy else "final_loss"
    groups = sorted(style.groups(table), key=lambda group: _worth(group[1][goal], accuracy))
    title = "final test accuracy (%)" if accuracy else "final training loss"
    first = Dots(title, goal, groups, labelled=True, percent=accuracy)
    target, targets = "the target", table["target_accuracy" if accuracy else "target_loss"].dropna().unique()
    if len(targets) == 1:
        target = f"{100 * targets[0]:g}% accuracy" if accuracy else f"loss {targets[0]:.3g}"
    steps = "steps_to_accuracy" if accuracy else "steps_to_loss"
    rest = [
        Dots(f"steps to {target}", steps, groups, missing="not reached"),
        Dots("gradient predictiveness", "predictiveness", groups),
        Dots("effective β-smoothness", "beta", groups),
    ]
    return [[first, *(dots for dots in rest if table[dots.column].notna().any())]]


def _worth(values: pd.Series[float], higher_is_better: bool) -> float:
    """A sort key: the best group first, groups without a finite value last."""
    finite = values[np.isfinite(values)]
    return float(finite.median()) * (-1 if higher_is_better else 1) if len(finite) else np.inf
