"""The loss around a point (Li et al., 2018): contours and surfaces over two directions, with the path of training, or
curves along one direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final, TypeVar

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.lines import Line2D
from matplotlib.patheffects import Stroke, withStroke
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox
from mpl_toolkits.mplot3d import Axes3D  # type: ignore[import-untyped]
from numpy.typing import NDArray

from bnsmooth_cli.errors import InputError
from bnsmooth_cli.figures import scales, style
from bnsmooth_cli.figures.page import Band, Panel, in_row, say_empty
from bnsmooth_cli.figures.panels import Curves, series

_ACROSS: Final = 4  # surfaces in a row
_CURVES_ACROSS: Final = 3  # panels of curves in a row: the label of their x axis is long
_MAX_SURFACES: Final = 24  # of a problem
_COLOURS: Final = "viridis"
_FILLS: Final = np.linspace(0.0, 1.0, 65)
_MAX_LINES: Final = 25  # contour lines over the whole scale
_MAX_FACETS: Final = 51  # of a surface, on a side
_BELOW: Final = 0.22  # inches for the labels below a surface
_PATH: Final = "#E6550D"
_HALO: Final[list[Stroke]] = [withStroke(linewidth=2.6, foreground="white")]
#: The legend's label -> a mark on a contour panel, drawn on top of the marks before.
_MARKS: Final[dict[str, dict[str, Any]]] = {
    "centre": {"marker": "+", "color": "black", "markersize": 11, "markeredgewidth": 1.4},
    "first point of the path": {"marker": "o", "color": _PATH, "markersize": 5, "markerfacecolor": "white"},
    "last point of the path": {"marker": "s", "color": _PATH, "markersize": 4},
}

_Item = TypeVar("_Item")


@dataclass(frozen=True, eq=False)
class Surface:
    """The losses around the parameters of a run at a step: a row for each y, a column for each x. Overflows are inf."""

    title: str
    labels: tuple[str, str]
    losses: pd.DataFrame
    path: pd.DataFrame  # x and y, in the order of training

    @property
    def has_area(self) -> bool:
        """Whether there is more than one row and column of points."""
        return min(self.losses.shape) > 1

    def mesh(self, scale: scales.Scale) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """x, y, and the height of the loss on the scale, from 0 to 1.

        Matplotlib interpolates the height and not the loss, which is smoother on a logarithmic scale.
        """
        x, y = np.meshgrid(self.losses.columns.to_numpy("float64"), self.losses.index.to_numpy("float64"))
        return x, y, np.ma.getdata(scale.norm()(self.losses.to_numpy("float64")))


@dataclass(frozen=True, eq=False)
class Contours:
    """A surface from above: filled contours, lines at round losses, the centre, and the path of training if known."""

    surface: Surface
    scale: scales.Scale | None
    width: float = 1.5
    height: None = None

    @property
    def title(self) -> str:
        return self.surface.title

    @property
    def ylabel(self) -> str:
        return self.surface.labels[1]

    def draw(self, axes: Axes) -> dict[str, Line2D]:
        axes.set_box_aspect(1)
        if self.scale is None or self.surface.losses.empty:
            say_empty(axes)
            return {}
        axes.grid(False)
        axes.set_xlabel(self.surface.labels[0])
        _set_ticks(axes, 4)
        if self.surface.has_area:
            self._draw_area(axes, self.scale)
        else:
            _draw_points(axes, *self.surface.mesh(self.scale)[:2])
        return self._draw_marks(axes)

    def _draw_area(self, axes: Axes, scale: scales.Scale) -> None:
        x, y, level = self.surface.mesh(scale)
        axes.margins(0)
        # Below the lines, as pixels: a vector file with each facet would have megabytes, and seams.
        axes.contourf(x, y, level, _FILLS, cmap=_COLOURS, vmin=0, vmax=1, extend="both", zorder=0)
        axes.set_rasterization_zorder(0.5)
        lines = np.array(scale.norm()(scale.levels(_MAX_LINES)), dtype=np.float64)
        lines = lines[(lines > level.min()) & (lines < level.max())]  # matplotlib warns about lines outside
        if len(lines):
            axes.contour(x, y, level, lines, colors="black", linewidths=0.45, alpha=0.6)

    def _draw_marks(self, axes: Axes) -> dict[str, Line2D]:
        path = self.surface.path
        axes.plot(path["x"], path["y"], color=_PATH, linewidth=style.scaled(1.3), path_effects=_HALO, zorder=3)
        centre = pd.DataFrame({"x": [0.0], "y": [0.0]})
        places = zip(_MARKS.items(), (centre, path.head(1), path.tail(1)), strict=True)
        entries = {}
        for zorder, ((name, looks), place) in enumerate(places, 4):
            if len(place):
                axes.plot(
                    place["x"], place["y"], linestyle="", **looks, clip_on=False, zorder=zorder, path_effects=_HALO
                )
                entries[name] = Line2D([], [], linestyle="", path_effects=_HALO, **looks)
        return entries


class _ReliefAxes(Axes3D):  # type: ignore[misc]
    """Axes with room for the labels below. Matplotlib 3.10 knows where labels are only after it has drawn them."""

    def get_tightbbox(self, renderer: RendererBase | None = None, **_: object) -> Bbox:
        """The box of the panel and of its labels."""
        box = self.get_window_extent(renderer)
        return Bbox.from_extents(box.x0, box.y0 - style.scaled(_BELOW) * self.figure.dpi, box.x1, box.y1)


@dataclass(frozen=True, eq=False)
class Relief:
    """A surface from the side. Height and colour are the loss, on the contours' scale."""

    surface: Surface
    scale: scales.Scale | None
    title: str = ""
    ylabel: str = ""
    width: float = 1.5
    height: None = None
    axes_class: ClassVar[type[Axes]] = _ReliefAxes

    def draw(self, axes: Axes) -> dict[str, Line2D]:
        assert isinstance(axes, Axes3D)
        if self.scale is None or self.surface.losses.empty:
            axes.set_axis_off()
            return {}
        x, y, level = self.surface.mesh(self.scale)
        if self.surface.has_area:
            axes.plot_surface(
                x, y, level, cmap=_COLOURS, vmin=0, vmax=1, rcount=_MAX_FACETS, ccount=_MAX_FACETS,
                linewidth=4 / max(x.shape), edgecolor="#00000055", rasterized=True,
            )  # fmt: skip
        else:
            _draw_points(axes, x, y, level)
        norm, losses = self.scale.norm(), self.scale.levels(5 if _figure_width(axes) > 4 else 3)
        axes.set_box_aspect(None, zoom=1.15)  # no room for axis labels: the panel above has them
        axes.set(zlim=(0, 1))
        axes.set_zticks([float(norm(loss)) for loss in losses], [style.number_text(loss) for loss in losses])
        _set_ticks(axes, 4)
        axes.tick_params(pad=-2, labelsize=style.scaled(7))
        axes.tick_params("z", pad=2)
        return {}


def _set_ticks(axes: Axes, most: int) -> None:
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(most, steps=[1, 2, 5, 10]))


def _figure_width(axes: Axes) -> float:
    figure = axes.get_figure(root=True)
    return 0.0 if figure is None else figure.get_figwidth()


def _draw_points(axes: Axes, *places: NDArray[np.float64]) -> None:
    axes.plot(*(place.ravel() for place in places), "o", color="black", markersize=3.5)


@dataclass(frozen=True, eq=False)
class Bar:
    """The losses that the colours of the surfaces above mean, with the contour lines."""

    scale: scales.Scale
    beyond: int  # the number of losses above the scale
    points: int
    title: str = ""
    ylabel: str = ""
    width: float = 2.0
    height: float = 0.2

    def draw(self, axes: Axes) -> dict[str, Line2D]:
        lines = self.scale.levels(_MAX_LINES)
        most = max(3, min(12, int(1.4 * _figure_width(axes) / style.scaled(1))))
        ticks = [level for level in self.scale.levels(most) if np.isclose(lines, level, rtol=1e-9, atol=0).any()]
        bar = Colorbar(
            axes, ScalarMappable(self.scale.norm(), _COLOURS), orientation="horizontal",
            extend="max" if self.beyond else "neither", extendfrac=0.02,
            label=f"loss ({self.beyond:,} of {self.points:,} are above the scale)" if self.beyond else "loss",
        )  # fmt: skip
        bar.set_ticks(ticks, labels=[style.number_text(tick) for tick in ticks])
        bar.minorticks_off()
        for line in lines:
            axes.axvline(line, color="black", linewidth=style.scaled(0.45), alpha=0.6)
        return {}


def panels(table: pd.DataFrame) -> list[Band]:
    """A contour panel and a surface below it for each run and step, on one scale; or curves along one direction.

    Raises:
        InputError: If the table has both, or too many surfaces.
    """
    # A step's turn is its rank among the run's steps. The first steps of all runs are side by side.
    points = table.assign(loss=table["loss"].fillna(np.inf), turn=table.groupby("run")["step"].rank("dense"))
    grid = points[points["path_step"].isna() & np.isfinite(points["x"])]
    flat = table["y"].isna().groupby([table["run"], table["step"]]).all()
    pictures = points["turn"].nunique() if flat.all() else len(flat)
    if pictures > _MAX_SURFACES:
        raise InputError(f"a figure shows at most {_MAX_SURFACES} surfaces of a problem; these are {pictures}")
    if flat.all():
        return [in_row(*_curves(grid), most=_CURVES_ACROSS)]
    if flat.any():
        raise InputError("surfaces over one direction and over two; plot them apart")
    return _pictures(points, grid["loss"].to_numpy("float64"))


def _fit(losses: NDArray[np.float64]) -> scales.Scale | None:
    # The series are groups by size, not surfaces: outliers must not flatten the middle of their own surface.
    return scales.fit(np.array_split(np.sort(losses), 100))


def _curves(grid: pd.DataFrame) -> list[Curves]:
    scale = _fit(grid["loss"].to_numpy("float64"))
    curves: list[Curves] = []
    for _, rows in grid.groupby("turn"):
        steps = rows["step"].unique()
        at = f", step {steps[0]:,}" if len(steps) == 1 else ""
        x = "eigenvector" if _is_top(rows) else "x"
        drawn = series(rows.rename(columns={"x": x}), "loss", x)
        curves.append(Curves(f"loss along a line{at}", "L(θ + x d)", drawn, scale=scale))
    return curves or [Curves("loss along a line", "", [])]


def _pictures(points: pd.DataFrame, losses: NDArray[np.float64]) -> list[Band]:
    scale = _fit(losses)
    lines: list[list[list[Panel]]] = [
        [[Contours(surface, scale), Relief(surface, scale)] for surface in turn] for turn in _surfaces(points)
    ]
    bands = [Band(lines, most=_ACROSS)]
    if scale is not None:
        bands.append(in_row(Bar(scale, int((losses > scale.high).sum()), len(losses)), stretched=True))
    return bands


def _surfaces(points: pd.DataFrame) -> list[list[Surface]]:
    """The surfaces of all runs in the order of the norms, a list for each turn."""
    turns: dict[float, list[Surface]] = {}
    several = {name: points[name].nunique() > 1 for name in ("seed", "step")}
    # Runs of unknown settings are titled by name, if norm, learning rate and seed do not tell them apart.
    alike = bool((points.groupby(["norm", "lr", "seed", style.APART], observed=True)["run"].nunique() > 1).any())
    for look, rows in style.groups(points):
        for (seed, run, step), of_run in rows.groupby(["seed", "run", "step"]):
            details = [f"seed {seed}"] * several["seed"] + [f"step {step:,}"] * several["step"]
            title = ", ".join([str(run) if alike else look.label, *details])
            turns.setdefault(float(of_run["turn"].iloc[0]), []).append(_surface(title, of_run))
    return [turns[turn] for turn in sorted(turns)]


def _surface(title: str, points: pd.DataFrame) -> Surface:
    points = points[np.isfinite(points[["x", "y"]]).all(axis=1)]
    grid = points[points["path_step"].isna()].drop_duplicates(["x", "y"], keep="last")
    whole = grid[grid.groupby("y")["x"].transform("size") == grid["x"].nunique()]
    losses = whole.pivot(index="y", columns="x", values="loss")
    path = points.dropna(subset=["path_step"]).drop_duplicates("path_step", keep="last").sort_values("path_step")
    return Surface(title, (_label(points, "x", 1), _label(points, "y", 2)), losses, path[["x", "y"]])


def _label(points: pd.DataFrame, axis: str, number: int) -> str:
    shares = points[f"{axis}_share"].dropna()
    if len(shares):
        return f"PCA direction {number} ({100 * shares.iloc[0]:.0f}% of the path)"
    if _is_top(points):
        return f"top eigenvector {number} (eigenvalue {points[f'{axis}_eigenvalue'].dropna().iloc[0]:.3g})"
    return f"random direction {number}"


def _is_top(points: pd.DataFrame) -> bool:
    """Whether the directions are eigenvectors; tables of earlier versions lack the columns."""
    return "x_eigenvalue" in points and bool(points["x_eigenvalue"].notna().any())
