"""The measurements against brute force, over problems x norms x dtypes, and what they leave behind."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
import torch
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
ALPHAS = (0.5, 1.0, 4.0)
CASES = [(problem, norm, dtype) for problem, dtype in TOLERANCE for norm in NORMS]
case = pytest.mark.parametrize(("problem", "norm", "dtype"), CASES)


def close(found, expected, tolerance, scale=0.0):
    """`scale`: of the gradients that a difference is taken of, whose digits it loses."""
    assert found == pytest.approx(expected, rel=tolerance, abs=tolerance * scale)


@case
def test_landscape_is_the_brute_force_line(small_run, problem, norm, dtype):
    point = bns.load_point(small_run(problem, norm), step=3, dtype=dtype)
    tolerance = TOLERANCE[problem, dtype]
    found = bns.landscape(point, ALPHAS)
    expected = reference.line(point, ALPHAS)
    assert len(found) == len(expected)
    for row, want in zip(found.to_dict("records"), expected, strict=True):
        for name in ("alpha", "step_size", "distance", "loss", "grad_norm", "grad_cosine"):
            close(row[name], want[name], tolerance, scale=1.0 if name == "grad_cosine" else 0)
        close(row["grad_distance"], want["grad_distance"], tolerance, scale=want["grad_norm"])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("problem", ["vgg", "dln"])
def test_smoothness_is_the_brute_force_hessian_and_line(small_run, problem, norm):
    small = {"width": 0.01, "batch_size": 8} if problem == "vgg" else {}
    point = bns.load_point(small_run(problem, norm, **small), step=3, dtype=torch.float64)
    (row,) = bns.smoothness(point, ALPHAS).to_dict("records")
    line = reference.line(point, ALPHAS)
    losses = [r["loss"] for r in line]
    distances = [r["grad_distance"] for r in line]
    g, h = reference.hessian(point)
    values = torch.linalg.eigvalsh(h)
    expected = {
        "loss": losses[0],
        "grad_norm": line[0]["grad_norm"],
        "loss_min": min(losses[1:]),
        "loss_max": max(losses[1:]),
        "predictiveness_min": min(distances[1:]),
        "predictiveness_max": max(distances[1:]),
        "lipschitz": max(r["grad_norm"] for r in line),
        "beta": max(r["grad_distance"] / r["distance"] for r in line[1:]),
        "curvature": float(g @ h @ g / (g @ g)),
    }
    for name, want in expected.items():
        assert row[name] == pytest.approx(want, rel=1e-8), name
    largest = float(values[values.abs().argmax()])
    assert row["sharpness"] == pytest.approx(largest, rel=SHARPNESS_TOLERANCE)
    rising = [r["alpha"] for r in line[1:] if r["loss"] > losses[0]]
    assert row["critical_alpha"] == pytest.approx(min(rising, default=math.nan), nan_ok=True)


@pytest.mark.parametrize("norm", ["none", "batch", "l1"])
def test_smoothness_in_float32_agrees_with_float64(small_run, norm):
    run = small_run("dln", norm)
    single = bns.smoothness(bns.load_point(run, step=3), ALPHAS).iloc[0]
    double = bns.smoothness(bns.load_point(run, step=3, dtype=torch.float64), ALPHAS).iloc[0]
    for name in ("loss", "grad_norm", "loss_max", "lipschitz", "beta", "curvature"):
        assert single[name] == pytest.approx(double[name], rel=1e-4), name
    assert single["sharpness"] == pytest.approx(double["sharpness"], rel=2 * SHARPNESS_TOLERANCE)


@case
def test_ics_is_definition_2_1(small_run, problem, norm, dtype):
    point = bns.load_point(small_run(problem, norm), step=3, dtype=dtype)
    check_ics(point, TOLERANCE[problem, dtype])


@pytest.mark.parametrize("problem", ["vgg", "dln"])
def test_ics_takes_the_runs_own_step_with_momentum(small_run, problem):
    run = small_run(problem, "batch", momentum=0.9)
    check_ics(bns.load_point(run, step=3, dtype=torch.float64), 1e-10)


def check_ics(point, tolerance):
    found, expected = bns.ics(point), reference.ics(point)
    assert list(found["layer_name"]) == [name for name, _ in point.layers]
    assert found["ics"][0] == 0.0
    assert found["cosine"][0] == 1.0
    for row, want in zip(found.to_dict("records"), expected, strict=True):
        close(row["grad_norm"], want["grad_norm"], tolerance, scale=want["grad_norm"])
        close(row["grad_norm_updated"], want["grad_norm_updated"], tolerance, scale=want["grad_norm"])
        close(row["ics"], want["ics"], tolerance, scale=want["grad_norm"] + want["grad_norm_updated"])
        close(row["cosine"], want["cosine"], tolerance, scale=1.0)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("problem", ["vgg", "dln"])
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


def test_the_papers_step_lengths_are_the_defaults():
    assert line_alphas("vgg") == [0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4]
    assert (line_alphas("dln")[0], line_alphas("dln")[-1]) == (0.01, 30)


@pytest.mark.parametrize(
    ("arguments", "option"), [((0, 1, 2), "--min-alpha"), ((2, 1, 2), "--max-alpha"), ((1, 2, 0), "--points")]
)
def test_an_impossible_line_is_refused(arguments, option):
    with pytest.raises(InputError, match=option):
        line_alphas("vgg", *arguments)


def test_sharpness_of_a_network_of_one_number(small_run):
    run = small_run("dln", "none", depth=1, dimension=1)
    point = bns.load_point(run, step=0, dtype=torch.float64)
    expected = 2 * float((point.inputs**2).sum())  # L = sum (w x - a x)^2
    assert bns.smoothness(point).sharpness[0] == pytest.approx(expected)
