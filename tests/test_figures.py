"""Figures: their panels, scales and legends, which overflows must not spoil."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from fake_tables import (
    LINES,
    NORMS,
    ROWS,
    activations,
    compared,
    dln_training,
    ics,
    landscape,
    make,
    smoothness,
    smoothness_by_layer,
    stability,
    theory,
    vgg_training,
)
from helpers import DRAWN as KINDS
from helpers import SCHEMAS, assert_finite, legend
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from bnsmooth_cli.figures import panels, render


def panel(figure: Figure, ylabel: str) -> Axes:
    (found,) = (axes for axes in figure.axes if axes.get_ylabel().startswith(ylabel))
    return found


def saved(figure: Figure, suffix: str) -> bytes:
    stream = BytesIO()
    figure.savefig(stream, format=suffix, dpi=40)
    return stream.getvalue()


def line_colours(axes: Axes) -> set[str]:
    return {to_hex(line.get_color()).upper() for line in axes.lines}


@pytest.mark.parametrize(
    ("suffix", "opening"),
    [
        ("png", b"\x89PNG"),
        pytest.param("svg", b"<?xml", marks=pytest.mark.slow),
        pytest.param("pdf", b"%PDF", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.fast(2)
def test_every_kind_is_saved_in_every_format(kind: str, suffix: str, opening: bytes) -> None:
    assert saved(render(kind, make(ROWS[kind], norms=("none", "batch"), seeds=(0, 1))), suffix).startswith(opening)


@pytest.mark.parametrize("kind", ["landscape", "surface"])
@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
@pytest.mark.fast(2)
def test_equal_tables_give_equal_files(suffix: str, kind: str) -> None:
    table = make(ROWS[kind], norms=("none", "batch"))
    assert saved(render(kind, table), suffix) == saved(render(kind, table), suffix)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.fast(6)
def test_a_single_row_is_drawn(kind: str) -> None:
    table = make(ROWS[kind], norms=("batch",))
    row = table[table["alpha"] == 1].head(1) if "alpha" in table else table.head(1)
    figure = render(kind, row)
    figure.savefig(BytesIO(), format="png", dpi=40)
    assert_finite(figure)
    assert any(line.get_marker() == "o" and len(line.get_xdata()) for axes in figure.axes for line in axes.lines)


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    known = ", ".join(KINDS)
    with pytest.raises(ValueError, match=f"landscpae.*{known}"):
        render("landscpae", make(landscape))


def test_a_table_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="no rows"):
        render("train", make(vgg_training).head(0))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "compare"])
@pytest.mark.fast(5)
def test_the_legend_names_each_norm_once_in_the_papers_order(kind: str) -> None:
    table = make(LINES[kind], norms=("lp:3", "l1", "none", "batch"), seeds=(0, 1, 2))
    named = [name for name in legend(render(kind, table)) if name not in ("edge of stability", "off scale")]
    assert named == ["none", "batch", "l1", "lp:3"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.fast(4)
def test_a_norm_has_the_same_colour_in_every_figure(kind: str) -> None:
    figures = [render(kind, make(LINES[kind], norms=norms)) for norms in (("my:Norm",), ("none", "batch", "my:Norm"))]
    # A figure draws all norms in its last panel, or each in a panel of its own.
    drawn = [figure.axes if kind.endswith("density") else figure.axes[-1:] for figure in figures]
    alone, both = (set().union(*map(line_colours, axes)) for axes in drawn)
    assert both == {"#000000", "#0072B2", *alone}
    mine = line_colours(render("train", make(vgg_training, norms=("my:Norm",))).axes[0])
    assert alone - {"#C00000"} == mine  # the colour of thresholds


def test_norms_of_the_users_own_never_look_alike() -> None:
    own = [f"my:Norm{number}" for number in range(12)]
    axes = render("smoothness", make(smoothness, norms=(*own, "batch"))).axes[0]
    looks = {(line.get_color(), str(line._unscaled_dash_pattern)) for line in axes.lines}  # type: ignore[attr-defined]
    assert len(looks) == 13


def test_more_marks_than_there_is_room_for_are_drawn() -> None:
    figure = Figure()
    axes = figure.subplots()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    panels._draw_marks(axes, [panels._Mark(panels.OFF_SCALE, 0.5, 1.0, "black", f"{n} of 12") for n in range(12)])
    heights = [text.get_position()[1] for text in axes.texts]
    assert len(heights) == 12
    assert len({*heights}) == 10  # the others overlap


def test_norms_differ_without_colour_too() -> None:
    axes = render("smoothness", make(smoothness)).axes[0]
    assert len({str(line._unscaled_dash_pattern) for line in axes.lines}) == len(NORMS)  # type: ignore[attr-defined]


def test_learning_rates_are_told_apart_by_label_and_marker() -> None:
    figure = render("smoothness", make(smoothness, norms=("none", "batch"), lrs=(0.1, 0.5)))
    assert legend(figure) == ["none, lr 0.1", "none, lr 0.5", "batch, lr 0.1", "batch, lr 0.5"]
    looks = {(line.get_color(), line.get_marker()) for line in figure.axes[0].lines}
    assert len(looks) == 4


def test_several_seeds_are_thin_lines_around_their_median() -> None:
    table = make(smoothness, norms=("batch",), seeds=(0, 1, 2))
    lines = render("smoothness", table).axes[0].lines
    assert [line.get_linewidth() < 1 for line in lines] == [True, True, True, False]
    np.testing.assert_allclose(lines[-1].get_ydata(), table.groupby("step")["beta"].median())


def test_classification_shows_accuracies_and_regression_its_loss() -> None:
    figure = render("train", pd.concat([make(vgg_training), make(dln_training, "dln", lrs=(1e-6,))]))
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "accuracy (%)",
        "",
        "loss",
    ]
    assert [axes.get_title() for axes in figure.axes] == ["training, mean of 4 steps", "test", "training"]
    assert [axes.get_yscale() for axes in figure.axes] == ["linear", "linear", "log"]
    assert [part.get_suptitle() for part in figure.subfigs] == ["vgg, lr 0.1", "dln, lr 1e-6"]


def test_the_training_curve_is_a_trailing_mean_of_the_minibatches() -> None:
    table = make(lambda rough, noise: vgg_training(rough, noise, 1000), norms=("batch",))
    (line,) = render("train", table).axes[0].lines
    assert next(iter(line.get_xdata())) == 4  # a mean of fewer than 5 is noise
    last = 100 * table["accuracy"].tail(20).mean()  # 1000 steps / 50
    assert np.asarray(line.get_ydata())[-1] == pytest.approx(last)


def test_the_training_curve_of_a_table_of_means_is_that_of_all_minibatches() -> None:
    table = make(lambda rough, noise: vgg_training(rough, noise, 1001), norms=("batch",))
    means = table.assign(accuracy=table["accuracy"].rolling(5).mean())[table["step"] % 5 == 0]
    whole, fewer = (dict(zip(*line.get_data(), strict=True)) for (line,) in (
        render("train", rows).axes[0].lines for rows in (table, means)))  # fmt: skip
    assert len(fewer) > 190
    assert all(fewer[step] == pytest.approx(whole[step]) for step in fewer if step >= 25)


def test_a_diverged_run_ends_in_a_cross_and_leaves_the_other_readable() -> None:
    table = make(dln_training, "dln", norms=("none", "batch"))
    table = table[(table["norm"] == "batch") | (table["step"] <= 50)]
    table.loc[(table["norm"] == "none") & (table["step"] >= 46), "loss"] = [1e9, 1e15, 1e22, 1e30, np.inf]
    figure = render("train", table)
    assert legend(figure) == ["none", "batch", "diverged"]
    assert figure.axes[0].get_ylim()[1] < 1e12
    assert [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_marker() == "x"] == [50]


@pytest.mark.parametrize("kind", ["landscape", "smoothness", "ics"])
def test_overflows_are_marked_and_leave_the_limits_to_the_finite_values(kind: str) -> None:
    calm = make(ROWS[kind])
    columns = {"landscape": ["loss", "grad_distance"], "smoothness": ["beta", "lipschitz"], "ics": ["ics"]}[kind]
    wild = calm.copy()
    first = wild.index[(wild["norm"] == "none") & (wild["step"] < 50) & (wild.get("alpha", 4.0) == 4)]
    wild.loc[first, columns] = np.inf
    wild.loc[first[::2], columns] = 1e30
    figure = render(kind, wild)
    assert_finite(figure)
    assert legend(figure) == [*NORMS, "off scale"]
    tops = [axes.get_ylim()[1] for axes in render(kind, calm).axes]
    assert all(axes.get_ylim()[1] <= 1.5 * top for axes, top in zip(figure.axes, tops, strict=True))


def test_nan_on_the_line_is_an_overflow_too() -> None:
    table = make(landscape, norms=("none", "batch"))
    table.loc[(table["norm"] == "none") & (table["step"] == 0) & (table["alpha"] == 4), "loss"] = np.nan
    figure = render("landscape", table)
    assert "off scale" in legend(figure)
    axes = panel(figure, "L(")
    highest = max(np.asarray(line.get_ydata())[0] for line in axes.lines if len(line.get_ydata()) > 1)
    assert highest == axes.get_ylim()[1]


def test_the_landscape_over_training_is_a_band_per_norm_without_the_starting_point() -> None:
    table = make(landscape, norms=("none", "batch"))
    axes = panel(render("landscape", table), "‖g(θ)")
    assert axes.get_xlabel() == "training step"
    assert len(axes.collections) == 2
    probed = table[(table["norm"] == "batch") & (table["alpha"] > 0)].groupby("step")["grad_distance"]
    edges = [line for line in axes.lines if line.get_color() == "#0072B2" and line.get_marker() != "."]
    low, high = (np.asarray(line.get_ydata()) for line in edges)
    np.testing.assert_allclose(low, probed.min())
    np.testing.assert_allclose(high, probed.max())


def test_the_narrower_band_is_drawn_on_top() -> None:
    lines = panel(render("landscape", make(landscape, norms=("batch", "none"))), "L(").lines
    assert list(dict.fromkeys(line.get_color() for line in lines)) == ["#000000", "#0072B2"]


def test_many_bands_have_a_panel_each_on_one_scale() -> None:
    norms = ("none", "batch", "l1", "l2")
    figure = render("landscape", make(landscape, norms=norms), paper="11b,11c")
    upper, lower = figure.axes[:4], figure.axes[4:]
    assert [axes.get_title() for axes in upper] == [*norms]
    for row, ylabel in ((upper, "range of L("), (lower, "range of ")):
        assert row[0].get_ylabel().startswith(ylabel)
        assert len({axes.get_ylim() for axes in row}) == 1
        for axes in row:
            ours = {to_hex(line.get_color()) for line in axes.lines if line.get_zorder() > 1.5}
            assert len(ours) == 1
            assert len([line for line in axes.lines if line.get_zorder() == 1.5]) == 2  # the edges of the paper's band
    assert len({to_hex(axes.lines[-1].get_color()) for axes in upper}) == 4
    figure.draw_without_rendering()
    for axes in (*upper[1:], *lower[1:]):
        assert not [tick for tick in axes.yaxis.get_minor_ticks() if tick.label1.get_visible()]


def test_a_landscape_of_one_step_is_drawn_along_the_line() -> None:
    one_step = make(lambda rough, noise: landscape(rough, noise, steps=[100]), norms=("none", "batch"))
    figure = render("landscape", one_step)
    for axes in figure.axes:
        assert axes.get_xlabel().startswith("step length")
        assert "step 100" in axes.get_title()
        assert [list(line.get_xdata()) for line in axes.lines] == [[0.5, 1, 2, 4]] * 2


def test_a_landscape_of_two_learning_rates_has_a_row_for_each() -> None:
    figure = render("landscape", make(landscape, norms=("none", "batch"), lrs=(0.1, 0.5)))
    assert [axes.get_title().rsplit(", ")[-1] for axes in figure.axes] == [
        "lr 0.1",
        "lr 0.1",
        "lr 0.5",
        "lr 0.5",
    ]
    assert legend(figure) == ["none", "batch"]


def test_an_axis_is_logarithmic_only_where_the_values_span_decades() -> None:
    table = make(smoothness, norms=("batch", "linf"))
    assert panel(render("smoothness", table), "max ‖g(θ − ηg)").get_yscale() == "linear"
    table.loc[table["norm"] == "linf", ["lipschitz", "curvature"]] *= 200
    figure = render("smoothness", table)
    assert panel(figure, "max ‖g(θ − ηg)").get_yscale() == "log"
    assert panel(figure, "gᵀHg").get_yscale() == "symlog"  # it changes sign


def test_a_column_without_values_says_so() -> None:
    figure = render("smoothness", make(smoothness).assign(sharpness=np.nan))
    assert [text.get_text() for text in panel(figure, "|λ|").texts] == ["no finite data"]


def test_ics_shows_layers_over_the_depth_but_not_the_first() -> None:
    figure = render("ics", make(ics, "dln"))
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["layer 2 (linear2)", "layer 14 (linear14)", "layer 25 (linear25)"]
    assert figure.axes[0].get_yscale() == "log"
    assert panel(figure, "cos").get_ylim() == (-1.05, 1.05)


def test_ics_of_the_first_layer_alone_is_drawn_though_it_is_zero() -> None:
    figure = render("ics", make(lambda rough, noise: ics(rough, noise, layers=1), "dln"))
    assert figure.axes[0].get_title() == "layer 1 (linear1)"
    assert_finite(figure)


@pytest.mark.parametrize(("rows", "ylabel"), [(vgg_training, "accuracy (%)"), (dln_training, "loss")])
def test_ics_stands_beside_the_training_curve_of_its_own_runs(
    rows: Callable[[float, np.random.Generator], pd.DataFrame], ylabel: str
) -> None:
    figure = render("ics", make(ics, norms=("none", "batch")), training=make(rows))
    assert figure.axes[0].get_ylabel() == ylabel
    assert line_colours(figure.axes[0]) == {"#000000", "#0072B2"}


def test_training_curves_of_fewer_learning_rates_keep_the_looks_of_the_figure() -> None:
    table = pd.concat([make(ics, norms=("none",), lrs=(0.01,)), make(ics, norms=("batch",), lrs=(0.1,))])
    training = make(vgg_training, norms=("batch",), lrs=(0.1,))
    figure = render("ics", table, training=training)
    assert legend(figure) == ["none, lr 0.01", "batch, lr 0.1"]
    looks = [{line.get_marker() for line in axes.lines} for axes in figure.axes[:2]]
    assert looks[0] < looks[1]  # one of the two rates', and not a third


def test_ics_of_norms_at_several_learning_rates_has_rows_for_each_on_one_scale() -> None:
    table = make(ics, norms=("none", "batch"), lrs=(0.01, 0.1))
    table.loc[table["lr"] == 0.1, "ics"] *= 3
    figure = render("ics", table, training=make(vgg_training, norms=("none", "batch"), lrs=(0.1, 0.5)))
    titles = [axes.get_title().replace("\n", " ") for axes in figure.axes if axes.get_title()]
    layers = [f"layer {layer} (linear{layer})" for layer in (2, 14, 25)]
    expected = [f"{layer}, lr 0.01" for layer in layers], [f"{layer}, lr 0.1" for layer in layers]
    assert titles == [*expected[0], "training, mean of 4 steps, lr 0.1", *expected[1]]
    assert legend(figure) == ["none", "batch"]
    of_rate = {rate: table[table["lr"] == rate] for rate in (0.01, 0.1)}
    distances = [axes for axes in figure.axes if axes.get_title().startswith("layer")]
    assert len({axes.get_ylim() for axes in distances}) == 1
    for axes in distances:
        rows = of_rate[float(axes.get_title().rpartition("lr ")[2])]
        rows = rows[rows["layer_name"] == axes.get_title().partition("(")[2].partition(")")[0]]
        assert [[*line.get_ydata()] for line in axes.lines] == [
            rows[rows["norm"] == norm]["ics"].tolist() for norm in ("none", "batch")
        ]


def test_distributions_share_their_axes_across_norms() -> None:
    table = make(activations, norms=("none", "batch", "linf"))
    figure = render("activations", table)
    names = [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()]
    assert names == ["none\nstep", "batch\nstep", "linf\nstep", "σ² before the norm", "W₁ to the step before / std"]
    assert [axes.get_title() for axes in figure.axes[:3]] == ["conv1, unit 4", "conv2, unit 4", "conv3, unit 4"]
    for layer in range(3):
        column = [figure.axes[layer + 3 * row] for row in range(3)]
        assert len({(axes.get_xlim(), axes.get_ylim()) for axes in column}) == 1
        assert [len(axes.lines) for axes in column] == [12] * 3  # of 31 measured steps
    # The wide norm's ridges are lower than the narrow one's, in the same proportion at every bin's width.
    heights = [np.ptp(np.asarray(figure.axes[3 * row].lines[-1].get_ydata())) for row in (0, 1)]
    assert heights[0] < heights[1] / 2


def test_a_ridge_is_the_unit_s_density() -> None:
    figure = render("activations", make(activations, norms=("batch",)))
    line = figure.axes[0].lines[0]  # the last step's, at the top
    x, height = np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float) - 11
    logistic = 1 / (4 * np.cosh(x / 2) ** 2)
    np.testing.assert_allclose(height / height.max(), logistic / logistic.max(), atol=0.12)


def test_one_norm_that_is_far_wider_does_not_flatten_the_others() -> None:
    table = make(activations, norms=("none", "batch", "l1"))
    wide = table["norm"] == "none"
    table.loc[wide, ["q01", "q99"]] *= 1e4
    low, high = render("activations", table).axes[0].get_xlim()
    assert -100 < low < -4 < 4 < high < 100


def test_a_norm_whose_values_overflow_does_not_flatten_the_others() -> None:
    table = make(activations, norms=("none", "batch"))
    over = make(activations, norms=("l1",))
    over[["q01", "q99"]] = np.inf
    over["quantiles"] = [np.full(11, np.inf)] * len(over)
    alone, beside = (
        np.asarray(render("activations", rows).axes[0].lines[-1].get_ydata(), float)
        for rows in (table, pd.concat([table, over], ignore_index=True))
    )
    np.testing.assert_allclose(beside, alone)


def test_many_layers_are_shown_by_five_of_them() -> None:
    figure = render("activations", make(lambda r, n: activations(r, n, layers=25), norms=("batch",)))
    assert [axes.get_title().split(",")[0] for axes in figure.axes[:5]] == [
        "conv1",
        "conv7",
        "conv13",
        "conv19",
        "conv25",
    ]


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_the_theory_figure_plots_both_sides_for_layers_over_the_depth(layers: int) -> None:
    figure = render("theory", make(lambda r, n: theory(r, n, layers), norms=("none", "batch")))
    shown = {1: ["conv1"], 2: ["conv1", "conv2"], 4: ["conv1", "conv3", "conv4"]}[layers]
    assert [axes.get_title() for axes in figure.axes[: len(shown)]] == shown
    statements = [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel().endswith("left side")]
    words = ["theorem 4.1, gradient", "theorem 4.1, g taken at y", "theorem 4.2, curvature", "theorem 4.2, second part"]
    assert statements == [f"{word}\nleft side" for word in words]  # once a row
    dots = [line for line in figure.axes[0].lines if line.get_marker() == "."]
    assert [len(line.get_xdata()) for line in dots] == [21, 21]  # 7 steps x 3 units
    np.testing.assert_allclose(dots[0].get_xdata(), dots[0].get_ydata())
    rows = [figure.axes[place : place + len(shown)] for place in range(0, 4 * len(shown), len(shown))]
    for row in rows:
        assert len({(each.get_xlim(), each.get_xscale(), each.get_ylim(), each.get_yscale()) for each in row}) == 1
        assert (row[0].get_xlim(), row[0].get_xscale()) == (row[0].get_ylim(), row[0].get_yscale())
    reductions = [axes for axes in figure.axes if axes.get_title().startswith("reduction")]
    assert [axes.get_yscale() for axes in reductions] == ["log", "log"]
    assert_finite(figure)


def test_the_theory_figure_of_an_older_table_leaves_out_statement_4_2b() -> None:
    table = make(theory, norms=("none", "batch"))
    titles = [axes.get_title() for axes in render("theory", table[table["statement"] != "4.2b"]).axes]
    assert "curvature along the step ≥ 0" in titles
    assert not [title for title in titles if "second part" in title or title == "curvature along g ≥ 0"]


def test_ticks_of_an_axis_through_zero_stay_apart() -> None:
    figure = render("theory", make(theory, norms=("none", "batch")))
    figure.draw_without_rendering()
    signed = [axes for axes in figure.axes if axes.get_xscale() == "symlog"]
    assert signed
    for axes in signed:
        boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
        assert len(boxes) >= 3
        assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_compare_puts_the_best_first_and_says_what_diverged_or_fell_short() -> None:
    table = make(compared, norms=("none", "l1", "batch"), seeds=(0, 1))
    table.loc[table["norm"] == "none", "steps_to_accuracy"] = np.nan
    table.loc[(table["norm"] == "l1") & (table["seed"] == 1), ["diverged_at", "final_test_accuracy"]] = [
        9,
        np.nan,
    ]
    figure = render("compare", table)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["batch", "l1", "none"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["1 of 2"]
    assert legend(figure) == ["diverged"]
    assert [text.get_text() for text in figure.axes[1].texts] == ["not reached, 2 of 2"]
    diverged = render("compare", table.assign(diverged_at=5.0, final_test_accuracy=np.nan, final_loss=np.nan))
    assert [text.get_text() for text in diverged.axes[0].texts] == ["diverged, 2 of 2"] * 3


def test_names_of_rows_that_take_several_lines_stay_apart() -> None:
    name = "a_module_with_a_long_name:a_class_with_a_longer_one_{}"
    figure = render("compare", make(compared, norms=tuple(map(name.format, "abcdef"))))
    figure.draw_without_rendering()
    for axes in figure.axes:
        boxes = [label.get_window_extent() for label in axes.get_yticklabels() if label.get_text()]
        assert all(upper.y0 >= lower.y1 for upper, lower in itertools.pairwise(boxes))


def test_compare_of_a_regression_ranks_by_loss_and_leaves_out_what_was_not_measured() -> None:
    table = make(compared, "dln").assign(final_test_accuracy=np.nan, beta=np.nan, predictiveness=np.nan)
    figure = render("compare", table)
    assert [axes.get_title() for axes in figure.axes] == ["final training loss", "steps to loss 0.5"]
    assert figure.axes[0].get_yticklabels()[0].get_text() == "batch"


def test_the_same_table_given_twice_is_drawn_once() -> None:
    table = make(smoothness, norms=("batch",))
    assert len(render("smoothness", pd.concat([table, table])).axes[0].lines) == 1


def test_figures_need_neither_torch_nor_pyplot() -> None:
    code = "import sys, bnsmooth_cli.figures; print({'torch', 'matplotlib.pyplot'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_labels_of_a_logarithmic_comparison_stay_apart():
    table = pd.DataFrame({"run": list("abc"), "problem": "dln", "norm": ["none", "batch", "l1"], "lr": 1e-6, "seed": 0})
    table = table.assign(final_loss=[2e4, 5e3, 5e3], predictiveness=[6e4, 3.9e5, 1.7e4])
    missing = {name: np.nan for name in SCHEMAS["compare"] if name not in table}
    figure = render("compare", table.assign(**missing))
    figure.draw_without_rendering()
    for axes in figure.axes:
        ticks = [*axes.xaxis.get_major_ticks(), *axes.xaxis.get_minor_ticks()]
        boxes = sorted((t.label1.get_window_extent() for t in ticks if t.label1.get_text()), key=lambda box: box.x0)
        shown = [box for box in boxes if axes.bbox.x0 - 5 < (box.x0 + box.x1) / 2 < axes.bbox.x1 + 5]
        assert len(shown) >= 2
        assert all(left.x1 < right.x0 for left, right in itertools.pairwise(shown))


def test_smoothness_by_layer_is_the_median_over_the_steps() -> None:
    table = make(smoothness_by_layer, norms=("batch",))
    figure = render("smoothness-by-layer", table)
    assert [axes.get_title() for axes in figure.axes] == [
        f"{name}\nmedian over 3 measured steps"
        for name in ("effective β-smoothness", "sharpness", "curvature along the gradient")
    ]
    medians = table.groupby("layer")[["beta", "sharpness", "curvature"]].median()
    for axes, expected in zip(figure.axes, [medians["beta"], -medians["sharpness"], medians["curvature"]], strict=True):
        (line,) = axes.lines
        assert (axes.get_xlabel(), [*line.get_xdata()]) == ("layer", [*range(1, 9)])
        np.testing.assert_allclose(line.get_ydata(), expected)


def test_a_figure_of_one_step_has_its_tick_alone() -> None:
    table = make(smoothness, norms=("none", "batch"))
    for axes in render("smoothness", table[table["step"] == table["step"].max()]).axes:
        assert axes.get_xticks().tolist() == [table["step"].max()]
        assert axes.get_xlim()[0] > table["step"].max() - 2


def test_smoothness_by_layer_of_one_step_is_its_values() -> None:
    table = make(lambda r, n: smoothness_by_layer(r, n, steps=[1500], layers=25), norms=("none", "batch"), seeds=(0, 1))
    axes = render("smoothness-by-layer", table).axes[0]
    assert axes.get_title() == "effective β-smoothness\nstep 1,500"
    runs = [line for line in axes.lines if line.get_linewidth() < 1]
    np.testing.assert_array_equal(runs[0].get_ydata(), table[table["run"] == table["run"].iloc[0]]["beta"])
    assert min(axes.get_xticks()[axes.get_xticks() > axes.get_xlim()[0]]) >= 1


def edges(figure):
    """The panels with a line of the edge of stability, by their titles, and the values of each line."""
    return {
        axes.get_title(): [float(value) for value in line.get_ydata()]
        for axes in figure.axes
        for line in axes.lines
        if line.get_zorder() == 1.5  # below the curves
    }


def test_each_sharpness_is_drawn_beside_its_threshold():
    sgd, adam = (make(lambda rough, noise, name=name: stability(rough, noise, name)) for name in ("sgd", "adam"))
    found = edges(render("smoothness", sgd))
    assert {*found} == {"sharpness", "batch sharpness", "critical learning rate"}
    assert {*found["sharpness"]} == {*found["batch sharpness"]} == {20.0}
    assert {*found["critical learning rate"]} == {0.1}
    found = edges(render("smoothness", adam))  # the gradient is not Adam's step, and 2 / lr is not its edge
    assert {*found} == {"preconditioned sharpness"}
    one = adam[adam["norm"] == "batch"]
    assert found["preconditioned sharpness"] == pytest.approx([*one["threshold"].dropna()])
    found = edges(render("smoothness-update", adam.assign(direction="update")))
    assert {*found} == {"preconditioned sharpness", "critical learning rate, along the update"}
    momentum = sgd.assign(threshold=38.0)
    assert {*edges(render("smoothness", momentum))} == {"sharpness"}
    old = render("smoothness", sgd[[*make(smoothness)]])
    assert not edges(old)
    assert len(old.axes) == 4


def test_thresholds_of_several_learning_rates_are_drawn_for_each():
    table = pd.concat([make(lambda rough, noise, lr=lr: stability(rough, noise, lr=lr), lrs=[lr]) for lr in (0.1, 0.5)])
    figure = render("smoothness", table)
    assert legend(figure)[-2:] == ["edge of stability, lr 0.1", "edge of stability, lr 0.5"]
    assert {*edges(figure)["sharpness"]} == {4.0}  # the last line
    (axes,) = (axes for axes in figure.axes if axes.get_title() == "sharpness")
    assert [line.get_marker() for line in axes.lines if line.get_zorder() == 1.5] == ["", "s"]


def test_thresholds_that_differ_between_norms_are_drawn_for_each():
    table = make(stability)
    table.loc[table["norm"] == "batch", "threshold"] *= 2
    assert {"edge of stability, batch", "edge of stability, none"} <= {*legend(render("smoothness", table))}
