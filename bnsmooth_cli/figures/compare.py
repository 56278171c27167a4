"""The comparison of runs: a row for each norm and learning rate, best first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import NDArray

from bnsmooth_cli.figures import scales, style
from bnsmooth_cli.figures.page import Band, in_row, mark_handle
from bnsmooth_cli.figures.panels import DIVERGED, OFF_SCALE

_BETTER_HIGH: Final = ("final_test_accuracy",)  # of the drawn columns; less is better in the others
_NOT_REACHED: Final = "not reached"
_LINE: Final = 0.62  # the height of a line of a row's name, in rows
#: What runs without a dot share -> their mark at the right edge.
_MARKS: Final[dict[str, dict[str, Any]]] = {
    DIVERGED: {"marker": "x"},
    _NOT_REACHED: {"marker": ">", "markerfacecolor": "none"},
    OFF_SCALE: {"marker": ">"},
}


@dataclass(frozen=True, eq=False)
class Dots:
    """A panel of one metric: a dot for each run, and a bar at the median of several runs.

    Runs without a dot are marks beyond the right edge, with their number; a row without any dot says why in words.
    """

    title: str
    column: str
    groups: Sequence[tuple[style.Look, pd.DataFrame]]
    percent: bool = False
    ylabel: str = " "  # not empty: the names of the rows are written once, as other panels write a label

    @property
    def height(self) -> float:
        """Room for the name of each row, in inches."""
        return 0.95 + 0.24 * sum(self._sizes)

    @property
    def _names(self) -> list[str]:
        return [style.wrapped(look.label, 1.5, 8) for look, _ in self.groups]

    @property
    def _sizes(self) -> list[float]:
        """The heights of the rows, in rows with a name of one line."""
        return [max(1.0, _LINE * (name.count("\n") + 1)) for name in self._names]

    @property
    def width(self) -> float:
        """Room for the names of the rows and for the dots, in inches."""
        return 1.75 + 0.04 * max(0, max(len(look.label) for look, _ in self.groups) - 8)

    def draw(self, axes: Axes) -> dict[str, Line2D]:
        ends = np.cumsum(self._sizes)
        places = ends - np.array(self._sizes) / 2
        axes.set_ylim(ends[-1] + 0.1, -0.1)
        axes.set_yticks(places, self._names)
        for label in axes.get_yticklabels():
            label.set_parse_math(False)  # names may have a dollar sign
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="y", linestyle=":")
        factor = 100 if self.percent else 1
        values = [factor * runs[self.column].to_numpy("float64") for _, runs in self.groups]
        # Rows are read one by one, so the axis may span more here than where curves share a panel.
        scale = scales.fit(values, decades=10, headroom=1e6)
        if scale is not None:
            scale.apply(axes, "x")
            if scale.name == "linear":
                axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
                if self.column.startswith("steps"):
                    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        entries: dict[str, Line2D] = {}
        for place, (look, runs), row in zip(places, self.groups, values, strict=True):
            absent = self._absent(runs, row, scale)
            inside = row[np.isfinite(row) & (row <= (np.inf if scale is None else scale.high))]
            if len(inside):
                entries |= _draw_row(axes, place, inside, absent, look.colour, len(row))
                self._draw_median(axes, place, row, look.colour, scale)
            else:
                axes.text(0.03, place, _words(row, absent), va="center", color=style.grey(),
                          transform=axes.get_yaxis_transform())  # fmt: skip
        return entries

    def _absent(self, runs: pd.DataFrame, row: NDArray[np.float64], scale: scales.Scale | None) -> dict[str, int]:
        """The number of runs without a dot, by reason. Runs that were not measured have none."""
        missing, diverged = np.isnan(row), runs["diverged_at"].notna().to_numpy()
        beyond = row > (np.inf if scale is None else scale.high)
        beyond |= np.isposinf(row)
        absent = {OFF_SCALE: int(beyond.sum())}
        if self.column.startswith("steps_to"):
            wanted = runs[self.column.replace("steps_to", "target")].notna().to_numpy()
            absent[_NOT_REACHED] = int((missing & wanted & ~diverged).sum())
            absent[DIVERGED] = int((missing & wanted & diverged).sum())
        elif self.column.startswith("final"):
            absent = {
                OFF_SCALE: int((beyond & ~diverged).sum()),
                DIVERGED: int(((missing | beyond) & diverged).sum()),
            }
        else:
            absent[DIVERGED] = int((missing & diverged).sum())
        return {reason: count for reason, count in absent.items() if count}

    def _draw_median(
        self, axes: Axes, place: float, row: NDArray[np.float64], colour: str, scale: scales.Scale | None
    ) -> None:
        """A bar at the median of all runs. A run without a value counts as the worst where that is what it means."""
        if self.column.startswith(("steps_to", "final")):
            row = np.where(np.isnan(row), -np.inf if self.column in _BETTER_HIGH else np.inf, row)
        with np.errstate(invalid="ignore"):
            median = float(np.median(row))
        if len(row) > 1 and np.isfinite(median) and (scale is None or median <= scale.high):
            size, width = style.scaled(13), style.scaled(1.8)
            axes.plot([median], [place], "|", color=colour, markersize=size, markeredgewidth=width)


def _words(row: NDArray[np.float64], absent: dict[str, int]) -> str:
    """Why a row has no dot."""
    if not absent:
        return "–"
    texts = []
    for reason, count in absent.items():
        above = f" (from {np.nanmin(row):.2g})" if reason == OFF_SCALE and np.isfinite(np.nanmin(row)) else ""
        texts.append(f"{reason}{above}" + (f", {style.count_text(count, len(row))}" if len(row) > 1 else ""))
    return "; ".join(texts)


def _draw_row(
    axes: Axes, place: float, inside: NDArray[np.float64], absent: dict[str, int], colour: str, runs: int
) -> dict[str, Line2D]:
    axes.plot(
        inside, [place] * len(inside), "o", color=colour, markersize=style.scaled(5.5), alpha=0.75, markeredgewidth=0
    )
    beside, offset = axes.get_yaxis_transform(), 0.0
    entries: dict[str, Line2D] = {}
    for reason, count in absent.items():
        looks = _MARKS[reason]
        axes.plot([1.04 + offset], [place], linestyle="", color=colour, markersize=style.scaled(5), clip_on=False,
                  transform=beside, **looks)  # fmt: skip
        axes.text(1.09 + offset, place, style.count_text(count, runs), va="center", transform=beside,
                  color=style.grey(), fontsize=style.small())  # fmt: skip
        entries[reason] = mark_handle(looks["marker"], **{k: v for k, v in looks.items() if k != "marker"})
        offset += 0.3
    return entries


def panels(table: pd.DataFrame) -> list[Band]:
    """Final accuracy (or loss), steps to the target, predictiveness and effective beta; those that were measured."""
    accuracy = bool(table["final_test_accuracy"].notna().any())
    goal = "final_test_accuracy" if accuracy else "final_loss"
    groups = sorted(style.groups(table), key=lambda group: _worth(group[1][goal], accuracy))
    title = "final test accuracy (%)" if accuracy else "final training loss"
    first = Dots(title, goal, groups, percent=accuracy)
    target, targets = "the target", table["target_accuracy" if accuracy else "target_loss"].dropna().unique()
    if len(targets) == 1:
        target = f"{100 * targets[0]:g}% accuracy" if accuracy else f"loss {targets[0]:.3g}"
    steps = "steps_to_accuracy" if accuracy else "steps_to_loss"
    rest = [
        Dots(f"steps to {target}", steps, groups),
        Dots("gradient predictiveness", "predictiveness", groups),
        Dots("effective β-smoothness", "beta", groups),
    ]
    return [in_row(first, *(dots for dots in rest if _is_there(dots, table)))]


def _is_there(dots: Dots, table: pd.DataFrame) -> bool:
    """Whether a metric was measured, or there is a target, which perhaps no run has reached."""
    column = dots.column.replace("steps_to", "target") if dots.column.startswith("steps_to") else dots.column
    return bool(table[column].notna().any())


def _worth(values: pd.Series[float], higher_is_better: bool) -> float:
    """A sort key: the best group first, groups without a finite value last."""
    finite = values[np.isfinite(values)]
    return float(finite.median()) * (-1 if higher_is_better else 1) if len(finite) else np.inf
