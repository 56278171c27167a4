"""The measurements against brute force, over problems x norms x dtypes, and what they leave behind."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from brute_force import ALPHAS, check_ics, check_line, check_smoothness
from helpers import NORMS

import bnsmooth_cli as bns
from bnsmooth_cli import InputError
from bnsmooth_cli.derivatives.lanczos import SHARPNESS_TOLERANCE
from bnsmooth_cli.measures.landscape import line_alphas

#: Relative agreement with the float64 reference. VGG's ReLUs and poolings make the gradient jump: an activation within
#: float32's rounding of a kink lands on its other side, and the gradient moves by that sample's share.
TOLERANCE = {
    ("vgg", torch.float64): 1e-10,
    ("vgg", torch.float32): 2e-2,
    ("dln", torch.float64): 1e-10,
    ("dln", torch.float32): 2e-5,
}
CASES = [(problem, norm, dtype) for problem, dtype in TOLERANCE for norm in NORMS]
case = pytest.mark.parametrize(("problem", "norm", "dtype"), CASES)
#: For tests that take seconds on VGG: every norm, of which the fast tests take VGG with one.
thorough = pytest.mark.parametrize(
    ("problem", "norm"),
    [
        *(("dln", norm) for norm in NORMS),
        *(pytest.param("vgg", norm, marks=[pytest.mark.slow] * (norm != "batch")) for norm in NORMS),
    ],
)


@case
@pytest.mark.fast(11)
def test_landscape_is_the_brute_force_line(small_run, problem, norm, dtype):
    point = bns.load_point(small_run(problem, norm), step=3, dtype=dtype)
    check_line(point, TOLERANCE[problem, dtype])


@thorough
@pytest.mark.fast(2)
def test_smoothness_is_the_brute_force_hessian_and_line(small_run, problem, norm):
    small = {"width": 0.01, "batch_size": 8} if problem == "vgg" else {}
    point = bns.load_point(small_run(problem, norm, **small), step=3, dtype=torch.float64)
    check_smoothness(point)


@pytest.mark.parametrize(
    ("problem", "norm"), [("dln", "none"), ("dln", "noisy-batch"), ("dln", "l1"), ("vgg", "batch")]
)
@pytest.mark.fast(1)
def test_a_random_line_is_the_brute_force_line(small_run, problem, norm):
    small = {"width": 0.01, "batch_size": 8} if problem == "vgg" else {}
    run = small_run(problem, norm, **small)
    for dtype in (torch.float32, torch.float64):
        check_line(bns.load_point(run, step=3, dtype=dtype), TOLERANCE[problem, dtype], "random")
    check_smoothness(bns.load_point(run, step=3, dtype=torch.float64), "random")


def test_a_random_direction_depends_on_seed_and_step_alone_and_is_as_long_as_the_gradient(small_run):
    runs = [small_run("dln", "batch", seed=seed) for seed in (0, 1)]
    first, again, later, other = (
        bns.landscape(bns.load_point(run, step), ALPHAS, direction="random")
        for run, step in ((runs[0], 3), (runs[0], 3), (runs[0], 4), (runs[1], 3))
    )
    assert first.equals(again)
    assert set(first["direction"]) == {"random"}
    along = bns.landscape(bns.load_point(runs[0], 3), ALPHAS)
    assert first["distance"].equals(along["distance"])
    assert [*first.iloc[0, :-1]] == [*along.iloc[0]]  # the point itself
    assert [*first.columns] == [*along.columns, "direction"]
    # The loss falls along the gradient; a random direction is nearly at right angles to it.
    for rows in (first, later, other):
        assert abs(rows["loss"][1] - rows["loss"][0]) < 0.5 * (along["loss"][0] - along["loss"][1])


def test_an_unknown_direction_is_refused(small_run):
    point = bns.load_point(small_run("dln", "none"), step=3)
    for measure in (bns.landscape, bns.smoothness):
        with pytest.raises(InputError, match=r"unknown direction 'sideways'.*gradient, update, random"):
            measure(point, direction="sideways")


@pytest.mark.parametrize("norm", ["none", "batch", "l1"])
def test_smoothness_in_float32_agrees_with_float64(small_run, norm):
    run = small_run("dln", norm)
    single = bns.smoothness(bns.load_point(run, step=3), ALPHAS).iloc[0]
    double = bns.smoothness(bns.load_point(run, step=3, dtype=torch.float64), ALPHAS).iloc[0]
    for name in ("loss", "grad_norm", "loss_max", "lipschitz", "beta", "curvature"):
        assert single[name] == pytest.approx(double[name], rel=1e-4), name
    assert single["sharpness"] == pytest.approx(double["sharpness"], rel=2 * SHARPNESS_TOLERANCE)


@case
@pytest.mark.fast(5)
def test_ics_is_definition_2_1(small_run, problem, norm, dtype):
    point = bns.load_point(small_run(problem, norm), step=3, dtype=dtype)
    check_ics(point, TOLERANCE[problem, dtype])


@pytest.mark.parametrize("problem", ["vgg", "dln"])
def test_ics_takes_the_runs_own_step_with_momentum(small_run, problem):
    run = small_run(problem, "batch", momentum=0.9)
    check_ics(bns.load_point(run, step=3, dtype=torch.float64), 1e-10)


def test_the_network_of_a_run_can_be_measured_in_a_loop_of_ones_own(small_run):
    """There, only the loss function knows the data."""
    point = bns.load_point(small_run("dln", "batch"), step=3, dtype=torch.float64)
    loop = bns.Point.of(
        point.model, lambda: point.problem.objective(point.model(point.inputs), point.targets), lr=point.config.lr
    )
    shift = ["grad_norm", "grad_norm_updated", "ics", "cosine"]
    np.testing.assert_allclose(bns.ics(loop)[shift], bns.ics(point)[shift], rtol=1e-6)
    theory, expected = (bns.theory(p, layers=["2"]).query("statement == '4.1'") for p in (loop, point))
    np.testing.assert_allclose(theory[["unit", "lhs"]], expected[["unit", "lhs"]], rtol=1e-6)


@thorough
@pytest.mark.fast(1)
def test_measuring_leaves_the_point_bit_identical(small_run, problem, norm):
    point = bns.load_point(small_run(problem, norm, momentum=0.9), step=3)
    before = {name: value.clone() for name, value in point.model.state_dict().items()}
    velocity = [v.clone() for v in point.velocity]
    inputs, random = point.inputs.clone(), torch.get_rng_state()

    def measured():
        yield from (bns.landscape(point, ALPHAS), bns.smoothness(point, ALPHAS), bns.ics(point))
        yield from (bns.theory(point, units=[0, 1]), bns.activations(point).explode("quantiles"))

    for a, b in zip(measured(), measured(), strict=True):
        assert a.equals(b)
    assert before.keys() == point.model.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in point.model.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(velocity, point.velocity, strict=True))
    assert torch.equal(inputs, point.inputs)
    assert torch.equal(random, torch.get_rng_state())


@pytest.mark.parametrize("problem", ["vgg", "dln"])
def test_the_line_starts_at_what_training_recorded(small_run, problem):
    run = small_run(problem, "noisy-batch")
    recorded = bns.read_table(run.train_path).set_index("step").loc[3]
    start = bns.landscape(bns.load_point(run, step=3), [1.0]).iloc[0]
    assert start["loss"] == pytest.approx(recorded["loss"], rel=1e-5)
    assert start["grad_norm"] == pytest.approx(recorded["grad_norm"], rel=1e-5)


def test_a_line_that_overflows_is_data(small_run):
    point = bns.load_point(small_run("dln", "none"), step=3)
    with np.errstate(over="ignore"):
        rows = bns.landscape(point, [1.0, 1e30])
        row = bns.smoothness(point, [1.0, 1e30]).iloc[0]
    assert np.isfinite(rows["loss"][1])
    assert not np.isfinite(rows["loss"][2])
    assert row["loss_max"] == row["beta"] == row["lipschitz"] == np.inf
    assert np.isfinite(row["loss_min"])
    assert row["critical_alpha"] == 1e30
    assert np.isnan(row["beta_alpha"])
    assert row["saturated"] is None


@pytest.mark.parametrize(
    ("curvatures", "saturated"),
    [
        ((1.0, 1.0), True),  # the gradient is 0 after the shortest step
        ((1.015, 1.015), True),
        ((0.97, 0.97), False),  # almost, but 3% from the value
        ((0.5, 0.5), False),
        ((2.0, 2.0), False),  # beta is that of the edge of stability, and the gradient is as long as before
        ((2**0.5, 0.0), False),  # the value, by a gradient that turned
    ],
)
def test_a_point_is_saturated_if_the_gradient_vanishes_within_the_shortest_step(curvatures, saturated):
    """Of a quadratic loss, whose beta is the same at every step length; the curvatures are in units of 1 / 0.05."""
    model = torch.nn.Linear(2, 1, bias=False).double()
    torch.nn.init.ones_(model.weight)
    with torch.no_grad():
        model.weight /= torch.tensor([c or 1.0 for c in curvatures])
    bends = torch.tensor(curvatures).double() / 0.05
    flat = torch.tensor([float(c == 0) for c in curvatures]).double() / 0.05  # a slope without curvature

    def loss():
        w = model(torch.eye(2).double())[:, 0]
        return (bends * w.square() / 2 + flat * w).sum()

    row = bns.smoothness(bns.Point.of(model, loss, lr=0.1), [2.0, 0.5, 4.0]).iloc[0]
    assert row["beta"] == pytest.approx(float(bends.norm() / 2**0.5))
    assert row["saturated"] == saturated


def test_beta_alpha_is_the_step_length_at_which_beta_is_attained(small_run):
    point = bns.load_point(small_run("vgg", "batch"), step=3, dtype=torch.float64)
    lengths = [4.0, 0.5, 1.0]
    row = bns.smoothness(point, lengths).iloc[0]
    alone = {alpha: bns.smoothness(point, [alpha])["beta"][0] for alpha in lengths}
    assert row["beta_alpha"] == max(alone, key=alone.get)


def test_the_papers_step_lengths_are_the_defaults():
    assert line_alphas("vgg") == [0.5, 1, 2, 4]
    assert line_alphas("dln") == [0.01, 0.1, 1, 10, 30]


def test_step_lengths_are_listed_or_evenly_spaced():
    assert line_alphas("vgg", alphas=[0.1, 3]) == [0.1, 3]
    assert line_alphas("vgg", points=3) == [0.5, 2.25, 4]
    assert line_alphas("dln", max_alpha=7.01) == pytest.approx([0.01, 1.01, 2.01, 3.01, 4.01, 5.01, 6.01, 7.01])


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        ((0, 1, 2), "--min-alpha"),
        ((2, 1, 2), "--max-alpha"),
        ((1, 2, 0), "--points"),
        ((None, None, None, []), "--alphas"),
        ((None, None, None, [1, 0.5]), "--alphas 1,0.5: give step lengths above 0 in ascending order"),
        ((None, None, None, [1, 1]), "--alphas"),
        ((None, None, None, [0, 1]), "--alphas"),
        ((None, None, None, [-1, 1]), "--alphas"),
        ((None, None, None, [1, np.nan]), "--alphas"),
        ((None, None, None, [1, np.inf]), "--alphas"),
        ((None, None, 3, [1]), "--alphas and --points: give only one of them"),
    ],
)
def test_an_impossible_line_is_refused(arguments, option):
    with pytest.raises(InputError, match=option):
        line_alphas("vgg", *arguments)


def test_sharpness_of_a_network_of_one_number(small_run):
    run = small_run("dln", "none", depth=1, dimension=1)
    point = bns.load_point(run, step=0, dtype=torch.float64)
    expected = 2 * float((point.inputs**2).sum())  # L = sum (w x - a x)^2
    assert bns.smoothness(point).sharpness[0] == pytest.approx(expected)
