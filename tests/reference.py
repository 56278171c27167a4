"""Brute force: every measurement again in plain autograd and float64, by its formula, with nothing shared."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bnsmooth_cli import Point


def double_copy(point: Point) -> nn.Module:
    return copy.deepcopy(point.model).double()


def gradient(point: Point, model: nn.Module) -> list[Tensor]:
    model.zero_grad()
    point.loss(model).backward()
    return [p.grad.clone() for p in model.parameters()]


def norm(tensors: Sequence[Tensor]) -> float:
    return float(torch.sqrt(sum((t**2).sum() for t in tensors)))


def dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return float(sum((x * y).sum() for x, y in zip(a, b, strict=True)))


def difference(a: Sequence[Tensor], b: Sequence[Tensor]) -> list[Tensor]:
    return [x - y for x, y in zip(a, b, strict=True)]


def line(point: Point, alphas: Sequence[float]) -> list[dict[str, float]]:
    g = gradient(point, double_copy(point))
    rows = []
    for alpha in [0.0, *alphas]:
        eta = alpha * point.config.lr
        model = double_copy(point)
        with torch.no_grad():
            for p, slope in zip(model.parameters(), g, strict=True):
                p -= eta * slope
        there = gradient(point, model)
        rows.append(
            {
                "alpha": alpha,
                "step_size": eta,
                "distance": eta * norm(g),
                "loss": point.loss(model).item(),
                "grad_norm": norm(there),
                "grad_distance": norm(difference(g, there)),
                "grad_cosine": dot(g, there) / norm(g) / norm(there),
            }
        )
    return rows


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


def hessian(point: Point) -> tuple[Tensor, Tensor]:
    """The gradient (n,) and the Hessian (n, n), every second derivative."""
    model = double_copy(point)
    parameters = list(model.parameters())
    flat = flatten(torch.autograd.grad(point.loss(model), parameters, create_graph=True))
    rows = [flatten(torch.autograd.grad(entry, parameters, retain_graph=True)) for entry in flat]
    return flat.detach(), torch.stack(rows)


def ics(point: Point) -> list[dict[str, float]]:
    """Definition 2.1, a whole network a layer; the step by torch.optim.SGD."""
    model = double_copy(point)
    g = dict(zip(dict(model.named_parameters()), gradient(point, model), strict=True))
    optimiser = torch.optim.SGD(model.parameters(), lr=point.config.lr, momentum=point.config.momentum)
    for p, velocity in zip(model.parameters(), point.velocity, strict=False):
        optimiser.state[p]["momentum_buffer"] = velocity.double().clone()
    optimiser.step()
    after = {name: p.detach().clone() for name, p in model.named_parameters()}
    rows, moved = [], []
    for _, names in point.layers:
        mixed = double_copy(point)
        with torch.no_grad():
            for name, p in mixed.named_parameters():
                if name in moved:
                    p.copy_(after[name])
        updated = dict(zip(dict(mixed.named_parameters()), gradient(point, mixed), strict=True))
        before, then = [g[name] for name in names], [updated[name] for name in names]
        rows.append(
            {
                "grad_norm": norm(before),
                "grad_norm_updated": norm(then),
                "ics": norm(difference(before, then)),
                "cosine": dot(before, then) / norm(before) / norm(then),
            }
        )
        moved += names
    return rows
