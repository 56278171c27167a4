"""Figures of the loss around a point: contours, surfaces, curves along one direction, and the path of training."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from fake_tables import (
    make,
    surface,
    surface_line,
)
from helpers import assert_finite, legend
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d import Axes3D
from numpy.typing import NDArray

from bnsmooth_cli.errors import InputError
from bnsmooth_cli.figures import render


def contours(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if "direction" in axes.get_xlabel()]


def reliefs(figure: Figure) -> list[Axes3D]:
    return [axes for axes in figure.axes if isinstance(axes, Axes3D)]


def colour_at(figure: Figure, axes: Axes, x: float, y: float) -> NDArray[np.float64]:
    """The colour that a reader sees at a position in a panel's axes."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    column, row = axes.transData.transform((x, y)).round().astype(int)
    picture = np.asarray(canvas.buffer_rgba())
    return picture[len(picture) - 1 - row, column, :3] / 255


def slope(steepness: float) -> Callable[[float, np.random.Generator], pd.DataFrame]:
    def rows(rough: float, noise: np.random.Generator) -> pd.DataFrame:
        table = surface(rough, noise, path=False)
        return table.assign(loss=1 + steepness * (table["x"] + 1))

    return rows


def test_surfaces_stand_side_by_side_each_below_its_contours_in_equal_shares() -> None:
    figure = render("surface", make(surface, norms=("batch", "linf", "none"), seeds=(0,)))
    figure.draw_without_rendering()
    assert [axes.get_title() for axes in contours(figure)] == ["none", "batch", "linf"]
    above, below = ([axes.get_position() for axes in row] for row in (contours(figure), reliefs(figure)))
    assert len({(round(box.width, 6), round(box.height, 6), round(box.y0, 6)) for box in above}) == 1
    assert len({(round(box.width, 6), round(box.height, 6), round(box.y0, 6)) for box in below}) == 1
    assert all(lower.y1 < upper.y0 for lower, upper in zip(below, above, strict=True))


@pytest.mark.parametrize(
    ("seeds", "steps", "titles"),
    [
        (5, [300], [["none, seed 0", "none, seed 1", "none, seed 2"], ["none, seed 3", "none, seed 4"]]),
        (1, [0, 300], [["none, step 0", "none, step 300"]]),
        (3, [0, 300], [[f"none, seed {seed}, step {step}" for seed in range(3)] for step in (0, 300)]),
    ],
)
def test_surfaces_wrap_and_say_what_varies(seeds: int, steps: list[int], titles: list[list[str]]) -> None:
    tables = [make(lambda r, n, step=step: surface(r, n, step), norms=("none",), seeds=range(seeds)) for step in steps]
    figure = render("surface", pd.concat(tables))
    figure.draw_without_rendering()
    rows: dict[float, list[str]] = {}
    for axes in contours(figure):
        rows.setdefault(round(axes.get_position().y0, 4), []).append(axes.get_title())
    assert [rows[height] for height in sorted(rows, reverse=True)] == titles


def test_runs_that_no_column_tells_apart_go_by_their_names_and_long_ones_do_not_overlap() -> None:
    table = make(surface, norms=("none", "batch"))
    figure = render("surface", pd.concat([table, table.assign(run=table["run"] + "-depth19-width0.25-batch-size512")]))
    figure.draw_without_rendering()
    titles = [axes.title for axes in contours(figure)]
    assert "-depth19" in titles[1].get_text().replace("\n", "")
    boxes = [title.get_window_extent() for title in titles]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
    assert boxes[-1].x1 < figure.bbox.x1


def test_a_colour_is_the_same_loss_in_every_panel_and_on_the_bar() -> None:
    steep, flat = make(slope(4), norms=("none",)), make(slope(1), norms=("batch",))
    figure = render("surface", pd.concat([steep, flat]))
    (first, second), bar = contours(figure), figure.axes[-1]
    at_steep = colour_at(figure, first, 1.65 / 4 - 1, 0.4)
    np.testing.assert_allclose(at_steep, colour_at(figure, second, 1.65 - 1, 0.4), atol=0.03)
    np.testing.assert_allclose(at_steep, colour_at(figure, bar, 2.65, 0.5), atol=0.03)
    assert np.abs(at_steep - colour_at(figure, first, 0.9, 0.4)).max() > 0.3
    heights = [[label.get_text() for label in axes.get_zticklabels()] for axes in reliefs(figure)]
    assert heights[0] == heights[1] == ["2", "4", "6", "8"]
    assert len({axes.get_zlim() for axes in reliefs(figure)}) == 1


@pytest.mark.parametrize("norms", [("none",), ("none", "batch")])
def test_overflows_of_a_surface_have_the_top_colour_and_do_not_flatten_its_scale(norms: tuple[str, ...]) -> None:
    calm = make(surface, norms=norms)
    wild = calm.copy()
    corner = (wild["norm"] == "none") & (wild["x"] > 0.4) & (wild["y"] > 0.4) & wild["path_step"].isna()
    wild.loc[corner, "loss"] = np.resize([np.inf, 1e30, np.nan], corner.sum())
    figure = render("surface", wild)
    axes, bar = contours(figure)[0], figure.axes[-1]
    top = bar.get_xlim()[1]
    assert top <= render("surface", calm).axes[-1].get_xlim()[1]
    np.testing.assert_allclose(colour_at(figure, axes, 0.8, 0.7), colour_at(figure, bar, 0.99 * top, 0.5), atol=0.05)
    assert np.abs(colour_at(figure, axes, 0.05, 0.5) - colour_at(figure, axes, -0.95, 0.5)).max() > 0.1


def test_colours_are_logarithmic_only_where_the_losses_span_decades() -> None:
    table = make(surface, norms=("batch",))
    assert render("surface", table).axes[-1].get_xscale() == "linear"
    table["loss"] *= 10 ** (3 * np.abs(table["x"]))
    bar = render("surface", table).axes[-1]
    assert bar.get_xscale() == "log"
    assert {"1", "10", "100"} <= {label.get_text() for label in bar.get_xticklabels()}


@pytest.mark.parametrize("spread", [0.3, 1.0, 1.7, 3.0, 30.0])
@pytest.mark.parametrize("decades", [0.0, 1.0, 2.5, 4.0])
@pytest.mark.fast(4)
def test_the_bar_labels_some_of_the_contour_lines(spread: float, decades: float) -> None:
    table = make(surface, norms=("batch",))
    table["loss"] = (5 + spread * table["x"].abs()) * 10 ** (decades * table["x"].abs())
    bar = render("surface", table).axes[-1]
    lines = [float(np.asarray(line.get_xdata())[0]) for line in bar.lines]
    assert 5 <= len(lines) <= 25
    assert 2 <= len(bar.get_xticks()) <= 12
    assert all(np.isclose(lines, tick).any() for tick in bar.get_xticks())


def test_the_path_runs_from_its_first_to_its_last_step_over_the_contours() -> None:
    table = make(surface, norms=("none", "batch"))
    figure = render("surface", table.sample(frac=1, random_state=0))
    path = table[table["path_step"].notna() & (table["norm"] == "none")].sort_values("path_step")
    line, centre, first, last = contours(figure)[0].lines
    np.testing.assert_array_equal(line.get_xydata(), path[["x", "y"]])
    np.testing.assert_array_equal(first.get_xydata(), path[["x", "y"]].head(1))
    np.testing.assert_array_equal(last.get_xydata(), path[["x", "y"]].tail(1))
    assert (centre.get_xydata() == 0).all()
    assert len({str(mark.get_marker()) for mark in (centre, first, last)}) == 3
    assert legend(figure) == ["centre", "first point of the path", "last point of the path"]


def test_the_axes_of_a_surface_say_what_they_are() -> None:
    labelled = [(axes.get_xlabel(), axes.get_ylabel()) for axes in contours(render("surface", make(surface)))]
    assert labelled[0] == ("PCA direction 1 (87% of the path)", "PCA direction 2 (11% of the path)")
    figure = render("surface", make(lambda r, n: surface(r, n, path=False), norms=("none", "batch")))
    assert legend(figure) == ["centre"]
    assert [axes.get_xlabel() for axes in contours(figure)] == ["random direction 1"] * 2
    assert [axes.get_ylabel() for axes in contours(figure)] == ["random direction 2", ""]


def test_a_surface_along_one_direction_is_a_curve_for_each_run_on_common_axes() -> None:
    table = make(surface_line, norms=("none", "batch"))
    (axes,) = render("surface", table).axes
    assert axes.get_xlabel() == "position along a filter-normalised direction"
    assert axes.get_title() == "loss along a line, step 300"
    for line, (_, rows) in zip(axes.lines, table.groupby("norm", sort=False), strict=True):
        np.testing.assert_array_equal(line.get_xydata(), rows[["x", "loss"]])
    figure = render("surface", make(lambda r, n: surface_line(r, n, steps=(0, 100, 300)), norms=("none", "batch")))
    assert [axes.get_title().split(", ")[1] for axes in figure.axes] == ["step 0", "step 100", "step 300"]
    assert len({axes.get_ylim() for axes in figure.axes}) == 1


def test_overflows_along_one_direction_are_marked_and_leave_the_axis_to_the_rest() -> None:
    table = make(surface_line, norms=("none", "batch"))
    ends = (table["norm"] == "none") & (table["x"].abs() > 0.7)
    table.loc[ends, "loss"] = np.resize([np.inf, np.nan, 1e30], ends.sum())
    figure = render("surface", table)
    assert legend(figure) == ["none", "batch", "off scale"]
    assert figure.axes[0].get_ylim()[1] < 5


def test_surfaces_that_do_not_fit_into_one_figure_are_refused() -> None:
    with pytest.raises(InputError, match="over one direction and over two; plot them apart"):
        render("surface", pd.concat([make(surface, norms=("none",)), make(surface_line, norms=("batch",))]))
    with pytest.raises(InputError, match="at most 24 surfaces of a problem; these are 25"):
        render("surface", make(surface, seeds=range(5)))
    with pytest.raises(InputError, match="at most 24 surfaces of a problem; these are 30"):
        render("surface", make(lambda r, n: surface_line(r, n, steps=range(30))))


def test_five_steps_along_one_direction_fill_a_row_and_a_part_of_one() -> None:
    figure = render("surface", make(lambda r, n: surface_line(r, n, steps=range(5)), norms=("none",)))
    assert [axes.get_title()[-6:] for axes in figure.axes if axes.axison] == [f"step {step}" for step in range(5)]


@pytest.mark.parametrize("rows", [1, 5, 9, 12])
def test_an_unfinished_grid_is_drawn_as_far_as_it_goes(rows: int) -> None:
    figure = render("surface", make(surface, norms=("none",)).head(rows))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(BytesIO(), format="png", dpi=40)
    assert_finite(figure)


def test_the_axes_of_top_directions_say_their_eigenvalues() -> None:
    planes = make(
        lambda rough, noise: surface(rough, noise, path=False).assign(x_eigenvalue=31.2834, y_eigenvalue=25.0)
    )
    axes = render("surface", planes).axes[0]
    assert axes.get_xlabel() == "top eigenvector 1 (eigenvalue 31.3)"
    assert axes.get_ylabel() == "top eigenvector 2 (eigenvalue 25)"
    lines = make(lambda rough, noise: surface_line(rough, noise).assign(x_eigenvalue=31.3, y_eigenvalue=np.nan))
    assert render("surface", lines).axes[0].get_xlabel() == "position along the top eigenvector"
