"""The distributions of activations against their definitions, and how far they move."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from helpers import NORMS
from scipy import stats

import bnsmooth_cli as bns
from bnsmooth_cli.measures.activations import PROBABILITIES, moved
from bnsmooth_cli.measures.measuring import measure
from bnsmooth_cli.points.reaching import visit

CASES = [(problem, dtype, norm) for problem in ("vgg", "dln") for dtype in ("float32", "float64") for norm in NORMS]


@pytest.mark.parametrize(("problem", "dtype", "norm"), CASES)
def test_a_row_is_the_distribution_by_its_definitions(small_run, problem, dtype, norm):
    point = bns.load_point(small_run(problem, norm), step=3, dtype=getattr(torch, dtype))
    name = "conv8" if problem == "vgg" else "fc4"
    tolerance = 1e-4 if dtype == "float32" else 1e-9
    for row in bns.activations(point, [name]).to_dict("records"):
        _, _, y, z = reference.feeding(point, name)
        values = z[:, row["unit"]].flatten()
        for column, expected in reference.moments(values).items():
            assert row[column] == pytest.approx(expected, rel=tolerance, abs=tolerance), column
        assert row["sigma"] == pytest.approx(reference.moments(y[:, row["unit"]].flatten())["std"], rel=tolerance)
        assert row["q05"] == pytest.approx(float(torch.quantile(values, 0.05)), rel=tolerance, abs=tolerance)
        assert row["q99"] == pytest.approx(float(torch.quantile(values, 0.99)), rel=tolerance, abs=tolerance)
        evenly = torch.quantile(values, torch.from_numpy(PROBABILITIES)).tolist()
        assert row["quantiles"] == pytest.approx(evenly, rel=tolerance, abs=tolerance)


def test_five_layers_over_the_depth_and_the_same_five_units_for_every_norm(small_run):
    settings = {"depth": 9, "dimension": 8}
    tables = [
        bns.activations(bns.load_point(small_run("dln", norm, **settings), step=s))
        for norm in ("none", "l1")
        for s in (0, 6)
    ]
    assert tables[0]["layer"].unique().tolist() == [1, 3, 5, 7, 9]
    assert (tables[0].groupby("layer")["unit"].nunique() == 5).all()
    assert all(table["unit"].equals(tables[0]["unit"]) for table in tables)
    assert tables[0].groupby("layer")["unit"].apply(tuple).nunique() > 1  # not the first five of each


def test_the_layers_that_the_paper_shows_are_the_defaults(small_run):
    deep = bns.load_point(small_run("dln", "none", depth=25, dimension=2))
    assert bns.activations(deep)["layer"].unique().tolist() == [1, 11, 24]
    deep = bns.load_point(small_run("vgg", "batch", depth=16, width=0.02))
    assert bns.activations(deep)["layer"].unique().tolist() == [2, 3, 9, 11, 13]


def test_the_distance_is_that_of_the_batches_themselves(small_run, tmp_path):
    """From 100 quantiles each, against SciPy's Wasserstein-1 of all values; a run's first step has none."""
    runs = [small_run("dln", norm, samples=1000, lr=1e-2 if norm == "batch" else 1e-6) for norm in ("batch", "none")]
    steps = [1, 4, 6]
    (path,) = measure("activations", [run.source() for run in runs], tmp_path / "t.parquet", at=steps)
    table = bns.read_table(path, "activations")
    for run in runs:
        rows = table[table["run"] == run.name]
        assert rows.loc[rows["step"] == 1, "wasserstein"].isna().all()
        points = {p.step: p for p in (bns.load_point(run, s) for s in steps)}
        for row in rows[rows["step"] > 1].to_dict("records"):
            before = {4: 1, 6: 4}[row["step"]]
            here, there = (
                reference.feeding(points[s], row["layer_name"])[3][:, row["unit"]].numpy()
                for s in (row["step"], before)
            )
            exact = stats.wasserstein_distance(here, there)
            assert row["wasserstein"] == pytest.approx(exact, rel=0.1, abs=2e-3 * here.std())


def test_the_distance_is_scipys_of_the_quantiles(small_run):
    source = small_run("dln", "batch", lr=1e-2).source()
    before, rows = (bns.activations(point) for point in visit(source, [0, 4], "cpu"))
    rows["quantiles"].iloc[0][-1] = np.inf
    assert before["wasserstein"].isna().all()
    found = moved(before, rows)["wasserstein"]
    expected = map(stats.wasserstein_distance, before["quantiles"], rows["quantiles"])
    assert np.isnan(found.iloc[0])
    np.testing.assert_allclose(found.iloc[1:], list(expected)[1:], rtol=1e-12)


def test_the_moments_move_as_in_figure_7(small_run, tmp_path):
    """From every value of the batches at the measured steps, with the noise of each step."""
    run = small_run("dln", "noisy-batch", lr=1e-2)
    steps = [1, 4, 6]
    (path,) = measure("activations", [run.source()], tmp_path / "t.parquet", at=steps)
    table = bns.read_table(path, "activations").set_index(["step", "layer_name", "unit"]).sort_index()
    points = {step: bns.load_point(run, step, dtype=torch.float64) for step in steps}
    for name, unit in {key[1:] for key in table.index}:
        found = [reference.moments(reference.feeding(points[step], name)[3][:, unit]) for step in steps]
        moments = {"mean": [m["mean"] for m in found], "var": [m["std"] ** 2 for m in found]}
        for i, step in enumerate(steps):
            row = table.loc[step, name, unit]
            for moment, values in moments.items():
                change = abs(values[i] - values[i - 1]) if i else np.nan
                assert row[f"{moment}_change"] == pytest.approx(change, rel=1e-3, abs=1e-5, nan_ok=True)
                assert row[f"{moment}_drift"] == pytest.approx(values[i] - values[0], rel=1e-3, abs=1e-5)
    assert (table.loc[6, "mean_change"] > 0.01).any()  # the tolerance is far below what is measured


def test_a_moment_that_overflows_is_null(small_run):
    before, rows = (bns.activations(bns.load_point(small_run("dln", "none"), step)) for step in (0, 4))
    rows.loc[0, ["mean", "std"]] = np.inf
    found = moved(before, rows)
    names = [f"{moment}_{what}" for moment in ("mean", "var") for what in ("change", "drift")]
    assert found.loc[0, names].isna().all()
    assert found.loc[1:, names].notna().all(axis=None)
    assert (before[["mean_drift", "var_drift"]] == 0).all(axis=None)


def test_a_network_that_overflowed_gives_rows_without_finite_numbers(small_run):
    point = bns.load_point(small_run("dln", "none"), step=3)
    with torch.no_grad():
        point.model.layers["fc1"].linear.weight.fill_(torch.inf)
    rows = bns.activations(point)
    assert not np.isfinite(rows[["mean", "std", "kurtosis"]].to_numpy()).any()
