"""The paper's own figures: the tables in the package, the overlay of `plot --paper`, and the distances.

`python tests/test_paper.py` makes the tables in bnsmooth_cli/paper/tables/ anew from the CSV files of CSV.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_tables import LINES, activations, dln_training, ics, landscape, make, smoothness, vgg_training
from helpers import legend
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from bnsmooth_cli import kinds, paper
from bnsmooth_cli.config import resolve
from bnsmooth_cli.errors import InputError, Remark
from bnsmooth_cli.figures import plot_tables, render
from bnsmooth_cli.figures.landscape import colours
from bnsmooth_cli.paper.matching import distances, select
from bnsmooth_cli.storage.tables import save_table

TABLES = Path(paper.__file__).with_name("tables")
#: The digitised figures, one CSV file each, named by the figure numbers of arXiv v3. They are not in the repository.
CSV = Path(__file__).parents[2] / "shared/paper"

NORMS = {"standard": "none", "batch": "batch", "noisy": "noisy-batch", "l1": "l1", "l2": "l2", "linf": "linf"}
LRS = {"vgg": 0.1, "dln": 1e-6}
QUANTITIES = {
    "l2_difference": "ics", "cosine": "cosine", "abs_mu_step_change": "mean_change",
    "abs_sigma2_step_change": "var_change", "mu_minus_mu0": "mean_drift", "sigma2_minus_sigma20": "var_drift",
}  # fmt: skip
#: Published number -> the CSV file, and the tolerance of the values that are not vertices of the drawing.
SOURCES = {
    "1a": ("fig01a", "0.06 points"), "1b": ("fig01b", ""), "2": ("fig02", "0.05 points"),
    "3a-accuracy": ("fig03a_accuracy", "0.07 points"), "3a-ics": ("fig03a_ics", "ics 2%, cosine 0.002"),
    "3b-loss": ("fig03b_loss", "0.4%"), "3b-ics": ("fig03b_ics", "ics 2%, cosine 0.003"),
    "4a": ("fig04a", ""), "4b": ("fig04b", ""), "4c": ("fig04c", "0.03"),
    "7a": ("fig08a", "0.0008 to 0.0016"), "7b": ("fig08b", "0.0008 to 0.0016"),
    "9a": ("fig10a", ""), "9b": ("fig10b", ""), "9c": ("fig10c", "1.4%"),
    "10a": ("fig11a", ""), "10b": ("fig11b", ""),
    "11a": ("fig12a", "0.05 points"), "11b": ("fig12b", ""), "11c": ("fig12c", ""), "11d": ("fig12d", "0.05"),
    "12a": ("fig13a", "0.34%"), "12b": ("fig13b", ""), "12c": ("fig13c", ""), "12d": ("fig13d", "1.2%"),
    "13a": ("fig05a", "0.07 points"), "13b": ("fig05b", "0.5%"),
}  # fmt: skip
_DECADE = (
    "the decades of the axis of the right-hand panel ({}) are not labelled: ics may be off by a power of ten there"
)
_AFTER = "the curves seem to begin after the first update, so that `step` may be one too low"
INFERRED = {
    "3a-ics": [_DECADE.format("layer 10")], "3b-ics": [_DECADE.format("layer 17")], "12a": [_AFTER], "13b": [_AFTER],
    "10b": ["alpha 30 is the text's; the vertex is drawn at 10^-4.5, which `step_size` has"],
}  # fmt: skip
for _name in ("4b", "11c"):
    INFERRED[_name] = ["the axis is taken for linear, by the rounding errors of the smallest values"]


def converted(name: str) -> pd.DataFrame:
    """A figure in the columns of our tables, from its CSV file."""
    (figure,) = paper.find(name)
    rows = pd.read_csv(CSV / f"{SOURCES[name][0]}.csv")
    rows["norm"] = rows["series"].map(NORMS)
    rows["lr"] = rows["lr"] if "lr" in rows else LRS[figure.problem]
    rows["drawn"] = rows["drawn"] == 1 if "drawn" in rows else True
    keys = ["norm", "lr"]
    if figure.kind == "landscape":
        rows["alpha"] = (rows["x"] / rows["lr"]).round(2).replace(31.62, 30.0)
        rows = rows.rename(columns={"x": "step_size", "y": "grad_distance"})
        keys += ["step", "alpha", "step_size"]
    else:
        rows = rows.rename(columns={"x": "step"})
        keys += [*(["layer"] if "layer" in rows else []), "step"]
    if "quantity" in rows:
        rows["quantity"] = rows["quantity"].map(QUANTITIES)
        values = rows.pivot(index=keys, columns="quantity", values="y")
        rows = values.join(rows.groupby(keys)["drawn"].all()).reset_index()
    elif "low" in rows:
        rows = rows.rename(columns=dict(zip(("low", "high"), figure.columns(), strict=True)))
    elif "y" in rows:
        rows = rows.rename(columns={"y": figure.columns()[0]})
    for axis in figure.axes:
        rows[list(axis.columns)] /= axis.per_column
    rows["run"] = [f"paper-{figure.problem}-{norm}-lr{lr:g}" for norm, lr in zip(rows["norm"], rows["lr"], strict=True)]
    rows = rows.assign(problem=figure.problem, seed=0)
    rows = rows.sort_values(
        "norm", key=lambda norm: norm.map([*NORMS.values()].index), kind="stable", ignore_index=True
    )
    return rows[["run", "problem", *keys[:2], "seed", *keys[2:], *figure.columns(), "drawn"]]


def write(name: str) -> None:
    provenance = {
        "source": "Santurkar et al. (2018), arXiv 1805.11604v3",
        "figure": name,
        "figure in arXiv v3": SOURCES[name][0].removeprefix("fig").lstrip("0"),
        "read": "from the drawing operators of the vector graphics, rounded to 5 significant digits",
        "drawn": "false: the plotting library left out a vertex of the row on simplifying the path, and the value is "
        "interpolated along the drawn line, within 1/9 pt of it",
        "tolerance": SOURCES[name][1] or "all values are vertices of the drawing",
        "inferred": "; ".join([*INFERRED.get(name, []), "seed: the paper states none"]),
    }
    table = pa.Table.from_pandas(converted(name), preserve_index=False)
    table = table.replace_schema_metadata({paper.METADATA_KEY: json.dumps(provenance)})
    pq.write_table(table, TABLES / f"{name}.parquet", compression="zstd", compression_level=19)


@pytest.mark.skipif(not CSV.is_dir(), reason="the CSV files of the paper's figures are not here")
@pytest.mark.parametrize("name", paper.figures())
def test_a_table_is_its_csv_file(name: str) -> None:
    pd.testing.assert_frame_equal(paper.read(name), converted(name), check_dtype=True, check_exact=True)


def test_every_figure_has_its_columns_and_its_provenance() -> None:
    for figure in paper.FIGURES:
        table = paper.read(figure.name)
        assert {*figure.columns()} <= {*table} <= {*kinds.get(figure.kind).columns, "drawn"}
        assert not table.isna().any(axis=None)
        assert set(table["problem"]) == {figure.problem}
        provenance = table.attrs["paper"]
        assert provenance["figure"] == figure.name
        assert "1805.11604v3" in provenance["source"]
    assert sum(path.stat().st_size for path in TABLES.iterdir()) < 500_000
    assert {path.stem for path in TABLES.iterdir()} == {*paper.figures()}


@pytest.mark.parametrize(
    ("name", "where", "values"),
    [
        ("1a", "norm == 'none' and lr == 0.1 and step == 200", {"accuracy": 0.33594}),
        ("1b", "norm == 'batch' and lr == 0.1 and step == 15000", {"test_accuracy": 0.8287}),
        ("3b-loss", "norm == 'batch' and lr == 1e-6 and step == 0", {"loss": 55_835}),
        ("3b-ics", "norm == 'none' and lr == 1e-6 and step == 100 and layer == 9", {"ics": 37_295}),
        ("4a", "norm == 'none' and step == 0", {"loss_min": 4.2667, "loss_max": 4.2882}),
        ("4b", "norm == 'batch' and step == 0", {"predictiveness_max": 144.7}),
        ("4c", "norm == 'none' and step == 0", {"beta": 11.523}),
        ("7a", "norm == 'none' and layer == 2 and step == 100", {"mean_change": 0.06056}),
        ("10a", "norm == 'none' and step == 100 and alpha == 4", {"step_size": 0.4, "grad_distance": 10.671}),
        ("10b", "norm == 'none' and step == 50 and alpha == 0.01", {"step_size": 1e-8, "grad_distance": 165.38}),
    ],
)
def test_values_of_the_papers_figures(name: str, where: str, values: dict[str, float]) -> None:
    (row,) = paper.read(name).query(where).to_dict("records")
    assert {column: row[column] for column in values} == pytest.approx(values, rel=1e-4)


def test_the_rows_of_a_run_are_merged_over_the_figures() -> None:
    rows = paper.rows("smoothness", "vgg", "batch", 0.1)
    assert list(rows) == list(kinds.get("smoothness").columns)
    first = paper.read("4b").query("norm == 'batch'").set_index("step")["predictiveness_max"]
    assert (rows.set_index("step")["predictiveness_max"] == first).all()
    assert paper.rows("smoothness", "vgg", "l1", 0.1).attrs["figures"] == ["11b", "11c", "11d"]
    # Figure 12a shows this run too, at steps that are one too low: the two are never mixed.
    training = paper.rows("train", "dln", "batch", 1e-6)
    assert training.attrs["figures"] == ["3b-loss"]
    assert list(training["step"]) == list(range(0, 10_001, 50))
    assert paper.rows("train", "vgg", "batch", 0.5)["test_accuracy"].count() == 16
    assert len(paper.rows("ics", "dln", "batch", 1e-7)) == 2 * 200


def test_a_run_that_the_paper_does_not_show_has_no_rows() -> None:
    for rows in (paper.rows("smoothness", "vgg", "layer", 0.1), paper.rows("smoothness", "vgg", "none", 0.2)):
        assert rows.empty
        assert list(rows) == list(kinds.get("smoothness").columns)


@pytest.mark.parametrize("name", ["6", "4d", "", "figure 4", "../4c", "4", "1", "3a-"])
def test_an_unknown_figure_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(InputError, match=r"unknown figure of the paper.*known: 1a, 1b, .*13b"):
        paper.read(name)


def axes_of(figure: Figure, title: str) -> Axes:
    (found,) = (axes for axes in figure.axes if axes.get_title().startswith(title))
    return found


def under(axes: Axes) -> dict[str, list[float]]:
    """The lines below ours: their colours and values."""
    return {
        to_hex(line.get_color()): [*map(float, line.get_ydata())] for line in axes.lines if line.get_zorder() == 1.5
    }  # type: ignore[arg-type]


def with_steps(table: pd.DataFrame) -> pd.DataFrame:
    """An invented table, whose steps are 10 apart, with the paper's steps."""
    return table.assign(step=10 * table["step"])


def moments(rough: float, noise: np.random.Generator) -> pd.DataFrame:
    rows = activations(rough, noise, layers=13)
    columns = ("mean_change", "var_change", "mean_drift", "var_drift")
    return rows.assign(**dict.fromkeys(columns, rough * noise.uniform(0.01, 0.02, len(rows))))


def test_the_papers_curves_are_drawn_under_ours_and_named_in_the_legend() -> None:
    table = make(smoothness, norms=("none", "batch", "layer"), lrs=(0.1, 0.5))
    figure = render("smoothness", table, paper="4c")
    ours = [f"{norm}, lr {lr}" for norm in ("none", "batch", "layer") for lr in (0.1, 0.5)]
    assert legend(figure)[:8] == [*ours, "paper: none, lr 0.1", "paper: batch, lr 0.1"]
    drawn = under(axes_of(figure, "effective"))
    assert len(drawn) == 2
    curve = paper.read("4c").query("norm == 'none'")
    up_to_ours = curve[curve["step"] <= table["step"].max()]
    assert 1 < len(up_to_ours) < len(curve)  # a short run would be a sliver of the paper's
    assert up_to_ours["beta"].tolist() in drawn.values()
    assert not under(axes_of(figure, "Lipschitz"))


def test_a_band_of_the_paper_is_its_two_edges() -> None:
    table = make(landscape, norms=("none",), lrs=(0.1,))
    for names, count in (("4a", 1), ("4", 2), ("4a, 4b", 2), ("11b", 1)):
        figure = render("landscape", table, paper=names)
        assert sum(bool(under(axes)) for axes in figure.axes) == count
    loss = axes_of(figure, "loss range")
    assert loss.get_yscale() == "log"  # as in the paper
    edges = [[*map(float, line.get_ydata())] for line in loss.lines if line.get_zorder() == 1.5]  # type: ignore[arg-type]
    shown = paper.read("11b").query("norm == 'none'")
    shown = shown[shown["step"] <= table["step"].max()]
    assert edges == [shown["loss_min"].tolist(), shown["loss_max"].tolist()]


def test_under_the_papers_curves_lengths_are_summed_over_tensors_as_there() -> None:
    table = make(landscape, norms=("none",), lrs=(0.1,)).assign(
        grad_distance_summed=lambda rows: 3 * rows.grad_distance
    )
    for names, times, formula in (("4a", 1, "‖g(θ) − g(θ − ηg)‖"), ("4b", 3, "Σ ‖g(θ) − g(θ − ηg)‖ (tensors)")):
        axes = axes_of(render("landscape", table, paper=names), "gradient predictiveness range")
        low, _, high, _ = (np.array(line.get_ydata()) for line in axes.lines if line.get_zorder() != 1.5)  # and dots
        changes = table[table["alpha"] > 0].groupby("step")["grad_distance"]
        np.testing.assert_allclose([low, high], [times * changes.min(), times * changes.max()])
        assert axes.get_ylabel().replace("\n", " ") == formula
    part = pd.concat([table, make(landscape, norms=("batch",), lrs=(0.1,))])  # which has no sums
    assert axes_of(render("landscape", part, paper="4b"), "gradient predictiveness range").get_ylabel()[0] == "‖"


def test_other_settings_than_those_of_the_preset_paper_are_said() -> None:
    table = make(vgg_training, norms=("none",), lrs=(0.1,))

    def of(**settings: Any) -> pd.DataFrame:
        return table.assign(settings=resolve("vgg", "paper", **settings).settings_text)

    with pytest.warns(Remark, match=r"vgg have width 0.25, 300 steps where the preset paper has width 1, 15,000 steps"):
        render("train", of(width=0.25, steps=300), paper="1a")
    with warnings.catch_warnings():
        warnings.simplefilter("error", Remark)
        render("train", of(data="folder/cifar10"), paper="1a")
        render("train", of(width=0.25))


def test_the_layers_of_the_paper_are_shown_where_the_table_has_them() -> None:
    table = make(ics, "vgg", norms=("none",))
    training = make(vgg_training, norms=("none",))
    figure = render("ics", table, training, paper="3a")
    assert [axes.get_title().partition(" (")[0] for axes in figure.axes[1:3]] == ["layer 5", "layer 10"]
    assert len(under(figure.axes[0])) == len(under(figure.axes[1])) == 1
    assert [x.name for x in select("3", "ics", {"ics": table})] == ["3a-ics"]
    others = pd.concat([training, make(dln_training, "dln", norms=("none",), lrs=(1e-6,))])  # of runs without ics
    assert len(render("ics", table, others, paper="3").axes) == len(figure.axes)
    only = render("ics", table[table["layer"].isin([1, 7, 10])], paper="3a-ics")
    assert [axes.get_title() for axes in only.axes if axes.get_title()] == ["layer 10 (linear10)"]


def test_the_papers_curves_end_where_the_problems_own_table_does() -> None:
    vgg = with_steps(make(smoothness, norms=("none",)))
    dln = vgg.assign(problem="dln", lr=1e-6, run="dln", step=2 * vgg["step"])
    figure = render("smoothness", pd.concat([vgg, dln]), paper="4c,9c")
    panels = [axes for axes in figure.axes if axes.get_title().startswith("effective β")]
    for axes, table, name in zip(panels, (vgg, dln), ("4c", "9c"), strict=True):
        shown = paper.read(name).query("norm == 'none'")
        (values,) = under(axes).values()
        assert 1 < len(values) == (shown["step"] <= table["step"].max()).sum() < len(shown)


def test_the_paper_selects_the_figure_of_the_kind() -> None:
    table = with_steps(make(landscape, norms=("none", "batch")))
    figure = render("landscape", table, paper="10")
    assert legend(figure) == ["paper: light to dark, from early to late"]
    theirs = [step for step in paper.read("10a")["step"].unique() if step <= table["step"].max()]
    assert len(axes_of(figure, "none").lines) == table["step"].nunique() + len(theirs)
    assert len(render("activations", make(moments, norms=("none",)), paper="7").axes) == 3 * 4
    assert under(render("train", make(vgg_training), paper="1a").axes[0])


@pytest.mark.parametrize(
    ("kind", "names", "figure", "words"),
    [
        ("smoothness", "4d", None, "unknown figure of the paper '4d'.*known: 1a, 1b"),
        ("smoothness", "", None, "unknown figure of the paper ''"),
        ("smoothness", "4c,", None, "unknown figure of the paper ''"),
        (
            "smoothness",
            "4a",
            None,
            "4a: this figure is drawn from tables of kind landscape --figure bands, not smoothness",
        ),
        ("landscape", "4a", "steps", "kind landscape --figure bands, not landscape --figure steps"),
        ("landscape", "4a,10a", None, "drawn in several figures, --figure bands and --figure steps; give those of one"),
        (
            "smoothness",
            "9c",
            None,
            "9c: this figure shows dln with none, batch at lr 1e-06; the table has only vgg with",
        ),
        ("smoothness", "4c,9c", None, "9c: this figure shows dln"),
        ("theory", "4", None, "this figure is drawn from tables of kind landscape"),
        ("compare", "4", None, "this figure is drawn from tables of kind landscape"),
        ("landscape-random", "4a", None, "kind landscape --figure bands, not landscape-random"),
        ("landscape", "4a", "rows", "unknown figure of a landscape table 'rows'.*known: bands, steps"),
    ],
)
def test_figures_of_the_paper_that_do_not_fit_are_refused(
    kind: str, names: str, figure: str | None, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        render(kind, make(LINES[kind], norms=("none", "batch")), figure=figure, paper=names)


def test_a_table_without_the_papers_norms_learning_rates_or_layers_is_refused() -> None:
    for table in (make(smoothness, norms=("layer", "l1")), make(smoothness, lrs=(0.2,))):
        with pytest.raises(InputError, match=r"shows vgg with none, batch at lr 0.1; the table has only"):
            render("smoothness", table, paper="4c")
    with pytest.raises(InputError, match=r"shows vgg with none, batch at lr 0.1, 0.01, layers 5, 10.*layers 1, 2, 3"):
        render("ics", make(lambda rough, noise: ics(rough, noise, layers=3), norms=("none",)), paper="3")


def beside(name: str, kind: str, change: Callable[[pd.DataFrame], pd.DataFrame], seeds: int = 1) -> pd.DataFrame:
    """The distances of the paper's own figure, changed, from the figure."""
    ours = change(paper.read(name))
    table = pd.concat([ours.assign(run=f"{seed}", seed=seed) for seed in range(seeds)])
    return distances(select(name, kind, {kind: table}), {kind: table})


def test_the_distance_of_a_logarithmic_axis_is_in_decades() -> None:
    found = beside("3b-loss", "train", lambda rows: rows.assign(loss=100 * rows["loss"]))
    assert found["distance"].tolist() == pytest.approx([2, 2, 2, 2])
    assert set(found["unit"]) == {"decades"}
    assert found[["norm", "lr"]].to_numpy().tolist() == [
        ["none", 1e-6],
        ["none", 1e-7],
        ["batch", 1e-6],
        ["batch", 1e-7],
    ]


def test_the_distance_of_a_linear_axis_is_in_its_units() -> None:
    found = beside("1b", "train", lambda rows: rows.assign(test_accuracy=rows["test_accuracy"] - 0.03))
    assert found["distance"].tolist() == pytest.approx([3, 3, 3, 3])
    assert set(found["unit"]) == {"points"}
    layers = beside("3a-ics", "ics", lambda rows: rows.assign(cosine=rows["cosine"] + 0.1 * (rows["layer"] == 10)))
    assert layers.query("quantity == 'ics'")["distance"].tolist() == [0] * 8
    assert layers.query("quantity == 'cosine'").groupby("layer")["distance"].mean().tolist() == pytest.approx([0, 0.1])


def test_the_distance_is_a_median_over_common_steps_of_the_median_over_seeds() -> None:
    def change(rows: pd.DataFrame) -> pd.DataFrame:
        apart = rows["step"].map({0: 1.0, 100: 2.0, 200: 7.0, 300: np.nan})
        return rows.assign(beta=rows["beta"] + apart)[(rows["step"] < 400) & (rows["norm"] == "none")]

    found = beside("4c", "smoothness", change)
    assert found[["norm", "steps", "distance"]].to_numpy().tolist() == [["none", 3, 2.0]]
    three = pd.concat(
        [paper.read("4c").assign(run=str(plus), beta=paper.read("4c")["beta"] + plus) for plus in (1, 5, 9)]
    )
    assert set(distances(paper.find("4c"), {"smoothness": three})["distance"].round(9)) == {5.0}
    none = beside("4c", "smoothness", lambda rows: rows.assign(step=rows["step"] + 1))
    assert none["steps"].tolist() == [0, 0]
    assert none["distance"].isna().all()


def test_the_distance_of_a_band_counts_both_edges_over_the_step_lengths() -> None:
    bands = paper.read("4a")
    line = pd.concat(
        [bands.assign(alpha=alpha, grad_distance=1.0, loss=loss) for alpha, loss in
         ((0, 1e-9), (0.5, bands["loss_min"]), (1, (bands["loss_min"] + bands["loss_max"]) / 2),
          (4, 10 * bands["loss_max"]))]
    )  # fmt: skip
    found = distances(select("4a", "landscape", {"landscape": line}), {"landscape": line})
    assert found["distance"].tolist() == pytest.approx([0.5, 0.5])  # between 0 of the lower and 1 of the upper edges
    assert found["quantity"].tolist() == ["loss", "loss"]
    overflow = line.assign(loss=np.nan)
    assert np.isinf(distances(paper.find("4a"), {"landscape": overflow})["distance"]).all()


def test_the_distance_of_figure_10_takes_the_step_lengths_that_both_have() -> None:
    found = beside("10b", "landscape", lambda rows: rows.assign(grad_distance=10 * rows["grad_distance"], loss=1.0))
    assert found["distance"].tolist() == pytest.approx([1, 1])
    few = beside("10b", "landscape", lambda rows: rows[rows["alpha"] != 1].assign(loss=1.0))
    assert few["distance"].tolist() == [0, 0]


def test_the_command_draws_the_figure_and_prints_the_distances(
    cli: Callable[[str], tuple[int, str, str]], tmp_path: Path
) -> None:
    table = with_steps(make(landscape, norms=("none", "batch")))
    save_table(table, tmp_path / "t.parquet")
    status, said, _ = cli("plot t.parquet --paper 4 -o f.png")
    assert status == 0
    path, _, head, *rows = said.splitlines()
    assert path == "f.png"
    assert head.split() == ["figure", "quantity", "problem", "norm", "lr", "steps", "distance", "unit"]
    assert [row.split()[:4] for row in rows] == [
        [name, quantity, "vgg", norm]
        for name, quantity in (("4a", "loss"), ("4b", "predictiveness"))
        for norm in ("none", "batch")
    ]
    assert [float(row.split()[6]) for row in rows] == pytest.approx(
        plot_tables([tmp_path / "t.parquet"], tmp_path / "g.png", paper="4")["distance"].tolist(), rel=0.01
    )
    assert cli("plot t.parquet -o f.png --force")[1] == "f.png\n"
    status, said, complaint = cli("plot t.parquet --paper 4c -o new.png")
    assert (status, said, (tmp_path / "new.png").exists()) == (2, "", False)
    assert complaint.count("\n") == 1
    assert "t.parquet: --paper 4c: this figure is drawn from tables of kind smoothness" in complaint
    assert cli("plot t.parquet --figure steps -o steps.png")[0] == 0
    status, _, complaint = cli("plot t.parquet --figure lines -o new.png")
    assert (status, complaint.count("\n")) == (2, 1)
    assert "known: bands, steps" in complaint


def test_figure_10_has_a_line_for_each_step_from_early_to_late() -> None:
    table = make(landscape, norms=("none", "batch"), lrs=(0.1, 0.5), seeds=(0, 1, 2))
    figure = render("landscape", table, figure="steps")
    titles = [axes.get_title().partition(", along")[0] for axes in figure.axes[:4]]
    assert titles == ["none, lr 0.1", "batch, lr 0.1", "none, lr 0.5", "batch, lr 0.5"]
    first = figure.axes[0].lines
    assert len(first) == table["step"].nunique()
    assert to_hex(first[0].get_color()) == to_hex(colours()(0.0))
    assert to_hex(first[-1].get_color()) == to_hex(colours()(1.0))
    expected = table.query("norm == 'none' and lr == 0.1 and step == 0 and alpha > 0").groupby("step_size")
    assert [*map(float, first[0].get_ydata())] == pytest.approx(expected["grad_distance"].median().tolist())  # type: ignore[arg-type]
    for axes in figure.axes[:4]:
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert figure.axes[4].get_xlabel() == "training step"


def test_figure_10_marks_the_lines_that_leave_its_axis() -> None:
    table = make(landscape, norms=("none",))
    longest = table["alpha"] == table["alpha"].max()
    table.loc[longest & (table["step"] == 0), "grad_distance"] = np.inf
    figure = render("landscape", table, figure="steps")
    assert legend(figure) == ["off scale"]
    (mark,) = (line for line in figure.axes[0].lines if line.get_marker() == "^")
    assert [*mark.get_xdata()] == pytest.approx([table["step_size"].max()])  # type: ignore[call-overload]


def test_figure_7_shows_one_unit_of_each_layer() -> None:
    table = make(moments, norms=("none", "batch"), seeds=(0, 1))
    table = table[table["layer"].isin([2, 9])]
    figure = render("activations", table, figure="moments")
    titles = [axes.get_title().split("\n") for axes in figure.axes]
    assert [title[0] for title in titles] == ["conv2, unit 4"] * 4 + ["conv9, unit 4"] * 4
    assert [title[1] for title in titles[:4]] == [
        "change of the mean", "change of the variance", "drift of the mean", "drift of the variance",
    ]  # fmt: skip
    drawn = [*map(float, figure.axes[0].lines[0].get_ydata())]  # type: ignore[arg-type]
    unit = table.query("norm == 'none' and seed == 0 and layer == 2 and unit == 4")
    assert drawn == pytest.approx(unit["mean_change"].tolist())


def test_saturated_points_are_marked_hollow_beside_the_line_of_their_value() -> None:
    table = make(smoothness, norms=("none", "batch"), lrs=(0.1, 0.5))
    plain = render("smoothness", table)
    assert not any("saturated" in text for text in legend(plain))
    marked = table["step"] >= 200
    figure = render("smoothness", table.assign(saturated=marked.astype(object), beta_alpha=np.where(marked, 0.5, 2)))
    assert legend(figure)[-2:] == ["saturated probe", "saturated probe: 1 / (0.5 lr)"]
    axes = axes_of(figure, "effective")
    hollow = [line for line in axes.lines if line.get_markerfacecolor() == "none"]
    assert sum(len(line.get_xdata()) for line in hollow) == marked.sum()
    levels = {float(line.get_ydata()[0]) for line in axes.lines if [*line.get_xdata()] == [0, 1]}  # type: ignore[index]
    assert levels == {20.0, 4.0}
    unmeasured = table.assign(saturated=None, beta_alpha=np.nan)
    assert legend(render("smoothness", unmeasured)) == legend(plain)


@pytest.mark.parametrize(("kind", "drawing"), [("landscape", "bands"), ("landscape", "steps"), ("smoothness", None)])
def test_figures_of_other_directions_say_so(kind: str, drawing: str | None) -> None:
    for name, words, others in (
        (kind, "along the gradient", "along a random direction"),
        (f"{kind}-random", "along a random direction", "along the gradient"),
        (f"{kind}-update", "along the update", "along the gradient"),
    ):
        figure = render(name, make(LINES[name], norms=("none",)), figure=drawing)
        titles = " ".join(axes.get_title() for axes in figure.axes)
        assert words in titles
        assert others not in titles
        formulas = " ".join(axes.get_ylabel() for axes in figure.axes)
        assert ("ηd" in formulas) == ("ηg" not in formulas) == (name != kind)


if __name__ == "__main__":
    for name in paper.figures():
        write(name)


def test_lengths_of_the_gradients_change_are_compared_in_both_ways_if_the_table_has_both():
    table = paper.read("10a").assign(loss=1.0)
    table["grad_distance_summed"], table["grad_distance"] = table["grad_distance"], table["grad_distance"] / 10
    apart = distances(paper.find("10a"), {"landscape": table}).set_index(["quantity", "norm"])["distance"]
    assert apart[("grad_distance", "batch")] == pytest.approx(1.0)
    assert apart[("grad_distance, summed", "batch")] == pytest.approx(0.0, abs=1e-12)
