"""Products with the Hessian and its largest eigenvalue, against every second derivative of the loss."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from helpers import NORMS
from torch import nn
from torch.func import functional_call

from bnsmooth_cli.derivatives.lanczos import SHARPNESS_TOLERANCE, largest_eigenvalue
from bnsmooth_cli.derivatives.products import double_backward
from bnsmooth_cli.networks.chain import Chain, Layer
from bnsmooth_cli.norms import build
from bnsmooth_cli.norms.state import prepare, stateful


def images(norm, rest=nn.ReLU):
    first = Layer(nn.Conv2d(2, 3, 3, padding=1), build(norm, 3), rest(), nn.MaxPool2d(2), nn.Flatten())
    second = Layer(nn.Linear(12, 4), build(norm, 4), nn.Tanh())
    return nn.Sequential(first, second, Layer(nn.Linear(4, 2), None)), (5, 2, 4, 4)


def vectors(norm, rest=nn.Sigmoid):
    first = Layer(nn.Linear(3, 4, bias=False), build(norm, 4), rest())
    return nn.Sequential(first, Layer(nn.Linear(4, 2), build(norm, 2))), (6, 3)


def objective(outputs):
    return outputs.sin().square().mean() + outputs.mean()


def brute_force(model, x):
    named = dict(model.named_parameters())

    def loss(theta):
        pieces = theta.split([p.numel() for p in named.values()])
        values = {name: piece.view(p.shape) for (name, p), piece in zip(named.items(), pieces, strict=True)}
        return objective(functional_call(model, values, (x,)))

    theta = torch.cat([p.detach().reshape(-1) for p in named.values()])
    return torch.autograd.functional.jacobian(loss, theta), torch.autograd.functional.hessian(loss, theta)


def curvature(model, x):
    """The gradient, and the function that multiplies by the Hessian."""
    prepare(stateful(model), 0, 0)
    return double_backward(lambda: iter([(1.0, objective(model(x)))]), list(model.parameters()), keep_graph=True)


def random_parameters(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) / 4)


def check(model, x, tolerance):
    prepare(stateful(model), 0, 0)  # one draw of the noise, and running statistics that stay
    gradient, expected = brute_force(model, x)
    before = [p.detach().clone() for p in model.parameters()]
    computed, product = curvature(model, x)
    found = torch.stack([product(v) for v in torch.eye(len(gradient), dtype=x.dtype)])
    scale = float(expected.abs().max())
    torch.testing.assert_close(computed, gradient, rtol=tolerance, atol=tolerance * float(gradient.abs().max()))
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * scale)
    assert all(torch.equal(p, q) and p.grad is None for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("norm", [*NORMS, "lp:1.5"])
@pytest.mark.parametrize("network", [images, vectors])
@pytest.mark.fast(3)
def test_products_agree_with_every_second_derivative(network, norm, dtype, tolerance):
    torch.manual_seed(3)
    model, shape = network(norm)
    random_parameters(model)
    x = torch.randn(shape, dtype=dtype)
    check(model.to(dtype), x, tolerance)
    if x.dim() == 4:
        check(model, x.contiguous(memory_format=torch.channels_last), tolerance)


@pytest.mark.parametrize("foreign", [nn.GELU, lambda: nn.GroupNorm(1, 3), lambda: nn.Conv2d(3, 3, 1, groups=3)])
def test_modules_of_any_kind_have_their_second_derivatives(foreign):
    torch.manual_seed(4)
    model, shape = images("batch", foreign)
    check(model.double(), torch.randn(shape, dtype=torch.float64), 1e-10)


def test_a_residual_network_has_its_second_derivatives():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(3, 3), build("l2", 3), nn.Tanh())

        def forward(self, x):
            return x + self.inner(x)

    torch.manual_seed(5)
    check(Residual().double(), torch.randn(6, 3, dtype=torch.float64), 1e-10)


def test_a_dead_unit_has_no_curvature():
    model, shape = vectors("l1")
    with torch.no_grad():
        model[0].linear.weight[1] = 0
    gradient, product = curvature(model.double(), torch.randn(shape, dtype=torch.float64))
    assert torch.isfinite(product(torch.randn_like(gradient))).all()


def test_batch_norm_of_torch_has_the_same_second_derivatives():
    torch.manual_seed(9)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, eps=1e-3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2))
    random_parameters(model)
    x = torch.randn(5, 2, 4, 4, dtype=torch.float64)
    check(model.double(), x, 1e-10)


def test_batch_norm_keeps_its_digits_where_the_mean_is_far_larger_than_the_deviations():
    """As of the last layers of a ResNet on small images: a rounded mean is off by as much as the deviations."""
    torch.manual_seed(0)
    activations = 30000 + torch.randn(33, 5)
    products = []
    for dtype in (torch.float32, torch.float64):
        y, norm = activations.to(dtype).requires_grad_(), build("batch", 5).to(dtype)
        prepare([norm], 0, 0)
        _, product = double_backward(lambda y=y, norm=norm: iter([(1.0, objective(norm(y)))]), [y], keep_graph=True)
        products.append(product(torch.linspace(-1, 1, y.numel(), dtype=dtype)).double())
    torch.testing.assert_close(*products, rtol=0, atol=1e-5 * float(products[1].abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(8))
def test_the_largest_eigenvalue_is_within_its_tolerance(seed, dtype):
    torch.manual_seed(seed)
    size = (1, 2, 5, 30, 300)[seed % 5]
    basis = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64))[0]
    values = torch.randn(size, dtype=torch.float64).abs().pow(1 + seed % 3) * (-1) ** seed
    values[size // 2 :] *= -0.9  # the other sign is nearly as large
    matrix = (basis * values @ basis.T).to(dtype)
    found = largest_eigenvalue(lambda v: matrix @ v, torch.randn(size, dtype=dtype))
    largest = float(values[values.abs().argmax()])
    assert abs(found) == pytest.approx(abs(largest), rel=SHARPNESS_TOLERANCE)
    assert min(abs(values - found)) <= SHARPNESS_TOLERANCE * abs(found)


def test_the_zero_operator_has_the_eigenvalue_zero():
    assert largest_eigenvalue(torch.zeros_like, torch.ones(4)) == 0


def test_products_that_are_not_finite_have_no_eigenvalue():
    assert math.isnan(largest_eigenvalue(lambda v: v * math.nan, torch.ones(4)))


def test_weight_normalisation_has_its_second_derivatives():
    """PyTorch's own second derivative of the fused operation is wrong: it takes the norms for constants."""
    torch.manual_seed(6)
    first = Layer(nn.Conv2d(2, 3, 3, padding=1), build("weight", 3), nn.Tanh(), nn.Flatten())
    model = Chain({"conv1": first, "fc1": Layer(nn.Linear(48, 2), build("weight", 2), nn.Tanh())}).double()
    model.initialise(0)
    x = torch.randn(5, 2, 4, 4, dtype=torch.float64)
    gradient, product = curvature(model, x)
    step, gradients = 1e-6, []
    for v in torch.eye(len(gradient), dtype=x.dtype)[::7]:
        for sign in (1, -1):
            moved = copy.deepcopy(model)
            theta = nn.utils.parameters_to_vector(moved.parameters()) + sign * step * v
            nn.utils.vector_to_parameters(theta.detach(), moved.parameters())
            found = torch.autograd.grad(objective(moved(x)), list(moved.parameters()))
            gradients.append(torch.cat([g.reshape(-1) for g in found]))
        difference = (gradients[-2] - gradients[-1]) / (2 * step)
        torch.testing.assert_close(product(v), difference, rtol=1e-5, atol=1e-6 * float(difference.abs().max()))
