"""The norms against their formulas."""

from __future__ import annotations

import math
import runpy
from pathlib import Path

import pytest
import torch
from helpers import NORMS

from bnsmooth_cli import InputError, norms
from bnsmooth_cli.norms import lp
from bnsmooth_cli.norms.batch import EPSILON
from bnsmooth_cli.norms.derivatives import lp_scale
from bnsmooth_cli.norms.state import prepare

SHAPES = [(32, 5), (8, 5, 3, 4)]
P = {"l1": 1, "l2": 2, "linf": math.inf, "lp:3": 3, "lp:1.5": 1.5}


def data(shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 + 0.7


def reduced(y):
    return [0, *range(2, y.dim())]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", P)
def test_lp_is_its_formula_and_gradient(name, shape):
    norm = norms.build(name, 5).double()
    with torch.no_grad():
        norm.gamma.uniform_(0.5, 2)
        norm.beta.normal_()
    y = data(shape)
    per_unit = y.transpose(0, 1).reshape(5, -1)
    scale = torch.linalg.vector_norm(per_unit, ord=P[name], dim=1)
    if P[name] != math.inf:
        scale = scale / per_unit.shape[1] ** (1 / P[name])
    unit = [1, 5] + [1] * (len(shape) - 2)
    expected = (y - y.mean(reduced(y), keepdim=True)) / scale.view(unit) * norm.gamma.view(unit) + norm.beta.view(unit)
    torch.testing.assert_close(norm(y), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(norm.running_scale, 0.9 + 0.1 * scale, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(norm, (y[:4].requires_grad_(),))


@pytest.mark.parametrize("name", P)
def test_an_lp_norm_that_acts_twice_has_its_gradient(name):
    norm, y = norms.build(name, 5).double(), data((8, 5, 3, 4))
    prepare([norm], 0, 0)
    found = []
    for twice in (False, True):  # whether the gradient will be differentiated
        loss = norm(norm(y).sin()).cos().sum()
        found.append(torch.autograd.grad(loss, [norm.gamma, norm.beta], create_graph=twice))
    for once, again in zip(*found, strict=True):
        torch.testing.assert_close(once, again, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("block", [lp._BLOCK, 150])  # all at once, and a few samples at a time
@pytest.mark.parametrize("name", P)
def test_lp_and_its_derivatives_are_those_of_elementary_operations(name, block, dtype, layout, monkeypatch):
    monkeypatch.setattr(lp, "_BLOCK", block)
    norm = norms.build(name, 5).to(dtype)
    with torch.no_grad():
        norm.gamma.uniform_(0.5, 2)
        norm.beta.normal_()
    y = data((8, 5, 3, 4)).to(dtype)
    if layout == "channels_last":
        y = y.contiguous(memory_format=torch.channels_last)
    if layout == "strided":
        y = torch.cat((y, y), 3)[..., ::2]
    y, g = y.detach().requires_grad_(), torch.randn_like(y)

    def elementary(y):
        dims = reduced(y)
        scale = y.abs().amax(dims) if P[name] == math.inf else y.abs().pow(P[name]).mean(dims).pow(1 / P[name])
        return norm.normalise(y, y.mean(dims), scale)

    found = []
    for function in (norm, elementary):
        out = function(y)
        slopes = torch.autograd.grad(out, [y, norm.gamma, norm.beta], g, create_graph=True)
        again = torch.autograd.grad(sum((slope**2).sum() for slope in slopes), [y, norm.gamma])
        found.append([out, *torch.autograd.grad(function(y), [y, norm.gamma, norm.beta], g), *slopes, *again])
    tolerance = 1e-5 if dtype == torch.float32 else 1e-11
    for fast, plain in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=tolerance, atol=tolerance * float(plain.detach().abs().max()))


@pytest.mark.parametrize("shape", SHAPES)
def test_dyt_is_the_custom_norm_of_the_documentation_bit_by_bit(shape):
    """The tables of docs/norms.md that are older than the built-in norm have it as dyt:DyT."""
    example = runpy.run_path(str(Path(__file__).parents[1] / "docs/examples/dyt.py"))["DyT"]
    mine, theirs, y = norms.build("dyt", 5), example(5), data(shape).float().requires_grad_()
    found = []
    for norm in (mine, theirs):
        with torch.no_grad():
            for parameter, values in zip(norm.parameters(), (0.7, torch.arange(5.0), torch.ones(5)), strict=True):
                parameter.copy_(torch.as_tensor(values))
        slopes = torch.autograd.grad(norm(y).sin().sum(), [y, *norm.parameters()], create_graph=True)
        found.append([norm(y), *slopes, *torch.autograd.grad(slopes[0].square().sum(), [y, *norm.parameters()][:3])])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert [name for name, _ in mine.named_parameters()] == ["alpha", "gamma", "beta"]
    assert norms.build("dyt", 5).alpha.item() == 0.5  # alpha_0 of Zhu et al. 2025


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("updating", [True, False])
def test_batch_is_torchs_batchnorm(shape, updating):
    mine = norms.build("batch", 5).double()
    theirs = (torch.nn.BatchNorm1d if len(shape) == 2 else torch.nn.BatchNorm2d)(5).double()
    prepare([mine], 0, 0, update_statistics=updating)
    y = data(shape)
    torch.testing.assert_close(mine(y), theirs(y), rtol=1e-12, atol=1e-12)
    if updating:
        torch.testing.assert_close(mine.running_var, theirs.running_var)
        mine.eval(), theirs.eval()
        torch.testing.assert_close(mine(y), theirs(y), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in NORMS if name != "none"])
def test_probing_leaves_the_running_statistics_alone(name):
    norm = norms.build(name, 5)
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    prepare(norm.modules(), 0, 0)
    norm(data((16, 5)).float())
    assert all(torch.equal(before[key], value) for key, value in norm.state_dict().items())


def test_evaluation_uses_the_running_statistics():
    norm = norms.build("l1", 5).double()
    for _ in range(400):
        norm(data((32, 5)))
    trained = norm(data((32, 5)))
    norm.eval()
    torch.testing.assert_close(norm(data((32, 5))), trained, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(norm(data((32, 5)) + 1), trained)  # a shift of the batch is seen now


@pytest.mark.parametrize("shape", SHAPES)
def test_scale_divides_by_the_deviation_and_subtracts_nothing(shape):
    norm, y = norms.build("scale", 5).double(), data(shape)
    var = y.var(reduced(y), unbiased=False, keepdim=True)
    torch.testing.assert_close(norm(y), y / (var + EPSILON).sqrt())
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * var.flatten())
    assert torch.autograd.gradcheck(norm, (y[:4].requires_grad_(),))
    running = norm.eval().running_var.view(var.shape)
    torch.testing.assert_close(norm(y), y / (running + EPSILON).sqrt())


def test_second_derivatives_of_a_norm_whose_input_has_no_gradient():
    """The first layer's norm in a Hessian that is restricted to the norm's own parameters."""
    y, norm = torch.randn(20, 3, dtype=torch.float64), lp.LpNorm(3, 1).double()
    (slope,) = torch.autograd.grad(norm(y).pow(3).sum(), norm.gamma, create_graph=True)
    (second,) = torch.autograd.grad(slope.sum(), norm.gamma)
    normalised = (y - y.mean(0)) / y.abs().mean(0)
    torch.testing.assert_close(second, 6 * normalised.pow(3).sum(0))


def test_the_output_and_gradient_of_a_dead_unit_are_finite():
    for name in P:
        y = torch.zeros(8, 5, requires_grad=True)
        out = norms.build(name, 5)(y)
        out.sum().backward()
        assert out.isfinite().all(), name
        assert y.grad.isfinite().all(), name


def test_a_large_p_does_not_overflow():
    y = data((64, 5)).float() * 1e6
    torch.testing.assert_close(
        lp_scale(y, 40.0).double(), y.double().abs().pow(40).mean(0).pow(1 / 40), rtol=1e-5, atol=0
    )


def test_noise_has_the_papers_distribution():
    noise = norms.build("noisy-none", 200)
    noise.key = (3, 14, 1)
    zero = noise(torch.zeros(500, 200))
    centre = zero.mean(0)
    spread = zero.amax(0) - zero.amin(0)
    assert 0.19 < spread.min() < spread.max() < 0.2 + 1e-6  # 2 r_mu
    assert -0.52 < centre.min() < -0.45
    assert 0.45 < centre.max() < 0.52
    scale = noise(torch.ones(500, 200)) - zero
    assert scale.std(0).mean() == pytest.approx(0.1, rel=0.02)  # r_sigma is the standard deviation
    assert 0.97 < scale.mean(0).min() < 1.03
    assert 1.22 < scale.mean(0).max() < 1.28


def test_noise_depends_only_on_seed_step_and_place():
    noise, a = norms.Noise(), torch.randn(4, 3, 5, 5)

    def draw(key):
        noise.key = key
        return noise(a)

    first = draw((0, 1, 2))
    torch.rand(10)
    assert torch.equal(first, draw((0, 1, 2)))
    for other in [(1, 1, 2), (0, 2, 2), (0, 1, 3)]:
        assert not torch.equal(first, draw(other))
    noise.key = (0, 1, 2)
    assert torch.equal(first, noise(a.contiguous(memory_format=torch.channels_last)))
    torch.testing.assert_close(noise(a.double()).float(), first)


@pytest.mark.parametrize("name", ["bacth", "lp:0", "lp:-1", "lp:nan", "lp:inf", "lp:", "l3", ""])
def test_an_unknown_norm_or_parameter_is_refused(name):
    with pytest.raises(InputError, match=name or "norm"):
        norms.build(name, 3)
