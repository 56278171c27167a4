"""Networks of many parameters: sums over all of them are accurate in float32."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bnsmooth_cli as bns
from bnsmooth_cli.networks.vectors import euclidean_norm, inner_product, tensor_norms

LENGTH = 20_000_000  # PyTorch's norm of as many numbers is 0.06% too small on a CPU


@pytest.mark.parametrize("length", [1, 4_095, 4_096, 70_000, LENGTH])
def test_norms_and_inner_products_are_those_of_float64(length):
    x = torch.rand(2, length, generator=torch.Generator().manual_seed(0))
    y = x[0] + 0.1
    norms = torch.linalg.vector_norm(x, dim=1, dtype=torch.float64)
    products = torch.stack([row.double() @ y.double() for row in x])
    torch.testing.assert_close(euclidean_norm(x).double(), norms, rtol=2e-6, atol=0)
    torch.testing.assert_close(inner_product(x, y).double(), products, rtol=2e-6, atol=0)
    torch.testing.assert_close(euclidean_norm(x[0]).double(), norms[0], rtol=2e-6, atol=0)
    torch.testing.assert_close(inner_product(x[0], y).double(), products[0], rtol=2e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_of_tensors_are_those_of_float64(dtype):
    x = torch.rand(2, 1_000, 3_000, generator=torch.Generator().manual_seed(0)).to(dtype)
    shapes = [x, x[0, :3], x.mT, x[..., ::2], x.view(1, 1_000, 2_000, 3).contiguous(memory_format=torch.channels_last)]
    norms = [torch.linalg.vector_norm(shape, dtype=torch.float64) for shape in shapes]
    torch.testing.assert_close(tensor_norms(shapes, torch.float32).double(), torch.stack(norms), rtol=2e-6, atol=0)


@pytest.mark.slow
def test_many_parameters_are_measured_as_accurately_as_few():
    """A quadratic loss with known answers: its Hessian is diagonal."""
    curvatures = torch.linspace(1, 2, LENGTH).square_()
    model = nn.Linear(LENGTH, 1, bias=False)
    model.weight.data.fill_(0.5)

    def loss():
        return (curvatures * model.weight[0].square()).sum() / 2

    (row,) = bns.smoothness(bns.Point.of(model, loss, lr=0.1), [0.5, 1.0]).to_dict("records")
    exact = curvatures.double()
    gradient = exact / 2
    squared = gradient @ gradient
    assert row["grad_norm"] == pytest.approx(squared.sqrt().item(), rel=1e-6)
    assert row["curvature"] == pytest.approx((gradient @ (exact * gradient) / squared).item(), rel=1e-6)
    assert row["sharpness"] == pytest.approx(4, rel=0.01)
    assert row["beta"] == pytest.approx(((exact * gradient).norm() / gradient.norm()).item(), rel=1e-4)
