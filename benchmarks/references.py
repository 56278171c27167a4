"""Plain PyTorch code, as it is usually written. A row is timed against it, once both agree."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bnsmooth_cli.networks.parameters import flatten
from bnsmooth_cli.norms.batch import BatchNorm
from bnsmooth_cli.norms.lp import LpNorm
from bnsmooth_cli.points.point import Point


class PlainLpNorm(nn.Module):
    """The l_p formula in elementary operations."""

    def __init__(self, features: int, p: float) -> None:
        super().__init__()
        self.p = p
        self.gamma = nn.Parameter(torch.ones(features))
        self.beta = nn.Parameter(torch.zeros(features))

    def forward(self, y: Tensor) -> Tensor:
        dims = [0, *range(2, y.dim())]
        if self.p == float("inf"):
            scale = y.abs().amax(dims, keepdim=True)
        else:
            scale = y.abs().pow(self.p).mean(dims, keepdim=True).pow(1 / self.p)
        unit = [1, -1] + [1] * (y.dim() - 2)
        return self.gamma.view(unit) * (y - y.mean(dims, keepdim=True)) / scale + self.beta.view(unit)


def plain_network(model: nn.Module) -> nn.Module:
    """The same network with the same weights, built from modules of torch.nn."""
    parts: list[nn.Module] = []
    for layer in model.layers.values():
        parts.append(copy.deepcopy(layer.linear))
        norm = layer.norm
        if isinstance(norm, BatchNorm):
            two = isinstance(layer.linear, nn.Conv2d)
            plain = (nn.BatchNorm2d if two else nn.BatchNorm1d)(norm.num_features)
            plain.weight.data.copy_(norm.gamma.data)
            plain.bias.data.copy_(norm.beta.data)
            parts.append(plain)
        elif isinstance(norm, LpNorm):
            plain_lp = PlainLpNorm(norm.num_features, norm.p)
            plain_lp.gamma.data.copy_(norm.gamma.data)
            plain_lp.beta.data.copy_(norm.beta.data)
            parts.append(plain_lp)
        parts += sorted(copy.deepcopy(list(layer.rest)), key=lambda part: not isinstance(part, nn.ReLU))
    return nn.Sequential(*parts)


Loss = Callable[[], Tensor]


def gradient(model: nn.Module, loss: Loss) -> Tensor:
    """One forward and backward pass."""
    return flatten(torch.autograd.grad(loss(), list(model.parameters())))


def line(
    model: nn.Module, loss: Loss, alphas: Sequence[float], lr: float, direction: Tensor | None = None
) -> list[Tensor]:
    """The loss and the distance between gradients at each step length. The parameters are moved and moved back.

    The direction is the gradient unless one is given.
    """
    parameters = list(model.parameters())
    start = [p.detach().clone() for p in parameters]
    first = torch.autograd.grad(loss(), parameters)
    moves: Sequence[Tensor] = first
    if direction is not None:
        pieces = direction.split([p.numel() for p in parameters])
        moves = [piece.view_as(p) for piece, p in zip(pieces, parameters, strict=True)]
    results = []
    for alpha in alphas:
        with torch.no_grad():
            for p, s, d in zip(parameters, start, moves, strict=True):
                p.copy_(s - alpha * lr * d)
        value = loss()
        there = torch.autograd.grad(value, parameters)
        distance = torch.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(there, first, strict=True)))
        results.append(torch.stack((value.detach(), distance)))
    with torch.no_grad():
        for p, s in zip(parameters, start, strict=True):
            p.copy_(s)
    return results


def ics(model: nn.Module, loss: Loss, groups: Sequence[int], lr: float) -> list[Tensor]:
    """The distance between each layer's gradients, by a full gradient per layer. `groups`: parameters per layer."""
    parameters = list(model.parameters())
    start = [p.detach().clone() for p in parameters]
    first = torch.autograd.grad(loss(), parameters)
    distances, place = [], 0
    for size in groups:
        there = torch.autograd.grad(loss(), parameters)
        own = slice(place, place + size)
        distances.append(torch.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(there[own], first[own], strict=True))))
        with torch.no_grad():
            for p, g in zip(parameters[own], first[own], strict=True):
                p.sub_(lr * g)
        place += size
    with torch.no_grad():
        for p, s in zip(parameters, start, strict=True):
            p.copy_(s)
    return distances


class DoubleBackward:
    """Products with the Hessian by differentiating the gradient again. Its graph is kept for all products."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        self.parameters = list(model.parameters())
        self.slopes = torch.autograd.grad(loss(), self.parameters, create_graph=True)

    def __call__(self, vector: Tensor) -> Tensor:
        pieces = vector.split([p.numel() for p in self.parameters])
        given = [v.view_as(g) for v, g in zip(pieces, self.slopes, strict=True)]
        return flatten(torch.autograd.grad(self.slopes, self.parameters, given, retain_graph=True))


def power_iteration(model: nn.Module, loss: Loss, value: float, tolerance: float, most: int = 500) -> float:
    """The largest eigenvalue of the Hessian by PyHessian's iteration, which stops close to the given value."""
    torch.manual_seed(0)
    product, vector = DoubleBackward(model, loss), torch.randn(sum(p.numel() for p in model.parameters()))
    eigenvalue = 0.0
    for _ in range(most):
        vector /= vector.norm()
        following = product(vector)
        eigenvalue = float(following @ vector)
        if abs(eigenvalue - value) <= tolerance * abs(value):
            break
        vector = following
    return eigenvalue


def plain_loss(point: Point) -> tuple[nn.Module, Loss]:
    """A plain network at the point, channels_last, and its loss on the point's batch."""
    model = plain_network(point.model).train().to(memory_format=torch.channels_last)
    return model, lambda: point.problem.objective(model(point.inputs), point.targets)


class Rows(nn.Module):
    """A transformer whose outputs are one row for each position, as nn.CrossEntropyLoss takes them."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, tokens: Tensor) -> Tensor:
        return self.inner(tokens).flatten(0, 1)


@contextmanager
def torch_eig() -> Iterator[None]:
    """PyHessian calls torch.eig, which PyTorch has no longer. Here it is what it was, for a symmetric matrix."""

    def eig(matrix: Tensor, eigenvectors: bool) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(matrix)
        return torch.stack((values, torch.zeros_like(values)), 1), vectors

    before = getattr(torch, "eig", None)
    torch.eig = eig
    try:
        yield
    finally:
        del torch.eig
        if before is not None:
            torch.eig = before
