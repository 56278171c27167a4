"""The rows of figures: different settings stay apart, each row counts once, and what never happened is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fake_tables import (
    ROWS,
    activations,
    compared,
    ics,
    landscape,
    make,
    smoothness,
    smoothness_by_layer,
    surface,
    theory,
    vgg_training,
)
from helpers import DRAWN, legend
from matplotlib.axes import Axes

import bnsmooth_cli as bns
from bnsmooth_cli.config import resolve
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.figures import plot_tables, render
from bnsmooth_cli.figures.rows import MAX_APART, Selection


def of(table: pd.DataFrame, problem: str = "vgg", **settings: Any) -> pd.DataFrame:
    """A table with the settings of its runs."""
    return table.assign(settings=resolve(problem, **settings).settings_text)


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


# Runs of different settings


def test_runs_of_one_name_and_different_settings_are_drawn_apart_with_what_differs_in_the_legend() -> None:
    narrow = of(make(smoothness, norms=("none", "batch")), width=0.25)
    wide = of(make(smoothness, norms=("none", "batch")).assign(beta=7.0), width=0.5)
    figure = render("smoothness", pd.concat([narrow, wide]))
    assert legend(figure) == ["none, width 0.25", "none, width 0.5", "batch, width 0.25", "batch, width 0.5"]
    axes = figure.axes[0]
    assert len(axes.lines) == 4
    assert len({(line.get_color(), line.get_marker()) for line in axes.lines}) == 4
    np.testing.assert_array_equal(axes.lines[1].get_ydata(), 7.0)
    np.testing.assert_allclose(axes.lines[0].get_ydata(), narrow[narrow["norm"] == "none"]["beta"])


def test_runs_of_different_lengths_are_not_spliced_into_one_curve() -> None:
    short = of(make(lambda r, n: vgg_training(r, n, 100), norms=("batch",)), steps=100)
    long = of(make(lambda r, n: vgg_training(r, n, 200), norms=("batch",)), steps=200)
    figure = render("train", pd.concat([short, long]))
    assert legend(figure) == ["batch, 100 steps", "batch, 200 steps"]
    ends = [max(line.get_xdata()) for line in figure.axes[0].lines]
    assert ends == [99, 199]


@pytest.mark.parametrize("kind", [kind for kind in DRAWN if kind != "compare"])
@pytest.mark.fast(8)
def test_every_figure_keeps_settings_apart(kind: str) -> None:
    table = make(ROWS[kind], norms=("batch",))
    figure = render(kind, pd.concat([of(table, width=0.25), of(table, width=0.5)]))
    said = legend(figure) + [axes.get_title() for axes in figure.axes] + [axes.get_ylabel() for axes in figure.axes]
    assert any("width 0.25" in text for text in said)
    assert any("width 0.5" in text for text in said)


def test_the_steps_figure_and_the_comparison_keep_settings_apart() -> None:
    table = make(landscape, norms=("batch",))
    figure = render("landscape", pd.concat([of(table, width=0.25), of(table, width=0.5)]), figure="steps")
    titles = [axes.get_title().replace("\n", " ") for axes in figure.axes[:2]]
    assert titles == ["batch, width 0.25, along the gradient", "batch, width 0.5, along the gradient"]
    table = make(compared, norms=("batch",), seeds=(0, 1))
    figure = render("compare", pd.concat([of(table, width=0.25), of(table, width=0.5)]))
    names = [label.get_text().replace("\n", " ") for label in figure.axes[0].get_yticklabels()]
    assert sorted(names) == ["batch, width 0.25", "batch, width 0.5"]


def test_more_settings_than_can_be_told_apart_are_refused() -> None:
    table = make(smoothness, norms=("batch",))
    runs = [of(table, steps=steps) for steps in range(1, MAX_APART + 2)]
    with pytest.raises(InputError, match=f"vgg have {MAX_APART + 1} different settings.*at most {MAX_APART}.*1 step"):
        render("smoothness", pd.concat(runs))
    assert len(legend(render("smoothness", pd.concat(runs[1:])))) == MAX_APART


def test_the_papers_curves_are_not_drawn_under_runs_of_different_settings() -> None:
    table = make(landscape, norms=("batch",))
    with pytest.raises(InputError, match=r"--paper: the runs have different settings.*width 0\.25; width 0\.5"):
        render("landscape", pd.concat([of(table, width=0.25), of(table, width=0.5)]), paper="4")


def test_ics_has_the_training_curves_of_its_own_settings() -> None:
    table = of(make(ics, norms=("batch",)), width=0.25)
    training = pd.concat([of(make(vgg_training, norms=("batch",)), width=width) for width in (0.25, 0.5)])
    figure = render("ics", table, training)
    assert [len(axes.lines) for axes in figure.axes[:2]] == [1, 1]


@pytest.mark.filterwarnings("ignore:Glyph 27")
def test_an_svg_that_no_program_could_read_is_refused(tmp_path: Path) -> None:
    bns.save_table(make(landscape, norms=("batch", "x\x1b[31m")), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"t\.parquet: the name of a norm or a setting has characters"):
        plot_tables([tmp_path / "t.parquet"], tmp_path / "t.svg")
    assert not (tmp_path / "t.svg").exists()


def test_the_title_has_data_width_and_steps_and_what_is_unusual() -> None:
    def title(table: pd.DataFrame) -> str:
        return str(render("train", table).subfigs[0].get_suptitle())

    table = make(vgg_training, norms=("none", "batch"), seeds=(0, 1))
    assert title(table) == "vgg, lr 0.1, 2 seeds"
    assert title(of(table, data="cifar10")) == "vgg, cifar10, width 0.25, 300 steps, lr 0.1, 2 seeds"
    assert title(of(table, momentum=0.9)) == "vgg, shapes, width 0.25, 300 steps, momentum 0.9, lr 0.1, 2 seeds"
    paper = of(table, preset="paper", width=0.25)
    assert title(paper).startswith("vgg, paper preset, cifar10, width 0.25, 15,000 steps, lr 0.1")
    uneven = table[(table["norm"] == "none") | (table["seed"] == 0)]
    assert title(of(uneven)).endswith("lr 0.1, 1 to 2 seeds")
    both = pd.concat([of(table, width=0.25), of(table, width=0.5)])
    assert title(both) == "vgg, shapes, 300 steps, lr 0.1, 2 seeds"  # the width is in the legend


# Each row once


@pytest.mark.parametrize("kind", DRAWN)
@pytest.mark.fast(5)
def test_a_table_that_is_given_twice_is_drawn_once(kind: str) -> None:
    table = of(make(ROWS[kind], norms=("batch",)))
    one, two = (render(kind, rows) for rows in (table, pd.concat([table, table])))
    assert [len(axes.lines) for axes in one.axes] == [len(axes.lines) for axes in two.axes]


def test_one_run_in_two_folders_is_one_run_if_their_rows_agree() -> None:
    table = of(make(smoothness, norms=("batch",)))
    again = table.assign(run="elsewhere", beta=table["beta"] * (1 + 1e-6))  # another number of threads
    assert len(render("smoothness", pd.concat([table, again])).axes[0].lines) == 1
    with pytest.raises(
        InputError,
        match=r"vgg-batch-lr0\.1-seed0 and elsewhere are runs of the same settings.*differ \(beta at step 0\)",
    ):
        render("smoothness", pd.concat([table, again.assign(beta=2 * table["beta"])]))


def test_two_tables_that_disagree_about_a_run_are_refused() -> None:
    table = make(smoothness, norms=("batch",))
    with pytest.raises(
        InputError, match=r"two smoothness tables of the run vgg-batch-lr0\.1-seed0 differ \(lipschitz at"
    ):
        render("smoothness", pd.concat([table, table.assign(lipschitz=1e3)]))


def test_two_tables_of_a_run_complete_each_other() -> None:
    table = make(smoothness, norms=("batch",))
    figure = render("smoothness", pd.concat([table[table["step"] <= 150], table[table["step"] >= 100]]))
    assert list(figure.axes[0].lines[0].get_xdata()) == list(table["step"])


def test_runs_of_unknown_settings_are_told_apart_by_their_names() -> None:
    table = make(smoothness, norms=("batch",))
    other = table.assign(run="loop", beta=3 * table["beta"])
    assert len(render("smoothness", pd.concat([table, other])).axes[0].lines) == 3  # two runs and their median


# Selected rows


def test_selected_layers_are_all_drawn_by_name_or_number() -> None:
    table = make(ics, norms=("batch",))
    figure = bns.plot(table, layers=["linear3", 5, "7", "linear9"])
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == [f"layer {layer} (linear{layer})" for layer in (3, 5, 7, 9)]
    with pytest.raises(InputError, match=r"--layers linear99: the table has the layers 1 \(linear1\), 2 \(linear2\)"):
        bns.plot(table, layers=["linear1", "linear99"])
    with pytest.raises(InputError, match="--layers: a figure shows at most 12 layers; these are 13"):
        bns.plot(table, layers=range(1, 14))


def test_selected_units_have_a_column_each() -> None:
    table = make(activations, norms=("batch",))
    figure = render("activations", table, selection=Selection(layers=["conv2"], units=[4, 7]))
    assert [axes.get_title() for axes in figure.axes[:2]] == ["conv2, unit 4", "conv2, unit 7"]
    with pytest.raises(InputError, match="--units 5: the table has 4, 7"):
        render("activations", table, selection=Selection(units=[5]))


def test_selected_steps_cut_the_curves() -> None:
    axes = bns.plot(make(smoothness, norms=("batch",)), steps=(50, 100)).axes[0]
    assert list(axes.lines[0].get_xdata()) == [50, 60, 70, 80, 90, 100]


def test_selected_steps_cut_the_training_curves_beside_ics_too() -> None:
    tables = make(ics, norms=("batch",)), make(vgg_training, norms=("batch",))
    figure = render("ics", *tables, selection=Selection(steps=(0, 100)))
    assert max(max(line.get_xdata()) for axes in figure.axes for line in axes.lines) == 100


@pytest.mark.parametrize(
    ("rows", "selection", "said"),
    [
        (smoothness, {"layers": ["fc1"]}, "--layers: smoothness tables have no layers"),
        (ics, {"units": [1]}, "--units: ics tables have no units"),
        (compared, {"steps": (0, 5)}, "--steps: compare tables have no steps"),
    ],
)
def test_a_selection_that_makes_no_sense_for_a_kind_is_refused(rows: Any, selection: Any, said: str) -> None:
    kind = next(name for name, of_kind in ROWS.items() if of_kind is rows)
    with pytest.raises(InputError, match=said):
        render(kind, make(rows), selection=Selection(**selection))


# What never happened


def test_seeds_that_diverge_are_counted_beside_their_crosses() -> None:
    table = make(vgg_training, norms=("none", "batch"), seeds=range(5))
    lost = (table["norm"] == "none") & (table["seed"] < 2)
    table = table[~lost | (table["step"] <= 60)]
    table.loc[lost & (table["step"] == 60), "loss"] = np.nan
    figure = render("train", table)
    crosses = [line for line in figure.axes[0].lines if line.get_marker() == "x"]
    assert [float(line.get_xdata()[0]) for line in crosses] == [60, 60]
    assert [texts(axes) for axes in figure.axes] == [["2 of 5"], ["2 of 5"]]
    assert legend(figure) == ["none", "batch", "diverged"]


@pytest.mark.parametrize("rows", [landscape, smoothness, ics, activations, theory])
@pytest.mark.fast(2)
def test_runs_that_end_before_the_others_are_marked_and_counted(rows: Any) -> None:
    table = make(rows, norms=("none", "batch"), seeds=range(3))
    kind = next(name for name, of_kind in ROWS.items() if of_kind is rows)
    figure = render(kind, table[(table["norm"] == "batch") | (table["seed"] == 2) | (table["step"] <= 150)])
    assert "ends early" in legend(figure)
    assert "2 of 3" in [text for axes in figure.axes for text in texts(axes)]
    assert "ends early" not in legend(render(kind, table))


def test_the_steps_figure_says_how_many_runs_end_early_and_how_many_lines_leave_the_axis() -> None:
    table = make(landscape, norms=("none", "batch"), seeds=range(3))
    table = table[(table["norm"] == "batch") | (table["seed"] == 2) | (table["step"] <= 150)]
    table.loc[(table["norm"] == "none") & (table["step"] < 20) & (table["alpha"] == 4), "grad_distance"] = np.inf
    figure = render("landscape", table, figure="steps")
    title = figure.axes[0].get_title().replace("\n", " ")
    assert title == "none, along the gradient; 2 of 3 end before step 300"
    assert texts(figure.axes[0]) == ["2 of 31 off scale"]
    assert texts(figure.axes[1]) == []


def test_runs_off_scale_are_counted() -> None:
    table = make(smoothness, norms=("none", "batch"), seeds=range(5))
    table.loc[(table["norm"] == "none") & (table["seed"] < 3) & (table["step"] == 0), "beta"] = np.inf
    figure = render("smoothness", table)
    assert texts(figure.axes[0]) == ["3 of 5"]
    assert "off scale" in legend(figure)


def test_nan_where_it_is_an_overflow_is_off_scale_and_a_value_below_the_axis_too() -> None:
    table = make(ics, norms=("none", "batch"))
    table.loc[(table["norm"] == "none") & (table["step"] == 0), "ics"] = np.nan
    assert "off scale" in legend(render("ics", table))
    table = make(smoothness, norms=("none", "batch", "l1"))
    table.loc[(table["norm"] == "none") & (table["step"] == 0), "curvature"] = -1e30
    axes = render("smoothness", table).axes[3]
    (mark,) = [line for line in axes.lines if line.get_marker() == "v"]
    assert mark.get_ydata()[0] == axes.get_ylim()[0]


def test_a_band_of_several_seeds_is_the_range_of_a_line_and_not_that_of_the_seeds() -> None:
    table = make(landscape, norms=("none",), seeds=range(3))
    table["loss"] += 100.0 * table["seed"]
    axes = render("landscape", table).axes[0]
    assert axes.get_title() == "loss range along the gradient, median of seeds"
    middle = table[(table["alpha"] > 0) & (table["seed"] == 1)].groupby("step")["loss"]
    for line, edge in zip(axes.lines[::2], (middle.min(), middle.max()), strict=False):
        np.testing.assert_allclose(np.array(line.get_ydata()), edge)
    one = render("landscape", table[table["seed"] == 1]).axes[0]
    assert one.get_title() == "loss range along the gradient"
    np.testing.assert_allclose(np.array(one.lines[0].get_ydata()), middle.min())


@pytest.mark.parametrize("value", [0.0, 1e-35])
def test_a_value_below_a_logarithmic_axis_is_off_scale(value: float) -> None:
    table = make(smoothness, norms=("none", "batch"))
    table["lipschitz"] *= 10.0 ** (table["step"] / 50)
    table.loc[(table["norm"] == "none") & (table["step"] == 0), "lipschitz"] = value
    axes = render("smoothness", table).axes[1]
    assert axes.get_yscale() == "log"
    (mark,) = [line for line in axes.lines if line.get_marker() == "v"]
    assert (mark.get_xdata()[0], mark.get_ydata()[0]) == (0, axes.get_ylim()[0])


def test_distributions_beyond_the_axis_or_not_finite_are_marked() -> None:
    table = make(activations, norms=("none", "batch", "l1"))
    wild = (table["norm"] == "none") & (table["step"] >= 100)
    table.loc[wild, "quantiles"] = table.loc[wild, "quantiles"].map(lambda values: np.asarray(values) + 1e6)
    table.loc[(table["norm"] == "l1") & (table["step"] == 0), "quantiles"] = pd.Series(
        [np.full(100, np.nan)] * len(table), index=table.index
    )
    figure = render("activations", table)
    assert {"off scale", "not finite"} <= {*legend(figure)}


def test_sides_that_are_not_finite_are_counted() -> None:
    table = make(theory, norms=("batch",))
    lost = (table["statement"] == "4.1") & (table["step"] == 0)
    table.loc[lost, "lhs"] = np.inf
    figure = render("theory", table)
    assert texts(figure.axes[0]) == ["3 of 21\nnot finite"]


def test_losses_above_the_scale_of_a_surface_are_counted() -> None:
    table = make(surface, norms=("batch",))
    table.loc[table.index[:3], "loss"] = np.inf
    bar = render("surface", table).axes[-1]
    assert bar.get_xlabel() == f"loss (3 of {len(table) - table['path_step'].notna().sum()} are above the scale)"


def test_seeds_that_never_reach_the_target_are_counted_beyond_the_edge() -> None:
    table = make(compared, norms=("none", "batch"), seeds=range(5))
    none = table["norm"] == "none"
    table.loc[none & (table["seed"] < 2), "steps_to_accuracy"] = np.nan
    table.loc[none & (table["seed"] == 4), ["steps_to_accuracy", "final_test_accuracy"]] = np.nan
    table.loc[none & (table["seed"] == 4), "diverged_at"] = 9.0
    figure = render("compare", table)
    assert texts(figure.axes[0]) == ["1 of 5"]
    assert sorted(texts(figure.axes[1])) == ["1 of 5", "2 of 5"]
    assert {*legend(figure)} == {"diverged", "not reached"}
    bars = [line for line in figure.axes[1].lines if line.get_marker() == "|"]
    assert len(bars) == 1  # the median of none's seeds is that it is never reached
    figure = render("compare", table[none].assign(steps_to_accuracy=np.nan))
    assert texts(figure.axes[1]) == ["not reached, 4 of 5; diverged, 1 of 5"]


def test_layers_without_a_run_are_not_drawn_as_zero() -> None:
    table = make(smoothness_by_layer, norms=("none", "batch"))
    table.loc[(table["norm"] == "none") & (table["layer"] > 4), "beta"] = np.nan
    axes = render("smoothness-by-layer", table).axes[0]
    assert list(axes.lines[0].get_xdata()) == [1, 2, 3, 4]
