"""The loss around a point (Li et al., 2018): contours and surfaces over two directions, with the path of training on
them, or curves along one direction."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, TypeVar

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.lines import Line2D
from matplotlib.patheffects import Stroke, withStroke
from matplotlib.ticker import MaxNLocator
from mpl_toolkits.mplot3d import Axes3D  # type: ignore[import-untyped]
from numpy.typing import NDArray

from bnsmooth_cli.errors import InputError
from bnsmooth_cli.figures import style
from bnsmooth_cli.figures.panels import WIDEST, Blank, Curves, Panel, say_empty, series

_ACROSS: Final = 4  # surfaces side by side
_CURVES_ACROSS: Final = 3  # panels of curves side by side: their x axis has a long label
_MOST: Final = 24  # surfaces of a problem
_COLOURS: Final = "viridis"
_FILLS: Final = np.linspace(0.0, 1.0, 65)
_LINES: Final = 25  # contour lines over the whole scale, at most
_FACETS: Final = 51  # of a surface, to a side, at most
_PATH: Final = "#E6550D"
_HALO: Final[list[Stroke]] = [withStroke(linewidth=2.6, foreground="white")]
#: The marks on a contour panel, each on top of those before it, by the legend's words for them.
_MARKS: Final[dict[str, dict[str, Any]]] = {
    "centre": {"marker": "+", "color": "black", "markersize": 11, "markeredgewidth": 1.4},
    "first point of the path": {"marker": "o", "color": _PATH, "markersize": 5, "markerfacecolor": "white"},
    "last point of the path": {"marker": "s", "color": _PATH, "markersize": 4},
}

_Item = TypeVar("_Item")


@dataclass(frozen=True, eq=False)
class Surface:
    """The loss around the weights of a run at a step: a row per y and a column per x, an overflow being infinite."""

    title: str
    labels: tuple[str, str]
    losses: pd.DataFrame
    path: pd.DataFrame  # x and y, in the order of training

    @property
    def has_area(self) -> bool:
        """Whether there is more than a line of points."""
        return min(self.losses.shape) > 1

    def mesh(self, scale: style.Scale) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """x, y, and how high on the scale the loss is there, from 0 to 1.

        Between two points the height is interpolated and not the loss, which on a logarithmic scale bends less.
        """
        x, y = np.meshgrid(self.losses.columns.to_numpy("float64"), self.losses.index.to_numpy("float64"))
        return x, y, np.ma.getdata(scale.norm()(self.losses.to_numpy("float64")))


@dataclass(frozen=True, eq=False)
class Contours:
    """A surface from above: filled contours and lines at round losses, the centre, and the path if there is one."""

    surface: Surface
    labelled: bool  # on the left too, where the panels beside it do not say the same
    scale: style.Scale | None
    height: float

    def draw(self, axes: Axes) -> dict[str, Line2D]:
        """Draw into `axes`; the legend's entries come back by their labels."""
        axes.set_title(textwrap.fill(self.surface.title, int(14 * self.height)))  # in letters, about its width
        axes.set_box_aspect(1)
        if self.scale is None or self.surface.losses.empty:
            say_empty(axes)
            return {}
        axes.grid(False)
        self._set_axes(axes)
        if self.surface.has_area:
            self._draw_area(axes, self.scale)
        else:
            _draw_points(axes, *self.surface.mesh(self.scale)[:2])
        return self._draw_marks(axes)

    def _set_axes(self, axes: Axes) -> None:
        narrow = self.height < 2.5
        xlabel, ylabel = self.surface.labels
        axes.set_xlabel(xlabel, fontsize=7.5 if narrow else None)
        axes.set_ylabel(ylabel if self.labelled else "", fontsize=7.5 if narrow else None)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(3 if narrow else 5, steps=[1, 2, 5, 10]))

    def _draw_area(self, axes: Axes, scale: style.Scale) -> None:
        x, y, level = self.surface.mesh(scale)
        axes.margins(0)
        # A vector file of every facet would be megabytes, with seams between them.
        axes.contourf(x, y, level, _FILLS, cmap=_COLOURS, vmin=0, vmax=1, extend="both").set_rasterized(True)
        lines = np.array(scale.norm()(scale.levels(_LINES)), dtype=np.float64)
        lines = lines[(lines > level.min()) & (lines < level.max())]  # matplotlib warns if it has none to draw
        if len(lines):
            axes.contour(x, y, level, lines, colors="black", linewidths=0.45, alpha=0.6)

    def _draw_marks(self, axes: Axes) -> dict[str, Line2D]:
        path = self.surface.path
        axes.plot(path["x"], path["y"], color=_PATH, linewidth=1.3, path_effects=_HALO, zorder=3)
        centre = pd.DataFrame({"x": [0.0], "y": [0.0]})
        places = zip(_MARKS.items(), (centre, path.head(1), path.tail(1)), strict=True)
        entries = {}
        for zorder, ((name, looks), place) in enumerate(places, 4):
            if len(place):
                axes.plot(
                    place["x"], place["y"], linestyle="", **looks, clip_on=False, zorder=zorder, path_effects=_HALO
                )
                entries[name] = Line2D([], [], linestyle="", **looks)
        return entries


@dataclass(frozen=True, eq=False)
class Relief:
    """A surface from the side; the height and the colour are both the loss, on the contours' scale."""

    surface: Surface
    scale: style.Scale | None
    height: float
    projection: ClassVar[str] = "3d"

    def draw(self, axes: Axes) -> dict[str, Line2D]:
        """Draw into `axes`, which are three-dimensional; the legend gets nothing."""
        assert isinstance(axes, Axes3D)
        if self.scale is None or self.surface.losses.empty:
            axes.set_axis_off()
            return {}
        x, y, level = self.surface.mesh(self.scale)
        if self.surface.has_area:
            axes.plot_surface(
                x, y, level, cmap=_COLOURS, vmin=0, vmax=1, rcount=_FACETS, ccount=_FACETS,
                linewidth=4 / max(x.shape), edgecolor="#00000055", rasterized=True,
            )  # fmt: skip
        else:
            _draw_points(axes, x, y, level)
        _set_space(axes, self.scale)
        return {}


def _set_space(axes: Axes3D, scale: style.Scale) -> None:
    norm, losses = scale.norm(), scale.levels(5)
    axes.set_box_aspect(None, zoom=1.15)  # matplotlib leaves room for axis labels: the panel above has them
    axes.set_zlim(0, 1)
    axes.set_zticks([float(norm(loss)) for loss in losses], [style.number_text(loss) for loss in losses])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.tick_params(pad=-2, labelsize=7)
    axes.tick_params("z", pad=2)


def _draw_points(axes: Axes, *places: NDArray[np.float64]) -> None:
    axes.plot(*(place.ravel() for place in places), "o", color="black", markersize=3.5)


@dataclass(frozen=True, eq=False)
class Bar:
    """What loss the colours of the surfaces above stand for, with their contour lines."""

    scale: style.Scale
    beyond: bool  # whether losses are off the scale
    height: float = 0.2

    def draw(self, axes: Axes) -> dict[str, Line2D]:
        """Draw into `axes`; the legend gets nothing."""
        lines = self.scale.levels(_LINES)
        ticks = [level for level in self.scale.levels(12) if np.isclose(lines, level, rtol=1e-9, atol=0).any()]
        bar = Colorbar(
            axes, ScalarMappable(self.scale.norm(), _COLOURS), orientation="horizontal",
            extend="max" if self.beyond else "neither", extendfrac=0.02, label="loss",
        )  # fmt: skip
        bar.set_ticks(ticks, labels=[style.number_text(tick) for tick in ticks])
        bar.minorticks_off()
        for line in lines:
            axes.axvline(line, color="black", linewidth=0.45, alpha=0.6)
        return {}


def panels(table: pd.DataFrame) -> list[list[Panel]]:
    """For each run and step a contour panel and a surface below it, on one scale; or curves along one direction.

    Raises InputError for a table with both, or with more surfaces than a figure shows.
    """
    # A step's turn is its place among the run's: the first ones stand side by side, whatever their numbers.
    points = table.assign(loss=table["loss"].fillna(np.inf), turn=table.groupby("run")["step"].rank("dense"))
    grid = points[points["path_step"].isna() & np.isfinite(points["x"])]
    flat = table["y"].isna().groupby([table["run"], table["step"]]).all()
    pictures = points["turn"].nunique() if flat.all() else len(flat)
    if pictures > _MOST:
        raise InputError(f"a figure shows at most {_MOST} surfaces of a problem; these are {pictures}")
    if flat.all():
        return _padded(_wrapped([_curves(grid)], _CURVES_ACROSS))
    if flat.any():
        raise InputError("surfaces over one direction and over two; plot them apart")
    return _pictures(points, grid["loss"].to_numpy("float64"))


def _fit(losses: NDArray[np.float64]) -> style.Scale | None:
    # By size, not by surface: what is far out on a chaotic one must not flatten its own middle either.
    return style.fit(np.array_split(np.sort(losses), 100))


def _curves(grid: pd.DataFrame) -> list[Panel]:
    scale = _fit(grid["loss"].to_numpy("float64"))
    found: list[Panel] = []
    for _, rows in grid.groupby("turn"):
        steps = rows["step"].unique()
        at = f", step {steps[0]:,}" if len(steps) == 1 else ""
        found.append(Curves(f"loss along a line{at}", "L(θ + x d)", series(rows, "loss", "x"), scale=scale))
    return found or [Curves("loss along a line", "", [])]


def _pictures(points: pd.DataFrame, losses: NDArray[np.float64]) -> list[list[Panel]]:
    scale = _fit(losses)
    rows = _wrapped(_surfaces(points), _ACROSS)
    across = max(map(len, rows))
    height = min(4.0, WIDEST / across - 0.3)  # square, but that ticks and labels take more of the width
    found: list[list[Panel]] = []
    for row in rows:
        differ = len({surface.labels[1] for surface in row}) > 1
        found.append([Contours(one, differ or one is row[0], scale, height) for one in row])
        found.append([Relief(one, scale, height) for one in row])
    if scale is not None:
        found.append([Bar(scale, beyond=bool((losses > scale.high).any()))] * across)
    return _padded(found)


def _padded(rows: list[list[Panel]]) -> list[list[Panel]]:
    across = max(map(len, rows))
    return [[*row, *(Blank() for _ in range(across - len(row)))] for row in rows]


def _surfaces(points: pd.DataFrame) -> list[list[Surface]]:
    """The surfaces of the runs in the norms' order, a list for each turn."""
    turns: dict[float, list[Surface]] = {}
    several = {name: points[name].nunique() > 1 for name in ("seed", "step")}
    # Runs that differ in what no column says, such as their depth, go by their own names.
    alike = bool((points.groupby(["norm", "lr", "seed"])["run"].nunique() > 1).any())
    for look, rows in style.groups(points):
        for (seed, run, step), of_run in rows.groupby(["seed", "run", "step"]):
            said = [f"seed {seed}"] * several["seed"] + [f"step {step:,}"] * several["step"]
            title = ", ".join([str(run) if alike else look.label, *said])
            turns.setdefault(float(of_run["turn"].iloc[0]), []).append(_surface(title, of_run))
    return [turns[turn] for turn in sorted(turns)]


def _surface(title: str, points: pd.DataFrame) -> Surface:
    points = points[np.isfinite(points[["x", "y"]]).all(axis=1)]
    grid = points[points["path_step"].isna()].drop_duplicates(["x", "y"], keep="last")
    whole = grid[grid.groupby("y")["x"].transform("size") == grid["x"].nunique()]
    losses = whole.pivot(index="y", columns="x", values="loss")
    path = points.dropna(subset=["path_step"]).drop_duplicates("path_step", keep="last").sort_values("path_step")
    return Surface(title, (_label(points["x_share"], 1), _label(points["y_share"], 2)), losses, path[["x", "y"]])


def _label(shares: pd.Series[float], number: int) -> str:
    shares = shares[np.isfinite(shares)]
    if shares.empty:
        return f"random direction {number}"
    return f"PCA direction {number} ({100 * shares.iloc[0]:.0f}% of the path)"


def _wrapped(lines: Sequence[Sequence[_Item]], across: int) -> list[list[_Item]]:
    """Rows of at most so many: a long line in rows of about equal length, short lines several in a row."""
    rows: list[list[_Item]] = []
    for line in lines:
        if rows and len(rows[-1]) + len(line) <= across:
            rows[-1] += line
        else:
            length = math.ceil(len(line) / math.ceil(len(line) / across))
            rows += [list(line[start : start + length]) for start in range(0, len(line), length)]
    return rows
