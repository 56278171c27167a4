"""The distributions of activations against their definitions, and how far they move."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import reference
import torch
from helpers import NORMS, legend
from scipy import stats
from torch import nn

import bnsmooth_cli as bns
from bnsmooth_cli.figures import render
from bnsmooth_cli.measures.activations import PROBABILITIES, moved
from bnsmooth_cli.measures.measuring import measure
from bnsmooth_cli.points.reaching import visit
from bnsmooth_cli.studies import grid

CASES = [(problem, dtype, norm) for problem in ("vgg", "dln") for dtype in ("float32", "float64") for norm in NORMS]


@pytest.mark.parametrize(("problem", "dtype", "norm"), CASES)
@pytest.mark.fast(8)
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


def brute_force(point, batch, noise, name, unit):
    """The moments of a unit in float64: the point's weights, the batch of one step, the noise of one step."""
    inputs, _ = point.problem.batch(batch)
    there = dataclasses.replace(point, inputs=inputs, step=noise)
    values = reference.feeding(there, name)[3][:, unit].flatten()
    found = reference.moments(values)
    return {"mean": found["mean"], "var": found["std"] ** 2, "values": len(values)}


PROBES = [
    ("vgg", "none", {"augment": True}, "conv3"),
    ("vgg", "noisy-batch", {}, "conv8"),
    ("vgg", "l1", {}, "fc1"),
    ("dln", "none", {"batch_size": 7}, "fc4"),
    ("dln", "noisy-none", {}, "fc2"),
]


@pytest.mark.parametrize(("problem", "norm", "settings", "name"), PROBES)
@pytest.mark.fast(2)
def test_the_probe_and_the_floor_by_their_definitions(small_run, tmp_path, problem, norm, settings, name):
    """Of plain passes over the batch of step 0 with the step's noise, and over the next step's batch and noise."""
    run, steps = small_run(problem, norm, **settings), [1, 4, 6]
    options = {"layers": [name], "probe": True}
    (path,) = measure("activations", [run.source()], tmp_path / "t.parquet", at=steps, options=options)
    table = bns.read_table(path, "activations").set_index(["step", "unit"]).sort_index()
    points = {step: bns.load_point(run, step, dtype=torch.float64) for step in steps}
    close = {"rel": 1e-3, "abs": 1e-5}
    for unit in table.index.unique("unit"):
        probed = [brute_force(points[step], 0, step, name, unit) for step in steps]
        for place, step in enumerate(steps):
            row = table.loc[step, unit]
            own, ahead = (brute_force(points[step], t, t, name, unit) for t in (step, step + 1))
            assert row["values"] == own["values"]
            assert row["probe_mean"] == pytest.approx(probed[place]["mean"], **close)
            assert row["probe_std"] ** 2 == pytest.approx(probed[place]["var"], **close)
            for moment in ("mean", "var"):
                moved_by = abs(probed[place][moment] - probed[place - 1][moment]) if place else np.nan
                assert row[f"probe_{moment}_change"] == pytest.approx(moved_by, **close, nan_ok=True)
                assert row[f"floor_{moment}_change"] == pytest.approx(abs(ahead[moment] - own[moment]), **close)
    assert (table["floor_var_change"] > 0.01).any()  # the tolerance is far below what is measured
    exact = bns.activations(points[4], [name], probe=True).set_index("unit")  # a point of float64
    for unit, row in exact.iterrows():
        own, probed, ahead = (brute_force(points[4], *at, name, unit) for at in ((4, 4), (0, 4), (5, 5)))
        assert row["probe_mean"] == pytest.approx(probed["mean"], rel=1e-9, abs=1e-9)
        assert row["probe_std"] ** 2 == pytest.approx(probed["var"], rel=1e-9, abs=1e-9)
        for moment in ("mean", "var"):
            expected = abs(ahead[moment] - own[moment])
            assert row[f"floor_{moment}_change"] == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_a_full_batch_without_noise_has_no_floor_and_is_its_own_probe(small_run, norm):
    rows = bns.activations(bns.load_point(small_run("dln", norm), 4), probe=True)
    assert (rows[["floor_mean_change", "floor_var_change"]] == 0).all(axis=None)
    assert rows["probe_mean"].equals(rows["mean"].rename("probe_mean"))
    assert rows["probe_std"].equals(rows["std"].rename("probe_std"))


def test_between_neighbouring_steps_of_frozen_weights_the_change_is_the_floor_and_the_probe_rests(small_run):
    """The floor answers what a change would be at fixed weights. On the probe batch, nothing moves then."""
    source = small_run("vgg", "none", lr=1e-30, batch_size=8, augment=True).source()
    before, rows = (bns.activations(point, ["conv2", "fc1"], probe=True) for point in visit(source, [2, 3], "cpu"))
    rows = moved(before, rows)
    for moment in ("mean", "var"):
        assert (rows[f"{moment}_change"] > 0).all()
        np.testing.assert_array_equal(rows[f"{moment}_change"], before[f"floor_{moment}_change"])
        assert (rows[f"probe_{moment}_change"] == 0).all()


def test_a_probe_leaves_the_point_and_the_generators_as_they_were(small_run):
    point = bns.load_point(small_run("vgg", "noisy-batch"), 3)
    state = {name: value.clone() for name, value in point.model.state_dict().items()}
    settings = [dict(vars(module)) for module in point.norms]
    inputs, generators = point.inputs.clone(), (torch.get_rng_state(), np.random.get_state()[1])
    plain, probed = bns.activations(point), bns.activations(point, probe=True)
    assert all(torch.equal(state[name], value) for name, value in point.model.state_dict().items())
    assert settings == [vars(module) for module in point.norms]
    assert torch.equal(inputs, point.inputs)
    assert torch.equal(generators[0], torch.get_rng_state())
    assert (generators[1] == np.random.get_state()[1]).all()
    both = plain.columns.difference(plain.columns[plain.isna().all()])
    pd.testing.assert_frame_equal(plain[both], probed[both])
    added = probed.columns[probed.notna().any()].difference(both)
    assert set(added) == {"probe_mean", "probe_std", "floor_mean_change", "floor_var_change"}


def test_an_overflow_on_the_probe_batch_is_null(small_run):
    point = bns.load_point(small_run("dln", "none"), step=3)
    with torch.no_grad():
        point.model.layers["fc1"].linear.weight.fill_(torch.inf)
    rows = bns.activations(point, probe=True)
    assert not np.isfinite(rows[["probe_mean", "probe_std"]].to_numpy()).any()
    assert rows[["floor_mean_change", "floor_var_change"]].isna().all(axis=None)


def test_a_probe_of_your_own_loop_is_refused(small_run):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))
    x = torch.randn(8, 3)
    point = bns.Point.of(model, lambda: model(x).square().mean(), lr=0.1)
    assert bns.activations(point)["probe_mean"].isna().all()
    with pytest.raises(bns.InputError, match="--probe: a point of your own loop has no batches of other steps"):
        bns.activations(point, probe=True)


def test_a_layer_that_does_not_run_on_another_batch_is_refused_by_name(small_run):
    point = bns.load_point(small_run("dln", "none", batch_size=7), 0)
    layer = point.model.layers["fc2"]
    skipped, forward = [], layer.forward

    def sometimes(x):
        skipped.append(len(skipped) > 1)
        return x if skipped[-1] else forward(x)

    assert len(bns.activations(point, ["fc2"], probe=True)) == 4
    layer.forward = sometimes
    with pytest.raises(bns.InputError, match="Identity: does not run on every batch"):
        bns.activations(point, ["fc2"], probe=True)


def test_a_probe_at_loaded_weights_is_their_own_batch(small_run, tmp_path):
    run = small_run("vgg", "batch")
    torch.save(bns.load_point(run).model.state_dict(), tmp_path / "model.pt")
    settings = {name: getattr(run.config, name) for name in ("batch_size", "lr")}
    point = bns.load_weights(tmp_path / "model.pt", "vgg", "batch", width=0.07, **settings)
    rows = bns.activations(point, ["conv2"], probe=True)
    assert rows["probe_mean"].equals(rows["mean"].rename("probe_mean"))


@pytest.mark.parametrize("m", [8, 64])
def test_the_kurtosis_of_gaussian_values_is_that_of_the_docstring(m):
    """Of 40,000 samples: the moments of the null, to five standard errors."""
    found = stats.kurtosis(np.random.default_rng(m).standard_normal((40_000, m)), axis=1)
    variance = 24 * m * (m - 2) * (m - 3) / ((m + 1) ** 2 * (m + 3) * (m + 5))
    spread = np.square(found - found.mean())
    assert found.mean() == pytest.approx(-6 / (m + 1), abs=5 * np.sqrt(variance / len(found)))
    assert spread.mean() == pytest.approx(variance, abs=5 * spread.std() / np.sqrt(len(found)))
    assert "-6 / (m + 1)" in bns.activations.__doc__
    assert "24 m (m - 2)(m - 3) / ((m + 1)^2 (m + 3)(m + 5))" in bns.activations.__doc__


NEW = ["values", "probe_mean", "probe_std", "probe_mean_change", "probe_var_change", "floor_mean_change",
       "floor_var_change"]  # fmt: skip


def test_a_table_of_an_earlier_version_has_no_probe_and_is_measured_again(small_run, tmp_path):
    source = small_run("dln", "batch").source()
    (path,) = measure("activations", [source], tmp_path / "t.parquet")
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(NEW), path)
    old = bns.read_table(path, "activations")
    assert old[NEW].isna().all(axis=None)
    measure("activations", [source], path)
    again = bns.read_table(path, "activations")
    assert (again["values"] == 30).all()
    assert again["probe_mean"].isna().all()
    pd.testing.assert_frame_equal(old.drop(columns=NEW), again.drop(columns=NEW))


def test_a_table_without_the_probe_is_measured_again_and_one_with_it_is_kept(small_run, tmp_path):
    source, path = small_run("dln", "noisy-batch").source(), tmp_path / "t.parquet"

    def answer(**options):
        measure("activations", [source], path, options=options, at=[0, 4])
        return path.read_bytes(), bns.read_table(path, "activations")["probe_mean"].notna().all()

    plain = answer()
    probed = answer(probe=True)
    assert (plain[1], probed[1]) == (False, True)
    assert answer() == probed  # it has all that was asked for
    assert answer(probe=True) == probed
    with pytest.raises(bns.InputError, match=r"of other options; replace it with --force"):
        answer(probe=True, units=[0])
    measure("activations", [source], path, at=[0, 4], force=True)
    assert path.read_bytes() == plain[0]


def test_the_figure_of_the_moments_has_the_floor_where_the_table_has(small_run, tmp_path):
    runs = [small_run("vgg", norm).source() for norm in ("none", "batch")]
    for probe, floors in ((False, []), (True, ["floor: none", "floor: batch"])):
        options = {"layers": ["conv2", "fc1"], "probe": probe}
        (path,) = measure("activations", runs, tmp_path / f"{probe}.parquet", options=options)
        table = bns.read_table(path)
        figure = render("activations", table, figure="moments")
        assert legend(figure) == ["none", "batch", *floors]
        drawn = [[line for line in axes.lines if line.get_linewidth() < 1] for axes in figure.axes[:4]]
        assert [len(lines) for lines in drawn] == [len(floors), len(floors), 0, 0]
    floor, rows = drawn[0][0], table[(table["layer_name"] == "conv2") & (table["norm"] == "none")]
    expected = rows[rows["unit"] == rows["unit"].min()]["floor_mean_change"]
    low, high = figure.axes[0].get_ylim()
    np.testing.assert_allclose(floor.get_ydata(), expected.clip(low, high))


STUDY = "--problem dln --depth 3 --dimension 4 --samples 30 --batch-size 10 --lrs 1e-4 --steps 4 --save-every 2"


def test_a_study_takes_a_probe_and_measures_tables_without_it_again(cli, tmp_path):
    line = f"compare --norms none --measure activations,ics {STUDY} -o study"
    assert cli(line)[0] == 0
    folder = tmp_path / "study/runs/dln-none-lr0.0001-depth3-dim4-samples30-steps4-bs10-seed0"
    stamp = (folder / "ics.parquet").stat().st_mtime_ns
    table = folder / "activations.parquet"
    assert bns.read_table(table)["floor_mean_change"].isna().all()
    code, out, _ = cli(f"{line} --probe --dry-run")
    assert code == 0
    assert "nothing to do" not in out
    assert cli(f"{line} --probe")[0] == 0
    probed = table.read_bytes()
    assert bns.read_table(table)["floor_mean_change"].gt(0).all()
    assert (folder / "ics.parquet").stat().st_mtime_ns == stamp
    study = tmp_path / "study.toml"
    study.write_text('norms = "none"\nlrs = 1e-4\nprobe = true\nmeasure = "activations"\nproblem = "dln"\ndepth = 3\n'
                     "dimension = 4\nsamples = 30\nbatch_size = 10\nsteps = 4\nsave_every = 2\n")  # fmt: skip
    for again in (line, f"{line} --no-probe", "compare --study study.toml -o study"):
        assert cli(again)[0] == 0
        assert table.read_bytes() == probed
    assert cli("compare --study study.toml --no-probe --force -o study")[0] == 0
    assert bns.read_table(table)["floor_mean_change"].isna().all()
    settings = {"problem": "dln", "depth": 3, "dimension": 4, "samples": 30, "batch_size": 10, "steps": 4}
    bns.study("none", lrs=[1e-4], measure="activations", probe=True, output="study", save_every=2, **settings)
    assert table.read_bytes() == probed


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"compare --norms none --probe {STUDY} -o study", "--probe: an option of activations; add it to --measure"),
        (f"compare --norms none --measure ics --probe {STUDY} -o study", "--probe: an option of activations"),
        ("compare --study wrong.toml", "wrong.toml: probe yes: give true or false"),
        ("compare a-run --probe", "--probe: describes runs to train"),
        ("ics a-run --probe", "No such option: --probe"),
    ],
)
def test_a_probe_that_means_nothing_is_refused(cli, tmp_path, line, message):
    (tmp_path / "wrong.toml").write_text('norms = "none"\nprobe = "yes"\n')
    code, _, err = cli(line)
    assert code == 2
    assert message in " ".join(err.split())


def test_the_command_to_measure_something_else_leaves_the_probe_out():
    request = {"norms": ["none"], "measure": ["activations"], "probe": True}
    assert grid.command(request, "s").endswith("--measure activations --probe -o s")
    assert grid.command({**request, "measure": ["ics"]}, "s").endswith("--norms none --measure ics -o s")
