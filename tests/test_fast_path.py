"""The linear network's fast path against the network itself, by autograd in float64 over all its samples."""

from __future__ import annotations

import pytest
import torch
from helpers import FAST_NORMS, NORMS

from bnsmooth_cli import problems
from bnsmooth_cli.config import resolve
from bnsmooth_cli.networks.parameters import flatten


class Case:
    """A small network, its fast path, and P parameter vectors with gamma and beta away from 1 and 0."""

    def __init__(self, norm, samples=40, dtype=torch.float64, last_norm=True):
        settings = {"depth": 4, "dimension": 5, "samples": samples, "last_norm": last_norm, "weight_decay": 0.2}
        self.problem = problems.build(resolve("dln", norm=norm, **settings))
        self.model = self.problem.build().double()
        self.fast_path = self.problem.fast_path(dtype, torch.device("cpu"))
        self.names = dict(self.model.named_parameters())
        torch.manual_seed(3)
        start = flatten(p.detach() for p in self.model.parameters())
        self.thetas = start + 0.2 * torch.randn(3, len(start), dtype=torch.float64)
        self.data = [values.double() for values in self.problem.batch(0)]

    def loss(self, theta):
        pieces = theta.split([p.numel() for p in self.names.values()])
        values = {name: piece.view(p.shape) for (name, p), piece in zip(self.names.items(), pieces, strict=True)}
        data = self.problem.objective(torch.func.functional_call(self.model, values, self.data[0]), self.data[1])
        return data + 0.1 * sum((value**2).sum() for name, value in values.items() if name.endswith("linear.weight"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("samples", [40, 6, 3])  # also fewer than the input has dimensions
@pytest.mark.parametrize("last_norm", [True, False])
@pytest.mark.parametrize("norm", FAST_NORMS)
def test_losses_and_gradients_are_the_networks(norm, last_norm, samples, dtype):
    case = Case(norm, samples, dtype, last_norm)
    found = case.fast_path(case.thetas.to(dtype))
    for theta, loss, gradient in zip(case.thetas, found.loss, found.gradient, strict=True):
        theta = theta.clone().requires_grad_()
        expected = case.loss(theta)
        (slope,) = torch.autograd.grad(expected, theta)
        tolerance = 1e-10 if dtype == torch.float64 else 1e-5
        assert loss.item() == pytest.approx(expected.item(), rel=tolerance)
        assert float((gradient - slope).norm() / slope.norm()) < tolerance


@pytest.mark.parametrize("last_norm", [True, False])
@pytest.mark.parametrize("norm", FAST_NORMS)
def test_a_complex_step_is_the_hessians_product(norm, last_norm):
    case = Case(norm, last_norm=last_norm)
    theta = case.thetas[0].clone().requires_grad_()
    (slope,) = torch.autograd.grad(case.loss(theta), theta, create_graph=True)
    direction = torch.randn_like(theta)
    (expected,) = torch.autograd.grad(slope, theta, direction)
    found = case.fast_path(torch.complex(theta.detach(), 1e-12 * direction)[None]).gradient[0].imag / 1e-12
    assert float((found - expected).norm() / expected.norm()) < 1e-9


@pytest.mark.parametrize("norm", [norm for norm in FAST_NORMS if norm != "none"])
def test_a_unit_with_zero_weights_is_finite_and_as_in_the_network(norm):
    case = Case(norm)
    theta = case.thetas[0].clone()
    theta[:5] = 0  # all weights of the first layer's first unit
    found = case.fast_path(theta[None])
    theta.requires_grad_()
    expected = case.loss(theta)
    (slope,) = torch.autograd.grad(expected, theta)
    assert torch.isfinite(found.gradient).all()
    assert found.loss.item() == pytest.approx(expected.item(), rel=1e-10)
    torch.testing.assert_close(found.gradient[0][5:], slope[5:], rtol=1e-9, atol=1e-9 * float(slope.abs().max()))


@pytest.mark.parametrize("norm", [norm for norm in NORMS if norm not in FAST_NORMS])
def test_noise_and_minibatches_have_no_fast_path(norm):
    cpu = torch.device("cpu")
    assert problems.build(resolve("dln", norm=norm)).fast_path(torch.float32, cpu) is None
    assert problems.build(resolve("dln", norm="batch", batch_size=10)).fast_path(torch.float32, cpu) is None
