"""Batch sharpness: every second derivative of each batch, its batches, its memory, and its tables."""

from __future__ import annotations

import dataclasses
import math
import weakref

import numpy as np
import own_code
import pytest
import reference
import torch
from torch import nn

import bnsmooth_cli as bns
from bnsmooth_cli import InputError
from bnsmooth_cli.measures.batch_sharpness import batch_sharpness
from bnsmooth_cli.measures.measuring import measure
from bnsmooth_cli.points.point import Point

TINY = {"width": 0.01, "batch_size": 8}
BOTH = ["batch_sharpness", "batch_sharpness_error"]


def numbers(rows):
    return [float(value) for value in rows[BOTH].iloc[0]]


@pytest.mark.parametrize(
    ("problem", "norm"), [("vgg", "batch"), ("vgg", "noisy-batch"), ("vgg", "l1"), ("dln", "batch"), ("dln", "none")]
)
@pytest.mark.slow
def test_it_is_that_of_every_second_derivative(small_run, problem, norm):
    run = small_run(problem, norm, weight_decay=0.01, **(TINY if problem == "vgg" else {}))
    point = bns.load_point(run, step=3, dtype=torch.float64)
    mean, error = reference.batch_sharpness(point, 3)
    for objective in ("batch", "train:2"):  # it is of the same batches whatever the other columns are of
        found = bns.smoothness(point, [1.0], objective, batches=3)
        assert numbers(found) == pytest.approx([mean, error], rel=1e-8)
    assert (error > 1e-9 * abs(mean)) == (problem == "vgg")  # the linear network's batch is the training set
    single = numbers(bns.smoothness(bns.load_point(run, step=3), [1.0], batches=3))
    assert single == pytest.approx([mean, error], rel=0.05, abs=1e-3 * abs(mean))


@pytest.mark.parametrize(("problem", "norm"), [("residual", "batch"), ("transformer", "none"), ("odd", "none")])
def test_it_is_that_of_a_network_of_ones_own(tmp_path, problem, norm):
    settings = {"steps": 4, "save_every": 2, "batch_size": 8, "lr": 0.05}
    run = bns.train(getattr(own_code, problem), norm, output=tmp_path / "run", device="cpu", **settings)
    point = bns.load_point(run, 2, dtype=torch.float64)
    assert numbers(bns.smoothness(point, [1.0], batches=2)) == pytest.approx(reference.batch_sharpness(point, 2), 1e-8)


@pytest.mark.slow
def test_in_eval_mode_each_batch_is(small_run):
    point = bns.load_point(small_run("vgg", "batch", **TINY), step=3, dtype=torch.float64, objective="eval")
    found = bns.smoothness(point, [1.0], batches=2)
    assert numbers(found) == pytest.approx(reference.batch_sharpness(point, 2), rel=1e-8)
    assert numbers(found) != pytest.approx(numbers(bns.smoothness(point, [1.0], "batch", batches=2)), rel=0.01)
    assert point.model.training


def test_the_batches_depend_on_seed_and_step_alone(small_run):
    run = small_run("vgg", "batch", **TINY)
    points = [bns.load_point(run, step) for step in (3, 3, 4)]
    points[1].problem.batch(7)  # of another epoch
    one, again, later = (batch_sharpness(point, 4) for point in points)
    assert one == again
    # The same parameters, at a step and a seed that draw others.
    elsewhere = dataclasses.replace(points[0], step=4)
    assert batch_sharpness(elsewhere, 4) not in (one, later)
    # More batches begin with the same ones.
    means = [batch_sharpness(points[0], count)[0] for count in (1, 2, 3)]
    steps = [3 * means[2] - 2 * means[1], 2 * means[1] - means[0], means[0]]
    assert np.std(steps, ddof=1) / 3**0.5 == pytest.approx(batch_sharpness(points[0], 3)[1], rel=1e-6)


def test_one_batch_has_no_standard_error(small_run):
    point = bns.load_point(small_run("vgg", "batch", **TINY), step=3)
    mean, error = numbers(bns.smoothness(point, [1.0], batches=1))
    assert math.isfinite(mean)
    assert math.isnan(error)
    assert all(map(math.isnan, numbers(bns.smoothness(point, [1.0]))))


def test_memory_holds_one_batchs_graph(small_run, monkeypatch):
    point = bns.load_point(small_run("vgg", "batch", **TINY), step=3)
    of_point, products = Point.hessian, []

    def watched(self, names=None):
        assert all(product() is None for product in products)
        gradient, product = of_point(self, names)
        products.append(weakref.ref(product))
        return gradient, product

    monkeypatch.setattr(Point, "hessian", watched)
    bns.smoothness(point, [1.0], batches=3)
    assert len(products) == 4


def dead(norm):
    """A problem whose network puts out 0 and has no gradient."""
    model = nn.Sequential(nn.Linear(2, 1), nn.ReLU())
    nn.init.constant_(model[0].bias, -100.0)
    return model, nn.MSELoss(), (torch.randn(16, 2), torch.randn(16, 1))


@pytest.mark.parametrize("spoiled", [0.0, math.inf])
def test_a_batch_without_a_gradient_makes_it_null(small_run, monkeypatch, tmp_path, spoiled):
    point = bns.load_point(small_run("vgg", "batch", **TINY), step=3)
    drawn, of_problem = [], type(point.problem).batch

    def batch(self, step):
        drawn.append(step)
        inputs, targets = of_problem(self, step)
        return (inputs * (spoiled if len(drawn) == 2 else 1.0), targets) if spoiled else (inputs, targets)

    if spoiled:
        monkeypatch.setattr(type(point.problem), "batch", batch)
        found = bns.smoothness(point, [1.0], batches=3).iloc[0]
    else:
        run = bns.train(dead, "none", output=tmp_path / "run", steps=2, batch_size=8, lr=0.1, save_every=1)
        found = bns.smoothness(bns.load_point(run), [1.0], batches=3).iloc[0]
    assert np.isnan(found["batch_sharpness"])
    assert np.isnan(found["batch_sharpness_error"])


@pytest.mark.parametrize("batches", [-1, 10**9])
def test_an_impossible_number_of_batches_is_refused(small_run, batches):
    point = bns.load_point(small_run("dln", "batch"), step=3)
    with pytest.raises(InputError, match=rf"--batches {batches}: give a whole number from 0 \(none\) to 100,000"):
        bns.smoothness(point, batches=batches)
    with pytest.raises(InputError, match="--batches"):
        bns.train("dln", "batch", measure="smoothness", batches=batches)


def test_a_loss_without_training_batches_is_refused(small_run, cli):
    run = small_run("vgg", "batch", **TINY)
    with pytest.raises(InputError, match="--batches: are batches of the training set"):
        bns.smoothness(bns.load_point(run, 3), objective="test", batches=2)
    point = bns.load_point(small_run("dln", "batch"), step=3)
    with pytest.raises(InputError, match="--batches: a point of your own loop has no batches of other steps"):
        bns.smoothness(bns.Point.of(point.model, point.loss, lr=0.1), batches=2)
    for line, message in (
        (f"smoothness {run.path} --batches 2 --objective test", "--batches: are batches of the training set"),
        (f"smoothness {run.path} --batches 2 --by-layer", "--batches 2: not with --by-layer"),
        (f"smoothness {run.path} --batches -2", "--batches -2: give a whole number from 0"),
        (f"landscape {run.path} --batches 2", "No such option: --batches"),
        ("train --batches 2", "--batches: an option of --measure"),
        (
            "train --measure ics --batches 2",
            "--batches: an option of smoothness, smoothness-update, smoothness-random; add it",
        ),
        ("compare --norms none --measure ics --batches 2", "--batches: an option of smoothness, "),
        ("compare a-run --batches 2", "--batches: describes runs to train"),
    ):
        status, _, complaint = cli(line)
        assert (status, message in complaint) == (2, True), (line, complaint)


def test_tables_without_batches_are_measured_again_and_those_with_others_are_kept(small_run, tmp_path):
    run, path = small_run("vgg", "batch", **TINY), tmp_path / "smoothness.parquet"

    def answer(**options):
        measure("smoothness", [run.source()], path, at=[0, 3], options=options)
        return path.read_bytes(), bns.read_table(path, "smoothness")["batch_sharpness"].notna().all()

    plain, sharp = answer(), answer(batches=2)
    assert (plain[1], sharp[1]) == (False, True)
    assert answer() == answer(batches=0) == answer(batches=2) == sharp
    with pytest.raises(InputError, match="of other options; replace it with --force"):
        answer(batches=3)
    assert path.read_bytes() == sharp[0]
    measure("smoothness", [run.source()], path, at=[6])  # a further step gets the batches of the table
    more = bns.read_table(path, "smoothness")
    assert [*more["step"]] == [0, 3, 6]
    assert more["batch_sharpness"].notna().all()


def test_an_interrupted_table_goes_on_with_its_own_batches(small_run, tmp_path):
    run, path = small_run("vgg", "batch", **TINY), tmp_path / "smoothness.parquet"

    def stop(_run, step, _done, _total):
        if step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure("smoothness", [run.source()], path, at=[0, 3], options={"batches": 2}, progress=stop)
    with pytest.raises(InputError, match="has points of a table of other options"):
        measure("smoothness", [run.source()], path, at=[0, 3], options={"batches": 3})
    measure("smoothness", [run.source()], path, at=[0, 3])
    assert bns.read_table(path, "smoothness")["batch_sharpness"].notna().all()


@pytest.mark.slow
def test_one_pass_a_study_and_the_command_give_the_same_bytes(cli, tmp_path):
    settings = "--problem dln --depth 3 --dimension 4 --samples 20 --steps 4 --save-every 2 --lr 1e-4"
    assert cli(f"train --norm batch {settings} -o one --measure smoothness,smoothness-random,ics --batches 2")[0] == 0
    tables = {path.name: path.read_bytes() for path in (tmp_path / "one").glob("s*.parquet")}
    assert len(tables) == 2
    for kind in ("smoothness", "smoothness-random"):
        assert bns.read_table(tmp_path / f"one/{kind}.parquet")["batch_sharpness"].notna().all()
        (tmp_path / f"one/{kind}.parquet").unlink()
    for more in ("", "--direction random"):
        status, out, _ = cli(f"smoothness one --batches 2 {more}")
        assert (status, "batch sharpness" in out) == (0, True), out
    assert tables == {path.name: path.read_bytes() for path in (tmp_path / "one").glob("s*.parquet")}

    (tmp_path / "study.toml").write_text(
        'norms = "batch"\nlrs = 1e-4\nmeasure = "smoothness"\nbatches = 2\nproblem = "dln"\ndepth = 3\ndimension = 4\n'
        "samples = 20\nsteps = 4\nsave_every = 2\n"
    )
    grid = f"compare --norms batch --lrs 1e-4 {settings.replace('--lr 1e-4', '')} --measure smoothness -o study"
    assert cli(grid)[0] == 0
    (run,) = (tmp_path / "study/runs").iterdir()
    assert bns.read_table(run / "smoothness.parquet")["batch_sharpness"].isna().all()
    for again in (f"{grid} --batches 2", grid, "compare --study study.toml -o study"):
        assert cli(again)[0] == 0
        rows = bns.read_table(run / "smoothness.parquet").drop(columns="run")
        assert rows.equals(bns.read_table(tmp_path / "one/smoothness.parquet").drop(columns="run"))
    (tmp_path / "study.toml").write_text('norms = "none"\nbatches = "many"\n')
    assert "study.toml: batches many: give a whole number" in cli("compare --study study.toml")[2]
