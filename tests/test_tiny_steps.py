"""Steps that are too short for the precision of the network are measured in float64, or not at all."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import bnsmooth_cli as bns
from bnsmooth_cli.measures.landscape import resolves

#: A cosine schedule, at whose last step the learning rate is 2e-8 of the largest one.
COSINE = {"width": 0.05, "batch_size": 8, "steps": 40, "save_every": 20, "schedule": "cosine", "lr": 1e-6}


@pytest.fixture(scope="module")
def last(tmp_path_factory) -> bns.Point:
    run = bns.train("vgg", "batch", output=tmp_path_factory.mktemp("tiny") / "run", **COSINE)
    return bns.load_point(run)


@pytest.mark.parametrize("direction", ["gradient", "random", "update"])
def test_a_step_that_rounding_swallows_is_measured_in_float64(last, direction):
    theta, gradient = last.theta, last.gradients_at(last.theta[None])[1][0]
    assert not resolves(last, theta, gradient, 0.5 * last.lr)
    assert resolves(last.to(torch.float64), theta.double(), gradient.double(), 0.5 * last.lr)
    double = last.to(torch.float64)
    for measure in (bns.smoothness, bns.landscape):
        mine, exact = (measure(point, direction=direction) for point in (last, double))
        columns = [name for name in ("beta", "lipschitz", "critical_lr", "grad_distance", "loss") if name in mine]
        for name in columns:
            assert mine[name].tolist() == pytest.approx(exact[name].tolist(), rel=1e-5), name


def test_layers_too(last):
    mine, exact = (bns.smoothness_by_layer(point)["beta"] for point in (last, last.to(torch.float64)))
    assert mine.tolist() == pytest.approx(exact.tolist(), rel=1e-9)


def test_a_step_that_float32_resolves_is_measured_in_float32(small_run):
    point = bns.load_point(small_run("vgg", "batch"), step=3)
    assert resolves(point, point.theta, point.gradients_at(point.theta[None])[1][0], 0.5 * point.lr)


def test_a_loop_whose_steps_are_swallowed_has_no_beta():
    model, x = nn.Linear(3, 1), torch.randn(8, 3)
    point = bns.Point.of(model, lambda: (model(x) - 1).square().mean(), lr=1e-12, step=7)
    with pytest.warns(bns.Remark, match="no beta: the rounding of float32 swallows the steps of the line"):
        row = bns.smoothness(point).iloc[0]
    assert row[["beta", "beta_alpha", "saturated", "predictiveness_max"]].isna().all()
    assert row["sharpness"] > 0
    with pytest.warns(bns.Remark, match="no beta"):
        assert bns.smoothness_by_layer(point)["beta"].isna().all()


def test_one_parameter_in_float64_does_not_make_the_others_precise():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), torch.randn(8, 3)
    model.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
    point = bns.Point.of(model, lambda: (model.scale * model(x) - 1).square().mean(), lr=1e-8)
    with pytest.warns(bns.Remark, match="no beta: the rounding of float32"):
        assert math.isnan(bns.smoothness(point, alphas=[0.5, 1, 2, 4])["beta"].item())


def test_a_gradient_that_vanishes_in_a_step_has_no_beta():
    model = nn.Linear(1, 1, bias=False)
    point = bns.Point.of(model, lambda: 1e-30 * model(torch.ones(1, 1)).square().sum(), lr=1e-20)
    with pytest.warns(bns.Remark, match="no beta"):
        assert math.isnan(bns.smoothness(point)["beta"].item())
