"""The critical learning rate: a dense search, losses whose answer is known, what rounding hides, and its passes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
import torch
from helpers import SMALL
from torch import nn
from torch.nn import functional as F

import bnsmooth_cli as bns
from bnsmooth_cli.measures.critical_lr import MAX_DOUBLINGS, critical_lr
from bnsmooth_cli.measures.landscape import probe

BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def on_line(loss, start=(1.0,), lr=0.1, dtype=torch.float64):
    """A point of a loss as a function of a few weights."""
    model = nn.Linear(len(start), 1, bias=False).to(dtype)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([start]))
    return bns.Point.of(model, lambda: loss(model.weight[0]), lr=lr)


def critical(point, alphas=(0.5, 1.0, 2.0, 4.0), **more):
    return bns.smoothness(point, alphas, **more)["critical_lr"][0]


@BOTH
@pytest.mark.parametrize("curvature", [1e-12, 1e-3, 0.3, 10.0, 26.0, 1e3, 1e6])
@pytest.mark.parametrize("alphas", [(0.5, 1.0, 2.0, 4.0), (4.0,), (0.01, 1000.0), ()])
@pytest.mark.fast(10)
def test_of_a_quadratic_loss_it_is_two_over_the_curvature(dtype, curvature, alphas):
    """With the answer below, between and beyond the probed steps, and none at all."""
    point = on_line(lambda w: curvature * w.square().sum() / 2, start=(1.0, -2.0), dtype=dtype)
    found, reach = critical(point, alphas), 0.1 * (alphas[-1] if alphas else 1)
    if 2 / curvature > 2**MAX_DOUBLINGS * reach:
        assert math.isnan(found)
    else:
        assert 2 / curvature * (1 - 1e-5) <= found <= 2 / curvature * 1.01


def test_the_loss_rises_there_and_not_a_hundredth_before(small_run):
    for norm in ("none", "batch"):
        point = bns.load_point(small_run("vgg", norm), step=3, dtype=torch.float64)
        found = critical(point)
        g = reference.gradient(point, reference.double_copy(point))
        start, there, before = (reference.loss_on_line(point, g, eta) for eta in (0.0, found, found / 1.01))
        assert before <= start < there


@pytest.mark.parametrize("direction", ["gradient", "random"])
@pytest.mark.parametrize("norm", ["none", "batch", "noisy-batch"])
@pytest.mark.parametrize("problem", ["vgg", "dln"])
@pytest.mark.fast(1)
def test_it_is_that_of_a_dense_search_in_both_precisions(small_run, problem, norm, direction):
    run = small_run(problem, norm, **({"width": 0.01, "batch_size": 8} if problem == "vgg" else {}))
    for step in (0, 6):
        double = bns.load_point(run, step, dtype=torch.float64)
        expected = reference.critical_lr(double, direction)
        alphas = None if problem == "vgg" else (0.1, 1.0, 10.0)
        assert critical(double, alphas, direction=direction) == pytest.approx(expected, rel=0.012, nan_ok=True)
        single = critical(bns.load_point(run, step), alphas, direction=direction)
        assert math.isnan(single) or single == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (lambda w: (0 * w).sum() + 3.0, math.nan),  # flat
        (lambda w: (w - w.detach()).square().sum(), math.nan),  # at its minimum
        (lambda w: w.sum(), math.nan),  # it never rises
        (lambda w: F.relu(w).sum(), math.nan),  # nor here, where it becomes flat
        (lambda w: torch.sqrt(w - 1.0).sum(), math.nan),  # its gradient is infinite
        (lambda w: (w / 0.0).sum(), math.nan),  # it is infinite itself
        (lambda w: (1 / w).sum() * 0 + torch.log(w).sum(), math.nan),  # from 1 to NaN: see below
    ],
)
def test_where_nothing_rises_it_is_null(loss, expected):
    if "log" in loss.__code__.co_names:
        expected = 1.0  # beyond it the loss is not finite, which is a rise
    with np.errstate(all="ignore"):
        assert critical(on_line(loss)) == pytest.approx(expected, rel=0.011, nan_ok=True)


def test_along_a_direction_that_ascends_it_is_zero():
    """Of a random direction, and about half of them ascend."""
    found = []
    for step in range(24):
        point = on_line(lambda w: w.square().sum(), start=(1.0, 2.0, 3.0))
        point = bns.Point.of(point.model, point.loss, lr=0.1, step=step)
        rows = bns.landscape(point, [1e-6], direction="random")
        rises = rows["loss"][1] > rows["loss"][0]
        found.append(critical(point, direction="random"))
        assert (found[-1] == 0) == rises
    assert 4 < sum(value == 0 for value in found) < 20


@pytest.mark.parametrize("alphas", [(1.0, 80.0), (1.0, 10.0, 80.0), (0.1, 1.0, 2.0, 10.0), (0.3, 11.0)])
def test_a_loss_that_rises_and_falls_between_distant_probes_is_seen(alphas):
    """Of a slope with a bump, which no probed step meets."""

    def loss(w):
        return (3 * torch.exp(-(((w - 0.4) / 0.1) ** 2)) - w).sum()

    point = on_line(loss, start=(0.0,))
    etas = torch.linspace(0.01, 1, 10_000, dtype=torch.float64)  # the gradient is -1
    expected = next(eta for eta in etas if loss(eta) > 0)
    assert critical(point, alphas) == pytest.approx(float(expected), rel=0.011)
    assert math.isnan(bns.smoothness(point, alphas)["critical_alpha"][0])


def test_a_saturated_point_has_one_far_beyond_the_steps_that_lose_the_gradient():
    """A fitted loss, which vanishes within the shortest step and rises again after 300 learning rates."""

    def loss(w):
        return (F.softplus(50 * w) / 50 + F.softplus(-50 * w - 1500)).sum()

    point = on_line(loss, start=(0.5,))
    row = bns.smoothness(point, [10.0, 20.0]).iloc[0]
    assert row["saturated"]
    etas = torch.linspace(0.1, 50, 10_000, dtype=torch.float64)  # the gradient is 1
    expected = next(eta for eta in etas if loss(0.5 - eta) > loss(etas.new_tensor(0.5)))
    assert row["critical_lr"] == pytest.approx(float(expected), rel=0.011)
    assert 15 * row["beta_alpha"] * 0.1 < row["critical_lr"]


@pytest.mark.parametrize("offset", [0.0, 1.0, 1e3, 1e6, 1e9])
def test_what_rounding_hides_is_null(offset):
    """A constant in the loss changes nothing of its line, but costs digits."""
    expected = 2 / 10
    for dtype in (torch.float32, torch.float64):
        found = critical(on_line(lambda w: 5 * w.square().sum() + offset, dtype=dtype))
        resolved = 200 * torch.finfo(dtype).eps * offset < 5.0
        assert found == pytest.approx(expected, rel=0.03) if resolved else math.isnan(found) or offset == 1e6


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.fast(2)
def test_in_float32_it_is_that_of_float64_or_null(seed):
    """Of classifiers that are ever better fitted, whose cross-entropy loses its digits."""
    torch.manual_seed(seed)
    x, wide = torch.randn(32, 6), nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    y, known = wide(x).argmax(1), 0
    for scale in (1.0, 3.0, 5.0, 8.0, 12.0, 16.0):
        models = [nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)) for _ in range(2)]
        for model, dtype in zip(models, (torch.float32, torch.float64), strict=True):
            model.load_state_dict(wide.state_dict())
            with torch.no_grad():
                model[2].weight *= scale**2
                model[2].bias *= scale**2
            model.to(dtype)
        single, double = (
            critical(bns.Point.of(m, lambda m=m: F.cross_entropy(m(x.to(m[0].weight.dtype)), y), lr=0.1))
            for m in models
        )
        known += not math.isnan(single)
        if not math.isnan(single):
            assert single == pytest.approx(double, rel=0.05), scale
    assert known >= 1


@pytest.mark.parametrize(
    ("curvature", "alphas", "most"),
    [
        (13.0, (0.5, 1.0, 2.0, 4.0), 8),  # between 1 and 2 learning rates: 7 bisections, and one pass that confirms
        (13.0, (0.5, 1.0, 1.53, 1.54, 4.0), 1),  # the probed steps suffice
        (1.0, (0.5, 1.0, 2.0, 4.0), 3 + 8),  # at 20 learning rates: 8, 16 and 32 are tried
        (1000.0, (0.5, 1.0), 5 + 8),  # at 0.02: halved five times
        (1e-9, (0.5, 1.0), MAX_DOUBLINGS),  # out of reach
        (0.0, (0.5, 1.0), 0),
    ],
)
def test_it_takes_a_few_forward_passes(curvature, alphas, most):
    point = on_line(lambda w: curvature * w.square().sum() / 2)
    passes, of_point = [], type(point).losses_at

    def counted(self, thetas):
        losses = of_point(self, thetas)
        passes.append(len(losses))
        return losses

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(point), "losses_at", counted)
        critical(point, alphas)
    assert sum(passes) == most


def test_it_takes_no_gradient(small_run):
    """A trial costs a forward pass, and records nothing."""
    point = bns.load_point(small_run("vgg", "batch", **SMALL["vgg"]), step=3)
    line, recorded = probe(point), []
    first = next(m for m in point.model.modules() if isinstance(m, nn.Conv2d))
    handle = first.register_forward_hook(lambda *_: recorded.append(torch.is_grad_enabled()))
    assert critical_lr(line) > 0
    handle.remove()
    assert recorded
    assert not any(recorded)
